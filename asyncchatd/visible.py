"""Text from outside, made fit to be seen.

An id, a cause or a name that came from outside may hold what a terminal obeys (escape sequences move its
cursor, set its title, fill its clipboard), what turns the order of the text around it (bidi controls), what
breaks a line in two, or what nobody sees. Such a character becomes its escape, `\\x1b` or `\\u202e`, as Python
and JSON write it. Everything else stays as it is, a backslash too: what is shown is for people to read, and
`--json` for programs.
"""

from __future__ import annotations

import re


def visible(text: str, *, keep: str = "") -> str:
    """The text with an escape for every character that is not seen as itself, but for those in `keep`."""
    if text.isprintable() and (text.isascii() or not _UNSEEN.search(text)):
        return text
    return "".join(c if c in keep or _is_seen(c) else _ESCAPES.get(c) or _escape(c) for c in text)


def visible_json(text: str) -> str:
    """JSON text of the same meaning in which every such character within a string is written as an escape."""
    if text.isascii() and "\x7f" not in text:
        return text  # what is below U+0020 every writer of JSON has escaped already
    return "".join(c if c in " \n" or _is_seen(c) else _json_escape(c) for c in text)


_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that show nothing; Unicode calls them printable."""


def _is_seen(character: str) -> bool:
    """Neither a control, a format character such as a bidi override or a zero-width space, half a surrogate
    pair, a separator other than the space, nor a letter that shows nothing."""
    return character.isprintable() and not _UNSEEN.match(character)


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n : n + 2].hex()}" for n in range(0, len(units), 2))
