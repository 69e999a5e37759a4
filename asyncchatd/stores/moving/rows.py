"""The rows that stores have in common: what one hands over and another takes, whatever tables they keep it in.

Each store says where a column stands with it, and which of its own columns stay behind and why: its `carrying.py`. A
column that neither names is found by a test, which compares both with the schemas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

Row = Sequence[Any]
"""Values in the order of the table's columns."""


class Kind(Enum):
    """What the values of a column are; `None` besides."""

    INTEGER = auto()
    REAL = auto()
    TEXT = auto()
    BYTES = auto()
    FLAG = auto()
    """`bool`"""
    TEXTS = auto()
    """`list[str]`"""


@dataclass(frozen=True)
class Table:
    """A kind of row."""

    name: str
    columns: Mapping[str, Kind]
    only_read: frozenset[str] = frozenset()
    """Columns that are handed over for the copier alone, and written nowhere."""
    follows: bool = False
    """Its rows follow from others in a way of each store's own, so that they are not compared afterwards."""

    @property
    def written(self) -> tuple[str, ...]:
        """The columns that are written."""
        return tuple(name for name in self.columns if name not in self.only_read)

    def place(self, column: str) -> int:
        """Where the column stands in a row."""
        return list(self.columns).index(column)

    def places(self, kind: Kind) -> tuple[int, ...]:
        """Where the columns of a kind stand in a row."""
        return tuple(at for at, each in enumerate(self.columns.values()) if each is kind)


def _table(name: str, *, only_read: str = "", follows: bool = False, **columns: str) -> Table:
    """`columns`: of each kind, in lower case, the names with blanks between."""
    return Table(name, dict(_kinds(columns)), frozenset(only_read.split()), follows)


def _kinds(columns: Mapping[str, str]) -> Iterator[tuple[str, Kind]]:
    for kind, names in columns.items():
        for name in names.split():
            yield name, Kind[kind.upper()]


SESSION = _table(
    "session",
    # `claim`: none while nobody has the session, 0 while it is left to the application, else a worker's.
    integer="id state reason marks attempts restoration registered_at active_at sent_at answered_at seen_utc renewed_at"
    " next_position told_position ended_at refused_since refusals pinged_until numbering numbered_at claim held_until",
    real="due_at",
    text="chat_id service user_id secure_key alias device_id old_keys push_digest end_cause last_trouble trouble_detail"
    " came_with",
    flag="of_gateway",
)
JOURNAL = _table(
    "journal",
    integer="id at session utc_time position next_position",
    text="chat_id device_id user_id secure_key alias digest",
    flag="leaving resent",
)
SERVER = _table(
    "server",
    text="name app_dbid process_os_pid state detail others",
    integer="since checked_at first_seen last_seen disputed epoch",
    real="started began",
    flag="assumed",
)
RESTORATION = _table(
    "restoration",
    # `begun`: some of its sessions are marked, and those that are not are the rows of `marking`.
    integer="id started_at marked_at sessions restored ended refused moved finished_at",
    text="alias server cause",
    flag="marking told begun",
)
MARKING = _table(
    # Sessions that are yet to be marked, in this order. Those that were active since the loss are not among them: they
    # are looked for when the marking ends.
    "marking",
    integer="restoration rank session",
    follows=True,
)
EVENT = _table(
    "event",
    integer="id session numbering idx at",
    text="kind consumer chat_id",
    bytes="likeness body",
    only_read="chat_id",
)
CONSUMER = _table(
    "consumer",
    text="name",
    texts="kinds services",
    integer="cursor given gone_at moved_at keep_ms max_backlog missed_at asked acknowledged ran_out",
    flag="paused",
)
DELIVERY = _table(
    "delivery",
    text="consumer batch",
    integer="session first until tries failing due_at",
    flag="own parked",
)
TAKE = _table(
    "take",
    integer="session at until pinged_until",
    text="take_id key_digest user_id alias",
    flag="over told",
)
ASK = _table(
    "ask",
    integer="session event at until marks given_at outcome",
    text="consumer key_digest user_id alias",
    flag="told",
)
STORE = _table(
    # One row. `last_...`: the highest number that there ever was.
    "store",
    text="epoch",
    integer="gap trimmed ended_looked ended_at ended_row ended_kept last_event last_restoration",
    texts="gateway_keys",
)

TABLES = (
    SESSION,
    JOURNAL,
    SERVER,
    RESTORATION,
    MARKING,
    EVENT,
    CONSUMER,
    DELIVERY,
    TAKE,
    ASK,
    STORE,
)
"""In the order in which they are copied: `marking` needs the sessions and restorations of before, `store` all."""
