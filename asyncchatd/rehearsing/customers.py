"""The customers of the demo: each with a chat page, and an agent to talk to.

Agents write by the plant itself, customers by their pages, which poll whatever they were pointed to: a gateway, or GMS.
The plant's own transcripts say whether all of it came to the other side.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import astuple, dataclass, field

import aiohttp

from asyncchatd.rehearsing.chat_page import PAUSE_SECONDS, ChatPage, Shown
from asyncchatd.rehearsing.trial import POLL_SECONDS, TrialError, meanwhile, until
from asyncchatd.standin import Plant, StandIn
from asyncchatd.wire import ChatEvent

TURN_SECONDS = 6.0
"""Each agent and each customer says something so often."""

AGENT_SECONDS = 20.0
"""So long an agent tries to write, while the chat has no Chat Server."""

AGAIN_SECONDS = 5.0
"""So long a customer who is told that a message did not go out waits for it to be on the page after all."""

TIMES = 3
"""So often a customer sends a message that does not go out."""


@dataclass(frozen=True, slots=True)
class Account:
    """How the chats of all pages went, by the plant's transcripts and by what the pages show."""

    pages: int
    thrown_out: int
    """Pages that were told that the chat is over. No agent closed it."""
    moved: int
    """Chats that another Chat Server has than at first."""
    rekeyed: int
    """Chats of which GMS has changed the key since they began."""
    polls: int
    refreshes: int
    """Of these chats at GMS, whoever sent them."""
    agents_said: int
    """Messages that agents wrote, or meant to write when the chat was over."""
    agents_seen: int
    """Of these, on the page."""
    customers_said: int
    customers_heard: int
    """Of these, in the transcript that the agent sees."""
    twice: int
    """Messages that stand on a page twice, or came to the agent twice."""
    disordered: int
    """Pages that show messages in another order than they were said, or that nobody said."""

    @property
    def rode_through(self) -> bool:
        """Whether no page was thrown out, although each chat lost its Chat Server and its key."""
        return not self.thrown_out and self.pages == self.moved == self.rekeyed > 0

    @property
    def lost(self) -> int:
        """Messages that did not come to the other side."""
        return self.agents_said - self.agents_seen + self.customers_said - self.customers_heard

    @property
    def complete(self) -> bool:
        """Whether each message came to the other side once, and in order."""
        return (
            self.agents_said > 0 < self.customers_said
            and not self.lost
            and not self.twice
            and not self.disordered
        )

    @property
    def kept(self) -> bool:
        """Whether no page suffered anything."""
        return self.rode_through and self.complete


@dataclass(eq=False, slots=True)
class Customer:
    """One of them, and what became of what was said."""

    page: ChatPage
    first_key: str = field(default="", repr=False)
    """Of the chat at GMS."""
    said: list[str] = field(default_factory=list)
    unwritten: int = 0
    """What the agent meant to write when the chat was over."""
    ended_at: float | None = None
    """The monotonic time at which the page was told the end."""


class Customers:
    """The customers of one plant."""

    def __init__(
        self,
        plant: StandIn,
        http: aiohttp.ClientSession,
        base: str,
        count: int,
        *,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        """`base` is what the pages are pointed to: GMS' base URL, or the gateway's; `pause` as a page has it."""
        url = f"{base}/2/chat/{plant.plant.settings.service}"
        self._plant: Plant = plant.plant
        self._customers = [Customer(ChatPage(http, url, pause=pause)) for _ in range(count)]
        self._over = asyncio.Event()

    def __len__(self) -> int:
        return len(self._customers)

    @property
    def pages(self) -> list[ChatPage]:
        """One for each."""
        return [customer.page for customer in self._customers]

    async def open(self) -> None:
        """All ask for a chat. Raises `TrialError` when one has none."""
        for number, customer in enumerate(self._customers, 1):
            if not await customer.page.begin(f"Customer {number}"):
                raise TrialError(f"customer {number} of {len(self._customers)} got no chat")
            customer.first_key = self._plant.sessions[customer.page.chat_id].secure_key

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Meanwhile all pages poll."""
        async with meanwhile(*(self._look(customer) for customer in self._customers)):
            yield

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Meanwhile agents and customers talk; at the end each has a last word."""
        pause = TURN_SECONDS / max(1, len(self._customers))
        talks = [
            asyncio.create_task(self._talk(customer, number * pause))
            for number, customer in enumerate(self._customers)
        ]
        try:
            yield
            self._over.set()
            await asyncio.gather(*talks)
        finally:
            for talk in talks:
                talk.cancel()
            await asyncio.gather(*talks, return_exceptions=True)

    async def thrown_out(self, seconds: float) -> float | None:
        """Wait until every page was told the end, but not longer; the monotonic time at which the last one was."""
        await until(lambda: all(customer.ended_at is not None for customer in self._customers), seconds)
        ends = [customer.ended_at for customer in self._customers]
        return None if None in ends else max(end for end in ends if end is not None)

    def account(self) -> Account:
        """How it went up to now."""
        accounts = [astuple(self._account(customer)) for customer in self._customers]
        return Account(*map(sum, zip(*accounts, strict=True)))

    def _account(self, customer: Customer) -> Account:
        page, session = customer.page, self._plant.sessions[customer.page.chat_id]
        there = [_as_shown(event) for event in session.events if event.type == "Message"]
        agents = {message for message in there if message.by == "Agent"}
        shown = Counter(page.messages)
        heard = Counter(message.text for message in there if message.by == "Client")
        indexes = [message.index for message in shown]  # each where it came first
        return Account(
            pages=1,
            thrown_out=page.ended,
            moved=bool(session.aliases),
            rekeyed=session.secure_key != customer.first_key,
            polls=page.polls,
            refreshes=session.refreshes_asked,
            agents_said=len(agents) + customer.unwritten,
            agents_seen=len(agents.intersection(shown)),
            customers_said=len(customer.said),
            customers_heard=sum(text in heard for text in customer.said),
            twice=shown.total() - len(shown) + heard.total() - len(heard),
            disordered=indexes != sorted(indexes) or not shown.keys() <= set(there),
        )

    async def _look(self, customer: Customer) -> None:
        await customer.page.live()
        customer.ended_at = time.monotonic()

    async def _talk(self, customer: Customer, after: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), after)
        while True:
            turn = len(customer.said) + 1
            last = self._over.is_set()
            await asyncio.gather(
                self._agent_says(customer, f"It is on its way to you ({turn})"),
                self._customer_says(customer, f"When will it be here? ({turn})"),
            )
            if last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), TURN_SECONDS)

    async def _agent_says(self, customer: Customer, text: str) -> None:
        session = self._plant.sessions[customer.page.chat_id]
        given_up_at = time.monotonic() + AGENT_SECONDS
        while not self._plant.say(session, text):
            if session.ended is not None or time.monotonic() >= given_up_at:
                customer.unwritten += 1
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _customer_says(self, customer: Customer, text: str) -> None:
        page = customer.page
        customer.said.append(text)

        def is_settled() -> bool:
            return page.ended or any(message.text == text for message in page.messages)

        for _ in range(TIMES):
            if page.ended or await page.say(text) or await until(is_settled, AGAIN_SECONDS):
                return


def browsers() -> aiohttp.ClientSession:
    """What carries the requests of all chat pages."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())


def _as_shown(event: ChatEvent) -> Shown:
    return Shown(event.index or 0, event.participant_type or "", event.text or "")
