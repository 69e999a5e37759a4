"""The way out of a schema and into one, for copying it into another store: `stores/moving/`.

While a copy is made nobody else writes to any table: a node that lives is found in `node`, and none becomes known.
One that begins meanwhile waits to become known, and looks afterwards whether the store has moved.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.moving import TABLES, NotEmpty, Row, Table, sealing_of
from asyncchatd.stores.postgres.address import Place
from asyncchatd.stores.postgres.shared import nodes, schema, settings
from asyncchatd.stores.postgres.shared.migrating import quoted
from asyncchatd.stores.postgres.transactions.session_rows import NOBODY
from asyncchatd.stores.postgres.wire import Connection, Tx, connect
from asyncchatd.stores.sealing import Sealing, Turning
from asyncchatd.stores.sql.rows import LIVE

PORTION = 5_000
"""Rows in memory at once."""

ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    "session": {
        name: f"work.{name}"
        for name in (
            *("reason", "due_at", "marks", "attempts", "restoration", "refused_since", "refusals"),
            *("pinged_until", "claim", "held_until"),
        )
    },
    "restoration": {"begun": "restoration.ranked"},
    "event": {"chat_id": "session.chat_id"},
    "store": {"last_event": "event_counter.last", "last_restoration": "restoration.id"},
}
"""Columns of `stores/moving/rows.py` that stand in another table or under another name, by their tables."""

STORED_IN: Mapping[str, str] = {}
"""Tables of another name."""

LEFT = {
    "session.version": "counts for nodes that run",
    "work.session": "the row's number is the session's",
    "work.live": "as `session.state` says",
    "work.node": "no node has anything",
    "work.claimed_at": "counts for the death of a node",
    "restoration.reached": "what is reached stands in `marking` no more",
    "store.key_id": "the target's own key",
    "store.former_key_ids": "all is sealed under the target's own key",
    "store.turned_at": "all is sealed under the target's own key",
    "store.moved": "what is copied has not moved",
    "schema_version.version": "of the schema",
    "schema_version.oldest": "of the schema",
    "pacer.next": "of those who send now",
    **{
        f"node.{name}": "no node runs"
        for name in (
            *("id", "name", "version", "started_at", "seen_at", "lease_ms", "presence", "views", "viewed_at"),
            *("gone_at", "key_ids", "settings", "rate", "knows"),
        )
    },
    **{f"duty.{name}": "no node runs" for name in ("what", "node", "until")},
    **{f"tally.{name}": "is counted anew" for name in ("what", "counts", "took", "counted_at")},
}
"""Columns that stay behind, and why."""

_SEQUENCE = "pg_get_serial_sequence('restoration', 'id')"

_READ: Mapping[str, Mapping[str, str]] = {
    "session": {
        "claim": f"nullif(work.claim, {NOBODY})",
        "held_until": f"CASE WHEN work.claim<>{NOBODY} THEN work.held_until END",
    },
    "restoration": {"begun": "restoration.marking AND restoration.ranked"},
    "event": {"chat_id": "coalesce(session.chat_id, '')"},
    "store": {
        "last_event": "(SELECT last FROM event_counter)",
        "last_restoration": "coalesce((SELECT last_value FROM pg_sequences WHERE schemaname=current_schema()"
        " AND sequencename='restoration_id_seq'), 0)",
    },
}
"""How columns are read that do not stand there as they are."""

_FROM = {
    "session": "session LEFT JOIN work ON work.session=session.id ORDER BY session.id",
    "event": "event LEFT JOIN session ON session.id=event.session ORDER BY event.id",
    "server": "server ORDER BY name",
    "consumer": "consumer ORDER BY name",
    "delivery": "delivery ORDER BY consumer, session, first",
    "take": "take ORDER BY session",
    "ask": "ask ORDER BY session, event",
    "store": "store",
}

_MARKING = f"""SELECT marking.restoration, row_number() OVER (PARTITION BY marking.restoration ORDER BY marking.rank),
        marking.session
    FROM marking JOIN restoration ON restoration.id=marking.restoration AND restoration.marking AND restoration.ranked
        AND marking.rank>restoration.reached
    JOIN session ON session.id=marking.session AND session.state={LIVE} AND session.alias=restoration.alias
        AND session.active_at<restoration.started_at
    ORDER BY 1, 2"""

_OWNER = """SELECT pg_get_userbyid(relowner)::text, current_user::text FROM pg_class
    WHERE oid=to_regclass('schema_version')"""

_INDEXES = """SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
    JOIN pg_class ON pg_class.oid=indrelid WHERE relnamespace=current_schema()::regnamespace
    AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid=indexrelid) ORDER BY 1"""
"""Those that can be made when all rows are there."""

_MOST_OF_ALL = ("session", "work", "event")
"""Tables of which there may be so many rows that the planner must know it at once."""


class SchemaCarrier:
    """`moving.Carrier` of a schema."""

    def __init__(self, place: Place, sealings: Sequence[Sealing]) -> None:
        self._place = place
        self._sealings = sealings
        self._schema = place.address.schema
        self.shown = f"{place.shown} (schema {self._schema})"

    @asynccontextmanager
    async def leaving(self) -> AsyncIterator[LeavingSchema]:
        """The schema, while no node runs."""
        async with self._connected() as connection, connection.in_transaction():
            await self._have_it_alone(connection)
            await settings.refuse_moved(connection, self.shown)
            keys = await settings.keys(connection)
            for key_id in (keys.in_force, *keys.former):
                sealing_of(key_id, self._sealings, self.shown)
            sealing = Turning(self._sealings)
            sealing.follow(*keys)
            yield LeavingSchema(connection, sealing)

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[ArrivingSchema]:
        """A schema that is made, or is empty."""
        async with self._connected() as connection, connection.in_transaction():
            await schema.migrate(connection, self._schema, hold=self._place.hold_ms / 1000)
            await self._refuse_others_than_the_owner(connection)
            await self._have_it_alone(connection)
            for table in TABLES:
                if table.name != "store":
                    count = await connection.value(f"SELECT count(*) FROM {table.name}")
                    if count:
                        raise NotEmpty(
                            f"{self.shown} is not empty: {count:,} rows of {table.name}. Nothing is copied over what"
                            " is there; name another schema in its URL, or:"
                            f" DROP SCHEMA {quoted(self._schema)} CASCADE"
                        )
            arriving = ArrivingSchema(connection, self._sealings[0])
            await arriving.begin()
            yield arriving

    async def _refuse_others_than_the_owner(self, tx: Tx) -> None:
        """Raises `StoreError` where the user of the connection may use the tables and not make their indexes anew."""
        if not await schema.is_owner(tx):
            [(owner, user)] = await tx.rows(_OWNER)
            raise StoreError(
                f"{self.shown}: its tables are {owner}'s, and {user} may not make their indexes anew, as a copy does:"
                f" name TO by a URL with {owner}, and --to-keys (docs/nodes.md)"
            )

    async def unused(self) -> None:
        """`Carrier.unused`."""
        async with self._connected() as connection:
            if await connection.value("SELECT to_regclass('node')") is not None:
                await self._refuse_nodes(connection)

    async def unmove(self) -> str | None:
        """`Carrier.unmove`."""
        async with self._connected() as connection, connection.in_transaction():
            await self._have_it_alone(connection)
            moved = await connection.value("SELECT moved FROM store")
            await connection.run("UPDATE store SET moved=NULL")
            return None if moved is None else str(moved)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        connection = await connect(self._place.address, for_copies=True)
        try:
            yield connection
        finally:
            await connection.close()

    async def _have_it_alone(self, tx: Tx) -> None:
        """Let nobody else write until the transaction ends. Raises `StoreError` where a node lives."""
        if await tx.value("SELECT to_regclass('schema_version')") is None:
            raise StoreError(f"there is no store in {self.shown}")
        if (await schema.version_of(tx)).seen != len(schema.MIGRATIONS):
            raise StoreError(
                f"{self.shown} is of another version than this asyncchatd; start this one once before"
            )
        await tx.script(f"LOCK TABLE node, work, {', '.join(_tables())} IN SHARE ROW EXCLUSIVE MODE")
        await self._refuse_nodes(tx)

    async def _refuse_nodes(self, tx: Tx) -> None:
        alive = await nodes.alive(tx, self._place.hold_ms / 1000)
        if alive:
            raise StoreError(f"{self.shown} is in use by {', '.join(alive)}; stop all nodes first")


def _tables() -> list[str]:
    return [table.name for table in TABLES]


class _RowsOfSchema:
    """What is read of a schema in a transaction."""

    def __init__(self, connection: Connection, sealing: Sealing) -> None:
        self._connection = connection
        self.sealing = sealing

    async def rows(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        """`Leaving.rows`."""
        query = _MARKING if table.name == "marking" else _selecting(table)
        # Of its own name: the driver knows a statement, and what it gives, by its text.
        cursor = f"of_{table.name}"
        await self._connection.script(f"DECLARE {cursor} NO SCROLL CURSOR FOR {query}")
        while portion := await self._connection.rows(f"FETCH {PORTION} FROM {cursor}"):
            yield [tuple(row) for row in portion]
        await self._connection.script(f"CLOSE {cursor}")


class LeavingSchema(_RowsOfSchema):
    """`moving.Leaving` of a schema."""

    async def moved(self, whither: str) -> None:
        """`Leaving.moved`. A node that was away for long comes back as another one, and is refused."""
        await self._connection.run("UPDATE store SET moved=$1", whither)
        await self._connection.run(f"UPDATE node SET gone_at={nodes.NOW} WHERE gone_at IS NULL")


class ArrivingSchema(_RowsOfSchema):
    """`moving.Arriving` of a schema."""

    async def begin(self) -> None:
        """Make ready for many rows."""
        self._indexes = await self._connection.rows(_INDEXES)
        for name, _ in self._indexes:
            await self._connection.script(f"DROP INDEX {name}")

    async def write(self, table: Table, rows: Sequence[Row]) -> None:
        """`Arriving.write`."""
        match table.name:
            case "session":
                at_work = [name for name in table.columns if name in ELSEWHERE["session"]]
                await self._copy(
                    "session", table, rows, [name for name in table.columns if name not in at_work]
                )
                await self._copy_work(table, rows, at_work)
            case "restoration":
                names = ["ranked" if name == "begun" else name for name in table.columns]
                await self._connection.copy_in("restoration", names, rows)
            case "store":
                for row in rows:
                    await self._write_store(dict(zip(table.columns, row, strict=True)))
            case name:
                await self._copy(name, table, rows, table.written)

    async def _copy(self, name: str, table: Table, rows: Sequence[Row], columns: Sequence[str]) -> None:
        if len(columns) < len(table.columns):
            places = [table.place(column) for column in columns]
            rows = [tuple([row[place] for place in places]) for row in rows]
        await self._connection.copy_in(name, columns, rows)

    async def _copy_work(self, table: Table, rows: Sequence[Row], columns: Sequence[str]) -> None:
        id, state, claim = map(table.place, ("id", "state", "claim"))
        places = [table.place(name) for name in columns if name not in ("claim", "held_until")]
        until = table.place("held_until")
        await self._connection.copy_in(
            "work",
            ("session", "live", "claim", "held_until", *(list(table.columns)[place] for place in places)),
            [
                (
                    row[id],
                    row[state] == LIVE,
                    NOBODY if row[claim] is None else row[claim],
                    row[until] or 0,
                    *[row[place] for place in places],
                )
                for row in rows
            ],
        )

    async def _write_store(self, values: Mapping[str, object]) -> None:
        own = {name: value for name, value in values.items() if not name.startswith("last_")}
        own["key_id"] = self.sealing.key_id
        await self._connection.run(
            f"UPDATE store SET {', '.join(f'{name}=${at}' for at, name in enumerate(own, 1))}", *own.values()
        )
        await self._connection.run("UPDATE event_counter SET last=$1", values["last_event"])
        if values["last_restoration"]:
            await self._connection.run(f"SELECT setval({_SEQUENCE}, $1)", values["last_restoration"])

    async def complete(self) -> None:
        """`Arriving.complete`."""
        for _, sql in self._indexes:
            await self._connection.script(sql)
        # A number that was given once is not given again: events may tell of a session that is forgotten.
        await self._number(
            "session", "greatest((SELECT max(id) FROM session), (SELECT max(session) FROM event))"
        )
        await self._number("journal", "(SELECT max(id) FROM journal)")
        for name in _MOST_OF_ALL:
            await self._connection.script(f"ANALYZE {name}")

    async def _number(self, table: str, last: str) -> None:
        await self._connection.run(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {last}) WHERE {last}>0"
        )


def _selecting(table: Table) -> str:
    elsewhere = {**ELSEWHERE.get(table.name, {}), **_READ.get(table.name, {})}
    columns = ", ".join(elsewhere.get(name, f"{table.name}.{name}") for name in table.columns)
    return f"SELECT {columns} FROM {_FROM.get(table.name, f'{table.name} ORDER BY id')}"
