"""The answers that the client of the GMS nodes takes: whose they are, and how large they may be."""

from __future__ import annotations

import asyncio
import gzip
import random
import threading
from collections.abc import AsyncIterator, Callable
from urllib.parse import parse_qs

import orjson
import pytest
from conftest import Certificates, Events, MakeSettings, ScriptedNode, Then, raw_server, server_tls, soon

from asyncchatd.gms.client import GmsClient
from asyncchatd.gms.trouble import Trouble
from asyncchatd.log.events import Event
from asyncchatd.model.data import TokenNews, Tokens
from asyncchatd.model.values import replace
from asyncchatd.standin.messages import write_reply
from asyncchatd.wire.chat_api.outcome import Alive, Ended, NodeTrouble, PingFault, Refused, RetryLater

from .client_rig import GOOD, TOO_LARGE, client, ping, reply_for, standing

pytestmark = pytest.mark.usefixtures("events")


PACKED = {"Content-Encoding": "gzip"}


def _http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.fixture(params=["http", "https"])
async def wired(request: pytest.FixtureRequest, certificates: Certificates) -> AsyncIterator[ScriptedNode]:
    """A node, with or without TLS."""
    async with ScriptedNode(server_tls(certificates) if request.param == "https" else None) as scripted:
        yield scripted


# -- whose answer it is ---------------------------------------------------------------------------------


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
            wired.answer(reply_for("chat-0"))
            await ping(gms, "chat-0")
        wired.say(
            _http(reply_for("chat-0", key="another's", ended=ended))
            + _http(reply_for("chat-1", key="its own"))
        )
        answer = await ping(gms)
        assert isinstance(answer.outcome, Alive)
        assert answer.outcome.reply.news.secure_key == "its own"
        assert standing(gms) == [True]
        assert events.one(Event.PING_FOREIGN_REPLY)["chat_id"] == "chat-1"
        wired.answer(reply_for("chat-2"))
        await ping(gms, "chat-2")
    assert wired.connections == 2


