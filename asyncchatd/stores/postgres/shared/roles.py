"""Users of the database beside the owner of the tables: those who run asyncchatd, and those who look at it."""

from __future__ import annotations

from collections.abc import Mapping

from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.postgres.shared.migrating import VERSION_TABLE, be_owner, quoted
from asyncchatd.stores.postgres.shared.schema import TABLES, is_owner
from asyncchatd.stores.postgres.wire import Tx

UNREAD: Mapping[str, frozenset[str]] = {
    "session": frozenset({"secure_key", "old_keys", "came_with", "push_digest"}),
    "journal": frozenset({"secure_key", "digest"}),
    "event": frozenset({"body", "likeness"}),
    "take": frozenset({"take_id", "key_digest"}),
    "ask": frozenset({"key_digest"}),
}
"""Columns that whoever only reads does not see, by their tables: keys, what can be guessed from one, what customers
wrote, and what answers a take."""


EVERYBODY = "public"
"""No user, though it stands where one stands: PostgreSQL takes it, in quotes too, for all users there are."""


async def let_run(tx: Tx, name: str, runner: str) -> None:
    """Let a user use all that is in the schema `name`, and what its owner makes there later, and change no table.
    Raises `StoreError` for the owner, who would lose rights of his own, and where another than the owner asks."""
    owner = await _as_owner(tx, name, "--runner", runner)
    if owner == runner:
        raise StoreError(f"--runner: {runner} owns the tables; name the user who shall only use them")
    tables, sequences = [names for _, names in await tx.rows(_OWN, name)]
    of, to = f"IN SCHEMA {quoted(name)}", quoted(runner)
    await tx.script(
        f"GRANT USAGE ON SCHEMA {quoted(name)} TO {to};"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {to}; GRANT USAGE ON SEQUENCE {sequences} TO {to};"
        f"ALTER DEFAULT PRIVILEGES {of} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {to};"
        f"ALTER DEFAULT PRIVILEGES {of} GRANT USAGE ON SEQUENCES TO {to};"
        f"REVOKE INSERT, UPDATE, DELETE ON {VERSION_TABLE} FROM {to}"
    )


_OWN = f"""SELECT relkind::text, string_agg(quote_ident(relname), ', ') FROM pg_class
    WHERE relnamespace=to_regnamespace(quote_ident($1)) AND relkind IN ('r', 'S')
        AND relowner=(SELECT relowner FROM pg_class WHERE oid=to_regclass('{VERSION_TABLE}')) GROUP BY relkind
    ORDER BY relkind='S'"""
"""Tables and sequences of the owner: what others made beside them is not his to give."""


async def let_read(tx: Tx, name: str, reader: str) -> None:
    """Let a user read the tables in the schema `name` but the columns `UNREAD`. Columns that are made later are not
    among it, nor are views and tables of others. Raises `StoreError` for one who may do more, by himself or as one of
    the roles that he can take, and where another than the owner asks."""
    await _as_owner(tx, name, "--reader", reader)
    to = quoted(reader)
    ours = TABLES
    if await tx.value(_MAY_WRITE, reader, ours):
        raise StoreError(f"--reader: {reader} may write to the tables; name a user who shall only read them")
    await tx.script(
        f"REVOKE ALL ON TABLE {', '.join(map(quoted, ours))} FROM {to};"
        f"GRANT USAGE ON SCHEMA {quoted(name)} TO {to}"
    )
    for table, columns in await tx.rows(
        "SELECT table_name::text, array_agg(column_name::text ORDER BY ordinal_position)"
        " FROM information_schema.columns WHERE table_schema=$1 AND table_name=ANY($2::text[])"
        " GROUP BY table_name ORDER BY table_name",
        name,
        ours,
    ):
        seen = ", ".join(quoted(each) for each in columns if each not in UNREAD.get(table, ()))
        await tx.script(f"GRANT SELECT ({seen}) ON {quoted(table)} TO {to}")
    for table, hidden in UNREAD.items():
        if (column := await tx.value(_MAY_READ, reader, table, sorted(hidden))) is not None:
            raise StoreError(
                f"--reader: {reader} may read {table}.{column} as a member of another role, or as everybody may;"
                " take that right away first"
            )


_MAY_WRITE = """SELECT true FROM pg_roles, unnest($2::text[]) AS ours
    WHERE pg_has_role($1::name, pg_roles.oid, 'MEMBER')
        AND has_table_privilege(pg_roles.oid, quote_ident(ours), 'INSERT, UPDATE, DELETE, TRUNCATE') LIMIT 1"""
"""Also as a role that he has to take first, with SET ROLE."""

_MAY_READ = """SELECT hidden FROM pg_roles, unnest($3::text[]) AS hidden
    WHERE pg_has_role($1::name, pg_roles.oid, 'MEMBER')
        AND has_column_privilege(pg_roles.oid, quote_ident($2::text), hidden, 'SELECT') LIMIT 1"""


async def _as_owner(tx: Tx, name: str, option: str, user: str) -> str:
    """The owner of the tables in the schema `name`, as whom the rest of the transaction acts. Raises `StoreError` where
    the connection has not got his rights: PostgreSQL only warns whoever gives what is not his. Raises it too for a
    `user` who is none."""
    if user in ("", EVERYBODY):
        raise StoreError(
            f"{option}: expected one user of the database{', and not everybody' if user else ''}"
        )
    [(owner, asks)] = await tx.rows(
        "SELECT pg_get_userbyid(relowner)::text, current_user::text FROM pg_class"
        " WHERE oid=to_regclass('schema_version')"
    )
    if not await is_owner(tx):
        raise StoreError(
            f"{option}: {asks} gives no rights to the tables; name the URL of {owner}, who owns them"
        )
    await be_owner(tx, name)
    return str(owner)
