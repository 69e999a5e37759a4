"""Keepalives at a steady rate: what each costs, how evenly they leave, and how soon a push is acknowledged beside them.

    python -m bench.keepalives [--rate 54] [--pushes 0] [--max-rate 200] [--against CHECKOUT]

A real daemon on one processor; this script, the pushes and a GMS that costs next to nothing on the other. An
acknowledgement is the Refresh that GMS gets after a push; its time counts from the moment the push is sent. With
`--against` the code of another checkout is measured in turns with this one: on a busy machine only their ratio counts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import secrets
import tempfile
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import uvloop

from bench.gms import BODY, Answering, busiest
from bench.measure import median, on_processor
from bench.sessions import CONFIG, body, control, launched, until_ready

ROTATING = BODY.replace(b'"nextPosition":3', b'"nextPosition":3,"secureKey":"%s"')
"""With a new key, which must be on disk before anything else is done for the session."""

STEP = 7919
"""Pushes go to every so many sessions, one after the other."""


class Seen:
    """What GMS saw of the daemon, and how long its acknowledgements took."""

    def __init__(self, *, rotating: bool) -> None:
        self.rotating = rotating
        """Whether each answer brings a new key."""
        self.arrived = array("d")
        self.took: list[float] = []
        """Seconds from each push to its Refresh."""
        self._pushed: dict[str, float] = {}

    def pushed(self, chat: str) -> None:
        self._pushed[chat] = time.monotonic()

    def note(self, chat: str) -> None:
        now = time.monotonic()
        self.arrived.append(now)
        pushed = self._pushed.pop(chat, None)
        if pushed is not None:
            self.took.append(now - pushed)

    def answer(self, request: bytes) -> bytes:
        """What GMS replies at once."""
        chat = request.split(b"/")[-2]
        self.note(chat.decode())
        return ROTATING % (secrets.token_hex(10).encode(), chat) if self.rotating else BODY % chat

    def clear(self) -> None:
        del self.arrived[:]
        self.took.clear()

    @property
    def missing(self) -> int:
        """Pushes that were not acknowledged yet."""
        return len(self._pushed)


@asynccontextmanager
async def gms(seen: Seen) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(lambda: Answering(seen.answer), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def pushing(directory: str, seen: Seen, sessions: int, rate: float) -> None:
    """Pushes at a steady rate, each of another chat."""
    receiver = f"{directory}/receiver.sock"
    async with (
        aiohttp.ClientSession("http://daemon", connector=aiohttp.UnixConnector(receiver)) as session,
        asyncio.TaskGroup() as group,
    ):
        began = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(began + number / rate - time.monotonic())
            group.create_task(_push(session, seen, number * STEP % sessions))


async def _push(session: aiohttp.ClientSession, seen: Seen, number: int) -> None:
    ids = {"session-id": f"0008TaFN{number:08X}", "user-id": f"052B5F58{number:08X}"}
    seen.pushed(ids["session-id"])
    async with session.post(
        "/push/bench-secret", json={"deviceId": f"device-{number}", "message": ids}
    ) as answer:
        assert answer.status == 200


def cpu_seconds(pid: int) -> float:
    """Of all its threads, finer than the clock tick of `/proc/PID/stat`."""
    threads = Path(f"/proc/{pid}/task")
    return (
        sum(int((threads / each / "schedstat").read_text().split()[0]) for each in os.listdir(threads)) / 1e9
    )


async def one_round(options: argparse.Namespace, checkout: Path | None) -> dict[str, float]:
    seen = Seen(rotating=options.rotating)
    with tempfile.TemporaryDirectory() as directory:
        async with gms(seen) as port:
            text = CONFIG.format(
                directory=directory,
                port=port,
                interval=options.sessions / options.rate,
                rate=options.max_rate,
            ).replace("127.0.0.1:0", f"unix:{directory}/receiver.sock")
            with launched(directory, text, checkout=checkout) as child:
                async with control(directory) as session:
                    await until_ready(session)
                    async with session.post("/v1/sessions", data=body(options.sessions)) as answer:
                        assert (await answer.json())["taken"] == options.sessions
                pushes = None
                if options.pushes:
                    pushes = asyncio.create_task(pushing(directory, seen, options.sessions, options.pushes))
                await asyncio.sleep(options.calm)
                seen.clear()
                cpu, began = cpu_seconds(child.pid), time.monotonic()
                await asyncio.sleep(options.seconds)
                cpu, took = cpu_seconds(child.pid) - cpu, time.monotonic() - began
                arrived, acknowledged = seen.arrived[:], sorted(seen.took)
                if pushes is not None:
                    pushes.cancel()
                    await asyncio.gather(pushes, return_exceptions=True)
    told = {
        "Refreshes per second": len(arrived) / took,
        "µs of processor per Refresh": cpu / max(1, len(arrived)) * 1e6,
        "most in any second": float(busiest(arrived, 1.0)),
        "most in any 100 ms": float(busiest(arrived, 0.1)),
    }
    if acknowledged:
        for share in (50, 95, 99):
            place = min(len(acknowledged) - 1, len(acknowledged) * share // 100)
            told[f"from a push to its Refresh, p{share}, ms"] = acknowledged[place] * 1000
    return told


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=54, help="keepalives per second")
    parser.add_argument("--max-rate", type=float, default=200, help="restoration.max_rate")
    parser.add_argument("--pushes", type=float, default=0, help="per second")
    parser.add_argument("--rotating", action="store_true", help="each answer brings a new key")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calm", type=float, default=3, help="seconds before the measurement")
    parser.add_argument("--seconds", type=float, default=15, help="how long is measured")
    parser.add_argument("--against", type=Path, help="another checkout, in turns with this one")
    options = parser.parse_args()
    on_processor(1)
    sides: dict[str, Path | None] = {"against": options.against, "here": None}
    if options.against is None:
        del sides["against"]
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, checkout in sides.items():
            results[side].append(await one_round(options, checkout))
    for side, rounds in results.items():
        print(f"{side}: {options.rounds} rounds, median (smallest to largest)")
        for name in rounds[0]:
            values = [each[name] for each in rounds]
            print(f"  {name:40} {median(values):10,.1f}  ({min(values):,.1f} to {max(values):,.1f})")


if __name__ == "__main__":
    uvloop.run(main())
