"""The client of the GMS nodes against a table of faults, and on real sockets where the wire itself matters."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from urllib.parse import parse_qs

import aiohttp
import pytest
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.test_utils import TestServer, unused_port
from conftest import Certificates, Events, FakeClock, MakeSettings, MockedNodes, raw_server, soon, tokens

from asyncchatd.gms import (
    CONNECT,
    DISCONNECTED,
    LONGEST_OBEYED,
    MAX_REPLY,
    NO_NODE,
    PROTOCOL,
    REPLY_TOO_LARGE,
    STRIKES,
    TIMEOUT,
    TLS,
    Answer,
    GmsClient,
)
from asyncchatd.log import Event
from asyncchatd.model import TokenNews
from asyncchatd.pacing import Pacer
from asyncchatd.wire.chat_api import (
    Alive,
    Cause,
    Ended,
    NodeTrouble,
    Outcome,
    Refused,
    ReplyFault,
    RetryLater,
    write_reply,
)

pytestmark = pytest.mark.usefixtures("events")

A = "http://gms-a:8080/genesys"
B = "http://gms-b:8080/genesys"

GOOD = write_reply(0, TokenNews("chat-1", "user-2", "key-2", "118"), next_position=7, chat_ended=False)


def url(base: str, chat_id: str = "chat-1") -> str:
    return f"{base}/2/chat/support/{chat_id}/refresh"


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
    make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), body=GOOD)
    async with client(make_settings, A) as gms:
        answer = await ping(gms)
    [[request]] = nodes.requests.values()
    assert parse_qs(request.kwargs["data"].decode()) == {
        "userId": ["user-of-chat-1"],
        "secureKey": ["key-of-chat-1"],
        "alias": ["117"],
        "transcriptPosition": ["3"],
    }
    assert request.kwargs["headers"]["Content-Type"] == "application/x-www-form-urlencoded"
    assert request.kwargs["allow_redirects"] is False
    assert isinstance(answer.outcome, Alive)
    assert answer.outcome.reply.news == TokenNews("chat-1", "user-2", "key-2", "118")
    assert (answer.node, answer.outcome.reply.next_position) == (A, 7)


async def test_an_answer_says_when_its_request_was_sent(
    make_settings: MakeSettings, nodes: MockedNodes, clock: FakeClock
) -> None:
    """The token rules compare a reply's age with a push's: what counts is the try that was answered."""
    nodes.post(url(A), status=500)
    nodes.post(url(B), body=GOOD)
    jumping = FakeClock(jumping=True)
    begun = jumping.now()
    settings = make_settings(gms={"nodes": [A, B]})
    pacer = Pacer(0.5, jumping)
    await pacer.turn()
    async with GmsClient(settings.gms, pacer, jumping) as gms:
        answer = await ping(gms)
    assert answer.node == B
    assert begun + 2000 <= answer.sent_at <= begun + 2100
    assert answer.took == 0


async def test_every_try_waits_for_its_turn(make_settings: MakeSettings, nodes: MockedNodes) -> None:
    """Failover must not double the rate."""
    nodes.post(url(A), status=503, repeat=True)
    nodes.post(url(B), status=503, repeat=True)
    jumping = FakeClock(jumping=True)
    settings = make_settings(gms={"nodes": [A, B]})
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
    Fault("statusCode 1", RetryLater, Cause.STATUS_CODE_1, body=_said(1)),
    Fault(
        "statusCode 1 with Retry-After",
        RetryLater,
        Cause.STATUS_CODE_1,
        body=_said(1),
        headers={"Retry-After": "7"},
        retry_after=7,
    ),
    Fault("statusCode 1 under HTTP 500", RetryLater, Cause.STATUS_CODE_1, status=500, body=_said(1)),
    Fault("HTTP 429", RetryLater, Cause.TOO_MANY_REQUESTS, status=429, body=b"slow down"),
    Fault(
        "HTTP 429 with Retry-After",
        RetryLater,
        Cause.TOO_MANY_REQUESTS,
        status=429,
        headers={"Retry-After": "3"},
        retry_after=3,
        node_failed=True,
    ),
    Fault("statusCode 2", Refused, Cause.STATUS_CODE_2, body=_said(2, errors=[ReplyFault(249, "no")])),
    Fault("chatEnded", Ended, body=_said(2, chat_ended=True)),
    Fault("chatEnded with statusCode 0", Ended, body=_said(0, chat_ended=True)),
    *(
        Fault(f"HTTP {status}", Refused, cause, status=status, body=b"<html>no</html>")
        for status, cause in {
            400: Cause.BAD_REQUEST,
            404: Cause.NOT_FOUND,
            405: Cause.METHOD_NOT_ALLOWED,
            409: Cause.CONFLICT,
            410: Cause.GONE,
            413: Cause.BODY_TOO_LARGE,
            414: Cause.URI_TOO_LONG,
            415: Cause.UNSUPPORTED_MEDIA_TYPE,
            418: Cause.CLIENT_ERROR,
            422: Cause.UNPROCESSABLE,
        }.items()
    ),
    *(
        Fault(f"HTTP {status}", NodeTrouble, cause, status=status, body=b"Forbidden")
        for status, cause in {
            301: Cause.REDIRECT,
            302: Cause.REDIRECT,
            307: Cause.REDIRECT,
            401: Cause.UNAUTHORIZED,
            403: Cause.FORBIDDEN,
            407: Cause.PROXY_AUTHENTICATION,
            408: Cause.REQUEST_TIMEOUT,
            500: Cause.SERVER_ERROR,
            502: Cause.BAD_GATEWAY,
            503: Cause.UNAVAILABLE,
            504: Cause.GATEWAY_TIMEOUT,
            599: Cause.SERVER_ERROR,
            600: Cause.ODD_STATUS,
        }.items()
    ),
    Fault(
        "HTTP 503 with Retry-After",
        NodeTrouble,
        Cause.UNAVAILABLE,
        status=503,
        headers={"Retry-After": "5"},
        retry_after=5,
        node_failed=True,
    ),
    Fault("success under HTTP 500", NodeTrouble, Cause.CONTRADICTORY, status=500, body=GOOD),
    Fault("another chat's reply", NodeTrouble, Cause.FOREIGN_REPLY, body=write_reply(0, TokenNews("other"))),
    Fault(
        "another chat's end",
        NodeTrouble,
        Cause.FOREIGN_REPLY,
        body=write_reply(2, TokenNews("other"), chat_ended=True),
    ),
    Fault("empty body", NodeTrouble, Cause.EMPTY_BODY),
    Fault("HTML", NodeTrouble, Cause.HTML, body=b"<html><body>Welcome</body></html>"),
    Fault("truncated", NodeTrouble, Cause.TRUNCATED, body=GOOD[:-5]),
    Fault("not JSON", NodeTrouble, Cause.NOT_JSON, body=b"OK"),
    Fault("a list", NodeTrouble, Cause.NOT_AN_OBJECT, body=b"[0]"),
    Fault("no statusCode", NodeTrouble, Cause.NO_STATUS_CODE, body=b'{"chatId":"chat-1"}'),
    Fault("statusCode 9", NodeTrouble, Cause.UNKNOWN_STATUS_CODE, body=b'{"statusCode":9}'),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_what_a_nodes_answer_means(
    fault: Fault, make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), status=fault.status, body=fault.body, headers=fault.headers)
    async with client(make_settings, A) as gms:
        outcome = (await ping(gms)).outcome
        assert type(outcome) is fault.outcome
        if isinstance(outcome, (RetryLater, Refused, NodeTrouble)):
            assert outcome.cause == fault.cause
        if isinstance(outcome, (RetryLater, NodeTrouble)):
            assert outcome.retry_after == fault.retry_after
        assert standing(gms) == [not fault.node_failed]


def test_the_table_has_every_cause_of_the_wire() -> None:
    assert {fault.cause for fault in FAULTS if fault.cause} == set(Cause)


# -- failing over ----------------------------------------------------------------------------------

STAYING = (Cause.REQUEST_TIMEOUT, Cause.GATEWAY_TIMEOUT, Cause.FOREIGN_REPLY)
"""Troubles after which the request may still be worked on: its answer may carry a new secure key."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_another_node_is_asked_when_the_first_one_is_in_trouble_and_only_then(
    fault: Fault, make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), status=fault.status, body=fault.body, headers=fault.headers)
    nodes.post(url(B), body=GOOD)
    async with client(make_settings, A, B) as gms:
        answer = await ping(gms)
    fails_over = fault.cause == Cause.TOO_MANY_REQUESTS or (
        fault.outcome is NodeTrouble and fault.cause not in STAYING
    )
    assert answer.node == (B if fails_over else A)
    assert isinstance(answer.outcome, Alive) == fails_over
    assert len(nodes.requests) == (2 if fails_over else 1)


