"""PostgreSQL beside SQLite, the rate that several nodes share, and a million sessions on PostgreSQL.

    python -m bench.nodes [--rounds 5] [--sessions 20000]
    python -m bench.nodes --lost [--rounds 5] [--sessions 50000]
    python -m bench.nodes --intake [--rounds 5] [--seconds 5] [--sessions 20000]
    python -m bench.nodes --rate 2000 [--seconds 10] [--rounds 5]
    python -m bench.nodes --million [--sessions 1000000] [--minutes 10] [--snapshot 3]

The stores are used as the daemon uses them, and both write durably: PostgreSQL with `fsync` on, a server of its own
on this machine (docs/nodes.md says which programs it takes). Ratios are of one run, round by round, medians. Processor
time is this process' own, and apart from it that of the server.

`--lost`: so many sessions of one Chat Server are marked while pushes come in (`bench.marking`). `--intake`: daemons
under wrk, one with SQLite, one and three with PostgreSQL (`bench.receiving`).

`--rate`: 1, 2 and 4 nodes send by one rate for so many seconds, and so many times one of 4 is killed (`bench.turns`).
`--million`: keepalives of a million sessions at the rate of a cycle of 30 minutes, and each minute how large the tables
are. In the last minutes but one somebody holds a snapshot open.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from asyncchatd import log
from asyncchatd.model import Claim, Ms, Reason, Registration, SystemClock
from asyncchatd.rehearsing.together.database import Server, server
from asyncchatd.stores import Store, make_store
from asyncchatd.stores.postgres import connect, place_of
from bench import marking, receiving, turns
from bench.growth import push, session
from bench.marking import INTERVAL_MS, answered
from bench.measure import median

PORTION = 64
PUSHES = 2_000
PORTIONS = 40
FILL = 50_000
"""Sessions that are made in one statement."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sessions", type=int)
    parser.add_argument("--lost", action="store_true")
    parser.add_argument("--intake", action="store_true")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--snapshot", type=int, default=3)
    asked = parser.parse_args()
    log.configure("error", "console", output=sys.stderr.buffer)
    durable = server(
        fsync="on", full_page_writes="on", shared_buffers="256MB", max_wal_size="2GB", autovacuum_naptime="6s"
    )
    with durable as database:
        if asked.million:
            count = asked.sessions or 1_000_000
            asyncio.run(million(database, count, asked.minutes, asked.snapshot))
        elif asked.lost:
            asyncio.run(losses(database, asked.rounds, asked.sessions or 50_000))
        elif asked.intake:
            receiving.side_by_side(database, asked.rounds, round(asked.seconds), asked.sessions or 20_000)
        elif asked.rate is not None:
            turns.shared(database, asked.rate, asked.seconds, asked.rounds)
        else:
            asyncio.run(side_by_side(database, asked.rounds, asked.sessions or 20_000))


# -- both stores ---------------------------------------------------------------------------------------


