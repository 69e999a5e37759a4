"""The contract of a store: everything at once, an old copy, and what a store says that nobody shares."""

from __future__ import annotations

import asyncio
import random
from inspect import getattr_static

import pytest

from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import Cause, Claim, Ms, Reason, Registration, SessionState, TokenNews, Verdict
from asyncchatd.model.values import replace
from asyncchatd.stores import Store
from asyncchatd.stores.answers import Registered, Take

from ..desk import (
    LEASE,
    MINUTE,
    NOON,
    SECOND,
    SPREAD,
    Desk,
    answered,
    complete_push,
    every_session,
    push,
    registration,
)
from .rig import chats, named

# -- everything at once ----------------------------------------------------------------------------


BY_TAKE = -1
"""No claim's id: the chat application has the session."""


class Walk:
    """A random walk through everything a store can be told, beside a model that knows only what must
    be true: who holds which session until when, which key each chat has told us last, which pushes
    have not taken effect, and which chats are over.

    Each chat has a Chat Server that numbers its keys; a push always tells the time of its event.
    """

    def __init__(self, store: Store, seed: int) -> None:
        self.desk = Desk(store)
        self.chance = random.Random(seed)
        self.chats = chats(6)
        self.newest = dict.fromkeys(self.chats, 0)
        self.told: dict[str, int] = {}
        self.held: dict[str, tuple[int, Ms]] = {}
        self.out: list[tuple[Claim, Ms]] = []
        self.waiting: set[str] = set()
        self.delayed: list[tuple[str, int, Ms]] = []
        self.over: set[str] = set()
        self.taken: dict[str, Take] = {}

    async def step(self) -> None:
        self.desk.later(self.chance.choice((1, 300, 5 * SECOND, LEASE, SPREAD)))
        steps = (
            *(self.register, self.event, self.deliver, self.deliver, self.absorb, self.absorb),
            *(self.claim, self.claim, self.claim, self.settle, self.settle, self.settle, self.settle),
            *(self.renew, self.make_due, self.end, self.lose, self.mark, self.mark, self.house),
            *(self.take, self.take, self.give_back, self.give_back),
        )
        await self.chance.choice(steps)()

    def news(self, chat_id: str, key: int, alias: str) -> Registration:
        return registration(chat_id, key=f"{chat_id}-key-{key}", alias=alias)

    def alias(self) -> str:
        return self.chance.choice(("117", "118"))

    async def register(self) -> None:
        chat_id = self.chance.choice(self.chats)
        key = self.newest[chat_id]
        [outcome] = await self.desk.register(self.news(chat_id, key, self.alias()))
        if chat_id in self.over:
            assert outcome is Registered.ENDED
        else:
            assert outcome is not Registered.ENDED
            self.told[chat_id] = key

    async def event(self) -> None:
        """Something happens in a chat, after somebody else's request or without; the push may be late."""
        chat_id = self.chance.choice(self.chats)
        self.newest[chat_id] += self.chance.random() < 0.3
        self.delayed.append((chat_id, self.newest[chat_id], self.desk.now))

    async def deliver(self) -> None:
        if not self.delayed:
            return
        chat_id, key, at = self.delayed.pop(self.chance.randrange(len(self.delayed)))
        said = self.news(chat_id, key, self.alias()).tokens
        leaving = self.chance.random() < 0.2
        await self.desk.store.take_push(
            push(
                chat_id,
                user_id=said.user_id,
                key=said.secure_key,
                alias=said.alias,
                utc_time=at,
                leaving=leaving,
            ),
            now=self.desk.now,
        )
        self.waiting.add(chat_id)
        if chat_id not in self.over and (chat_id not in self.told or self.told[chat_id] < key):
            self.told[chat_id] = key
            for claim, _ in self.out:
                if claim.chat_id == chat_id and self.held.get(chat_id, (0, 0))[0] == claim.claim_id:
                    assert self.desk.store.superseded(claim)

    async def absorb(self) -> None:
        await self.desk.store.absorb(100)
        self.waiting.clear()

    async def claim(self) -> None:
        now = self.desk.now
        free = {
            session.chat_id
            for session in await self.desk.store.sessions(state=SessionState.LIVE)
            if session.due_at <= now
            and session.chat_id not in self.waiting
            and self.held.get(session.chat_id or "", (0, 0))[1] <= now
        }
        limit = self.chance.choice((2, 100))
        claims = await self.desk.claim(limit)
        assert set(named(claims)) <= free
        assert limit < 100 or len(claims) == len(free)
        for claim in claims:
            assert claim.tokens.secure_key == f"{claim.chat_id}-key-{self.told[claim.chat_id]}"
            self.held[claim.chat_id] = (claim.claim_id, now + LEASE)
            self.out.append((claim, now))

    async def settle(self) -> None:
        """Chat Server takes a request now and answers it; it throws nobody out here, but a request
        whose key it has replaced gets no answer."""
        chosen = self.chance.sample(self.out, min(len(self.out), self.chance.choice((1, 3))))
        settlements = []
        for claim, sent_at in chosen:
            self.out.remove((claim, sent_at))
            chat_id = claim.chat_id
            held = self.held.get(chat_id, (0, 0))[0] == claim.claim_id
            if held:
                del self.held[chat_id]
            current = claim.tokens.secure_key == f"{chat_id}-key-{self.newest[chat_id]}"
            verdict = self.chance.choice(
                (Verdict.ANSWERED,) * 6 + (Verdict.RETRY, Verdict.REFUSED, Verdict.RELEASED)
            )
            news = TokenNews()
            if chat_id in self.over or not current:
                verdict = Verdict.RETRY
            elif self.chance.random() < 0.02:
                verdict = Verdict.ENDED
                self.over.add(chat_id)
                self.held.pop(chat_id, None)
                self.taken.pop(chat_id, None)
            elif verdict is Verdict.ANSWERED:
                self.newest[chat_id] += self.chance.random() < 0.3
                self.told[chat_id] = self.newest[chat_id]
                said = self.news(chat_id, self.newest[chat_id], self.alias()).tokens
                news = TokenNews(chat_id, said.user_id, said.secure_key, said.alias)
            settlements.append(
                replace(
                    answered(claim, sent_at=sent_at, settled_at=self.desk.now, news=news), verdict=verdict
                )
            )
        settled = await self.desk.store.settle(settlements)
        assert [each.chat_id for each in settled] == [each.claim.chat_id for each in settlements]

    async def take(self) -> None:
        now, chat_id = self.desk.now, self.chance.choice(self.chats)
        until = now + self.chance.choice((SECOND, MINUTE))
        taken = await self.desk.store.take(chat_id, until=until, now=now)
        if not isinstance(taken, Take):
            return
        assert chat_id not in self.waiting
        assert self.held.get(chat_id, (0, 0))[1] <= now
        assert taken.tokens.secure_key == f"{chat_id}-key-{self.told[chat_id]}"
        self.held[chat_id] = (BY_TAKE, until)
        self.taken[chat_id] = taken

    async def give_back(self) -> None:
        """The application sends its request in time, and puts the reply back; or puts back late what it had."""
        if not self.taken:
            return
        chat_id = self.chance.choice(sorted(self.taken))
        taken, now = self.taken.pop(chat_id), self.desk.now
        lasts = taken.until > now
        if lasts:
            assert self.held.pop(chat_id) == (BY_TAKE, taken.until)
        said = taken.tokens
        if lasts and said.secure_key != f"{chat_id}-key-{self.newest[chat_id]}":
            assert await self.desk.release(taken)  # no answer came
            return
        if lasts:
            self.newest[chat_id] += self.chance.random() < 0.5
            self.told[chat_id] = self.newest[chat_id]
            news = self.news(chat_id, self.newest[chat_id], self.alias()).tokens
            said = replace(said, secure_key=news.secure_key or "", alias=news.alias or "")
        outcome = await self.desk.put_back(taken, said.secure_key, alias=said.alias)
        assert outcome is Registered.UPDATED or (outcome is Registered.KEPT and not lasts)

    async def renew(self) -> None:
        until = self.desk.now + LEASE
        await self.desk.store.renew([claim for claim, _ in self.out], until=until)
        for chat_id, (claim_id, _) in list(self.held.items()):
            if any(claim.claim_id == claim_id and claim.chat_id == chat_id for claim, _ in self.out):
                self.held[chat_id] = (claim_id, until)

    async def make_due(self) -> None:
        chat_id = self.chance.choice(self.chats)
        known = await self.desk.store.get(chat_id)
        made = await self.desk.store.make_due(chat_id, self.chance.choice(list(Reason)), now=self.desk.now)
        assert made == (known is not None and known.state is SessionState.LIVE)

    async def end(self) -> None:
        if self.chance.random() > 0.2:
            return
        chat_id = self.chance.choice(self.chats)
        if chat_id in self.over:
            assert not await self.desk.store.remove(chat_id, now=self.desk.now)
        elif await self.desk.store.remove(chat_id, now=self.desk.now):
            # Its Chat Server goes on; only the app may bring it back.
            await self.absorb()
            self.held.pop(chat_id, None)
            self.taken.pop(chat_id, None)
            self.out = [(claim, at) for claim, at in self.out if claim.chat_id != chat_id]
            self.delayed = [late for late in self.delayed if late[0] != chat_id]
            self.told.pop(chat_id, None)

    async def lose(self) -> None:
        await self.desk.store.begin_restoration(
            alias=self.alias(), server=None, cause=Cause.UNREACHABLE, now=self.desk.now
        )

    async def mark(self) -> None:
        for restoration in await self.desk.store.restorations(limit=1000, unfinished=True):
            if restoration.marking and restoration.cause is not Cause.ANNOUNCED:
                await self.desk.store.mark(restoration.id, limit=2, now=self.desk.now)

    async def house(self) -> None:
        await self.desk.store.finish_announced(now=self.desk.now)
        await self.desk.store.pull_in(now=self.desk.now, spread_ms=SPREAD)

    async def check(self) -> None:
        await self.desk.check()
        for session in await every_session(self.desk.store):
            assert session.chat_id is not None
            assert (session.state is SessionState.ENDED) or session.chat_id not in self.over
            holder = self.held.get(session.chat_id)
            if holder is not None and session.state is SessionState.LIVE:
                assert session.leased_until == holder[1]
            if session.state is SessionState.LIVE and session.chat_id not in self.waiting:
                assert session.secure_key == f"{session.chat_id}-key-{self.told[session.chat_id]}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens_nothing_is_lost_held_twice_or_given_an_old_key(
    store: Store, seed: int
) -> None:
    walk = Walk(store, seed)
    for _ in range(120):
        await walk.step()
        await walk.check()


