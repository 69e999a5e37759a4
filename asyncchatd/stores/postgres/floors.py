"""How far back a claim looks: not where nothing was found lately.

A claim begins at the oldest due time of the index, and there lie the dead entries of whatever was claimed since the
oldest snapshot that somebody holds open (a dump, a report): with a million sessions they cost a hundred milliseconds
within a minute. So a node remembers, for each reason, below which due time it found nothing, and begins there. All is
looked through every few seconds, for what others gave back, and for holds that ran out.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncchatd.model import Claim, Ms, Reason

FULL_MS: Ms = 5_000
"""Between two looks at all that is due."""

HURRIED_FULL_MS: Ms = 1_000
"""The same while the holds of a dead node are about to run out."""

MARGIN_MS: Ms = 2_000
"""What falls due is noted that much later, at the most."""

NONE = float("-inf")


class Floors:
    """The due times from which on one node looks."""

    def __init__(self) -> None:
        self._of: dict[Reason, float] = {}
        self._looked: Ms | None = None
        self._hurried_until: Ms = 0

    def of(self, reasons: Sequence[Reason], now: Ms) -> list[float]:
        """Where a claim for each of these reasons begins."""
        full_ms = HURRIED_FULL_MS if now < self._hurried_until else FULL_MS
        if self._looked is None or not 0 <= now - self._looked < full_ms:
            self.forget()
            self._looked = now
        return [self._of.get(reason, NONE) for reason in reasons]

    def found(self, claims: Sequence[Claim], reasons: Sequence[Reason], now: Ms, limit: int) -> None:
        """Take in what a claim of up to `limit` sessions found: where it found fewer, nothing is left."""
        last = reasons.index(claims[-1].reason) if len(claims) >= limit else len(reasons)
        for place, reason in enumerate(reasons[: last + 1]):
            oldest = min((claim.due_at for claim in claims if claim.reason is reason), default=NONE)
            floor = float(now - MARGIN_MS) if place < last else oldest
            self._of[reason] = max(self._of.get(reason, NONE), floor)

    def lower(self, due_at: float) -> None:
        """Note that something that was due then can be claimed again."""
        self._of = {reason: min(floor, due_at) for reason, floor in self._of.items()}

    def forget(self) -> None:
        """Look at all that is due: anything may have become so."""
        self._of.clear()

    def hurry(self, until: Ms) -> None:
        """Look at all more often until then."""
        self._hurried_until = until
