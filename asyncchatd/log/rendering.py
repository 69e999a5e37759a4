"""From an event to a line: JSON for programs, colours on a terminal."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime

from asyncchatd.lean import absent
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.log.jsonable import as_json
from asyncchatd.log.recent import Recent
from asyncchatd.log.redaction import clean, suspicious
from asyncchatd.visible import visible, visible_json

with absent("rich"):  # structlog would read it, where it is there, for tracebacks that are not ours
    import structlog

Fields = MutableMapping[str, object]

recent_lines = Recent(clean)
"""The last warnings and errors, without secrets."""

_GRAVE = ("warning", "error", "critical")

for _event in Event:
    if _event.level in _GRAVE:
        metrics.LOG_EVENTS.labels(_event, _event.level)  # a rate wants to have seen the zero


def remember(_logger: object, level: str, fields: Fields) -> Fields:
    if level in _GRAVE:
        metrics.LOG_EVENTS.labels(str(fields.get("event")), level).inc()
        recent_lines.note(level, fields)
    return fields


def to_json(_logger: object, level: str, fields: Fields) -> bytes:
    line = _stamped(level, fields)
    rendered = as_json(line)
    rendered = as_json(clean(line)) if suspicious(rendered) else rendered
    if rendered.isascii() and b"\x7f" not in rendered:
        return rendered
    return visible_json(rendered.decode()).encode()


def to_console(colors: bool) -> Callable[[object, str, Fields], bytes]:
    # Without its own formatter structlog shows exceptions with the local variables of every frame.
    render = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)

    def render_line(logger: object, level: str, fields: Fields) -> bytes:
        line = {visible(key): _shown(key, value) for key, value in clean(_stamped(level, fields)).items()}
        line["timestamp"] = datetime.now().strftime("%H:%M:%S.%f")[:-3]
        del line["time"]
        return render(logger, level, line).encode(errors="backslashreplace")

    return render_line


def _shown(key: str, value: object) -> object:
    """A value as a terminal may have it; only our own tracebacks have lines."""
    if not isinstance(value, str) or isinstance(value, Event):
        return value
    return visible(value, keep="\n" if key == "exception" else "")


def _stamped(level: str, fields: Fields) -> dict[str, object]:
    """The line in the order in which it is read: when, how bad, what; then the rest."""
    event = fields.pop("event", None)
    problem = fields.pop("exc_info", None)
    line = {"time": datetime.now(UTC), "level": level, "event": event, **fields}
    if problem:
        line["exception"] = _traceback(problem)
    return line


def _traceback(problem: object) -> str | None:
    if isinstance(problem, tuple):
        problem = problem[1]
    if not isinstance(problem, BaseException):
        problem = sys.exc_info()[1]
    return "".join(traceback.format_exception(problem)).rstrip() if problem else None
