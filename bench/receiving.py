"""Pushes taken by daemons with PostgreSQL beside one with SQLite: rates and latencies under wrk, at 64 connections.

One node against three that share the database and the machine. Nothing is bound to a processor: the daemons, wrk and
the server have both. `python -m bench.nodes --intake`.
"""

from __future__ import annotations

import contextlib
import tempfile
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from asyncchatd.rehearsing.together.database import Server
from bench.intake import CONFIG, Load, free_port, push_script, server, wrk
from bench.measure import median
from bench.sessions import lines

CONNECTIONS = 64
NODES = 3


def side_by_side(database: Server, rounds: int, seconds: int, sessions: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {"SQLite": [], "PostgreSQL": [], f"{NODES} nodes": []}
    for number in range(rounds):
        for which, seen in found.items():
            url = "sqlite:///bench.db" if which == "SQLite" else database.url(f"intake_{number}_{len(seen)}")
            if which not in ("SQLite", "PostgreSQL"):
                url = database.url(f"intake_{number}_together")
            with tempfile.TemporaryDirectory() as name:
                count = NODES if which == f"{NODES} nodes" else 1
                loads = taken(url, count, Path(name), seconds, sessions)
            refused = sum(load.failed for load in loads)
            seen.append((sum(load.per_second for load in loads), max(load.p99_ms for load in loads)))
            rate, p99 = seen[-1]
            print(
                f"round {number + 1}, {which}: {rate:,.0f}/s, p99 {p99:.1f} ms, {refused} refused", flush=True
            )
    print("| | SQLite | PostgreSQL, one node | three nodes |\n|---|---|---|---|")
    for what, place, form in (("pushes/s", 0, ",.0f"), ("p99, ms", 1, ".1f")):
        cells = (f"{median([each[place] for each in seen]):{form}}" for seen in found.values())
        print(f"| {what} | {' | '.join(cells)} |")
    ours, one, several = found.values()
    print("one node to SQLite: rate " + _ratio(ours, one, 0) + ", p99 " + _ratio(ours, one, 1))
    print(f"{NODES} nodes to one: rate " + _ratio(one, several, 0) + ", p99 " + _ratio(one, several, 1))


def _ratio(of: Sequence[tuple[float, float]], to: Sequence[tuple[float, float]], place: int) -> str:
    ratios = [there[place] / here[place] for here, there in zip(of, to, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def taken(url: str, count: int, directory: Path, seconds: int, sessions: int) -> list[Load]:
    """What wrk saw of so many daemons with this store, over 64 connections in all."""
    script = push_script(directory, sessions)
    with contextlib.ExitStack() as stack:
        ports = []
        for number in range(count):
            own = directory / str(number)
            own.mkdir()
            receiver, control = free_port(), free_port()
            config = own / "bench.toml"
            config.write_text(CONFIG.format(receiver=receiver, control=control, store=url))
            config.chmod(0o600)
            stack.enter_context(
                server("-m", "asyncchatd", "run", "--config", str(config), port=receiver, bound=False)
            )
            ports.append(receiver)
            if number == 0:
                registered = urllib.request.Request(
                    f"http://127.0.0.1:{control}/v1/sessions", data=b"".join(lines(sessions)), method="POST"
                )
                with urllib.request.urlopen(registered):
                    pass
        with ThreadPoolExecutor(count) as pool:
            each = CONNECTIONS // count
            runs = [pool.submit(wrk, port, each, seconds, script, bound=False) for port in ports]
            return [run.result() for run in runs]
