"""How fast pushes are taken, next to a bare aiohttp handler.

    python -m bench.intake [--seconds 5] [--rounds 5] [--connections 64]
    python -m bench.intake --burst 30000 --connections 1000

Each server is a process of its own on one processor; `wrk` (Debian's package) loads it from the other:

- bare: aiohttp on uvloop, reads the body, answers 204
- FastAPI on uvicorn (uvloop, httptools), which does the same; `pip install -e '.[bench]'`
- asyncchatd: `asyncchatd run`: secret checked, body parsed, session recognised, the push committed with
  `synchronous=FULL`, one log line (to /dev/null), 200
- the same with consumers, one with a webhook and one that fetches, who have nothing to be told

wrk tells the rate and the latencies; a burst is so many pushes as fast as they go, over so many
connections at once. After each round the store must hold a push, taken or waiting, for
every 200 that wrk counted.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measure import median, on_processor
from bench.sessions import cpu_seconds, lines

CONFIG = """
[receiver]
listen = "127.0.0.1:{receiver}"
secrets = ["bench-secret"]
[control]
listen = "127.0.0.1:{control}"
[gms]
nodes = ["http://127.0.0.1:9/genesys"]
service = "customer-support"
[store]
url = "{store}"
"""

CONSUMERS = """
[[consumer]]
name = "webhook"
url = "http://127.0.0.1:9/"
secret_file = "webhook-secret"
[[consumer]]
name = "fetches"
"""
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

WRK = """
local sessions = {sessions}
local n = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  n = (n * 1103515245 + 12345) % 2147483648
  local i = n % sessions
  local ids = string.format('{{"session-id":"0008TaFN%08X","user-id":"052B5F58%08X"}}', i, i)
  local body = string.format('{{"deviceId":"device-%d","message":%s}}', i, ids)
  return wrk.format(nil, "{path}", nil, body)
end
"""

BARE = """
import sys, uvloop
from aiohttp import web
async def take(request):
    await request.read()
    return web.Response(status=204)
app = web.Application()
app.router.add_post("/push/{secret}", take)
uvloop.install()
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
"""


FASTAPI = """
import sys, uvicorn
from fastapi import FastAPI, Request, Response
app = FastAPI()
@app.post("/push/{secret}")
async def take(secret: str, request: Request):
    await request.body()
    return Response(status_code=204)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="error")
"""


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    per_second: float
    p50_ms: float
    p99_ms: float
    answered: int
    failed: int
    cpu_us: float = math.nan
    """Processor microseconds of the daemon for each."""


def wrk(port: int, connections: int, seconds: int, script: Path, *, bound: bool = True) -> Load:
    """One run against a server. `bound` to a processor of its own."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    told = subprocess.run(
        [*(["taskset", "-c", "1"] * bound), *command, f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    failed = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", told))
    failed += sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", told)))
    return Load(
        per_second=float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1]),  # type: ignore[index]
        p50_ms=_ms(told, "50%"),
        p99_ms=_ms(told, "99%"),
        answered=int(re.search(r"(\d+) requests in", told)[1]),  # type: ignore[index]
        failed=failed,
    )


def _ms(told: str, share: str) -> float:
    number, unit = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", told).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


