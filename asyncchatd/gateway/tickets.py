"""Tickets: what a browser's `EventSource`, which sends no form and no header of its own, opens a stream with.

An address is written down by proxies and browsers, so no secure key may stand in one. A ticket opens one stream of one
chat within half a minute, and is of no use after. It is signed with the gateway's key, so every node takes it.
"""

from __future__ import annotations

import secrets

from asyncchatd.gateway.keys import Keys
from asyncchatd.model import Clock

TICKET_SECONDS = 30.0

NONCE_BYTES = 12


class Tickets:
    """The tickets that are given out, and those that were used."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used: dict[str, float] = {}
        """By ticket until when it would be good, the first to pass first."""
        self._since = 0
        """None that was given until then is good."""

    def forget(self) -> None:
        """None that was given up to now opens a stream any more: others may have one now."""
        self._since = self._clock.now()

    def give(self, keys: Keys, service: str, chat_id: str) -> str:
        """A ticket for one stream of this chat. Service and chat id are decoded."""
        until = str(round(self._clock.now() + TICKET_SECONDS * 1000))
        nonce = secrets.token_hex(NONCE_BYTES)
        return f"{until}.{nonce}.{keys.signature(until, nonce, service, chat_id)}"

    def take(self, keys: Keys, service: str, chat_id: str, ticket: str) -> bool:
        """Whether a ticket opens a stream of this chat now. It does not once more."""
        until, _, rest = ticket.partition(".")
        nonce, _, signature = rest.partition(".")
        if not keys.signed(signature, until, nonce, service, chat_id):
            return False
        now = self._clock.now()
        self._forget(now)
        lifetime = round(TICKET_SECONDS * 1000)
        good = 0 <= int(until) - now <= lifetime and int(until) - lifetime > self._since
        good = good and nonce not in self._used
        self._used[nonce] = int(until)
        return good

    def _forget(self, now: float) -> None:
        while self._used and self._used[first := next(iter(self._used))] < now:
            del self._used[first]
