"""The contract every store keeps, and the few words its callers share.

A store holds sessions, Chat Servers and restorations, and with them the work list: a session's
`due_at` and `reason`. What the contract promises:

- **Atomic**: each call happens wholly or not at all, also when the process dies in it.
- **Durable**: when a call that changes something returns, the change survives a power cut. Excepted
  is what would only be done once more: claims, renewed leases, the marking of a restoration's sessions,
  and settlements that neither teach tokens nor end a session. A crash of the process alone loses none of these either.
- **Order**: calls take effect in the order in which they were made.
- **Idempotent** where callers may repeat themselves: registering the same tokens, making due what
  is due, removing what is removed, settling under a lease that was lost.
- **One holder**: between a claim and its settlement (or the end of its lease) nobody else is given
  that session.

Times are passed in, never read from a clock, so that all of this can be tested under a fake one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence, Set
from typing import Protocol

from asyncchatd.model import (
    Batch,
    Cause,
    ChatServer,
    Claim,
    Clock,
    Consumer,
    ConsumerState,
    EventKind,
    Finding,
    HandedOut,
    Loss,
    Ms,
    Node,
    Portion,
    Reason,
    Registration,
    Restoration,
    Session,
    SessionState,
    Settled,
    Settlement,
    StoredEvent,
    Unacknowledged,
    Views,
)
from asyncchatd.stores.answers import (
    Absorbed,
    Bounds,
    Counts,
    Kept,
    Migrated,
    Noted,
    NotTaken,
    RanOut,
    Registered,
    Take,
    Taken,
    Trimmed,
)
from asyncchatd.stores.bell import Bell
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.moving import Carrier
from asyncchatd.stores.rules import EVERY_REASON
from asyncchatd.wire import Push


class Store(Protocol):
    """The contract. The module's text says what holds of every call.

    A store that is a subclass has the defaults of what it does not do, or need not. They are those of a store that one
    process has to itself and that keeps no events.
    """

    async def check(self, answers: Callable[[], Awaitable[bool]]) -> AsyncIterator[Finding]:
        """What can be found out before it is opened, for `asyncchatd check --connect`: whether `open` will work, and
        what an operator should know. Changes nothing. `answers`: whether a daemon of the same configuration runs."""
        return
        yield

    async def open(self) -> None:
        """Make ready: create or migrate the schema, check what is there, and tell the operator in the log what is
        unexpected. Raises `StoreError`."""

    def carrier(self) -> Carrier:
        """The ways in and out of the store while it is not open, for copying it into another one. Raises `StoreError`
        where there are none."""
        raise StoreError("this store cannot be copied, nor another one into it")

    def clock(self, local: Clock) -> Clock:
        """The clock that all who share the store go by, once it is open: the one by which times are passed in. `local`
        is this process' own, and the answer of a store that nobody shares."""
        return local

    async def migrate(self, *, runner: str | None = None, reader: str | None = None) -> Migrated | None:
        """Bring the form of the database up to date, as its owner, and open nothing. `runner`: the user of the database
        as whom asyncchatd runs, who may use what is there and change no table. `reader`: one who may read what is there
        but keys and what customers wrote. `None` where opening does it. Raises `StoreError`."""
        return None

    async def close(self) -> None:
        """Finish what was begun, then release everything. Harmless when repeated."""

    def stuck_for(self) -> float:
        """Seconds since the store last finished a piece of writing while there is some to do; 0 when there
        is none. Beyond all reason it means that the disk, or the store, hangs."""

    async def watch(self) -> None:
        """Runs as long as the store is in use: while nothing can be written, tries whether it can again.
        Raises `StoreDamaged`."""

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written at present, for an operator. `None` when all is well."""

    @property
    def remark(self) -> str | None:
        """What an operator should know of an empty store, in a sentence: that `open` made it where there was nothing,
        which is expected at the first start, and else the sign that the store of before lies elsewhere."""
        return None

    @property
    def replaced(self) -> str | None:
        """What was found in the place of the store of before at a start, an empty or older one for instance, in a
        sentence: until an operator has accepted it, over restarts. `None` when all is as it was left."""
        return None

    async def accept(self) -> bool:
        """An operator takes the store as it is: nothing is `replaced` any more. Whether something was. Raises
        `StoreError`."""
        return False

    @property
    def depth(self) -> int:
        """Pieces of work that wait for the disk; 0 of a store without a queue of its own."""
        return 0

    # -- sessions ------------------------------------------------------------------------------

    async def register(
        self, registrations: Sequence[Registration], *, now: Ms, spread_ms: float
    ) -> list[Registered]:
        """Take sessions over from the custom-chat-app, all in one transaction.

        A new session's first keepalive falls on a random point of the next `spread_ms`, unless a
        push is waiting for it or its Chat Server is known to be gone: then it is due now. So does that
        of one which GMS refused, and which would wait longer. One that names a take ends it, and is judged by
        `tokens.from_take`, also when the take has ended before; so is one that names an event which asked for a
        Refresh, and which it acknowledges as `acknowledge` does. What such a one does not say stays as it was. One that
        says that the chat is over ends the session, if there is one.
        """

    async def get(self, chat_id: str) -> Session | None:
        """One session, ended ones included while they are kept."""

    async def sessions(
        self,
        *,
        alias: str | None = None,
        state: SessionState | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Session]:
        """Sessions in the order of their chat ids, from behind `after`; last those known by their
        device alone."""

    async def remove(self, chat_id: str, *, now: Ms) -> bool:
        """End a session explicitly, and erase its transcript, also of one that has ended. False when there is none that
        had not ended."""

    async def make_due(self, chat_id: str, reason: Reason, *, now: Ms) -> bool:
        """Make one live session due. False when there is none."""

    async def take(self, chat_id: str, *, until: Ms, now: Ms, notified: int | None = None) -> Take | NotTaken:
        """Leave a session to the custom-chat-app, which sends a request of its own: it is not claimed until then, or
        until a registration that names the take, or `release`. What makes it due meanwhile keeps it due, and the end
        makes it due in any case. A take belongs to no process, and is durable. `notified`: the event that asked for
        the Refresh, and has the session until then."""

    async def gateway_keys(self, ids: Sequence[str]) -> bool:
        """Remember, by their ids, the keys that the gateway makes those of clients with, the newest first. False, and
        nothing is remembered, when live chats were begun by the gateway and none of its keys of before is among these:
        their clients would all be refused."""
        return True

    async def seize(self, chat_id: str, *, now: Ms, lease_ms: int) -> Claim | NotTaken:
        """Claim one live session for a chat client's call, due or not. It is given back by `settle`, as it was where
        `Verdict.CALLED` or `RELEASED` says its own due time again."""
        return NotTaken.UNKNOWN

    async def release(self, chat_id: str, take_id: str, *, now: Ms) -> bool:
        """End a take. False when it is not the session's last one, or has run out."""

    async def ran_out(self, *, now: Ms) -> list[RanOut]:
        """Takes that ran out, each given once."""
        return []

    async def counts(self, *, now: Ms) -> Counts:
        """Sessions by state, due ones by reason, and how many are leased."""

    async def counts_by_alias(self) -> Mapping[str, int]:
        """Live sessions by alias."""

    async def purge(self, *, ended_before: Ms, limit: int) -> int:
        """Forget sessions that ended (or were last heard of, when incomplete) before that time and
        restorations that finished before it. How many went."""

    async def pull_in(self, *, now: Ms, spread_ms: float) -> int:
        """Bring keepalives further away than `spread_ms` back to a random point within it, and what is more
        urgent to now: the interval was shortened, or the clock stepped back. A session that GMS refuses may
        wait longer (`silence_ms`). How many changed."""

    async def distrust(self, *, before: Ms, dry_run: bool = False) -> int:
        """Forget the tokens of live sessions without a reply, a push or a registration since that time: they may
        have been replaced. Until they are told again the sessions are incomplete, and those that were forget
        what they have. A registration with the key they had is `KEPT`: only a push says that it is still right.
        How many were live; `dry_run` only counts, and counts waiting pushes as not yet there."""

    # -- pushes --------------------------------------------------------------------------------

    async def take_push(self, push: Push, *, now: Ms) -> Taken:
        """Keep a push for good. It takes effect with a later `absorb`; until then its session is
        not claimed. Raises `StoreFull`."""

    async def absorb(self, limit: int, *, now: Ms = 0, listening: Collection[str] = ()) -> list[Absorbed]:
        """Let the oldest kept pushes take effect: tokens are learned by the rules of
        `asyncchatd.model.tokens`, sessions become due.

        When pings of a session come thick, the next is due no sooner than `SPACING_MS` after the last; a
        push for a session that was quiet never waits.

        Told is what is worth a word, and in any case that there was a push of a session which a claim holds.

        `listening`: consumers that hear at once what they are told. One that acknowledges is asked for the Refresh of a
        session for which nothing else is due or under way: the session is due when the consumer's time is over, and not
        before unless something else makes it so. A shutdown notice asks no consumer."""

    def waiting(self) -> bool:
        """Whether pushes may be kept that have not taken effect yet."""

    # -- the transcript and those who are told -------------------------------------------------------
    #
    # A settlement's events are written in its transaction, before any consumer is told of them. Kinds that no consumer
    # is told are not written.

    epoch: str = ""
    """Names this history of event ids: one that was begun anew, or put back from a copy, has another name."""
    told_kinds: frozenset[EventKind] = frozenset()
    """The kinds of events that are written: those that a consumer is told, or that are shown."""
    bell: Bell = Bell()
    """Rings when this process wrote events. Those of others who share the store are found by looking."""

    async def enrol(
        self, consumers: Sequence[Consumer], *, now: Ms, shown: Set[EventKind] = frozenset()
    ) -> None:
        """Tell these consumers from now on and no others. Each goes on where it was; a new one begins as it says. One
        that was told before is remembered for its `keep_ms`: what is told to others is kept for it as well, and of what
        is not it is told a gap when it comes back. `shown`: kinds that are kept beside, for `news` and `transcript`.
        Raises `StoreError`, also where the store keeps no events."""
        if consumers or shown:
            raise StoreError(
                "this store keeps no events: remove [[consumer]] and [gateway], or name another store"
            )

    async def news(self, after: int, *, limit: int) -> tuple[Sequence[StoredEvent], int]:
        """The next `limit` events behind an id, of all chats, and the id up to which was looked. Moves no consumer."""
        return (), after

    async def transcript(self, chat_id: str, *, limit: int) -> Sequence[StoredEvent]:
        """The last `limit` events of one chat, of kind `chat` alone, in the order of the transcript."""
        return ()

    async def fetch(
        self, consumer: str, *, after: int | None, limit: int, now: Ms, beyond: int | None = None
    ) -> Portion:
        """The next `limit` events for a consumer that fetches: behind `after`, which it acknowledges, or behind what it
        acknowledged last. Each comes again until then, but those up to `beyond`, which are passed over and not
        acknowledged. Not more than a megabyte, one event in any case; none while the consumer is paused. Raises
        `ConsumerUnknown`, `ConsumerPushed` and `CursorAhead`."""

    async def batches(
        self, consumer: str, *, now: Ms, limit: int, busy: Collection[int], most_events: int, most_bytes: int
    ) -> list[Batch]:
        """The next batch of each of up to `limit` chats for a webhook, not of the sessions whose rows (`Batch.row`) are
        `busy`. A batch that was given before is given again as it was. Raises `ConsumerUnknown`."""

    async def delivered(self, batches: Sequence[Batch], *, now: Ms) -> None:
        """Note that batches were taken: each chat goes on with what follows. Raises `ConsumerUnknown`."""

    async def undelivered(
        self, batch: Batch, *, due_at: Ms, failing_since: Ms | None, parked: bool = False
    ) -> None:
        """Note that a batch was not taken. It is due again at `due_at`; `parked`: only when it is replayed, and its
        chat goes on behind it. `failing_since`: when it was first refused. Raises `ConsumerUnknown`."""

    async def next_batch(self, consumer: str, *, busy: Collection[int] = ()) -> Ms | None:
        """When the next batch of a webhook is due that is not of the sessions that are `busy`, if there is any."""

    async def hand_out(self, consumer: str, events: Sequence[StoredEvent], *, now: Ms) -> HandedOut:
        """The Refreshes for which events ask a consumer that is told them in the next moment. From here on it has the
        session, as with a take, until `acknowledge` or the end of its time; told once more, it has it for what is left
        of that, if it is half of it. A consumer that is told the tokens with the event (`Consumer.send_keys`) is asked
        for one event of a session at a time: two Refreshes with one key throw the customer out. Durable."""
        return HandedOut()

    async def withdraw(self, consumer: str, events: Sequence[StoredEvent], *, now: Ms) -> bool:
        """Take back what `hand_out` gave with these events, of which the consumer was not told after all: such a
        session is due now. Whether there was any."""
        return False

    async def acknowledge(self, chat_id: str, event: int, *, now: Ms, spread_ms: float) -> bool:
        """Note that the Refresh was sent for which this event asked. It covers pushes up to that one; what else made
        the session due, pushes behind it included, keeps it due. Else its keepalive is due after `spread_ms`. May be
        repeated. False when the event asked for none, or its time was over and the daemon pinged."""
        return False

    async def unacknowledged(self) -> list[Unacknowledged]:
        """Refreshes that a consumer was asked for and did not send in time, each given once."""
        return []

    async def consumers(self) -> list[ConsumerState]:
        """How far each consumer is that `enrol` named. Of many events the store may guess how many wait."""

    async def pause(self, consumer: str, *, paused: bool) -> bool:
        """Stop telling a consumer, or go on: a paused one is given nothing. False when there is none of that name."""

    async def replay(self, consumer: str, *, parked: bool) -> int:
        """Make the batches of a webhook due now that wait for another try, or with `parked` those that are parked. How
        many."""

    async def kept(self) -> Kept:
        """How much is kept of transcripts."""

    async def trim(self, bounds: Bounds, *, now: Ms) -> Trimmed:
        """Forget one portion of what is beyond the bounds, and consumers that are gone for longer than their `keep_ms`;
        what a consumer was not told yet is told it as a gap. Nothing is kept while there is no consumer and nothing is
        shown."""

    # -- work ----------------------------------------------------------------------------------

    async def claim(
        self, *, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason] = EVERY_REASON
    ) -> list[Claim]:
        """Take up to `limit` due live sessions that nobody holds, in the order of `reasons`, within
        one reason longest due first."""

    async def renew(self, claims: Sequence[Claim], *, until: Ms) -> None:
        """Hold claims longer; those whose lease was lost stay lost."""

    async def turns(self, count: int, *, rate: float) -> Sequence[float] | None:
        """The next `count` moments at which this process may send a request, by its monotonic clock in seconds, where
        several share the rate of so many requests per second; fewer, or none, when too many are taken already. A moment
        that is missed is lost. `None` of a store that nobody shares: whoever sends keeps the rate himself."""
        return None

    async def confirm(self, claims: Sequence[Claim]) -> Set[tuple[int, str]]:
        """Which of these claims must not be sent any more, by claim id and chat id, because somebody else told other
        tokens for the session or holds it by now. Asked for what is about to be sent in the next moments; what this
        process itself was told since says `superseded`."""
        return frozenset()

    def superseded(self, claim: Claim) -> bool:
        """Whether this process was told other tokens for the session since it was claimed, by a push, a registration or
        an answer. Asked right before sending: a request with the old ones would throw the customer out."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Write down how pings ended and give the sessions back."""

    async def duty(self, what: str, *, seconds: float) -> bool:
        """Whether this process is the one to do `what` for the next `seconds`, of all that share the store. That
        another one does it as well must do no harm."""
        return True

    async def next_due(self, *, now: Ms, reasons: Sequence[Reason] = EVERY_REASON) -> float | None:
        """When the next session that nobody holds falls due for one of these reasons, after `now`; or sooner, when that
        of a take or of an asked Refresh ends."""

    # -- Chat Servers and restorations -----------------------------------------------------------

    def declare(self, alike: Mapping[str, str]) -> None:
        """Say to the others who share the store what must be alike in all configurations, by its keys: `Node.settings`.
        Harmless before `open`, and when repeated."""
        return

    async def nodes(self) -> Sequence[Node] | None:
        """The processes that share the store: those that are there, and those that are gone without having taken
        leave. `None` of a store that nobody shares."""
        return None

    async def views(self, own: Views) -> Sequence[Views] | None:
        """Say what this process sees of the Chat Servers, and hear what the others who share the store said last; those
        of whom nothing was heard in the last seconds are `silent`. `None` of a store that nobody shares."""
        return None

    async def servers(self) -> list[ChatServer]:
        """What is remembered of the Chat Servers."""

    async def note(self, server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        """Remember how a Chat Server stands, and begin a restoration for each loss, all or nothing: a loss that
        is on record is not found again, and none is forgotten. For one that is there `again` none is begun where no
        live session has its alias.

        `epoch` is what the caller knew of the server (0: nothing). When somebody else has noted something since,
        nothing is done, and `None` is the answer: what is in the store counts.
        """

    async def begin_restoration(
        self, *, alias: str, server: str | None, cause: Cause, now: Ms
    ) -> Restoration:
        """Write down, for an operator, that all sessions of `alias` must be pinged. `mark` then makes them due."""

    async def mark(self, restoration: int, *, limit: int, now: Ms) -> bool:
        """Make the next `limit` sessions of a restoration due, most recently active first. True
        when there are more; a restoration whose marking was cut off goes on where it stopped."""

    async def restorations(self, *, limit: int = 50, unfinished: bool = False) -> list[Restoration]:
        """Restorations, newest first. `unfinished` are also those that are finished for now: made of shutdown
        notices, and open for further ones."""

    async def newly_finished(self) -> list[Restoration]:
        """Restorations that finished for good and were not given by this before: each comes once, however it
        finished and whichever daemon saw it."""

    async def finish_announced(self, *, now: Ms) -> list[int]:
        """Close restorations made of shutdown notices when no notice came for a while; the ids of
        those that are finished by it."""
