"""What the soak of several nodes runs: a plant, a database, nodes, and what stands between them."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stores.postgres.pooler import ROLE, pooler

from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.rehearsing.together.balancer import Balancer
from asyncchatd.rehearsing.together.database import PORT, Server, server
from asyncchatd.rehearsing.together.killing import kill
from asyncchatd.rehearsing.together.node import Node
from asyncchatd.rehearsing.trial import Sections
from asyncchatd.standin import LoopbackProxy, PlantSettings, Rotation, StandIn, chat_servers, session_line
from asyncchatd.standin.plant.parts import ChatSession, Phase
from asyncchatd.stores.postgres import connect, place_of
from asyncchatd.stores.sealing import KEY_BYTES

from .database import Watch

RATE = 300
"""`max_rate`, unless another one is asked for."""

SESSIONS = 1_500
SERVERS = 4
NODES = 3
CLOCKS = (0.0, 3_600.0, -3_600.0)
"""By how many seconds the nodes' clocks are wrong."""

HOLD_SECONDS = 90
"""Longer than most nodes are stopped here."""

PATIENCE_SECONDS = 120.0
"""So long the plant keeps chats that lost their Chat Server. It is longer than `hold`: what a killed node had claimed
waits for that where the database crashed as well."""

POOLED_HOLD_SECONDS = 45
"""Behind a pooler nobody knows that a node is dead: what it claimed is left to it so long."""

LEASE_SECONDS = 9
KEYS = "store-keys"
"""The name of each node's file of store keys."""

LOST_SECONDS = 6.0
"""So long a Chat Server is away."""

SHORTEST_INTERVAL_SECONDS = 20.0
KEEPALIVES = 0.25
"""Of the rate, at most: with many chats the interval is longer, and the rate is there for what is more urgent."""

REGISTERED_AT_ONCE = 250

TESTS = Path(__file__).parents[2]

SECTIONS: Sections = {
    "gms": {"timeout": "8s", "connect_timeout": "500ms"},
    "restoration": {
        "max_in_flight": 100,
        "lease": f"{LEASE_SECONDS}s",
        "backoff": "200ms",
        "backoff_max": "2s",
    },
    "watcher": {"interval": "1s", "timeout": "2s", "fast_interval": "300ms"},
}

SETTINGS: dict[str, Any] = {
    "fsync": "on",
    "full_page_writes": "on",
    "log_min_duration_statement": "1s",
    "max_connections": "60",
}
"""Of the database: a statement of more than a second stands in its log."""


@dataclass
class Soak:
    """What runs."""

    plant: StandIn
    database: Server
    watch: Watch
    nodes: list[Node]
    balancer: Balancer
    chance: random.Random
    to_database: LoopbackProxy
    """Between the last node and the database."""
    to_servers: dict[str, LoopbackProxy]
    """Between the last node and each Chat Server."""
    rate: float
    interval: float
    """Of keepalives, seconds."""
    losses: Counter[str] = field(default_factory=Counter)
    """How often each Chat Server was lost in this round."""
    stands_still: bool = False
    """Whether a node does in this round, or is silently cut off from the database."""
    broken: list[str] = field(default_factory=list)
    """What a fault has found out itself."""
    risked: set[str] = field(default_factory=set)
    """Chats whose newest key a stopped node may have in its sockets, and nobody else."""
    misled: set[str] = field(default_factory=set)
    """Chat Servers whose address led a node to another process, in this round or before."""
    during: AsyncExitStack = field(default_factory=AsyncExitStack)
    """What a fault began and goes on until all is calm again."""
    afterwards: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """What is judged when all is calm again."""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def cut_off(self) -> Node:
        """The node that is behind proxies."""
        return self.nodes[-1]

    def a_server(self) -> str:
        """One that is up, of those with the most chats."""
        chats = Counter(
            session.process.server.name
            for session in self.plant.plant.sessions.values()
            if session.ended is None and session.process.server.phase is Phase.UP
        )
        return self.chance.choice([name for name, _ in chats.most_common(2)])

    async def lose_a_server(self, name: str | None = None) -> None:
        """One is killed, and comes back a while later."""
        name = name or self.a_server()
        self.losses[name] += 1
        self.plant.plant.servers.kill(name)
        await asyncio.sleep(LOST_SECONDS)
        self.plant.plant.servers.restart(name)

    async def kill(self, node: Node) -> None:
        """Kill a node. What it alone may have been told counts as `forgiven`."""
        await kill(node, self.plant.plant)

    def pause(self, node: Node) -> None:
        """A node stands still from now on."""
        self.stands_still = True
        node.pause()

    def step(self, node: Node, seconds: float) -> None:
        """A node's time of day is off by so much from now on."""
        (node.directory / "clock").write_text(str(seconds))


UrlOf = Callable[[AsyncExitStack, Server], Awaitable[str]]
"""Makes the `store.url` of a server; what that needs lives as long as the stack."""


