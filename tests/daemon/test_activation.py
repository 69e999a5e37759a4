"""systemd holds the sockets: while the daemon is restarted, no push is refused and none is cut off."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from conftest import soon

from asyncchatd.model.data import Ms, SessionState
from asyncchatd.standin.messages import write_push
from asyncchatd.stores.sqlite import SqliteStore

CLIENTS = 20
RESTARTS = 4
BETWEEN = 200
"""Pushes that are answered between two restarts."""
PATIENCE = 120.0
SECRET = "activation-secret-1"


class Manager:
    """What systemd is to the daemon: it holds the sockets, and starts it on them, as often as needed.

    Where it is installed, `systemd-socket-activate` starts the daemon when a connection comes, as
    systemd does; elsewhere the sockets are handed over in the same way, at once.
    """

    def __init__(self, config: Path, directory: Path) -> None:
        self._sockets = {
            "receiver": socket.create_server(("127.0.0.1", 0), backlog=4096),
            "control": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        }
        self.control = str(directory / "control.sock")
        self._sockets["control"].bind(self.control)
        self._sockets["control"].listen(64)
        self.port = self._sockets["receiver"].getsockname()[1]
        self._log = (directory / "daemon.log").open("ab")
        self._command = [sys.executable, "-m", "asyncchatd", "run", "--config", str(config)]
        if activate := shutil.which("systemd-socket-activate"):
            self._command[:0] = [activate, f"--fdname={':'.join(self._sockets)}"]
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        # Beyond 3 and 4, which the shell makes of them.
        fds = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 100) for each in self._sockets.values()]
        redirections = " ".join(f"{number}<&{fd}" for number, fd in enumerate(fds, start=3))
        environment = {**os.environ, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(self._sockets)}
        self.process = await asyncio.create_subprocess_exec(
            "bash", "-c", f'LISTEN_PID=$$ exec "$@" {redirections}', "bash", *self._command,
            env=environment, pass_fds=fds, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        for fd in fds:
            os.close(fd)

    async def stop(self) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        return await soon(self.process.wait())

    def close(self) -> None:
        for each in self._sockets.values():
            each.close()
        self._log.close()


@asynccontextmanager
async def managed(directory: Path) -> AsyncIterator[Manager]:
    config = directory / "asyncchatd.toml"
    config.write_text(
        f'[receiver]\nsecrets = ["{SECRET}"]\n[gms]\nnodes = ["http://127.0.0.1:9/genesys"]\n'
        f'[control]\nlisten = "unix:{directory}/control.sock"\n[store]\nurl = "sqlite:///sessions.db"\n'
        '[log]\nlevel = "warning"\n'
    )
    config.chmod(0o600)
    manager = Manager(config, directory)
    try:
        await manager.start()
        yield manager
    finally:
        await manager.stop()
        manager.close()


class Gms:
    """Clients that push as fast as they are answered, each on a connection that it keeps."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/push/{SECRET}"
        self.answers: Counter[int | str] = Counter()
        self.acknowledged: set[str] = set()
        self.done = asyncio.Event()
        self._more = asyncio.Event()

    async def push(self, client: int) -> None:
        number = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
            while not self.done.is_set():
                number += 1
                device = f"device-{client}-{number}"
                try:
                    async with session.post(self._url, data=write_push(device, {})) as response:
                        self.answers[response.status] += 1
                        await response.read()
                        if response.status == 200:
                            self.acknowledged.add(device)
                except aiohttp.ClientError as error:
                    self.answers[repr(error)] += 1
                self._more.set()

    async def answered(self, more: int) -> None:
        """Return when so many more pushes have been answered."""
        enough = self.answers.total() + more
        while self.answers.total() < enough:
            self._more.clear()
            await self._more.wait()


@pytest.mark.slow
async def test_restarts_lose_and_refuse_no_push(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE), managed(tmp_path) as manager:
        gms = Gms(manager.port)
        async with asyncio.TaskGroup() as clients:
            for client in range(CLIENTS):
                clients.create_task(gms.push(client))
            for _ in range(RESTARTS):
                await gms.answered(BETWEEN)
                assert await manager.stop() == 0
                await manager.start()
            await gms.answered(BETWEEN)
            # The control API has its own socket, and is there again, too.
            connector = aiohttp.UnixConnector(manager.control)
            async with (
                aiohttp.ClientSession(connector=connector) as operator,
                operator.get("http://localhost/readyz") as response,
            ):
                assert response.status == 200
            gms.done.set()
        assert await manager.stop() == 0
    assert set(gms.answers) == {200}, (tmp_path / "daemon.log").read_text()
    assert gms.answers.total() >= BETWEEN * (RESTARTS + 1)
    # And each of them is there.
    store = SqliteStore("sqlite:///sessions.db", directory=tmp_path)
    await store.open()
    try:
        while await store.absorb(10_000):
            pass
        now: Ms = 0
        kept = (await store.counts(now=now)).states[SessionState.INCOMPLETE]
    finally:
        await store.close()
    assert kept == len(gms.acknowledged)
