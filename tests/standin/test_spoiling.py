"""The plant's faults after the work, its nodes that know nothing of the Chat API, and what is no token."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import aiohttp
import pytest

from asyncchatd.model.data import Tokens
from asyncchatd.standin import AfterWork, PlantSettings, Rotation, StandIn
from asyncchatd.wire.chat_api.calls import refresh
from asyncchatd.wire.chat_api.outcome import Alive, NodeTrouble, Refused
from asyncchatd.wire.health import read_health

from .test_server import Site, receiving, refresh_of, running

ALWAYS = PlantSettings(rotate=Rotation.REFRESH, rotate_every=1)


class Line:
    """A connection to a node, and everything that was said on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, session: dict[str, object]) -> None:
        made = refresh_of(session)
        self.writer.write(
            f"POST /genesys/2/chat/{made.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {made.content_type}\r\n"
            f"Content-Length: {len(made.body)}\r\n\r\n".encode()
            + made.body
        )

    async def answer(self) -> tuple[int, bytes]:
        """The next one, asked for or not."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split(b" ")[1]), await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """Until the node hangs up."""
        return await self.reader.read()


_lines: list[Line] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Whatever a test came to, its lines are closed."""
    yield
    while _lines:
        writer = _lines.pop().writer
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def line_to(site: Site, node: int = 0) -> Line:
    port = int(site.standin.gms_urls[node].rpartition(":")[2].partition("/")[0])
    _lines.append(Line(*await asyncio.open_connection("127.0.0.1", port)))
    return _lines[-1]


async def spoil(site: Site, what: AfterWork, **more: object) -> None:
    await site.control("/gms/1/after_work", what=what.value, **more)


def key_of(site: Site, session: dict[str, object]) -> str:
    return site.standin.plant.sessions[str(session["chat_id"])].secure_key


@pytest.mark.slow
async def test_a_node_that_hangs_up_has_done_its_work_and_the_old_key_is_forgiven_once() -> None:
    async with running(ALWAYS) as site:
        (chat,) = await site.chats(count=1, spread=["chat-1"])
        await site.control("/servers/chat-1/kill")
        await spoil(site, AfterWork.HANG_UP)
        line = await line_to(site)
        await line.ask(chat)
        assert await line.rest() == b""
        report = await site.report()
        assert (report["restored"], report["answers_lost"]) == (1, 1)
        assert key_of(site, chat) != chat["secure_key"]
        await site.control("/gms/1/start")
        outcome = await site.ping(chat)
        assert report["repeated_at_once_requests"] == 0
        assert (await site.report())["repeated_at_once_requests"] == 1
        assert isinstance(outcome, Alive)
        assert outcome.reply.news.secure_key == key_of(site, chat)
        report = await site.report()
        assert (report["forgiven_key_requests"], report["wrong_key_requests"]) == (1, 0)
        assert outcome.reply.news.alias != "117"
        news = {"secure_key": outcome.reply.news.secure_key, "user_id": outcome.reply.news.user_id}
        assert isinstance(await site.ping(chat | news), Alive)
        await site.ping(chat)  # it has shown that it knows better
        assert (await site.report())["wrong_key_requests"] == 1


async def test_a_node_can_hang_up_by_rst() -> None:
    async with running() as site:
        (chat,) = await site.chats(count=1)
        await spoil(site, AfterWork.RESET)
        line = await line_to(site)
        await line.ask(chat)
        with pytest.raises(ConnectionResetError):
            await line.rest()


@pytest.mark.parametrize(("over", "lost_at"), [("fresh", 1), ("kept", 2)])
async def test_it_hangs_up_on_fresh_or_on_kept_connections(over: str, lost_at: int) -> None:
    async with running() as site:
        (chat,) = await site.chats(count=1)
        await spoil(site, AfterWork.HANG_UP, over=over)
        line = await line_to(site)
        for _ in range(lost_at - 1):
            await line.ask(chat)
            assert (await line.answer())[0] == 200
        await line.ask(chat)
        assert await line.rest() == b""


@pytest.mark.parametrize(
    ("what", "status"),
    [
        (AfterWork.EMPTY, 200),
        (AfterWork.DAMAGED_GZIP, 200),
        (AfterWork.HTTP_500, 500),
        (AfterWork.HTTP_502, 502),
        (AfterWork.HTTP_503, 503),
        (AfterWork.UNDER_500, 500),
    ],
)
async def test_an_answer_is_spoilt_after_the_work(what: AfterWork, status: int) -> None:
    async with running(ALWAYS) as site:
        (chat,) = await site.chats(count=1)
        await spoil(site, what)
        line = await line_to(site)
        await line.ask(chat)
        seen, body = await line.answer()
        assert seen == status
        assert key_of(site, chat) != chat["secure_key"]
        assert (await site.report())["answers_lost"] == 1
        if what is AfterWork.DAMAGED_GZIP:
            with pytest.raises((OSError, EOFError, zlib.error)):
                gzip.decompress(body)
        elif what is AfterWork.UNDER_500:
            assert json.loads(body)["secureKey"] == key_of(site, chat)
        else:
            assert b"secureKey" not in body


