"""The client of the GMS nodes against a table of faults, all of them on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs

import pytest
from aiohttp import web
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
from asyncchatd.gms.client import GmsClient
from asyncchatd.gms.connection import Connection
from asyncchatd.gms.connections import Connections
from asyncchatd.gms.http_reply import MAX_REPLY
from asyncchatd.gms.pacing import Pacer
from asyncchatd.gms.trouble import Trouble
from asyncchatd.model.data import TokenNews
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

from .client_rig import GOOD, TOO_LARGE, client, node, ping, reply_for, reply_of, standing

pytestmark = pytest.mark.usefixtures("events")


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


FAULTS = [
    Fault("statusCode 1", RetryLater, PingFault.STATUS_CODE_1, body=reply_of(1)),
    Fault(
        "statusCode 1 with Retry-After",
        RetryLater,
        PingFault.STATUS_CODE_1,
        body=reply_of(1),
        headers={"Retry-After": "7"},
        retry_after=7,
    ),
    Fault("statusCode 1 under HTTP 500", RetryLater, PingFault.STATUS_CODE_1, status=500, body=reply_of(1)),
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
    Fault("statusCode 2", Refused, PingFault.STATUS_CODE_2, body=reply_of(2, errors=[ReplyFault(249, "no")])),
    Fault("chatEnded", Ended, body=reply_of(2, chat_ended=True)),
    Fault("chatEnded with statusCode 0", Ended, body=reply_of(0, chat_ended=True)),
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
    a.answer(reply_for("chat-0"))
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
            a.answer(reply_for("chat-0"))
            b.answer(reply_for("chat-0"))
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
    b.answer(reply_for("chat-0"))
    async with client(make_settings, a.base, b.base) as gms:
        a.answer(reply_for("chat-0"))
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
    b.answer(reply_for("chat-0"))
    async with client(make_settings, a.base, b.base) as gms:
        a.answer(reply_for("chat-0"))
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
        a.answer(reply_for("chat-0"))
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


# -- the time after which it is not sent any more ------------------------------------------------------


async def test_a_request_that_comes_too_late_is_not_sent_and_held_against_no_node(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode, events: Events
) -> None:
    """The process stood still: another one may have the session by now."""
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, b.base, clock=clock) as gms:
        until = clock.monotonic() + 10.0
        clock.stall(10.1)
        answer = await soon(gms.refresh("support", tokens("chat-1"), 3, until=until))
        assert answer.outcome == NodeTrouble(Trouble.TOO_LATE, None, "not sent")
        assert not answer.perhaps_taken
        assert standing(gms) == [True, True]
    assert not a.requests
    assert not b.requests


async def test_a_request_is_sent_up_to_its_last_moment(make_settings: MakeSettings, a: ScriptedNode) -> None:
    clock = FakeClock(jumping=True)
    a.answer(GOOD)
    async with client(make_settings, a.base, clock=clock) as gms:
        until = clock.monotonic() + 10.0
        clock.stall(10.0)
        assert isinstance(
            (await soon(gms.refresh("support", tokens("chat-1"), 3, until=until))).outcome, Alive
        )


@pytest.mark.parametrize("late", [False, True])
async def test_no_other_node_is_asked_after_that_time(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    clock = FakeClock(jumping=True)
    b.answer(GOOD)
    async with client(make_settings, a.base, b.base, clock=clock) as gms:
        await a.stop()
        connect = Connections._connect

        async def stands_still(connections: Connections) -> Connection:
            clock.stall(10.1 if late else 1.0)
            return await connect(connections)

        monkeypatch.setattr(Connections, "_connect", stands_still)
        answer = await soon(gms.refresh("support", tokens("chat-1"), 3, until=clock.monotonic() + 10.0))
    assert len(b.requests) == (not late)
    assert isinstance(answer.outcome, NodeTrouble) == late


@pytest.mark.parametrize("stands_still", [False, True])
async def test_a_connection_that_was_not_made_while_the_process_stood_still_is_held_against_no_node(
    make_settings: MakeSettings, a: ScriptedNode, monkeypatch: pytest.MonkeyPatch, stands_still: bool
) -> None:
    async def reach(_: Connections) -> Connection:
        if stands_still:
            time.sleep(0.2)  # noqa: ASYNC251 - everything stands still
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    monkeypatch.setattr(Connections, "_reach", reach)
    monkeypatch.setattr(connections, "STOOD_STILL_SECONDS", 0.1 if stands_still else PATIENCE)
    async with client(make_settings, a.base, connect_timeout="10ms") as gms:
        outcome = (await ping(gms)).outcome
        assert isinstance(outcome, NodeTrouble)
        assert outcome.cause == (Trouble.TOO_LATE if stands_still else Trouble.CONNECT)
        assert standing(gms) == [stands_still]


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("late", [False, True])
async def test_what_a_node_had_hung_up_on_is_not_sent_once_more_after_that_time(
    make_settings: MakeSettings, a: ScriptedNode, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    clock = FakeClock(jumping=True)
    a.answer(reply_for("chat-0"))
    async with client(make_settings, a.base, clock=clock) as gms:
        await ping(gms, "chat-0")
        for kept in gms.nodes[0].connections._idle:
            kept._round_trip = PATIENCE
        a.say(b"", Then.HANG_UP)
        a.answer(GOOD)

        async def stands_still(until: float) -> bool:
            clock.stall(10.1 if late else 1.0)
            return True

        monkeypatch.setattr(gms._pacer, "turn", stands_still)
        answer = await soon(gms.refresh("support", tokens("chat-1"), 3, until=clock.monotonic() + 10.0))
    assert len(a.requests) == (2 if late else 3)
    assert (answer.outcome == NodeTrouble(Trouble.TOO_LATE, None, "not sent")) == late


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


async def answering(request: web.Request) -> web.Response:
    chat_id = request.path.split("/")[-2]
    return web.Response(body=write_reply(0, TokenNews(chat_id)))


# -- the wire -----------------------------------------------------------------------------------------


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


# -- TLS -------------------------------------------------------------------------------------------------------


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
    """With TLS 1.3 the request has left when the node says so: nobody read it."""

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
