"""What the tests of the stores share: every store there is, and short ways to say what happens."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from asyncchatd.model import (
    Cause,
    Claim,
    Ms,
    Reason,
    Registration,
    Restoration,
    Session,
    SessionState,
    Settled,
    Settlement,
    TokenNews,
    Tokens,
    Verdict,
)
from asyncchatd.stores import make_store
from asyncchatd.stores.base import EVERY_REASON, Absorbed, Registered, Store
from asyncchatd.wire.push import Push

NOON = 1_700_000_000_000
SECOND = 1_000
MINUTE = 60 * SECOND
SPREAD = 30 * MINUTE
LEASE = 15 * SECOND

EVERY_STORE = {"sqlite": "sqlite:///chats.db", "memory": "memory:"}
"""URLs of the stores that must keep the contract, relative to an empty directory."""


@pytest.fixture(params=EVERY_STORE)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = make_store(EVERY_STORE[request.param], directory=tmp_path)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def desk(store: Store) -> AsyncIterator[Desk]:
    """The store with short ways to use it. Afterwards everything in it must fit together."""
    at = Desk(store)
    yield at
    await at.check()


@dataclass
class Desk:
    """A store, and the time."""

    store: Store
    now: Ms = NOON

    def later(self, milliseconds: float) -> Ms:
        self.now += round(milliseconds)
        return self.now

    async def register(self, *registrations: Registration, spread_ms: float = SPREAD) -> list[Registered]:
        return await self.store.register(registrations, now=self.now, spread_ms=spread_ms)

    async def live(self, *chat_ids: str, alias: str = "117") -> None:
        """Sessions that are registered one second after the other and not due."""
        for chat_id in chat_ids:
            self.later(SECOND)
            await self.register(registration(chat_id, alias=alias))
        await self.rest(*chat_ids)

    async def rest(self, *chat_ids: str) -> None:
        """Ping these and have them answered: due again in half an hour."""
        for chat_id in chat_ids:
            await self.store.make_due(chat_id, Reason.ACKNOWLEDGE, now=self.now)
        claims = await self.claim()
        assert {claim.chat_id for claim in claims} == set(chat_ids)
        await self.answer(*claims)

    async def push(self, *pushes: Push) -> list[Absorbed]:
        """Pushes that come in and take effect."""
        for push in pushes:
            await self.store.take_push(push, now=self.now)
        return await self.store.absorb(1000)

    async def claim(
        self, limit: int = 1000, *, lease_ms: int = LEASE, reasons: Sequence[Reason] = EVERY_REASON
    ) -> list[Claim]:
        return await self.store.claim(now=self.now, limit=limit, lease_ms=lease_ms, reasons=reasons)

    async def claim_one(self) -> Claim:
        [claim] = await self.claim()
        return claim

    async def answer(self, *claims: Claim, news: TokenNews | None = None) -> list[Settled]:
        """GMS answers these with statusCode 0, one second after they were sent."""
        sent_at, settled_at = self.now, self.later(SECOND)
        return await self.store.settle(
            [
                Settlement(
                    claim,
                    Verdict.ANSWERED,
                    settled_at + SPREAD,
                    sent_at=sent_at,
                    settled_at=settled_at,
                    news=news or TokenNews(),
                )
                for claim in claims
            ]
        )

    async def settle(self, claim: Claim, verdict: Verdict, due_in: float = MINUTE) -> Settled:
        """Any other end of a ping."""
        [settled] = await self.store.settle(
            [
                Settlement(
                    claim,
                    verdict,
                    self.now + due_in,
                    sent_at=self.now,
                    settled_at=self.now,
                    trouble="http_503" if verdict is Verdict.RETRY else None,
                )
            ]
        )
        return settled

    async def session(self, chat_id: str = "chat-1") -> Session:
        session = await self.store.get(chat_id)
        assert session is not None
        return session

    async def lose(self, alias: str = "117", *, cause: Cause = Cause.UNREACHABLE) -> Restoration:
        """A Chat Server is lost and all its sessions are marked."""
        begun = await self.store.begin_restoration(alias=alias, server="chat", cause=cause, now=self.now)
        while await self.store.mark(begun.id, limit=3, now=self.now):
            await self.check()
        return await self.restoration(begun.id)

    async def restoration(self, number: int) -> Restoration:
        return next(each for each in await self.store.restorations() if each.id == number)

    async def check(self) -> None:
        """What must hold at any time."""
        sessions = [each async for each in every_session(self.store)]
        for session in sessions:
            if session.state is SessionState.ENDED:
                assert session.ended_at is not None
                assert session.end_cause is not None
                assert (session.secure_key, session.leased_until, session.restoration) == (None, 0, None)
            elif session.state is SessionState.LIVE:
                assert None not in (session.chat_id, session.user_id, session.secure_key, session.alias)
                assert session.due_at > 0
            else:
                assert (session.leased_until, session.restoration) == (0, None)
        for restoration in await self.store.restorations(limit=1000):
            waiting = sum(session.restoration == restoration.id for session in sessions)
            assert restoration.waiting == waiting
            over = restoration.waiting == 0 and not restoration.marking
            assert (restoration.finished_at is not None) == over
        counts = await self.store.counts(now=self.now)
        for state in SessionState:
            # One session of which only the device is known has no chat id to be listed under.
            listed = sum(session.state is state for session in sessions)
            assert counts.states[state] >= listed
            assert state is SessionState.INCOMPLETE or counts.states[state] == listed
        for reason in Reason:
            assert counts.due[reason] == sum(
                session.state is SessionState.LIVE
                and session.reason is reason
                and session.due_at <= self.now
                for session in sessions
            )


async def every_session(store: Store) -> AsyncIterator[Session]:
    after: str | None = None
    while page := await store.sessions(limit=500, after=after):
        for session in page:
            yield session
        after = page[-1].chat_id


def registration(
    chat_id: str = "chat-1",
    *,
    key: str | None = None,
    alias: str = "117",
    device_id: str | None = None,
    next_position: int | None = 3,
) -> Registration:
    """As the custom-chat-app sends it; keys and devices belong to their chat alone."""
    return Registration(
        Tokens(chat_id, f"user-of-{chat_id}", key or f"key-of-{chat_id}", alias),
        "support",
        device_id or f"device-of-{chat_id}",
        next_position,
    )


_digests = itertools.count()


def push(
    chat_id: str | None = "chat-1",
    *,
    key: str | None = None,
    user_id: str | None = None,
    alias: str | None = None,
    device_id: str | None = None,
    utc_time: Ms | None = None,
    position: int | None = None,
    leaving: bool = False,
    resend: bool = False,
    digest: str | None = None,
) -> Push:
    """A push as `read_push` gives it; each one of another body unless `digest` says otherwise."""
    return Push(
        device_id=device_id or (None if chat_id is None else f"device-of-{chat_id}"),
        news=TokenNews(chat_id, user_id, key, alias),
        events=(),
        next_position=None,
        leaving=leaving,
        resend=resend,
        utc_time=utc_time,
        position=position,
        text=False,
        conflicts=(),
        digest=digest or f"digest-{next(_digests)}",
    )


def complete_push(chat_id: str, make: Callable[..., Push] = push, **said: object) -> Push:
    """A push that carries all tokens."""
    return make(chat_id, **{"user_id": f"user-of-{chat_id}", "key": f"key-of-{chat_id}", "alias": "117"} | said)
