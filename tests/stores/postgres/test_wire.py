"""The wire to PostgreSQL: text that it does not take, what its errors mean, what an address says."""

from __future__ import annotations

import inspect
import re
import socket
import ssl

import asyncpg
import pytest
from asyncpg import connect_utils
from conftest import Events, case, settle
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.log.events import Event
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.postgres import address as addresses
from asyncchatd.stores.postgres.address import HOLD_MS, place_of
from asyncchatd.stores.postgres.failing import LostRace, in_our_words
from asyncchatd.stores.postgres.wire import (
    Address,
    Connection,
    connect,
    escaped,
    unescaped,
)

BROKE_OFF = "the connection to PostgreSQL broke off, and is made anew"

ANY_TEXT = st.text(st.characters(codec=None), max_size=20) | st.text("\x00\x1a\ud800\udfff0af")


@given(ANY_TEXT)
def test_any_text_comes_back_as_it_was_and_is_text_that_postgresql_takes(text: str) -> None:
    written = escaped(text)
    assert unescaped(written) == text
    assert "\0" not in written.encode().decode()


@given(ANY_TEXT, ANY_TEXT)
def test_two_texts_are_never_written_alike(one: str, other: str) -> None:
    assert (escaped(one) == escaped(other)) == (one == other)


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("40P01", LostRace),
        ("40001", LostRace),
        ("23505", LostRace),
        ("57P01", StoreUnwritable),
        ("25006", StoreUnwritable),
        ("53100", StoreUnwritable),
        ("28P01", StoreUnwritable),
        ("08006", StoreUnwritable),
        ("42501", StoreUnwritable),
        ("42P01", StoreUnwritable),
        ("42703", StoreUnwritable),
        ("3F000", StoreUnwritable),
        ("42601", StoreError),
    ],
)
def test_what_goes_away_by_itself_or_when_somebody_mends_it_is_no_fault_of_the_statement(
    code: str, meant: type[StoreError]
) -> None:
    error = asyncpg.PostgresError.new({"C": code, "M": "it says\nso"})
    told = in_our_words(error)
    assert type(told) is meant
    assert str(told) == f"PostgreSQL: it says so ({code})"


def test_a_row_that_the_server_shows_is_not_told() -> None:
    shown = {"C": "23502", "M": "null value", "D": "Failing row contains (1, the-secure-key)."}
    told = in_our_words(asyncpg.PostgresError.new(shown))
    assert str(told) == "PostgreSQL: null value (23502)"


@pytest.mark.parametrize("kind", [asyncpg.TargetServerAttributeNotMatched, asyncpg.ProtocolError])
async def test_that_no_server_is_the_primary_is_that_it_is_away(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: object, **__: object) -> None:
        raise kind("None of the hosts match the target attribute requirement")

    monkeypatch.setattr(asyncpg, "connect", none)
    with pytest.raises(StoreUnwritable, match="PostgreSQL"):
        await connect(Address("postgresql://one,two/chats?target_session_attrs=read-write"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
            BROKE_OFF,
        ),
        (asyncpg.InterfaceError("cannot perform operation: connection is closed"), BROKE_OFF),
        (asyncpg.ProtocolError("unexpected message"), BROKE_OFF),
        (
            asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
            "PostgreSQL, or who is between, has ended the connection (08003)",
        ),
        (
            asyncpg.TargetServerAttributeNotMatched("None of the hosts match <SessionAttribute.read_write>"),
            "PostgreSQL cannot be reached: no server of the address is what target_session_attrs asks for",
        ),
        (
            OSError(111, "Connect call failed ('127.0.0.1', 5432)"),
            "PostgreSQL cannot be reached: Connection refused",
        ),
        (
            OSError(
                "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), [Errno 111] Connect call"
                " failed ('127.0.0.1', 1), [Errno 113] Connect call failed ('10.0.0.1', 1)"
            ),
            "PostgreSQL cannot be reached: Connection refused, No route to host",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "/etc/ca.pem"),
            "PostgreSQL cannot be reached: No such file or directory: /etc/ca.pem",
        ),
        (
            socket.gaierror(-2, "Name or service not known"),
            "PostgreSQL cannot be reached: the name of its host cannot be resolved: name or service not known",
        ),
        (
            ConnectionError("unexpected connection_lost() call"),
            "PostgreSQL cannot be reached: it ended the connection at once; its log may say why",
        ),
        (
            ConnectionError('PostgreSQL server at "db:5432" rejected SSL upgrade'),
            "PostgreSQL cannot be reached: it speaks no TLS, which sslmode asks for",
        ),
        (ssl.SSLError(1, "[SSL] unsupported protocol (_ssl.c:1006)"), "PostgreSQL cannot be reached: TLS: "),
    ],
)
def test_what_the_driver_and_the_system_say_is_told_in_our_words(error: Exception, told: str) -> None:
    words = str(in_our_words(error))
    assert words.startswith(told)
    assert not re.search(r"Errno|call failed|operation|state \d|_ssl\.c|SessionAttribute|\(\)", words)


