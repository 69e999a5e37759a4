"""What all calls have of a store: its transactions, its turns at the database, and the claims it holds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from asyncchatd.model import Claim, EventKind
from asyncchatd.stores.base import Store
from asyncchatd.stores.bell import Bell
from asyncchatd.stores.held import HeldClaims
from asyncchatd.stores.sql.transactions import (
    Asks,
    Deliveries,
    Events,
    Pushes,
    Restorations,
    Sessions,
    Step,
    Takes,
    Trimming,
    Work,
)

T = TypeVar("T")
Tx = TypeVar("Tx")


class Calls(Store, Generic[Tx]):
    """The part of a store that all its calls go by."""

    _sessions: Sessions[Tx]
    _pushes: Pushes[Tx]
    _work: Work[Tx]
    _events: Events[Tx]
    _deliveries: Deliveries[Tx]
    _trimming: Trimming[Tx]
    _takes: Takes[Tx]
    _asks: Asks[Tx]
    _restorations: Restorations[Tx]

    def __init__(self) -> None:
        self._held = HeldClaims()
        self._shown: frozenset[EventKind] = frozenset()
        self.told_kinds: frozenset[EventKind] = frozenset()
        self.bell = Bell()

    @abstractmethod
    def _write(
        self, work: Callable[[Tx], Step[T]], *, durable: bool = True, large: bool = False
    ) -> Awaitable[T]:
        """Run `work` in a transaction, after what was handed in before. `durable=False` waits for no disk. `large` work
        may be refused before the last of the disk is taken. Raises `StoreError`."""

    @abstractmethod
    def _read(self, work: Callable[[Tx], Step[T]]) -> Awaitable[T]:
        """Run `work`, which changes nothing, without a turn at writing. Raises `StoreError`."""

    def superseded(self, claim: Claim) -> bool:
        return self._held.superseded(claim)