# -- an old copy -------------------------------------------------------------------------------------


async def test_distrusted_sessions_are_kept_and_not_given_until_their_tokens_are_told(desk: Desk) -> None:
    await desk.register(registration("chat-1"), registration("chat-2"), spread_ms=0)
    await desk.store.take_push(push("chat-2"), now=NOON + 100)
    assert await desk.store.distrust(before=NOON + 50, dry_run=True) == 2
    assert await desk.store.distrust(before=NOON + 50) == 1
    assert [claim.chat_id for claim in await desk.claim(10)] == ["chat-2"]
    await desk.store.take_push(complete_push("chat-1"), now=NOON + 200)
    await desk.store.absorb(10)
    assert await desk.store.distrust(before=NOON + 50) == 0


async def test_a_distrusted_key_is_believed_from_a_push_and_not_from_a_registration(desk: Desk) -> None:
    """The application may repeat what it registered at first, and a wrong key throws the customer out."""
    first = registration("chat-1")
    await desk.register(first, spread_ms=0)
    desk.later(SECOND)
    assert await desk.store.distrust(before=desk.now) == 1
    assert await desk.register(first, spread_ms=0) == [Registered.KEPT]
    assert await desk.claim(10) == []
    desk.later(SECOND)
    key = first.tokens.secure_key
    await desk.push(push("chat-1", key=key, alias="117", user_id="user-of-chat-1", utc_time=desk.now))
    assert [claim.tokens.secure_key for claim in await desk.claim(10)] == [key]