async def test_half_a_body_comes_and_then_nothing() -> None:
    async with running() as site:
        (chat,) = await site.chats(count=1)
        await spoil(site, AfterWork.HALF_BODY)
        line = await line_to(site)
        await line.ask(chat)
        head, _, body = (await line.rest()).partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert 0 < len(body) < length


@pytest.mark.parametrize("what", [AfterWork.TWICE, AfterWork.GLUED])
async def test_an_answer_comes_twice(what: AfterWork) -> None:
    async with running(ALWAYS) as site:
        (chat,) = await site.chats(count=1)
        await spoil(site, what)
        line = await line_to(site)
        await line.ask(chat)
        assert await line.answer() == await line.answer()
        report = await site.report()
        assert (report["extra_answers"], report["answers_lost"], report["requests"]) == (1, 0, 1)


@pytest.mark.slow
async def test_the_second_answer_may_be_nameless_or_an_end_or_a_farewell() -> None:
    async with running() as site:
        (chat,) = await site.chats(count=1)
        line = await line_to(site)
        behind: dict[AfterWork, tuple[int, bytes]] = {}
        for what in (AfterWork.TWICE_NAMELESS, AfterWork.END_OF_ANOTHER, AfterWork.FAREWELL):
            await spoil(site, what)
            await line.ask(chat)
            assert json.loads((await line.answer())[1])["chatId"] == chat["chat_id"]
            behind[what] = await line.answer()
        nameless = json.loads(behind[AfterWork.TWICE_NAMELESS][1])
        assert "chatId" not in nameless
        assert nameless["secureKey"] == chat["secure_key"]
        end = json.loads(behind[AfterWork.END_OF_ANOTHER][1])
        assert (end["chatEnded"], end.get("chatId")) == (True, None)
        assert behind[AfterWork.FAREWELL] == (408, b"")
        assert await line.rest() == b""


@pytest.mark.slow
async def test_a_proxy_hangs_up_while_gms_works_on_and_a_second_request_at_once_overlaps() -> None:
    async with running(PlantSettings(rotate=Rotation.REFRESH, rotate_every=1, latency=0.4)) as site:
        (chat,) = await site.chats(count=1)
        await site.control("/gms/1/proxy", seconds=0.01)
        line = await line_to(site)
        await line.ask(chat)
        assert await line.rest() == b""
        assert key_of(site, chat) == chat["secure_key"]
        at_once = await line_to(site)
        await at_once.ask(chat)
        assert await at_once.rest() == b""
        assert (await site.report())["overlapping_requests"] == 1
        async with asyncio.timeout(10):
            while site.standin.plant.sessions[str(chat["chat_id"])].in_flight:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        report = await site.report()
        assert key_of(site, chat) != chat["secure_key"]
        assert report["answers_lost"] == 2


async def test_a_second_request_a_while_after_a_hang_up_is_counted_apart() -> None:
    async with running(PlantSettings(latency=2.0)) as site:
        (chat,) = await site.chats(count=1)
        await site.control("/gms/1/proxy", seconds=0.01)
        line = await line_to(site)
        await line.ask(chat)
        await line.rest()
        await asyncio.sleep(0.15)  # no longer at once
        later = await line_to(site)
        await later.ask(chat)
        await later.rest()
        report = await site.report()
        assert (report["overlapping_requests"], report["overlapping_cut_off_requests"]) == (0, 1)


async def test_the_end_of_a_chat_that_died_with_its_answer_may_be_asked_for_again() -> None:
    async with running() as site:
        (chat,) = await site.chats(count=1)
        await site.control("/end", chat_id=chat["chat_id"])
        await spoil(site, AfterWork.HANG_UP)
        line = await line_to(site)
        await line.ask(chat)
        await line.rest()
        await site.control("/gms/1/start")
        await site.ping(chat)
        assert (await site.report())["refreshes_of_closed_chats_max"] == 1
        await site.ping(chat)
        assert (await site.report())["refreshes_of_closed_chats_max"] == 2


@pytest.mark.parametrize("page", ["text", "html", "servlet"])
async def test_a_node_answers_404_without_a_word_of_the_chat_api(page: str) -> None:
    async with running() as site:
        (chat,) = await site.chats(count=1)
        await site.control("/gms/1/fail", status=404, page=page)
        status, body = await site.send(refresh_of(chat))
        assert status == 404
        assert b"statusCode" not in body
        assert isinstance(await site.ping(chat), NodeTrouble)
        assert isinstance(await site.ping(chat, node=1), Alive)


