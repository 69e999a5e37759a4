"""The plan of the demo of several nodes."""

from __future__ import annotations

from dataclasses import dataclass

from asyncchatd.rehearsing.demo_plan import DemoPlan

STOPPED_SECONDS = 8.0
"""So long a node stands still."""

HOLD_SECONDS = 20.0
"""`hold` of the store's URL: longer than a node stands still."""

LEASE_SECONDS = 5.0
"""`restoration.lease`: so long is what a killed node claimed left to it."""

RESEND_SECONDS = 5.0
"""Chat Server repeats a push that was not acknowledged. The field's 15 s are of no use in a story of seconds."""


@dataclass(frozen=True, slots=True)
class NodesPlan(DemoPlan):
    """The demo's plan, and how many nodes there are."""

    nodes: int = 3

    @property
    def window(self) -> float:
        """The plant's restoration window in seconds: a chat that a stopped node had claimed waits for `hold` at most,
        and may wait for its turn behind the others then."""
        restoring = self.sessions / self.servers / (0.7 * self.rate)
        return round(HOLD_SECONDS + 2 * restoring + 10.0)
