"""Public clients of the Chat API, unchanged, chat through the gateway with a stand-in plant behind it.

    python -m clients.run DIRECTORY [--only NAME] [--times N]     # from tests/; README.md beside this

Each client that lies in the directory holds a chat a story: plain; while every Chat Server restarts, which rotates all
keys; the same where the restored transcripts are counted anew, too; over a reload of its page; until the agent closes
it. Judged is what the customer
saw and what the plant got; the command fails where anything was lost, doubled or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp.test_utils import unused_port
from gateway.rig import Shop, shop

from asyncchatd import log
from asyncchatd.standin.plant.parts import ChatSession
from asyncchatd.standin.settings import PlantSettings, Rotation
from clients.browser import opened, served

HERE = Path(__file__).parent
SERVICE = "customer-support"
POLL_MS = 300
PATIENCE_SECONDS = 25.0

Told = dict[str, Any]


@dataclass
class Customer:
    """What one client told of its chat, and how it is asked to do something."""

    ask: Callable[[Told], Awaitable[None]]
    reload: Callable[[], Awaitable[None]] | None = None
    told: list[Told] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, said: Told) -> None:
        """Take what the client says."""
        self.told.append(said)
        self.news.set()

    def has(self, name: str) -> bool:
        """Whether the client told that."""
        return any(name in each for each in self.told)

    @property
    def shown(self) -> list[str]:
        """The agent's messages as the customer saw them."""
        return [each["shown"] for each in self.told if each.get("from") == "Agent"]

    @property
    def own(self) -> list[str]:
        """The customer's own messages, as the client shows them."""
        return [each["shown"] for each in self.told if "shown" in each and each.get("from") != "Agent"]

    async def until(self, what: Callable[[], object], named: str) -> None:
        """Wait for something, or fail."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not what():
            self.news.clear()
            if time.monotonic() > until:
                raise Unseen(f"waited in vain for {named}; the client's last words: {self.told[-3:]}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), 0.1)


class Unseen(Exception):
    """Something that the customer should see and did not."""


Kind = Callable[[Path, Shop, int], "contextlib.AbstractAsyncContextManager[Customer]"]


@asynccontextmanager
async def process(command: tuple[str, ...], here: Shop) -> AsyncIterator[Customer]:
    """A client in a process that takes and tells JSON lines."""
    base = here.base.partition("/genesys/")[0]
    child = await asyncio.create_subprocess_exec(
        *command, base, SERVICE, str(POLL_MS), stdin=-1, stdout=-1, stderr=asyncio.subprocess.DEVNULL
    )
    assert child.stdin is not None
    assert child.stdout is not None
    stdin, stdout = child.stdin, child.stdout

    async def ask(said: Told) -> None:
        stdin.write(json.dumps(said).encode() + b"\n")
        await stdin.drain()

    customer = Customer(ask)

    async def listen() -> None:
        async for line in stdout:
            customer.hear(json.loads(line))

    listening = asyncio.create_task(listen())
    try:
        yield customer
    finally:
        listening.cancel()
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def script_of_a_page(path: Path, here: Shop, _: int) -> contextlib.AbstractAsyncContextManager[Customer]:
    """A script over XMLHttpRequest, under node."""
    return process(("node", str(HERE / "xhr.js"), str(path)), here)


def python_script(path: Path, here: Shop, _: int) -> contextlib.AbstractAsyncContextManager[Customer]:
    """A script in Python."""
    return process((sys.executable, str(HERE / "script.py"), str(path)), here)


@asynccontextmanager
async def widgets(path: Path, here: Shop, port: int) -> AsyncIterator[Customer]:
    """Genesys' widgets in a browser; the page may be loaded anew."""
    base = here.base.partition("/genesys/")[0]
    customer = Customer(_nothing)
    async with served(path, base, SERVICE, port) as url, opened(url, customer.hear) as page:

        async def ask(said: Told) -> None:
            if "say" in said:
                text = json.dumps({"message": said["say"]})
                await page.run(f"me.command('WebChatService.sendMessage', {text})")
            if "typing" in said:
                text = json.dumps({"message": "I would like"})
                await page.run(f"me.command('WebChatService.sendTyping', {text})")

        async def reload() -> None:
            before = len(customer.told)
            await page.ask("Page.reload")
            await customer.until(lambda: any("ready" in each for each in customer.told[before:]), "the page")
            await page.run("me.command('WebChatService.restore')")

        customer.ask, customer.reload = ask, reload
        await customer.until(lambda: customer.has("ready"), "the page")
        await page.run("me.command('WebChatService.startChat', {nickname: 'Ann', subject: 'Parcel'})")
        yield customer


async def _nothing(_: Told) -> None:
    return


KINDS: dict[str, tuple[str, Kind]] = {
    "reactive": ("chatapi.js", script_of_a_page),
    "script": ("gmsapi.py", python_script),
    "widgets": ("widgets.min.js", widgets),
    "widgets-late": ("widgets.min.js", widgets),
}
"""By folder the file of a client, and what runs it."""

BY_INDEX = frozenset({"widgets", "widgets-late"})
"""Clients that drop an event whose index they have seen: with a transcript that is counted anew they lose messages,
with and without a gateway."""