@asynccontextmanager
async def soaking(
    directory: Path,
    seed: int,
    sessions: int = SESSIONS,
    *,
    rate: float = RATE,
    url: UrlOf | None = None,
    gateway: bool = False,
    interval: float | None = None,
    resend: bool = True,
) -> AsyncIterator[Soak]:
    """The plant, the database, the nodes, and all chats registered. `url` makes another `store.url` of the
    database. `gateway`: the nodes have one, and keep what is said in chats. `interval`, in seconds, is that of
    keepalives; without `resend` Chat Server sends no push again."""
    chance = random.Random(seed)
    settings = PlantSettings(
        servers=chat_servers(SERVERS),
        gms_nodes=2,
        rotate=Rotation.ALWAYS,
        rotate_every=3,
        resend=resend,
        resend_delay=4.0,
        restoration_window=PATIENCE_SECONDS,
    )
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(server(**SETTINGS))
        stack.callback(lambda: (directory / "postgresql.log").write_text(postgres.log))
        plant = await stack.enter_async_context(StandIn(settings))
        plant.plant.start_chats(sessions)
        watch = Watch(postgres)
        await stack.enter_async_context(watch.watching())
        to_database = await stack.enter_async_context(
            LoopbackProxy(str(postgres.directory / f".s.PGSQL.{PORT}"), None)
        )
        to_servers = {
            name: await stack.enter_async_context(
                LoopbackProxy("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/")))
            )
            for name, url in plant.health_urls.items()
        }
        urls = [postgres.url("asyncchatd", hold=f"{HOLD_SECONDS}s")] * NODES
        urls[-1] = (
            f"postgresql://postgres@127.0.0.1:{to_database.port}/postgres?schema=asyncchatd&hold={HOLD_SECONDS}s"
        )
        if url is not None:
            urls = [await url(stack, postgres)] * NODES
        pages: list[dict[str, str] | None] = [None] * NODES
        pages[-1] = {name: f"{proxy.url}/" for name, proxy in to_servers.items()}
        key = new_key()
        keepalives = (
            max(SHORTEST_INTERVAL_SECONDS, sessions / (KEEPALIVES * rate)) if interval is None else interval
        )
        more: Sections = {
            "ping": {"interval": f"{keepalives:g}s"},
            "restoration": {**SECTIONS["restoration"], "max_rate": rate},
            **(_gateway(directory) if gateway else {}),
        }
        nodes = [
            _node(number, directory, plant, urls[number], pages[number], key, more) for number in range(NODES)
        ]
        for node in nodes:
            stack.push_async_callback(node.stop)
        await nodes[0].start()
        await asyncio.gather(*(node.start() for node in nodes[1:]))
        balancer = Balancer(nodes)
        await stack.enter_async_context(balancer.running())
        plant.plant.change({"push_url": balancer.push_url})
        await _register(nodes[0], list(plant.plant.sessions.values()))
        yield Soak(plant, postgres, watch, nodes, balancer, chance, to_database, to_servers, rate, keepalives)


async def direct(stack: AsyncExitStack, postgres: Server) -> str:
    """Each node reaches the database by its socket, and the plant has none of that to pass on."""
    return postgres.url("asyncchatd", hold=f"{HOLD_SECONDS}s")


async def pooled(stack: AsyncExitStack, postgres: Server) -> str:
    """The nodes reach the database by PgBouncer in transaction mode alone."""
    connection = await connect(place_of(postgres.url("asyncchatd")).address)
    await connection.script(ROLE.format(role="postgres"))
    await connection.close()
    return f"{stack.enter_context(pooler(postgres))}&hold={POOLED_HOLD_SECONDS}s"


def _node(
    number: int,
    directory: Path,
    plant: StandIn,
    url: str,
    pages: dict[str, str] | None,
    first_key: str,
    more: Sections,
) -> Node:
    clock = directory / f"node-{number + 1}" / "clock"
    node = Node(
        number,
        directory,
        plant,
        {
            **SECTIONS,
            **more,
            "store": {"url": url, "keys_file": str(directory / f"node-{number + 1}" / KEYS)},
        },
        pages=pages,
        command=("-m", "soak.launch", str(clock)),
        environ={"PYTHONPATH": str(TESTS)},
    )
    clock.write_text(str(CLOCKS[number % len(CLOCKS)]))
    write_keys(node, [first_key])
    return node


def _gateway(directory: Path) -> Sections:
    file = directory / "gateway-keys"
    file.touch(mode=0o600)
    file.write_text(f"{secrets.token_hex(32)}\n")
    return {
        "gateway": {"listen": "127.0.0.1:0", "key_file": str(file), "node_group": "gms"},
    }


def write_keys(node: Node, keys: list[str]) -> None:
    """The node's file of store keys, from its next start on."""
    file = node.directory / KEYS
    file.touch(mode=0o600)
    file.write_text("".join(f"{key}\n" for key in keys))


def new_key() -> str:
    """A line of that file."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


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
