"""Who sends pushes, and who tried to: what tells an operator whether GMS reaches this daemon.

A refused push says as much as one that was kept: from which address it came and what it failed at. Both are kept in
memory for so many addresses only, apart from each other: a scan does not push the GMS nodes out.
"""

from __future__ import annotations

from collections.abc import Iterator

from asyncchatd.listening.access import address_shown
from asyncchatd.log import metrics
from asyncchatd.model import Clock, Failing, Ms, Refusal, Sender, replace

NODES = 32
"""Addresses told apart. A cluster of GMS has a few nodes."""
SILENT_MS: Ms = 3_600_000
"""After so long without a push an address makes room for another one."""
REFUSED = 24
"""Refusals told apart, those that were last heard."""
OTHERS = "other"
UNIX = "unix"
"""The sender behind a Unix socket: a proxy, where none is trusted with the client's address."""


_AT_THE_DOOR = {
    "network": (Failing.NETWORK, "its address is not in receiver.allow"),
    "forwarded header": (Failing.FORWARDED, "its proxy does not tell one client's address"),
    "all busy": (Failing.BUSY, "all connections were busy"),
}


class Senders:
    """The senders of pushes at one listener, for as long as the daemon runs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._nodes: dict[str | None, _Node] = {}
        """By the address as aiohttp has it."""
        self._refused: dict[tuple[str, str], Refusal] = {}
        """By address and message, the last heard at the end."""
        self.count = 0
        """Pushes that were kept."""
        self.last_at: Ms | None = None
        """When the last of them was."""

    def kept(self, remote: str | None) -> None:
        """A push from this address is on disk."""
        now = self._clock.now()
        self.count += 1
        self.last_at = now
        node = self._nodes.get(remote) or self._node(remote, now)
        node.count += 1
        node.last_at = now
        node.counted()
        metrics.PUSH_LAST.set(now / 1000)

    def refused(self, client: object, failing: Failing, message: str) -> None:
        """Something from this address, which is none of a push that is kept. The message carries nothing that was
        sent: it may be a secret in a wrong place."""
        now = self._clock.now()
        metrics.PUSH_REFUSALS.labels(failing.value).inc()
        key = (_shown(client), message)
        before = self._refused.pop(key, None)
        if before is None:
            self._refused[key] = Refusal(key[0], failing, message, 1, now, now)
            if len(self._refused) > REFUSED:
                self._refused.pop(next(iter(self._refused)))
        else:
            self._refused[key] = replace(before, count=before.count + 1, last_at=now)

    def at_the_door(self, cause: str, client: object) -> None:
        """A connection was refused before anything of a push was read, with this cause of the listener's."""
        if known := _AT_THE_DOOR.get(cause):
            self.refused(client, *known)
        elif cause.startswith("PROXY"):
            self.refused(client, Failing.PROXY, "it speaks the PROXY protocol, which is not spoken here")
        elif "TLS" in cause or "tls_certificate" in cause:
            self.refused(client, Failing.TLS, cause)

    def senders(self) -> list[Sender]:
        """The addresses that pushes came from, the last one first."""
        found = {id(node): node for node in self._nodes.values()}
        seen = [Sender(each.client, each.count, each.first_at, each.last_at) for each in found.values()]
        return sorted(seen, key=lambda each: -each.last_at)

    def refusals(self) -> list[Refusal]:
        """Those who were refused, the last one first."""
        return list(reversed(self._refused.values()))

    def _node(self, remote: str | None, now: Ms) -> _Node:
        """A place for an address that has none: one that is free, or the one that is silent longest."""
        shown = _shown(remote)
        for node in self._of_their_own():
            if node.client == shown:
                self._nodes[remote] = node
                return node
        if sum(1 for _ in self._of_their_own()) >= NODES:
            silent = min(self._of_their_own(), key=lambda each: each.last_at)
            if now - silent.last_at < SILENT_MS:
                return self._others(now)
            self._nodes = {name: node for name, node in self._nodes.items() if node is not silent}
            metrics.PUSHES_BY_SENDER.remove(silent.client)
        return self._nodes.setdefault(remote, _Node(shown, now))

    def _others(self, now: Ms) -> _Node:
        return self._nodes.setdefault(OTHERS, _Node(OTHERS, now))

    def _of_their_own(self) -> Iterator[_Node]:
        return (node for name, node in self._nodes.items() if name != OTHERS)


class _Node:
    """What is counted of one address."""

    __slots__ = ("client", "count", "counted", "first_at", "last_at")

    def __init__(self, client: str, now: Ms) -> None:
        self.client = client
        self.count = 0
        self.first_at = self.last_at = now
        self.counted = metrics.PUSHES_BY_SENDER.labels(client).inc


def _shown(client: object) -> str:
    return UNIX if client is None or client == "" else address_shown(client)
