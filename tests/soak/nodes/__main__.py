"""Three nodes on one PostgreSQL, of which any may die: python -m soak.nodes [--rounds 5] [--seed 1] [--keep DIR]

A stand-in plant that changes keys, its pushes spread over three daemons as a balancer does, and one round of faults
after another while Chat Servers die. What is judged is what the plant saw, and what the database's own log says. Exit
status 1 when a promise was broken; then the directory with the nodes' logs is kept.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path

import click

from asyncchatd.log import configure
from asyncchatd.rehearsing.together.database import PORT, Server
from asyncchatd.rehearsing.trial import new_directory
from asyncchatd.standin import LoopbackProxy

from .failover import SYNCHRONOUS, Standby, fail_over, standby, url_of
from .faults import FAULTS, QUICK
from .pushes import CHATS, INTERVAL_SECONDS, PUSHES
from .pushes import pushes as take_pushes
from .rounds import calm, carry_out
from .site import HOLD_SECONDS, NODES, RATE, SESSIONS, Soak, UrlOf, direct, pooled, soaking

Site = Callable[..., AbstractAsyncContextManager[Soak]]
"""`soaking`, but for what a kind of round wants otherwise."""

NAMES = [fault.__name__.replace("_", "-") for fault in FAULTS]


@click.command()
@click.option(
    "--rounds", type=click.IntRange(1), default=len(QUICK), show_default=True,
    help=f"How many; {len(FAULTS)} have every fault once.",
)  # fmt: skip
@click.option("--first", type=click.IntRange(0), default=0, help="The fault to begin with.")
@click.option(
    "--fault", "named", type=click.Choice(NAMES), multiple=True, help="These faults, and in this order."
)
@click.option("--seed", type=int, help="Default: a new one, which is told.")
@click.option(
    "--pooler", is_flag=True, help="The nodes reach the database by PgBouncer in transaction mode alone."
)
@click.option(
    "--failover", type=click.Choice([SYNCHRONOUS, "asynchronous"]),
    help="One round of its own: the database dies, and a standby takes over.",
)  # fmt: skip
@click.option(
    "--pushes", type=click.IntRange(1), is_flag=False, flag_value=PUSHES,
    help=f"One round of its own: so many pushes, of {PUSHES:,}, are answered while nodes are killed.",
)  # fmt: skip
@click.option(
    "--sessions", type=click.IntRange(1),
    help=f"How many chats: {SESSIONS:,}, or {CHATS:,} with --pushes.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(10), default=RATE, show_default=True,
    help="`max_rate`; all that goes on is less with it, for a machine that has other things to do.",
)  # fmt: skip
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the logs in this new directory.")
def main(
    rounds: int,
    first: int,
    named: tuple[str, ...],
    seed: int | None,
    pooler: bool,
    failover: str | None,
    pushes: int | None,
    sessions: int | None,
    rate: float,
    keep: Path | None,
) -> None:
    """Three nodes on one PostgreSQL, and what must hold after each round of faults."""
    configure("warning")  # what PostgreSQL's driver says of crashes that are meant is no news here
    seed = int(time.time()) % 1_000_000 if seed is None else seed
    directory = new_directory("nodes") if keep is None else keep
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    numbers = [NAMES.index(name) for name in named] or [n % len(FAULTS) for n in range(first, first + rounds)]
    count = 1
    sessions = sessions or (SESSIONS if pushes is None else CHATS)
    click.echo(f"seed {seed}, {sessions} sessions, {NODES} nodes, in {directory}")
    site = partial(soaking, directory, seed, sessions, rate=rate)
    if pushes is not None:
        any_broken = asyncio.run(_push(pushes, site))
    elif failover is not None:
        any_broken = asyncio.run(_fail_over(failover, site))
    else:
        count = len(numbers)
        any_broken = asyncio.run(_run(numbers, site, pooled if pooler else None))
    if any_broken:
        click.echo(f"Promises were broken; see {directory}")
        sys.exit(1)
    click.echo(f"All promises kept in {count} rounds.")
    if keep is None:
        shutil.rmtree(directory)


async def _run(numbers: list[int], site: Site, url: UrlOf | None) -> bool:
    any_broken = False
    changes = all(NAMES[number] == "keys" for number in numbers)
    async with site(url=url, gateway=changes) as soak:
        await calm(soak)
        for number in numbers:
            figures, broken = await carry_out(soak, FAULTS[number])
            words = (FAULTS[number].__doc__ or "").splitlines()[0]
            any_broken |= _told(f"{NAMES[number]}: {words}", figures, broken)
    return any_broken


async def _push(count: int, site: Site) -> bool:
    async with site(url=direct, interval=INTERVAL_SECONDS, resend=False) as soak:
        await calm(soak)
        figures, broken = await carry_out(soak, partial(take_pushes, count=count))
    return _told(f"pushes: {count:,} are answered while one node after the other is killed", figures, broken)


async def _fail_over(how: str, site: Site) -> bool:
    """With a synchronous standby nothing is lost. With another one the last commits are: that is told, and no fault."""
    found: list[tuple[Standby, LoopbackProxy]] = []

    async def url(stack: AsyncExitStack, primary: Server) -> str:
        way = await stack.enter_async_context(
            LoopbackProxy(str(primary.directory / f".s.PGSQL.{PORT}"), None)
        )
        following = standby(primary, way.port)
        other = await asyncio.to_thread(following.__enter__)
        stack.push(following.__exit__)
        found.append((other, way))
        return url_of((primary, other), HOLD_SECONDS)

    async with site(url=url) as soak:
        await calm(soak)
        figures, broken = await fail_over(soak, *found[0], how)
    return (
        _told(f"failover to an {how} standby".replace("an syn", "a syn"), figures, broken)
        and how == SYNCHRONOUS
    )


def _told(what: str, figures: dict[str, float], broken: list[str]) -> bool:
    click.echo(what)
    click.echo("  " + ", ".join(f"{name} {value:g}" for name, value in figures.items()))
    for text in broken:
        click.echo(click.style(f"  BROKEN: {text}", fg="red", bold=True))
    return bool(broken)


if __name__ == "__main__":
    main()
