"""The PostgreSQL store: several processes share one database."""

from __future__ import annotations

from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.postgres.address import place_of
from asyncchatd.stores.postgres.store import PostgresStore
from asyncchatd.stores.postgres.wire import connect

__all__ = ["PostgresStore", "StoreError", "connect", "place_of"]
