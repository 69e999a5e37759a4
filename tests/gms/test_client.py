"""The client of the GMS nodes against a table of faults, all of them on real sockets."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import random
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import (
    PATIENCE,
    Certificates,
    Events,
    FakeClock,
    MakeSettings,
    ScriptedNode,
    Then,
    claimed_port,
    crowded_port,
    raw_server,
    server_tls,
    soon,
    tokens,
)

from asyncchatd.gms import connection, connections
from asyncchatd.gms.client import Answer, GmsClient
from asyncchatd.gms.http_reply import MAX_REPLY
from asyncchatd.gms.node import STRIKES
from asyncchatd.gms.pacing import Pacer
from asyncchatd.gms.trouble import Trouble
from asyncchatd.log.events import Event
from asyncchatd.model.data import TokenNews, Tokens
from asyncchatd.standin.messages import write_reply
from asyncchatd.wire.chat_api.outcome import (
    Alive,
    Ended,
    NodeTrouble,
    Outcome,
    PingFault,
    Refused,
    RetryLater,
)
from asyncchatd.wire.chat_api.replies import ReplyFault

pytestmark = pytest.mark.usefixtures("events")

GOOD = write_reply(0, TokenNews("chat-1", "user-2", "key-2", "118"), next_position=7, chat_ended=False)
TOO_LARGE = gzip.compress(b" " * (MAX_REPLY + 1), compresslevel=1)
PACKED = {"Content-Encoding": "gzip"}


@pytest.fixture
async def a() -> AsyncIterator[ScriptedNode]:
    """The node that is asked first."""
    async with ScriptedNode() as node:
        yield node


@pytest.fixture
async def b() -> AsyncIterator[ScriptedNode]:
    """The one that is asked next."""
    async with ScriptedNode() as node:
        yield node


@asynccontextmanager
async def client(
    make_settings: MakeSettings, *bases: str, clock: FakeClock | None = None, **more: object
) -> AsyncIterator[GmsClient]:
    """A client of these nodes; pauses of the pacer do not matter here."""
    settings = make_settings(gms={"nodes": list(bases), **more})
    clock = clock or FakeClock(jumping=True)
    async with GmsClient(settings.gms, Pacer(1e6, clock), clock) as opened:
        yield opened


async def ping(gms: GmsClient, chat_id: str = "chat-1", *, alias: str = "117") -> Answer:
    return await soon(gms.refresh("support", tokens(chat_id, alias=alias), 3))


def standing(gms: GmsClient) -> list[bool]:
    """Which nodes are in good standing, in order."""
    return [node.failures == 0 for node in gms.nodes]


# -- what is sent --------------------------------------------------------------------------------


async def test_a_ping_refresh_carries_all_tokens_and_the_position(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    a.answer(GOOD)
    async with client(make_settings, a.base) as gms:
        answer = await ping(gms)
    [request] = a.requests
    assert request.path == "/genesys/2/chat/support/chat-1/refresh"
    assert parse_qs(request.body.decode()) == {
        "userId": ["user-of-chat-1"],
        "secureKey": ["key-of-chat-1"],
        "alias": ["117"],
        "transcriptPosition": ["3"],
    }
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert isinstance(answer.outcome, Alive)
    assert answer.outcome.reply.news == TokenNews("chat-1", "user-2", "key-2", "118")
    assert (answer.node, answer.outcome.reply.next_position) == (a.base, 7)


async def test_an_answer_says_when_its_request_was_sent(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    """The token rules compare a reply's age with a push's: what counts is the try that was answered."""
    a.answer(status=404)
    b.answer(GOOD)
    jumping = FakeClock(jumping=True)
    begun = jumping.now()
    settings = make_settings(gms={"nodes": [a.base, b.base]})
    pacer = Pacer(0.5, jumping)
    await pacer.turn()
    async with GmsClient(settings.gms, pacer, jumping) as gms:
        answer = await ping(gms)
    assert answer.node == b.base
    assert begun + 2000 <= answer.sent_at <= begun + 2100
    assert answer.took == 0


async def test_every_try_waits_for_its_turn(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    """Failover must not double the rate."""
    a.answer(status=404, times=None)
    b.answer(status=404, times=None)
    jumping = FakeClock(jumping=True)
    settings = make_settings(gms={"nodes": [a.base, b.base]})
    pacer = Pacer(1, jumping)
    async with GmsClient(settings.gms, pacer, jumping) as gms:
        for _ in range(2):  # after three strikes a node would rest
            await pacer.turn()
            await ping(gms)
    assert jumping.monotonic() >= 3


# -- the table of faults: what one node's answer means ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """What a node does, what the ping comes to, and whether the node is believed to be at fault."""

    name: str
    outcome: type[Outcome]
    cause: str | None = None
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] | None = None
    retry_after: float | None = None
    node_failed: bool = False
    strike: bool = True
    """With `NodeTrouble`: counted against the node, though it does not rest yet."""


def _said(status_code: int, **more: object) -> bytes:
    return write_reply(status_code, TokenNews("chat-1"), **more)  # type: ignore[arg-type]


FAULTS = [
    Fault("statusCode 1", RetryLater, PingFault.STATUS_CODE_1, body=_said(1)),
    Fault(
        "statusCode 1 with Retry-After",
        RetryLater,
        PingFault.STATUS_CODE_1,
        body=_said(1),
        headers={"Retry-After": "7"},
        retry_after=7,
    ),
    Fault("statusCode 1 under HTTP 500", RetryLater, PingFault.STATUS_CODE_1, status=500, body=_said(1)),
    Fault("HTTP 429", RetryLater, PingFault.TOO_MANY_REQUESTS, status=429, body=b"slow down"),
    Fault(
        "HTTP 429 with Retry-After",
        RetryLater,
        PingFault.TOO_MANY_REQUESTS,
        status=429,
        headers={"Retry-After": "3"},
        retry_after=3,
        node_failed=True,
    ),
    Fault("statusCode 2", Refused, PingFault.STATUS_CODE_2, body=_said(2, errors=[ReplyFault(249, "no")])),
    Fault("chatEnded", Ended, body=_said(2, chat_ended=True)),
    Fault("chatEnded with statusCode 0", Ended, body=_said(0, chat_ended=True)),
    *(
        Fault(f"HTTP {status}", NodeTrouble, cause, status=status, body=b"<html>no</html>")
        for status, cause in {
            400: PingFault.BAD_REQUEST,
            404: PingFault.NOT_FOUND,
            405: PingFault.METHOD_NOT_ALLOWED,
            409: PingFault.CONFLICT,
            410: PingFault.GONE,
            413: PingFault.BODY_TOO_LARGE,
            414: PingFault.URI_TOO_LONG,
            415: PingFault.UNSUPPORTED_MEDIA_TYPE,
            418: PingFault.CLIENT_ERROR,
            422: PingFault.UNPROCESSABLE,
        }.items()
    ),
    *(
        Fault(f"HTTP {status}", NodeTrouble, cause, status=status, body=b"Forbidden")
        for status, cause in {
            301: PingFault.REDIRECT,
            302: PingFault.REDIRECT,
            307: PingFault.REDIRECT,
            401: PingFault.UNAUTHORIZED,
            403: PingFault.FORBIDDEN,
            407: PingFault.PROXY_AUTHENTICATION,
            408: PingFault.REQUEST_TIMEOUT,
            500: PingFault.SERVER_ERROR,
            502: PingFault.BAD_GATEWAY,
            503: PingFault.UNAVAILABLE,
            504: PingFault.GATEWAY_TIMEOUT,
            599: PingFault.SERVER_ERROR,
            600: PingFault.ODD_STATUS,
        }.items()
    ),
    Fault(
        "HTTP 503 with Retry-After",
        NodeTrouble,
        PingFault.UNAVAILABLE,
        status=503,
        headers={"Retry-After": "5"},
        retry_after=5,
        node_failed=True,
    ),
    Fault("success under HTTP 500", NodeTrouble, PingFault.CONTRADICTORY, status=500, body=GOOD),
    Fault(
        "another chat's reply", NodeTrouble, PingFault.FOREIGN_REPLY, body=write_reply(0, TokenNews("other"))
    ),
    Fault(
        "another chat's end",
        NodeTrouble,
        PingFault.FOREIGN_REPLY,
        body=write_reply(2, TokenNews("other"), chat_ended=True),
    ),
    Fault("empty body", NodeTrouble, PingFault.EMPTY_BODY),
    Fault("HTML", NodeTrouble, PingFault.HTML, body=b"<html><body>Welcome</body></html>"),
    Fault("truncated", NodeTrouble, PingFault.TRUNCATED, body=GOOD[:-5]),
    Fault("not JSON", NodeTrouble, PingFault.NOT_JSON, body=b"OK"),
    Fault("a list", NodeTrouble, PingFault.NOT_AN_OBJECT, body=b"[0]"),
    Fault("no statusCode", NodeTrouble, PingFault.NO_STATUS_CODE, body=b'{"chatId":"chat-1"}'),
    Fault("statusCode 9", NodeTrouble, PingFault.UNKNOWN_STATUS_CODE, body=b'{"statusCode":9}'),
]


def patience_with(fault: Fault) -> str:
    """`gms.timeout` for a fault: behind another chat's answer the right one is waited for as long."""
    return "300ms" if fault.cause == PingFault.FOREIGN_REPLY else "10s"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_what_a_nodes_answer_means(fault: Fault, make_settings: MakeSettings, a: ScriptedNode) -> None:
    a.answer(fault.body, status=fault.status, headers=fault.headers)
    async with client(make_settings, a.base, timeout=patience_with(fault)) as gms:
        outcome = (await ping(gms)).outcome
        assert type(outcome) is fault.outcome
        if isinstance(outcome, (RetryLater, Refused, NodeTrouble)):
            assert outcome.cause == fault.cause
        if isinstance(outcome, (RetryLater, NodeTrouble)):
            assert outcome.retry_after == fault.retry_after
        assert standing(gms) == [not fault.node_failed]


