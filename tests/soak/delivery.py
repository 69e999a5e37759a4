"""The delivery under fire, as a command: agents write, while the chat application and the daemon are killed.

    PYTHONPATH=tests python -m soak.delivery [--minutes 10] [--chats 1000] [--rate 200] [--seed 1] [--keep DIR]

The chat application is killed, hangs, answers 500, 400 or slowly at random, one chat's batches are always answered 400,
a second consumer fetches and dies too. Exit status 1 when an event was lost, came out of order or in other bytes, or
came late to an application that was well.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import click

from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.rehearsing.trial import TrialError, new_directory, until
from asyncchatd.standin import PlantSettings, StandIn, chat_servers
from asyncchatd.standin.plant.parts import ChatSession

from .consumers import APP, Consumers, Mood
from .host import NIMBLE, Host
from .life import Life

PARK_AFTER_SECONDS = 20

WELL, ILL = (1.0, 18.0), (0.5, 6.0)
"""How long the chat application fares well and ill. An outage is probed after 1, 2, 4 s and so on, so after one of 6 s
the next probe comes within 8."""

LIVES, DEATHS = (15.0, 45.0), (0.0, 1.5)
"""How long the daemon lives, and how long it is dead."""

RETURN_SECONDS, LAG_SECONDS = 10.0, 5.0
"""So long after its return the chat application is no further behind than that."""

CALM_SECONDS = 90.0
LOOK_SECONDS = 0.5


class Fire:
    """Agents who write, a daemon that dies, and what the chat application's lag is when it should be small."""

    def __init__(self, plant: StandIn, host: Host, consumers: Consumers, life: Life, seed: int) -> None:
        self.kills = 0
        self.lags: list[float] = []
        """Seconds for which the oldest event waited that was not told, while the chat application had been well for
        ten seconds and the daemon alive."""
        self.refused: ChatSession = next(iter(plant.plant.sessions.values()))
        consumers.app.refused.add(self.refused.chat_id)
        self._plant = plant.plant
        self._host = host
        self._consumers = consumers
        self._life = life
        self._chance = random.Random(seed)
        self._alive_since = time.monotonic()

    async def write(self, rate: float) -> None:
        """Root task: so many messages a second."""
        began, written = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - began) * rate) - written
            for session in self._plant.chats.some(due):
                self._plant.say(session, "How may I help you?")
            written += due
            await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """Root task: the daemon dies and comes back."""
        while True:
            await asyncio.sleep(self._chance.uniform(*LIVES))
            await self._host.kill()
            self.kills += 1
            await asyncio.sleep(self._chance.uniform(*DEATHS))
            await self._host.start()
            self._alive_since = time.monotonic()

    async def watch(self) -> None:
        """Root task: look how far behind the chat application is."""
        app = self._consumers.app
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            oldest = self._consumers.oldest(self.others(), self._life.registered)
            well = app.mood is Mood.WELL and time.monotonic() - app.well_since >= RETURN_SECONDS
            if well and self._host.able and time.monotonic() - self._alive_since >= RETURN_SECONDS:
                self.lags.append(0.0 if oldest is None else max(0.0, time.time() - oldest / 1000))

    def others(self) -> list[ChatSession]:
        """All chats but the refused one."""
        return [each for each in self._plant.sessions.values() if each is not self.refused]

    def untold(self) -> int:
        """How many of their events somebody was not told."""
        return self._consumers.untold(self.others(), self._life.registered)

    def written(self) -> int:
        """How many messages there are."""
        return sum(event.type == "Message" for each in self._plant.sessions.values() for event in each.events)


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1, 600), default=10.0, show_default=True)
@click.option("--chats", type=click.IntRange(10, 100_000), default=1_000, show_default=True)
@click.option(
    "--rate", type=click.FloatRange(1, 2_000), default=200.0, help="Messages a second.", show_default=True
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep log and store in this new directory.")
def main(minutes: float, chats: int, rate: float, seed: int, keep: Path | None) -> None:
    """Agents write without a pause, while the chat application and the daemon are killed."""
    directory = new_directory("delivery") if keep is None else keep
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    broken = asyncio.run(under_fire(directory, minutes * 60, chats, rate, seed))
    for text in broken:
        click.echo(click.style(f"BROKEN: {text}", fg="red", bold=True))
    if broken:
        click.echo(f"see {directory}")
        sys.exit(1)
    if keep is None:
        shutil.rmtree(directory)


async def under_fire(directory: Path, seconds: float, chats: int, rate: float, seed: int) -> list[str]:
    """Let it rage for so long, wait until all is told, and say what was broken."""
    async with _scene(directory, chats, rate, seed) as (fire, host, consumers):
        consumers.be_quiet(False)
        raging = [asyncio.create_task(each) for each in (fire.write(rate), fire.kill(), fire.watch())]
        await asyncio.wait(raging, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in raging:
            task.cancel()
        failures = [
            repr(result)
            for result in await asyncio.gather(*raging, return_exceptions=True)
            if isinstance(result, Exception)
        ]
        if not host.ready.is_set():  # the time was over between its death and its start
            await host.release()
            await host.start()
        consumers.be_quiet(True)
        began = time.monotonic()
        while (untold := fire.untold()) and time.monotonic() - began < CALM_SECONDS:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(LOOK_SECONDS)
        click.echo(f"{untold} events not told {time.monotonic() - began:.1f} s after the last message")
        async with ControlClient(host.control) as control:
            told = read(shapes.Consumers, await control.consumers())
        parked = sum(each.parked for each in told.consumers)
        broken = [*failures, *host.complaints, *consumers.wrong()]
        broken += [f"{untold} events not told"] if untold else []
        broken += [] if parked else ["the chat whose batches are refused was not parked"]
        late = [lag for lag in fire.lags if lag >= LAG_SECONDS]
        broken += [f"{len(late)} looks found a lag of up to {max(late):.1f} s"] if late else []
        _tell(fire, consumers, parked)
        return broken


@asynccontextmanager
async def _scene(
    directory: Path, chats: int, rate: float, seed: int
) -> AsyncIterator[tuple[Fire, Host, Consumers]]:
    settings = PlantSettings(
        servers=chat_servers(2), gms_nodes=2, resend_delay=1.5, push_timeout=2.0, latency=0.005
    )
    async with StandIn(settings) as plant:
        consumers = Consumers(directory, str(directory / "control.sock"), random.Random(seed))
        await consumers.app.start()
        sections = NIMBLE.format(rate=2 * rate)
        host = Host(
            directory, plant, sections, consumers.app.section(f'park_after = "{PARK_AFTER_SECONDS}s"')
        )
        life = Life(plant.plant, host, random.Random(seed))
        lives = [
            asyncio.create_task(each) for each in (life.register(), *consumers.lives(well=WELL, ill=ILL))
        ]
        try:
            await host.start()
            plant.plant.start_chats(chats)
            if not await until(lambda: not life.unregistered(), CALM_SECONDS):
                raise TrialError("the chats could not be registered")
            yield Fire(plant, host, consumers, life, seed), host, consumers
            await host.stop()
        finally:
            for task in lives:
                task.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
            await consumers.app.stop()
            with suppress(ProcessLookupError):
                await host.release()


def _tell(fire: Fire, consumers: Consumers, parked: int) -> None:
    click.echo(
        f"{fire.written():,} messages in {len(fire.others()) + 1:,} chats; {fire.kills} SIGKILLs of asyncchatd"
    )
    moods = ", ".join(f"{name} {count}" for name, count in consumers.app.moods.most_common())
    click.echo(f"{APP}: {moods}; {parked} batches of the refused chat parked")
    for account in consumers.accounts:
        lags = sorted(account.lags)
        half, most = (lags[len(lags) * share // 100] for share in (50, 99))
        counts = ", ".join(f"{name} {count:,}" for name, count in account.counts.most_common())
        click.echo(f"{account.name}: {counts}; p50 {half:.2f} s, p99 {most:.1f} s after they were written")
    click.echo(
        f"{len(fire.lags)} looks while it had been well for {RETURN_SECONDS:.0f} s: the oldest untold event was"
        f" {max(fire.lags, default=0.0):.2f} s old at most"
    )


if __name__ == "__main__":
    main()
