"""The part of a store that is the same over every database which speaks SQL."""

from __future__ import annotations

from asyncchatd.stores.sql.calls import Tx
from asyncchatd.stores.sql.lending import LendingStore
from asyncchatd.stores.sql.restoring import RestoringStore
from asyncchatd.stores.sql.sessions import SessionStore


class SqlStore(SessionStore[Tx], LendingStore[Tx], RestoringStore[Tx]):
    """All calls that are the same. A store names its transactions and takes its turns, and has the others of its own:
    claims, settlements and the way of a push into the journal."""
