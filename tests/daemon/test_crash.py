"""The daemon, a real process, is killed with SIGKILL and started again: nothing that it answered for is
lost, and nothing is pinged with a wrong key."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from asyncchatd.model.data import TokenNews
from asyncchatd.standin.messages import write_push, write_tokens
from asyncchatd.standin.requests import read_call

PATIENCE = 30.0
"""Seconds after which something is taken to hang. Never reached by a test that passes."""

LAUNCH = """
import asyncio, sys
from pathlib import Path
from asyncchatd.daemon import run as daemon
from asyncchatd import log
from asyncchatd import config
settings = config.load(Path(sys.argv[1]))
log.configure(settings.log.level, settings.log.format)
asyncio.run(daemon.run(settings))
"""


class Gms:
    """As much of a GMS node and of Chat Servers as these tests need.

    Each chat has one key that is right; a request with any other would throw the customer out.
    """

    def __init__(self) -> None:
        self.url = ""
        self.keys: dict[str, str] = {}
        self.alias = "117"
        """The Chat Server that has all chats."""
        self.pid = 4711
        """Of Chat Server 117."""
        self.rotating = False
        """Whether each Refresh changes the key."""
        self.wrong: list[str] = []
        self.answered: list[str] = []
        self.left: int | None = None
        """So many more requests are answered; further ones are taken and never answered."""
        self.stuck = 0
        self._changed = asyncio.Condition()

    def new_chats(self, *chat_ids: str) -> None:
        self.keys.update((chat_id, f"key-of-{chat_id}-0") for chat_id in chat_ids)

    def rotate(self, chat_id: str) -> None:
        name, _, number = self.keys[chat_id].rpartition("-")
        self.keys[chat_id] = f"{name}-{int(number) + 1}"

    def registration(self, chat_id: str) -> dict[str, object]:
        """A line of `POST /v1/sessions`."""
        return {
            "service": "support",
            "chat_id": chat_id,
            "user_id": f"user-of-{chat_id}",
            "secure_key": self.keys[chat_id],
            "alias": self.alias,
            "device_id": f"device-of-{chat_id}",
            "next_position": 1,
        }

    def push(self, chat_id: str) -> bytes:
        """A notification that tells the chat's tokens, the current ones."""
        tokens = TokenNews(chat_id, f"user-of-{chat_id}", self.keys[chat_id], self.alias)
        return write_push(f"device-of-{chat_id}", {"type": "push-url", **write_tokens(tokens)})

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for what changes with the requests that come in."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(true)

    async def go_on(self) -> None:
        """Answer everything again. What was stuck belongs to a daemon that is dead."""
        self.left = None
        await self._tell()

    async def refresh(self, request: web.Request) -> web.Response:
        call = read_call(request.path.removeprefix("/genesys/2/chat/"), await request.read())
        assert call.chat_id is not None
        if call.news.secure_key != self.keys[call.chat_id]:
            self.wrong.append(call.chat_id)
        if self.left is not None:
            if self.left == 0:
                return await self._stuck()
            self.left -= 1
        if self.rotating:
            self.rotate(call.chat_id)
        self.answered.append(call.chat_id)
        await self._tell()
        return web.json_response(
            {
                "statusCode": 0,
                "chatId": call.chat_id,
                "userId": f"user-of-{call.chat_id}",
                "secureKey": self.keys[call.chat_id],
                "alias": self.alias,
                "nextPosition": 1 + self.answered.count(call.chat_id),
            }
        )

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"app_dbid": 117, "process_os_pid": self.pid})

    async def _stuck(self) -> web.Response:
        self.stuck += 1
        await self._tell()
        async with self._changed:
            await self._changed.wait_for(lambda: self.left is None)
        self.stuck -= 1
        return web.Response(status=503)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@pytest.fixture
