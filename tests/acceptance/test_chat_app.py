"""The example of a chat application, run as a reader would run it: beside a daemon, before the stand-in plant."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import aiohttp
import pytest

from asyncchatd.rehearsing.trial import Keys, running_daemon
from asyncchatd.standin import PlantSettings, Rotation, StandIn

from .plant import free_port
from .rig import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat_app.py"
NEWS = "Hello, your parcel is here"
THANKS = "Thank you, I come by tonight"

Line = dict[str, str]


class Scene:
    """A plant whose keys change, a daemon, the chat application as a process, and a customer's browser."""

    def __init__(self, plant: StandIn, directory: Path, browser: aiohttp.ClientSession) -> None:
        self.plant = plant
        self.browser = browser
        self.port, self.control_port = free_port(), free_port()
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._log = directory / "chat_app.log"
        self.secret_file = directory / "webhook-secret"
        self.secret_file.touch(mode=0o600)
        self.secret_file.write_text(f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}\n")

    @property
    def consumer(self) -> Keys:
        """What the example asks for."""
        return {
            "name": "chat-app",
            "url": f"http://127.0.0.1:{self.port}/asyncchatd",
            "secret_file": str(self.secret_file),
            "kinds": ["chat", "ended", "gap", "tokens"],
            "send_keys": True,
        }

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def known(self) -> str:
        """The tokens in the application's file."""
        with closing(sqlite3.connect(self._directory / "chat_app.db")) as file:
            return " ".join(tokens for (tokens,) in file.execute("SELECT tokens FROM chat"))

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
        sections["control"] = {"listen": f"127.0.0.1:{scene.control_port}"}
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
    [session] = scene.plant.plant.sessions.values()
    assert (session.nickname, session.resend) == ("Ann", True)
    first_key = session.secure_key

    async with scene.page() as lines:
        assert scene.plant.plant.say(session, NEWS)
        await eventually("the agent's message on the page", lambda: lines, within=10)
        assert lines == [{"who": "Agent", "text": NEWS}]

        plant = scene.plant.plant
        plant.servers.kill(session.process.server.name)
        await scene.plant.settled()
        await eventually("another key", lambda: session.secure_key != first_key, within=20)
        await eventually("its coming to the application", lambda: session.secure_key in scene.known())
        assert await scene.post("/messages", {"text": THANKS}) == 204
        assert session.events[-1].text == THANKS
        await eventually("the customer's message on the page", lambda: len(lines) == 2)
        assert lines[1] == {"who": "You", "text": THANKS}

    await scene.stop(signal.SIGKILL)
    assert plant.say(session, "While you were away")
    await scene.start()
    async with scene.page(last=2) as lines:
        await eventually("what was said meanwhile", lambda: lines, within=20)
        assert lines == [{"who": "Agent", "text": "While you were away"}]
    assert await scene.post("/messages", {"text": "I am back"}) == 204
    assert session.events[-1].text == "I am back"


async def test_what_nobody_signed_is_refused(scene: Scene) -> None:
    headers = {"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    for forged in ({}, headers, {**headers, "webhook-signature": "nonsense"}):
        async with scene.browser.post(
            scene.url("/asyncchatd"), json={"events": []}, headers=forged
        ) as answer:
            assert answer.status == 401