def test_a_pooler_that_the_url_does_not_know_of_is_named() -> None:
    said = {"C": "26000", "M": 'prepared statement "__asyncpg_stmt_1__" does not exist'}
    assert "add &presence=off&statement_cache=off" in str(in_our_words(asyncpg.PostgresError.new(said)))


async def test_an_error_of_the_driver_itself_ends_the_connection() -> None:
    raw = Broken()
    with pytest.raises(StoreUnwritable, match="the connection to PostgreSQL broke off, and is made anew"):
        await Connection(raw).value("SELECT 1")
    assert raw.is_terminated


class Broken:
    """A connection of the driver on which it has lost its place."""

    is_terminated = False

    async def fetchval(self, _: str) -> None:
        raise asyncpg.ProtocolError("out of step")

    async def set_type_codec(self, *_: object, **__: object) -> None:
        await self.fetchval("")

    def terminate(self) -> None:
        self.is_terminated = True


async def test_a_connection_that_cannot_be_used_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Broken()

    async def broken(*_: object, **__: object) -> Broken:
        return raw

    monkeypatch.setattr(asyncpg, "connect", broken)
    with pytest.raises(StoreUnwritable, match=r"broke off$"):
        await connect(Address("postgresql://one/chats"))
    assert raw.is_terminated


def test_a_fault_of_the_statement_is_one() -> None:
    told = in_our_words(asyncpg.PostgresError.new({"C": "42601", "M": "syntax error"}))
    assert type(told) is StoreError


def test_an_address_says_where_and_how() -> None:
    place = place_of(
        "postgresql://chats:the-password@db1,db2:5433/chats?schema=two&sslmode=verify-full&hold=2m&node=left"
        "&statement_cache=off&presence=off"
    )
    assert place.address.dsn == "postgresql://chats:the-password@db1,db2:5433/chats?sslmode=verify-full"
    assert (place.address.schema, place.address.statement_cache) == ("two", False)
    assert (place.hold_ms, place.node, place.presence) == (120_000, "left", False)
    assert "the-password" not in f"{place.shown} {place.address}"


@pytest.mark.parametrize(
    "password", ["se/cret", "se?cret", "se#cret", "se[cret", "se@cret", "5/ecret", "5?ecret", "5#ecret"]
)
def test_a_password_that_is_not_written_as_in_a_url_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(StoreError, match=r"store\.url: .* / as %2F") as refused:
        place_of(f"postgresql://chats:{password}@host/chats?sslmode=require")
    assert "cret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "address",
    [
        "chats:se%2Fc%40ret@[::1]:5433,db2,db3:5432/chats",
        "%2Frun%2Fpostgresql/chats?user=a@b",
        "chats@host/of@somebody",
    ],
)
def test_an_address_may_hold_other_signs(address: str) -> None:
    assert place_of(f"postgresql://{address}").address.dsn.startswith(
        f"postgresql://{address.partition('?')[0]}"
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("nodes", "node"),
        ("holds", "hold"),
        ("presense", "presence"),
        ("ssl_mode", "sslmode"),
        ("Hold", "hold"),
    ],
)
def test_a_misspelt_parameter_is_told(written: str, meant: str) -> None:
    with pytest.raises(StoreError) as refused:
        place_of(f"postgresql:///chats?{written}=north")
    assert str(refused.value) == f"store.url: {written}: unknown parameter; did you mean {meant}?"