async def test_another_chats_reply_alone_is_waited_behind_until_the_time_is_over(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    a.answer(reply_for("chat-0", ended=True))
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
        wired.answer(reply_for("chat-0"))
        await ping(gms, "chat-0")
        wired.say(
            _http(reply_for(None, key="another's", ended=ended)) + _http(reply_for("chat-1", key="its own"))
        )
        outcome = (await ping(gms)).outcome
        assert isinstance(outcome, Alive)
        assert outcome.reply.news.secure_key == "its own"


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
async def test_a_node_that_names_no_chat_over_a_kept_connection_is_asked_over_fresh_ones(
    ended: bool, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """Nothing was learned, so the session is asked for again; what comes over a fresh connection is its own."""
    async with client(make_settings, a.base) as gms:
        a.answer(reply_for("chat-0"))
        await ping(gms, "chat-0")
        a.say(_http(reply_for(None, ended=ended)), Then.HANG_UP)
        outcome = (await ping(gms)).outcome
        assert outcome == NodeTrouble(Trouble.UNNAMED_REPLY, None, "HTTP 200")
        for _ in range(3):
            a.answer(reply_for("chat-0"))
            await ping(gms, "chat-0")
            a.answer(reply_for(None, key="its own", ended=ended))
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
        a.answer(reply_for("chat-0", key="key-0"))
        await ping(gms, "chat-0")
        a.say(_http(reply_for(None, key="its own")), then)
        outcome = (await ping(gms)).outcome
        assert isinstance(outcome, Alive)
        assert outcome.reply.news.secure_key == "its own"
        a.answer(reply_for("chat-2"))
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
        a.answer(reply_for("chat-0", key="key-0"))
        await ping(gms, "chat-0")
        a.say(b"".join(_http(reply_for(chat, key=key)) for chat, key in replies), Then.HANG_UP)
        assert (await ping(gms)).outcome == NodeTrouble(Trouble.UNNAMED_REPLY, None, "HTTP 200")


@pytest.mark.parametrize("closes", [True, False], ids=["hangs up", "stays"])
async def test_behind_a_408_over_a_kept_connection_the_answer_is_waited_for(
    closes: bool, make_settings: MakeSettings, certificates: Certificates, wired: ScriptedNode
) -> None:
    """A proxy took leave of the idle connection just then. Over a fresh one the 408 is the answer."""
    leave = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
    async with client(make_settings, wired.base, ca_file=str(certificates.ca)) as gms:
        wired.answer(reply_for("chat-0"))
        await ping(gms, "chat-0")
        wired.say(leave if closes else leave + _http(reply_for("chat-1", key="its own")), Then.HANG_UP)
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
        a.answer(reply_for("chat-0"))
        await ping(gms, "chat-0")
        a.answer(reply_for(None, key="key-of-chat-1"))
        assert isinstance((await ping(gms, "chat-1")).outcome, Alive)
        assert a.connections == 1
        for number in range(2, 5):
            a.answer(reply_for(None, key=f"a new one of chat-{number}"))
            assert isinstance((await ping(gms, f"chat-{number}")).outcome, Alive)
    assert a.connections == 4


async def test_a_node_that_named_no_chat_over_a_fresh_connection_is_asked_over_fresh_ones(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """Some of its answers say whose they are, and a new key in one that does not must not be lost."""
    async with client(make_settings, a.base) as gms:
        a.answer(reply_for(None))
        await ping(gms, "chat-0")
        for number in range(1, 5):
            a.answer(reply_for(f"chat-{number}" if number % 2 else None, key=f"key {number}"))
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
            a.answer(reply_for(f"chat-{number}"))
        await asyncio.gather(*(ping(gms, f"chat-{number}") for number in range(2)))
        a.answer(reply_for(None))
        doubtful = asyncio.create_task(ping(gms, "chat-2"))
        await a.asked(3)
        for _ in range(1000):
            if gms.nodes[0].unnamed_until:
                break
            await asyncio.sleep(0.005)
        a.answer(reply_for(None, key="its own"))
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
            a.answer(reply_for(chat))
            await ping(gms, chat)
    assert a.connections == 2


async def test_a_gms_that_never_names_the_chat_gets_a_connection_for_each_request(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """So that its answers can be believed."""
    async with client(make_settings, a.base) as gms:
        for number in range(5):
            a.answer(reply_for(None, key=f"key-{number}"))
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


LONG = 5 * 2**20
"""Bytes, more than are kept of anything; `test_http_reply.py` reads as many as are read at all."""


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
@pytest.mark.parametrize("backwards", [False, True], ids=["key at the front", "key at the end"])
@pytest.mark.parametrize("said", [_http, in_chunks], ids=["measured", "in chunks"])
async def test_of_a_long_transcript_what_is_needed_is_taken_as_it_streams(
    said: Callable[[bytes], bytes],
    backwards: bool,
    make_settings: MakeSettings,
    certificates: Certificates,
    wired: ScriptedNode,
) -> None:
    """The connection serves the next one, and nothing is read in a thread."""
    messages = transcript(LONG)
    for chat in ("chat-1", "chat-2"):
        fields = {**orjson.loads(reply_for(chat)), "messages": messages}
        body = orjson.dumps(dict(reversed(fields.items())) if backwards else fields)
        assert len(body) > 0.99 * LONG
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
        assert max(event.utc_time or 0 for event in reply.events) == 999 + len(messages)
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
    first, second = (
        replace(each.outcome, messages=()) if isinstance(each.outcome, Ended) else each.outcome
        for each in answers
    )
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("backwards", [False, True], ids=["key at the front", "key at the end"])
@pytest.mark.parametrize("how", ["measured", "in chunks", "unmeasured", "whole, but not well-formed"])
async def test_of_a_long_reply_that_is_cut_off_nothing_is_learned(
    how: str, backwards: bool, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    fields = {**orjson.loads(GOOD), "messages": transcript(LONG)}
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
    async with client(make_settings, a.base, timeout="60s") as gms:
        answer = await ping(gms)
    assert isinstance(answer.outcome, NodeTrouble)
    assert answer.outcome.cause in (Trouble.CUT_SHORT, PingFault.TRUNCATED)
    assert answer.perhaps_taken


@pytest.mark.slow
@pytest.mark.parametrize("backwards", [False, True], ids=["key at the front", "key at the end"])
async def test_a_long_transcript_that_came_compressed_is_read_beside_the_event_loop(
    backwards: bool, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    fields = {**orjson.loads(GOOD), "messages": transcript(LONG)}
    body = orjson.dumps(dict(reversed(fields.items())) if backwards else fields)
    a.answer(gzip.compress(body), headers=PACKED)
    before = set(threading.enumerate())
    async with client(make_settings, a.base) as gms:
        outcome = (await ping(gms)).outcome
        threads = {thread.name for thread in set(threading.enumerate()) - before}
    assert isinstance(outcome, Alive)
    assert outcome.reply.news.secure_key == orjson.loads(GOOD)["secureKey"]
    assert any(name.startswith("asyncio") for name in threads)
