"""The daemon, a real process, on a disk that takes nothing and on data that are damaged under it: nothing
that it answered for is lost, the operator is told, and it goes on by itself."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from conftest import configuration

from asyncchatd.model.data import TokenNews
from asyncchatd.standin.messages import write_push, write_tokens

PATIENCE = 60.0
"""Seconds after which something is taken to hang. Never reached by a test that passes."""

LAUNCH = """
import asyncio, sys
from pathlib import Path
from asyncchatd.daemon import run as daemon
from asyncchatd import log
from asyncchatd import config
from asyncchatd.stores import trouble
from asyncchatd.stores.sqlite.file import opening
trouble.CALM_SECONDS, opening.PROBE_SECONDS = 0.3, 0.05
settings = config.load(Path(sys.argv[1]))
log.configure(settings.log.level, settings.log.format)
asyncio.run(daemon.run(settings))
"""


class Daemon:
    """One life of the daemon."""

    def __init__(self, process: asyncio.subprocess.Process, http: aiohttp.ClientSession) -> None:
        self.process = process
        self._http = http
        self.log: list[dict[str, object]] = []
        self.text = ""
        self._heard = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def says(self, event: str) -> dict[str, object]:
        """Wait for this event; the last of its kind."""
        async with asyncio.timeout(PATIENCE), self._heard:
            await self._heard.wait_for(lambda: self.said(event))
        return self.said(event)[-1]

    def said(self, event: str) -> list[dict[str, object]]:
        return [line for line in self.log if line["event"] == event]

    async def push(self, chat_id: str) -> aiohttp.ClientResponse:
        """Of a chat that nobody has registered; it brings all its tokens."""
        tokens = TokenNews(chat_id, f"user-of-{chat_id}", f"key-of-{chat_id}", "117")
        body = write_push(f"device-of-{chat_id}", {"type": "push-url", **write_tokens(tokens)})
        async with self._http.post(await self._at("receiver") + "/push/push-secret-1", data=body) as response:
            await response.read()
            return response

    async def push_many(self, prefix: str, count: int) -> list[str]:
        """Which ones were acknowledged; the others got a 503 that says when to come again."""
        chats = [f"{prefix}-{number}" for number in range(count)]
        answers = await asyncio.gather(*map(self.push, chats))
        for answer in answers:
            assert answer.status == 200 or (answer.status, answer.headers["Retry-After"]) == (503, "1")
        return [chat for chat, answer in zip(chats, answers, strict=True) if answer.status == 200]

    async def register(self, chats: Iterable[str], token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        lines = "".join(
            json.dumps({"chat_id": chat, "user_id": "user", "secure_key": f"key-of-{chat}", "alias": "117"})
            + "\n"
            for chat in chats
        )
        url = await self._at("control") + "/v1/sessions"
        async with self._http.post(url, data=lines, headers=headers) as response:
            assert response.status == 200, await response.text()

    async def get(self, path: str, token: str = "") -> tuple[int, dict[str, object]]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self._http.get(await self._at("control") + path, headers=headers) as response:
            return response.status, await response.json()

    async def metrics(self) -> str:
        async with self._http.get(await self._at("control") + "/metrics") as response:
            return await response.text()

    async def chats(self) -> set[str]:
        """All sessions that can be pinged."""
        _, page = await self.get("/v1/sessions?state=live&limit=10000")
        sessions = page["sessions"]
        assert isinstance(sessions, list)
        return {session["chat_id"] for session in sessions if session["has_secure_key"]}

    async def until(self, true: Callable[[int], bool], path: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true((await self.get(path))[0]):  # noqa: ASYNC110 - it tells only those who ask
                await asyncio.sleep(0.02)

    def largest_file(self, size: int) -> None:
        """No file of the process may grow beyond this; what is on disk stays as it is."""
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            await self._reading
            return await self.process.wait()

    async def _at(self, part: str) -> str:
        addresses = (await self.says("daemon_ready"))[part]
        assert isinstance(addresses, list)
        return f"http://{addresses[0]}"

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            self.text += raw.decode()
            if raw.startswith(b"{"):
                async with self._heard:
                    self.log.append(json.loads(raw))
                    self._heard.notify_all()


USUAL = configuration('keys_file = "store-keys"', "[log]", 'format = "json"')


@asynccontextmanager
async def running(directory: Path, text: str = USUAL) -> AsyncIterator[Daemon]:
    """A daemon with this configuration. Killed at the end, as the kernel does it: no chance to finish anything."""
    (directory / "asyncchatd.toml").write_text(text)
    (directory / "store-keys").write_text("ab" * 32)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LAUNCH, str(directory / "asyncchatd.toml")),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as http:
        daemon = Daemon(process, http)
        try:
            yield daemon
        finally:
            await daemon.kill()
    assert "key-of-" not in daemon.text
    assert "ab" * 32 not in daemon.text


@pytest.mark.slow
async def test_while_the_disk_is_full_pushes_are_refused_and_then_taken_again(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        acknowledged = set(await daemon.push_many("before", 50))
        assert len(acknowledged) == 50
        daemon.largest_file(0)
        assert await daemon.push_many("meanwhile", 50) == []
        assert await daemon.push_many("meanwhile", 50) == []
        assert await daemon.get("/readyz") == (503, {"ready": False})
        assert (await daemon.get("/healthz"))[0] == 200
        assert "asyncchatd_store_writable 0.0" in await daemon.metrics()
        assert "could not be written" in str((await daemon.get("/v1/status"))[1]["store_trouble"])
        daemon.largest_file(resource.RLIM_INFINITY)
        await daemon.until(lambda status: status == 200, "/readyz")
        assert (await daemon.get("/v1/status"))[1]["store_trouble"] is None
        acknowledged |= set(await daemon.push_many("after", 50))
        assert len(acknowledged) == 100
        assert len(daemon.said("store_unwritable")) == len(daemon.said("store_writable")) == 1
        assert not daemon.said("store_failed")
    async with running(tmp_path) as daemon:
        await daemon.until(lambda status: status == 200, "/readyz")
        await until_there(daemon, acknowledged)


@pytest.mark.slow
@pytest.mark.parametrize("room", [1_000, 6_000, 30_000])
async def test_a_daemon_that_dies_on_a_full_disk_loses_nothing_it_acknowledged(
    tmp_path: Path, room: int
) -> None:
    """The last write before the end is cut off somewhere in the middle."""
    async with running(tmp_path) as daemon:
        acknowledged = set(await daemon.push_many("before", 20))
        files = [tmp_path / f"chats.db{suffix}" for suffix in ("", "-wal")]
        daemon.largest_file(max(map(size, files)) + room)
        refused = 0
        for turn in range(100):
            taken = await daemon.push_many(f"turn-{turn}", 20)
            acknowledged |= set(taken)
            refused += 20 - len(taken)
            if refused > 100:
                break
        assert refused > 100
    async with running(tmp_path) as daemon:
        await until_there(daemon, acknowledged)
        assert not daemon.said("store_corrupt")


@pytest.mark.slow
async def test_damage_in_the_middle_of_work_is_mended_from_memory(tmp_path: Path) -> None:
    """20 KB of garbage over the beginning of the open file."""
    file = tmp_path / "chats.db"
    names = {f"chat-{number}" for number in range(400)}
    async with running(tmp_path) as daemon:
        await daemon.register(names)
        daemon.process.terminate()
        assert await daemon.ended() == 0
    async with running(tmp_path) as daemon:
        await daemon.says("daemon_ready")
        garbage = os.urandom(20 * 1024)
        with file.open("r+b") as there:
            there.write(garbage)
        while not daemon.said("store_put_back"):
            await daemon.get("/v1/sessions?limit=1000")  # whoever reads comes upon it
        aside = str((await daemon.says("store_corrupt"))["set_aside"])
        assert aside.startswith(f"{file}.damaged-")
        assert size(Path(aside)) > len(garbage)
        await daemon.until(lambda status: status == 200, "/readyz")
        acknowledged = set(await daemon.push_many("new", 10))
        assert len(acknowledged) == 10
        assert not daemon.said("store_failed")
        assert not daemon.said("daemon_failed")
    async with running(tmp_path) as daemon:
        await until_there(daemon, acknowledged)
        assert await daemon.chats() == acknowledged | names
        assert not daemon.said("store_corrupt")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting needs root")
@pytest.mark.parametrize("other_files", [0, 300_000, 1_000_000])
async def test_a_small_disk_that_was_full_recovers_with_its_space(tmp_path: Path, other_files: int) -> None:
    """What fills it is the database itself, whose log must be moved into a file that has to grow for it."""
    with small_disk(tmp_path / "disk", 6_000_000) as disk:
        async with running(disk) as daemon:
            acknowledged = set(await daemon.push_many("before", 50))
            (disk / "other").write_bytes(bytes(other_files))
            with pytest.raises(AssertionError, match="full"):
                await fill(daemon)
            (disk / "other").unlink()
            await daemon.until(lambda status: status == 200, "/readyz")
            for turn in range(20):
                taken = await daemon.push_many(f"after-{turn}", 50)
                assert len(taken) == 50
                acknowledged |= set(taken)
        async with running(disk) as daemon:
            await until_there(daemon, acknowledged)


async def fill(daemon: Daemon) -> None:
    for turn in range(100):
        await daemon.register(f"chat-{turn}-{number}" for number in range(500))


@contextmanager
def small_disk(at: Path, size: int) -> Iterator[Path]:
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)],
        capture_output=True,
        timeout=PATIENCE,
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True, timeout=PATIENCE)


def size(file: Path) -> int:
    return file.stat().st_size


async def until_there(daemon: Daemon, chats: set[str]) -> None:
    """What was acknowledged takes effect with the first turn of a daemon's life."""
    async with asyncio.timeout(PATIENCE):
        while chats - await daemon.chats():  # noqa: ASYNC110 - it tells only those who ask
            await asyncio.sleep(0.02)
