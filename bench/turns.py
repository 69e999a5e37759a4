"""The rate that several nodes share, and the second in which one is killed: `python -m bench.nodes --rate 2000`.

Each node is a process of its own with a store and a pacer as the daemon has them, and always has something to send. It
writes down each moment that it was given, and when it would have sent: both by the clock that all processes of a
machine have in common. What it was given and did not use in time is lost, as in the daemon, so a busy machine shows in
what was sent and not in what was given.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from asyncchatd import log, tether
from asyncchatd.cli.loops import new_runner
from asyncchatd.gms import Pacer
from asyncchatd.model import SystemClock
from asyncchatd.rehearsing.together.database import Server
from asyncchatd.stores import make_store
from bench.measure import median

LINE = Struct("<cd")
GIVEN, SENT = b"g", b"s"

SETTLE_SECONDS = 2.0
"""From the first request of the last node until anything is measured: all have heard of one another."""

START_SECONDS = 120.0

AFTER_SECONDS = 2.0
"""So long the others go on when one was killed."""

AIM, AIM_KILLED = 0.95, 0.90


class Use(NamedTuple):
    """What became of the rate, in parts of it."""

    given: float
    sent: float
    most: int
    """Requests in the busiest second, wherever it began."""


class Killed(NamedTuple):
    """What became of it when one was killed, in parts of the rate."""

    given: float
    sent: float
    """In the second that began with the kill."""
    least: float
    """Sent in the poorest second that holds the kill."""
    before: float
    """Sent in the second before it."""
    most: int


class Node:
    """A process that sends whatever it may."""

    def __init__(self, url: str, rate: float, file: Path) -> None:
        self._file = file
        with file.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, url, str(rate)], stdin=subprocess.PIPE, stdout=out
            )

    def moments(self, what: bytes) -> list[float]:
        """Those that it has written down, in order."""
        text = self._file.read_bytes()
        return sorted(
            at for kind, at in LINE.iter_unpack(text[: len(text) // LINE.size * LINE.size]) if kind == what
        )

    def kill(self) -> None:
        """It ends without a word, and nobody closes its connections but the system."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


@contextmanager
def nodes(database: Server, name: str, count: int, rate: float) -> Iterator[list[Node]]:
    """So many nodes that send meanwhile, from when all have settled."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        started = []
        for number in range(count):
            url = f"{database.url(name)}&node=node-{number}"
            started.append(Node(url, rate, Path(directory) / str(number)))
            stack.callback(started[-1].kill)
            if not number:
                _wait_for(started[0])  # it makes the tables
        for node in started[1:]:
            _wait_for(node)
        time.sleep(SETTLE_SECONDS)
        yield started


def _wait_for(node: Node) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not node.moments(SENT):
        if time.monotonic() > deadline:
            raise RuntimeError("a node has sent nothing")
        time.sleep(0.05)


def shared(database: Server, rate: float, seconds: float, rounds: int) -> None:
    """Print what 1, 2 and 4 nodes make of the rate, and 4 of which one is killed."""
    print(f"aims: {AIM}, {AIM_KILLED} in the second of a kill, never more than {rate:g} in a second")
    print("| nodes | given of the rate | sent | most in a second |\n|---|---|---|---|")
    for count in (1, 2, 4):
        use = used(database, f"rate_{count}", count, rate, seconds)
        print(f"| {count} | {use.given:.3f} | {use.sent:.3f} | {use.most} of {rate:g} |", flush=True)
    found = []
    for number in range(rounds):
        found.append(killed(database, f"killed_{number}", 4, rate))
        told = ", ".join(f"{words} {getattr(found[-1], what):.3f}" for what, words in _WORDS.items())
        print(f"round {number + 1}: {told}, {found[-1].most} in a second at most", flush=True)
    print("| of 4 nodes one is killed | median | least |\n|---|---|---|")
    for what, words in _WORDS.items():
        values = [getattr(each, what) for each in found]
        print(f"| {words} | {median(values):.3f} | {min(values):.3f} |")
    print(f"| most in a second | | {max(each.most for each in found)} of {rate:g} at most |")


_WORDS = {
    "before": "sent in the second before",
    "given": "given in the second that begins with the kill",
    "sent": "sent in it",
    "least": "sent in the poorest second that holds the kill",
}


def used(database: Server, name: str, count: int, rate: float, seconds: float) -> Use:
    """What so many nodes make of the rate."""
    with nodes(database, name, count, rate) as all_of_them:
        began = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
        given, sent = (_of_all(all_of_them, what) for what in (GIVEN, SENT))
    within = [moment for moment in sent if began <= moment < end]
    return Use(
        _count(given, began, end) / (end - began) / rate,
        len(within) / (end - began) / rate,
        most_in_a_second(within),
    )


def killed(database: Server, name: str, count: int, rate: float) -> Killed:
    """What they make of it when one is killed at any moment."""
    with nodes(database, name, count, rate) as all_of_them:
        time.sleep(random.uniform(0.0, 1.0))
        victim = random.choice(all_of_them)
        at = time.monotonic()
        victim.kill()
        time.sleep(AFTER_SECONDS)
        sent = _of_all(all_of_them, SENT)
        # What was given to the dead one for moments that it did not live to see is given to nobody.
        given = _of_all([node for node in all_of_them if node is not victim], GIVEN)
        given = sorted([*given, *(moment for moment in victim.moments(SENT) if moment >= at)])
    begins = [at - 1, at, *(moment for moment in sent if at - 1 <= moment <= at)]
    # The poorest second begins just behind a request.
    least = min(_count(sent, begin + 1e-9, begin + 1) for begin in begins)
    return Killed(
        _count(given, at, at + 1) / rate,
        _count(sent, at, at + 1) / rate,
        least / rate,
        _count(sent, at - 1, at) / rate,
        most_in_a_second([moment for moment in sent if at - 1 <= moment < at + AFTER_SECONDS]),
    )


def most_in_a_second(moments: Sequence[float]) -> int:
    first, most = 0, 0
    for place, moment in enumerate(moments):
        while moments[first] <= moment - 1:
            first += 1
        most = max(most, place - first + 1)
    return most


def _of_all(all_of_them: Sequence[Node], what: bytes) -> list[float]:
    return sorted(moment for node in all_of_them for moment in node.moments(what))


def _count(moments: Sequence[float], begin: float, end: float) -> int:
    return sum(begin <= moment < end for moment in moments)


async def send(url: str, rate: float) -> None:
    """Send whatever this node may, until it is killed."""
    store = make_store(url, directory=Path.cwd())
    await store.open()
    clock = store.clock(SystemClock())
    life = asyncio.create_task(store.watch())

    async def turns(count: int, *, rate: float) -> Sequence[float] | None:
        moments = await store.turns(count, rate=rate)
        _note(GIVEN, moments or ())
        return moments

    pacer = Pacer(rate, clock, turns)
    while not life.done():
        await pacer.turn()
        _note(SENT, (time.monotonic(),))
    await life


def _note(what: bytes, moments: Sequence[float]) -> None:
    os.write(1, b"".join(LINE.pack(what, moment) for moment in moments))


def main() -> None:
    tether.hold()
    log.configure("error", "console", output=sys.stderr.buffer)
    url, rate = sys.argv[1:]
    with new_runner() as loop:
        loop.run(send(url, float(rate)))


if __name__ == "__main__":
    main()
