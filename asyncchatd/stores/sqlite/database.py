"""A connection of Python's `sqlite3` that knows how secure keys stand in its database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from asyncchatd.model import EventKind
from asyncchatd.stores.sealing import Clear, Sealing
from asyncchatd.stores.sqlite.log_file import Disk
from asyncchatd.stores.sqlite.place import Place


class Db(sqlite3.Connection):
    """A connection to the database, with what its statements need. Made by `sqlite3.connect(..., factory=Db)`."""

    sealing: Sealing = Clear()
    kinds: frozenset[EventKind] = frozenset()
    """Of which events somebody is told, or shown; for the connection that writes."""
    shown: bool = False
    """Whether transcripts are read besides by who is no consumer; for the same connection."""
    disk: Disk | None = None
    """Asked by the connection that writes, before a commit that may be large."""
    place: Place | None = None
    """Where its file lies; looked at by the connection that writes, after each commit."""
    copy: Path | None = None
    """Where what it has open was saved, once something else lay at its path."""
    left = False
    """All of it has been moved to where another connection is about to open it: nothing more may be written."""
