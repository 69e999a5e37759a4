"""What a developer does first: ask GMS for a chat, and hand its very reply on. The plant is the stand-in here, whose
GMS opens chats as GMS does."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from conftest import started

from asyncchatd.standin import PlantSettings, StandIn, chat_servers

from .plant import free_port
from .rig import Json, eventually

pytestmark = pytest.mark.slow

SECRET = "pushsecret-registering-3b8e"
SUBSCRIBED = {
    "nickname": "Ann",
    "userData[GCTI_Chat_PushSubscribe]": "true",
    "userData[GCTI_GMS_NodeGroup]": "gms",
    "userData[GCTI_GMS_PushDeviceId]": "phone-4711",
    "userData[GCTI_GMS_PushDeviceType]": "customhttp",
    "userData[GCTI_GMS_PushResend]": "true",
    "userData[GCTI_Chat_AsyncMode]": "true",
}


@dataclass
class Site:
    """A stand-in plant, a daemon, and a developer with a client for both."""

    standin: StandIn
    http: aiohttp.ClientSession
    control: str
    config: Path

    async def request_chat(self) -> bytes:
        """GMS' reply, byte for byte."""
        url = f"{self.standin.gms_urls[0]}/2/chat/customer-support"
        async with self.http.post(url, data=SUBSCRIBED) as response:
            assert response.status == 200
            return await response.read()

    async def session(self, chat_id: str) -> Json:
        async with self.http.get(f"{self.control}/v1/sessions/{chat_id}") as response:
            assert response.status == 200
            found: Json = await response.json()
            return found

    async def command(self, *arguments: str, said: bytes = b"") -> tuple[int | None, str]:
        """Exit status and output of a command, with this on its standard input."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asyncchatd", *arguments, "--config", str(self.config)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(30):
            output, _ = await process.communicate(said)
        return process.returncode, output.decode()

    async def looked_after(self, reply: bytes) -> None:
        """A push of the chat is acknowledged, and when its Chat Server dies it is restored on the other one."""
        told = json.loads(reply)
        chat = self.standin.plant.sessions[told["chatId"]]
        before = await self.session(chat.chat_id)
        assert (before["state"], before["device_id"], before["alias"]) == (
            "live",
            "phone-4711",
            told["alias"],
        )
        assert self.standin.plant.say(chat, "Hello")
        await eventually("the acknowledgement", lambda: self.standin.plant.report().acknowledged)
        home = next(
            each for each in self.standin.plant.settings.servers if str(each.app_dbid) == told["alias"]
        )
        self.standin.plant.servers.kill(home.name)
        await eventually("the restoration", lambda: self.standin.plant.report().restored, within=20)
        assert chat.alias != told["alias"]

    def unharmed(self) -> None:
        report = self.standin.plant.report()
        wrong = ("wrong_key_requests", "wrong_service_requests", "incomplete_requests", "sessions_lost")
        assert {name: getattr(report, name) for name in wrong} == dict.fromkeys(wrong, 0)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path) as site:
        yield site
    log = (tmp_path / "log").read_text()
    keys = [each.secure_key for each in site.standin.plant.sessions.values()]
    assert keys
    assert not [secret for secret in (*keys, SECRET) if secret in log]


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Site]:
    push, control = free_port(), free_port()
    settings = PlantSettings(
        servers=chat_servers(2), push_url=f"http://127.0.0.1:{push}/push/{SECRET}", resend_delay=0.5
    )
    async with StandIn(settings) as standin, aiohttp.ClientSession() as http:
        config = directory / "asyncchatd.toml"
        config.write_text(
            f"""
            [receiver]
            listen = "127.0.0.1:{push}"
            secrets = ["{SECRET}"]
            [control]
            listen = "127.0.0.1:{control}"
            [gms]
            nodes = {json.dumps(list(standin.gms_urls))}
            service = "another-service"
            [ping]
            interval = "12h"
            [watcher]
            interval = "200ms"
            timeout = "300ms"
            fast_interval = "100ms"
            """
            + "".join(
                f'\n[[chat_server]]\nname = "{name}"\nhealth_url = "{url}"'
                for name, url in standin.health_urls.items()
            )
        )
        config.chmod(0o600)
        site = Site(standin, http, f"http://127.0.0.1:{control}", config)
        with daemon(config):
            await ready(site)
            yield site


@contextmanager
def daemon(config: Path) -> Iterator[None]:
    """A daemon that ends well."""
    command = (sys.executable, "-m", "asyncchatd", "run", "--config", config)
    with (config.parent / "log").open("wb") as log, started(*command, stdout=log) as process:
        yield
        process.terminate()
        assert process.wait(20) == 0


async def ready(site: Site) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with site.http.get(f"{site.control}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.02)


async def test_a_chat_whose_very_reply_is_posted_is_looked_after(site: Site) -> None:
    reply = await site.request_chat()
    url = f"{site.control}/v1/sessions?service=customer-support&device_id=phone-4711"
    async with site.http.post(url, data=reply) as response:
        assert (response.status, (await response.json())["taken"]) == (200, 1)
    await site.looked_after(reply)
    site.unharmed()


async def test_a_chat_whose_very_reply_is_piped_into_the_command_is_looked_after(site: Site) -> None:
    reply = await site.request_chat()
    beside = ("--service", "customer-support", "--device-id", "phone-4711")
    assert await site.command("register", *beside, said=reply) == (0, "1 registered\n")
    await site.looked_after(reply)
    chat_id = json.loads(reply)["chatId"]
    asked = site.standin.plant.report().requests
    assert (await site.command("end", chat_id))[0] == 0
    assert (await site.session(chat_id))["state"] == "ended"
    assert site.standin.plant.sessions[chat_id].ended is None
    assert site.standin.plant.report().requests == asked
    site.unharmed()
