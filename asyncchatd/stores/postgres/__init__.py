"""The PostgreSQL store: several processes share one database."""

from __future__ import annotations

from asyncchatd.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