async def gms() -> AsyncIterator[Gms]:
    node = Gms()
    app = web.Application()
    app.router.add_post("/genesys/2/chat/{service}/{chat_id}/refresh", node.refresh)
    app.router.add_get("/health", node.health)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        node.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield node
    finally:
        await node.go_on()
        await runner.cleanup()


class Daemon:
    """One life of the daemon, from its start to SIGKILL."""

    def __init__(self, process: asyncio.subprocess.Process, http: aiohttp.ClientSession) -> None:
        self._process = process
        self._http = http
        self._log: list[str] = []
        self._reading: asyncio.Task[None] | None = None
        self.receiver = ""
        self.control = ""

    async def ready(self) -> None:
        """Wait until it says where it listens."""
        async with asyncio.timeout(PATIENCE):
            while (line := await self._line()) is not None:
                if line["event"] == "daemon_ready":
                    self.receiver, self.control = (_url(line[name]) for name in ("receiver", "control"))
                    self._reading = asyncio.create_task(self._read_on())
                    return
        raise AssertionError("".join(self._log))

    async def kill(self) -> None:
        """As the kernel does it: no chance to finish anything."""
        if self._process.returncode is None:
            self._process.kill()
        async with asyncio.timeout(PATIENCE):
            await self._process.wait()
            if self._reading is not None:
                await self._reading
        assert "key-of-" not in "".join(self._log)

    async def push(self, body: bytes) -> bool:
        """Whether it was answered with 200; a daemon that is being killed answers nothing."""
        try:
            async with self._http.post(f"{self.receiver}/push/push-secret-1", data=body) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def register(self, *sessions: dict[str, object]) -> None:
        lines = "".join(json.dumps(session) + "\n" for session in sessions)
        headers = {"Content-Type": "application/x-ndjson"}
        async with self._http.post(
            f"{self.control}/v1/sessions", data=lines.encode(), headers=headers
        ) as response:
            assert response.status in (200, 201), await response.text()

    async def ping(self, chat_id: str) -> None:
        async with self._http.post(f"{self.control}/v1/sessions/{chat_id}/ping") as response:
            assert response.status in (200, 202), await response.text()

    async def session(self, chat_id: str) -> dict[str, object]:
        return await self._get(f"/v1/sessions/{chat_id}")

    async def restorations(self) -> list[dict[str, int]]:
        listed = (await self._get("/v1/restorations"))["restorations"]
        assert isinstance(listed, list)
        return listed

    async def _get(self, path: str) -> dict[str, object]:
        async with self._http.get(f"{self.control}{path}") as response:
            assert response.status == 200, await response.text()
            found = await response.json()
        assert isinstance(found, dict)
        return found

    async def _read_on(self) -> None:
        while await self._line() is not None:
            pass

    async def _line(self) -> dict[str, object] | None:
        assert self._process.stdout is not None
        raw = await self._process.stdout.readline()
        self._log.append(raw.decode())
        return json.loads(raw) if raw.startswith(b"{") else {"event": None} if raw else None


def _url(addresses: object) -> str:
    assert isinstance(addresses, list)
    return f"http://{addresses[0]}"


class Host:
    """Where the daemon is started again and again on the same store."""

    def __init__(self, directory: Path, gms: Gms, http: aiohttp.ClientSession) -> None:
        self.gms = gms
        self._http = http
        self._file = directory / "asyncchatd.toml"
        self._file.write_text(
            f"""
            [receiver]
            listen = "127.0.0.1:0"
            secrets = ["push-secret-1"]
            [control]
            listen = "127.0.0.1:0"
            [gms]
            nodes = ["{gms.url}/genesys"]
            timeout = "20s"
            [store]
            url = "sqlite:///chats.db"
            [ping]
            interval = "1000d"  # no keepalive comes in between
            [restoration]
            max_rate = 500.0
            max_in_flight = 10
            lease = "1s"
            backoff = "100ms"
            backoff_max = "200ms"
            [watcher]
            interval = "100ms"
            [log]
            level = "debug"
            format = "json"
            [[chat_server]]
            name = "chat-1"
            health_url = "{gms.url}/health"
            """
        )

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Daemon]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LAUNCH, str(self._file)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        running = Daemon(process, self._http)
        try:
            await running.ready()
            yield running
        finally:
            await running.kill()


