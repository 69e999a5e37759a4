"""The daemon as a process, and everything that can happen to one: killed, stopped, frozen, its disk full,
its store damaged, its clock set."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import secrets
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from asyncchatd.config.values.addresses import Listen
from asyncchatd.standin import StandIn

NIMBLE = """
timeout = "2s"
connect_timeout = "500ms"
rest = "200ms"
rest_max = "1s"
[ping]
interval = "10m"
[restoration]
max_rate = {rate}
max_in_flight = 100
lease = "4s"
[watcher]
interval = "500ms"
timeout = "500ms"
"""
"""Sections of a daemon that notices within seconds what happens around it; they begin in `[gms]`."""

READY_SECONDS = 40.0
STOP_SECONDS = 30.0
UNWANTED = ("Traceback", "daemon_failed", "ping_failed", '"level":"critical"')
"""What no line of the log may have, whatever goes wrong around the daemon."""


class Host:
    """Where the daemon runs, dies and is started again on the same store."""

    def __init__(self, directory: Path, plant: StandIn, sections: str, consumers: str = "") -> None:
        self.plant = plant
        self.control = Listen(path=str(directory / "control.sock"))
        self.store = directory / "chats.db"
        self.log = directory / "asyncchatd.log"
        self.process: asyncio.subprocess.Process | None = None
        self.ready = asyncio.Event()
        self.lives = 0
        self.set_aside = 0
        """Damaged stores that were set aside."""
        self.complaints: list[str] = []
        self.frozen = False
        self.store_gone = False
        """Its file is not what the daemon has open."""
        self.log_read = asyncio.Event()
        self.log_read.set()
        self.disk_full_since: float | None = None
        """Wall clock, milliseconds."""
        self.unwritable_at = float("-inf")
        """When its log last said that it cannot write its store; monotonic."""
        self.stepped_at = float("-inf")
        """When its log last said that its clock was set; monotonic."""
        self.clock_step = 0.0
        self._leaving = False
        self._obeys = False
        """Whether it has come as far as to obey signals: Python itself ends at one that comes before."""
        self._secret = secrets.token_urlsafe(24)
        self._aside = directory / "chats.db.aside"
        self._copy = directory / "chats.db.copy"
        self._config = directory / "asyncchatd.toml"
        self._clock = directory / "clock"
        self._reading: asyncio.Task[None] | None = None
        self._config.write_text(self._configuration(sections) + consumers)
        self._config.chmod(0o600)
        self.set_clock(0.0)

    @property
    def able(self) -> bool:
        """Whether the daemon can do its work."""
        broken = self._leaving or self.frozen or self.store_gone or self.disk_full_since is not None
        return self.ready.is_set() and not broken

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self._leaving = self._obeys = False
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"{__package__}.launch", str(self._clock), str(self._config)),
            stdin=asyncio.subprocess.PIPE,  # it ends when this closes
            stdout=asyncio.subprocess.PIPE,  # as the journal does: a full disk does not stop it
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        self.lives += 1
        self._reading = asyncio.create_task(self._read(self.process))
        async with asyncio.timeout(READY_SECONDS):
            await self.ready.wait()

    async def kill(self) -> None:
        """SIGKILL: no chance to finish anything."""
        self._leaving = True
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.kill()
        await self._gone()

    async def stop(self) -> None:
        """SIGTERM, as at a planned restart."""
        self._leaving = True
        assert self.process is not None
        expected = (0,) if self._obeys else (0, -signal.SIGTERM)
        self.process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                status = await self._gone()
        except TimeoutError:
            self.complaints.append(f"asyncchatd did not stop within {STOP_SECONDS:.0f} s")
            await self.kill()
            return
        if status not in expected:
            self.complaints.append(f"exit status {status} after SIGTERM")

    def freeze(self) -> None:
        """It stands still, as when its virtual machine is paused."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.frozen = False

    def fill_disk(self) -> None:
        """Every write to a file fails: its size may not grow beyond 0 bytes."""
        assert self.process is not None
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        self.disk_full_since = time.time() * 1000

    def free_disk(self) -> None:
        assert self.process is not None
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, unlimited)
        self.disk_full_since = None

    def damage(self, chance: random.Random) -> None:
        """While it is dead: something wrote over its store."""
        for path in (Path(f"{self.store}-wal"), Path(f"{self.store}-shm")):
            path.unlink(missing_ok=True)
        with self.store.open("r+b") as file:
            file.seek(0 if chance.random() < 0.5 else 4096)
            file.write(chance.randbytes(3 * 4096))

    def take_store_away(self, *, replaced: bool) -> None:
        """Somebody renames the store's file under the running daemon, or puts an old copy in its place."""
        if replaced:
            shutil.copyfile(self.store, self._copy)
        self.store.rename(self._aside)
        if replaced:
            self._copy.rename(self.store)
        self.store_gone = True

    def has_put_store_back(self) -> bool:
        """Whether the daemon wrote a file that was moved away to its path again, and goes on with it. What was moved
        away is an old copy from then on."""
        if not self.store.exists():
            return False
        self._aside.unlink()
        self.store_gone = False
        return True

    def bring_store_back(self) -> None:
        """The operator puts in place what the daemon has saved, or else what was moved away. The daemon is not
        running."""
        rescued = sorted(self.store.parent.glob(f"{self.store.name}.rescued-*"))
        (rescued[-1] if rescued else self._aside).rename(self.store)
        for path in (*rescued[:-1], self._aside):
            path.unlink(missing_ok=True)
        self.store_gone = False

    def set_clock(self, seconds: float) -> None:
        """Its clock is so many seconds off from now on; the monotonic one is not."""
        self.clock_step = seconds
        new = self._clock.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._clock)

    async def release(self) -> None:
        """Nothing stays behind."""
        if self.process is not None and self.process.returncode is None:
            await self.kill()

    def memory(self) -> int:
        """Bytes the process occupies now; 0 when there is none."""
        if self.process is None or self.process.returncode is not None:
            return 0
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    async def _gone(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(STOP_SECONDS):
            status = await self.process.wait()
            if self._reading is not None:
                await self._reading
        self.ready.clear()
        self.frozen, self.disk_full_since = False, None
        return status

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with self.log.open("ab") as kept:
            async for line in process.stdout:
                await self.log_read.wait()
                kept.write(line)
                self._notice(line.decode(errors="replace"))
        self.ready.clear()
        if not self._leaving:
            self.complaints.append(f"asyncchatd ended by itself, exit status {await process.wait()}")

    def _notice(self, line: str) -> None:
        for unwanted in UNWANTED:
            if unwanted in line:
                self.complaints.append(f"in the log: {line.strip()[:400]}")
        self._obeys |= '"daemon_starting"' in line
        if '"daemon_ready"' in line:
            [address] = json.loads(line)["receiver"]
            self.plant.plant.change({"push_url": f"http://{address}/push/{self._secret}"})
            self.ready.set()
        elif '"store_corrupt"' in line:
            self.set_aside += 1
        elif '"clock_stepped"' in line:
            self.stepped_at = time.monotonic()
        elif '"store_unwritable"' in line:
            self.unwritable_at = time.monotonic()

    def _configuration(self, sections: str) -> str:
        servers = "\n".join(
            f'[[chat_server]]\nname = "{name}"\nhealth_url = "{url}"'
            for name, url in self.plant.health_urls.items()
        )
        nodes = ", ".join(f'"{url}"' for url in self.plant.gms_urls)
        return f"""
[receiver]
listen = "127.0.0.1:0"
secrets = ["{self._secret}"]
[control]
listen = "{self.control}"
trust_socket = true
[store]
url = "sqlite:///{self.store.name}"
[log]
format = "json"
[gms]
nodes = [{nodes}]
service = "customer-support"
{sections}
{servers}
"""
