"""The log: the catalogue of events, how a line is made, kept and counted."""

from asyncchatd.log import metrics
from asyncchatd.log.events import FIELDS, Event, Level, Subject, Trait
from asyncchatd.log.gathered import Gathered
from asyncchatd.log.lag import watch_lag
from asyncchatd.log.lines import (
    LAST_LINES_SECONDS,
    configure,
    flush,
    get_logger,
    go_on_in,
    leave_if_nobody_reads,
    open_file,
    set_level,
)
from asyncchatd.log.recent import Noted
from asyncchatd.log.redaction import redact, scrub
from asyncchatd.log.rendering import recent

__all__ = [
    "FIELDS",
    "LAST_LINES_SECONDS",
    "Event",
    "Gathered",
    "Level",
    "Noted",
    "Subject",
    "Trait",
    "configure",
    "flush",
    "get_logger",
    "go_on_in",
    "leave_if_nobody_reads",
    "metrics",
    "open_file",
    "recent",
    "redact",
    "scrub",
    "set_level",
    "watch_lag",
]
