"""Short ways to say what happens to a store, and what must hold of it at any time."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from asyncchatd.model.data import (
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
from asyncchatd.model.transcript import StoredEvent
from asyncchatd.model.values import replace
from asyncchatd.stores import Store
from asyncchatd.stores.answers import Absorbed, NotTaken, Registered, Take
from asyncchatd.stores.rules import EVERY_REASON
from asyncchatd.wire.push import Push

NOON = 1_700_000_000_000
SECOND = 1_000
MINUTE = 60 * SECOND
SPREAD = 30 * MINUTE
LEASE = 15 * SECOND


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
        """Sessions registered one second after the other, that have just been pinged and answered."""
        for chat_id in chat_ids:
            self.later(SECOND)
            await self.register(registration(chat_id, alias=alias))
            await self.store.make_due(chat_id, Reason.ACKNOWLEDGE, now=self.now)
        claims = await self.claim()
        assert {claim.chat_id for claim in claims} == set(chat_ids)
        await self.answer(*claims)

    async def push(self, *pushes: Push, listening: Collection[str] = ()) -> list[Absorbed]:
        """Pushes that come in and take effect."""
        for each in pushes:
            await self.store.take_push(each, now=self.now)
        return await self.store.absorb(1000, now=self.now, listening=listening)

    async def ask(self, consumer: str, chat_id: str = "chat-1") -> StoredEvent:
        """The event by which one who fetches is asked to acknowledge a push."""
        await self.push(push(chat_id), listening=[consumer])
        portion = await self.store.fetch(consumer, after=None, limit=1000, now=self.now)
        event = portion.events[-1]
        assert event.id in (await self.store.hand_out(consumer, [event], now=self.now)).asked
        return event

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
            [answered(claim, sent_at=sent_at, settled_at=settled_at, news=news) for claim in claims]
        )

    async def settle(
        self,
        claim: Claim,
        verdict: Verdict,
        *,
        trouble: str | None = None,
        detail: str | None = None,
        refused: bool = False,
        pause_ms: float = MINUTE,
    ) -> Settled:
        """Any other end of a ping; it is to be due again in a minute."""
        settlement = Settlement(
            claim,
            verdict,
            self.now + pause_ms,
            sent_at=self.now,
            settled_at=self.now,
            trouble=trouble,
            detail=detail,
            refused=refused,
        )
        [settled] = await self.store.settle([settlement])
        return settled

    async def refuse(self, verdict: Verdict = Verdict.RETRY, *, pause_ms: float = MINUTE) -> Claim:
        """GMS refuses the one session that is due; the claim as it was."""
        claim = await self.claim_one()
        await self.settle(
            claim, verdict, trouble="status_code_2", detail="error 34", refused=True, pause_ms=pause_ms
        )
        return claim

    async def take(self, chat_id: str = "chat-1", *, last: Ms = 10 * SECOND) -> Take:
        """A take that is had."""
        taken = await self.store.take(chat_id, until=self.now + last, now=self.now)
        assert isinstance(taken, Take), taken
        return taken

    async def not_taken(self, chat_id: str = "chat-1") -> NotTaken:
        """Why a take cannot be had."""
        why = await self.store.take(chat_id, until=self.now + SECOND, now=self.now)
        assert isinstance(why, NotTaken)
        return why

    async def release(self, take: Take) -> bool:
        return await self.store.release(take.tokens.chat_id, take.take_id, now=self.now)

    async def put_back(self, take: Take, key: str | None = None, **more: Any) -> Registered:
        """What GMS replied to a request that was sent with the tokens of a take."""
        chat_id = take.tokens.chat_id
        told = replace(registration(chat_id, key=key or take.tokens.secure_key, **more), take_id=take.take_id)
        [done] = await self.register(told)
        return done

    async def session(self, chat_id: str = "chat-1") -> Session:
        session = await self.store.get(chat_id)
        assert session is not None
        return session

    async def due(self, chat_id: str = "chat-1") -> tuple[Reason, float]:
        session = await self.session(chat_id)
        return session.reason, session.due_at

    async def key(self, chat_id: str = "chat-1") -> str | None:
        return (await self.session(chat_id)).secure_key

    async def lose(self, alias: str = "117", *, cause: Cause = Cause.UNREACHABLE) -> Restoration:
        """A Chat Server is lost, and all of its sessions are marked."""
        begun = await self.store.begin_restoration(alias=alias, server="chat", cause=cause, now=self.now)
        while await self.store.mark(begun.id, limit=3, now=self.now):
            await self.check()
        self.later(1)  # they fall due one after the other, all within this millisecond
        return await self.restoration(begun.id)

    async def restoration(self, number: int) -> Restoration:
        return next(each for each in await self.store.restorations() if each.id == number)

    async def counts(self, number: int) -> dict[str, int]:
        """The counts of a restoration that are not 0."""
        one = await self.restoration(number)
        names = ("sessions", "restored", "ended", "refused", "moved", "waiting")
        return {name: getattr(one, name) for name in names if getattr(one, name)}

    async def check(self) -> None:
        """What must hold at any time."""
        sessions = await every_session(self.store)
        for session in sessions:
            _check_session(session)
        for restoration in await self.store.restorations(limit=1000):
            waiting = sum(session.restoration == restoration.id for session in sessions)
            assert restoration.waiting == waiting, restoration
            over = waiting == 0 and not (restoration.marking and restoration.cause is not Cause.ANNOUNCED)
            assert (restoration.finished_at is not None) == over, restoration
        counts = await self.store.counts(now=self.now)
        live = [session for session in sessions if session.state is SessionState.LIVE]
        assert counts.states[SessionState.LIVE] == len(live)
        assert counts.states[SessionState.ENDED] == sum(s.state is SessionState.ENDED for s in sessions)
        for reason in Reason:
            due = sum(session.reason is reason and session.due_at <= self.now for session in live)
            assert counts.due[reason] == due


def _check_session(session: Session) -> None:
    if session.state is SessionState.LIVE:
        assert None not in (session.chat_id, session.user_id, session.secure_key, session.alias)
        assert session.due_at > 0
        return
    assert session.leased_until == 0
    assert session.restoration is None
    if session.state is SessionState.ENDED:
        assert session.secure_key is None
        assert session.ended_at is not None
        assert session.end_cause is not None


PAGE = 100


async def every_session(store: Store) -> list[Session]:
    """All sessions, page by page; those known by their device alone come last."""
    found: list[Session] = []
    after: str | None = None
    while True:
        page = await store.sessions(limit=PAGE, after=after)
        found += page
        after = page[-1].chat_id if len(page) == PAGE else None
        if after is None:
            return found


def answered(
    claim: Claim,
    *,
    sent_at: Ms,
    settled_at: Ms,
    news: TokenNews | None = None,
    next_position: int | None = None,
    seen_utc: Ms | None = None,
) -> Settlement:
    return Settlement(
        claim,
        Verdict.ANSWERED,
        settled_at + SPREAD,
        sent_at=sent_at,
        settled_at=settled_at,
        news=news or TokenNews(),
        next_position=next_position,
        seen_utc=seen_utc,
    )


def registration(
    chat_id: str = "chat-1",
    *,
    key: str | None = None,
    alias: str = "117",
    device_id: str | None = None,
    next_position: int | None = 3,
) -> Registration:
    """As the custom-chat-app sends it; user, key and device belong to their chat alone."""
    tokens = Tokens(chat_id, f"user-of-{chat_id}", key or f"key-of-{chat_id}", alias)
    return Registration(tokens, "support", device_id or f"device-of-{chat_id}", next_position)


_bodies = itertools.count()


def push(
    chat_id: str | None = "chat-1",
    *,
    key: str | None = None,
    user_id: str | None = None,
    alias: str | None = None,
    device_id: str | None = None,
    utc_time: Ms | None = None,
    position: int | None = None,
    next_position: int | None = None,
    leaving: bool = False,
    resend: bool = False,
    digest: str | None = None,
) -> Push:
    """A push as `read_push` gives it; each has a body of its own unless `digest` says otherwise."""
    return Push(
        device_id=device_id or (None if chat_id is None else f"device-of-{chat_id}"),
        news=TokenNews(chat_id, user_id, key, alias),
        events=(),
        next_position=next_position,
        leaving=leaving,
        resend=resend,
        utc_time=utc_time,
        position=position,
        text=False,
        conflicts=(),
        digest=digest or f"body-{next(_bodies)}",
    )


def complete_push(chat_id: str = "chat-1", *, alias: str = "117", leaving: bool = False) -> Push:
    """A push that carries all tokens of its chat."""
    return push(chat_id, user_id=f"user-of-{chat_id}", key=f"key-of-{chat_id}", alias=alias, leaving=leaving)
