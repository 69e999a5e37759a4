"""The example of a chat application, run as a reader would run it: beside a daemon, before the stand-in plant."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from asyncchatd.config import ConsumerSettings, webhook_key
from asyncchatd.delivery import try_webhook
from asyncchatd.delivery.signing import signed
from asyncchatd.rehearsing.trial import Keys, running_daemon
from asyncchatd.standin import PlantSettings, Rotation, StandIn

from .plant import free_port
from .rig import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat_app.py"
NEWS = "Hello, your parcel is here"
THANKS, GOODBYE = "Thank you, I come by tonight", "Goodbye"

Line = dict[str, str]


class Scene:
    """A plant whose keys change, a daemon, the chat application as a process, and a customer's browser."""

    def __init__(self, plant: StandIn, directory: Path, browser: aiohttp.ClientSession) -> None:
        self.plant = plant
        self.browser = browser
        self.port, self.control_port = free_port(), free_port()
        self._token = secrets.token_urlsafe(24)
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._log = directory / "chat_app.log"
        self.secret_file = directory / "webhook-secret"
        self.secret_file.touch(mode=0o600)
        self.secret_file.write_text(f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}\n")

    @property
    def control(self) -> Keys:
        """The control API, to which the application has a token."""
        file = self._directory / "control-tokens"
        file.touch(mode=0o600)
        file.write_text(f"{self._token} register keys\n")
        return {"listen": f"127.0.0.1:{self.control_port}", "token_file": str(file)}

    @property
    def consumer(self) -> Keys:
        """What the example asks for."""
        return {
            "name": "chat-app",
            "url": f"http://127.0.0.1:{self.port}/asyncchatd",
            "secret_file": str(self.secret_file),
        }

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def written_down(self) -> bytes:
        """The application's file, and what it printed."""
        return (self._directory / "chat_app.db").read_bytes() + self._log.read_bytes()

    async def start(self) -> None:
        """Start the application and wait until it serves its page."""
        options = {
            "gms": self.plant.gms_urls[0],
            "asyncchatd": f"http://127.0.0.1:{self.control_port}",
            "secret-file": str(self.secret_file),
            "database": str(self._directory / "chat_app.db"),
            "port": str(self.port),
        }
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(EXAMPLE), *(f"--{name}={value}" for name, value in options.items())),
                stdout=log,
                stderr=log,
                env={**os.environ, "ASYNCCHATD_TOKEN": self._token},
            )
        async with asyncio.timeout(20):
            while True:
                assert self._process.returncode is None, self._log.read_text()
                with suppress(aiohttp.ClientError):
                    async with self.browser.get(self.url("/")) as page:
                        assert "<title>Chat</title>" in await page.text()
                        return
                await asyncio.sleep(0.05)

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            async with asyncio.timeout(10):
                await self._process.wait()
            self._process = None

    async def written(self, text: str) -> bool:
        """What the customer writes is taken. While the chat waits for its restoration he is asked to try again."""
        for _ in range(100):
            if (status := await self.post("/messages", {"text": text})) != 503:
                return status == 204
            await asyncio.sleep(0.1)
        return False

    async def post(self, path: str, body: Line) -> int:
        async with self.browser.post(self.url(path), json=body) as answer:
            return answer.status

    @asynccontextmanager
    async def page(self, last: int = 0) -> AsyncIterator[list[Line]]:
        """The lines of the page, as they come."""
        lines: list[Line] = []
        headers = {"Last-Event-ID": str(last)} if last else {}

        async def listen() -> None:
            async with self.browser.get(self.url("/events"), headers=headers) as stream:
                assert stream.content_type == "text/event-stream"
                async for field in stream.content:
                    name, _, value = field.decode().partition(": ")
                    if name == "data":
                        lines.append(json.loads(value))

        listening = asyncio.create_task(listen())
        try:
            yield lines
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError, aiohttp.ClientError):
                await listening


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    settings = PlantSettings(rotate=Rotation.RESTORE)
    sections: dict[str, Keys] = {
        "watcher": {"interval": "300ms", "fast_interval": "100ms", "timeout": "1s"},
    }
    async with (
        StandIn(settings) as plant,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser,
    ):
        scene = Scene(plant, tmp_path, browser)
        sections["control"] = scene.control
        async with running_daemon(plant, sections, tmp_path, [scene.consumer]):
            try:
                await scene.start()
                yield scene
            finally:
                await scene.stop()
        report = plant.plant.report()
        assert (report.wrong_key_requests, report.sessions_lost, report.incomplete_requests) == (0, 0, 0)