async def side_by_side(database: Server, rounds: int, sessions: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        stores = {
            "SQLite": make_store("sqlite:///bench.db", directory=Path(name)),
            "PostgreSQL": make_store(database.url("bench"), directory=Path(name)),
        }
        clocks = {}
        for which, store in stores.items():
            await store.open()
            clocks[which] = store.clock(SystemClock())
            await fill(store, sessions, clocks[which].now())
        rates: dict[str, dict[str, list[float]]] = {}
        costs: dict[str, dict[str, list[float]]] = {}
        for _ in range(rounds):
            for which, store in stores.items():
                for what, (rate, cost) in (await measured(store, sessions, clocks[which].now)).items():
                    rates.setdefault(what, {}).setdefault(which, []).append(rate)
                    costs.setdefault(what, {}).setdefault(which, []).append(cost)
        for store in stores.values():
            await store.close()
    print("| | SQLite | PostgreSQL | ratio, median (range) | processor here, µs |\n|---|---|---|---|---|")
    for what, of in rates.items():
        here = " and ".join(f"{median(costs[what][which]):.0f}" for which in stores)
        both = " | ".join(f"{median(of[which]):,.0f}/s" for which in stores)
        print(f"| {what} | {both} | {ratio(of['SQLite'], of['PostgreSQL'])} | {here} |")


async def fill(store: Store, sessions: int, now: Ms) -> None:
    """Register so many sessions, all of which are due for a keepalive now, at moments of their own."""
    before: Ms = round(now - INTERVAL_MS)
    for start in range(0, sessions, 500):
        portion = [
            Registration(session(number), "customer-support", f"device-{number}", 3)
            for number in range(start, min(sessions, start + 500))
        ]
        await store.register(portion, now=before, spread_ms=INTERVAL_MS)


async def measured(store: Store, sessions: int, clock: Callable[[], Ms]) -> dict[str, tuple[float, float]]:
    """Of each step how many a second, and the processor time of this process for one, in µs."""
    now = clock()
    told: dict[str, tuple[float, float]] = {}
    told[f"pushes, {PORTION} at once"] = await timed(lambda: flood(store, sessions, PORTION, now), PUSHES)
    told["pushes, 8 at once"] = await timed(lambda: flood(store, sessions, 8, now), PUSHES)
    told["pushes that take effect"] = await timed(lambda: absorbed(store, now), 2 * PUSHES)
    held: list[Sequence[Claim]] = []

    async def claim() -> None:
        held.extend([await store.claim(now=clock(), limit=PORTION, lease_ms=15_000) for _ in range(PORTIONS)])

    async def settle() -> None:
        for claims in held:
            await store.settle([answered(claim, clock()) for claim in claims])

    told["claims"] = await timed(claim, PORTIONS * PORTION)
    told["settlements"] = await timed(settle, PORTIONS * PORTION)
    return told


async def timed(work: Callable[[], Awaitable[None]], count: int) -> tuple[float, float]:
    wall, here = time.perf_counter(), time.process_time()
    await work()
    wall, here = time.perf_counter() - wall, time.process_time() - here
    return count / wall, here / count * 1e6


async def flood(store: Store, sessions: int, at_once: int, now: Ms) -> None:
    """So many pushes wait at any time for being kept."""

    async def sender() -> None:
        for _ in range(PUSHES // at_once):
            await store.take_push(push(random.randrange(sessions)), now=now)

    await asyncio.gather(*(sender() for _ in range(at_once)))


async def absorbed(store: Store, now: Ms) -> None:
    for _ in range(2 * PUSHES // PORTION + 1):
        await store.absorb(PORTION, now=now)


# -- a Chat Server is lost -----------------------------------------------------------------------------------


async def losses(database: Server, rounds: int, sessions: int) -> None:
    found: dict[str, list[marking.Lost]] = {"SQLite": [], "PostgreSQL": []}
    for number in range(rounds):
        for which, seen in found.items():
            with tempfile.TemporaryDirectory() as name:
                url = "sqlite:///bench.db" if which == "SQLite" else database.url(f"lost_{number}")
                store = make_store(url, directory=Path(name))
                await store.open()
                now = store.clock(SystemClock()).now
                await marking.fill(store, sessions, now())
                seen.append(await marking.lost(store, sessions, now))
                await store.close()
            print(f"round {number + 1}, {which}: " + ", ".join(marking.told(seen[-1])), flush=True)
    print("| | SQLite | PostgreSQL | ratio, median (range) |\n|---|---|---|---|")
    for what in marking.Lost._fields:
        ours, theirs = ([getattr(each, what) for each in seen] for seen in found.values())
        print(
            f"| {marking.WORDS[what]} | {marking.spread(ours)} | {marking.spread(theirs)} | {ratio(ours, theirs)} |"
        )


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Theirs to ours, round by round."""
    ratios = [one / other for other, one in zip(ours, theirs, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


# -- a million -------------------------------------------------------------------------------------------


async def million(database: Server, count: int, minutes: int, snapshot: int) -> None:
    url = f"{database.url('million')}&node=one"
    store = make_store(url, directory=Path.cwd())
    await store.open()
    await store.close()
    sql = await connect(place_of(url).address, for_copies=True)
    began = time.perf_counter()
    for start in range(0, count, FILL):
        await sql.run(_SESSIONS, start, min(count, start + FILL), SystemClock().now())
    await sql.run(_WORK, SystemClock().now(), INTERVAL_MS)
    for table in ("session", "work"):
        await sql.script(f"ANALYZE {table}")
    print(f"{count:,} sessions made in {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    await store.open()
    print(f"opened in {time.perf_counter() - began:.2f} s")
    clock = store.clock(SystemClock())
    life = asyncio.create_task(store.watch())
    rate = count / (INTERVAL_MS / 1000)
    print(
        f"| minute | keepalives/s | claim p50, p95, ms | here, server: of a core | {', '.join(TABLES)}: MB |"
    )
    print("|---|---|---|---|---|")
    other = None
    for minute in range(1, minutes + 1):
        if snapshot and minute == minutes - snapshot:
            other = await connect(place_of(url).address)
            await other.script("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM store")
        if other is not None and minute == minutes:
            other.terminate()
            other = None
        before, here, wall = processor_of(database), time.process_time(), time.perf_counter()
        took, done = await a_minute(store, clock.now, rate)
        wall = time.perf_counter() - wall
        took.sort()
        sizes = [await sql.value("SELECT pg_total_relation_size($1)", table) for table in TABLES]
        print(
            f"| {minute}{' (snapshot held)' if other else ''} | {done / wall:.0f}"
            f" | {took[len(took) // 2] * 1e3:.1f}, {took[len(took) * 95 // 100] * 1e3:.1f}"
            f" | {(time.process_time() - here) / wall:.3f}, {(processor_of(database) - before) / wall:.3f}"
            f" | {', '.join(f'{size / 1e6:.0f}' for size in sizes)} |",
            flush=True,
        )
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    await store.close()
    await sql.close()


TABLES = ("session", "work", "work_due")

_SESSIONS = """INSERT INTO session (chat_id, service, user_id, secure_key, alias, device_id, next_position, state,
        registered_at, active_at)
    SELECT 'chat-' || n, 'customer-support', 'user-' || n, md5('key' || n), (117 + n % 8)::text, 'device-' || n, 3, 1,
        $3, $3
    FROM generate_series($1::bigint, $2::bigint - 1) AS n"""

_WORK = f"""INSERT INTO work (session, live, reason, due_at)
    SELECT id, true, {Reason.KEEPALIVE:d}, $1 + random()*$2::double precision FROM session ORDER BY id"""


async def a_minute(store: Store, now: Callable[[], Ms], rate: float) -> tuple[list[float], int]:
    """Claim what falls due each tenth of a second, and settle what was claimed a second ago: how long each claim took,
    and how many keepalives that were."""
    took: list[float] = []
    done = 0
    waiting: list[tuple[float, Sequence[Claim]]] = []
    end = time.monotonic() + 60
    while (tick := time.monotonic()) < end:
        began = time.perf_counter()
        claims = await store.claim(now=now(), limit=max(PORTION, round(rate)), lease_ms=15_000)
        took.append(time.perf_counter() - began)
        waiting.append((tick, claims))
        while waiting and waiting[0][0] < tick - 1:
            _, settled = waiting.pop(0)
            if settled:
                await store.settle([answered(claim, now()) for claim in settled])
            done += len(settled)
        await asyncio.sleep(max(0.0, tick + 0.1 - time.monotonic()))
    for _, settled in waiting:
        if settled:
            await store.settle([answered(claim, now()) for claim in settled])
        done += len(settled)
    return took, done


def processor_of(database: Server) -> float:
    """Seconds of processor that the server and its children have had; those that ended count in their parent."""
    parent = int((database.directory / "data" / "postmaster.pid").read_text().split()[0])
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) == parent:
            total += sum(map(int, fields[11:15]))
        elif int(fields[1]) == parent:
            total += sum(map(int, fields[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
