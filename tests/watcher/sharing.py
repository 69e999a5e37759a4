"""What nodes that share a store say to one another of the Chat Servers, as PostgreSQL keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conftest import FakeClock

from asyncchatd.model.data import Ms, Views
from asyncchatd.model.values import replace
from asyncchatd.stores.postgres.shared import nodes

HEARD_MS: Ms = nodes.VIEW_SECONDS * 1000
"""So long after they were said are views heard."""


@dataclass
class Start:
    """One start of a node: nothing is said by it yet."""

    node: str
    at: Ms = 0
    views: Views | None = None
    gone: bool = False
    """It is known to be dead."""


class Said:
    """What each start of each node said last."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._starts: list[Start] = []

    def begin(self, node: str) -> Start:
        """A node is there, perhaps anew."""
        self._starts.append(Start(node))
        return self._starts[-1]

    def begin_again(self, start: Start) -> Start:
        """A node is back after an outage of the database: as another start, which has said what that one said last."""
        again = self.begin(start.node)
        again.at, again.views, start.gone = start.at, start.views, True
        return again

    def end(self, *nodes: str) -> None:
        """All know that these are dead, until they come anew."""
        for start in self._starts:
            start.gone |= start.node in nodes

    def say(self, own: Start, views: Views) -> Sequence[Views]:
        """What the others said last. A start that is silent counts until a later one of the same node has spoken."""
        now = self._clock.now()
        heard = [
            replace(start.views, silent=now - start.at >= HEARD_MS)
            for number, start in enumerate(self._starts)
            if start is not own
            and start.views is not None
            and not start.gone
            and (now - start.at < HEARD_MS or not self._is_followed(number))
        ]
        own.at, own.views = now, replace(views, peer=own.node)
        return heard

    def _is_followed(self, number: int) -> bool:
        node = self._starts[number].node
        return any(later.node == node and later.views for later in self._starts[number + 1 :])