def test_all_parameters_that_the_driver_knows_are_known() -> None:
    """One that is not would be refused as misspelt where it is like another one."""
    source = inspect.getsource(connect_utils)
    drivers = set(re.findall(r"""query\.pop\(\s*['"](\w+)|['"](\w+)['"] in query""", source))
    names = {one or other for one, other in drivers}
    assert {"host", "sslmode", "gsslib"} <= names
    assert names <= addresses._THEIRS


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("node=a&node=b", "node: it stands twice"),
        ("node=", "node: it is empty"),
        ("search_path=x", "search_path: schema=NAME says"),
        ("service=a&servicefile=b", "servicefile: the environment variable PGSERVICEFILE names it"),
        ("sslmode=foo", "sslmode=foo: one of disable, allow, "),
        ("target_session_attrs=rw", "target_session_attrs=rw: one of any, primary, "),
    ],
)
def test_a_parameter_that_cannot_mean_anything_is_told(query: str, said: str) -> None:
    with pytest.raises(StoreError, match=f"^store.url: {re.escape(said)}"):
        place_of(f"postgresql:///chats?{query}")


def test_the_values_are_those_that_the_driver_takes() -> None:
    modes = {mode.name.replace("_", "-") for mode in connect_utils.SSLMode}
    attributes = {attribute.value for attribute in connect_utils.SessionAttribute}
    taken = {"sslmode": modes, "target_session_attrs": attributes}
    assert {name: set(values) for name, values in addresses._VALUES.items()} == taken


def test_a_setting_of_the_server_is_left_to_it() -> None:
    dsn = "postgresql:///chats?statement_timeout=9s&lock_timeout=1s&work_mem=8MB&jit=off&passfile=x"
    assert place_of(dsn).address.dsn == dsn


def test_an_address_need_not_say_much() -> None:
    place = place_of("postgres:///?service=chat")
    assert (place.address.schema, place.hold_ms, place.presence) == ("asyncchatd", HOLD_MS, True)
    assert place.address.dsn == "postgresql:///?service=chat"
    assert place.node


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("schema=1st", "store.url: schema=1st"),
        ('schema=a"b', "store.url: schema="),
        ("hold=soon", "store.url: hold=soon: a time such as 90s"),
        ("presence=maybe", "store.url: presence=maybe: on or off"),
        ("statement_cache=2", "store.url: statement_cache=2: on or off"),
    ],
)
def test_a_wrong_parameter_is_named(wrong: str, said: str) -> None:
    with pytest.raises(StoreError, match=r"store\.url") as refused:
        place_of(f"postgresql://host/database?{wrong}")
    assert str(refused.value).startswith(said)


class Failing:
    """A connection of the driver on which each statement comes to this error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def fetchval(self, _: str) -> None:
        raise self._error

    def terminate(self) -> None:
        """Give it up."""


async def test_what_the_driver_itself_said_is_in_the_log_at_debug_and_shows_no_value(events: Events) -> None:
    closed, refused = "connection was closed in the middle of operation", "[Errno 111] Connection refused"
    server = {"C": "22P02", "M": 'invalid input syntax for type bigint: "s3cret"'}
    row = {"C": "23505", "M": "duplicate key", "D": "Key (secure_key)=(s3cret) already exists."}
    for error, detail in (
        (asyncpg.ConnectionDoesNotExistError(closed), closed),
        (ConnectionRefusedError(refused), refused),
        (asyncpg.PostgresError.new(server), None),
        (asyncpg.PostgresError.new(row), "duplicate key"),
        (asyncpg.DataError("invalid input for query argument $3: 's3cret' (expected str)"), None),
        (asyncpg.ClientConfigurationError("invalid DSN: postgresql://u:s3cret@h/db"), None),
    ):
        with case(error):
            events.forget()
            with pytest.raises(StoreError):
                await Connection(Failing(error)).value("SELECT 1")
            await settle()  # lines are written at the end of a turn
            told = events.one(Event.STORE_DRIVER_SAID)
            assert (told["level"], told["cause"]) == ("debug", type(error).__name__)
            assert told.get("detail") == detail
            assert "s3cret" not in events.text
