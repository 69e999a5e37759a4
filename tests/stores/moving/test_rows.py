"""The rows that stores have in common: each store's schema stands in them, or is left behind for a reason."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing

from asyncchatd.stores.moving import TABLES
from asyncchatd.stores.postgres import carrying as of_postgres
from asyncchatd.stores.postgres.wire import Address, connect
from asyncchatd.stores.sqlite.file import carrying as of_sqlite
from asyncchatd.stores.sqlite.transactions import schema

from ..conftest import empty_schema
from ..postgres.server import Server


def carried(elsewhere: Mapping[str, Mapping[str, str]], stored_in: Mapping[str, str]) -> set[str]:
    """Where the columns of the rows stand in a store."""
    return {
        elsewhere.get(table.name, {}).get(column, f"{stored_in.get(table.name, table.name)}.{column}")
        for table in TABLES
        for column in table.columns
    }


def test_every_column_of_sqlite_is_carried_or_left_behind() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        schema.migrate(db, "memory")
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
        there = {f"{table}.{row[1]}" for table in tables for row in db.execute(f"PRAGMA table_info({table})")}
    moved = carried(of_sqlite.ELSEWHERE, of_sqlite.STORED_IN)
    assert there == moved | of_sqlite.LEFT.keys()
    assert moved & of_sqlite.LEFT.keys() == set()


async def test_every_column_of_postgresql_is_carried_or_left_behind(postgres: Server) -> None:
    await empty_schema(postgres, "columns")  # in that of others a test may have left a table
    connection = await connect(Address(postgres.url("columns").partition("&schema")[0], schema="columns"))
    try:
        rows = await connection.rows(
            "SELECT table_name::text, column_name::text FROM information_schema.columns"
            " WHERE table_schema=current_schema()"
        )
    finally:
        await connection.close()
    moved = carried(of_postgres.ELSEWHERE, of_postgres.STORED_IN)
    assert {f"{table}.{column}" for table, column in rows} == moved | of_postgres.LEFT.keys()
    assert moved & of_postgres.LEFT.keys() == set()
