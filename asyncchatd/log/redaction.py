"""Redaction: no secret gets out.

Values of fields that are named like a secret, secrets made known with `redact`, and `secureKey=...` in any text,
tracebacks included, become `[redacted]`. A line is rendered first and looked at once for anything suspicious;
only then it is searched value by value. That keeps the line that is written for every push cheap.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

from asyncchatd.log.events import Event
from asyncchatd.log.jsonable import as_json, as_text

REDACTED = "[redacted]"


def redact(secret: str) -> None:
    """From now on this text appears in no line, neither as it is nor encoded as JSON or in a URL.

    A text of less than 8 characters is only hidden where it stands alone, so that the secret `a` does not
    take all the a's away.
    """
    in_url = {quote(secret, safe="", errors="replace"), quote_plus(secret, errors="replace")}
    for form in {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], *in_url} - {""}:
        pattern = re.escape(form)
        alone = rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"
        _secrets[form] = re.compile(pattern if len(form) >= 8 else alone)
        _needles.update({form.encode(errors="replace"), as_json({"": form})[5:-2]})


def scrub(text: str) -> str:
    """The text without secrets: those made known with `redact`, and what follows `secureKey=` or such."""
    for pattern in _secrets.values():
        text = pattern.sub(REDACTED, text)
    return _ASSIGNED.sub(rf"\g<key>\g<quote>{REDACTED}\g<end>", text)


_secrets: dict[str, re.Pattern[str]] = {}
_needles: set[bytes] = set()

_WORDS = re.compile(rb"secur|secret|passw|pwd|authori|cookie|api[-_ ]?key")
"""What a line has in it, in lower case, when a key or text of it may need redaction."""

_NAMES = ("securekey", "secret", "passw", "pwd", "apikey", "authorization", "cookie")
"""What the name of a secret has in it, in lower case and without punctuation."""

_ASSIGNED = re.compile(
    r"""
    (?P<key>
        (?: secure[-_ ]?key | password | passwd | pwd | api[-_ ]?key | authorization | secret (?=s?=) ) s?
        (?: \\*["'] )?                          # the name may be quoted, and the quotes escaped
        (?: \s*[:=]>?\s* | (?<=')\s*,\s* )      # 'name', 'value' is how Python shows a pair of a header
        (?: (?:basic|bearer|digest)\s+ )?
        b?
    )
    # Bounded, so that many quotes that nobody closes are not each looked for to the end of the text.
    (?: (?P<quote>\\*["']) .{0,4096}? (?P<end>(?<!\\)(?P=quote)) | \\*["']? [^\s&"'\\,;)}\]<>]+ )
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def suspicious(rendered: bytes) -> bool:
    for needle in _needles:
        if needle in rendered:
            return True
    # Searching a lower-case copy takes a third of the time of searching without regard to case.
    return _WORDS.search(rendered.lower()) is not None


def clean(line: dict[str, object]) -> dict[str, object]:
    return {
        key: value if key in _OURS else _hidden(value) if _names_secret(key) else _cleaned(value)
        for key, value in line.items()
    }


_OURS = {"time", "level"}


def _cleaned(value: object, depth: int = 0) -> object:
    """The value without secrets. What is neither text, number, list nor table becomes text first."""
    if value is None or isinstance(value, bool | int | float):
        return REDACTED if str(value) in _secrets else value
    if isinstance(value, Event):
        return value
    if isinstance(value, str):
        return scrub(value)
    if depth < 8 and isinstance(value, Mapping):
        return {
            scrub(str(key)): _hidden(item) if _names_secret(str(key)) else _cleaned(item, depth + 1)
            for key, item in value.items()
        }
    if depth < 8 and isinstance(value, list | tuple | set | frozenset):
        return [_cleaned(item, depth + 1) for item in value]
    return scrub(as_text(value))


def _hidden(value: object) -> object:
    """A value whose name says it is secret; that there is none, or whether, may be seen."""
    return value if value is None or isinstance(value, bool) else REDACTED


@functools.lru_cache(maxsize=1024)
def _names_secret(key: str) -> bool:
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    return any(name in plain for name in _NAMES)
