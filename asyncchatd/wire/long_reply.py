"""A Chat API reply that is too long to keep: what is needed of it is taken while it streams past.

A transcript has no bound, and the reply that carries it may carry a new secure key, which nobody tells again. So
of a long reply the fields at the top are kept and the messages are read one by one and let go. What comes out is
a short reply with the same meaning, for the same readers as any other: nothing but a document that was well-formed
to its end gives one, and nothing below its top level, where participants write, gets there.

Only the two uppermost levels are cut here; what a piece is says `read_json`, which also bounds its nesting. A
streaming parser would be the thing to use, but YAJL, behind `ijson`, makes "ab?cd" of a key with half a surrogate
pair, which is a wrong key and does not look damaged, and refuses a whole transcript for one control character in
it, where `read_json` is patient.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from itertools import product

import orjson

from asyncchatd.wire.lenient_json import NotJson, as_json, as_text, as_whole, read_json

MAX_VALUE = 4 * 1024 * 1024
"""Bytes of one message, of one field that is no list, and of all that is kept."""

MAX_FIELDS = 1000
"""At the top, of whatever names. Chat API's replies have ten."""

GUESSES = 3
"""Places at which a run of elements is guessed to end, before the next one is cut out by itself."""

KEPT = frozenset(
    (
        *("statusCode", "chatId", "userId", "secureKey", "alias", "nextPosition", "chatEnded", "errors"),
        *("exception", "error", "message"),  # what an answer that is no reply says of itself
    )
)
"""Fields that are kept. Of other lists each element is let go when it was read."""

MESSAGES = "messages"

MESSAGES_KEPT = 96 * 1024
"""Bytes of messages that are kept, the last of them: so few that the short reply is read at once, and not in a
thread."""


OVERHEAD = 48
"""Bytes that each of them takes besides."""


class _Place(Enum):
    """Where in the document it is; what stands next."""

    START = auto()
    FIRST_NAME = auto()
    NAME = auto()
    COLON = auto()
    FIELD = auto()
    AFTER_FIELD = auto()
    FIRST_ELEMENT = auto()
    ELEMENT = auto()
    AFTER_ELEMENT = auto()
    END = auto()


_STEPS: dict[_Place, dict[bytes, _Place]] = {
    _Place.START: {b"{": _Place.FIRST_NAME},
    _Place.FIRST_NAME: {b"}": _Place.END},
    _Place.COLON: {b":": _Place.FIELD},
    _Place.AFTER_FIELD: {b",": _Place.NAME, b"}": _Place.END},
    _Place.FIRST_ELEMENT: {b"]": _Place.AFTER_FIELD},
    _Place.AFTER_ELEMENT: {b",": _Place.ELEMENT, b"]": _Place.AFTER_FIELD},
}
"""The marks that are no values, and where they lead."""

_NAMES = frozenset((_Place.FIRST_NAME, _Place.NAME))
_ELEMENTS = frozenset((_Place.FIRST_ELEMENT, _Place.ELEMENT))
_VALUES = _ELEMENTS | {_Place.FIELD}

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BEGINS = frozenset(b'"{[-0123456789tfnNI')
"""What a value begins with, as `read_json` takes it."""

_READERS: Sequence[Callable[[bytes], object]] = (orjson.loads, read_json)
"""The strict one finds out sooner that a guess was wrong."""

# Each goes as far as it can and never fails, so none of them looks at a byte twice.
_blanks = re.compile(rb"[ \t\n\r]*").match
_in_scalar = re.compile(rb'[^ \t\n\r,:\[\]{}"]*').match
_in_string = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL).match
"""To the quote that ends it, or a backslash with nothing behind."""
_between = re.compile(rb'[^"{}\[\]]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"{}\[\]]*)*', re.DOTALL).match
"""To the next bracket, or to a string that does not end here."""

_BACKSLASH = b"\\"[0]


