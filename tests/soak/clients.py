"""Chat clients under fire, as a command: they poll, write, type, upload and reload through the gateway while Chat
Servers and the daemon are killed.

    PYTHONPATH=tests python -m soak.clients [--minutes 5] [--clients 60] [--seed 1] [--keep DIR]

Each client keeps its first key for ever and shows whatever a poll brings. Exit status 1 when one of them missed an
event, saw one twice or out of order, when a message reached the plant twice, or when the plant suffered a wrong key,
two requests of one chat at once, or Refreshes of a closed chat.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import aiohttp
import click

from asyncchatd.rehearsing.chat_page import ChatPage, Json
from asyncchatd.rehearsing.trial import new_directory
from asyncchatd.standin import PlantSettings, StandIn, chat_servers
from asyncchatd.standin.plant.parts import ChatSession
from asyncchatd.standin.settings import Rotation

from .host import NIMBLE, Host
from .rounds import REPLY_MS

GATEWAY = """
[gateway]
listen = "127.0.0.1:{port}"
key_file = "gateway-keys"
node_group = "gms"
hold = "1s"
max_new_chats = 100
"""

LIVES, DEATHS = (8.0, 25.0), (0.0, 1.5)
"""How long the daemon lives, and how long it is dead."""

SERVERS_LIVE, SERVERS_DEAD = (4.0, 15.0), (0.2, 2.0)

CALM_SECONDS = 60.0
CLIENT_SECONDS = 5.0
"""What a client gives a request."""

SUFFERED = ("wrong_key_requests", "overlapping_requests", "repeated_at_once_requests", "doubled_messages")


class Client(ChatPage):
    """A client that nobody wrote for us."""

    def __init__(self, base: str, http: aiohttp.ClientSession, chance: random.Random, number: int) -> None:
        super().__init__(http, base, patience=CLIENT_SECONDS)
        self.chance = chance
        self.number = number
        self.taken: list[str] = []
        """Texts of which the gateway said that they were taken."""
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.quiet = False
        self._reading = asyncio.Lock()

    async def live(self) -> None:
        """Root task: poll."""
        while True:
            await self.poll()
            await asyncio.sleep(self.chance.uniform(0.05, 1.0))

    async def poll(self) -> None:
        """One poll, while the page is not loaded anew."""
        async with self._reading:
            await super().poll()

    def take(self, reply: Json) -> None:
        """Nobody ends a chat here, so no poll may be told so."""
        self.counts["polls"] += 1
        if reply["chatEnded"] or reply["statusCode"] != 0:
            self.wrong.append(
                f"client {self.number}: a poll was told {reply['statusCode']}, ended {reply['chatEnded']}"
            )
            return
        super().take(reply)

    async def write(self) -> None:
        """Root task: write, type, and reload the page."""
        line = 0
        while True:
            await asyncio.sleep(self.chance.uniform(0.2, 3.0))
            if self.quiet:
                continue
            what = self.chance.random()
            if what < 0.6:
                line += 1
                text = f"{self.number}-{line}"
                reply = await self.call("send", {"message": text})
                code = "lost" if reply is None else str(reply["statusCode"])
                self.counts[f"send {code}"] += 1
                if code == "0":
                    self.taken.append(text)
            elif what < 0.9:
                await self.call(self.chance.choice(("startTyping", "stopTyping")), {})
            else:
                await self._reload()

    async def _reload(self) -> None:
        """All that was shown comes again, and what came since."""
        async with self._reading:
            reply = await self.call("refresh", {"transcriptPosition": "1"})
            if reply is None:
                return
            self.counts["reloads"] += 1
            known = [event["index"] for event in self.shown]
            again = [event["index"] for event in reply["messages"]]
            if again[: len(known)] != known:
                self.wrong.append(
                    f"client {self.number}: after a reload {again[:40]} instead of {known[:40]} and more"
                )
            self.shown, self.position = reply["messages"], reply["nextPosition"]

    async def call(self, operation: str, said: Mapping[str, str]) -> Json | None:
        reply = await super().call(operation, said)
        if reply is not None and reply["secureKey"] != self.triple["secureKey"]:
            self.wrong.append(f"client {self.number}: {operation} was answered with another key")
        return reply

    def failed(self, cause: str) -> None:
        self.counts[cause] += 1


class Site:
    """All clients, and what goes wrong around them."""

    def __init__(self, plant: StandIn, host: Host, clients: list[Client], seed: int) -> None:
        self.kills = self.losses = self.said = 0
        self._plant = plant.plant
        self._host = host
        self._clients = clients
        self._chance = random.Random(seed)

    def sessions(self) -> list[ChatSession]:
        """Those of the clients."""
        return [self._plant.sessions[client.chat_id] for client in self._clients]

    async def agents(self) -> None:
        """Root task: agents write."""
        while True:
            await asyncio.sleep(self._chance.uniform(0.0, 0.1))
            self.said += self._plant.say(self._chance.choice(self.sessions()), f"agent {self.said}")

    async def servers(self) -> None:
        """Root task: Chat Servers die and come back."""
        names = list(self._plant.servers)
        while True:
            await asyncio.sleep(self._chance.uniform(*SERVERS_LIVE))
            name = self._chance.choice(names)
            self._plant.servers.kill(name)
            self.losses += 1
            await asyncio.sleep(self._chance.uniform(*SERVERS_DEAD))
            self._plant.servers.start(name)

    async def daemon(self) -> None:
        """Root task: the daemon is killed, or stopped, and started again."""
        while True:
            await asyncio.sleep(self._chance.uniform(*LIVES))
            since = self._plant.wall_ms() - REPLY_MS
            if self._chance.random() < 0.7:
                await self._host.kill()
                self._plant.replies_lost(since)  # what it was answered in its last moments nobody could know
            else:
                await self._host.stop()
            self._plant.client_died()
            self.kills += 1
            await asyncio.sleep(self._chance.uniform(*DEATHS))
            self._plant.client_starts()
            await self._host.start()

    def wrong(self) -> list[str]:
        """What must not be."""
        found = [text for client in self._clients for text in client.wrong]
        for client, session in zip(self._clients, self.sessions(), strict=True):
            there = [(event.index, event.text) for event in session.events if event.type == "Message"]
            seen = [(message.index, message.text) for message in client.messages]
            if seen != there:
                missed = [each for each in there if each not in seen]
                doubled = [each for each, count in Counter(seen).items() if count > 1]
                found.append(
                    f"client {client.number} ({client.chat_id}): saw {len(seen)} of {len(there)} messages,"
                    f" missed {missed[:5]}, doubled {doubled[:5]}"
                )
            texts = Counter(text for _, text in there)
            found += [f"message {text} is not there" for text in client.taken if not texts[text]]
            found += [f"message {text} is there {count} times" for text, count in texts.items() if count > 1]
        report = self._plant.report()
        found += [f"{name}: {count}" for name in SUFFERED if (count := getattr(report, name))]
        if report.sessions_lost:
            found.append(f"sessions lost: {report.sessions_lost} {report.lost_by_cause}")
        return found

    def tell(self) -> None:
        counts = sum((client.counts for client in self._clients), Counter[str]())
        report = self._plant.report()
        click.echo(
            f"{len(self._clients)} clients; {self.kills} ends of asyncchatd, {self.losses} of Chat Servers;"
            f" {self.said:,} messages of agents"
        )
        click.echo(", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())))
        click.echo(f"at GMS: {report.requests_by_operation}")


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1, 600), default=5.0, show_default=True)
@click.option("--clients", type=click.IntRange(1, 10_000), default=60, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep log and store in this new directory.")
def main(minutes: float, clients: int, seed: int, keep: Path | None) -> None:
    """Clients chat through the gateway, while Chat Servers and the daemon are killed."""
    directory = new_directory("clients") if keep is None else keep
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    broken = asyncio.run(under_fire(directory, minutes * 60, clients, seed))
    for text in broken:
        click.echo(click.style(f"BROKEN: {text}", fg="red", bold=True))
    if broken:
        click.echo(f"see {directory}")
        sys.exit(1)
    if keep is None:
        shutil.rmtree(directory)


async def under_fire(directory: Path, seconds: float, count: int, seed: int) -> list[str]:
    """Let it rage for so long, wait until all is shown, and say what was broken."""
    (directory / "gateway-keys").write_text("9b" * 32)
    (directory / "gateway-keys").chmod(0o600)
    settings = PlantSettings(
        servers=chat_servers(3), gms_nodes=2, resend_delay=1.5, push_timeout=2.0, rotate=Rotation.RESTORE
    )
    port = _free_port()
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        StandIn(settings) as plant,
        aiohttp.ClientSession(connector=connector) as http,
    ):
        host = Host(directory, plant, (NIMBLE + GATEWAY).format(rate=400, port=port))
        base = f"http://127.0.0.1:{port}/genesys/2/chat/customer-support"
        clients = [Client(base, http, random.Random(f"{seed} {number}"), number) for number in range(count)]
        tasks: list[asyncio.Task[None]] = []
        try:
            await host.start()
            for client in clients:
                while not await client.begin(f"client {client.number}"):  # noqa: ASYNC110 - nobody tells when it may
                    await asyncio.sleep(0.1)
            site = Site(plant, host, clients, seed)
            raging = [asyncio.create_task(each) for each in (site.agents(), site.servers(), site.daemon())]
            tasks = [
                asyncio.create_task(each) for client in clients for each in (client.live(), client.write())
            ]
            await asyncio.wait([*raging, *tasks], timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            failures = await _ended(raging)
            for client in clients:
                client.quiet = True
            for name in plant.plant.servers:
                with suppress(ValueError):
                    plant.plant.servers.start(name)
            if not host.ready.is_set():
                await host.release()
                plant.plant.client_starts()
                await host.start()
            began = time.monotonic()
            while (found := site.wrong()) and time.monotonic() - began < CALM_SECONDS:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.5)
            click.echo(
                f"all was shown after {time.monotonic() - began:.1f} s" if not found else "not all was shown"
            )
            failures += await _ended(tasks)
            site.tell()
            await host.stop()
            return [*failures, *host.complaints, *found]
        finally:
            await _ended(tasks)
            with suppress(ProcessLookupError):
                await host.release()


async def _ended(tasks: list[asyncio.Task[None]]) -> list[str]:
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [repr(result) for result in results if isinstance(result, Exception)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
