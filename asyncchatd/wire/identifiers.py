"""What a token is: the one definition, for pushes, replies and registrations alike.

Chat ids, user ids, secure keys, aliases and device ids are opaque: nothing is known of their form
(protocol section 2). But some texts are certainly none. A program that has no key writes `null` or
`undefined`, a log or a gateway masks one as `****`, a template is sent before it was filled in. Such a
text taken for a secure key throws the customer out, as an alias it sends him to a server that is not
there, and `.` or `..` in a path addresses something else entirely. So a placeholder is as good as
nothing said, wherever it comes from.
"""

from __future__ import annotations

import re

LARGEST_ID = 1024
"""Characters of a token. Those of CometD, the longest known, have some hundred."""

_MAX_INTEGER = 2**63 - 1
_MAX_EXACT_FLOAT = 2**53

_PLACEHOLDERS = frozenset(
    (
        *("null", "none", "nil", "nan", "na", "undefined", "void", "infinity", "true", "false"),
        *("objectobject", "object", "string", "empty", "unknown", "placeholder", "todo", "tbd"),
        *("redacted", "masked", "hidden", "filtered", "removed", "missing", "unset", "unspecified"),
        *("notset", "notavailable", "nokey"),
        # A template that nobody filled in, `{secureKey}`, or the name where the value should be.
        *("chatid", "sessionid", "userid", "securekey", "appdbid", "alias", "deviceid"),
    )
)
"""Without regard to case, blanks and punctuation: `(null)`, `[object Object]`, `<NONE>`, `n/a`."""

_LONGEST_PLACEHOLDER = max(map(len, _PLACEHOLDERS))

_MASK = 8
"""So often the same letter or digit, and nothing else, is a mask (the UUID of zeros, for instance).
Fewer may be an alias: DBIDs like 111 or 2222 are as good as others."""

_X_MASK = 3
"""The letter x, which people write for what they leave out, needs fewer."""

_LONGEST_SERIES = 64
"""Characters of a text whose words are looked at one by one."""

_WORDS = re.compile(r"[^\W_]+")

_SHORTENED = re.compile(r"\*{3}|[•●■█]{3}|…|\.{3}$")
"""A key whose middle or end was left out before it was shown."""


def as_token(value: object) -> str | None:
    """An identifier as the string it is compared and sent as: `117`, `117.0` and `"117"` are `"117"`.

    `None` when nothing usable is said: a placeholder, another type, or a number too big to be exact.
    """
    if isinstance(value, str):
        return value if is_token(value) else None
    if type(value) is int:
        return str(value) if -_MAX_INTEGER <= value <= 2 * _MAX_INTEGER + 1 else None
    if type(value) is float and value.is_integer() and abs(value) < _MAX_EXACT_FLOAT:
        return str(int(value))
    return None


def is_token(text: str) -> bool:
    """Whether `text` can be an identifier.

    It has a letter or a digit, which `..` and `****` have not, and it is printable: a control
    character, or a character damaged on its way (U+FFFD), would make half a secure key of it, and that
    is a wrong one.
    """
    if len(text) > LARGEST_ID:
        return False
    if text.isascii() and text.isalnum():  # as nearly always
        if len(text) > _LONGEST_PLACEHOLDER:
            return text.count(text[0]) < len(text)
        return _is_said(text)
    if text.isascii() and (letters := text.replace("-", "")).isalnum():  # as device ids and UUIDs
        # What stands below comes to the same, and takes two to four times as long.
        if len(text) <= _LONGEST_SERIES and _PLACEHOLDERS.issuperset(filter(None, text.lower().split("-"))):
            return False
        return _is_said(letters)
    if not text.isprintable() or "\ufffd" in text or _SHORTENED.search(text):
        return False
    if len(text) <= _LONGEST_SERIES and _PLACEHOLDERS.issuperset(_WORDS.findall(text.lower())):
        return False  # or nothing but such, put together of several: `undefined undefined`
    return _is_said("".join(filter(str.isalnum, text)))


def _is_said(letters: str) -> bool:
    if len(letters) <= _LONGEST_PLACEHOLDER and (not letters or letters.lower() in _PLACEHOLDERS):
        return False
    first = letters[0]
    if letters.count(first) == len(letters):
        return len(letters) < (_X_MASK if first in "xX" else _MASK)
    return True
