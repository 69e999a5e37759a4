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
from pathlib import Path

import click

from asyncchatd.rehearsing.trial import new_directory

from .faults import FAULTS, QUICK
from .rounds import calm, carry_out
from .site import NODES, SESSIONS, soaking

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
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the logs in this new directory.")
def main(rounds: int, first: int, named: tuple[str, ...], seed: int | None, keep: Path | None) -> None:
    """Three nodes on one PostgreSQL, and what must hold after each round of faults."""
    seed = int(time.time()) % 1_000_000 if seed is None else seed
    directory = new_directory("nodes") if keep is None else keep
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    numbers = [NAMES.index(name) for name in named] or [n % len(FAULTS) for n in range(first, first + rounds)]
    click.echo(f"seed {seed}, {SESSIONS} sessions, {NODES} nodes, in {directory}")
    if asyncio.run(_run(numbers, seed, directory)):
        click.echo(f"Promises were broken; see {directory}")
        sys.exit(1)
    click.echo(f"All promises kept in {len(numbers)} rounds.")
    if keep is None:
        shutil.rmtree(directory)


async def _run(numbers: list[int], seed: int, directory: Path) -> bool:
    any_broken = False
    async with soaking(directory, seed) as soak:
        await calm(soak)
        for number in numbers:
            figures, broken = await carry_out(soak, FAULTS[number])
            click.echo(f"{NAMES[number]}: {(FAULTS[number].__doc__ or '').splitlines()[0]}")
            click.echo("  " + ", ".join(f"{name} {value:g}" for name, value in figures.items()))
            for text in broken:
                click.echo(click.style(f"  BROKEN: {text}", fg="red", bold=True))
            any_broken |= bool(broken)
    return any_broken


if __name__ == "__main__":
    main()
