"""Calls: one request of a session at a time, each sent once, and nobody waits longer than he is patient."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
from conftest import FakeClock, MakeSettings, PromptStore, register, settle, soon

from asyncchatd.gateway.calling.calls import Calls, Fate, Outcome
from asyncchatd.gateway.watching.watched import Watched
from asyncchatd.gms import Answer, GmsClient, InFlight, Pacer, Trouble
from asyncchatd.model.data import Claim, TokenNews, Tokens
from asyncchatd.sending.sending import Sending
from asyncchatd.stores import StoreError
from asyncchatd.stores.answers import NotTaken
from asyncchatd.wire import Alive, Call, NodeTrouble, Reply, client_call
from asyncchatd.wire import Outcome as GmsOutcome

pytestmark = pytest.mark.usefixtures("events")

LOST = NodeTrouble(Trouble.DISCONNECTED)


@dataclass
class Gms:
    """GMS nodes that answer calls as they are told, when they are let."""

    clock: FakeClock
    outcome: GmsOutcome = field(default_factory=lambda: Alive(Reply(0, TokenNews("chat-1"), 3)))
    perhaps_taken: bool = False
    at_work: float = 0.0
    free: int | None = None
    sent: list[bytes] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def slots(self) -> int | None:
        return self.free

    async def call(self, call: Call, tokens: Tokens, *, until: float = math.inf) -> Answer:
        self.sent.append(call.body)
        await self.go_on.wait()
        return Answer(self.outcome, "http://gms-1", self.clock.now(), 0.1, self.perhaps_taken, self.at_work)


@dataclass
class Rig:
    calls: Calls
    gms: Gms
    store: PromptStore
    clock: FakeClock
    chat: Watched

    def says(self, text: str) -> asyncio.Task[Outcome]:
        call = client_call("support/chat-1/send", [("message", text)])
        return asyncio.create_task(self.calls.answer(call, self.chat))

    async def seized(self) -> Claim | NotTaken:
        return await self.store.seize("chat-1", now=self.clock.now(), lease_ms=1_000)


@asynccontextmanager
async def rig_of(store: PromptStore, clock: FakeClock, make_settings: MakeSettings) -> AsyncIterator[Rig]:
    await register(store, "chat-1", now=clock.now())
    wakeup = asyncio.Event()
    gms = Gms(clock)
    sending = Sending(
        store,
        cast(GmsClient, gms),
        Pacer(200, clock),
        InFlight(100, 1.0, clock),
        make_settings(),
        clock,
        wakeup,
    )
    calls = Calls(store, sending, Pacer(100, clock), clock, wakeup)
    lives = [asyncio.create_task(life) for life in sending.lives().values()]
    chat = Watched("chat-1")
    try:
        yield Rig(calls, gms, store, clock, chat)
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)


async def test_nobody_gets_the_session_while_gms_may_be_at_work_on_a_call(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A second request meanwhile would throw the customer out."""
    async with rig_of(store, clock, make_settings) as rig:
        rig.gms.outcome, rig.gms.perhaps_taken, rig.gms.at_work = LOST, True, 8.0
        rig.gms.go_on.set()
        said = rig.says("Hello")
        await clock.advance(7.5)
        assert (await soon(said)).fate is Fate.UNKNOWN
        assert await rig.seized() is NotTaken.IN_FLIGHT
        await clock.advance(1)
        await settle()
        assert isinstance(await rig.seized(), Claim)


async def test_a_call_has_the_session_of_a_keepalive_that_was_not_sent_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with rig_of(store, clock, make_settings) as rig:
        held = await rig.seized()
        assert isinstance(held, Claim)
        settling = rig.calls._sending.settling
        settling.hold([held], clock.now())
        settling.plan([held])
        rig.gms.go_on.set()
        rig.says("Hello")
        await clock.advance(0.01)
        assert len(rig.gms.sent) == 1
        assert not settling.is_planned(held)


async def test_a_call_that_left_is_not_cut_off_when_its_client_is_out_of_patience(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with rig_of(store, clock, make_settings) as rig:
        said = rig.says("Hello")
        await clock.advance(3)
        assert (await soon(said)).fate is Fate.UNKNOWN
        rig.gms.outcome = Alive(Reply(0, TokenNews("chat-1", secure_key="newer"), 3))
        rig.gms.go_on.set()
        await clock.advance(1)
        session = await store.get("chat-1")
        assert session is not None
        assert session.secure_key == "newer"
        assert len(rig.gms.sent) == 1


async def test_a_call_that_gets_no_turn_in_time_is_never_sent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with rig_of(store, clock, make_settings) as rig:
        rig.gms.free = 0  # every node rests
        said = rig.says("Hello")
        await clock.advance(3)
        assert (await soon(said)).fate is Fate.NOT_SENT
        rig.gms.free = None
        await clock.advance(3)
        assert rig.gms.sent == []
        assert isinstance(await rig.seized(), Claim)


async def test_typing_that_a_newer_one_took_the_place_of_is_done_though_it_was_not_sent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with rig_of(store, clock, make_settings) as rig:
        first = rig.says("Hello")
        await clock.advance(0.1)
        typing = [
            asyncio.create_task(rig.calls.answer(client_call(f"support/chat-1/{what}", []), rig.chat))
            for what in ("startTyping", "stopTyping")
        ]
        await clock.advance(3)
        fates = [(await soon(each)).fate for each in (first, *typing)]
        assert fates == [Fate.UNKNOWN, Fate.DONE, Fate.NOT_SENT]
        assert len(rig.gms.sent) == 1


class BothAtOnce:
    """A clock that says that the time is over in the moment in which what was waited for happens."""

    def __init__(self, clock: FakeClock) -> None:
        self.now, self.monotonic, self.sleep = clock.now, clock.monotonic, clock.sleep
        self._wait = clock.wait

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        await self._wait(event, seconds + 1)
        return False


async def test_a_call_that_is_given_up_as_its_client_goes_is_never_said_to_be_done(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """Its place among those that wait is free then, as if a newer one had taken it."""
    async with rig_of(store, clock, make_settings) as rig:
        rig.calls._clock = BothAtOnce(clock)
        rig.gms.free = 0
        said = rig.says("Hello")
        await clock.advance(3)
        assert (await soon(said)).fate is Fate.NOT_SENT
        assert rig.gms.sent == []


async def test_a_session_is_given_back_whose_look_before_sending_failed(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> object:
        raise StoreError("the disk is full")

    async with rig_of(store, clock, make_settings) as rig:
        with monkeypatch.context() as patched:
            patched.setattr(store, "confirm", fails)
            assert (await soon(rig.says("Hello"))).fate is Fate.NOT_SENT
        await clock.advance(120)
        assert isinstance(await rig.seized(), Claim)
        assert rig.gms.sent == []
