"""Users of the database beside the owner of the tables: those who run asyncchatd, and those who look at it."""

from __future__ import annotations

from collections.abc import Mapping

from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.postgres.transactions.schema import quoted
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


async def let_run(tx: Tx, name: str, runner: str) -> None:
    """Let a user use all that is in the schema `name`, and what its owner makes there later, and change no table.
    Raises `StoreError` for the owner, who would lose rights of his own."""
    owner = await tx.value(
        "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid=to_regclass('schema_version')"
    )
    if owner == runner:
        raise StoreError(f"--runner: {runner} owns the tables; name the user who shall only use them")
    to = f"IN SCHEMA {quoted(name)} GRANT {{}} ON {{}} TO {quoted(runner)}"
    await tx.script(f"GRANT USAGE ON SCHEMA {quoted(name)} TO {quoted(runner)}")
    for rights, what in (("SELECT, INSERT, UPDATE, DELETE", "TABLES"), ("USAGE", "SEQUENCES")):
        await tx.script(
            f"GRANT {rights} ON ALL {what} IN SCHEMA {quoted(name)} TO {quoted(runner)};"
            f"ALTER DEFAULT PRIVILEGES {to.format(rights, what)}"
        )
    await tx.script(f"REVOKE INSERT, UPDATE, DELETE ON schema_version FROM {quoted(runner)}")


async def let_read(tx: Tx, name: str, reader: str) -> None:
    """Let a user read what is in the schema `name` but the columns `UNREAD`. Columns that are made later are not among
    it. Raises `StoreError` for one who may do more, and would lose what he needs, or keep it all the same."""
    to = quoted(reader)
    if await tx.value("SELECT has_table_privilege($1, 'session', 'UPDATE')", reader):
        raise StoreError(f"--reader: {reader} may change the tables; name a user who shall only read them")
    await tx.script(
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {quoted(name)} FROM {to};"
        f"GRANT USAGE ON SCHEMA {quoted(name)} TO {to}"
    )
    for table, columns in await tx.rows(
        "SELECT table_name::text, array_agg(column_name::text ORDER BY ordinal_position)"
        " FROM information_schema.columns WHERE table_schema=$1 GROUP BY table_name ORDER BY table_name",
        name,
    ):
        seen = ", ".join(quoted(each) for each in columns if each not in UNREAD.get(table, ()))
        await tx.script(f"GRANT SELECT ({seen}) ON {quoted(table)} TO {to}")
    if await tx.value("SELECT has_column_privilege($1, 'session', 'secure_key', 'SELECT')", reader):
        raise StoreError(
            f"--reader: {reader} may read all of the tables as a member of another role, or as everybody may;"
            " take that right away first"
        )