async def test_a_chat_goes_on_over_the_loss_of_its_chat_server_and_of_the_application(scene: Scene) -> None:
    assert await scene.post("/messages", {"text": "too early"}) == 401
    assert await scene.post("/chat", {"name": "Ann"}) == 204
    plant = scene.plant.plant
    [session] = plant.sessions.values()
    assert (session.nickname, session.resend) == ("Ann", True)

    async with scene.page() as lines:
        assert plant.say(session, NEWS)
        expected = [{"who": "Agent", "text": NEWS}]
        await eventually("the agent's message on the page", lambda: lines == expected, within=10)

        # Once the customer's message restores the chat, once asyncchatd does.
        keys = [session.secure_key]
        for text, is_restored in ((THANKS, False), (GOODBYE, True)):
            plant.servers.kill(session.process.server.name)
            await scene.plant.settled()
            if is_restored:
                await eventually("another key", lambda: session.secure_key not in keys, within=20)
            assert await scene.written(text)
            assert session.secure_key not in keys
            assert session.events[-1].text == text
            keys.append(session.secure_key)
            expected.append({"who": "You", "text": text})
            await eventually("it on the page", lambda: lines == expected)

    await scene.stop(signal.SIGKILL)
    assert plant.say(session, "While you were away")
    await scene.start()
    async with scene.page(last=3) as lines:
        await eventually("what was said meanwhile", lambda: lines, within=20)
        assert lines == [{"who": "Agent", "text": "While you were away"}]
    assert await scene.written("I am back")
    keys.append(session.secure_key)
    assert not [key for key in keys if key.encode() in scene.written_down()], "no key is kept"
    assert session.events[-1].text == "I am back"


async def test_an_end_that_a_message_meets_is_told_and_shown(scene: Scene) -> None:
    assert await scene.post("/chat", {"name": "Ann"}) == 204
    plant = scene.plant.plant
    [session] = plant.sessions.values()
    plant.swallow([session])
    assert plant.end_chats([session]) == 1
    async with scene.page() as lines:
        assert await scene.written(THANKS), "GMS takes one more request of a chat that was closed"
        expected = [{"who": "You", "text": THANKS}, {"note": "The chat is over."}]
        await eventually("the end on the page", lambda: lines == expected, within=10)
    assert session.refreshes == 0, "nobody has to ask for it once more"


async def test_a_gap_of_all_chats_is_shown_in_each(scene: Scene) -> None:
    assert await scene.post("/chat", {"name": "Ann"}) == 204
    gap = {"id": "5f0c2a11-9", "kind": "gap", "chat_id": None, "event": None}
    body = json.dumps({"chat_id": None, "events": [gap]}).encode()
    [secret] = scene.secret_file.read_text().split()
    async with scene.page() as lines:
        for _ in range(2):
            headers = signed([webhook_key(secret)], "gap-1", int(time.time()), body)
            async with scene.browser.post(scene.url("/asyncchatd"), data=body, headers=headers) as answer:
                assert answer.status == 204
        await eventually(
            "the gap on the page", lambda: lines == [{"note": "Some messages are missing here."}]
        )


async def test_what_nobody_signed_is_refused(scene: Scene) -> None:
    headers = {"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    for forged in ({}, headers, {**headers, "webhook-signature": "nonsense"}):
        async with scene.browser.post(
            scene.url("/asyncchatd"), json={"events": []}, headers=forged
        ) as answer:
            assert answer.status == 401


async def test_the_batch_that_tries_the_webhook_is_taken_and_shows_nothing(scene: Scene) -> None:
    settings = ConsumerSettings.model_validate(scene.consumer, context={"directory": Path()})
    assert await try_webhook(settings, False) == 204
    assert b"Traceback" not in scene.written_down()
