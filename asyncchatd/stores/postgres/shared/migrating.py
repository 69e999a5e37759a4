"""Who may migrate a schema: one process at a time, with rights to make tables, as their owner; and what others are
told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

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


class SchemaRefusal(NamedTuple):
    """Why a schema may not be used, and what to do about it."""

    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.message}; {self.advice}"


class Found(NamedTuple):
    """What is there of a schema."""

    there: bool
    made: bool
    """Its tables are there."""
    refusal: SchemaRefusal | None
    """Why the user of the connection may neither use them nor make them, if he may not."""


async def look(tx: Tx, name: str, ours: Sequence[str]) -> Found:
    """The schema `name` as the user of the connection finds it. `ours`: the tables that a store has."""
    [(user, database, may_create, path)] = await tx.rows(
        "SELECT current_user::text, current_database()::text,"
        " has_database_privilege(current_database(), 'CREATE'), current_setting('search_path')"
    )
    if path not in (name, quoted(name)):
        return Found(False, False, _misled(name, user))
    rights = await tx.row(_RIGHTS, name)
    if rights is None:
        refused = _not_allowed(user, f"make the schema {name} in the database {database}")
        grant = f"GRANT CREATE ON DATABASE {quoted(database)} TO {quoted(user)}"
        advice = f"{refused.advice}. Who is to own them himself needs {grant}"
        return Found(False, False, None if may_create else refused._replace(advice=advice))
    usage, create = rights
    if not usage:
        return Found(True, False, _not_allowed(user, f"use the schema {name}"))
    if await tx.value("SELECT to_regclass($1)", f"{quoted(name)}.schema_version") is None:
        return Found(True, False, None if create else _not_allowed(user, f"make tables in the schema {name}"))
    lacking = [each for (each,) in await tx.rows(_LACKING, name, ours)]
    if not lacking:
        return Found(True, True, None)
    which = "the tables" if VERSION_TABLE in lacking else ", ".join(lacking)
    return Found(True, True, _not_allowed(user, f"use {which} in the schema {name}"))


VERSION_TABLE = "schema_version"

_RIGHTS = """SELECT has_schema_privilege(oid, 'USAGE'), has_schema_privilege(oid, 'CREATE')
    FROM pg_namespace WHERE nspname=$1"""

_LACKING = f"""SELECT relname::text FROM pg_class LEFT JOIN (SELECT objid, refobjid FROM pg_depend
            WHERE classid='pg_class'::regclass AND deptype IN ('a', 'i')) AS sequence ON objid=oid AND relkind='S'
    WHERE relnamespace=to_regnamespace(quote_ident($1)) AND CASE
        WHEN relname='{VERSION_TABLE}' THEN NOT has_table_privilege(oid, 'SELECT')
        WHEN relkind='r' AND relname=ANY($2::text[]) THEN NOT (has_table_privilege(oid, 'SELECT')
            AND has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE')
            AND has_table_privilege(oid, 'DELETE'))
        WHEN (SELECT relname FROM pg_class WHERE oid=refobjid)=ANY($2::text[])
            THEN NOT has_sequence_privilege(oid, 'USAGE')
        ELSE false END
    ORDER BY relname"""
"""Tables, and sequences of tables."""


def _not_allowed(user: str, what: str) -> SchemaRefusal:
    return SchemaRefusal(
        f"the user {user} may not {what}",
        f"run `asyncchatd store migrate URL --runner {user}` with the URL of the user who owns the tables or may make"
        f" them (docs/nodes.md): it makes them, and lets {user} use them",
    )


def _misled(name: str, user: str) -> SchemaRefusal:
    return SchemaRefusal(
        f"the connection does not look for tables in the schema {name}: a pooler drops search_path",
        f"ALTER ROLE {quoted(user)} SET search_path = {quoted(name)}",
    )


async def be_owner(tx: Tx, name: str) -> None:
    """Act as the owner of the tables in the schema `name`, or of the schema where there are none, until the transaction
    ends: what others make there he could not change later, and nobody whom he lets use all would be let use that.
    Where he may not, as himself."""
    owner = await tx.value(_OWNER, name, f"{quoted(name)}.{VERSION_TABLE}")
    if owner is not None:
        await tx.script(f"SET LOCAL ROLE {quoted(owner)}")


_OWNER = """SELECT owner FROM pg_namespace, LATERAL (SELECT pg_get_userbyid(coalesce(
            (SELECT relowner FROM pg_class WHERE pg_class.oid=to_regclass($2)), nspowner))::text) AS of (owner)
    WHERE nspname=$1 AND owner<>current_user AND left(owner, 3)<>'pg_'
        AND pg_has_role(owner::name,
            CASE WHEN current_setting('server_version_num')::integer<160000 THEN 'MEMBER' ELSE 'SET' END)"""
"""Where that is another one, whom SET ROLE may make of the user, and nobody of PostgreSQL's own, such as the owner of
`public`."""


def quoted(name: str) -> str:
    """An identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'
