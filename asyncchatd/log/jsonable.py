"""A line as JSON, whatever is in it: a line of the log must never become an error of the daemon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

import orjson


def as_json(line: Mapping[str, object]) -> bytes:
    """The line as JSON, whatever is in it: a line of the log must never become an error of the daemon."""
    try:
        return orjson.dumps(line, as_text, orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError:  # a number above 64 bits, half a surrogate pair, a key that is no text
        return json.dumps(_plain(line), default=as_text).encode()


def _plain(value: object, depth: int = 0) -> object:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()} if depth < 8 else "..."
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in value] if depth < 8 else "..."
    return value


def as_text(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