@dataclass
class Chat:
    """One chat of a client, from both sides."""

    here: Shop
    customer: Customer
    session: ChatSession
    agent_said: list[str] = field(default_factory=list)
    customer_said: list[str] = field(default_factory=list)

    async def talk(self, turns: int) -> None:
        """Agent and customer say something in turn, and both at once."""
        for _ in range(turns):
            await self.agent_says(1)
            await self.customer_says(1)
            await asyncio.gather(self.agent_says(2), self.customer_says(1))

    async def agent_says(self, count: int) -> None:
        """That many messages at once, seen by the customer."""
        for _ in range(count):
            text = f"agent {len(self.agent_said) + 1} & 100 % + ü"
            assert self.here.plant.plant.say(self.session, text)
            self.agent_said.append(text)
        wanted = len(self.agent_said)
        await self.customer.until(lambda: len(self.customer.shown) >= wanted, f"the agent's message {wanted}")

    async def customer_says(self, count: int) -> None:
        """That many messages, each come to the plant before the next."""
        for _ in range(count):
            await self.customer.ask({"typing": True})
            text = f"customer {len(self.customer_said) + 1} & 100 % + ü"
            self.customer_said.append(text)
            await self.customer.ask({"say": text})
            await self._arrives(text)

    async def _arrives(self, text: str) -> None:
        await self.customer.until(lambda: text in self.arrived, text)

    @property
    def arrived(self) -> list[str]:
        """The customer's messages as the plant has them."""
        return [
            event.text or ""
            for event in self.session.events
            if event.type == "Message" and event.participant_type == "Client"
        ]


async def plain(chat: Chat) -> None:
    """Nothing happens."""
    await chat.talk(3)


async def restarted(chat: Chat) -> None:
    """Every Chat Server restarts: the chat goes to another one, with another key."""
    await chat.talk(2)
    servers = chat.here.plant.plant.servers
    for name in list(chat.here.plant.health_urls):
        before = chat.session.secure_key, chat.session.alias
        servers.restart(name)
        await chat.customer.until(
            lambda: chat.session.process.silent_since is None, "the session's restoration"
        )
        await chat.talk(1)
        if before[0] != chat.session.secure_key:
            chat.customer.hear({"rotated": True})
    assert chat.customer.has("rotated"), "no key changed"


async def recounted(chat: Chat) -> None:
    """The same, and Chat Server counts the events of restored transcripts anew."""
    await restarted(chat)


async def reloaded(chat: Chat) -> None:
    """The page is loaded anew, and shows the whole chat again."""
    assert chat.customer.reload is not None
    await chat.talk(2)
    before = len(chat.customer.shown)
    chat.customer.told.clear()
    await chat.customer.reload()
    await chat.customer.until(lambda: len(chat.customer.shown) >= before, "the chat so far")
    await chat.talk(2)


async def closed(chat: Chat) -> None:
    """The agent says a last word, and closes."""
    await chat.talk(1)
    text = "Bye"
    assert chat.here.plant.plant.say(chat.session, text)
    chat.agent_said.append(text)
    chat.here.plant.plant.end_chats([chat.session])
    await chat.customer.until(lambda: chat.customer.has("ended"), "the end")
    await asyncio.sleep(2)


STORIES: dict[str, Callable[[Chat], Awaitable[None]]] = {
    story.__name__: story for story in (plain, restarted, recounted, reloaded, closed)
}


async def hold(name: str, path: Path, kind: Kind, story: str) -> str | None:
    """What is wrong with one chat; `""` when nothing is, `None` when that client cannot do this."""
    if story == "recounted" and name in BY_INDEX:
        return None
    plant = PlantSettings(rotate=Rotation.RESTORE, renumber=story == "recounted")
    site = unused_port()
    with tempfile.TemporaryDirectory() as directory:
        async with (
            shop(Path(directory), plant=plant, hold="2s", origins=[f"http://localhost:{site}"]) as here,
            kind(path, here, site) as customer,
        ):
            if story == "reloaded" and customer.reload is None:
                return None
            sessions = here.plant.plant.sessions
            try:
                await customer.until(lambda: sessions and len(customer.told), "the chat")
                session = next(iter(sessions.values()))
                chat = Chat(here, customer, session)
                await STORIES[story](chat)
                await asyncio.sleep(3 * POLL_MS / 1000)
            except Unseen as error:
                return f"{error}; at the plant: {here.wrong()}"
            return "; ".join(_judged(chat))


def _judged(chat: Chat) -> list[str]:
    wrong = []
    if chat.customer.shown != chat.agent_said:
        wrong.append(f"the agent said {chat.agent_said}, the customer saw {chat.customer.shown}")
    if chat.arrived != chat.customer_said:
        wrong.append(f"the customer said {chat.customer_said}, the plant got {chat.arrived}")
    if len(set(chat.customer.own)) != len(chat.customer.own):
        wrong.append(f"the customer saw own messages twice: {chat.customer.own}")
    if chat.customer.has("failed") or chat.customer.has("offline"):
        wrong.append(f"the client complains: {[each for each in chat.customer.told if 'shown' not in each]}")
    if suffered := chat.here.wrong():
        wrong.append(f"the plant suffered {suffered}")
    return wrong


async def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--story", choices=STORIES)
    parser.add_argument("--times", type=int, default=1)
    options = parser.parse_args()
    log.configure("error", "json")
    failed = passed = 0
    for name, (file, kind) in KINDS.items():
        path = options.directory / name / file
        if not path.exists() or options.only not in (None, name):
            continue
        for story in [options.story] if options.story else list(STORIES):
            for _ in range(options.times):
                wrong = await hold(name, path, kind, story)
                failed += bool(wrong)
                passed += wrong == ""
                print(f"{name}, {story}: {'cannot' if wrong is None else wrong or 'well'}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
