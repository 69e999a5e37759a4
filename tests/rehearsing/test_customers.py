"""The demo's chat pages and their customers, straight at a plant: what they do, and how they are judged."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp
import pytest
from aiohttp import web
from conftest import case, soon

from asyncchatd.rehearsing.chat_page import ChatPage
from asyncchatd.rehearsing.customers import Account, Customers
from asyncchatd.rehearsing.demo_plan import KILLED, DemoPlan
from asyncchatd.rehearsing.trial import TrialError
from asyncchatd.standin import Plant, PlantSettings, Rotation, StandIn
from asyncchatd.standin.gms_node import ErrorPage, Failing

PAUSE = 0.01


@dataclass
class Here:
    """A plant, and what its chat pages need."""

    standin: StandIn
    http: aiohttp.ClientSession

    @property
    def plant(self) -> Plant:
        return self.standin.plant

    def page(self) -> ChatPage:
        return ChatPage(self.http, f"{self.standin.gms_urls[0]}/2/chat/customer-support", pause=PAUSE)

    def customers(self, count: int) -> Customers:
        return Customers(self.standin, self.http, self.standin.gms_urls[0], count, pause=PAUSE)


@asynccontextmanager
async def here(rotate: Rotation = Rotation.RESTORE) -> AsyncIterator[Here]:
    """A plant that changes keys when it restores a chat."""
    async with StandIn(PlantSettings(rotate=rotate)) as standin, aiohttp.ClientSession() as http:
        yield Here(standin, http)


# -- a page -------------------------------------------------------------------------------------------


async def test_a_page_shows_each_message_once_and_sends_what_its_customer_says() -> None:
    async with here() as shop:
        page = shop.page()
        assert await page.begin("Ann")
        session = shop.plant.sessions[page.chat_id]
        assert shop.plant.say(session, "Good morning")
        assert await page.say("Hello & 100 % + ü")
        await page.poll()
        await page.poll()
        assert [(message.by, message.text) for message in page.messages] == [
            ("Agent", "Good morning"),
            ("Client", "Hello & 100 % + ü"),
        ]
        assert not page.ended
        assert page.polls == session.refreshes_asked == 2


async def test_a_page_keeps_its_first_key_and_is_thrown_out_when_a_restoration_changes_it() -> None:
    async with here() as shop:
        page = shop.page()
        assert await page.begin("Ann")
        session = shop.plant.sessions[page.chat_id]
        shop.plant.servers.kill(session.process.server.name)
        await page.poll()
        assert not page.ended, "the poll restored the chat"
        assert shop.plant.report().restored == 1
        await soon(page.live())
        assert page.ended
        assert session.ended == "wrong_key"


async def test_a_page_that_gets_no_answer_goes_on() -> None:
    async with here() as shop:
        page = shop.page()
        assert await page.begin("Ann")
        node = shop.standin.nodes[0]
        for page_of_error in ErrorPage:
            node.fail(Failing(503, page=page_of_error))
            await page.poll()
            assert not await page.say("Is anybody there?")
        await node.kill()
        await page.poll()
        assert not await page.say("Is anybody there?")
        assert not page.ended
        await node.start()
        assert await page.say("Is anybody there?")
        await page.poll()
        assert len(page.messages) == 1


@pytest.mark.parametrize("answer", [b"", b"[]", b"null", b'{"statusCode":1}', b'{"statusCode":0}', b"\xff"])
async def test_a_chat_is_begun_only_with_a_reply_that_says_so(answer: bytes) -> None:
    async def gms(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=answer)

    async with serving(gms) as url, aiohttp.ClientSession() as http:
        assert not await ChatPage(http, url).begin("Ann")


@asynccontextmanager
async def serving(answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Something that answers like this."""
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# -- customers ----------------------------------------------------------------------------------------


async def begun(shop: Here, count: int = 1) -> Customers:
    """Customers whose chats have begun, and had a word from each side."""
    customers = shop.customers(count)
    await customers.open()
    async with customers.talking():
        pass  # whoever comes late has the last word all the same
    return customers