async def test_a_distrusted_key_does_not_come_back_with_a_push_that_waited(desk: Desk) -> None:
    await desk.live("chat-1", "chat-2")
    many = [push("chat-1") for _ in range(2_000)]  # none has an effect that is worth telling
    await asyncio.gather(*(desk.store.take_push(each, now=desk.now) for each in many))
    await desk.store.take_push(complete_push("chat-2"), now=desk.now)
    desk.later(SECOND)
    assert await desk.store.distrust(before=desk.now) == 2
    assert await desk.push() == []
    assert await desk.key("chat-2") is None


async def test_a_distrusted_session_is_live_with_a_newer_key(desk: Desk) -> None:
    await desk.register(registration("chat-1"), spread_ms=0)
    desk.later(SECOND)
    await desk.store.distrust(before=desk.now)
    assert await desk.register(registration("chat-1", key="newer"), spread_ms=0) == [Registered.COMPLETED]


async def test_a_session_that_lacks_a_token_is_not_completed_with_distrusted_ones(desk: Desk) -> None:
    await desk.push(push("chat-1", key="key-1", user_id="user-of-chat-1"))
    assert await desk.store.distrust(before=desk.now + 1) == 0
    desk.later(SECOND)
    await desk.push(push("chat-1", alias="117"))
    assert await desk.claim(10) == []
    await desk.push(push("chat-1", key="key-2", user_id="user-of-chat-1"))
    assert [claim.tokens.secure_key for claim in await desk.claim(10)] == ["key-2"]


