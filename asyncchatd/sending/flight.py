"""The flight of requests to GMS: how many may be on their way, and how each came back.

One limit holds for all that is sent, whoever sends it. Calls of chat clients have a share of it that no ping takes:
a customer waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from asyncchatd.gms import GmsClient, InFlight, Landing
from asyncchatd.sending.suspects import Aliases

CALLS_SHARE = 5
"""One part in so many of the in-flight limit, one request at least, is left to calls."""


# Looked up in its class a member costs ten times as much, and that several times a ping.
ANSWERED, UNSENT = Landing.ANSWERED, Landing.UNSENT


class Departure(NamedTuple):
    """A request that left, for `Flight.landed`."""

    alias: str
    sent_at: float
    is_trial: bool
    is_call: bool


class Flight:
    """The requests on their way, of worker and gateway together."""

    def __init__(
        self,
        gms: GmsClient,
        in_flight: InFlight,
        aliases: Aliases,
        stood_still_since: Callable[[float], bool],
    ) -> None:
        """`stood_still_since` says whether this process did after that, by the monotonic clock in seconds."""
        self.aliases = aliases
        self.in_flight = in_flight
        self.changed = asyncio.Event()
        """Set when a request has come back: there may be room."""
        self._gms = gms
        self._stood_still_since = stood_still_since
        self._trials = 0
        self._calls = 0

    def takes(self, alias: str) -> bool:
        """Whether a session of this Chat Server may be pinged: one under suspicion has a share of the limit."""
        return self.aliases.has_room(alias, self.in_flight.limit)

    def has_room(self) -> bool:
        """Whether one more ping may be sent."""
        return self._is_free() and self.has_slot()

    def has_slot(self) -> bool:
        """Whether a GMS node takes one more request now."""
        slots = self._gms.slots()
        return slots is None or slots > self._trials

    def has_room_for_call(self) -> bool:
        """Whether one more call may be sent."""
        share = max(1, self.in_flight.limit // CALLS_SHARE)
        return self.has_slot() and (self._calls < share or self._is_free())

    def left(self, alias: str, *, is_call: bool = False) -> Departure:
        """Count a request that leaves now."""
        is_trial = self._gms.slots() is not None
        self._trials += is_trial
        self._calls += is_call
        self.aliases.sent(alias)
        return Departure(alias, self.in_flight.sent(), is_trial, is_call)

    def landed(self, departure: Departure, how: Landing) -> None:
        """Count how a request came back, or that it was given up."""
        self.aliases.landed(departure.alias, how)
        # What one Chat Server's sessions suffer while others' are answered says nothing of GMS.
        alone = how is not ANSWERED and self.aliases.is_alone(departure.alias)
        # Nor does how long a request took whose answer waited here.
        says_nothing = alone or self._stood_still_since(departure.sent_at)
        self.in_flight.landed(departure.sent_at, UNSENT if says_nothing else how)
        self._trials -= departure.is_trial
        self._calls -= departure.is_call
        self.changed.set()

    def _is_free(self) -> bool:
        in_flight = self.in_flight
        if in_flight.has_room() or in_flight.count >= in_flight.ceiling:
            return in_flight.has_room()
        return in_flight.count - self.aliases.stuck(in_flight.limit) < in_flight.limit
