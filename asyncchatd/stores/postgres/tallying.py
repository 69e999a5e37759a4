"""Counts of all sessions, which take long where there are very many: the newest one serves all nodes for a while."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson

from asyncchatd.model import Ms, Reason, SessionState
from asyncchatd.stores.answers import Counts
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.postgres.shared import tallies
from asyncchatd.stores.postgres.sharing import SharingStore
from asyncchatd.stores.postgres.transactions import sessions


class TallyingStore(SharingStore):
    """The part of the PostgreSQL store that counts its sessions."""

    async def counts(self, *, now: Ms) -> Counts:
        leased = len(self._held)

        async def count() -> Mapping[str, Any]:
            found = await self._reading(lambda tx: sessions.counts(tx, now, leased))
            return {
                "states": {state.value: number for state, number in found.states.items()},
                "due": {reason.word: number for reason, number in found.due.items()},
                "of_gateway": found.of_gateway,
            }

        found = await self._tally("counts", count, lambda found: sum(found["states"].values()))
        return Counts(
            {state: found["states"].get(state.value, 0) for state in SessionState},
            {reason: found["due"].get(reason.word, 0) for reason in Reason},
            leased,
            found["of_gateway"],
        )

    async def counts_by_alias(self) -> Mapping[str, int]:
        return await self._tally(
            "by_alias",
            lambda: self._reading(sessions.counts_by_alias),
            lambda found: sum(found.values()),
        )

    async def _tally(
        self,
        what: str,
        count: Callable[[], Awaitable[Mapping[str, Any]]],
        total: Callable[[Mapping[str, Any]], int],
    ) -> Mapping[str, Any]:
        """A count of so many sessions in `total`, or the one of lately."""
        if (said := await self._reading(lambda tx: tallies.recent(tx, what))) is not None:
            lately: Mapping[str, Any] = orjson.loads(said)
            return lately
        begun = time.monotonic()
        found = await count()
        took = time.monotonic() - begun
        if took > tallies.DEAR_SECONDS and total(found) >= tallies.MANY:
            with suppress(StoreError):  # the next one counts again
                said = orjson.dumps(dict(found)).decode()
                await self._looking(lambda tx: tallies.remember(tx, what, said, took))
        return found
