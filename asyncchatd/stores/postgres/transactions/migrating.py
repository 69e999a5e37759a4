"""Who may migrate a schema: one process at a time, with rights to make tables, and what others are told meanwhile."""

from __future__ import annotations

import asyncio

from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.postgres.wire import Tx

LOCK = 0x6163_4944_0001
"""Of the advisory lock under which a schema is made and migrated."""

PATIENCE_SECONDS = 120.0
"""So long is another process waited for that migrates: systemd waits for a start for longer."""

LOOK_SECONDS = 0.5
"""Between two looks whether it is done. Whoever waited in the database would be ended by its `lock_timeout`."""


async def take_turn(tx: Tx) -> None:
    """Have the lock under which a schema is migrated, until the transaction ends. Raises `StoreError` that says who has
    it."""
    for _ in range(round(PATIENCE_SECONDS / LOOK_SECONDS)):
        if await tx.value("SELECT pg_try_advisory_xact_lock($1)", LOCK):
            return
        await pause(LOOK_SECONDS)
    raise StoreError(
        f"another process brings the tables of this database up to date, and was not done after {PATIENCE_SECONDS:g} s:"
        f" {await _who_has_it(tx)}. Wait until it is done, then start again; where that process is stopped or gone, end"
        " its connection with SELECT pg_terminate_backend(pid)"
    )


pause = asyncio.sleep


async def _who_has_it(tx: Tx) -> str:
    found = await tx.row(_HOLDER, LOCK)
    if found is None:
        return "it has ended in this moment"
    pid, application, user, address, since = found
    whence = f" from {address}" if address else ""  # nobody else's is shown to a user without rights
    began = f", since {since} UTC" if since else ""
    return (
        f"{application or 'a program without a name'}, pid {pid} of the database, user {user}{whence}{began}"
    )


_HOLDER = """SELECT pid, application_name, usename::text, host(client_addr),
        to_char(xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
    FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
    WHERE locktype='advisory' AND granted AND objsubid=1 AND pid<>pg_backend_pid()
        AND database=(SELECT oid FROM pg_database WHERE datname=current_database())
        AND classid::bigint=$1::bigint>>32 AND objid::bigint=($1::bigint & 4294967295)"""


async def refuse_without_rights(tx: Tx, name: str) -> bool:
    """Whether the schema `name` is there. Raises `StoreError` where the user of the connection may neither use what is
    in it nor make it."""
    [(user, database, may_create)] = await tx.rows(
        "SELECT current_user::text, current_database()::text, has_database_privilege(current_database(), 'CREATE')"
    )
    rights = await tx.row(_RIGHTS, name)
    if rights is None:
        if not may_create:
            raise StoreError(_not_allowed(user, f"make the schema {name} in the database {database}"))
        return False
    usage, ready = rights
    if not usage:
        raise StoreError(_not_allowed(user, f"use the schema {name}"))
    if not ready:
        there = await tx.value("SELECT to_regclass('schema_version')") is not None
        raise StoreError(
            _not_allowed(user, f"{'use the tables' if there else 'make tables'} in the schema {name}")
        )
    return True


_RIGHTS = """SELECT has_schema_privilege(oid, 'USAGE'), coalesce(
        (SELECT has_table_privilege(pg_class.oid, 'SELECT') FROM pg_class
            WHERE relnamespace=pg_namespace.oid AND relname='schema_version'),
        has_schema_privilege(oid, 'CREATE'))
    FROM pg_namespace WHERE nspname=$1"""
"""Whether it may be used, and whether its tables may be, or made where there are none."""


def _not_allowed(user: str, what: str) -> str:
    return (
        f"the user {user} may not {what}: run `asyncchatd store migrate URL --runner {user}` with the URL of the user"
        f" who owns the tables or may make them (docs/nodes.md); it makes them, and lets {user} use them"
    )
