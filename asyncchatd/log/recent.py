"""The last warnings and errors, kept in memory for the status page.

A storm says the same thing thousands of times, and what caused it said something once. So what is alike
(the same event of the same Chat Server, node or cause) is one entry with a count, and only so many
different ones are kept, those that were last heard.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from asyncchatd.model import Hidden, Value

KINDS = 100
LONGEST_TEXT = 300

SAME = ("event", "key", "server", "node", "alias", "restoration", "code", "cause")
"""What makes two of them alike. Not the chat: a lost Chat Server is one trouble, not one for each chat."""

Fields = Mapping[str, object]
Plain = str | int | float | bool | None


class Noted(Value, frozen=True):
    """A warning or an error, those of one kind drawn together, without secrets."""

    event: str
    level: str
    meaning: str
    count: int
    first: datetime
    last: datetime
    fields: Hidden[dict[str, Plain]]
    """Those of the last one."""


@dataclass(slots=True)
class _Entry:
    level: str
    fields: dict[str, object]
    first: datetime
    last: datetime
    count: int = 0
    shown: dict[str, Plain] | None = None
    """What `fields` look like without secrets, once somebody has asked."""


class Recent:
    """Bounded whatever happens; looking for secrets waits until somebody asks."""

    def __init__(self, clean: Callable[[dict[str, object]], dict[str, object]], kinds: int = KINDS) -> None:
        self._clean = clean
        self._kinds = kinds
        self._entries: OrderedDict[tuple[str, ...], _Entry] = OrderedDict()

    def note(self, level: str, fields: Fields) -> None:
        """Something of this level was logged."""
        # A traceback would keep alive whatever its frames hold.
        said = {name: value for name, value in fields.items() if name != "exc_info" and value is not None}
        now = datetime.now(UTC)
        key = tuple(str(said.get(name, "")) for name in SAME)
        entry = self._entries.setdefault(key, _Entry(level, said, now, now))
        entry.fields, entry.last, entry.shown = said, now, None
        entry.count += 1
        self._entries.move_to_end(key)
        while len(self._entries) > self._kinds:
            self._entries.popitem(last=False)

    def noted(self, limit: int) -> list[Noted]:
        """The last ones first, without secrets."""
        last = list(self._entries.values())[: -limit - 1 : -1]
        return [
            Noted(
                event=str(entry.fields["event"]),
                level=entry.level,
                meaning=str(getattr(entry.fields["event"], "meaning", "")),
                count=entry.count,
                first=entry.first,
                last=entry.last,
                fields=self._fields(entry),
            )
            for entry in last
        ]

    def forget(self) -> None:
        """As if nothing had happened."""
        self._entries.clear()

    def _fields(self, entry: _Entry) -> dict[str, Plain]:
        if entry.shown is None:
            clean = self._clean({name: value for name, value in entry.fields.items() if name != "event"})
            entry.shown = {name: _short(value) for name, value in clean.items()}
        return entry.shown


def _short(value: object) -> Plain:
    """What any JSON can hold: numbers within 53 bits, text without half a surrogate pair."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 53):
        return value
    text = str(value).encode(errors="backslashreplace").decode()
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"
