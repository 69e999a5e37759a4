"""Three nodes on one PostgreSQL, of which any may die: python -m soak.nodes [--rounds 6] [--seed 1] [--keep DIR]

A stand-in plant that changes keys, its pushes spread over three daemons as a balancer would, and one round of faults
after another while Chat Servers die. What is judged is what the plant saw. Exit status 1 when a promise was broken;
then the directory with the nodes' logs is kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import click
from aiohttp import web
from stores.postgres.server import Server, server

from asyncchatd.config import Listen
from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import ClientError, read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.rehearsing.trial import most_requests, new_directory, rules
from asyncchatd.standin import PlantSettings, Rotation, StandIn, chat_servers, session_line
from asyncchatd.standin.plant.parts import ChatSession, Phase

RATE = 300
SESSIONS = 1_500
SERVERS = 4
NODES = 3
CLOCKS = (0.0, 3_600.0, -3_600.0)
"""By how many seconds the nodes' clocks are wrong."""

HOLD_SECONDS = 45
"""Longer than any node is stopped here."""

LEASE_SECONDS = 9

CALM_SECONDS = 120.0
READY_SECONDS = 60.0
POLL_SECONDS = 0.05
MESSAGES = 30.0
REGISTERED_AT_ONCE = 250
ANSWERED_SECONDS = 1.0
"""So long before its death a node may have had an answer that is not in the database yet."""

CONFIGURATION = """
[receiver]
listen = "127.0.0.1:0"
secrets = ["{secret}"]
[control]
listen = "{control}"
[log]
format = "json"
[store]
url = "{url}"
[gms]
nodes = {nodes}
service = "{service}"
timeout = "8s"
connect_timeout = "500ms"
[ping]
interval = "20s"
[restoration]
max_rate = {rate}
max_in_flight = 100
lease = "{lease}s"
backoff = "200ms"
backoff_max = "2s"
[watcher]
interval = "1s"
timeout = "2s"
fast_interval = "300ms"
"""

SECRET = "the-secret-of-the-push-url"


