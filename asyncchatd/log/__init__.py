"""The log: the catalogue of events, how a line is made, kept and counted."""

from typing import TYPE_CHECKING

from asyncchatd.faces import on_demand

if TYPE_CHECKING:
    from asyncchatd.log import metrics
    from asyncchatd.log.events import Event, Level, Subject, Trait
    from asyncchatd.log.fields import FIELDS
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
    from asyncchatd.log.rendering import recent_lines
else:
    __getattr__ = on_demand(
        __name__,
        {
            "events": ("Event", "Level", "Subject", "Trait"),
            "fields": ("FIELDS",),
            "gathered": ("Gathered",),
            "lag": ("watch_lag",),
            "lines": (
                "LAST_LINES_SECONDS",
                "configure",
                "flush",
                "get_logger",
                "go_on_in",
                "leave_if_nobody_reads",
                "open_file",
                "set_level",
            ),
            "metrics": (),
            "recent": ("Noted",),
            "redaction": ("redact", "scrub"),
            "rendering": ("recent_lines",),
        },
    )

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
    "recent_lines",
    "redact",
    "scrub",
    "set_level",
    "watch_lag",
]
