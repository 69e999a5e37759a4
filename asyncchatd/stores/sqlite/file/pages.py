"""A damaged SQLite file and its log, read page by page without SQLite, as
https://www.sqlite.org/fileformat2.html describes them, for `salvage.py`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

Value = int | float | str | bytes | None
Row = tuple[Value, ...]

PAGE_SIZE = 4096
"""SQLite's own choice, where neither file nor log says it."""

TREE_NODE, TREE_LEAF = 0x05, 0x0D
"""How a page of a table begins."""

_BAD_PAGE = (IndexError, ValueError, struct.error, OverflowError)


class Tree:
    """A table as its pages hang together."""

    def __init__(self, pages: Pages, root: int) -> None:
        self._pages = pages
        self._root = root
        self.whole = True
        """Whether no page of it was unreadable so far."""
        self.seen: set[int] = set()

    def rows(self) -> Iterator[tuple[int, Row]]:
        """The rows of all pages that hang in it, with their numbers."""
        waiting = [self._root]
        while waiting:
            number = waiting.pop()
            page = self._pages.read(number)
            if page is None or number in self.seen:
                self.whole = False
                continue
            start = 100 if number == 1 else 0
            try:
                children = _children(page, start) if page[start] == TREE_NODE else []
                rows = list(self._pages.rows(page, start)) if not children else []
            except _BAD_PAGE:
                self.whole = False
                continue
            self.seen.add(number)
            waiting += reversed(children)
            yield from rows


class IndexTree(Tree):
    """A table without row numbers, as its pages hang together: an index that holds the rows."""

    NODE, LEAF = 0x02, 0x0A

    def rows(self) -> Iterator[tuple[int, Row]]:
        """The rows of all pages, in no order, each with 0 as its number."""
        waiting = [self._root]
        while waiting:
            number = waiting.pop()
            page = self._pages.read(number)
            if page is None or number in self.seen or page[0] not in (self.NODE, self.LEAF):
                self.whole = False
                continue
            self.seen.add(number)
            head, before = (12, 4) if page[0] == self.NODE else (8, 0)
            try:
                [count] = struct.unpack_from(">H", page, 3)
                cells = struct.unpack_from(f">{count}H", page, head)
                rows = [_record_in_index(page, cell + before) for cell in cells]
                if before:
                    waiting += (struct.unpack_from(">I", page, cell)[0] for cell in cells)
                    waiting += struct.unpack_from(">I", page, 8)
            except _BAD_PAGE:
                self.whole = False
                continue
            yield from ((0, row) for row in rows)


def _record_in_index(page: bytes, cell: int) -> Row:
    """A row of a table without row numbers. None of ours is so long that it goes on in other pages: its record would
    end too soon. Raises one of `_BAD_PAGE`."""
    length, at = _varint(page, cell)
    return _record(page[at : at + length])


# -- pages -----------------------------------------------------------------------------------------------