class Node:
    """One daemon, started again and again with the same configuration."""

    def __init__(self, number: int, directory: Path, plant: StandIn, url: str) -> None:
        self.name = f"node-{number}"
        self._directory = directory / self.name
        self._directory.mkdir()
        self.control = Listen(path=str(self._directory / "control.sock"))
        self.log = self._directory / "log"
        self.push_url = ""
        """Empty while it does not run."""
        self._process: asyncio.subprocess.Process | None = None
        self._config = self._directory / "asyncchatd.toml"
        servers = "".join(
            f'[[chat_server]]\nname = "{name}"\nhealth_url = "{at}"\n'
            for name, at in plant.health_urls.items()
        )
        self._config.write_text(
            CONFIGURATION.format(
                secret=SECRET,
                control=self.control,
                url=f"{url}&node={self.name}",
                nodes=json.dumps(plant.gms_urls),
                service=plant.plant.settings.service,
                rate=RATE,
                lease=LEASE_SECONDS,
            )
            + servers
        )
        self._config.chmod(0o600)
        (self._directory / "clock").write_text(str(CLOCKS[number % len(CLOCKS)]))

    async def start(self) -> None:
        """Start it; returns once it is ready."""
        begins = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    f"{__package__}.launch",
                    str(self._config),
                    str(self._directory / "clock"),
                ),
                stdin=asyncio.subprocess.PIPE,  # it ends when this closes
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            )
        ready = None
        async with asyncio.timeout(READY_SECONDS):
            while ready is None:
                await asyncio.sleep(POLL_SECONDS)
                if self._process.returncode is not None:
                    raise RuntimeError(f"{self.name} did not start: {self.log.read_text()[begins:][-2000:]}")
                ready = next(iter(self.said("daemon_ready", begins)), None)
        receiver = ready["receiver"]
        assert isinstance(receiver, list)
        self.push_url = f"http://{receiver[0]}/push/{SECRET}"

    def said(self, event: str, since: int = 0) -> list[Mapping[str, object]]:
        """The lines of its log with this event, from a place of the file on."""
        found = []
        for line in self.log.read_bytes()[since:].splitlines():
            with suppress(ValueError):
                if (told := json.loads(line)).get("event") == event:
                    found.append(told)
        return found

    def send(self, what: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(what)

    async def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and wait until it has."""
        if self._process is None:
            return
        self.push_url = ""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
        async with asyncio.timeout(READY_SECONDS):
            await self._process.wait()
        self._process = None


class Balancer:
    """Gives each push to a node by chance, and to another one where that fails, as a balancer in front of them does."""

    def __init__(self, nodes: list[Node], chance: random.Random) -> None:
        self._nodes = nodes
        self._chance = chance
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/push", self._push)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/push"
        timeout = aiohttp.ClientTimeout(total=2.0)
        async with aiohttp.ClientSession(timeout=timeout) as self._http:
            yield
        await runner.cleanup()

    async def _push(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name: request.headers[name] for name in ("Content-Type",) if name in request.headers}
        urls = [node.push_url for node in self._nodes if node.push_url]
        for url in self._chance.sample(urls, len(urls)):
            with suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with self._http.post(url, data=body, headers=headers) as answer:
                    if answer.status < 500:
                        return web.Response(status=answer.status)
        return web.Response(status=503)


@dataclass
class Soak:
    """What runs."""

    plant: StandIn
    database: Server
    nodes: list[Node]
    chance: random.Random
    doubtful: set[str] = field(default_factory=set)
    """Chats of which a node that was killed may have had an answer that nobody else knows."""

    def saw_last(self) -> set[str]:
        """Chats that were asked for something in the last moments, or are."""
        now = self.plant.plant.now()
        return {
            session.chat_id
            for session in self.plant.plant.sessions.values()
            if session.in_flight or now - session.last_request < ANSWERED_SECONDS
        }

    def a_server(self) -> str:
        """One that is up, of those with the most chats."""
        chats = Counter(
            session.process.server.name
            for session in self.plant.plant.sessions.values()
            if session.ended is None and session.process.server.phase is Phase.UP
        )
        return self.chance.choice([name for name, _ in chats.most_common(2)])

    async def lose_a_server(self) -> None:
        """One is killed, and comes back a while later."""
        name = self.a_server()
        self.plant.plant.servers.kill(name)
        await asyncio.sleep(6)
        self.plant.plant.servers.restart(name)


# -- faults ----------------------------------------------------------------------------------------


async def nothing_else(soak: Soak) -> None:
    """a Chat Server is lost"""
    await soak.lose_a_server()


async def killed(soak: Soak) -> None:
    """a Chat Server is lost, a node is killed in the middle, and started again"""
    losing = asyncio.create_task(soak.lose_a_server())
    await asyncio.sleep(soak.chance.uniform(0.3, 2.0))
    node = soak.chance.choice(soak.nodes)
    soak.doubtful |= soak.saw_last()
    await node.end(signal.SIGKILL)
    soak.doubtful |= soak.saw_last()
    await losing
    await node.start()


async def stopped(soak: Soak) -> None:
    """a Chat Server is lost, and a node stands still for half a minute"""
    losing = asyncio.create_task(soak.lose_a_server())
    await asyncio.sleep(soak.chance.uniform(0.3, 2.0))
    node = soak.chance.choice(soak.nodes)
    node.send(signal.SIGSTOP)
    await asyncio.sleep(30)
    node.send(signal.SIGCONT)
    await losing


async def database(soak: Soak) -> None:
    """a Chat Server is lost, and the database crashes"""
    losing = asyncio.create_task(soak.lose_a_server())
    await asyncio.sleep(soak.chance.uniform(0.3, 2.0))
    await asyncio.to_thread(soak.database.stop, signal.SIGQUIT)
    await asyncio.sleep(soak.chance.uniform(0.5, 4.0))
    await asyncio.to_thread(soak.database.start)
    await losing


async def rolling(soak: Soak) -> None:
    """a Chat Server is lost while each node is stopped and started again, one after the other"""
    losing = asyncio.create_task(soak.lose_a_server())
    for node in soak.nodes:
        await node.end()
        await node.start()
    await losing


FAULTS: tuple[Callable[[Soak], Awaitable[None]], ...] = (nothing_else, killed, stopped, database, rolling)


# -- a round ---------------------------------------------------------------------------------------


async def carry_out(
    soak: Soak, fault: Callable[[Soak], Awaitable[None]]
) -> tuple[dict[str, float], list[str]]:
    """One round: figures, and which promises were broken."""
    plant = soak.plant.plant
    plant.reset_report()
    soak.doubtful.clear()
    begun = {node: node.log.stat().st_size for node in soak.nodes}
    restorations = await _restorations(soak)
    ended = {chat: session.ended for chat, session in plant.sessions.items()}
    writing = asyncio.create_task(_agents_write(soak))
    began = time.monotonic()
    try:
        await fault(soak)
        await asyncio.sleep(2)
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    is_calm = await calm(soak)
    report = plant.report()
    thrown_out = {
        chat
        for chat, session in plant.sessions.items()
        if session.ended == "wrong_key" and not ended.get(chat)
    }
    lost = {
        chat
        for chat, session in plant.sessions.items()
        if session.ended not in (None, "wrong_key") and not ended.get(chat)
    }
    load = most_requests(report, RATE)
    broken = [f"{name}: {count}" for name, count in rules(report).items() if count]
    broken += [f"thrown out: {len(thrown_out - soak.doubtful)}"] * bool(thrown_out - soak.doubtful)
    broken += [f"lost: {len(lost)} ({report.lost_by_cause})"] * bool(lost)
    broken += [f"most in a second: {load}"] * (not load.kept)
    broken += ["not calm"] * (not is_calm)
    begun_since = Counter(
        what for number, what in (await _restorations(soak)).items() if number not in restorations
    )
    broken += [
        f"{count} restorations of {of}, {why}" for (of, why), count in begun_since.items() if count > 1
    ]
    for node in soak.nodes:
        for event in ("daemon_failed", "ping_failed"):
            broken += [f"{node.name} said {event}"] * bool(node.said(event, begun[node]))
        text = node.log.read_bytes()[begun[node] :]
        broken += [f"{node.name}: a traceback"] * (b"Traceback" in text)
    figures = {
        "seconds": round(time.monotonic() - began, 1),
        "requests": report.requests,
        "most_in_a_second": report.peak_requests_per_second,
        "pause": round(report.longest_pause_seconds, 2),
        "restored": report.restored,
        "without_server_p95": round(report.without_server_seconds.p95 or 0, 2),
        "pushes": report.pushes_sent,
        "pushes_failed": report.pushes_failed,
        "wrong_keys": report.wrong_key_requests,
        "forgiven": len(thrown_out & soak.doubtful),
    }
    return figures, broken


async def _restorations(soak: Soak) -> dict[int, tuple[str | None, str]]:
    """Those on record: of which server, and why."""
    for node in soak.nodes:
        with suppress(ClientError):
            async with ControlClient(node.control) as control:
                found = read(shapes.Restorations, await control.restorations())
                return {each.id: (each.server, each.cause) for each in found.restorations}
    return {}


async def _agents_write(soak: Soak) -> None:
    while True:
        await asyncio.sleep(0.1)
        for session in soak.plant.plant.chats.some(round(MESSAGES / 10)):
            soak.plant.plant.say(session, "How may I help you?")


async def calm(soak: Soak) -> bool:
    """Until no session is without a Chat Server and each push is acknowledged. Whether it came to that."""
    deadline = time.monotonic() + CALM_SECONDS
    while time.monotonic() < deadline:
        report = soak.plant.plant.report()
        if not report.sessions_without_server and not report.pushes_unacknowledged:
            return True
        await asyncio.sleep(POLL_SECONDS)
    return False


@asynccontextmanager
async def soaking(directory: Path, seed: int, sessions: int = SESSIONS) -> AsyncIterator[Soak]:
    """The plant, the database, the nodes, and all chats registered."""
    chance = random.Random(seed)
    settings = PlantSettings(
        servers=chat_servers(SERVERS),
        gms_nodes=2,
        rotate=Rotation.ALWAYS,
        rotate_every=3,
        resend_delay=4.0,
        restoration_window=90.0,
    )
    async with StandIn(settings) as plant:
        plant.plant.start_chats(sessions)
        with server(fsync="on") as postgres:
            url = postgres.url("asyncchatd", hold=f"{HOLD_SECONDS}s")
            nodes = [Node(number, directory, plant, url) for number in range(NODES)]
            balancer = Balancer(nodes, chance)
            try:
                await nodes[0].start()
                await asyncio.gather(*(node.start() for node in nodes[1:]))
                async with balancer.running():
                    plant.plant.change({"push_url": balancer.url})
                    await _register(nodes[0], list(plant.plant.sessions.values()))
                    yield Soak(plant, postgres, nodes, chance)
            finally:
                await asyncio.gather(*(node.end() for node in nodes), return_exceptions=True)


async def _register(node: Node, sessions: list[ChatSession]) -> None:
    async with ControlClient(node.control) as control:
        for begin in range(0, len(sessions), REGISTERED_AT_ONCE):
            some = sessions[begin : begin + REGISTERED_AT_ONCE]

            async def lines() -> AsyncIterator[bytes]:
                for session in some:  # noqa: B023 - it is read before the next portion
                    yield json.dumps(session_line(session)).encode() + b"\n"

            done = read(shapes.Registered, await control.register(lines()))
            if done.taken != len(some):
                raise RuntimeError(f"of {len(some)} sessions {done.taken} were registered")


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=len(FAULTS), show_default=True)
@click.option("--first", type=click.IntRange(0), default=0, help="The fault to begin with.")
@click.option("--seed", type=int, help="Default: a new one, which is told.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the logs in this new directory.")
def main(rounds: int, first: int, seed: int | None, keep: Path | None) -> None:
    """Three nodes on one PostgreSQL, and what must hold after each round of faults."""
    seed = int(time.time()) % 1_000_000 if seed is None else seed
    directory = new_directory("nodes") if keep is None else keep
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    click.echo(f"seed {seed}, {SESSIONS} sessions, {NODES} nodes, in {directory}")
    if asyncio.run(_run(rounds, first, seed, directory)):
        click.echo(f"Promises were broken; see {directory}")
        sys.exit(1)
    click.echo(f"All promises kept in {rounds} rounds.")
    if keep is None:
        shutil.rmtree(directory)


async def _run(rounds: int, first: int, seed: int, directory: Path) -> bool:
    any_broken = False
    async with soaking(directory, seed) as soak:
        await calm(soak)
        for number in range(first, first + rounds):
            fault = FAULTS[number % len(FAULTS)]
            figures, broken = await carry_out(soak, fault)
            click.echo(f"round {number}: {fault.__doc__}")
            click.echo("  " + ", ".join(f"{name} {value:g}" for name, value in figures.items()))
            for text in broken:
                click.echo(click.style(f"  BROKEN: {text}", fg="red", bold=True))
            any_broken |= bool(broken)
        deadlocks = soak.database.log.count("deadlock detected")
        if deadlocks:
            click.echo(click.style(f"  BROKEN: {deadlocks} deadlocks", fg="red", bold=True))
        return any_broken or bool(deadlocks)


if __name__ == "__main__":
    main()