def test_the_table_has_every_cause_of_the_wire() -> None:
    assert {fault.cause for fault in FAULTS if fault.cause} == set(PingFault)


# -- failing over ----------------------------------------------------------------------------------

NOT_TAKEN = (400, 401, 403, 404, 405, 407, 410, 413, 414, 415, 418, 422, 429)
"""What a proxy or a servlet container answers that gave the request to nobody. Every other answer, and every other
end, may be that of a request that was taken: its reply may have carried a new secure key."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_another_node_is_asked_when_the_first_one_did_not_take_the_request_and_only_then(
    fault: Fault, make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    a.answer(fault.body, status=fault.status, headers={"Connection": "close", **(fault.headers or {})})
    b.answer(GOOD)
    async with client(make_settings, a.base, b.base, timeout=patience_with(fault)) as gms:
        answer = await ping(gms)
    fails_over = fault.status in NOT_TAKEN
    assert answer.node == (b.base if fails_over else a.base)
    assert [len(node.requests) for node in (a, b)] == [1, 1 if fails_over else 0]


@pytest.mark.parametrize("status", [400, 404, 429])
async def test_a_refusal_over_a_kept_connection_may_be_another_requests(
    status: int, make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    """Some servers say 400 or 408 when they tire of a connection. This one may be at work on the request."""
    a.answer(_reply("chat-0"))
    a.answer(status=status)
    b.answer(GOOD)
    async with client(make_settings, a.base, b.base) as gms:
        asked = [(await ping(gms, chat)).node for chat in ("chat-0", "chat-1", "chat-1")]
    assert asked == [a.base, b.base, a.base]
    assert (len(a.requests), a.connections, len(b.requests)) == (2, 1, 1)


@asynccontextmanager
async def broken(how: str, certificates: Certificates) -> AsyncIterator[str]:
    """A node to which no request gets."""

    async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    if how == "refused":
        with claimed_port() as claim:
            yield f"http://127.0.0.1:{claim.getsockname()[1]}/genesys"
    elif how == "no name":
        yield f"http://{'a' * 64}.example/genesys"
    elif how == "crowded":
        with crowded_port() as port:
            yield f"http://127.0.0.1:{port}/genesys"
    elif how == "unknown CA":
        async with ScriptedNode(server_tls(certificates)) as node:
            yield node.base
    else:
        assert how == "no TLS"
        async with raw_server(no_tls) as port:
            yield f"https://127.0.0.1:{port}/genesys"


NO_ANSWERS = {
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Then.HANG_UP),
    "false gzip": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", Then.STAY),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("refused", Trouble.CONNECT),
        ("no name", Trouble.CONNECT),
        ("crowded", Trouble.CONNECT),
        ("unknown CA", Trouble.TLS),
        ("no TLS", Trouble.TLS),
    ],
)
async def test_an_error_on_the_way_makes_another_node_answer(
    how: str, cause: str, make_settings: MakeSettings, certificates: Certificates, b: ScriptedNode
) -> None:
    b.answer(GOOD)
    patience = "300ms" if how == "crowded" else "10s"
    async with (
        broken(how, certificates) as base,
        client(make_settings, base, b.base, connect_timeout=patience) as gms,
    ):
        answer = await ping(gms)
        assert isinstance(answer.outcome, Alive)
        assert answer.node == b.base
        assert gms.nodes[0].cause == cause
        assert standing(gms) == [False, True]


async def test_a_single_nodes_error_is_the_pings_outcome(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    await a.stop()
    async with client(make_settings, a.base) as gms:
        outcome = (await ping(gms)).outcome
    assert outcome == NodeTrouble(Trouble.CONNECT, None, "connection refused")


async def test_a_connect_error_without_a_number_does_not_read_success(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with two addresses, and each fails in its own way."""

    async def fail(*_: object, **__: object) -> socket.socket:
        raise OSError("Multiple exceptions: refused, unreachable")

    monkeypatch.setattr(connections, "start_connection", fail)
    async with client(make_settings, "http://127.0.0.1:9/genesys") as gms:
        outcome = (await ping(gms)).outcome
    assert outcome == NodeTrouble(Trouble.CONNECT, None, "OSError")


