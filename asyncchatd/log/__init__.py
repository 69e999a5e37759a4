"""The log: the catalogue of events, how a line is made, kept and counted."""

from asyncchatd.log import events, metrics
from asyncchatd.log.events import FIELDS, LAST_LINES_SECONDS, Event, Level, flush, get_logger, recent, redact

__all__ = [
    "FIELDS",
    "LAST_LINES_SECONDS",
    "Event",
    "Level",
    "events",
    "flush",
    "get_logger",
    "metrics",
    "recent",
    "redact",
]