@pytest.fixture
async def host(tmp_path: Path, gms: Gms) -> AsyncIterator[Host]:
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        yield Host(tmp_path, gms, http)


async def eventually(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask the daemon until it says so."""
    async with asyncio.timeout(PATIENCE):
        while not await true():  # noqa: ASYNC110 - the daemon tells only those who ask
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_restoration_goes_on_where_sigkill_cut_it_off(host: Host, gms: Gms) -> None:
    chats = [f"chat-{number}" for number in range(40)]
    gms.new_chats(*chats)
    async with host.daemon() as daemon:
        await daemon.register(*map(gms.registration, chats))
        gms.rotating = True  # so that the registered keys are wrong from now on
        for chat_id in chats:
            await daemon.ping(chat_id)

        async def all_settled() -> bool:
            return all([(await daemon.session(chat_id))["next_position"] == 2 for chat_id in chats])

        await eventually(all_settled)
        gms.rotating = False
        gms.answered.clear()
        gms.left = 15
        gms.alias, gms.pid = "118", 4712  # Chat Server 117 was restarted, 118 takes the chats over
        await gms.until(lambda: gms.stuck == 10)
        assert len(gms.answered) == 15
    await gms.go_on()
    async with host.daemon() as daemon:
        await gms.until(lambda: set(gms.answered) == set(chats))

        async def all_finished() -> bool:
            return {one["waiting"] for one in await daemon.restorations()} == {0}

        await eventually(all_finished)
        [restoration] = await daemon.restorations()
        assert restoration["sessions"] == restoration["restored"] == len(chats)
        for chat_id in chats:
            assert (await daemon.session(chat_id))["alias"] == "118"
    assert gms.wrong == []
    # What had been settled is not done again: only answers that were under way may have been.
    assert len(gms.answered) <= len(chats) + 15


@pytest.mark.slow
async def test_a_push_answered_with_200_survives_sigkill(host: Host, gms: Gms) -> None:
    gms.new_chats("known", "stranger")
    async with host.daemon() as daemon:
        await daemon.register(gms.registration("known"))
        gms.left = 0
        gms.rotate("known")  # an agent's desktop did, and nothing but the push tells it
        assert await daemon.push(gms.push("known"))
        assert await daemon.push(gms.push("stranger"))
    await gms.go_on()
    async with host.daemon() as daemon:
        await gms.until(lambda: set(gms.answered) == {"known", "stranger"})
        assert (await daemon.session("stranger"))["state"] == "live"
    assert gms.wrong == []


@pytest.mark.slow
async def test_in_a_storm_of_pushes_no_answered_one_is_lost_to_sigkill(host: Host, gms: Gms) -> None:
    chats = [f"chat-{number}" for number in range(150)]
    gms.new_chats(*chats)
    pushed: set[str] = set()
    taken: set[str] = set()
    async with host.daemon() as daemon:
        await daemon.register(*map(gms.registration, chats))
        gms.left = 0

        async def storm(part: list[str]) -> None:
            for chat_id in part:
                gms.rotate(chat_id)
                pushed.add(chat_id)
                if await daemon.push(gms.push(chat_id)):
                    taken.add(chat_id)
                if len(taken) >= 60:
                    await daemon.kill()
                    return

        await asyncio.gather(*(storm(chats[first::15]) for first in range(15)))
    assert 60 <= len(taken) < len(pushed)
    await gms.go_on()
    async with host.daemon() as daemon:
        await gms.until(lambda: taken <= set(gms.answered))
        for chat_id in pushed - taken:  # Chat Server sends again what nobody acknowledged
            assert await daemon.push(gms.push(chat_id))
        await gms.until(lambda: pushed <= set(gms.answered))
    assert gms.wrong == []
