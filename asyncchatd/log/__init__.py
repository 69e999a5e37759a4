"""The log: the catalogue of events, how a line is made, kept and counted."""

from asyncchatd.log import events, metrics
from asyncchatd.log.events import FIELDS, LAST_LINES_SECONDS, Event, Level, flush, get_logger, recent, redact
from asyncchatd.log.gathered import Gathered

__all__ = [
    "FIELDS",
    "LAST_LINES_SECONDS",
    "Event",
    "Gathered",
    "Level",
    "events",
    "flush",
    "get_logger",
    "metrics",
    "recent",
    "redact",
]
