"""Many sessions in a real daemon: registering them, its memory, and what a keepalive costs.

    python -m bench.sessions [--sessions 100000] [--rounds 3] [--interval 30m]

The daemon runs as a process of its own on one processor, this script and a GMS that costs next to
nothing on the other. Sessions are registered over the control API as JSON lines, one request. The
cost per keepalive is the daemon's processor time per Refresh while it works off keepalives at
`--rate`; `share of one core` is that times the rate the sessions need with `--interval`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import orjson

from bench.measure import median, on_processor, process, rss_mb

CONFIG = """
[receiver]
listen = "127.0.0.1:0"
secrets = ["bench-secret"]
[control]
listen = "unix:{directory}/control.sock"
[gms]
nodes = ["http://127.0.0.1:{port}/genesys"]
[store]
url = "sqlite:///bench.db"
[ping]
interval = "{interval}s"
[restoration]
max_rate = {rate}
[log]
level = "error"
"""


def lines(count: int, servers: int = 8) -> Iterator[bytes]:
    """Registrations, spread over so many Chat Servers."""
    for number in range(count):
        yield orjson.dumps(
            {
                "service": "customer-support",
                "chat_id": f"0008TaFN{number:08X}",
                "user_id": f"052B5F58{number:08X}",
                "secure_key": f"02f8e3936f76{number:08x}",
                "alias": str(117 + number % servers),
                "device_id": f"device-{number}",
                "next_position": 3,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )


async def body(count: int, servers: int = 8) -> AsyncIterator[bytes]:
    portion: list[bytes] = []
    for line in lines(count, servers):
        portion.append(line)
        if len(portion) == 500:
            yield b"".join(portion)
            portion.clear()
    yield b"".join(portion)


@contextmanager
def launched(
    directory: str, text: str, log: Path | None = None, checkout: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon with this configuration on the first processor, its log in a file. `checkout`: of other code than the
    one from here."""
    config = Path(directory, "bench.toml")
    config.write_text(text)
    command = [sys.executable, "-m", "asyncchatd", "run", "--config", str(config)]
    with open(log or os.devnull, "wb") as output:
        child = subprocess.Popen(command, stdout=output, cwd=checkout)
    os.sched_setaffinity(child.pid, {0})
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


@asynccontextmanager
async def control(directory: str) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(f"{directory}/control.sock")
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession("http://daemon", connector=connector, timeout=timeout) as session:
        yield session


async def until_ready(session: aiohttp.ClientSession) -> float:
    """Seconds until the daemon answers."""
    began = time.monotonic()
    while time.monotonic() - began < 60:
        try:
            async with session.get("/readyz") as response:
                if response.status == 200:
                    return time.monotonic() - began
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.02)
    raise SystemExit("the daemon did not become ready within 60 s")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def answered(session: aiohttp.ClientSession) -> float:
    async with session.get("/metrics") as response:
        text = await response.text()
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("asyncchatd_pings_total{") and 'outcome="answered"' in line
    )


async def one_round(sessions: int, seconds: float, rate: float, interval: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory, process("bench.gms", "0", processor=1) as port:
        text = CONFIG.format(directory=directory, port=port, interval=interval, rate=rate)
        with launched(directory, text) as child:
            async with control(directory) as session:
                await until_ready(session)
                empty = rss_mb(child.pid)
                began, cpu = time.monotonic(), cpu_seconds(child.pid)
                async with session.post("/v1/sessions", data=body(sessions)) as response:
                    assert (await response.json())["taken"] == sessions
                registering = time.monotonic() - began
                registering_cpu = cpu_seconds(child.pid) - cpu
                pings, cpu, began = await answered(session), cpu_seconds(child.pid), time.monotonic()
                await asyncio.sleep(seconds)
                pings, cpu = await answered(session) - pings, cpu_seconds(child.pid) - cpu
                took = time.monotonic() - began
                full = rss_mb(child.pid)
        with launched(directory, text) as child:
            async with control(directory) as session:
                starting = await until_ready(session)
                restarted = rss_mb(child.pid)
    return {
        "registered per second": sessions / registering,
        "µs of processor per registration": registering_cpu / sessions * 1e6,
        "start, s": starting,
        "memory empty, MB": empty,
        "memory after registering and pinging, MB": full,
        "memory after a restart, MB": restarted,
        "keepalives per second": pings / took,
        "µs of processor per keepalive": cpu / max(pings, 1) * 1e6,
    }


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="how long keepalives are measured")
    parser.add_argument("--rate", type=float, default=0, help="keepalives per second; 0: 30 minutes' worth")
    options = parser.parse_args()
    rate = options.rate or options.sessions / 1_800
    on_processor(1)
    results = [
        # Due times are spread over the interval, so the interval decides the rate; max_rate only caps it.
        await one_round(options.sessions, options.seconds, max(rate * 2, 100), options.sessions / rate)
        for _ in range(options.rounds)
    ]
    print(f"{options.sessions:,} sessions, {options.rounds} rounds, median (smallest to largest)")
    for name in results[0]:
        values = [result[name] for result in results]
        print(f"  {name:44} {median(values):10,.1f}  ({min(values):,.1f} to {max(values):,.1f})")
    share = median([result["µs of processor per keepalive"] for result in results]) * rate / 1e4
    print(f"  {'share of one core for them, %':44} {share:10,.1f}")


if __name__ == "__main__":
    asyncio.run(main())
