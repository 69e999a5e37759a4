"""A standby of the database of several nodes, and what is lost when it takes over."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from asyncchatd.rehearsing.together.database import PORT, Server
from asyncchatd.rehearsing.trial import meanwhile, until
from asyncchatd.standin import LoopbackProxy, Way
from asyncchatd.stores.postgres import connect, place_of

from .rounds import agents_write, calm, judged
from .site import Soak

SYNCHRONOUS = "synchronous"

BEHIND_SECONDS = 2.0
"""So much of its commits an asynchronous standby has not got: the way between is silent before the primary dies."""

BACK_SECONDS = 30.0


class Standby(Server):
    """A server that follows another one, which it reaches by a proxy."""

    def __init__(self, directory: Path, primary: Server, port: int) -> None:
        super().__init__(directory, primary.bin, primary.user, primary.settings)
        self._port = port

    def make(self) -> None:
        """Copy the primary's data."""
        made = self.begin(
            "pg_basebackup", "-D", self.directory / "data", "-R", "-X", "stream", "-c", "fast",
            "-d", f"host=127.0.0.1 port={self._port} user=postgres",
        )  # fmt: skip
        if made.wait(60):
            raise RuntimeError("the primary's data could not be copied")


@contextmanager
def standby(primary: Server, port: int) -> Iterator[Standby]:
    """A standby of `primary`, which it reaches at `port`; it runs meanwhile."""
    with tempfile.TemporaryDirectory(prefix="asyncchatd-pg-") as name:
        if primary.user is not None:
            shutil.chown(name, primary.user)
        one = Standby(Path(name), primary, port)
        with one.running():
            yield one


def url_of(servers: tuple[Server, ...], hold_seconds: int) -> str:
    """The `store.url` of whichever of these is the primary."""
    hosts = ",".join(quote(str(each.directory)) for each in servers)
    ports = ",".join(PORT for _ in servers)
    return (
        f"postgresql://postgres@/postgres?host={hosts}&port={ports}&target_session_attrs=read-write"
        f"&schema=asyncchatd&hold={hold_seconds}s"
    )


async def run_on(server: Server, *statements: str) -> None:
    """Run statements one by one as its superuser."""
    connection = await connect(place_of(server.url("asyncchatd")).address)
    for each in statements:
        await connection.script(each)
    await connection.close()


async def fail_over(
    soak: Soak, other: Standby, way: LoopbackProxy, how: str
) -> tuple[dict[str, float], list[str]]:
    """The primary dies in the middle of a restoration, and the standby takes over. Figures, and broken promises; with
    an asynchronous standby these are what it costs."""
    plant = soak.plant.plant
    if how == SYNCHRONOUS:
        await run_on(
            soak.database, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"
        )
    plant.reset_report()
    soak.watch.begin()
    began = time.monotonic()
    async with meanwhile(agents_write(soak)):
        losing = asyncio.create_task(soak.lose_a_server())
        await asyncio.sleep(soak.chance.uniform(0.5, 1.5))
        if how != SYNCHRONOUS:
            await way.become(Way.HOLD)
            await asyncio.sleep(BEHIND_SECONDS)
        await asyncio.to_thread(soak.database.stop, signal.SIGQUIT)
        await way.become(Way.REFUSE)
        died = time.monotonic()
        await run_on(other, "SELECT pg_promote()")
        promoted, asked = time.monotonic(), plant.report().requests
        await until(lambda: plant.report().requests > asked, BACK_SECONDS)
        back = time.monotonic()
        await losing
        await asyncio.sleep(5)
    is_calm = await calm(soak)
    report = plant.report()
    figures = {
        "seconds": round(time.monotonic() - began, 1),
        "promoted_after": round(promoted - died, 2),
        "back_after": round(back - promoted, 2),
        "requests": report.requests,
        "most_in_a_second": report.peak_requests_per_second,
        "pause": round(report.longest_pause_seconds, 2),
        "restored": report.restored,
        "without_server_max": round(report.without_server_seconds.max or 0, 2),
        "pushes": report.pushes_sent,
        "pushes_failed": report.pushes_failed,
        "thrown_out": report.sessions_lost,
    }
    return figures, judged(soak, report, is_calm=is_calm)
