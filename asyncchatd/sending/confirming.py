"""The look right before sending: which claims of a batch must not be sent any more.

What this process was told it knows at once (`Store.superseded`). What others who share the store were told is asked
of the store, for the claims of the next moments together: one question for each would cost more than the ping. Where
this process stood still the leases are renewed before: others may get what it holds in the next moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

from asyncchatd.model import Claim, Clock
from asyncchatd.sending.settling import Settling
from asyncchatd.stores import Store

GOOD_FOR_SECONDS = 0.02
"""So long a look counts. What others are told meanwhile crosses with the request, as on the network itself."""

LATE_SECONDS = 1.0
"""An answer that took so long may have been true long ago: the way to the store stood still."""

TRIES = 2
"""So often, at most, is looked for one claim."""


class Confirming:
    """The looks at one batch of claims, in their order."""

    def __init__(
        self, store: Store, settling: Settling, claims: Sequence[Claim], rate: float, clock: Clock
    ) -> None:
        """`settling` holds the claims. `rate`, per second, says how many of them can be sent while a look counts."""
        self._store = store
        self._settling = settling
        self._claims = claims
        self._portion = max(1, math.ceil(rate * GOOD_FOR_SECONDS))
        self._clock = clock
        self._looked_at = float("-inf")
        self._until = 0
        self._refused: Set[tuple[int, str]] = frozenset()

    async def may_send(self, place: int) -> bool:
        """Whether the claim at this place of the batch may be sent now. Raises `StoreError`."""
        for _ in range(TRIES):
            if self._settling.is_late():
                await self._settling.renew_late()
            may_send = await self._look(place)
            if not self._settling.is_late():  # else it stood still during the look
                return may_send
        return False

    async def _look(self, place: int) -> bool:
        claim = self._claims[place]
        asked_at = self._clock.monotonic()
        if place >= self._until or asked_at - self._looked_at > GOOD_FOR_SECONDS:
            self._until = place + self._portion
            self._refused = await self._store.confirm(self._claims[place : self._until])
            self._looked_at = self._clock.monotonic()
            if self._looked_at - asked_at > LATE_SECONDS:
                self._until = place
                return False
        return (claim.claim_id, claim.chat_id) not in self._refused and not self._store.superseded(claim)
