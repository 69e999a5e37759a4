"""The format by which lnav reads our log: `python -m asyncchatd.story.lnav > etc/asyncchatd.lnav.json`.

Written from the catalogue, so that a new field is a column in lnav's SQL too.
"""

from __future__ import annotations

import json
from typing import get_args

from asyncchatd.log import FIELDS, Level

IDENTIFIERS = {"chat_id", "alias", "previous_alias", "server", "restoration", "node", "device_id"}
"""Coloured by their value, so that one chat is seen at a glance."""

WHOLE = {
    *("attempt", "attempts", "bytes", "count", "ended", "in_flight", "pid", "quit_code", "refused"),
    *("restoration", "restored", "servers", "sessions", "waiting"),
}
SEVERAL = {"receiver", "control"}
SHOWN = ("chat_id", "server", "reason", "cause", "message")
"""Behind the event on its line; the other fields stand below it."""


def lnav_format() -> dict[str, object]:
    """The file's content."""
    head: dict[str, dict[str, object]] = {
        "time": {"kind": "string", "hidden": True},
        "level": {"kind": "string"},
        "event": {"kind": "string", "identifier": True},
        "exception": {"kind": "string"},
    }
    line: list[object] = [{"field": "__timestamp__", "timestamp-format": "%H:%M:%S.%L"}, " "]
    line += [{"field": "level", "min-width": 8}, " ", {"field": "event", "min-width": 24}]
    for name in SHOWN:
        line += [" ", {"field": name, "default-value": ""}]
    return {
        "$schema": "https://lnav.org/schemas/format-v1.schema.json",
        "asyncchatd_log": {
            "title": "asyncchatd",
            "description": "JSON lines of asyncchatd; events and fields are described in docs/log-events.md",
            "json": True,
            "hide-extra": False,
            "timestamp-field": "time",
            "level-field": "level",
            "body-field": "event",
            "opid-field": "chat_id",
            "level": {level: f"^{level}$" for level in get_args(Level)},
            "line-format": line,
            "value": head | {name: _value(name, FIELDS[name]) for name in sorted(FIELDS)},
        },
    }


def _value(name: str, meaning: str) -> dict[str, object]:
    number = name in WHOLE or name == "rate" or name.endswith(("_ms", "_s"))
    kind = "json" if name in SEVERAL else "integer" if name in WHOLE else "float" if number else "string"
    value: dict[str, object] = {"kind": kind, "description": meaning.replace("`", "")}
    if name in IDENTIFIERS:
        value["identifier"] = True
        if number:
            value["foreign-key"] = True
    return value


if __name__ == "__main__":
    print(json.dumps(lnav_format(), indent=4))