class LongReply:
    """Takes a body in pieces of any size; the first has three bytes or more."""

    def __init__(self) -> None:
        self.too_large = False
        """Whether one value was, or all that is kept. Nothing more is read then."""
        self._place = _Place.START
        self._broken = False
        self._first = b""
        self._name = ""
        self._kept: dict[str, bytes] = {}
        """Fields as they came, by name. Of one that came twice the last counts, as in every reader of JSON."""
        self._fields = 0
        self._messages: deque[bytes] = deque()
        """The last ones, as JSON."""
        self._size = 0
        self._cut = False
        """Whether others came before them."""
        self._newest: dict[str, object] | None = None
        """Of the message with the latest time what says when and what it was."""
        self._latest = 0
        # The value that is being read:
        self._reading = False
        self._value = bytearray()
        """What came of it in earlier pieces."""
        self._depth = 0
        """Brackets that are open in it."""
        self._quoted = self._escaped = False
        """Whether it stands inside a string, and behind a backslash in it."""

    def feed(self, piece: bytes) -> None:
        """Read on. What cannot become a reply any more is passed over."""
        at = 0
        if self._place is _Place.START and piece.startswith(_BYTE_ORDER_MARK) and not self._first:
            at = len(_BYTE_ORDER_MARK)
        guessed = False
        try:
            while at < len(piece) and not (self._broken or self.too_large):
                if self._reading:
                    at = self._read_value(piece, at)
                elif self._place in _ELEMENTS and not guessed:
                    guessed = True
                    at = self._read_run(piece, at)
                else:
                    at = self._step(piece, at)
        except NotJson:
            self._broken = True

    def end(self) -> bytes:
        """The short reply. Where the document is not whole and well-formed, its first byte, which tells a page from
        a broken object and is never a reply."""
        if self._broken or self._place is not _Place.END:
            return self._first
        fields = [b'"%s":%s' % (name.encode(), value) for name, value in self._kept.items()]
        if self._newest is not None or self._messages:
            # Of the newest of all what says when it was, where it is not among those kept: `replies.CUT`.
            stub = [orjson.dumps(self._newest or {})] if self._cut else []
            fields.append(b'"%s":[%s]' % (MESSAGES.encode(), b",".join((*stub, *self._messages))))
            if self._cut:
                fields.append(b'"asyncchatd-cut":true')
        return b"{%s}" % b",".join(fields)

    def _step(self, piece: bytes, at: int) -> int:
        """Over a mark between values, or to the beginning of one."""
        at = _end(_blanks(piece, at))
        byte = piece[at : at + 1]
        if not byte:
            return at
        if self._place is _Place.START:
            self._first = byte
        place = _STEPS.get(self._place, {}).get(byte)
        if place is not None:
            self._place = place
            return at + 1
        if self._place is _Place.FIELD and byte == b"[" and self._name not in KEPT:
            self._place = _Place.FIRST_ELEMENT
            if self._name == MESSAGES:
                self._forget()
            return at + 1
        is_name = self._place in _NAMES and byte == b'"'
        if not (is_name or (self._place in _VALUES and byte[0] in _BEGINS)):
            raise NotJson("misplaced")
        self._reading = True
        return at

    def _read_run(self, piece: bytes, at: int) -> int:
        """Over as many whole elements as a guess at their end finds, all read in one go. Where the guess is wrong the
        text is no list: no beginning of a list becomes one by a bracket but where an element ends."""
        for read, end in product(_READERS, _ends(piece, at)):
            try:
                elements = read(b"[%s]" % piece[at:end])
            except ValueError:
                continue
            if isinstance(elements, list) and elements:
                self._place = _Place.AFTER_ELEMENT
                if self._name == MESSAGES:
                    self._note(elements)
                return end
        return at

    def _read_value(self, piece: bytes, start: int) -> int:
        """To the end of the value, or as far as it came."""
        at, ended = self._advance(piece, start)
        part = piece[start:at]
        if len(self._value) + len(part) > MAX_VALUE:
            self.too_large = True
        elif not ended:
            self._value += part
        else:
            self._reading = False
            if self._value:
                part = bytes(self._value) + part
                self._value.clear()
            self._take(part)
        return at

    def _advance(self, piece: bytes, at: int) -> tuple[int, bool]:
        """How far the value goes in this piece, and whether that is its end."""
        depth, end = self._depth, len(piece)
        while at < end:
            if self._escaped:
                self._escaped = False
                at += 1
            elif self._quoted:
                at = _end(_in_string(piece, at))
                if at < end:
                    self._quoted = self._escaped = piece[at] == _BACKSLASH
                    at += 1
                    if not (self._quoted or depth):
                        return at, True
            elif depth == 0 and (self._value or piece[at] not in b'"{['):
                at = _end(_in_scalar(piece, at))
                return at, at < end
            else:
                at = _end(_between(piece, at)) if depth else at
                mark = piece[at : at + 1]
                at += len(mark)
                if mark == b'"':
                    self._quoted = True
                elif mark:
                    depth += 1 if mark in b"{[" else -1
                    if depth == 0:
                        self._depth = 0
                        return at, True
        self._depth = depth
        return end, False

    def _take(self, value: bytes) -> None:
        """A value is whole. It is read whatever it is: all of the document must be well-formed."""
        read = read_json(value)
        if self._place in _NAMES:
            self._name, self._place = str(read), _Place.COLON
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise NotJson("no reply has so many fields")
        elif self._place in _ELEMENTS:
            self._place = _Place.AFTER_ELEMENT
            if self._name == MESSAGES:
                self._note([read])
        else:
            self._place = _Place.AFTER_FIELD
            if self._name in KEPT:
                self._kept[self._name] = value
                self.too_large = sum(map(len, self._kept.values())) > MAX_VALUE
            elif self._name == MESSAGES:
                self._forget()

    def _forget(self) -> None:
        """The field came once more: the last one counts."""
        self._newest, self._cut, self._size = None, False, 0
        self._messages.clear()

    def _note(self, messages: Sequence[object]) -> None:
        for message in messages:
            if not isinstance(message, dict):
                continue
            self._keep(message)
            time = as_whole(message.get("utcTime"))
            if time is not None and (self._newest is None or time > self._latest):
                self._latest = time
                what = {"index": as_whole(message.get("index")), "type": as_text(message.get("type"))}
                self._newest = {**what, "utcTime": time}

    def _keep(self, message: dict[str, object]) -> None:
        written = as_json(message)
        if written is None:
            self._cut = True
            return
        # A copy: what orjson makes holds on to the room in which it was written, four kilobytes each.
        self._messages.append(bytes(memoryview(written)))
        self._size += len(written) + OVERHEAD
        while self._size > MESSAGES_KEPT:
            self._size -= len(self._messages.popleft()) + OVERHEAD
            self._cut = True


def _ends(piece: bytes, start: int) -> Iterator[int]:
    """Where elements may end: with an object, as messages do, or before a comma."""
    end = len(piece)
    for _ in range(GUESSES):
        end = piece.rfind(b"}", start, end)
        if end < 0:
            break
        yield end + 1
    if (end := piece.rfind(b",", start)) >= 0:
        yield end


def _end(match: re.Match[bytes] | None) -> int:
    return -1 if match is None else match.end()
