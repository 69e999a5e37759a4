"""One GMS node as it fares: its strikes, its doubts, its rests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from asyncchatd.gms.connections import Connections
from asyncchatd.gms.trouble import Trouble
from asyncchatd.log import metrics
from asyncchatd.model import Tokens
from asyncchatd.wire import PingFault

STRIKES = 3
"""A single time-out or HTTP 500 may be about the session or its Chat Server; that many in a row,
with no good answer between, are the node. A node that cannot be reached rests at once."""

MAYBE_THE_CHAT_SERVERS = frozenset(
    (
        *(Trouble.TIMEOUT, Trouble.DISCONNECTED, Trouble.CUT_SHORT, PingFault.FOREIGN_REPLY),
        *(PingFault.REQUEST_TIMEOUT, PingFault.GATEWAY_TIMEOUT, PingFault.SERVER_ERROR),
        *(
            PingFault.BAD_REQUEST,
            PingFault.NOT_FOUND,
            PingFault.CONFLICT,
            PingFault.GONE,
            PingFault.UNPROCESSABLE,
        ),
        *(PingFault.BODY_TOO_LARGE, PingFault.URI_TOO_LONG, PingFault.CLIENT_ERROR),
    )
)
"""Troubles that may be those of one Chat Server: only those of several are the node's. Every other one may be one
session's."""

UNREACHABLE = frozenset((Trouble.CONNECT, Trouble.TLS))
"""Troubles that are the node's alone."""


@dataclass(slots=True, eq=False)
class Node:
    """One GMS node and how it fares."""

    base: str
    """Its base URL, for people."""
    connections: Connections
    failures: int = 0
    """In a row; 0 is a node in good standing."""
    in_flight: int = 0
    strikes: int = 0
    """Troubles with no good answer between."""
    struck_aliases: set[str] = field(default_factory=set)
    struck_chats: set[str] = field(default_factory=set)
    """Those whose pings had them; no more than tell one from several."""
    doubted_until: float = 0.0
    """Others are asked first until then."""
    rests_until: float = 0.0
    unnamed_until: float = 0.0
    """Its answers do not all say whose they are: until then each request has a connection of its own."""
    trying: bool = False
    """A single ping is finding out whether it is back."""
    cause: str | None = None
    counted: dict[str, Callable[[], None]] = field(default_factory=dict)
    """By outcome: looking a counter up by its labels takes longer than counting."""

    def count(self, outcome: str) -> None:
        """Count a request by its outcome, for the metrics."""
        if outcome not in self.counted:
            self.counted[outcome] = metrics.REFRESHES.labels(self.base, outcome).inc
        self.counted[outcome]()

    def strike(self, tokens: Tokens) -> None:
        """Count a trouble with this session, of which it is not known yet whether it is the node's own."""
        self.strikes += 1
        for struck, one in ((self.struck_aliases, tokens.alias), (self.struck_chats, tokens.chat_id)):
            if len(struck) < 2:
                struck.add(one)

    def clear_strikes(self) -> None:
        """Forget the strikes: the node has answered for a session."""
        if self.strikes:
            self.strikes = 0
            self.struck_aliases.clear()
            self.struck_chats.clear()

    def is_its_own(self, cause: str) -> bool:
        """Whether such a trouble, after those before, is the node's."""
        if cause in UNREACHABLE:
            return True
        return len(self.struck_aliases if cause in MAYBE_THE_CHAT_SERVERS else self.struck_chats) > 1

    def usable(self, now: float) -> bool:
        """Whether the node may be asked now, by the monotonic clock in seconds."""
        return self.failures == 0 or (now >= self.rests_until and not self.trying)


def measure(nodes: Iterable[Node], before: Iterable[Node]) -> None:
    """Show these nodes in the metrics, and no longer those of before."""
    for node in before:
        with suppress(KeyError):
            metrics.NODE_UP.remove(node.base)
    for node in nodes:
        metrics.NODE_UP.labels(node.base).set_function(partial(_standing, node))


def _standing(node: Node) -> float:
    return float(node.failures == 0)