async def test_a_redeployment_and_a_fault_of_a_second_are_over_by_themselves() -> None:
    async with running() as site:
        (chat,) = await site.chats(count=1)
        await site.control("/gms/1/redeploy", seconds=0.2)
        await site.control("/gms/2/fail", status=503, retry_after=3600, seconds=0.2)
        assert [(await site.send(refresh_of(chat), node=node))[0] for node in (0, 1)] == [404, 503]
        async with asyncio.timeout(10):
            while any(node.failing for node in site.standin.nodes):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        assert isinstance(await site.ping(chat), Alive)


async def test_a_restoration_is_refused_for_a_while_and_the_chat_lives() -> None:
    async with running(PlantSettings(restoration_refused_for=30)) as site:
        chat, other = await site.chats(count=2, spread=["chat-1", "chat-2"])
        await site.control("/servers/chat-1/kill")
        assert isinstance(await site.ping(chat), Refused)
        assert isinstance(await site.ping(other), Alive)
        await site.control("/settings", restoration_refused_for=0)
        assert isinstance(await site.ping(chat), Alive)
        assert (await site.report())["refused_for_now"] == 1


async def test_counters_begin_anew_under_the_same_process() -> None:
    async with running() as site:
        await site.chats(count=9)
        before = [read_health(await site.health(f"chat-{n}")) for n in (1, 2, 3)]
        for n in (1, 2, 3):
            await site.control(f"/servers/chat-{n}/zero_counters")
        after = [read_health(await site.health(f"chat-{n}")) for n in (1, 2, 3)]
        assert [page.process_os_pid for page in before] == [page.process_os_pid for page in after]
        assert b'"sessions_opened_total":0' in (await site.health("chat-1")).replace(b" ", b"")


async def test_an_address_shared_by_two_processes_shows_them_in_turn() -> None:
    async with running() as site:
        await site.control("/servers/chat-1/share_address")
        seen = [read_health(await site.health("chat-1")).process_os_pid for _ in range(4)]
        assert len(set(seen)) == 2
        assert seen[:2] == seen[2:]
        await site.control("/servers/chat-1/share_address", shared=False)
        assert len({read_health(await site.health("chat-1")).process_os_pid for _ in range(4)}) == 1


async def test_a_transcript_can_be_larger_than_a_client_takes_and_its_position_unknown() -> None:
    async with running() as site:
        (chat,) = await site.chats(count=1, transcript=5_000_000, tell_position=False)
        assert chat["next_position"] is None
        session = site.standin.plant.sessions[str(chat["chat_id"])]
        tokens = Tokens(*map(str, tokens_of(chat)))
        whole = await site.send(refresh(session.service, tokens, None))
        last = await site.send(refresh(session.service, tokens, -1))
        assert len(whole[1]) > 5_000_000 > 100_000 > len(last[1])
        assert json.loads(last[1])["nextPosition"] == session.next_index


def tokens_of(chat: dict[str, object]) -> Sequence[object]:
    return [chat[name] for name in ("chat_id", "user_id", "secure_key", "alias")]


@pytest.mark.slow
async def test_replies_and_pushes_have_placeholders_where_they_tell_nothing_new() -> None:
    async with receiving() as (url, came), running(PlantSettings(push_url=url, placeholder_rate=1.0)) as site:
        (chat,) = await site.chats(count=1)
        said = set()
        for _ in range(16):
            _, body = await site.send(refresh_of(chat))
            reply = json.loads(body)
            told = [reply[name] for name in ("chatId", "userId", "secureKey", "alias")]
            said |= {str(got) for got, known in zip(told, tokens_of(chat), strict=True) if got != known}
        assert {"None", "null", "undefined", "", "****"} <= said
        await site.control("/settings", rotate="refresh", rotate_every=1)
        assert json.loads((await site.send(refresh_of(chat)))[1])["secureKey"] == key_of(site, chat)
        await site.control("/say", count=1)
        assert (await came.get()).device_id == chat["device_id"]


async def test_agents_plant_keys_of_other_chats_in_what_they_write() -> None:
    async with running(PlantSettings(planted_rate=1.0)) as site:
        chats = await site.chats(count=2)
        await site.control("/say", chat_id=chats[0]["chat_id"])
        outcome = await site.ping(chats[0])
        assert isinstance(outcome, Alive)
        planted = json.loads(outcome.reply.events[-1].text or "")
        assert planted["secureKey"] in {chat["secure_key"] for chat in chats}


async def test_a_plant_that_is_closed_forgets_what_goes_on_behind_a_proxy() -> None:
    async with StandIn(PlantSettings(latency=60)) as standin:
        [chat] = standin.plant.start_chats(1)
        standin.nodes[0].patience = 0.01
        made = refresh(chat.service, Tokens(chat.chat_id, chat.user_id, chat.secure_key, chat.alias), 1)
        async with aiohttp.ClientSession() as http:
            with suppress(aiohttp.ClientError):
                await http.post(f"{standin.gms_urls[0]}/2/chat/{made.path}", data=made.body)
        assert chat.in_flight
    assert not chat.in_flight
