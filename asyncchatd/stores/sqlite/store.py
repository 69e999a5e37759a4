"""The SQLite store: the contract, call by call.

What each call does inside its transaction stands in `transactions/`; what is open, and how long, in `file/opening.py`;
the calls that leave a session to the custom-chat-app in `lending.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence, Set
from functools import partial
from pathlib import Path

from asyncchatd.model import (
    Batch,
    Cause,
    ChatServer,
    Claim,
    Consumer,
    ConsumerState,
    EventKind,
    Finding,
    Loss,
    Ms,
    Portion,
    Reason,
    Registration,
    Restoration,
    Session,
    SessionState,
    Settled,
    Settlement,
    StoredEvent,
    TokenNews,
    Verdict,
    replace,
)
from asyncchatd.stores.answers import (
    Absorbed,
    Bounds,
    Counts,
    Kept,
    Noted,
    NotTaken,
    Registered,
    Taken,
    Trimmed,
)
from asyncchatd.stores.bell import Bell
from asyncchatd.stores.errors import ConsumerPushed, ConsumerUnknown, StoreError
from asyncchatd.stores.held import Told
from asyncchatd.stores.rules import EVERY_REASON, is_repeatable
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file.writer import Connection, Writer
from asyncchatd.stores.sqlite.lending import LendingStore
from asyncchatd.stores.sqlite.transactions import (
    asks,
    deliveries,
    events,
    pushes,
    restorations,
    session_rows,
    sessions,
    takes,
    trimming,
    work,
)
from asyncchatd.stores.sqlite.transactions.schema import migrate
from asyncchatd.wire import Push

ABSORB_CHUNK = 1_000

PULL_IN_CHUNK = 5_000

_STATES_COUNTED = (
    f"SELECT {session_rows.LIVE}, count(*) FROM session INDEXED BY session_due WHERE state={session_rows.LIVE}"
    " UNION ALL"
    f" SELECT state, count(*) FROM session INDEXED BY session_over WHERE state<>{session_rows.LIVE} GROUP BY state"
)
"""By the indices alone: somebody looks every second, and a scan of the rows takes several times as long."""

_OF_GATEWAY_COUNTED = (
    "SELECT count(*) FROM session INDEXED BY session_of_gateway"
    f" WHERE state={session_rows.LIVE} AND of_gateway=1"
)


class SqliteStore(LendingStore):
    """The store of `sqlite:///relative/path.db` or `sqlite:////absolute/path.db`. Keeps the contract of
    `asyncchatd.stores.base.Store`."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        super().__init__(url, directory=directory, queue=queue, keys=keys)
        self._journal = True
        self._pushes = 0
        self._marking = asyncio.Lock()
        self._shown: frozenset[EventKind] = frozenset()
        self._enrolled_at: Ms = 0
        self.told_kinds: frozenset[EventKind] = frozenset()
        self.bell = Bell()

    # -- sessions --------------------------------------------------------------------------------

    async def register(
        self, registrations: Sequence[Registration], *, now: Ms, spread_ms: float
    ) -> list[Registered]:
        for registration in registrations:
            said = registration.tokens
            news = TokenNews(said.chat_id, said.user_id, said.secure_key, said.alias)
            self._held.hear(Told(said.chat_id, registration.device_id, news))
        told = EventKind.CHAT in self.told_kinds
        done = await self._writing(
            lambda db: sessions.register(db, registrations, now, spread_ms, told=told), large=True
        )
        if Registered.OVER in done:
            self.bell.ring()
        return done

    async def get(self, chat_id: str) -> Session | None:
        rows = await self._reading(
            lambda db: session_rows.sessions_of(
                db, f"SELECT {session_rows.SESSION} FROM session WHERE chat_id=?", chat_id
            )
        )
        return rows[0] if rows else None

    async def sessions(
        self,
        *,
        alias: str | None = None,
        state: SessionState | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Session]:
        conditions = {
            "alias=?": alias,
            "state=?": None if state is None else session_rows.STATE_NUMBERS[state],
            "chat_id>?": after or "",
        }
        wanted = {clause: value for clause, value in conditions.items() if value is not None}

        def find(db: Db) -> list[Session]:
            query = f"SELECT {session_rows.SESSION} FROM session WHERE {' AND '.join(wanted)} ORDER BY chat_id LIMIT ?"
            rows = session_rows.sessions_of(db, query, *wanted.values(), limit)
            if len(rows) < limit and state in (None, SessionState.INCOMPLETE) and alias is None:
                # Two statements, because an order that puts NULL last could not use the index.
                query = (
                    f"SELECT {session_rows.SESSION} FROM session WHERE chat_id IS NULL ORDER BY id LIMIT ?"
                )
                rows += session_rows.sessions_of(db, query, limit - len(rows))
            return rows

        return await self._reading(find)

    async def remove(self, chat_id: str, *, now: Ms) -> bool:
        return await self._writing(lambda db: sessions.remove(db, chat_id, now))

    async def make_due(self, chat_id: str, reason: Reason, *, now: Ms) -> bool:
        return await self._writing(lambda db: sessions.make_due(db, chat_id, reason, now))

    async def gateway_keys(self, ids: Sequence[str]) -> bool:
        return await self._writing(lambda db: sessions.gateway_keys(db, ids))

    async def seize(self, chat_id: str, *, now: Ms, lease_ms: int) -> Claim | NotTaken:
        if self._held.holds(chat_id):
            return NotTaken.IN_FLIGHT
        why = await self._reading(lambda db: takes.obstacle(db, chat_id, now))
        if why is not None:
            return why
        with self._held.claiming():
            seized = await self._writing(lambda db: work.seize(db, chat_id, now, lease_ms), durable=False)
            if isinstance(seized, NotTaken):
                return seized
            self._held.hold([seized])
        return seized[0]

    async def counts(self, *, now: Ms) -> Counts:
        def count(db: Db) -> Counts:
            states = dict(db.execute(_STATES_COUNTED).fetchall())
            due = {
                reason: db.execute(
                    f"SELECT count(*) FROM session INDEXED BY session_due WHERE state={session_rows.LIVE}"
                    " AND reason=? AND due_at<=?",
                    (reason, now),
                ).fetchone()[0]
                for reason in Reason
            }
            return Counts(
                {state: states.get(number, 0) for number, state in session_rows.STATES.items()},
                due,
                len(self._held),
                db.execute(_OF_GATEWAY_COUNTED).fetchone()[0],
            )

        return await self._reading(count)

    async def counts_by_alias(self) -> Mapping[str, int]:
        return await self._reading(
            lambda db: dict(
                db.execute(
                    f"SELECT alias, count(*) FROM session INDEXED BY session_alias WHERE state={session_rows.LIVE}"
                    " GROUP BY alias"
                ).fetchall()
            )
        )

    async def purge(self, *, ended_before: Ms, limit: int) -> int:
        return await self._writing(lambda db: sessions.purge(db, ended_before, limit))

    async def pull_in(self, *, now: Ms, spread_ms: float) -> int:
        changed = 0
        while True:
            chunk = await self._writing(lambda db: sessions.pull_in(db, now, spread_ms, PULL_IN_CHUNK))
            changed += chunk
            if chunk < PULL_IN_CHUNK:
                return changed

    async def distrust(self, *, before: Ms, dry_run: bool = False) -> int:
        if not dry_run:
            await self._absorb_all()  # what waits there is as old
        copied_at = self._copied_at
        if dry_run and copied_at is not None:  # nothing was done: whoever opens it next is told
            await self._writing(lambda db: db.execute("UPDATE file SET copied_at=?", (copied_at,)))
        count = await self._writing(lambda db: sessions.distrust(db, before, dry_run))
        if not dry_run:
            self.epoch = await self._writing(lambda db: events.epoch(db, anew=True))
        return count

    async def _absorb_all(self) -> None:
        """Let every push that waits take effect."""
        empty = False
        while not empty:
            _, empty = await self._writing(lambda db: pushes.absorb(db, ABSORB_CHUNK))

    # -- pushes ----------------------------------------------------------------------------------

    async def take_push(self, push: Push, *, now: Ms) -> Taken:
        if self._write is None:
            raise StoreError("the store is not open")
        taken = self._write.gather(pushes.take_pushes, (push, now))
        self._journal = True
        self._pushes += 1
        self._held.hear(Told(push.news.chat_id, push.device_id, push.news, pushed=True))
        return await taken

    async def absorb(self, limit: int, *, now: Ms = 0, listening: Collection[str] = ()) -> list[Absorbed]:
        if not self._journal:
            return []
        before = self._pushes
        asking = self._asking(listening, now)
        effects, empty = await self._writing(lambda db: pushes.absorb(db, limit, asking), durable=False)
        if self.told_kinds & {EventKind.NOTIFIED, EventKind.TOKENS}:
            self.bell.ring()
        if empty and before == self._pushes:
            self._journal = False
        return effects

    def waiting(self) -> bool:
        return self._journal

    # -- the transcript and those who are told -------------------------------------------------------

    async def enrol(
        self, consumers: Sequence[Consumer], *, now: Ms, shown: Set[EventKind] = frozenset()
    ) -> None:
        await self._writing(lambda db: deliveries.enrol(db, consumers, shown, now))
        self._enrolled_at = now
        self._told = {consumer.name: consumer for consumer in consumers}
        self._shown = frozenset(shown)
        self.told_kinds = self._shown.union(*(consumer.kinds for consumer in consumers))

    async def _begin(self, writing: Connection) -> None:
        await super()._begin(writing)
        if self.told_kinds:  # another file lies there than before
            told = list(self._told.values())
            await writing.visit(lambda db: deliveries.enrol(db, told, self._shown, self._enrolled_at))

    async def fetch(
        self, consumer: str, *, after: int | None, limit: int, now: Ms, beyond: int | None = None
    ) -> Portion:
        who = self._consumer(consumer)
        if who.pushes:
            raise ConsumerPushed(consumer)
        return await self._writing(lambda db: deliveries.fetch(db, who, after, limit, now, beyond))

    async def news(self, after: int, *, limit: int) -> tuple[Sequence[StoredEvent], int]:
        return await self._reading(lambda db: events.news(db, after, limit))

    async def transcript(self, chat_id: str, *, limit: int) -> Sequence[StoredEvent]:
        return await self._reading(lambda db: events.transcript(db, chat_id, limit))

    async def batches(
        self, consumer: str, *, now: Ms, limit: int, busy: Collection[int], most_events: int, most_bytes: int
    ) -> list[Batch]:
        who = self._consumer(consumer)
        while await self._writing(lambda db: deliveries.share_out(db, who), durable=False):
            pass
        return await self._writing(
            lambda db: deliveries.batches(db, who, now, limit, busy, most_events, most_bytes)
        )

    async def delivered(self, batches: Sequence[Batch], *, now: Ms) -> None:
        for name in {batch.consumer for batch in batches}:
            who = self._consumer(name)
            done = [batch for batch in batches if batch.consumer == name]
            await self._writing(
                partial(deliveries.delivered, consumer=who, done=done, now=now), durable=False
            )

    async def undelivered(
        self, batch: Batch, *, due_at: Ms, failing_since: Ms | None, parked: bool = False
    ) -> None:
        who = self._consumer(batch.consumer)
        await self._writing(
            lambda db: deliveries.undelivered(db, who, batch, due_at, failing_since, parked), durable=False
        )

    async def next_batch(self, consumer: str, *, busy: Collection[int] = ()) -> Ms | None:
        return await self._reading(lambda db: deliveries.next_due(db, consumer, busy))

    async def consumers(self) -> list[ConsumerState]:
        return [
            replace(state, pushes=known.pushes, acknowledges=known.acknowledges_ms is not None)
            if (known := self._told.get(state.name)) is not None
            else state
            for state in await self._reading(deliveries.states)
        ]

    async def pause(self, consumer: str, *, paused: bool) -> bool:
        done = await self._writing(lambda db: deliveries.pause(db, consumer, paused))
        self.bell.ring()
        return done

    async def replay(self, consumer: str, *, parked: bool) -> int:
        act = deliveries.replay if parked else deliveries.hurry
        count = await self._writing(lambda db: act(db, consumer))
        self.bell.ring()
        return count

    async def kept(self) -> Kept:
        return await self._reading(events.kept)

    async def trim(self, bounds: Bounds, *, now: Ms) -> Trimmed:
        gone, trimmed = await self._writing(lambda db: trimming.trim(db, bounds, now), durable=False)
        if gone or trimmed.dropped or trimmed.more:  # gaps may have been written
            self.bell.ring()
        return trimmed

    def _consumer(self, name: str) -> Consumer:
        try:
            return self._told[name]
        except KeyError:
            raise ConsumerUnknown(name) from None

    # -- work ------------------------------------------------------------------------------------

    async def claim(
        self, *, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason] = EVERY_REASON
    ) -> list[Claim]:
        journal = self._journal
        with self._held.claiming():
            claims = await self._writing(
                lambda db: work.claim(db, now, limit, lease_ms, reasons, journal), durable=False
            )
            self._held.hold(claims)
        return [claim for claim, _ in claims]

    async def renew(self, claims: Sequence[Claim], *, until: Ms) -> None:
        if claims:
            await self._writing(lambda db: work.renew(db, claims, until), durable=False)

    def superseded(self, claim: Claim) -> bool:
        return self._held.superseded(claim)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        with_news = (Verdict.ANSWERED, Verdict.LEARNED, Verdict.CALLED)
        for each in settlements:
            if each.verdict in with_news:
                # A lease was lost, and somebody holds the session with the tokens before these.
                self._held.hear(Told(each.claim.chat_id, None, each.news))
        durable = not all(is_repeatable(each) for each in settlements)
        settled, told = await self._writing(
            lambda db: work.settle(db, settlements), durable=durable, precious=True
        )
        self._held.let_go(settlements)
        if told:
            self.bell.ring()
        return settled

    async def next_due(self, *, now: Ms, reasons: Sequence[Reason] = EVERY_REASON) -> float | None:
        def find(db: Db) -> float | None:
            first = [
                db.execute(
                    f"SELECT min(due_at) FROM session INDEXED BY session_due WHERE state={session_rows.LIVE}"
                    " AND reason=? AND due_at>?",
                    (reason, now),
                ).fetchone()[0]
                for reason in reasons
            ]
            first += [takes.next_end(db, now), asks.next_end(db, now)]
            return min((due for due in first if due is not None), default=None)

        return await self._reading(find)

    # -- Chat Servers and restorations -------------------------------------------------------------

    async def servers(self) -> list[ChatServer]:
        return await self._reading(restorations.servers)

    async def note(self, server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        begun = await self._writing(lambda db: restorations.note(db, server, epoch, losses, now))
        if begun is None:
            return None
        started = (
            restorations.begun_of(number, loss.alias, server.name, loss.cause, now)
            for number, loss in zip(begun, losses, strict=True)
        )
        return Noted(epoch + 1, tuple(started))

    async def begin_restoration(
        self, *, alias: str, server: str | None, cause: Cause, now: Ms
    ) -> Restoration:
        number = await self._writing(lambda db: restorations.begin_restoration(db, alias, server, cause, now))
        return restorations.begun_of(number, alias, server, cause, now)

    async def mark(self, restoration: int, *, limit: int, now: Ms) -> bool:
        # One portion at a time, or pushes would wait for those of several lost servers together. Without its
        # own fsync: the record of the restoration is durable, and says how far this went.
        async with self._marking:
            more = await self._writing(
                lambda db: restorations.mark(db, restoration, limit, now), durable=False
            )
        if EventKind.LOST in self.told_kinds:
            self.bell.ring()
        return more

    async def restorations(self, *, limit: int = 50, unfinished: bool = False) -> list[Restoration]:
        where = f"WHERE {restorations.OPEN}" if unfinished else ""
        rows = await self._reading(
            lambda db: db.execute(
                f"SELECT {restorations.RESTORATION} FROM restoration {where} ORDER BY id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        )
        return [restorations.restoration_of(row) for row in rows]

    async def newly_finished(self) -> list[Restoration]:
        untold = f"SELECT EXISTS (SELECT 1 FROM restoration WHERE {restorations.UNTOLD})"
        if not await self._reading(lambda db: db.execute(untold).fetchone()[0]):
            return []  # as nearly always, and without a turn at the disk
        return [restorations.restoration_of(row) for row in await self._writing(restorations.newly_finished)]

    async def finish_announced(self, *, now: Ms) -> list[int]:
        return await self._writing(lambda db: restorations.finish_announced(db, now))


class MemoryStore(SqliteStore):
    """`memory:`: the same transactions on a database that is gone when it is closed. For tests and
    trials; a restart forgets every session."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        # Without `keys`: nothing comes to rest anywhere.
        super().__init__("sqlite:///memory", directory=directory, queue=queue)

    async def open(self) -> None:
        writing = await self._connect()
        await writing.visit(lambda db: migrate(db, "memory:"))
        self._read = writing
        self._write = Writer(writing, queue=self._queue, trouble=self._trouble)
        self.epoch = await writing.visit(lambda db: events.epoch(db, anew=False))

    async def check(self, answers: Callable[[], Awaitable[bool]]) -> AsyncIterator[Finding]:
        return
        yield  # there is nothing to look at

    def _database(self) -> str:
        return ":memory:"
