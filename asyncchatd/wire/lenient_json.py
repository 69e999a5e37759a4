"""JSON from senders nobody controls: the one reader and the narrowing of raw values.

What comes in may be cut off, wrongly encoded, of the wrong type or hostile. Everything here answers
with a value, `None`, or `NotJson`; nothing else is ever raised. Strings that come out can always be
encoded to UTF-8 again.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

import orjson

MAX_TEXT_NESTING = 16
"""How often JSON text inside JSON text is unwrapped. Quoting doubles the backslashes each time, so
honest senders stay far below."""

_MAX_KEY = 64
_MAX_INTEGER = 2**63 - 1
_MAX_EXACT_FLOAT = 2**53
_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,18})(?:\.0*)?\s*", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")


class NotJson(ValueError):
    """The text is not JSON, not even to a lenient reader."""


def read_json(data: bytes | str) -> object:
    """The JSON value in `data`.

    Beyond the standard this takes: a byte order mark, bytes that are not UTF-8 and lone surrogates
    (each becomes U+FFFD), control characters inside strings, NaN and infinities. Raises `NotJson`.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        return _read_leniently(data)


def opened_text(text: str) -> dict[str, object] | list[object] | None:
    """The object or list that `text` is the JSON text of, also when it was quoted several times.

    `None` for everything else: plain text, numbers, broken JSON.
    """
    for _ in range(MAX_TEXT_NESTING):
        # A look at both ends spares plain text, by far the most common, the cost of an exception.
        ends = (text := text.strip())[:1] + text[-1:]
        if ends not in ("{}", "[]", '""'):
            return None
        try:
            value = read_json(text)
        except NotJson:
            return None
        if isinstance(value, (dict, list)):
            return value
        if not isinstance(value, str):
            return None
        text = value
    return None


def as_object(value: object) -> dict[str, object] | None:
    """`value` when it is a JSON object, or JSON text of one."""
    if isinstance(value, str):
        value = opened_text(value)
    return value if isinstance(value, dict) else None


def as_whole(value: object) -> int | None:
    """A whole number from a number or its text (`3`, `3.0`, `"3"`), within 63 bits; else `None`."""
    if type(value) is int:
        return value if -_MAX_INTEGER <= value <= _MAX_INTEGER else None
    if type(value) is float:
        return int(value) if value.is_integer() and abs(value) < _MAX_EXACT_FLOAT else None
    if isinstance(value, str) and (match := _WHOLE.fullmatch(value)):
        return int(match[1])
    return None


def as_flag(value: object) -> bool | None:
    """`true`/`false` as a boolean or as text in any case; else `None`."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return None


def as_text(value: object) -> str | None:
    """`value` when it is a string."""
    return value if isinstance(value, str) else None


def folded(name: str) -> str:
    """A field's name without regard to case, hyphens and underscores: `session-id`, `sessionId` and
    `SESSION_ID` are all `sessionid`. Names longer than any known one come back unchanged."""
    return _folded(name) if len(name) <= _MAX_KEY else name


@lru_cache(maxsize=2048)
def _folded(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _read_leniently(data: bytes | str) -> object:
    text = data.decode("utf-8-sig", "replace") if isinstance(data, bytes) else data.removeprefix("\ufeff")
    try:
        value = json.loads(text, strict=False, parse_int=_integer)
    except (ValueError, RecursionError) as refusal:
        raise NotJson("not JSON") from refusal
    return _without_surrogates(value)


def _integer(digits: str) -> int | float:
    # Python refuses to convert thousands of digits; as a float they are infinite or at least huge.
    return int(digits) if len(digits) < 100 else float(digits)


def _without_surrogates(root: object) -> object:
    """`root` with every lone surrogate replaced. In place and without recursion: depth is hostile."""
    box: list[object] = [root]
    pending: list[list[object] | dict[str, object]] = [box]
    while pending:
        container = pending.pop()
        if isinstance(container, dict):
            cleaned = {_SURROGATE.sub("\ufffd", key): _clean(value) for key, value in container.items()}
            container.clear()
            container.update(cleaned)
            pending += [value for value in cleaned.values() if isinstance(value, (dict, list))]
        else:
            container[:] = [_clean(value) for value in container]
            pending += [value for value in container if isinstance(value, (dict, list))]
    return box[0]


def _clean(value: object) -> object:
    return _SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def as_json(value: dict[str, object]) -> bytes | None:
    """An object that was read, written again. None where that cannot be: it is nested too deeply, or has a number that
    JSON has not."""
    try:
        return orjson.dumps(value)
    except TypeError:  # half a surrogate pair, a number of more than 64 bits, or too deep
        try:
            return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        except (RecursionError, ValueError):
            return None
