"""What the worker tells: of pushes that took effect, and of restorations under way."""

from __future__ import annotations

import math
from collections.abc import Iterable

from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Clock, Restoration, Unacknowledged
from asyncchatd.stores import DEVICE_CHATS, Absorbed, Effect

CROWD_LOG_SECONDS = 600.0
"""Between two lines about one device that too many chats share."""

CROWDS = 1_000
"""Such devices that are remembered."""

log = get_logger()


class Crowds:
    """Devices that more chats share than one push can make due; each is told once in a while."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: dict[str | None, float] = {}

    def note(self, device_id: str | None) -> None:
        """Log that too many chats share this device, unless that was told lately."""
        now = self._clock.monotonic()
        if now - self._told.get(device_id, -math.inf) < CROWD_LOG_SECONDS:
            return
        if len(self._told) >= CROWDS:
            self._told.clear()
        self._told[device_id] = now
        log.warning(Event.PUSH_DEVICE_SHARED, device_id=device_id, count=DEVICE_CHATS)


def log_absorbed(absorbed: Absorbed) -> None:
    """Log what a push did to a session."""
    named = {"chat_id": absorbed.chat_id, "alias": absorbed.alias}
    match absorbed.effect:
        case Effect.ADOPTED:
            log.info(Event.PUSH_SESSION_ADOPTED, **named)
        case Effect.COMPLETED:
            log.info(Event.SESSION_COMPLETED, **named)
        case Effect.INCOMPLETE:
            log.warning(Event.PUSH_UNKNOWN_SESSION, **named, device_id=absorbed.device_id)
        case Effect.LEARNED:
            log.info(Event.SESSION_TOKENS_CHANGED, **named, cause="push")
        case Effect.STALE:
            log.info(Event.PUSH_TOKENS_IGNORED, **named, cause="older than what is known, or of another kind")
        case _:
            pass


def log_unacknowledged(found: Iterable[Unacknowledged]) -> None:
    """Log Refreshes that consumers were asked for and did not send in time."""
    for each in found:
        log.warning(
            Event.ACKNOWLEDGEMENT_RAN_OUT, chat_id=each.chat_id, alias=each.alias, consumer=each.consumer
        )


def log_announced(restoration: Restoration) -> None:
    """Log and count a restoration that shutdown notices began."""
    metrics.RESTORATIONS.labels(restoration.cause.value).inc()
    log.warning(
        Event.RESTORATION_STARTED,
        restoration=restoration.id,
        server=restoration.server,
        alias=restoration.alias,
        cause=restoration.cause.value,
        sessions=restoration.sessions,
        took_ms=None,
    )


def log_progress(restoration: Restoration, rate: float) -> None:
    """Log how far a restoration is. `rate`: sessions done per second, lately."""
    log.info(
        Event.RESTORATION_PROGRESS,
        restoration=restoration.id,
        server=restoration.server,
        restored=restoration.restored,
        ended=restoration.ended,
        refused=restoration.refused,
        waiting=restoration.waiting,
        rate=round(rate, 1),
        left_s=round(restoration.waiting / rate) if rate > 0 else None,
    )
