"""How fast pushes are taken, next to a bare aiohttp handler.

    python -m bench.intake [--seconds 5] [--rounds 5] [--connections 64]

Each server is a process of its own on one processor; `wrk` (Debian's package) loads it from the other:

- bare: aiohttp on uvloop, reads the body, answers 204
- asyncchatd: `asyncchatd run`: secret checked, body parsed, session recognised, the push committed with
  `synchronous=FULL`, one log line (to /dev/null), 200

wrk tells the rate and the latencies. After each round the store must hold a push, taken or waiting, for
every 200 that wrk counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.measure import median, on_processor
from bench.sessions import lines

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
url = "sqlite:///bench.db"
"""

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


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    per_second: float
    p50_ms: float
    p99_ms: float
    answered: int
    failed: int


def wrk(port: int, connections: int, seconds: int, script: Path) -> Load:
    """One run against a server."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    told = subprocess.run(
        ["taskset", "-c", "1", *command, f"http://127.0.0.1:{port}"],
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
def server(*command: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
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


def bare(connections: int, seconds: int, directory: Path, sessions: int) -> Load:
    port = free_port()
    with server("-c", BARE, str(port), port=port):
        return wrk(port, connections, seconds, _script(directory, sessions))


def ours(connections: int, seconds: int, directory: Path, sessions: int) -> Load:
    receiver, control = free_port(), free_port()
    config = directory / "bench.toml"
    config.write_text(CONFIG.format(receiver=receiver, control=control))
    config.chmod(0o600)
    for left in directory.glob("bench.db*"):
        left.unlink()
    with server("-m", "asyncchatd", "run", "--config", str(config), port=receiver):
        request = urllib.request.Request(
            f"http://127.0.0.1:{control}/v1/sessions", data=b"".join(lines(sessions)), method="POST"
        )
        with urllib.request.urlopen(request):
            pass
        load = wrk(receiver, connections, seconds, _script(directory, sessions))
        with urllib.request.urlopen(f"http://127.0.0.1:{control}/metrics") as response:
            text = response.read().decode()
    taken = sum(
        float(n) for n in re.findall(r'asyncchatd_pushes_total\{outcome="(?:known|resent)"\} (\S+)', text)
    )
    if taken < load.answered - load.failed:
        raise SystemExit(f"{load.answered - load.failed - taken:.0f} pushes were answered and not taken")
    return load


def _script(directory: Path, sessions: int) -> Path:
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
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    on_processor(1)
    ratios, p99, failed = [], [], 0
    with tempfile.TemporaryDirectory() as name:
        for number in range(1, options.rounds + 1):
            plain = bare(options.connections, options.seconds, Path(name), options.sessions)
            load = ours(options.connections, options.seconds, Path(name), options.sessions)
            ratios.append(load.per_second / plain.per_second)
            p99.append(load.p99_ms)
            failed += load.failed
            print(
                f"round {number}: bare {plain.per_second:,.0f}/s; asyncchatd {load.per_second:,.0f}/s,"
                f" p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms; ratio {ratios[-1]:.2f}",
                flush=True,
            )
    print(
        f"median at {options.connections} connections: {median(ratios):.2f} of the bare handler,"
        f" p99 {median(p99):.1f} ms, {failed} failed"
    )


if __name__ == "__main__":
    main()
