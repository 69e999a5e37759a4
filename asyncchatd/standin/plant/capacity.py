"""The capacity of GMS: how long a request waits for its share, and when it is turned away."""

from __future__ import annotations

from asyncchatd.standin.plant.parts import Ticket
from asyncchatd.standin.settings import PlantSettings


class Capacity:
    """The queue in front of all GMS nodes, which share one capacity.

    The work is charged when a request joins: a client that gives up does not give the capacity back, which is
    what makes an overload last (protocol section 2, danger 3).
    """

    def __init__(self) -> None:
        self._busy_until = 0.0
        self._waiting = 0

    def charge(self, ticket: Ticket, settings: PlantSettings, now: float) -> bool:
        """Sets the ticket's `delay` in seconds. False when too many wait already: nothing is charged then."""
        session = ticket.session
        ticket.delay = settings.latency
        if session is not None:
            ticket.delay += session.process.server.slow
        if settings.gms_capacity is None:
            return True
        if self._waiting >= settings.gms_queue:
            return False
        restoring = session is not None and session.ended is None and session.process.dead
        work = (settings.restore_cost if restoring else 1.0) / settings.gms_capacity
        self._busy_until = max(now, self._busy_until) + work
        ticket.delay += self._busy_until - now
        ticket.queued = True
        self._waiting += 1
        return True

    def release(self, ticket: Ticket) -> None:
        """The request is no longer in the queue. Harmless when repeated."""
        if ticket.queued:
            ticket.queued = False
            self._waiting -= 1