async def test_agents_and_customers_talk_and_nothing_is_lost() -> None:
    async with here() as shop:
        customers = await begun(shop, 3)
        await soon(until_shown(customers))
        account = customers.account()
        assert (account.pages, account.agents_said, account.customers_said) == (3, 3, 3)
        assert account.complete
        assert account.polls == account.refreshes >= 3
        assert not account.rode_through, "nothing happened to ride through"


async def until_shown(customers: Customers) -> None:
    """Have the pages poll until all of it is shown."""
    while not customers.account().complete:
        for page in customers.pages:
            await page.poll()


async def test_customers_whose_key_changes_are_thrown_out_and_lose_what_is_said_then() -> None:
    async with here() as shop:
        customers = await begun(shop)
        [session] = shop.plant.sessions.values()
        await soon(until_shown(customers))
        async with customers.looking():
            shop.plant.servers.kill(session.process.server.name)
            assert await customers.thrown_out(10) is not None
        async with customers.talking():
            pass
        account = customers.account()
        assert (account.thrown_out, account.moved, account.rekeyed) == (1, 1, 1)
        assert (account.agents_said, account.agents_seen) == (2, 1)
        assert (account.customers_said, account.customers_heard) == (2, 1)
        assert account.lost == 2
        assert not account.kept


async def test_customers_who_are_not_thrown_out_are_not_waited_for() -> None:
    async with here() as shop:
        customers = await begun(shop)
        assert await customers.thrown_out(0) is None


async def test_a_message_that_is_shown_twice_out_of_order_or_invented_is_found() -> None:
    async with here() as shop:
        customers = await begun(shop)
        [page] = customers.pages
        await soon(until_shown(customers))
        first, second = (event for event in page.shown if event["type"] == "Message")
        for shown, wrong in (
            ([first, second, second], {"twice": 1}),
            ([second, first], {"disordered": 1}),
            ([first, second, {**second, "index": 99}], {"disordered": 1}),
            ([first, second, {**second, "text": "?"}], {"disordered": 1}),
        ):
            page.shown[:] = shown
            account = customers.account()
            assert not account.complete
            assert {
                name: getattr(account, name) for name in ("twice", "disordered") if getattr(account, name)
            } == wrong
        page.shown.clear()
        assert customers.account().agents_seen == 0


async def test_a_message_that_came_to_the_agent_twice_is_found() -> None:
    async with here() as shop:
        customers = await begun(shop)
        [page] = customers.pages
        assert await page.say("When will it be here? (1)")
        await page.poll()
        assert customers.account().twice == 1


async def test_no_chat_is_a_trial_that_failed() -> None:
    async with here() as shop:
        for name in list(shop.plant.servers):
            shop.plant.servers.kill(name)
        with pytest.raises(TrialError, match="customer 1 of 2 got no chat"):
            await shop.customers(2).open()


def test_the_pages_ride_through_where_each_chat_lost_its_server_and_its_key() -> None:
    good = Account(2, 0, 2, 2, 9, 4, 3, 3, 3, 3, 0, 0)
    assert good.kept
    for suffered in ({"thrown_out": 1}, {"moved": 1}, {"rekeyed": 1}):
        assert not replace(good, **suffered).rode_through
    assert not replace(good, pages=0, moved=0, rekeyed=0).rode_through


# -- the plan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [10, 11, 57, 58, 75, 200, 1000])
def test_the_customers_begin_on_the_chat_server_that_is_killed(sessions: int) -> None:
    for servers, rate in itertools.product((2, 3, 4, 20), (1, 60, 200)):
        with case(servers, rate):
            check_they_begin_on_the_one_that_is_killed(sessions, servers, rate)


def check_they_begin_on_the_one_that_is_killed(sessions: int, servers: int, rate: float) -> None:
    plan = DemoPlan(sessions=sessions, servers=servers, rate=rate)
    plant = Plant(plan.other_plant())
    plan.start_chats(plant)
    assert len(plant.sessions) == sessions
    for _ in range(plan.customers):
        fullness = {name: len(server.process.sessions) for name, server in plant.servers.items()}
        assert min(fullness, key=lambda name: fullness[name]) == KILLED
        plant.start_chats(1, servers=[KILLED])
