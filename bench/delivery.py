"""What a transcript costs: pushes and restoring with it, next to those without; settling and forgetting beside many.

    python -m bench.delivery [--restored 20000] [--rounds 3] [--sessions 20000] [--events 100000]
    python -m bench.delivery --full     # 100,000 sessions and 1,000,000 events, in some six minutes

- pushes: what a store does for one, in processor time, turn by turn with consumers and without
- restoring: the worker with its SQLite store, as in bench.restoration, in the same run without a consumer, with one and
  replies that bring no event, and with one event in each reply
- settling: settlements of 200 sessions with an event each, while the store fills up, and the same without events
- then the size of the file, memory, batches for a webhook, trimming and purging
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import uvloop

from asyncchatd import log
from asyncchatd.daemon.run import spare_the_collector
from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import Claim, Reason, Registration, Settlement, TokenNews, Verdict
from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind
from asyncchatd.stores import Bounds, Store, make_store
from asyncchatd.wire import raw_event
from asyncchatd.wire.push import Push
from bench.growth import PORTION, each, push, session
from bench.growth import settle as keepalives
from bench.measure import median, on_processor, process, rss_mb
from bench.restoration import UNTHROTTLED, tokens, worker

IN_FLIGHT = 64
SETTLED_AT_ONCE = 200
FAR_OFF_MS = 10**9
APP = Consumer("app", frozenset((EventKind.CHAT, EventKind.ENDED, EventKind.GAP)), pushes=True)
FETCHES = Consumer("fetches", frozenset((EventKind.CHAT, EventKind.ENDED, EventKind.GAP)))
SIDES: dict[str, Sequence[Consumer]] = {"without": (), "with": (APP, FETCHES)}
PUSHED_TO, PUSH_TURNS = 5_000, 300
DAYS_MS = 86_400_000


async def pushes() -> None:
    """Ratios of a push' own work in a store with consumers to that without, in processor time."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as directory:
        stores = {name: await _with(consumers, Path(directory, name)) for name, consumers in SIDES.items()}
        took: dict[tuple[str, str], list[float]] = {}
        for turn in range(PUSH_TURNS):
            for name in sorted(stores, reverse=bool(turn % 2)):
                store = stores[name]
                portion = [push(random.randrange(PUSHED_TO)) for _ in range(PORTION)]

                async def keep(store: Store = store, portion: Sequence[Push] = portion) -> None:
                    await asyncio.gather(*(store.take_push(one, now=clock.now()) for one in portion))

                took.setdefault(("keep a push", name), []).append(await each(keep, PORTION, rounds=1))
                absorbing = await each(partial(store.absorb, PORTION), PORTION, rounds=1)
                took.setdefault(("let it take effect", name), []).append(absorbing)
                await keepalives(store, clock.now())
        for what in ("keep a push", "let it take effect"):
            without, told = (median(took[what, name]) for name in SIDES)
            print(f"{what}: {without:.0f} µs without consumers, {told / without:.2f} of that with two")
        for store in stores.values():
            await store.close()


async def _with(consumers: Sequence[Consumer], directory: Path) -> Store:
    directory.mkdir()
    store, now = make_store("sqlite:///bench.db", directory=directory), SystemClock().now()
    await store.open()
    await store.enrol(consumers, now=now)
    chosen = [Registration(session(n), "customer-support", f"device-{n}", 3) for n in range(PUSHED_TO)]
    await store.register(chosen, now=now, spread_ms=FAR_OFF_MS)
    return store


async def restoring(options: argparse.Namespace) -> None:
    """Ratios of restoring with a transcript to restoring without, in processor time and in time."""
    cpu: dict[str, list[float]] = {"no events": [], "one event each": []}
    wall: dict[str, list[float]] = {"no events": [], "one event each": []}
    with process("bench.gms", "0") as silent, process("bench.gms", "0", "talking") as talking:
        await worker(f"http://127.0.0.1:{silent}/genesys", 2_000, IN_FLIGHT, UNTHROTTLED)
        for number in range(1, options.rounds + 1):
            base = f"http://127.0.0.1:{silent}/genesys"
            without = await worker(base, options.restored, IN_FLIGHT, UNTHROTTLED)
            for what, port in (("no events", silent), ("one event each", talking)):
                base = f"http://127.0.0.1:{port}/genesys"
                told = await worker(base, options.restored, IN_FLIGHT, UNTHROTTLED, consumers=[APP])
                cpu[what].append(told.cpu_us / without.cpu_us)
                wall[what].append(told.seconds / without.seconds)
                print(
                    f"round {number}, {what}: {wall[what][-1]:.2f} of the time, {cpu[what][-1]:.2f} of the processor"
                    f" time ({without.cpu_us:.0f} µs each without)"
                )
    for what in cpu:
        print(
            f"median, {what}: {median(wall[what]):.2f} of the time, {median(cpu[what]):.2f} of the processor"
        )