async def test_a_restoration_that_distrust_finishes_did_not_end_before_it_began(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    desk.later(MINUTE)
    begun = await desk.lose()
    await desk.store.distrust(before=desk.now - SECOND)
    [over] = await desk.store.restorations()
    assert (over.id, over.finished_at, over.refused) == (begun.id, over.started_at, 1)


# -- a store that nobody shares -----------------------------------------------------------------------


async def test_a_store_that_nobody_shares_leaves_clock_rate_and_duties_to_its_process(desk: Desk) -> None:
    clock = SystemClock()
    if desk.store.clock(clock) is not clock:
        assert await desk.store.turns(3, rate=55), "whoever may share it takes turns"
        return
    assert await desk.store.turns(3, rate=55) is None
    assert await desk.store.duty("purge", seconds=60)
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    assert await desk.store.confirm(await desk.claim()) == frozenset()


ITS_OWN = {"bell", "epoch", "told_kinds"}
"""What each store that keeps events has for itself."""

FOR_SEVERAL = {"clock", "confirm", "declare", "duty", "nodes", "turns", "views"}

NEED_NOT = {"accept", "check", "depth", "migrate", "remark", "replaced"} | FOR_SEVERAL | ITS_OWN
"""What a store may leave to the contract's own defaults."""


async def test_a_store_has_every_part_of_the_contract(store: Store) -> None:
    """One that is a subclass inherits the parts that it lacks, and these do nothing."""
    parts = {name for name in vars(Store) if not name.startswith("_")} - NEED_NOT
    assert len(parts) > 25
    lacks = {name for name in parts if getattr_static(type(store), name) is getattr_static(Store, name)}
    assert not lacks
    assert vars(store).keys() >= ITS_OWN
