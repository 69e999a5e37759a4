"""How each cost grows with the number of sessions: a table, and a picture.

    python -m bench.growth [--sizes 1000 10000 100000 1000000] [--picture docs/growth.svg]

For each size a process of its own fills an SQLite store and measures what the daemon does with it, in
portions as the daemon does it. Times are processor time, both threads', median of the rounds. They
exclude the network, which does not know how many sessions there are. Needs matplotlib (`pip install
-e '.[bench]'`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from asyncchatd.model.data import Cause, Ms, Registration, Settlement, TokenNews, Tokens, Verdict
from asyncchatd.stores import Store, make_store
from asyncchatd.wire.push import Push, read_push
from bench.measure import median, on_processor, rss_mb
from bench.restoration import tokens

PORTION = 64
ROUNDS = 50
INTERVAL_MS = 1_800_000.0
SERVERS = 8

UNITS = {
    "register a session": "µs",
    "keep a push": "µs",
    "let a push take effect": "µs",
    "claim a keepalive": "µs",
    "settle a keepalive": "µs",
    "make a session due": "µs",
    "count sessions": "ms",
    "open the store": "ms",
    "memory": "MB",
    "file": "MB",
}


async def measured(size: int) -> dict[str, float]:
    """Every cost at this size, in the units of `UNITS`."""
    now: Ms = round(time.time() * 1000)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        store = make_store("sqlite:///growth.db", directory=directory)
        await store.open()
        told: dict[str, float] = {"register a session": await fill(store, size, now)}
        await store.close()
        store = make_store("sqlite:///growth.db", directory=directory)
        began = time.perf_counter()
        await store.open()
        told["open the store"] = (time.perf_counter() - began) * 1e3
        told |= await pushes(store, size, now)
        told |= await keepalives(store, now)
        told["count sessions"] = await each(lambda: store.counts(now=now), 1) / 1e3
        told["make a session due"] = await marking(store, now)
        told["memory"] = rss_mb()
        told["file"] = sum(file.stat().st_size for file in directory.glob("growth.db*")) / 1e6
        await store.close()
    return {name: told[name] for name in UNITS}


async def fill(store: Store, size: int, now: Ms) -> float:
    took = []
    for start in range(0, size, 500):
        portion = [
            Registration(session(number), "customer-support", f"device-{number}", 3)
            for number in range(start, min(size, start + 500))
        ]
        began = time.process_time()
        await store.register(portion, now=now, spread_ms=INTERVAL_MS)
        took.append((time.process_time() - began) / len(portion) * 1e6)
    return median(took)


async def pushes(store: Store, size: int, now: Ms) -> dict[str, float]:
    keeping, taking = [], []
    for _ in range(ROUNDS):
        portion = [push(random.randrange(size)) for _ in range(PORTION)]

        async def keep(portion: list[Push] = portion) -> None:
            await asyncio.gather(*(store.take_push(one, now=now) for one in portion))

        keeping.append(await each(keep, PORTION, rounds=1))
        taking.append(await each(lambda: store.absorb(PORTION), PORTION, rounds=1))
        await settle(store, now)  # they are due now, and would be taken for keepalives
    return {"keep a push": median(keeping), "let a push take effect": median(taking)}


async def settle(store: Store, now: Ms) -> tuple[float, float]:
    """Claim a portion and settle it: µs for each of both."""
    began = time.process_time()
    claims = await store.claim(now=now, limit=PORTION, lease_ms=15_000)
    claimed = time.process_time() - began
    answers = [
        Settlement(
            claim,
            Verdict.ANSWERED,
            now + INTERVAL_MS * random.uniform(0.9, 1),
            now,
            now,
            TokenNews(alias=claim.tokens.alias),
        )
        for claim in claims
    ]
    began = time.process_time()
    await store.settle(answers)
    settled = time.process_time() - began
    count = max(len(claims), 1)
    return claimed / count * 1e6, settled / count * 1e6


async def keepalives(store: Store, now: Ms) -> dict[str, float]:
    """A portion of those that fall due first, again and again."""
    took = [await settle(store, round(now + number * INTERVAL_MS)) for number in range(1, ROUNDS + 1)]
    return {
        "claim a keepalive": median([claimed for claimed, _ in took]),
        "settle a keepalive": median([settled for _, settled in took]),
    }


async def marking(store: Store, now: Ms) -> float:
    """µs for each session of one Chat Server."""
    begun = await store.begin_restoration(alias="118", server="chat-1", cause=Cause.UNREACHABLE, now=now)
    began = time.process_time()
    while await store.mark(begun.id, limit=2_000, now=now):
        pass
    took = time.process_time() - began
    (restoration,) = await store.restorations(limit=1)
    return took / restoration.sessions * 1e6


async def each(work: Callable[[], Awaitable[object]], count: int, *, rounds: int = 5) -> float:
    """µs for each of `count`."""
    took = []
    for _ in range(rounds):
        began = time.process_time()
        await work()
        took.append((time.process_time() - began) / count * 1e6)
    return median(took)


def session(number: int) -> Tokens:
    return tokens(number, str(117 + number % SERVERS))


def push(number: int) -> Push:
    ids = {"session-id": session(number).chat_id, "user-id": session(number).user_id}
    return read_push(json.dumps({"deviceId": f"device-{number}", "message": ids}).encode())


def table(results: dict[int, dict[str, float]]) -> str:
    lines = ["| sessions | " + " | ".join(f"{size:,}" for size in results) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    for name, unit in UNITS.items():
        cells = (f"{result[name]:.{0 if result[name] >= 100 else 1}f}" for result in results.values())
        lines.append(f"| {name}, {unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(results: dict[int, dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 5), layout="constrained")
    for unit, panel in zip(("µs", "ms", "MB"), panels, strict=True):
        for name in (name for name, its in UNITS.items() if its == unit):
            panel.plot(list(results), [result[name] for result in results.values()], "o-", label=name)
        panel.set(xscale="log", yscale="log", xlabel="sessions", ylabel=unit)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--picture", type=Path, help="an SVG is written there")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        on_processor(0)
        print(json.dumps(asyncio.run(measured(options.one))))
        return
    results: dict[int, dict[str, float]] = {}
    for size in options.sizes:
        told = subprocess.run(
            [sys.executable, "-m", "bench.growth", "--one", str(size)], stdout=subprocess.PIPE, check=True
        )
        results[size] = json.loads(told.stdout)
    print(table(results))
    if options.picture:
        picture(results, options.picture)


if __name__ == "__main__":
    main()
