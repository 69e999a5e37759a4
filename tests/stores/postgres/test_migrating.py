"""`asyncchatd store migrate`: the owner brings the tables up to date, and whoever runs asyncchatd may only use them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner, Result
from conftest import Events, configuration

from asyncchatd.cli.commands import main
from asyncchatd.log.events import Event
from asyncchatd.model import Level, Reason, SystemClock
from asyncchatd.stores import StoreError, make_store
from asyncchatd.stores.postgres import PostgresStore
from asyncchatd.stores.postgres.shared import migrating, schema
from asyncchatd.stores.postgres.shared.nodes import PRESENCE
from asyncchatd.stores.postgres.wire import Connection

from ..desk import Desk, push, registration
from ..waiting import until
from .server import Server
from .test_checking import admin, found
from .test_sharing import sharing_it

T = TypeVar("T")


def asked(*words: object) -> Result:
    return CliRunner().invoke(main, ["store", "migrate", *map(str, words)])


def as_admin(postgres: Server, work: Callable[[Connection], Awaitable[T]]) -> T:
    async def run() -> T:
        async with admin(postgres) as connection:
            return await work(connection)

    return asyncio.run(run())


def the_newest() -> int:
    return len(schema.MIGRATIONS)


def test_the_owner_makes_the_tables_and_brings_them_up_to_date(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url("migrated")
    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
        done = asked(url, "--json")
        assert json.loads(done.output) == {"before": 0, "now": 3, "runner": None, "reader": None}
    assert f"went from version 3 to {the_newest()}." in asked(url).output
    assert f"are of version {the_newest()} already." in asked(url).output


def test_the_runner_uses_the_tables_and_changes_none(postgres: Server, tmp_path: Path) -> None:
    url = postgres.url("run-by-another", node="one").replace("run-by-another", "run_by_another")
    as_admin(postgres, lambda sql: sql.script('CREATE ROLE "the runner" LOGIN'))
    done = asked(url, "--runner", "the runner")
    assert done.exit_code == 0, done.output
    assert "the runner may use them, and change none." in done.output
    own = url.replace("postgres@", "the%20runner@")

    async def live() -> None:
        store = PostgresStore(own, directory=tmp_path)
        await store.open()
        try:
            desk = Desk(store)
            await desk.register(registration())
            await desk.push(push("chat-1"))
            await store.make_due("chat-1", Reason.REQUEST, now=desk.now)
            await desk.answer(await desk.claim_one())
            with pytest.raises(StoreError, match=r"permission denied|must be owner"):
                await store._writing(lambda tx: tx.script("ALTER TABLE session ADD COLUMN more text"))
            with pytest.raises(StoreError, match="permission denied"):
                await store._writing(lambda tx: tx.run("UPDATE schema_version SET version=0"))
        finally:
            await store.close()

    asyncio.run(live())


def test_a_copy_into_tables_of_another_names_their_owner(postgres: Server, tmp_path: Path) -> None:
    url, own = postgres.url("filled"), tmp_path / "own.toml"
    own.write_text(configuration(store=f"sqlite:///{tmp_path}/chats.db"))
    asyncio.run(opened_once(tmp_path))
    as_admin(postgres, lambda sql: sql.script("CREATE ROLE user_alone LOGIN"))
    assert asked(url, "--runner", "user_alone").exit_code == 0

    def copied(to: str) -> Result:
        return CliRunner().invoke(main, ["store", "copy", str(own), to, "--in-the-clear"])

    refused = copied(url.replace("postgres@", "user_alone@"))
    assert refused.exit_code == 1
    assert "its tables are postgres's, and user_alone may not make their indexes anew" in refused.output
    assert "name TO by a URL with postgres, and --to-keys" in refused.output
    done = copied(url)
    assert done.exit_code == 0, done.output


async def opened_once(directory: Path) -> None:
    store = make_store("sqlite:///chats.db", directory=directory)
    await store.open()
    await store.close()


def test_the_runner_does_not_start_before_the_owner_has_migrated(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url("behind")
    as_admin(postgres, lambda sql: sql.script("CREATE ROLE follower LOGIN"))
    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
        assert asked(url, "--runner", "follower").exit_code == 0
    store = PostgresStore(url.replace("postgres@", "follower@"), directory=tmp_path)
    with pytest.raises(StoreError, match=r"has version 3, .* run `asyncchatd store migrate` as its owner"):
        asyncio.run(store.open())
    assert asked(url).exit_code == 0

    async def starts() -> None:
        await store.open()  # what was made since may be used as well
        await store.counts_by_alias()
        await store.close()

    asyncio.run(starts())


async def test_nodes_of_two_versions_share_a_schema_to_which_was_only_added(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url("rolling", hold="0s")
    old = PostgresStore(f"{url}&node=old", directory=tmp_path)
    await old.open()
    with monkeypatch.context() as newer:
        newer.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "ALTER TABLE session ADD COLUMN more text"))
        new = PostgresStore(f"{url}&node=new", directory=tmp_path)
        await new.open()
    again = PostgresStore(f"{url}&node=again", directory=tmp_path)
    await again.open()
    try:
        for place, store in enumerate((old, new, again)):
            desk, name = Desk(store), f"chat-{place}"
            await desk.register(registration(name))
            await desk.push(push(name))
            await desk.answer(await desk.claim_one())
    finally:
        for store in (old, new, again):
            await store.close()


async def test_one_that_knows_too_little_is_refused(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url("contracted")
    with monkeypatch.context() as newer:
        newer.setattr(
            schema, "MIGRATIONS", (*schema.MIGRATIONS, "ALTER TABLE session DROP COLUMN push_digest")
        )
        newer.setattr(schema, "OLDEST", the_newest() + 1)
        await PostgresStore(url, directory=tmp_path).migrate()
    with pytest.raises(StoreError, match=r"made by a newer asyncchatd .*install that one again"):
        await PostgresStore(url, directory=tmp_path).open()


ADDS, DROPS = (
    "ALTER TABLE session ADD COLUMN digest_of_push text",
    "ALTER TABLE session DROP COLUMN push_digest",
)
"""A column gets another name in two versions: whoever knows the first can spare what the second takes away."""


async def test_what_nodes_need_is_not_taken_away_while_they_live(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url("taken_away", hold="0s")
    adds, both = (*schema.MIGRATIONS, ADDS), (*schema.MIGRATIONS, ADDS, DROPS)
    newest = the_newest()
    migrates = PostgresStore(url, directory=tmp_path).migrate
    async with sharing_it(url, "old"), sharing_it(url, "older"):
        monkeypatch.setattr(schema, "MIGRATIONS", adds)
        async with sharing_it(url, "between"):
            monkeypatch.setattr(schema, "MIGRATIONS", both)
            monkeypatch.setattr(schema, "OLDEST", newest + 1)
            with pytest.raises(
                StoreError, match=r"taken_away is in use by old, older, of an asyncchatd that"
            ):
                await migrates()
    monkeypatch.setattr(schema, "MIGRATIONS", adds)
    monkeypatch.setattr(schema, "OLDEST", 1)
    async with sharing_it(url, "between") as (between,):
        monkeypatch.setattr(schema, "MIGRATIONS", both)
        monkeypatch.setattr(schema, "OLDEST", newest + 1)
        done = await migrates()
        assert (done.before, done.now) == (newest + 1, newest + 2)
        assert between.trouble is None


async def test_a_start_waits_for_another_one_that_migrates(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the database lets anybody wait for a lock."""
    looked: list[float] = []
    async with migrating_elsewhere(postgres) as done:

        async def pause(seconds: float) -> None:
            looked.append(seconds)
            if sum(looked) > 100:
                await done()

        monkeypatch.setattr(migrating, "pause", pause)
        store = PostgresStore(postgres.url("waited_for"), directory=tmp_path)
        await store.open()
        await store.close()
    assert 100 < sum(looked) < migrating.PATIENCE_SECONDS