def _connection_error(error: OSError) -> aiohttp.ClientConnectorError:
    key = ConnectionKey("gms-a", 8080, False, True, None, None, None)
    return aiohttp.ClientConnectorError(key, error)


def _certificate_error() -> aiohttp.ClientConnectorCertificateError:
    key = ConnectionKey("gms-a", 8443, True, True, None, None, None)
    return aiohttp.ClientConnectorCertificateError(key, ssl.SSLCertVerificationError("self-signed"))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (_connection_error(ConnectionRefusedError(111, "refused")), CONNECT),
        (_connection_error(OSError(113, "No route to host")), CONNECT),
        (
            aiohttp.ClientConnectorDNSError(_connection_error(OSError()).__dict__["_conn_key"], OSError()),
            CONNECT,
        ),
        (aiohttp.ConnectionTimeoutError(), CONNECT),
        (_certificate_error(), TLS),
        (aiohttp.ClientConnectorSSLError(_connection_error(OSError()).__dict__["_conn_key"], OSError()), TLS),
        (ssl.SSLError(1, "handshake"), TLS),
        (aiohttp.ClientPayloadError("cut short"), PROTOCOL),
        (aiohttp.InvalidURL("http://["), PROTOCOL),
        (
            aiohttp.ClientResponseError(
                SimpleNamespace(real_url="", url="", method="POST", headers={}),  # type: ignore[arg-type]
                (),
                status=400,
                message="bad",
            ),
            PROTOCOL,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_an_error_on_the_way_makes_another_node_answer(
    error: Exception, cause: str, make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), exception=error)
    nodes.post(url(B), body=GOOD)
    async with client(make_settings, A, B) as gms:
        answer = await ping(gms)
        assert isinstance(answer.outcome, Alive)
        assert answer.node == B
        rests = cause in (CONNECT, TLS)
        assert gms.nodes[0].cause == (cause if rests else None)
        assert standing(gms) == [not rests, True]