async def filling(options: argparse.Namespace) -> None:
    """A store with many sessions and events."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as directory:
        store = make_store("sqlite:///bench.db", directory=Path(directory), keys=[bytes(range(32))])
        await store.open()
        try:
            registrations = [
                Registration(tokens(n), "customer-support", None, 1) for n in range(options.sessions)
            ]
            for begin in range(0, options.sessions, 2_000):
                chosen = registrations[begin : begin + 2_000]
                await store.register(chosen, now=clock.now(), spread_ms=FAR_OFF_MS)
            await store.enrol([APP], now=clock.now())
            bare = median([await settle(store, options.sessions, events=False) for _ in range(50)])
            print(f"settling {SETTLED_AT_ONCE} without events: {1000 * bare:.1f} ms; {_memory()}")
            took: list[float] = []
            written = 0
            marks = [options.events * tenth // 10 for tenth in (1, 5, 10)]
            while written < options.events:
                took.append(await settle(store, options.sessions, events=True))
                written += SETTLED_AT_ONCE
                if marks and written >= marks[0]:
                    del marks[0]
                    print(await _costs(store, Path(directory), took[-100:], bare))
            await telling(store)
            await forgetting(store, options.sessions)
        finally:
            await store.close()


async def _costs(store: Store, directory: Path, took: Sequence[float], bare: float) -> str:
    """What the last settlements took with so many events, next to what it takes without."""
    kept, each = await store.kept(), median(took)
    return (
        f"{kept.events:,} events: settling {SETTLED_AT_ONCE} with one each {1000 * each:.1f} ms ({each / bare:.2f} of"
        f" without, {1e6 * (each - bare) / SETTLED_AT_ONCE:.0f} µs an event), longest {1000 * max(took):.0f} ms;"
        f" {_size(directory):.0f} MB on disk, {kept.size / 1e6:.0f} MB of events; {_memory()}"
    )


async def settle(store: Store, sessions: int, *, events: bool) -> float:
    """Seconds that one settlement took."""
    now = SystemClock().now()
    chosen = random.sample(range(sessions), SETTLED_AT_ONCE)
    await asyncio.gather(*(store.make_due(tokens(n).chat_id, Reason.REQUEST, now=now) for n in chosen))
    claims = await store.claim(now=now, limit=SETTLED_AT_ONCE, lease_ms=60_000, reasons=[Reason.REQUEST])
    settlements = _answers(claims, now, events=events)
    began = time.perf_counter()
    await store.settle(settlements)
    return time.perf_counter() - began


def _answers(claims: Sequence[Claim], now: int, *, events: bool) -> list[Settlement]:
    made = []
    for claim in claims:
        index = claim.next_position or 1
        message = {
            "index": index,
            "type": "Message",
            "utcTime": now,
            "text": "Hello, your parcel is here. " * 3,
            "from": {"participantId": 2, "nickname": "Agent", "type": "Agent"},
        }
        event = raw_event(message)
        assert event is not None
        made.append(
            Settlement(
                claim,
                Verdict.ANSWERED,
                now + FAR_OFF_MS,
                sent_at=now,
                settled_at=now,
                news=TokenNews(),
                next_position=index + events,
                events=(event,) if events else (),
            )
        )
    return made


async def telling(store: Store) -> None:
    """A webhook that was away takes its first batches."""
    began = time.perf_counter()
    given = await store.batches(
        "app", now=SystemClock().now(), limit=20, busy=(), most_events=50, most_bytes=1 << 18
    )
    shared = time.perf_counter() - began
    took = []
    for _ in range(20):
        began = time.perf_counter()
        await store.delivered(given, now=SystemClock().now())
        given = await store.batches(
            "app", now=SystemClock().now(), limit=20, busy=(), most_events=50, most_bytes=1 << 18
        )
        took.append(time.perf_counter() - began)
    print(
        f"a webhook that was told nothing yet: first batches after {shared:.1f} s, the next 20 in"
        f" {1000 * median(took):.1f} ms; {_memory()}"
    )


async def forgetting(store: Store, sessions: int) -> None:
    now = SystemClock().now()
    for what, bounds in (
        ("within all bounds", Bounds(1_000, 1 << 18, 1 << 40, DAYS_MS)),
        ("to 5 a session", Bounds(5, 1 << 18, 1 << 40, DAYS_MS)),
    ):
        took = []
        more = True
        while more:
            began = time.perf_counter()
            more = (await store.trim(bounds, now=now)).more
            took.append(time.perf_counter() - began)
        print(
            f"trimming {what}: {len(took)} portions, longest {1000 * max(took):.0f} ms, {sum(took):.1f} s in all"
        )
    took = []
    for number in range(2_000):
        began = time.perf_counter()
        await store.remove(tokens(number).chat_id, now=now)
        took.append(time.perf_counter() - began)
    print(f"erasing a chat with its events: {1000 * median(took):.1f} ms, longest {1000 * max(took):.0f} ms")
    began = time.perf_counter()
    gone = await store.purge(ended_before=now + 1, limit=2_000)
    print(
        f"purging {gone:,} of {sessions:,} sessions: {1000 * (time.perf_counter() - began):.0f} ms; {_memory()}"
    )


def _size(directory: Path) -> float:
    return sum(each.stat().st_size for each in directory.glob("bench.db*")) / 1e6


def _memory() -> str:
    return f"{rss_mb():.0f} MB of memory"


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--restored", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--full", action="store_true", help="100,000 sessions and 1,000,000 events")
    options = parser.parse_args()
    if options.full:
        options.sessions, options.events = 100_000, 1_000_000
    log.configure("error", "json")
    spare_the_collector()
    on_processor(0)
    await pushes()
    await restoring(options)
    await filling(options)


if __name__ == "__main__":
    uvloop.run(main())