@contextmanager
def server(*command: str, port: int, bound: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    if bound:
        os.sched_setaffinity(child.pid, {0})
    try:
        for _ in range(500):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            asyncio.run(asyncio.sleep(0.02))
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def plain(program: str, connections: int, seconds: int, directory: Path, sessions: int) -> Load:
    port = free_port()
    with server("-c", program, str(port), port=port):
        return wrk(port, connections, seconds, push_script(directory, sessions))


def ours(put: Callable[[int], Load], directory: Path, sessions: int, consumers: str = "") -> Load:
    """A daemon with so many sessions under a load; every push it answered with 200 must be in it."""
    receiver, control = free_port(), free_port()
    config = directory / "bench.toml"
    config.write_text(
        CONFIG.format(receiver=receiver, control=control, store="sqlite:///bench.db") + consumers
    )
    (directory / "webhook-secret").write_text(WEBHOOK_SECRET)
    for file in (config, directory / "webhook-secret"):
        file.chmod(0o600)
    for left in directory.glob("bench.db*"):
        left.unlink()
    with server("-m", "asyncchatd", "run", "--config", str(config), port=receiver) as child:
        request = urllib.request.Request(
            f"http://127.0.0.1:{control}/v1/sessions", data=b"".join(lines(sessions)), method="POST"
        )
        with urllib.request.urlopen(request):
            pass
        cpu = cpu_seconds(child.pid)
        seen = put(receiver)
        cpu = cpu_seconds(child.pid) - cpu
        with urllib.request.urlopen(f"http://127.0.0.1:{control}/metrics") as response:
            text = response.read().decode()
    taken = sum(
        float(n) for n in re.findall(r'asyncchatd_pushes_total\{outcome="(?:known|resent)"\} (\S+)', text)
    )
    if taken < seen.answered - seen.failed:
        raise SystemExit(f"{seen.answered - seen.failed - taken:.0f} pushes were answered and not taken")
    return replace(seen, cpu_us=cpu / seen.answered * 1e6)


async def burst(port: int, connections: int, pushes: int, sessions: int) -> Load:
    """So many pushes, each connection one after the other."""
    took, failed, left = [], 0, iter(range(pushes))
    bodies = [
        b'{"deviceId":"device-%d","message":{"session-id":"0008TaFN%08X"}}' % (n, n) for n in range(sessions)
    ]

    async def connection() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in left:
            body = bodies[number % sessions]
            head = "POST /push/bench-secret HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            sent = time.monotonic()
            writer.write(b"%sContent-Length: %d\r\n\r\n%s" % (head.encode(), len(body), body))
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer.lower())
            await reader.readexactly(int(length[1]) if length else 0)
            failed += not answer.startswith(b"HTTP/1.1 200")
            took.append(time.monotonic() - sent)
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(connection() for _ in range(connections)))
    seconds = time.monotonic() - began
    took.sort()
    return Load(
        pushes / seconds, took[len(took) // 2] * 1e3, took[len(took) * 99 // 100] * 1e3, len(took), failed
    )


def push_script(directory: Path, sessions: int) -> Path:
    script = directory / "push.lua"
    script.write_text(WRK.format(sessions=sessions, path="/push/bench-secret"))
    return script


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--burst", type=int, help="so many pushes at once, instead")
    options = parser.parse_args()
    on_processor(1)
    if options.burst:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.connections + 100, hard))
        burst_of(options)
        return
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    ratios, fastapi, told, told_cpu, p99, failed = [], [], [], [], [], 0
    with tempfile.TemporaryDirectory() as name:
        common = (options.connections, options.seconds, Path(name), options.sessions)
        script = push_script(Path(name), options.sessions)
        for number in range(1, options.rounds + 1):
            bare = plain(BARE, *common)
            other = plain(FASTAPI, *common)

            def ours_with(consumers: str) -> Load:
                return ours(
                    lambda port: wrk(port, options.connections, options.seconds, script),
                    Path(name),
                    options.sessions,
                    consumers,
                )

            # The one that comes first is another one each round.
            loads = {each: ours_with(each) for each in ("", CONSUMERS)[:: 1 if number % 2 else -1]}
            load, with_consumers = loads[""], loads[CONSUMERS]
            told.append(with_consumers.per_second / load.per_second)
            told_cpu.append(with_consumers.cpu_us / load.cpu_us)
            ratios.append(load.per_second / bare.per_second)
            fastapi.append(other.per_second / bare.per_second)
            p99.append(load.p99_ms)
            failed += load.failed + with_consumers.failed
            print(
                f"round {number}: bare {bare.per_second:,.0f}/s; FastAPI {other.per_second:,.0f}/s;"
                f" asyncchatd {load.per_second:,.0f}/s,"
                f" p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms; ratio {ratios[-1]:.2f};"
                f" with consumers {with_consumers.per_second:,.0f}/s, {told[-1]:.2f} of that,"
                f" {told_cpu[-1]:.2f} of the processor time ({load.cpu_us:.0f} µs each without)",
                flush=True,
            )
    print(
        f"median at {options.connections} connections: {median(ratios):.2f} of the bare handler"
        f" (FastAPI doing nothing: {median(fastapi):.2f}), p99 {median(p99):.1f} ms, {failed} failed;"
        f" with consumers {median(told):.2f} of the rate without, {median(told_cpu):.2f} of the processor time"
    )


def burst_of(options: argparse.Namespace) -> None:
    def load(port: int) -> Load:
        return asyncio.run(burst(port, options.connections, options.burst, options.sessions))

    with tempfile.TemporaryDirectory() as name:
        for number in range(1, options.rounds + 1):
            seen = ours(load, Path(name), options.sessions)
            print(
                f"round {number}: {seen.answered:,} pushes over {options.connections} connections,"
                f" {seen.per_second:,.0f}/s, p50 {seen.p50_ms:.0f} ms, p99 {seen.p99_ms:.0f} ms;"
                f" {seen.failed} refused, none of the others lost",
                flush=True,
            )


if __name__ == "__main__":
    main()
