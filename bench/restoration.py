"""How fast the worker restores, next to what a bare client loop can do.

    python -m bench.restoration [--sessions 20000] [--rounds 5]

Both send the same Refreshes to the same server, which runs on the other processor:

- bare: a loop of aiohttp POSTs, 64 in flight, the body encoded beforehand, the reply read, nothing else
- worker: asyncchatd's worker with its SQLite store: claim, encode, send, read, classify, settle durably
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import uvloop
from yarl import URL

from asyncchatd import log
from asyncchatd.config.settings import Settings
from asyncchatd.daemon.run import spare_the_collector
from asyncchatd.gms.client import GmsClient
from asyncchatd.gms.pacing import InFlight, Pacer
from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import Cause, Reason, Registration, Tokens
from asyncchatd.model.delivery import Consumer
from asyncchatd.sending.sending import Sending
from asyncchatd.stores import make_store
from asyncchatd.wire import chat_api
from asyncchatd.worker.worker import Worker
from bench.measure import Stopwatch, Took, median, on_processor, process

UNTHROTTLED = 1e9


def tokens(number: int, alias: str = "117") -> Tokens:
    return Tokens(f"0008TaFN{number:08X}", f"052B5F58{number:08X}", f"02f8e3936f76{number:08x}", alias)


async def bare(base: str, count: int, in_flight: int) -> Took:
    call = chat_api.refresh("customer-support", tokens(1), 3)
    url = URL(f"{base}/2/chat/{call.path}", encoded=True)
    headers = {"Content-Type": call.content_type}
    left = count

    async def loop(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with session.post(url, data=call.body, headers=headers) as response:
                await response.read()

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        with Stopwatch() as watch:
            await asyncio.gather(*(loop(session) for _ in range(in_flight)))
    return watch.took(count)


async def worker(
    base: str, count: int, in_flight: int, rate: float, *, consumers: Sequence[Consumer] = ()
) -> Took:
    clock, wakeup = SystemClock(), asyncio.Event()
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings.model_validate(
            {
                "path": Path(directory, "bench.toml"),
                "directory": Path(directory),
                "receiver": {"secrets": ["bench"]},
                "gms": {"nodes": [base]},
                "restoration": {"max_rate": rate, "max_in_flight": in_flight},
            }
        )
        store = make_store("sqlite:///bench.db", directory=Path(directory))
        await store.open()
        try:
            registrations = [
                Registration(tokens(number), "customer-support", next_position=3) for number in range(count)
            ]
            await store.enrol(consumers, now=clock.now())
            await store.register(registrations, now=clock.now(), spread_ms=3_600_000)
            pacer = Pacer(rate, clock)
            async with GmsClient(settings.gms, pacer, clock) as gms:
                limit = InFlight(in_flight, 1.0, clock)
                sending = Sending(store, gms, pacer, limit, settings, clock, wakeup)
                worker = Worker(store, sending, settings, clock, wakeup)
                begun = await store.begin_restoration(
                    alias="117", server="chat-1", cause=Cause.UNREACHABLE, now=clock.now()
                )
                while await store.mark(begun.id, limit=2_000, now=clock.now()):
                    pass
                with Stopwatch() as watch:
                    lives = [
                        asyncio.create_task(life) for life in {**sending.lives(), **worker.lives()}.values()
                    ]
                    while await store.restorations(unfinished=True):  # noqa: ASYNC110 - the store has no event for it
                        await asyncio.sleep(0.02)
                assert (await store.counts(now=clock.now())).due[Reason.RESTORE] == 0
                for life in lives:
                    life.cancel()
                await asyncio.gather(*lives, return_exceptions=True)
        finally:
            await store.close()
    return watch.took(count)


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2_000, help="of the throttled run")
    options = parser.parse_args()
    log.configure("warning", "json")
    spare_the_collector()  # as the daemon does; the bare client has the good of it, too
    on_processor(0)
    ratios, cpu, ideal = [], [], []
    with process("bench.gms", "0") as port:
        base = f"http://127.0.0.1:{port}/genesys"
        await bare(base, 2_000, options.in_flight)
        for number in range(1, options.rounds + 1):
            plain = await bare(base, options.sessions, options.in_flight)
            ours = await worker(base, options.sessions, options.in_flight, UNTHROTTLED)
            paced = await worker(base, options.sessions, options.in_flight, options.rate)
            ratios.append(ours.rate / plain.rate)
            cpu.append(ours.cpu_us / plain.cpu_us)
            ideal.append(paced.seconds / (options.sessions / options.rate))
            print(
                f"round {number}: bare {plain.rate:,.0f}/s {plain.cpu_us:.0f} µs each;"
                f" worker {ours.rate:,.0f}/s {ours.cpu_us:.0f} µs each;"
                f" ratio {ratios[-1]:.2f}, processor {cpu[-1]:.2f};"
                f" at {options.rate:,.0f}/s {ideal[-1]:.3f} of the ideal time, {paced.cpu_us:.0f} µs each"
            )
    print(
        f"median: {median(ratios):.2f} of the bare client's rate, {median(cpu):.2f} of its processor time,"
        f" {median(ideal):.3f} of the ideal time at {options.rate:,.0f}/s"
    )


if __name__ == "__main__":
    uvloop.run(main())