class Pages:
    """The pages of a database, with those over them that its log has."""

    def __init__(self, file: int, log: Path) -> None:
        """`file` is a descriptor, used while this is."""
        self._file = file
        self._logged: dict[int, bytes] = {}
        size, self._logged, self.log_whole = _committed(log)
        self.log_there = log.exists()
        header = os.pread(file, 18, 0)
        said = int.from_bytes(header[16:18], "big")
        said = 65_536 if said == 1 else said
        plausible = header.startswith(b"SQLite") and said >= 512 and said & (said - 1) == 0
        self.size = size or (said if plausible else PAGE_SIZE)
        self.count = max(os.fstat(file).st_size // self.size, *self._logged, 0)

    def read(self, number: int) -> bytes | None:
        """A page, counted from 1; `None` where there is none."""
        if number < 1:
            return None
        page = self._logged.get(number) or os.pread(self._file, self.size, (number - 1) * self.size)
        return page if len(page) == self.size else None

    def loose(self, seen: set[int]) -> Iterator[tuple[int, Row]]:
        """What stands on all pages that look like a table's, without those that were seen."""
        for number in range(2, self.count + 1):
            page = None if number in seen else self.read(number)
            with suppress(*_BAD_PAGE):
                for cell in [] if page is None else _cells(page, 0):
                    with suppress(*_BAD_PAGE):
                        yield self._row(page or b"", cell)

    def rows(self, page: bytes, start: int) -> Iterator[tuple[int, Row]]:
        """The rows of a leaf. Raises one of `_BAD_PAGE`."""
        return (self._row(page, cell) for cell in _cells(page, start))

    def _row(self, page: bytes, cell: int) -> tuple[int, Row]:
        length, at = _varint(page, cell)
        number, at = _varint(page, at)
        return number, _record(self._payload(page, at, length))

    def _payload(self, page: bytes, at: int, length: int) -> bytes:
        """What does not fit into a page goes on in a chain of others."""
        if length > self.count * self.size:
            raise ValueError("longer than the file")
        most, least = self.size - 35, (self.size - 12) * 32 // 255 - 23
        if length <= most:
            return page[at : at + length]
        local = least + (length - least) % (self.size - 4)
        local = local if local <= most else least
        payload = page[at : at + local]
        following = int.from_bytes(page[at + local : at + local + 4], "big")
        while len(payload) < length:
            more = self.read(following)
            if more is None:
                raise ValueError("its end is missing")
            following = int.from_bytes(more[:4], "big")
            payload += more[4 : 4 + length - len(payload)]
        return payload


def _cells(page: bytes, start: int) -> tuple[int, ...]:
    """Where the cells of a table's page are. Raises `ValueError` for another page."""
    head = {TREE_NODE: 12, TREE_LEAF: 8}.get(page[start])
    if head is None:
        raise ValueError("no page of a table")
    [count] = struct.unpack_from(">H", page, start + 3)
    return struct.unpack_from(f">{count}H", page, start + head)


def _children(page: bytes, start: int) -> list[int]:
    cells = _cells(page, start)
    numbers = [struct.unpack_from(">I", page, cell)[0] for cell in cells]
    return [*numbers, struct.unpack_from(">I", page, start + 8)[0]]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where it ends."""
    value = 0
    for position in range(at, at + 8):
        byte = data[position]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position + 1
    value = value << 8 | data[at + 8]
    return (value - (1 << 64) if value >> 63 else value), at + 9


def _record(payload: bytes) -> Row:
    head, at = _varint(payload, 0)
    kinds = []
    while at < head:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Value] = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise ValueError("no record")
    return tuple(values)


_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _value(payload: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind in (10, 11) or kind < 0:
        raise ValueError("no type of SQLite's")
    width = _INTEGERS.get(kind) or (8 if kind == 7 else (kind - 12) // 2)
    content = payload[at : at + width]
    if len(content) < width:
        raise ValueError("cut off")
    if kind < 7:
        return int.from_bytes(content, "big", signed=True), at + width
    if kind == 7:
        return float(struct.unpack(">d", content)[0]), at + width
    return content if kind % 2 == 0 else content.decode(), at + width


# -- the log ---------------------------------------------------------------------------------------------


class _Logged(NamedTuple):
    """What a log has."""

    page_size: int | None
    pages: dict[int, bytes]
    """At its last commit, as far as it is sound."""
    whole: bool
    """Whether no commit comes after something that is damaged."""


def _committed(log: Path) -> _Logged:
    committed: dict[int, bytes] = {}
    try:
        file = log.open("rb")
    except OSError:
        return _Logged(None, committed, True)
    with file:
        head = file.read(32)
        if len(head) < 32:
            return _Logged(None, committed, True)
        magic, _, size, _, *salts = struct.unpack(">6I", head[:24])
        order = ">" if magic & 1 else "<"
        sums = _summed(head[:24], (0, 0), order)
        if magic | 1 != 0x377F0683 or sums != struct.unpack(">2I", head[24:]):
            return _Logged(None, committed, False)
        open_: dict[int, bytes] = {}
        for frame in iter(partial(file.read, 24 + size), b""):
            if len(frame) < 24 + size:
                break
            number, pages, *said = struct.unpack(">6I", frame[:24])
            sums = _summed(frame[:8] + frame[24:], sums, order)
            if said != [*salts, *sums]:
                file.seek(-len(frame), os.SEEK_CUR)
                return _Logged(size, committed, not _commits_follow(file, head, size))
            open_[number] = frame[24:]
            if pages:
                committed |= open_
                open_ = {}
    return _Logged(size, committed, True)


def _commits_follow(file: BinaryIO, head: bytes, size: int) -> bool:
    """Whether commits of the same log stand behind this place in it."""
    return any(
        len(frame) == 24 + size and frame[8:16] == head[16:24] and any(frame[4:8])
        for frame in iter(partial(file.read, 24 + size), b"")
    )


def _summed(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    one, two = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(islice(words, 0, None, 2), islice(words, 1, None, 2), strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return one, two


def broken_log(log: Path, index: Path) -> bool:
    """Whether SQLite left committed transactions of a log out because something before them is damaged. Asked once
    it has read the log: its index says how far. What a power loss left unfinished at the log's end is no damage."""
    try:
        with log.open("rb") as file, index.open("rb") as beside:
            head, header = file.read(32), beside.read(20)
            if len(head) < 32:
                return False
            size = int.from_bytes(head[8:12], "big")
            [used] = struct.unpack("=I", header[16:20])
            if size < 512 or size & (size - 1) or (not used and not _committed(log).whole):
                return True  # its own beginning is damaged
            file.seek(32 + used * (24 + size))
            return _commits_follow(file, head, size)
    except (OSError, struct.error):
        return False
