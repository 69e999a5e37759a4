"""What control and delivery tell alike of Refreshes that a consumer is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from asyncchatd.log import Event, get_logger
from asyncchatd.model import HandedOut, StoredEvent

log = get_logger()


def tell_asked(consumer: str, events: Iterable[StoredEvent], handed: HandedOut) -> None:
    """Log those that a consumer is told for the first time."""
    for event in events:
        asked = handed.asked.get(event.id)
        if asked is None or asked.again:
            continue
        log.info(Event.ACKNOWLEDGEMENT_ASKED, chat_id=event.chat_id, consumer=consumer, for_ms=asked.left_ms)
