"""The client of GMS nodes and the calls of chat clients: a message is never sent twice."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from conftest import FakeClock, MakeSettings, soon, tokens

from asyncchatd.gms.client import Answer, GmsClient
from asyncchatd.gms.connection import Connection
from asyncchatd.gms.trouble import Trouble
from asyncchatd.model.data import TokenNews
from asyncchatd.standin.messages import write_reply
from asyncchatd.wire.chat_api import Alive, Ended, NodeTrouble, Operation, Refused, ReplyFault, RetryLater
from asyncchatd.wire.chat_api import call as written

from .client_rig import GOOD, client, node, reply_of

pytestmark = pytest.mark.usefixtures("events")

OURS = tokens("chat-1")


async def send(gms: GmsClient, text: str = "Hello") -> Answer:
    return await soon(gms.call(written(Operation.SEND, "support", OURS, [("message", text)]), OURS))


async def begin(gms: GmsClient) -> Answer:
    return await soon(gms.begin(written(Operation.REQUEST_CHAT, "support", None, [("nickname", "Ann")])))


async def test_a_call_is_sent_and_its_reply_is_kept(make_settings: MakeSettings) -> None:
    got: list[tuple[str, str]] = []

    async def serve(request: web.Request) -> web.Response:
        got.append((request.path, await request.text()))
        return web.Response(body=GOOD)

    async with node(serve) as base, client(make_settings, base) as gms:
        answer = await send(gms)
    assert isinstance(answer.outcome, Alive)
    assert answer.body == GOOD
    [(path, body)] = got
    assert path == "/genesys/2/chat/support/chat-1/send"
    assert body.endswith("&message=Hello")


async def test_a_refresh_keeps_no_body(make_settings: MakeSettings) -> None:
    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=GOOD)

    async with node(serve) as base, client(make_settings, base) as gms:
        answer = await soon(gms.refresh("support", OURS, 3))
    assert answer.body is None


@pytest.mark.parametrize("how", ["hangs up", "cuts", "502"])
async def test_a_call_that_may_have_been_taken_is_not_sent_again(
    make_settings: MakeSettings, how: str
) -> None:
    asked = 0

    async def serve(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if how == "502":
            return web.Response(status=502, text="bad gateway")
        if how == "cuts" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        if request.transport is not None:
            request.transport.close()
        await asyncio.sleep(0)
        return web.Response(body=GOOD)

    async with node(serve) as one, node(serve) as other, client(make_settings, one, other) as gms:
        answer = await send(gms)
    assert isinstance(answer.outcome, NodeTrouble)
    assert answer.perhaps_taken
    assert asked == 1


async def test_a_call_that_nobody_took_goes_to_another_node(make_settings: MakeSettings) -> None:
    async def away(request: web.Request) -> web.Response:
        return web.Response(status=404, text="no application")

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=GOOD)

    async with node(away) as one, node(serve) as other, client(make_settings, one, other) as gms:
        for _ in range(3):
            assert isinstance((await send(gms)).outcome, Alive)


async def test_where_nobody_listens_a_call_is_proven_not_taken(make_settings: MakeSettings) -> None:
    async with client(make_settings, "http://127.0.0.1:9/genesys") as gms:
        answer = await send(gms)
    assert isinstance(answer.outcome, NodeTrouble)
    assert answer.outcome.cause == Trouble.CONNECT
    assert not answer.perhaps_taken


async def test_a_connection_that_the_node_had_closed_is_not_tried_twice(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Refresh is sent once more over a new connection then. Of a call nobody could be certain."""
    asked = 0

    async def serve(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 2 and request.transport is not None:
            request.transport.close()
        return web.Response(body=GOOD)

    async with node(serve) as base, client(make_settings, base) as gms:
        await soon(gms.refresh("support", OURS, 3))
        answer = await send(gms)
    assert (asked, answer.perhaps_taken) == (2, True)


async def test_a_call_goes_over_no_connection_that_was_idle_for_long(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers: list[object] = []

    async def serve(request: web.Request) -> web.Response:
        peers.append(request.transport)
        return web.Response(body=GOOD)

    async with node(serve) as base, client(make_settings, base) as gms:
        await soon(gms.refresh("support", OURS, 3))
        await send(gms)
        for each in gms.nodes[0].connections._idle:
            assert isinstance(each, Connection)
            each.idle_since -= 1.5
        await soon(gms.call(written(Operation.START_TYPING, "support", OURS), OURS))
    assert peers[0] is peers[1] is not peers[2]


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (reply_of(1, errors=[ReplyFault(34, "try later")]), RetryLater),
        (reply_of(2, errors=[ReplyFault(34, "no")]), Refused),
        (reply_of(2, chat_ended=True), Ended),
    ],
)
async def test_what_gms_says_of_a_call_comes_back_with_its_words(
    make_settings: MakeSettings, reply: bytes, outcome: type
) -> None:
    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=reply)

    async with node(serve) as base, client(make_settings, base) as gms:
        answer = await send(gms)
    assert isinstance(answer.outcome, outcome)
    assert answer.body == reply
    assert not answer.perhaps_taken


async def test_a_chat_is_begun_with_tokens_nobody_knew(make_settings: MakeSettings) -> None:
    begun = write_reply(0, TokenNews("new-chat", "user-1", "key-1", "117"), next_position=2)

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=GOOD if request.path.endswith("/refresh") else begun)

    async with node(serve) as base, client(make_settings, base) as gms:
        await soon(gms.refresh("support", OURS, 3))  # leaves a connection
        answer = await begin(gms)
    assert isinstance(answer.outcome, Alive)
    assert answer.outcome.reply.news == TokenNews("new-chat", "user-1", "key-1", "117")


async def test_a_chat_is_begun_over_a_connection_of_its_own(make_settings: MakeSettings) -> None:
    """A late answer to another request could be taken for the first of this chat."""
    peers: list[object] = []

    async def serve(request: web.Request) -> web.Response:
        peers.append(request.transport)
        return web.Response(body=GOOD)

    async with node(serve) as base, client(make_settings, base) as gms:
        await soon(gms.refresh("support", OURS, 3))
        await send(gms)
        assert peers[0] is peers[1]
        await begin(gms)
    assert peers[2] is not peers[1]


async def test_a_chat_that_may_have_begun_is_not_begun_again(make_settings: MakeSettings) -> None:
    asked = 0

    async def serve(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=504)

    async with node(serve) as base, client(make_settings, base) as gms:
        answer = await begin(gms)
    assert (asked, answer.perhaps_taken) == (1, True)


async def test_while_all_nodes_rest_a_call_is_not_sent(make_settings: MakeSettings, clock: FakeClock) -> None:
    async with client(make_settings, "http://127.0.0.1:9/genesys", clock=clock) as gms:
        await send(gms)
        answer = await send(gms)
    assert isinstance(answer.outcome, NodeTrouble)
    assert answer.outcome.cause == Trouble.NO_NODE