async def test_who_waited_in_vain_is_told_who_migrates(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pause(_: float) -> None:
        return

    monkeypatch.setattr(migrating, "pause", pause)
    async with migrating_elsewhere(postgres):
        with pytest.raises(StoreError) as refused:
            await PostgresStore(postgres.url("waited_in_vain"), directory=tmp_path).open()
    assert re.search(
        r"not done after 120 s: asyncchatd, pid \d+ of the database, user postgres, since 2\d{3}-\S+ \S+ UTC\. Wait",
        str(refused.value),
    )


@asynccontextmanager
async def migrating_elsewhere(postgres: Server) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Another process has the lock of who migrates, until what is given is called."""
    async with admin(postgres) as connection:
        await connection.script("BEGIN")
        await migrating.take_turn(connection)
        yield lambda: connection.script("ROLLBACK")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ("", "make the schema not_allowed in the database postgres"),
        ("CREATE SCHEMA not_allowed", "use the schema not_allowed"),
        (
            "CREATE SCHEMA not_allowed; GRANT USAGE ON SCHEMA not_allowed TO nobodys",
            "make tables in the schema not_allowed",
        ),
    ],
    ids=["no schema", "not its own", "nothing in it"],
)
def test_who_may_make_no_tables_is_told_the_command(
    postgres: Server, tmp_path: Path, made: str, why: str
) -> None:
    url = postgres.url("not_allowed")
    as_admin(postgres, lambda sql: sql.script(f"CREATE ROLE nobodys LOGIN; {made}"))
    store = PostgresStore(url.replace("postgres@", "nobodys@"), directory=tmp_path)
    try:
        with pytest.raises(StoreError) as refused:
            asyncio.run(store.open())
        assert f"the user nobodys may not {why}; run `asyncchatd store migrate URL --runner nobodys`" in str(
            refused.value
        )
        assert "docs/nodes.md" in str(refused.value)
        owns = 'Who is to own them himself needs GRANT CREATE ON DATABASE "postgres" TO "nobodys"'
        assert (owns in str(refused.value)) == (not made)
        if made:  # by its owner
            as_admin(postgres, lambda sql: sql.script("REVOKE ALL ON SCHEMA not_allowed FROM nobodys"))
        done = asked(url, "--runner", "nobodys")
        assert done.exit_code == 0, done.output

        async def starts() -> None:
            await store.open()
            await store.close()

        asyncio.run(starts())
    finally:
        as_admin(
            postgres,
            lambda sql: sql.script(
                "DROP SCHEMA IF EXISTS not_allowed CASCADE; DROP OWNED BY nobodys; DROP ROLE nobodys"
            ),
        )


def test_a_runner_whom_the_owner_gave_nothing_is_told_the_command(postgres: Server, tmp_path: Path) -> None:
    url = postgres.url("given_nothing")
    as_admin(postgres, lambda sql: sql.script("CREATE ROLE poor LOGIN"))
    assert asked(url).exit_code == 0
    as_admin(postgres, lambda sql: sql.script("GRANT USAGE ON SCHEMA given_nothing TO poor"))
    store = PostgresStore(url.replace("postgres@", "poor@"), directory=tmp_path)
    with pytest.raises(
        StoreError, match=r"poor may not use the tables in the schema given_nothing; run .*poor"
    ):
        asyncio.run(store.open())


@pytest.mark.slow
async def test_a_node_stops_work_once_a_newer_one_has_taken_away_what_it_needs(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    url = postgres.url("outgrown", hold="0s")
    async with sharing_it(url, "old") as (old,):
        now = old.clock(SystemClock()).now()
        await old.register([registration()], now=now, spread_ms=1e9)
        await old.make_due("chat-1", Reason.REQUEST, now=now)
        async with admin(postgres) as connection:
            await connection.script(
                f"UPDATE outgrown.schema_version SET version={the_newest() + 2}, oldest={the_newest() + 1}"
            )
        await until(lambda: old.trouble)
        why = f"the schema outgrown was made by a newer asyncchatd (version {the_newest() + 2}"
        assert str(old.trouble).startswith(why)
        with pytest.raises(StoreError, match="made by a newer asyncchatd"):
            await old.take_push(push("chat-1"), now=now)
        with pytest.raises(StoreError, match="made by a newer asyncchatd"):
            await old.claim(now=now, limit=1, lease_ms=15_000)
        assert str(events.one(Event.STORE_UNWRITABLE)["cause"]).startswith(why)
        async with admin(postgres) as connection:
            assert not await connection.rows(
                "SELECT 1 FROM pg_locks WHERE locktype='advisory' AND granted AND objsubid=2"
                f" AND classid::bigint={PRESENCE} AND objid::bigint IN (SELECT hashtext('outgrown ' || id)::bigint"
                " & 4294967295 FROM outgrown.node)"
            )


@pytest.mark.parametrize("made", [False, True], ids=["an empty schema", "his tables"])
def test_who_acts_for_the_owner_leaves_everything_his(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """A superuser migrates, and names the runner: what the owner adds later is the runner's to use all the same."""
    url = postgres.url("owned_by_holder")
    as_admin(
        postgres,
        lambda sql: sql.script(
            "CREATE ROLE holder LOGIN; CREATE ROLE uses LOGIN; CREATE SCHEMA owned_by_holder AUTHORIZATION holder"
        ),
    )
    own = url.replace("postgres@", "holder@")
    try:
        with monkeypatch.context() as older:
            older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
            if made:
                assert asked(own).exit_code == 0
            older.setattr(schema, "MIGRATIONS", THE_MIGRATIONS[:4])
            done = asked(url, "--runner", "uses")
            assert done.exit_code == 0, done.output
        added = "CREATE TABLE added (id bigint GENERATED ALWAYS AS IDENTITY, words text)"
        with monkeypatch.context() as newer:
            newer.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
            done = asked(own)
            assert done.exit_code == 0, done.output

            async def starts() -> None:
                store = PostgresStore(url.replace("postgres@", "uses@"), directory=tmp_path)
                await store.open()
                await store._writing(lambda tx: tx.run("INSERT INTO added (words) VALUES ('a')"))
                await store.close()

            asyncio.run(starts())
        owners = as_admin(
            postgres,
            lambda sql: sql.rows(
                "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname='owned_by_holder'"
            ),
        )
        assert [tuple(each) for each in owners] == [("holder",)]
    finally:
        as_admin(
            postgres,
            lambda sql: sql.script(
                "DROP SCHEMA owned_by_holder CASCADE; DROP OWNED BY uses, holder; DROP ROLE uses, holder"
            ),
        )


THE_MIGRATIONS = schema.MIGRATIONS


@pytest.mark.parametrize(
    ("membership", "alike"),
    [("", "holder"), ("WITH SET FALSE", "member"), ("WITH INHERIT FALSE", "holder")],
    ids=["both", "without SET", "without INHERIT"],
)
def test_a_member_acts_as_the_owner_where_he_may_become_him_and_else_as_himself(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, membership: str, alike: str
) -> None:
    """From PostgreSQL 16 on two rights: to have those of a role, and to take it."""
    url = postgres.url("of_a_holder")

    async def prepare(sql: Connection) -> bool:
        may_tell = await sql.value("SELECT current_setting('server_version_num')::integer>=160000")
        given = membership if may_tell else ""
        await sql.script(
            "CREATE ROLE holder LOGIN; CREATE ROLE member LOGIN;"
            f" GRANT holder TO member {given}; CREATE SCHEMA of_a_holder AUTHORIZATION holder;"
            " GRANT ALL ON SCHEMA of_a_holder TO member"
        )
        return bool(may_tell)

    may_tell = as_admin(postgres, prepare)
    try:
        with monkeypatch.context() as older:
            older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
            done = asked(url.replace("postgres@", "member@"))
            assert done.exit_code == 0, done.output
        owners = as_admin(
            postgres,
            lambda sql: sql.rows("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname='of_a_holder'"),
        )
        assert [tuple(each) for each in owners] == [(alike if may_tell else "holder",)]
    finally:
        as_admin(
            postgres,
            lambda sql: sql.script(
                "DROP SCHEMA of_a_holder CASCADE; DROP OWNED BY member, holder; DROP ROLE member, holder"
            ),
        )


async def test_a_start_and_a_check_say_the_same(postgres: Server, tmp_path: Path) -> None:
    """Whatever a user lacks: why a node does not start is what `asyncchatd check --connect` says, with the advice."""
    url = postgres.url("said_once").replace("postgres@", "lacks@")
    steps = (
        "CREATE ROLE lacks LOGIN",
        "CREATE SCHEMA said_once",
        "GRANT USAGE ON SCHEMA said_once TO lacks",
        "made",
        "GRANT SELECT ON said_once.schema_version TO lacks",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA said_once TO lacks",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA said_once TO lacks; UPDATE said_once.schema_version SET version=2",
        "UPDATE said_once.schema_version SET version=1000, oldest=999",
        "ALTER ROLE lacks SET search_path=elsewhere",
    )
    told: list[str] = []
    async with admin(postgres) as sql:
        try:
            for step in steps:
                if step == "made":
                    await PostgresStore(postgres.url("said_once"), directory=tmp_path).migrate()
                else:
                    await sql.script(step)
                with pytest.raises(StoreError) as refused:
                    await PostgresStore(url, directory=tmp_path).open()
                told.append(str(refused.value))
                errors = [each for each in await found(url, tmp_path) if each.level is Level.ERROR]
                assert [f"{each.message}; {each.advice}" for each in errors] == told[-1:]
        finally:
            await sql.script("DROP SCHEMA said_once CASCADE; DROP OWNED BY lacks; DROP ROLE lacks")
    assert len(set(told)) == len(steps) - 1, (
        "the tables of before and those that were made are used by the same rights"
    )


async def test_why_a_connection_is_misled_is_said_without_the_key_that_a_check_puts_before_it(
    postgres: Server,
) -> None:
    async with admin(postgres) as sql:
        misled = await schema.look_at(sql, "behind_a_pooler")
    assert str(misled.refusal) == (
        "the connection does not look for tables in the schema behind_a_pooler: a pooler drops search_path; ALTER ROLE"
        ' "postgres" SET search_path = "behind_a_pooler"'
    )


def test_the_owner_keeps_his_rights(postgres: Server) -> None:
    url = postgres.url("owned_by_postgres")
    done = asked(url, "--runner", "postgres")
    assert done.exit_code == 1
    assert "--runner: postgres owns the tables" in done.output
    assert f"went from version 0 to {the_newest()}." in asked(url).output


SECRET = {
    "secure_key",
    "old_keys",
    "came_with",
    "body",
    "likeness",
    "take_id",
    "digest",
    "key_digest",
    "push_digest",
}
"""Names of columns with keys, with what could be guessed from one, and with what customers wrote."""


def test_the_reader_sees_all_but_keys_and_texts(postgres: Server) -> None:
    url = postgres.url("looked_at")
    as_admin(postgres, lambda sql: sql.script("CREATE ROLE looker LOGIN"))
    for _ in range(2):  # repeated after an upgrade
        done = asked(url, "--reader", "looker")
        assert done.exit_code == 0, done.output
        assert "looker may read them, but no keys and nothing that customers wrote." in done.output

    async def look(sql: Connection) -> list[tuple[str, str, bool, bool]]:
        found = await sql.rows(
            """SELECT table_name, column_name, has_column_privilege('looker', format('looked_at.%I', table_name),
                column_name, 'SELECT'), has_table_privilege('looker', format('looked_at.%I', table_name),
                'INSERT, UPDATE, DELETE') FROM information_schema.columns WHERE table_schema='looked_at'"""
        )
        return [(table, column, reads, writes) for table, column, reads, writes in found]

    columns = as_admin(postgres, look)
    assert {(table, column) for table, column, reads, _ in columns if not reads} == {
        (table, column) for table, column, _, _ in columns if column in SECRET
    }
    assert not any(writes for *_, writes in columns)

    async def reads(sql: Connection) -> None:
        await sql.script("SET ROLE looker; SET search_path = looked_at")
        assert (
            await sql.rows("SELECT chat_id, state, due_at FROM session JOIN work ON work.session=session.id")
            == []
        )
        with pytest.raises(StoreError, match="permission denied"):
            await sql.rows("SELECT secure_key FROM session")

    as_admin(postgres, reads)


def test_a_reader_who_is_nobody_is_named(postgres: Server) -> None:
    done = asked(postgres.url("read_by_nobody"), "--reader", "nobody")
    assert done.exit_code == 1
    assert done.stderr == 'Error: PostgreSQL: role "nobody" does not exist (42704)\n'
    assert not done.stdout


@pytest.mark.parametrize("option", ["--runner", "--reader"])
@pytest.mark.parametrize("user", ["public", ""])
def test_rights_are_given_to_one_user(postgres: Server, option: str, user: str) -> None:
    """PostgreSQL takes "public" for everybody, in quotes too."""
    done = asked(postgres.url("for_everybody"), option, user)
    assert done.exit_code == 1
    assert f"{option}: expected one user of the database" in done.output


@pytest.mark.parametrize("option", ["--runner", "--reader"])
def test_who_does_not_own_the_tables_gives_no_rights(postgres: Server, option: str) -> None:
    """PostgreSQL only warns."""
    url = postgres.url("given_by_another")
    as_admin(
        postgres,
        lambda sql: sql.script(
            "DROP ROLE IF EXISTS giver; DROP ROLE IF EXISTS taker; CREATE ROLE giver LOGIN; CREATE ROLE taker"
        ),
    )
    assert asked(url, "--runner", "giver").exit_code == 0
    done = asked(url.replace("postgres@", "giver@"), option, "taker")
    as_admin(postgres, lambda sql: sql.script("DROP OWNED BY giver; DROP ROLE giver; DROP ROLE taker"))
    assert done.exit_code == 1
    assert f"{option}: giver gives no rights to the tables; name the URL of postgres" in done.output


def test_the_reader_reads_no_views_and_tables_of_others(postgres: Server) -> None:
    """What is in them nobody here knows."""
    url = postgres.url("beside_others")
    assert asked(url).exit_code == 0
    as_admin(
        postgres,
        lambda sql: sql.script(
            "CREATE ROLE onlooker; CREATE VIEW beside_others.told AS SELECT body FROM beside_others.event;"
            " CREATE TABLE beside_others.kept AS SELECT body FROM beside_others.event"
        ),
    )
    assert asked(url, "--reader", "onlooker").exit_code == 0

    async def look(sql: Connection) -> list[tuple[bool, bool, bool]]:
        found = await sql.rows(
            "SELECT has_any_column_privilege('onlooker', 'beside_others.told', 'SELECT'),"
            " has_any_column_privilege('onlooker', 'beside_others.kept', 'SELECT'),"
            " has_any_column_privilege('onlooker', 'beside_others.event', 'SELECT')"
        )
        return [(view, table, ours) for view, table, ours in found]

    assert as_admin(postgres, look) == [(False, False, True)]


@pytest.mark.parametrize(
    ("rights", "why"),
    [
        ("ALTER ROLE {} SUPERUSER", "may write to the tables"),
        ("GRANT UPDATE ON more_than_read.session TO {}", "may write to the tables"),
        ("GRANT TRUNCATE ON more_than_read.event TO {}", "may write to the tables"),
        ("GRANT SELECT ON more_than_read.session TO PUBLIC", "may read session."),
        ("GRANT SELECT (body) ON more_than_read.event TO PUBLIC", "may read event.body as a member"),
        ("ALTER ROLE {} NOINHERIT; GRANT pg_read_all_data TO {}", "as everybody may"),
        ("ALTER ROLE {} NOINHERIT; GRANT pg_write_all_data TO {}", "may write to the tables"),
    ],
)
def test_a_reader_who_could_do_more_is_refused(postgres: Server, rights: str, why: str) -> None:
    url = postgres.url("more_than_read")
    assert asked(url).exit_code == 0
    as_admin(postgres, lambda sql: sql.script("DROP ROLE IF EXISTS nosy; CREATE ROLE nosy"))
    as_admin(postgres, lambda sql: sql.script(rights.replace("{}", "nosy")))
    done = asked(url, "--reader", "nosy")
    as_admin(postgres, lambda sql: sql.script("DROP OWNED BY nosy; DROP ROLE nosy"))
    as_admin(
        postgres, lambda sql: sql.script("REVOKE ALL ON ALL TABLES IN SCHEMA more_than_read FROM PUBLIC")
    )
    assert done.exit_code == 1
    assert "--reader: nosy " in done.output
    assert why in done.output


def test_a_store_that_is_migrated_by_its_daemon_says_so(tmp_path: Path) -> None:
    done = asked(f"sqlite:///{tmp_path}/chats.db")
    assert done.exit_code == 1
    assert "brought up to date when the daemon starts" in done.output
    assert list(tmp_path.iterdir()) == []
