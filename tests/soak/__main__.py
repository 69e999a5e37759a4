"""The chaos soak as a command.

    PYTHONPATH=tests python -m soak [--seed 1] [--minutes 5 | --hours 8 | --rounds 12] [--keep DIR]

Exit status 1 when a promise was broken; then the directory with the daemon's log and store is kept.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from asyncchatd.rehearsing.trial import new_directory

from .rounds import RoundResult, Scale, soaking

USUAL = Scale()


@click.command()
@click.option(
    "--seed", type=int, help="The same seed gives the same faults. Default: a new one, which is told."
)
@click.option("--rounds", type=click.IntRange(1), help="So many rounds, however long they take.")
@click.option("--first", type=click.IntRange(0), default=0, help="The round to begin with.")
@click.option(
    "--minutes", type=click.FloatRange(0, 600), default=5.0, help="How long, at least.", show_default=True
)
@click.option("--hours", type=click.FloatRange(0, 240), help="The same in hours.")
@click.option("--sessions", type=click.IntRange(10, 100_000), default=USUAL.sessions, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(10, 5_000),
    default=USUAL.rate,
    help="restoration.max_rate",
    show_default=True,
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep log and store in this new directory.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write all figures into this file.")
def main(
    seed: int | None,
    rounds: int | None,
    first: int,
    minutes: float,
    hours: float | None,
    sessions: int,
    rate: float,
    keep: Path | None,
    as_json: Path | None,
) -> None:
    """Random faults, round after round, and what must hold after each."""
    seed = int(time.time()) % 1_000_000 if seed is None else seed
    seconds = hours * 3600 if hours is not None else minutes * 60
    directory = new_directory("soak") if keep is None else keep
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    click.echo(f"seed {seed}, {sessions} sessions, in {directory}")
    results = asyncio.run(_soak(seed, Scale(sessions=sessions, rate=rate), directory, first, rounds, seconds))
    if as_json is not None:
        as_json.write_text(json.dumps([asdict(each) for each in results], indent=1))
    broken = [each for each in results if each.broken]
    _sum_up(results)
    if broken:
        click.echo(f"{len(broken)} of {len(results)} rounds broke a promise; see {directory}; seed {seed}")
        sys.exit(1)
    click.echo(f"All promises kept in {len(results)} rounds; seed {seed}.")
    if keep is None:
        shutil.rmtree(directory)


async def _soak(
    seed: int, scale: Scale, directory: Path, first: int, rounds: int | None, seconds: float
) -> list[RoundResult]:
    results: list[RoundResult] = []
    deadline = time.monotonic() + seconds
    async with soaking(seed, scale, directory) as soak:
        while len(results) < rounds if rounds is not None else time.monotonic() < deadline:
            results.append(await soak.round(first + len(results)))
            _tell(results[-1])
    return results


def _tell(result: RoundResult) -> None:
    click.echo(f"round {result.number}, {result.theme}, {result.seconds:.0f} s: " + "; ".join(result.faults))
    click.echo("  " + ", ".join(f"{name} {value:g}" for name, value in result.counts.items()))
    for text in result.broken:
        click.echo(click.style(f"  BROKEN: {text}", fg="red", bold=True))


def _sum_up(results: list[RoundResult]) -> None:
    """Totals, and the largest where a total means nothing."""
    largest = ("peak", "longest", "most", "memory", "plant", "sessions")
    totals: Counter[str] = Counter()
    for result in results:
        for name, value in result.counts.items():
            totals[name] = max(totals[name], value) if name.startswith(largest) else totals[name] + value  # type: ignore[assignment]
    click.echo(f"\n{len(results)} rounds, {sum(each.seconds for each in results) / 60:.1f} minutes")
    for name, value in totals.items():
        click.echo(f"  {name}: {value:,.10g}")


if __name__ == "__main__":
    main()