@pytest.mark.slow
@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"], ids=["nothing", "a beginning"]
)
async def test_a_time_out_asks_no_other_node(
    begun: bytes, make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    """The request may still be worked on, and its answer may carry a new secure key."""
    a.say(begun)
    async with client(make_settings, a.base, b.base, timeout="50ms") as gms:
        answer = await ping(gms)
    assert isinstance(answer.outcome, NodeTrouble)
    assert (answer.outcome.cause, answer.node) == (Trouble.TIMEOUT, a.base)
    assert b.connections == 0


@pytest.mark.parametrize("then", [Then.HANG_UP, Then.RESET])
@pytest.mark.parametrize("begun", [b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"])
async def test_an_answer_that_is_cut_short_asks_no_other_node(
    begun: bytes, then: Then, make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    """It may have told a new secure key, and a request with the old one would throw the customer out. Later
    a push may have told us."""
    a.say(begun, then)
    async with client(make_settings, a.base, b.base) as gms:
        answer = await ping(gms)
        assert standing(gms) == [True, True]
    assert isinstance(answer.outcome, NodeTrouble)
    assert (answer.outcome.cause, answer.node) == (Trouble.CUT_SHORT, a.base)
    assert (len(a.requests), b.connections) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ((b"", Then.HANG_UP), Trouble.DISCONNECTED),
        ((b"", Then.RESET), Trouble.DISCONNECTED),
        *((said, Trouble.PROTOCOL) for said in NO_ANSWERS.values()),
        (
            (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + TOO_LARGE, Then.HANG_UP),
            Trouble.REPLY_TOO_LARGE,
        ),
    ],
    ids=["hung up", "reset", *NO_ANSWERS, "too large"],
)
@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
async def test_a_request_that_may_have_been_taken_is_not_sent_again_at_once(
    kept: bool,
    said: tuple[bytes, Then],
    cause: str,
    make_settings: MakeSettings,
    a: ScriptedNode,
    b: ScriptedNode,
) -> None:
    """Neither to the same node nor to another: the node may have answered with a new key, and a second request with
    the old one would throw the customer out."""
    async with client(make_settings, a.base, b.base) as gms:
        if kept:
            a.answer(_reply("chat-0"))
            b.answer(_reply("chat-0"))
            assert [(await ping(gms, "chat-0")).node for _ in range(2)] == [a.base, b.base]
        a.say(*said)
        answer = await ping(gms)
        assert standing(gms) == [True, True]
    assert isinstance(answer.outcome, NodeTrouble)
    assert (answer.outcome.cause, answer.node) == (cause, a.base)
    assert [len(node.requests) for node in (a, b)] == ([2, 1] if kept else [1, 0])
    assert a.connections == 1


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are so far that whatever a test does happens within one round trip."""
    monkeypatch.setattr(connection, "round_trip", lambda sock: PATIENCE)


@pytest.mark.parametrize("then", [Then.HANG_UP, Then.RESET])
@pytest.mark.usefixtures("far")
async def test_a_connection_that_the_node_had_given_up_is_tried_once_more_on_the_same_node(
    then: Then, make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    """Its end came sooner than the request can have got there and an answer back."""
    b.answer(_reply("chat-0"))
    async with client(make_settings, a.base, b.base) as gms:
        a.answer(_reply("chat-0"))
        await ping(gms, "chat-0")
        await ping(gms, "chat-0")
        for connection in gms.nodes[0].connections._idle:
            connection._round_trip = PATIENCE  # an answer came sooner than that
        a.say(b"", then)
        a.answer(GOOD)
        answer = await ping(gms)
        assert isinstance(answer.outcome, Alive)
        assert answer.node == a.base
        assert standing(gms) == [True, True]
    assert (len(a.requests), a.connections, len(b.requests)) == (3, 2, 1)


@pytest.mark.usefixtures("far")
async def test_a_node_that_hangs_up_twice_has_perhaps_taken_the_request(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    b.answer(_reply("chat-0"))
    async with client(make_settings, a.base, b.base) as gms:
        a.answer(_reply("chat-0"))
        await ping(gms, "chat-0")
        await ping(gms, "chat-0")
        for connection in gms.nodes[0].connections._idle:
            connection._round_trip = PATIENCE
        a.hang_up(times=2)
        answer = await ping(gms)
        assert standing(gms) == [True, True]
    assert (answer.node, len(a.requests), len(b.requests)) == (a.base, 3, 1)


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("begun", [b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTT"])
async def test_a_byte_of_an_answer_says_that_the_request_was_taken(
    begun: bytes, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    async with client(make_settings, a.base) as gms:
        a.answer(_reply("chat-0"))
        await ping(gms, "chat-0")
        for connection in gms.nodes[0].connections._idle:
            connection._round_trip = PATIENCE
        a.say(begun, Then.HANG_UP)
        await ping(gms)
    assert len(a.requests) == 2


async def test_a_lost_answer_says_how_long_the_work_on_it_may_last(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """As long as an answer may take. A whole answer, whatever it says, is the end of the work."""
    async with client(make_settings, a.base) as gms:
        a.hang_up(times=1)
        lost = await ping(gms)
        a.answer(status=502)
        gone = await ping(gms, "chat-2")
        a.answer(status=500)
        failed = await ping(gms, "chat-3")
    timeout = gms._settings.timeout.total_seconds()
    assert lost.perhaps_taken
    assert lost.at_work == pytest.approx(timeout - lost.took)
    assert gone.at_work == pytest.approx(timeout - gone.took)
    assert (failed.perhaps_taken, failed.at_work) == (True, 0.0)


async def test_a_node_is_asked_once_for_one_ping(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    a.answer(status=404, times=None)
    b.answer(status=403, times=None)
    async with client(make_settings, a.base, b.base) as gms:
        answer = await ping(gms)
    assert isinstance(answer.outcome, NodeTrouble)
    assert answer.outcome.cause == PingFault.FORBIDDEN
    assert [len(node.requests) for node in (a, b)] == [1, 1]


async def test_healthy_nodes_take_turns(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    a.answer(GOOD, times=None)
    b.answer(GOOD, times=None)
    async with client(make_settings, a.base, b.base) as gms:
        asked = [(await ping(gms)).node for _ in range(4)]
    assert asked == [a.base, b.base, a.base, b.base]


@pytest.mark.parametrize("chat_id", [".", "..", "\ud800"])
async def test_a_chat_id_that_no_request_can_carry_is_refused(
    chat_id: str, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """It came over the wire or the API. An exception would leave its session claimed for ever."""
    async with client(make_settings, a.base) as gms:
        outcome = (await ping(gms, chat_id)).outcome
        assert isinstance(outcome, Refused)
        assert standing(gms) == [True]
    assert a.connections == 0


# -- whose answer it is ---------------------------------------------------------------------------------


def _reply(chat_id: str | None, *, key: str = "key-2", ended: bool = False) -> bytes:
    return write_reply(0, TokenNews(chat_id, "user-2", key, "118"), next_position=7, chat_ended=ended)


def _http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.fixture(params=["http", "https"])
async def wired(request: pytest.FixtureRequest, certificates: Certificates) -> AsyncIterator[ScriptedNode]:
    """A node, with or without Trouble.TLS."""
    async with ScriptedNode(server_tls(certificates) if request.param == "https" else None) as scripted:
        yield scripted


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
async def test_behind_another_chats_reply_the_right_one_is_waited_for(
    kept: bool,
    ended: bool,
    make_settings: MakeSettings,
    certificates: Certificates,
    wired: ScriptedNode,
    events: Events,
) -> None:
    """A proxy that repeats an answer. Then the connection is closed, since nobody knows what else comes over it."""
    async with client(make_settings, wired.base, ca_file=str(certificates.ca)) as gms:
        if kept:
            wired.answer(_reply("chat-0"))
            await ping(gms, "chat-0")
        wired.say(
            _http(_reply("chat-0", key="another's", ended=ended)) + _http(_reply("chat-1", key="its own"))
        )
        answer = await ping(gms)
        assert isinstance(answer.outcome, Alive)
        assert answer.outcome.reply.news.secure_key == "its own"
        assert standing(gms) == [True]
        assert events.one(Event.PING_FOREIGN_REPLY)["chat_id"] == "chat-1"
        wired.answer(_reply("chat-2"))
        await ping(gms, "chat-2")
    assert wired.connections == 2


async def test_another_chats_reply_alone_is_waited_behind_until_the_time_is_over(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    a.answer(_reply("chat-0", ended=True))
    async with client(make_settings, a.base, b.base, timeout="100ms") as gms:
        answer = await ping(gms)
        assert isinstance(answer.outcome, NodeTrouble)
        assert answer.outcome.cause == PingFault.FOREIGN_REPLY
        assert not gms.nodes[0].connections._idle
    assert b.requests == []


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
async def test_over_a_kept_connection_a_reply_that_names_no_chat_is_not_believed(
    ended: bool, make_settings: MakeSettings, certificates: Certificates, wired: ScriptedNode
) -> None:
    """It may be a late one to an earlier request, with another chat's key or end. The right one may follow."""
    async with client(make_settings, wired.base, ca_file=str(certificates.ca)) as gms:
        wired.answer(_reply("chat-0"))
        await ping(gms, "chat-0")
        wired.say(_http(_reply(None, key="another's", ended=ended)) + _http(_reply("chat-1", key="its own")))
        outcome = (await ping(gms)).outcome
        assert isinstance(outcome, Alive)
        assert outcome.reply.news.secure_key == "its own"


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
async def test_a_node_that_names_no_chat_over_a_kept_connection_is_asked_over_fresh_ones(
    ended: bool, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """Nothing was learned, so the session is asked for again; what comes over a fresh connection is its own."""
    async with client(make_settings, a.base) as gms:
        a.answer(_reply("chat-0"))
        await ping(gms, "chat-0")
        a.say(_http(_reply(None, ended=ended)), Then.HANG_UP)
        outcome = (await ping(gms)).outcome
        assert outcome == NodeTrouble(Trouble.UNNAMED_REPLY, None, "HTTP 200")
        for _ in range(3):
            a.answer(_reply("chat-0"))
            await ping(gms, "chat-0")
            a.answer(_reply(None, key="its own", ended=ended))
            outcome = (await ping(gms)).outcome
            assert isinstance(outcome, Ended if ended else Alive)
            assert not gms.nodes[0].connections._idle
    assert a.connections == 1 + 6


@pytest.mark.slow
@pytest.mark.parametrize("then", [Then.HANG_UP, Then.STAY], ids=["hangs up", "stays"])
async def test_a_new_key_in_the_first_reply_without_chat_id_over_a_kept_connection_is_not_lost(
    then: Then, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """Nobody tells it again, and with the old one the customer would be thrown out. It is believed when nothing else
    came for as long as an answer may take; the next requests have connections of their own."""
    async with client(make_settings, a.base, timeout="300ms") as gms:
        a.answer(_reply("chat-0", key="key-0"))
        await ping(gms, "chat-0")
        a.say(_http(_reply(None, key="its own")), then)
        outcome = (await ping(gms)).outcome
        assert isinstance(outcome, Alive)
        assert outcome.reply.news.secure_key == "its own"
        a.answer(_reply("chat-2"))
        await ping(gms, "chat-2")
    assert a.connections == 2


@pytest.mark.parametrize(
    "replies",
    [
        [(None, "key-0")],
        [(None, "key-of-chat-0")],
        [(None, "new"), (None, "another new one")],
        [("chat-2", "new"), (None, "another new one")],
    ],
    ids=["answered before", "asked before", "two of them", "behind another chat's"],
)
async def test_what_may_be_another_chats_key_is_not_believed_over_a_kept_connection(
    replies: list[tuple[str | None, str]], make_settings: MakeSettings, a: ScriptedNode
) -> None:
    async with client(make_settings, a.base, timeout="300ms") as gms:
        a.answer(_reply("chat-0", key="key-0"))
        await ping(gms, "chat-0")
        a.say(b"".join(_http(_reply(chat, key=key)) for chat, key in replies), Then.HANG_UP)
        assert (await ping(gms)).outcome == NodeTrouble(Trouble.UNNAMED_REPLY, None, "HTTP 200")


@pytest.mark.parametrize("closes", [True, False], ids=["hangs up", "stays"])
async def test_behind_a_408_over_a_kept_connection_the_answer_is_waited_for(
    closes: bool, make_settings: MakeSettings, certificates: Certificates, wired: ScriptedNode
) -> None:
    """A proxy took leave of the idle connection just then. Over a fresh one the 408 is the answer."""
    leave = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
    async with client(make_settings, wired.base, ca_file=str(certificates.ca)) as gms:
        wired.answer(_reply("chat-0"))
        await ping(gms, "chat-0")
        wired.say(leave if closes else leave + _http(_reply("chat-1", key="its own")), Then.HANG_UP)
        outcome = (await ping(gms)).outcome
        if closes:
            assert outcome == NodeTrouble(PingFault.REQUEST_TIMEOUT, None, "HTTP 408, empty_body")
        else:
            assert isinstance(outcome, Alive)
            assert outcome.reply.news.secure_key == "its own"
        wired.say(leave)
        outcome = (await ping(gms, "chat-2")).outcome
        assert outcome == NodeTrouble(PingFault.REQUEST_TIMEOUT, None, "HTTP 408, empty_body")


async def test_a_reply_that_repeats_the_key_it_was_asked_with_needs_no_chat_id(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """No other chat has that key. But what follows may have another one, and no name either."""
    async with client(make_settings, a.base) as gms:
        a.answer(_reply("chat-0"))
        await ping(gms, "chat-0")
        a.answer(_reply(None, key="key-of-chat-1"))
        assert isinstance((await ping(gms, "chat-1")).outcome, Alive)
        assert a.connections == 1
        for number in range(2, 5):
            a.answer(_reply(None, key=f"a new one of chat-{number}"))
            assert isinstance((await ping(gms, f"chat-{number}")).outcome, Alive)
    assert a.connections == 4


async def test_a_node_that_named_no_chat_over_a_fresh_connection_is_asked_over_fresh_ones(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """Some of its answers say whose they are, and a new key in one that does not must not be lost."""
    async with client(make_settings, a.base) as gms:
        a.answer(_reply(None))
        await ping(gms, "chat-0")
        for number in range(1, 5):
            a.answer(_reply(f"chat-{number}" if number % 2 else None, key=f"key {number}"))
            outcome = (await ping(gms, f"chat-{number}")).outcome
            assert isinstance(outcome, Alive)
            assert outcome.reply.news.secure_key == f"key {number}"
    assert a.connections == 5


async def test_what_is_asked_while_a_reply_without_chat_id_is_in_doubt_goes_over_fresh_connections(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """The one in doubt is lost if it was the right one; those that follow must not be."""
    async with client(make_settings, a.base, timeout="30s") as gms:
        for number in range(2):
            a.answer(_reply(f"chat-{number}"))
        await asyncio.gather(*(ping(gms, f"chat-{number}") for number in range(2)))
        a.answer(_reply(None))
        doubtful = asyncio.create_task(ping(gms, "chat-2"))
        await a.asked(3)
        for _ in range(1000):
            if gms.nodes[0].unnamed_until:
                break
            await asyncio.sleep(0.005)
        a.answer(_reply(None, key="its own"))
        outcome = (await ping(gms, "chat-3")).outcome
        assert isinstance(outcome, Alive)
        assert outcome.reply.news.secure_key == "its own"
        doubtful.cancel()


async def test_no_connection_carries_two_requests_for_one_chat(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """A second answer to the first would bring the key from before back."""
    async with client(make_settings, a.base) as gms:
        for chat in ("chat-1", "chat-1", "chat-2", "chat-2", "chat-3"):
            a.answer(_reply(chat))
            await ping(gms, chat)
    assert a.connections == 2


async def test_a_gms_that_never_names_the_chat_gets_a_connection_for_each_request(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """So that its answers can be believed."""
    async with client(make_settings, a.base) as gms:
        for number in range(5):
            a.answer(_reply(None, key=f"key-{number}"))
            outcome = (await ping(gms, f"chat-{number}")).outcome
            assert isinstance(outcome, Alive)
            assert outcome.reply.news.secure_key == f"key-{number}"
        assert standing(gms) == [True]
    assert a.connections == 5


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False], ids=["with chat ids", "without"])
@pytest.mark.parametrize("ends", [False, True], ids=["alive", "ended"])
async def test_late_duplicates_of_answers_lead_to_no_wrong_key_and_end_no_chat(
    named: bool, ends: bool, make_settings: MakeSettings, certificates: Certificates, wired_scheme: str
) -> None:
    """A proxy answers each request a second time, a little later, while others are on their way."""
    keys: dict[str, str] = {}
    ended = [f"chat-{number}" for number in range(5)] if ends else []
    wrong: list[str] = []

    async def repeat(writer: asyncio.StreamWriter, said: bytes) -> None:
        await asyncio.sleep(random.uniform(0, 0.006))
        writer.write(said)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        late: list[asyncio.Task[None]] = []
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                form = parse_qs((await reader.readexactly(int(head.split(b"Content-Length: ")[1]))).decode())
                said = _http(answer_to(head.split(b"/")[5].decode(), form["secureKey"][0]))
                await asyncio.sleep(0.002)
                writer.write(said)
                late.append(asyncio.create_task(repeat(writer, said)))
        finally:
            await asyncio.gather(*late, return_exceptions=True)

    def answer_to(chat: str, key: str) -> bytes:
        if key != keys[chat]:
            wrong.append(chat)
        keys[chat] = f"{chat}-{int(keys[chat].rsplit('-')[-1]) + 1}"
        news = TokenNews(chat if named else None, "user", keys[chat], "117")
        return write_reply(0, news, next_position=2, chat_ended=chat in ended)

    known = {f"chat-{number}": f"chat-{number}-0" for number in range(40)}
    keys.update(known)

    async def keep(gms: GmsClient, chat: str) -> None:
        for _ in range(8):
            its = Tokens(chat, "user", known[chat], "117")
            outcome = (await soon(gms.refresh("support", its, 3))).outcome
            if chat in ended:
                assert isinstance(outcome, Ended)
                return
            assert isinstance(outcome, Alive)
            known[chat] = outcome.reply.news.secure_key or known[chat]

    tls = server_tls(certificates) if wired_scheme == "https" else None
    async with (
        raw_server(talk, tls=tls) as port,
        client(
            make_settings,
            f"{wired_scheme}://127.0.0.1:{port}/genesys",
            ca_file=str(certificates.ca),
            timeout="30s",
            connect_timeout="30s",
        ) as gms,
    ):
        await asyncio.gather(*(keep(gms, chat) for chat in known))
    assert wrong == []


@pytest.fixture(params=["http", "https"])
def wired_scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- resting and coming back -------------------------------------------------------------------------


async def test_a_node_that_cannot_be_reached_rests_and_is_not_asked(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode, events: Events
) -> None:
    await a.stop()
    b.answer(GOOD, times=None)
    jumping = FakeClock(jumping=True)
    async with client(make_settings, a.base, b.base, clock=jumping, rest="1s") as gms:
        assert (await ping(gms)).node == b.base
        await a.start()
        for _ in range(4):
            assert (await ping(gms)).node == b.base
    assert a.connections == 0
    assert len(b.requests) == 5
    resting = events.one(Event.GMS_NODE_RESTING)
    assert (resting["node"], resting["cause"]) == (a.base, Trouble.CONNECT)
    assert not events.of(Event.GMS_UNAVAILABLE)


async def test_three_strikes_in_a_row_make_a_node_rest(make_settings: MakeSettings, a: ScriptedNode) -> None:
    """One or two HTTP 500 may be about a session or its Chat Server."""
    a.answer(status=500, times=STRIKES)
    async with client(make_settings, a.base) as gms:
        stood = []
        for alias in range(STRIKES):
            await ping(gms, alias=str(alias))
            stood += standing(gms)
    assert stood == [True] * (STRIKES - 1) + [False]


@pytest.mark.parametrize(
    ("status", "rests"), [(500, False), (504, False), (408, False), (502, True), (503, True), (403, True)]
)
async def test_what_may_be_one_chat_servers_trouble_is_not_held_against_the_node(
    status: int, rests: bool, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """A hanging Chat Server makes GMS hang, or fail, for its sessions alone."""
    a.answer(status=status, times=None)
    async with client(make_settings, a.base) as gms:
        for number in range(STRIKES):
            await ping(gms, f"chat-{number}", alias="117")
        assert standing(gms) == [not rests]
        await ping(gms, alias="118")
        assert standing(gms) == [False]


@pytest.mark.parametrize("status", [403, 404, 500, 502, 503])
async def test_one_sessions_trouble_never_rests_a_node(
    status: int, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    a.answer(status=status, times=None)
    async with client(make_settings, a.base) as gms:
        for _ in range(3 * STRIKES):
            await ping(gms)
        assert standing(gms) == [True]
        await ping(gms, "chat-2", alias="118")
        assert standing(gms) == [False]


async def test_a_node_in_doubt_is_asked_after_the_others(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    a.answer(status=500)
    a.answer(GOOD, times=None)
    b.answer(GOOD, times=None)
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, b.base, clock=clock, rest="1s") as gms:
        asked = [(await ping(gms)).node for _ in range(5)]
        assert asked == [a.base, *[b.base] * 4]
        await clock.sleep(1.1)
        assert a.base in [(await ping(gms)).node for _ in range(2)]


@pytest.mark.parametrize("answer", [GOOD, _said(1), _said(2), _said(2, chat_ended=True)])
async def test_whatever_a_node_says_of_a_session_clears_its_strikes(
    answer: bytes, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    for _ in range(3):
        a.answer(status=500, times=STRIKES - 1)
        a.answer(answer)
    async with client(make_settings, a.base) as gms:
        for alias in range(3 * STRIKES):
            await ping(gms, alias=str(alias))
        assert standing(gms) == [True]


async def test_rest_grows_with_every_failure_up_to_its_bound(
    make_settings: MakeSettings, a: ScriptedNode, events: Events
) -> None:
    await a.stop()
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, clock=clock, rest="1s", rest_max="6s") as gms:
        for _ in range(6):
            await ping(gms)
            await clock.sleep(gms.retry_in())
    rests = [rest for line in events.of(Event.GMS_NODE_RESTING) if isinstance(rest := line["rest_ms"], int)]
    for rest, longest in zip(rests, [1000, 2000, 4000, 6000, 6000, 6000], strict=True):
        assert 0.8 * longest <= rest <= longest


async def test_a_node_rests_as_long_as_it_asks_for(make_settings: MakeSettings, a: ScriptedNode) -> None:
    a.answer(status=503, headers={"Retry-After": "20"})
    async with client(make_settings, a.base, rest="1s", rest_max="30s") as gms:
        await ping(gms)
        assert gms.retry_in() == pytest.approx(20)


async def test_a_node_cannot_ask_for_more_than_sessions_can_wait(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    a.answer(status=503, headers={"Retry-After": "3000"})
    async with client(make_settings, a.base, rest="1s", rest_max="30s") as gms:
        await ping(gms)
        assert gms.retry_in() == pytest.approx(30)


async def test_what_this_host_lacks_for_a_connection_is_held_against_no_node(
    make_settings: MakeSettings, a: ScriptedNode, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    def fail(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    a.answer(GOOD)
    async with client(make_settings, a.base) as gms:
        monkeypatch.setattr(socket, "socket", fail)
        outcomes = [(await ping(gms)).outcome for _ in range(5)]
        monkeypatch.undo()
        assert outcomes == [NodeTrouble(Trouble.OWN_LACK, None, "too many open files")] * 5
        assert gms.available
        assert gms.slots() is None
        assert isinstance((await ping(gms)).outcome, Alive)
    assert not events.of(Event.GMS_NODE_RESTING)


async def test_a_name_server_that_does_not_answer_is_named(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(10) and [])
    try:
        async with client(make_settings, "http://gms.example:1", connect_timeout="50ms") as gms:
            outcome = (await ping(gms)).outcome
    finally:
        over.set()
    assert isinstance(outcome, NodeTrouble)
    assert outcome.cause == Trouble.CONNECT
    assert outcome.detail == "its name cannot be resolved: no name server answers within 0.05 s"


async def test_while_all_nodes_rest_nothing_is_sent(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode, events: Events
) -> None:
    clock = FakeClock(jumping=True)
    for node in (a, b):
        await node.stop()
    async with client(make_settings, a.base, b.base, clock=clock, rest="1s") as gms:
        assert gms.slots() is None
        await ping(gms)
        assert gms.slots() == 0
        assert 0.8 <= gms.retry_in() <= 1
        assert not gms.available
        answer = await ping(gms)
        assert answer.outcome == NodeTrouble(Trouble.NO_NODE)
        assert answer.node is None
        assert events.one(Event.GMS_UNAVAILABLE)["cause"] == Trouble.CONNECT

        for node in (a, b):
            await node.start()
            node.answer(GOOD)
        await clock.sleep(1)
        assert gms.slots() == 2
        assert gms.retry_in() == 0
        assert isinstance((await ping(gms)).outcome, Alive)
        assert gms.slots() is None
        assert gms.available
    assert events.one(Event.GMS_AVAILABLE)["outage_ms"] == pytest.approx(1000, abs=5)
    assert len(events.of(Event.GMS_NODE_BACK)) == 1


async def test_a_node_back_from_its_rest_is_tried_with_a_single_ping(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """A hundred pings to a node that is still starting would only make it start slower."""
    go_on = asyncio.Event()
    a.answer(status=503, headers={"Retry-After": "1"})
    a.answer(GOOD, when=go_on)
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, clock=clock) as gms:
        await ping(gms)
        await clock.sleep(1)
        trial = asyncio.create_task(ping(gms))
        await a.asked(2)
        assert gms.slots() == 1  # and it is taken
        assert (await ping(gms)).outcome == NodeTrouble(Trouble.NO_NODE)
        go_on.set()
        assert isinstance((await trial).outcome, Alive)
        assert gms.slots() is None
        assert len(a.requests) == 2


async def test_while_a_node_is_being_tried_there_is_something_to_wait_for(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """`retry_in` 0 would keep the worker spinning for as long as the trial takes."""
    go_on = asyncio.Event()
    a.answer(status=503, headers={"Retry-After": "1"})
    a.answer(GOOD, when=go_on)
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, clock=clock) as gms:
        await ping(gms)
        await clock.sleep(1)
        trial = asyncio.create_task(ping(gms))
        await a.asked(2)
        assert gms.retry_in() >= 0.1
        go_on.set()
        await trial


async def test_a_failed_trial_makes_the_node_rest_longer(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    await a.stop()
    a.answer(status=500)
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, clock=clock, rest="1s") as gms:
        await ping(gms)
        await clock.sleep(1)
        await ping(gms)
        assert gms.nodes[0].failures == 2
        assert gms.retry_in() >= 1.6


async def test_pings_sent_before_a_node_failed_do_not_make_it_rest_longer(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """Fifty requests that fail together are one failure."""
    fail = asyncio.Event()
    a.answer(status=503, headers={"Retry-After": "1"}, times=20, when=fail)
    async with client(make_settings, a.base) as gms:
        pings = [asyncio.create_task(ping(gms, f"chat-{number}")) for number in range(20)]
        await a.asked(20)
        fail.set()
        await asyncio.gather(*pings)
        assert gms.nodes[0].failures == 1


# -- the wire -----------------------------------------------------------------------------------------


@asynccontextmanager
async def node(
    serve: object, *, port: int | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A GMS node on loopback that answers every POST with `serve`."""
    app = web.Application()
    app.router.add_post("/genesys/2/chat/{tail:.*}", serve)  # type: ignore[arg-type]
    server = TestServer(app, port=port or 0)
    await server.start_server(ssl=tls, shutdown_timeout=0.1)
    try:
        yield f"{server.scheme}://127.0.0.1:{server.port}/genesys"
    finally:
        await server.close()


async def answering(request: web.Request) -> web.Response:
    chat_id = request.path.split("/")[-2]
    return web.Response(body=write_reply(0, TokenNews(chat_id)))


async def test_the_headers_that_every_request_carries(make_settings: MakeSettings, a: ScriptedNode) -> None:
    a.answer(GOOD)
    async with client(
        make_settings,
        a.base,
        username="asyncchatd",
        password="pässword",
        headers={"apikey": "a-key-of-the-gateway"},
    ) as gms:
        assert isinstance((await ping(gms)).outcome, Alive)
    [request] = a.requests
    assert request.headers == {
        "host": f"127.0.0.1:{a.port}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "asyncchatd",
        "content-type": "application/x-www-form-urlencoded",
        "apikey": "a-key-of-the-gateway",
        "authorization": "Basic " + b64encode("asyncchatd:pässword".encode()).decode(),
        "content-length": str(len(request.body)),
    }


async def test_a_redirect_is_not_followed(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    """Tokens must not travel to wherever a proxy points."""
    a.answer(status=307, headers={"Location": f"{b.base}/2/chat/support/chat-1/refresh"})
    async with client(make_settings, a.base) as gms:
        outcome = (await ping(gms)).outcome
    assert isinstance(outcome, NodeTrouble)
    assert (outcome.cause, len(a.requests), b.connections) == (PingFault.REDIRECT, 1, 0)


async def test_a_node_that_does_not_answer_is_a_time_out(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    a.say(b"")
    async with client(make_settings, a.base, timeout="50ms") as gms:
        outcome = (await ping(gms)).outcome
    assert isinstance(outcome, NodeTrouble)
    assert outcome.cause == Trouble.TIMEOUT


@pytest.mark.parametrize("announced", [True, False])
async def test_a_reply_larger_than_any_is_not_read(announced: bool, make_settings: MakeSettings) -> None:
    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = MAX_REPLY + 1 if announced else None
        await response.prepare(request)
        with suppress(ConnectionError):  # the client had enough
            for _ in range(MAX_REPLY // 2**20 + 1):
                await response.write(b" " * 2**20)
        return response

    async with node(serve) as base, client(make_settings, base) as gms:
        outcome = (await ping(gms)).outcome
    assert outcome == NodeTrouble(Trouble.REPLY_TOO_LARGE, None, f"HTTP 200, more than {MAX_REPLY} bytes")


async def test_stale_connections_after_a_nodes_restart_lose_no_ping(make_settings: MakeSettings) -> None:
    """Every restart of a GMS node makes all its keep-alive connections stale at once."""
    meet = asyncio.Barrier(10)

    async def together(request: web.Request) -> web.Response:
        await meet.wait()
        return await answering(request)

    chats = [f"chat-{number}" for number in range(10)]
    with claimed_port() as claim:
        port = claim.getsockname()[1]
        async with client(make_settings, f"http://127.0.0.1:{port}/genesys") as gms:
            async with node(together, port=port):
                first = await asyncio.gather(*(ping(gms, chat) for chat in chats))
            async with node(answering, port=port):
                second = await asyncio.gather(*(ping(gms, chat) for chat in chats))
            assert all(isinstance(answer.outcome, Alive) for answer in first + second)
            assert standing(gms) == [True]


async def test_what_is_on_its_way_when_the_client_is_closed_is_not_sent_again(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """Hung up on by ourselves, that is no stale connection: the node has the request."""
    a.say(b"", times=None)
    async with client(make_settings, a.base) as gms:
        pings = [asyncio.create_task(ping(gms, f"chat-{number}")) for number in range(5)]
        await soon(a.asked(5))
    answers = await asyncio.gather(*pings)
    assert {type(answer.outcome) for answer in answers} == {NodeTrouble}
    assert len(a.requests) == 5


# -- Trouble.TLS ---------------------------------------------------------------------------------------------


async def test_a_node_with_a_certificate_of_the_private_ca_is_trusted(
    make_settings: MakeSettings, certificates: Certificates
) -> None:
    async with (
        node(answering, tls=server_tls(certificates)) as base,
        client(make_settings, base, ca_file=str(certificates.ca)) as gms,
    ):
        assert isinstance((await ping(gms)).outcome, Alive)


async def test_a_node_whose_ca_is_unknown_is_not_talked_to(
    make_settings: MakeSettings, certificates: Certificates
) -> None:
    async with (
        node(answering, tls=server_tls(certificates)) as base,
        node(answering) as other,
        client(make_settings, base, other) as gms,
    ):
        answer = await ping(gms)
        assert (answer.node, gms.nodes[0].cause) == (other, Trouble.TLS)


async def test_a_client_certificate_is_shown_to_a_node_that_asks(
    make_settings: MakeSettings, certificates: Certificates
) -> None:
    shown: list[object] = []

    async def serve(request: web.Request) -> web.Response:
        assert request.transport is not None
        shown.append(request.transport.get_extra_info("peercert")["subject"])
        return await answering(request)

    async with (
        node(serve, tls=server_tls(certificates, ask_client=True)) as base,
        client(
            make_settings,
            base,
            ca_file=str(certificates.ca),
            client_cert=str(certificates.client),
            client_key=str(certificates.client_key),
        ) as gms,
    ):
        assert isinstance((await ping(gms)).outcome, Alive)
    assert shown == [((("commonName", "client"),),)]


async def test_without_the_certificate_that_a_node_asks_for_another_node_answers(
    make_settings: MakeSettings, certificates: Certificates
) -> None:
    """With Trouble.TLS 1.3 the request has left when the node says so: nobody read it."""

    def refuse() -> None:
        with listener:
            accepted, _ = listener.accept()
        accepted.settimeout(PATIENCE)
        with tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as connection:
            with pytest.raises(ssl.SSLError):
                connection.do_handshake()
            with socket.socket(fileno=os.dup(connection.fileno())) as same:
                same.settimeout(PATIENCE)
                same.shutdown(socket.SHUT_WR)
                while same.recv(65536):  # else the kernel would reset, and the reason be lost
                    pass

    tls = server_tls(certificates, ask_client=True)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)
    base = f"https://127.0.0.1:{listener.getsockname()[1]}/genesys"
    refusing = asyncio.create_task(asyncio.to_thread(refuse))
    async with (
        node(answering) as other,
        client(make_settings, base, other, ca_file=str(certificates.ca)) as gms,
    ):
        answer = await ping(gms)
        assert (answer.node, gms.nodes[0].cause) == (other, Trouble.TLS)
    await soon(refusing)


def test_secrets_stay_out_of_the_clients_words(make_settings: MakeSettings, events: Events) -> None:
    settings = make_settings(
        gms={
            "nodes": ["http://gms-1:8080/genesys"],
            "username": "u",
            "password": "hidden-word",
            "headers": {"apikey": "hidden-key"},
        }
    )
    clock = FakeClock()
    shown = repr(GmsClient(settings.gms, Pacer(1, clock), clock)) + repr(settings.gms) + events.text
    assert "hidden" not in shown


# -- large answers -----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_an_answer_that_is_too_large_is_the_sessions_and_not_the_nodes(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    """No other node is asked: the request was taken. And the only node serves the others on."""
    a.answer(TOO_LARGE, headers=PACKED, times=6)
    a.answer(GOOD)
    async with client(make_settings, a.base) as gms:
        for number in range(6):
            outcome = (await ping(gms, f"chat-{number}", alias=str(number))).outcome
            assert isinstance(outcome, NodeTrouble)
            assert outcome.cause == Trouble.REPLY_TOO_LARGE
            assert standing(gms) == [True]
        assert isinstance((await ping(gms)).outcome, Alive)
    a.answer(TOO_LARGE, headers=PACKED)
    async with client(make_settings, a.base, b.base) as gms:
        assert (await ping(gms)).perhaps_taken
    assert not b.requests


def transcript(size: int) -> list[dict[str, object]]:
    """Messages of so many bytes, into which their writers planted what a reply has at its top."""
    planted = {
        "statusCode": 2,
        "chatEnded": True,
        "secureKey": "planted",
        "alias": "666",
        "nextPosition": 666,
    }
    texts = [
        "x" * 100,
        orjson.dumps(planted).decode(),
        '"}],"secureKey":"planted","messages":[{"text":"',
        "}]}",
    ]
    one: dict[str, object] = {
        "from": {"nickname": "A", "participantId": 1, "type": "Client", **planted},
        "type": "Message",
        "eventAttributes": {"deep": [[planted]]},
        **planted,
    }
    count = size // len(orjson.dumps([{**one, "text": text} for text in texts])) * len(texts)
    return [
        {**one, "index": n + 1, "utcTime": 1_000 + n, "text": texts[n % len(texts)]} for n in range(count)
    ]


def in_chunks(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [body[start : start + 5000] for start in range(0, len(body), 5000)]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 20])
@pytest.mark.parametrize("backwards", [False, True], ids=["key at the front", "key at the end"])
@pytest.mark.parametrize("said", [_http, in_chunks], ids=["measured", "in chunks"])
async def test_of_a_long_transcript_what_is_needed_is_taken_as_it_streams(
    said: Callable[[bytes], bytes],
    backwards: bool,
    size: int,
    make_settings: MakeSettings,
    certificates: Certificates,
    wired: ScriptedNode,
) -> None:
    """The connection serves the next one, and nothing is read in a thread."""
    messages = transcript(size * 2**20)
    for chat in ("chat-1", "chat-2"):
        fields = {**orjson.loads(_reply(chat)), "messages": messages}
        body = orjson.dumps(dict(reversed(fields.items())) if backwards else fields)
        assert len(body) > 0.99 * size * 2**20
        wired.say(said(body))
    before = set(threading.enumerate())
    async with client(make_settings, wired.base, ca_file=str(certificates.ca)) as gms:
        answers = [await ping(gms, chat) for chat in ("chat-1", "chat-2")]
        threads = {thread.name for thread in set(threading.enumerate()) - before}
    for chat, answer in zip(("chat-1", "chat-2"), answers, strict=True):
        assert isinstance(answer.outcome, Alive)
        reply = answer.outcome.reply
        assert reply.news == TokenNews(chat, "user-2", "key-2", "118")
        assert (reply.next_position, reply.chat_ended) == (7, False)
        assert [event.utc_time for event in reply.events] == [999 + len(messages)]
    assert wired.connections == 1
    assert not any(name.startswith("asyncio") for name in threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "more", "outcome"),
    [
        (200, {"chatEnded": True}, Ended),
        (200, {"statusCode": 2, "chatEnded": True}, Ended),
        (200, {"statusCode": 1}, RetryLater),
        (200, {"statusCode": 2}, Refused),
        (500, {}, NodeTrouble),
        (200, {"chatId": "chat-9"}, NodeTrouble),
    ],
)
async def test_a_long_reply_means_what_a_short_one_does(
    status: int, more: dict[str, object], outcome: type, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    short = {**orjson.loads(GOOD), **more}
    a.answer(orjson.dumps(short), status=status)
    a.answer(orjson.dumps({**short, "messages": transcript(2**20)}), status=status)
    async with client(make_settings, a.base, timeout="300ms") as gms:
        answers = [await ping(gms) for _ in range(2)]
    assert type(answers[0].outcome) is outcome
    assert answers[0].outcome == answers[1].outcome


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 20])
@pytest.mark.parametrize("backwards", [False, True], ids=["key at the front", "key at the end"])
@pytest.mark.parametrize("how", ["measured", "in chunks", "unmeasured", "whole, but not well-formed"])
async def test_of_a_long_reply_that_is_cut_off_nothing_is_learned(
    how: str, backwards: bool, size: int, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    fields = {**orjson.loads(GOOD), "messages": transcript(size * 2**20)}
    body = orjson.dumps(dict(reversed(fields.items())) if backwards else fields)
    match how:
        case "measured":
            said = _http(body)[:-1]
        case "in chunks":
            said = in_chunks(body)[: -len("0\r\n\r\n")]
        case "unmeasured":
            said = b"HTTP/1.1 200 OK\r\n\r\n" + body[:-1]
        case _:
            said = _http(body[:-1])
    a.say(said, Then.HANG_UP)
    async with client(make_settings, a.base) as gms:
        answer = await ping(gms)
    assert isinstance(answer.outcome, NodeTrouble)
    assert answer.outcome.cause in (Trouble.CUT_SHORT, PingFault.TRUNCATED)
    assert answer.perhaps_taken


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("backwards", [False, True], ids=["key at the front", "key at the end"])
async def test_a_long_transcript_that_came_compressed_is_read_beside_the_event_loop(
    backwards: bool, size: int, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    fields = {**orjson.loads(GOOD), "messages": transcript(size * 2**20)}
    body = orjson.dumps(dict(reversed(fields.items())) if backwards else fields)
    a.answer(gzip.compress(body), headers=PACKED)
    before = set(threading.enumerate())
    async with client(make_settings, a.base) as gms:
        outcome = (await ping(gms)).outcome
        threads = {thread.name for thread in set(threading.enumerate()) - before}
    assert isinstance(outcome, Alive)
    assert outcome.reply.news.secure_key == orjson.loads(GOOD)["secureKey"]
    assert any(name.startswith("asyncio") for name in threads)