async def test_a_single_nodes_error_is_the_pings_outcome(
    make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), exception=_connection_error(ConnectionRefusedError(111, "Connection refused")))
    async with client(make_settings, A) as gms:
        outcome = (await ping(gms)).outcome
    assert outcome == NodeTrouble(CONNECT, None, "connection refused")


async def test_a_connect_error_without_a_number_does_not_read_success(
    make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    """A name with two addresses, and both refused."""
    nodes.post(url(A), exception=_connection_error(OSError("Multiple exceptions: refused, refused")))
    async with client(make_settings, A) as gms:
        outcome = (await ping(gms)).outcome
    assert isinstance(outcome, NodeTrouble)
    assert outcome.cause == CONNECT
    assert "success" not in outcome.detail


@pytest.mark.parametrize(
    "error", [aiohttp.SocketTimeoutError(), aiohttp.ServerTimeoutError(), TimeoutError()]
)
async def test_a_time_out_asks_no_other_node(
    error: Exception, make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    """The request may still be worked on, and its answer may carry a new secure key."""
    nodes.post(url(A), exception=error)
    nodes.post(url(B), body=GOOD)
    async with client(make_settings, A, B) as gms:
        answer = await ping(gms)
    assert isinstance(answer.outcome, NodeTrouble)
    assert (answer.outcome.cause, answer.node) == (TIMEOUT, A)
    assert len(nodes.requests) == 1


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientOSError(104, "reset"),
        ConnectionResetError(104, "reset"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_stale_connection_is_tried_once_more_on_the_same_node(
    error: Exception, make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), exception=error)
    nodes.post(url(A), body=GOOD)
    async with client(make_settings, A, B) as gms:
        answer = await ping(gms)
        assert isinstance(answer.outcome, Alive)
        assert answer.node == A
        assert standing(gms) == [True, True]


async def test_a_node_that_disconnects_twice_is_left_for_another(
    make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), exception=aiohttp.ServerDisconnectedError(), repeat=True)
    nodes.post(url(B), body=GOOD)
    async with client(make_settings, A, B) as gms:
        answer = await ping(gms)
        assert answer.node == B
        assert gms.nodes[0].cause == DISCONNECTED
    assert [len(requests) for requests in nodes.requests.values()] == [2, 1]


async def test_a_node_is_asked_once_for_one_ping(make_settings: MakeSettings, nodes: MockedNodes) -> None:
    nodes.post(url(A), status=500, repeat=True)
    nodes.post(url(B), status=502, repeat=True)
    async with client(make_settings, A, B) as gms:
        answer = await ping(gms)
    assert isinstance(answer.outcome, NodeTrouble)
    assert answer.outcome.cause == Cause.BAD_GATEWAY
    assert [len(requests) for requests in nodes.requests.values()] == [1, 1]


async def test_healthy_nodes_take_turns(make_settings: MakeSettings, nodes: MockedNodes) -> None:
    nodes.post(url(A), body=GOOD, repeat=True)
    nodes.post(url(B), body=GOOD, repeat=True)
    async with client(make_settings, A, B) as gms:
        asked = [(await ping(gms)).node for _ in range(4)]
    assert asked == [A, B, A, B]


@pytest.mark.parametrize("chat_id", [".", "..", "\ud800"])
async def test_a_chat_id_that_no_request_can_carry_is_refused(
    chat_id: str, make_settings: MakeSettings
) -> None:
    """It came over the wire or the API. An exception would leave its session claimed for ever."""
    async with client(make_settings, A) as gms:
        outcome = (await ping(gms, chat_id)).outcome
        assert isinstance(outcome, Refused)
        assert standing(gms) == [True]


# -- resting and coming back -------------------------------------------------------------------------


async def test_a_node_that_cannot_be_reached_rests_and_is_not_asked(
    make_settings: MakeSettings, nodes: MockedNodes, clock: FakeClock, events: Events
) -> None:
    nodes.post(url(A), exception=_connection_error(ConnectionRefusedError(111, "refused")), repeat=True)
    nodes.post(url(B), body=GOOD, repeat=True)
    jumping = FakeClock(jumping=True)
    async with client(make_settings, A, B, clock=jumping, rest="1s") as gms:
        for _ in range(5):
            assert (await ping(gms)).node == B
    asked_a, asked_b = (len(requests) for requests in nodes.requests.values())
    assert (asked_a, asked_b) == (1, 5)
    resting = events.one(Event.GMS_NODE_RESTING)
    assert (resting["node"], resting["cause"]) == (A, CONNECT)
    assert not events.of(Event.GMS_UNAVAILABLE)


async def test_three_strikes_in_a_row_make_a_node_rest(
    make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    """One or two HTTP 500 may be about a session or its Chat Server."""
    nodes.post(url(A), status=500, repeat=STRIKES)
    async with client(make_settings, A) as gms:
        stood = []
        for alias in range(STRIKES):
            await ping(gms, alias=str(alias))
            stood += standing(gms)
    assert stood == [True] * (STRIKES - 1) + [False]


@pytest.mark.parametrize(
    ("status", "rests"), [(500, False), (504, False), (408, False), (502, True), (503, True), (403, True)]
)
async def test_what_may_be_one_chat_servers_trouble_is_not_held_against_the_node(
    status: int, rests: bool, make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    """A hanging Chat Server makes GMS hang, or fail, for its sessions alone."""
    nodes.post(url(A), status=status, repeat=True)
    async with client(make_settings, A) as gms:
        for _ in range(STRIKES):
            await ping(gms, alias="117")
        assert standing(gms) == [not rests]
        await ping(gms, alias="118")
        assert standing(gms) == [False]


async def test_a_node_in_doubt_is_asked_after_the_others(
    make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), status=500)
    nodes.post(url(A), body=GOOD, repeat=True)
    nodes.post(url(B), body=GOOD, repeat=True)
    clock = FakeClock(jumping=True)
    async with client(make_settings, A, B, clock=clock, rest="1s") as gms:
        asked = [(await ping(gms)).node for _ in range(4)]
        assert asked == [B, B, B, B]
        await clock.sleep(1.1)
        assert A in [(await ping(gms)).node for _ in range(2)]


@pytest.mark.parametrize("answer", [GOOD, _said(1), _said(2), _said(2, chat_ended=True)])
async def test_whatever_a_node_says_of_a_session_clears_its_strikes(
    answer: bytes, make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    for _ in range(3):
        nodes.post(url(A), status=500, repeat=STRIKES - 1)
        nodes.post(url(A), body=answer)
    async with client(make_settings, A) as gms:
        for alias in range(3 * STRIKES):
            await ping(gms, alias=str(alias))
        assert standing(gms) == [True]


async def test_rest_grows_with_every_failure_up_to_its_bound(
    make_settings: MakeSettings, nodes: MockedNodes, events: Events
) -> None:
    nodes.post(url(A), exception=_connection_error(ConnectionRefusedError(111, "refused")), repeat=True)
    clock = FakeClock(jumping=True)
    async with client(make_settings, A, clock=clock, rest="1s", rest_max="6s") as gms:
        for _ in range(6):
            await ping(gms)
            await clock.sleep(gms.retry_in())
    rests = [rest for line in events.of(Event.GMS_NODE_RESTING) if isinstance(rest := line["rest_ms"], int)]
    for rest, longest in zip(rests, [1000, 2000, 4000, 6000, 6000, 6000], strict=True):
        assert 0.8 * longest <= rest <= longest


async def test_a_node_rests_as_long_as_it_asks_for(make_settings: MakeSettings, nodes: MockedNodes) -> None:
    nodes.post(url(A), status=503, headers={"Retry-After": "20"})
    async with client(make_settings, A, rest="1s", rest_max="30s") as gms:
        await ping(gms)
        assert gms.retry_in() == pytest.approx(20)


async def test_a_node_cannot_ask_for_more_than_sessions_can_wait(
    make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), status=503, headers={"Retry-After": "3000"})
    async with client(make_settings, A, rest="1s", rest_max="30s") as gms:
        await ping(gms)
        assert gms.retry_in() == pytest.approx(LONGEST_OBEYED)


async def test_while_all_nodes_rest_nothing_is_sent(
    make_settings: MakeSettings, nodes: MockedNodes, events: Events
) -> None:
    clock = FakeClock(jumping=True)
    for base in (A, B):
        nodes.post(url(base), exception=_connection_error(ConnectionRefusedError(111, "refused")))
        nodes.post(url(base), body=GOOD)
    async with client(make_settings, A, B, clock=clock, rest="1s") as gms:
        assert gms.slots() is None
        await ping(gms)
        assert gms.slots() == 0
        assert 0.8 <= gms.retry_in() <= 1
        assert not gms.available
        answer = await ping(gms)
        assert answer.outcome == NodeTrouble(NO_NODE)
        assert answer.node is None
        assert events.one(Event.GMS_UNAVAILABLE)["cause"] == CONNECT

        await clock.sleep(1)
        assert gms.slots() == 2
        assert gms.retry_in() == 0
        assert isinstance((await ping(gms)).outcome, Alive)
        assert gms.slots() is None
        assert gms.available
    assert events.one(Event.GMS_AVAILABLE)["outage_ms"] == pytest.approx(1000, abs=5)
    assert len(events.of(Event.GMS_NODE_BACK)) == 1


async def test_a_node_back_from_its_rest_is_tried_with_a_single_ping(make_settings: MakeSettings) -> None:
    """A hundred pings to a node that is still starting would only make it start slower."""
    arrived, answer = asyncio.Event(), asyncio.Event()
    asked = 0

    async def serve(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            return web.Response(status=503, headers={"Retry-After": "1"})
        arrived.set()
        await answer.wait()
        return web.Response(body=write_reply(0))

    clock = FakeClock(jumping=True)
    async with node(serve) as base, client(make_settings, base, clock=clock) as gms:
        await ping(gms)
        await clock.sleep(1)
        trial = asyncio.create_task(ping(gms))
        await soon(arrived.wait())
        assert gms.slots() == 1  # and it is taken
        assert (await ping(gms)).outcome == NodeTrouble(NO_NODE)
        answer.set()
        assert isinstance((await trial).outcome, Alive)
        assert gms.slots() is None
        assert asked == 2


async def test_while_a_node_is_being_tried_there_is_something_to_wait_for(
    make_settings: MakeSettings,
) -> None:
    """`retry_in` 0 would keep the worker spinning for as long as the trial takes."""
    arrived, answer = asyncio.Event(), asyncio.Event()
    statuses = iter([503, 200])

    async def serve(_: web.Request) -> web.Response:
        if (status := next(statuses)) == 200:
            arrived.set()
            await answer.wait()
        return web.Response(body=write_reply(0), status=status, headers={"Retry-After": "1"})

    clock = FakeClock(jumping=True)
    async with node(serve) as base, client(make_settings, base, clock=clock) as gms:
        await ping(gms)
        await clock.sleep(1)
        trial = asyncio.create_task(ping(gms))
        await soon(arrived.wait())
        assert gms.retry_in() >= 0.1
        answer.set()
        await trial


async def test_a_failed_trial_makes_the_node_rest_longer(
    make_settings: MakeSettings, nodes: MockedNodes
) -> None:
    nodes.post(url(A), exception=_connection_error(ConnectionRefusedError(111, "refused")))
    nodes.post(url(A), status=500)
    clock = FakeClock(jumping=True)
    async with client(make_settings, A, clock=clock, rest="1s") as gms:
        await ping(gms)
        await clock.sleep(1)
        await ping(gms)
        assert gms.nodes[0].failures == 2
        assert gms.retry_in() >= 1.6


async def test_pings_sent_before_a_node_failed_do_not_make_it_rest_longer(
    make_settings: MakeSettings,
) -> None:
    """Fifty requests that fail together are one failure."""
    waiting, fail = asyncio.Semaphore(0), asyncio.Event()

    async def serve(_: web.Request) -> web.Response:
        waiting.release()
        await fail.wait()
        return web.Response(status=503, headers={"Retry-After": "1"})

    async with node(serve) as base, client(make_settings, base) as gms:
        pings = [asyncio.create_task(ping(gms, f"chat-{number}")) for number in range(20)]
        for _ in pings:
            await soon(waiting.acquire())
        fail.set()
        await asyncio.gather(*pings)
        assert gms.nodes[0].failures == 1


# -- real sockets ------------------------------------------------------------------------------------


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


async def test_the_headers_that_every_request_carries(make_settings: MakeSettings) -> None:
    seen: list[dict[str, str]] = []

    async def serve(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return await answering(request)

    async with (
        node(serve) as base,
        client(
            make_settings,
            base,
            username="asyncchatd",
            password="pässword",
            headers={"apikey": "a-key-of-the-gateway"},
        ) as gms,
    ):
        assert isinstance((await ping(gms)).outcome, Alive)
    [headers] = seen
    assert headers["Authorization"] == "Basic " + b64encode("asyncchatd:pässword".encode()).decode()
    assert headers["apikey"] == "a-key-of-the-gateway"
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"


async def test_a_redirect_is_not_followed(make_settings: MakeSettings) -> None:
    """Tokens must not travel to wherever a proxy points."""
    asked = 0

    async def serve(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        raise web.HTTPTemporaryRedirect(str(request.url))

    async with node(serve) as base, client(make_settings, base) as gms:
        outcome = (await ping(gms)).outcome
    assert isinstance(outcome, NodeTrouble)
    assert (outcome.cause, asked) == (Cause.REDIRECT, 1)


async def test_a_closed_port_is_a_connect_error(make_settings: MakeSettings) -> None:
    async with client(make_settings, f"http://127.0.0.1:{unused_port()}/genesys") as gms:
        outcome = (await ping(gms)).outcome
    assert isinstance(outcome, NodeTrouble)
    assert outcome.cause == CONNECT


async def test_a_node_that_does_not_answer_is_a_time_out(make_settings: MakeSettings) -> None:
    never = asyncio.Event()

    async def serve(_: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with node(serve) as base, client(make_settings, base, timeout="50ms") as gms:
        outcome = (await ping(gms)).outcome
        never.set()
    assert isinstance(outcome, NodeTrouble)
    assert outcome.cause == TIMEOUT


@pytest.mark.parametrize("announced", [True, False])
async def test_a_reply_larger_than_any_is_not_read(announced: bool, make_settings: MakeSettings) -> None:
    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = MAX_REPLY + 1 if announced else None
        await response.prepare(request)
        with suppress(ConnectionError):  # the client had enough
            for _ in range(MAX_REPLY // 65536 + 1):
                await response.write(b" " * 65536)
        return response

    async with node(serve) as base, client(make_settings, base) as gms:
        outcome = (await ping(gms)).outcome
    assert outcome == NodeTrouble(REPLY_TOO_LARGE, None, f"HTTP 200, more than {MAX_REPLY} bytes")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"", DISCONNECTED),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{", PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", PROTOCOL),
    ],
    ids=["nothing", "not HTTP", "cut short", "false gzip"],
)
async def test_what_is_not_http_is_the_nodes_trouble(
    answer: bytes, cause: str, make_settings: MakeSettings
) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with raw_server(talk) as port, client(make_settings, f"http://127.0.0.1:{port}/genesys") as gms:
        outcome = (await ping(gms)).outcome
    assert isinstance(outcome, NodeTrouble)
    assert outcome.cause == cause
    assert connections == (2 if cause == DISCONNECTED else 1)


async def test_stale_connections_after_a_nodes_restart_lose_no_ping(make_settings: MakeSettings) -> None:
    """Every restart of a GMS node makes all its keep-alive connections stale at once."""
    port = unused_port()
    meet = asyncio.Barrier(10)

    async def together(request: web.Request) -> web.Response:
        await meet.wait()
        return await answering(request)

    chats = [f"chat-{number}" for number in range(10)]
    settings = make_settings(gms={"nodes": [f"http://127.0.0.1:{port}/genesys"]})
    clock = FakeClock(jumping=True)
    async with GmsClient(settings.gms, Pacer(1e6, clock), clock) as gms:
        async with node(together, port=port):
            first = await asyncio.gather(*(ping(gms, chat) for chat in chats))
        async with node(answering, port=port):
            second = await asyncio.gather(*(ping(gms, chat) for chat in chats))
        assert all(isinstance(answer.outcome, Alive) for answer in first + second)
        assert standing(gms) == [True]


async def test_a_node_that_drops_a_kept_connection_costs_one_more_try(make_settings: MakeSettings) -> None:
    """It said keep-alive, answered once, and drops the next request: what a stale connection does."""
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        reply = write_reply(0, TokenNews("chat-1"))
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            requests += 1
            if requests == 2:
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply) + reply)

    async with raw_server(talk) as port, client(make_settings, f"http://127.0.0.1:{port}/genesys") as gms:
        first, second = await ping(gms), await ping(gms)
        assert isinstance(first.outcome, Alive)
        assert isinstance(second.outcome, Alive)
        assert standing(gms) == [True]
    assert requests == 3


# -- TLS ---------------------------------------------------------------------------------------------


def server_tls(certificates: Certificates, *, ask_client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.verify_mode = ssl.CERT_REQUIRED if ask_client else ssl.CERT_NONE
    return context


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
        assert (answer.node, gms.nodes[0].cause) == (other, TLS)


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
    async with (
        node(answering, tls=server_tls(certificates, ask_client=True)) as base,
        node(answering) as other,
        client(make_settings, base, other, ca_file=str(certificates.ca)) as gms,
    ):
        answer = await ping(gms)
        assert answer.node == other
        assert gms.nodes[0].cause in (TLS, DISCONNECTED)


def test_secrets_stay_out_of_the_clients_words(make_settings: MakeSettings, events: Events) -> None:
    settings = make_settings(
        gms={"nodes": [A], "username": "u", "password": "hidden-word", "headers": {"apikey": "hidden-key"}}
    )
    clock = FakeClock()
    shown = repr(GmsClient(settings.gms, Pacer(1, clock), clock)) + repr(settings.gms) + events.text
    assert "hidden" not in shown
