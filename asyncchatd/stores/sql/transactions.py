"""The transactions that a store brings: what the calls ask of it, each done wholly or not at all.

Modules of functions keep these protocols. The first argument is the store's own transaction. What a function does says
the contract, at the call of its name, or the function itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from typing import Protocol, TypeAlias, TypeVar

from asyncchatd.model import (
    Batch,
    Cause,
    ChatServer,
    Consumer,
    ConsumerState,
    EventKind,
    Loss,
    Ms,
    Portion,
    Reason,
    Registration,
    Restoration,
    Session,
    SessionState,
    StoredEvent,
    Unacknowledged,
)
from asyncchatd.stores.answers import (
    Absorbed,
    Bounds,
    Counts,
    Kept,
    NotTaken,
    RanOut,
    Registered,
    Take,
    Trimmed,
)
from asyncchatd.stores.asking import Handing

T = TypeVar("T")
Tx = TypeVar("Tx", contravariant=True)

Step: TypeAlias = "T | Awaitable[T]"
"""What a function of a transaction gives: its result where the whole transaction runs in a thread of its own, what has
to be awaited for it where each statement is waited for."""


class Sessions(Protocol[Tx]):
    """The transactions on sessions."""

    def register(
        self, tx: Tx, registrations: Sequence[Registration], now: Ms, spread_ms: float, /, *, told: bool
    ) -> Step[list[Registered]]: ...
    def get(self, tx: Tx, chat_id: str, /) -> Step[Session | None]: ...
    def listed(
        self, tx: Tx, alias: str | None, state: SessionState | None, limit: int, after: str | None, /
    ) -> Step[list[Session]]: ...
    def remove(self, tx: Tx, chat_id: str, now: Ms, /) -> Step[bool]: ...
    def make_due(self, tx: Tx, chat_id: str, reason: Reason, now: Ms, /) -> Step[bool]: ...
    def gateway_keys(self, tx: Tx, ids: Sequence[str], /) -> Step[bool]: ...
    def counts(self, tx: Tx, now: Ms, leased: int, /) -> Step[Counts]: ...
    def counts_by_alias(self, tx: Tx, /) -> Step[Mapping[str, int]]: ...
    def purge(self, tx: Tx, before: Ms, limit: int, /) -> Step[int]: ...
    def distrust(self, tx: Tx, before: Ms, dry_run: bool, /) -> Step[int]: ...


class Pushes(Protocol[Tx]):
    """The transaction in which pushes take effect; also whether none is left."""

    def absorb(self, tx: Tx, limit: int, /) -> Step[tuple[list[Absorbed], bool]]: ...


class Work(Protocol[Tx]):
    """What is read of the work list."""

    def next_due(self, tx: Tx, now: Ms, reasons: Sequence[Reason], /) -> Step[float | None]: ...


class Events(Protocol[Tx]):
    """The transactions on transcripts."""

    def news(self, tx: Tx, after: int, limit: int, /) -> Step[tuple[list[StoredEvent], int]]: ...
    def transcript(self, tx: Tx, chat_id: str, limit: int, /) -> Step[list[StoredEvent]]: ...
    def kept(self, tx: Tx, /) -> Step[Kept]: ...
    def epoch(self, tx: Tx, /, *, anew: bool) -> Step[str]: ...


class Deliveries(Protocol[Tx]):
    """The transactions on consumers."""

    def enrol(
        self, tx: Tx, consumers: Sequence[Consumer], shown: Set[EventKind], now: Ms, /
    ) -> Step[None]: ...
    def fetch(
        self, tx: Tx, consumer: Consumer, after: int | None, limit: int, now: Ms, beyond: int | None, /
    ) -> Step[Portion]: ...
    def share_out(self, tx: Tx, consumer: Consumer, /) -> Step[bool]: ...
    def batches(
        self,
        tx: Tx,
        consumer: Consumer,
        now: Ms,
        limit: int,
        busy: Collection[int],
        most_events: int,
        most_bytes: int,
        /,
    ) -> Step[list[Batch]]: ...
    def delivered(self, tx: Tx, /, consumer: Consumer, done: Sequence[Batch], now: Ms) -> Step[None]: ...
    def undelivered(
        self,
        tx: Tx,
        consumer: Consumer,
        batch: Batch,
        due_at: Ms,
        failing_since: Ms | None,
        parked: bool,
        /,
    ) -> Step[None]: ...
    def next_due(self, tx: Tx, consumer: str, busy: Collection[int], /) -> Step[Ms | None]: ...
    def states(self, tx: Tx, /) -> Step[list[ConsumerState]]: ...
    def pause(self, tx: Tx, consumer: str, paused: bool, /) -> Step[bool]: ...
    def replay(self, tx: Tx, consumer: str, /) -> Step[int]: ...
    def hurry(self, tx: Tx, consumer: str, /) -> Step[int]: ...


class Trimming(Protocol[Tx]):
    """The transaction that forgets a portion of what is beyond the bounds; also how many events went."""

    def trim(self, tx: Tx, bounds: Bounds, now: Ms, /) -> Step[tuple[int, Trimmed]]: ...


class Takes(Protocol[Tx]):
    """The transactions on takes."""

    def obstacle(
        self, tx: Tx, chat_id: str, now: Ms, notified: int | None = None, /
    ) -> Step[NotTaken | None]: ...
    def take(
        self, tx: Tx, chat_id: str, until: Ms, now: Ms, notified: int | None = None, /
    ) -> Step[tuple[Take, str | None] | NotTaken]: ...
    def forget(self, tx: Tx, take_id: str, /) -> Step[None]: ...
    def release(self, tx: Tx, chat_id: str, take_id: str, now: Ms, /) -> Step[bool]: ...
    def any_ran_out(self, tx: Tx, now: Ms, /) -> Step[bool]: ...
    def ran_out(self, tx: Tx, now: Ms, /) -> Step[list[RanOut]]: ...


class Asks(Protocol[Tx]):
    """The transactions on Refreshes for which consumers are asked."""

    def hand_out(
        self,
        tx: Tx,
        consumer: str,
        events: Sequence[StoredEvent],
        now: Ms,
        is_held: Callable[[str], bool],
        /,
        *,
        keyed: bool,
    ) -> Step[tuple[list[Handing], bool]]: ...
    def withdraw(self, tx: Tx, consumer: str, events: Sequence[StoredEvent], now: Ms, /) -> Step[bool]: ...
    def acknowledge(self, tx: Tx, chat_id: str, event: int, now: Ms, spread_ms: float, /) -> Step[bool]: ...
    def any_unacknowledged(self, tx: Tx, /) -> Step[bool]: ...
    def unacknowledged(self, tx: Tx, /) -> Step[list[Unacknowledged]]: ...


class Restorations(Protocol[Tx]):
    """The transactions on Chat Servers and restorations."""

    def servers(self, tx: Tx, /) -> Step[list[ChatServer]]: ...
    def note(
        self, tx: Tx, server: ChatServer, epoch: int, losses: Sequence[Loss], now: Ms, /
    ) -> Step[list[tuple[int, Loss]] | None]: ...
    def begin_restoration(
        self, tx: Tx, alias: str, server: str | None, cause: Cause, now: Ms, /
    ) -> Step[int]: ...
    def mark(self, tx: Tx, restoration: int, limit: int, now: Ms, /) -> Step[bool]: ...
    def restorations(self, tx: Tx, limit: int, unfinished: bool, /) -> Step[list[Restoration]]: ...
    def any_untold(self, tx: Tx, /) -> Step[bool]: ...
    def newly_finished(self, tx: Tx, /) -> Step[list[Restoration]]: ...
    def finish_announced(self, tx: Tx, now: Ms, /) -> Step[list[int]]: ...
