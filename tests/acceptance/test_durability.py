"""What was answered 200 is never lost, and neither kill nor stop costs a session its key."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from functools import partial

import aiohttp
import pytest

from .conftest import Start
from .plant import Chat, encoded, payload, push, tokens
from .rig import SECRETS, Rig, eventually, never, stalls

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def test_a_kill_in_the_middle_of_a_restoration_loses_nothing(start: Start) -> None:
    rig = await start(servers=3, max_rate=60, lease="1500ms", gms_timeout="1s")
    chats = await rig.registered(90, alias="111")
    others = await rig.registered(30, alias="112")
    rig.plant.rotate = {"key", "position"}
    rig.plant.rotate_on_restore = {"user"}
    await rig.watching()
    for chat in chats[::3]:
        await rig.ask_ping(chat)
    await eventually("a third has new keys", lambda: all(chat.refreshes for chat in chats[::3]))
    for chat in chats[::3]:
        await rig.told_answered(chat)
    # From here on no reply carries a new secret, since one that is lost in the kill could not be known again.
    rig.plant.rotate.clear()
    rig.plant.rotate_on_restore.clear()
    begun = time.monotonic()
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("a part restored", lambda: sum(chat.hosted for chat in chats) >= 30)
    await rig.kill()
    assert sum(not chat.hosted for chat in chats) >= 30
    # Replies that never reached the store: their sessions' alias is the one before, once.
    rig.forgiven.add("stale_alias")
    await rig.start()
    await eventually("the rest restored", lambda: not rig.plant.unrestored(), within=6)
    assert rig.plant.breaches["stale_alias"] <= 10, rig.plant.evidence
    assert not rig.plant.since(begun, others)
    assert max(len(rig.plant.since(begun, [chat])) for chat in chats) <= 2


async def test_a_kill_with_requests_in_flight_resumes_when_their_lease_is_over(start: Start) -> None:
    rig = await start(lease="1500ms", gms_timeout="1s")
    chats = await rig.registered(30)
    rig.plant.gate.clear()
    for chat in chats:
        await rig.ask_ping(chat)
    await eventually("some in flight", lambda: sum(chat.in_flight for chat in chats) >= 4)
    await rig.kill()
    rig.plant.gate.set()
    await eventually("none in flight", lambda: not any(chat.in_flight for chat in chats))
    begun = time.monotonic()
    await rig.start()
    await eventually("all pinged", lambda: len(rig.plant.since(begun)) >= 30, within=4)
    assert {seen.chat_id for seen in rig.plant.since(begun)} == {chat.chat_id for chat in chats}


async def test_a_kill_right_after_a_200_loses_no_push(start: Start) -> None:
    rig = await start(max_rate=300)
    chats = await rig.registered(40)
    strangers = rig.plant.several(20)
    for chat in chats:
        rig.plant.rekey(chat)
        rig.plant.told(chat)
    await rig.plant.nodes[0].listener.close()
    bodies = [push(chat, payload(chat)) for chat in chats] + [push(chat, tokens(chat)) for chat in strangers]
    answers = await asyncio.gather(*(rig.push(body) for body in bodies))
    await rig.kill()
    assert {answer.status for answer in answers} == {200}
    await rig.plant.nodes[0].listener.open()
    for chat in strangers:
        rig.plant.forget_position(chat)
    await rig.start()
    everyone = [*chats, *strangers]
    await eventually("all acknowledged", lambda: all(chat.refreshes for chat in everyone), within=5)


async def test_a_kill_while_pushes_pour_in_loses_none_that_was_answered(start: Start) -> None:
    rig = await start(max_rate=500)
    await rig.plant.nodes[0].listener.close()
    chats = rig.plant.several(2000)
    for chat in chats:
        rig.plant.forget_position(chat)
    taken: list[Chat] = []
    senders = asyncio.gather(*(_pour(rig, chats[n::8], taken) for n in range(8)))
    await eventually("some pushes taken", lambda: len(taken) >= 200)
    await rig.kill()
    await senders
    await rig.plant.nodes[0].listener.open()
    await rig.start()
    await eventually("all acknowledged", lambda: all(chat.refreshes for chat in taken), within=8)


async def _pour(rig: Rig, chats: list[Chat], taken: list[Chat]) -> None:
    """Push until the daemon is gone; note what it answered."""
    with suppress(aiohttp.ClientError):
        for chat in chats:
            answer = await rig.push(push(chat, tokens(chat)))
            assert answer.status == 200
            taken.append(chat)


async def test_sigterm_waits_for_answers_that_carry_new_keys(start: Start) -> None:
    rig = await start(gms_timeout="3s", lease="4s")
    rig.plant.rotate = {"key", "position"}
    chats = await rig.registered(30)
    rig.plant.gate.clear()
    for chat in chats:
        await rig.ask_ping(chat)
    await eventually("some in flight", lambda: sum(chat.in_flight for chat in chats) >= 4)
    rig.terminate()
    await never(
        "its end before the answers", lambda: rig.process is None or rig.process.poll() is not None, during=1
    )
    rig.plant.gate.set()
    assert await rig.ended(within=3) == 0
    assert not any(seen.given_up for seen in rig.plant.refreshes)
    rig.plant.rotate.clear()
    goal = {chat.chat_id: len(chat.refreshes) + 1 for chat in chats}
    await rig.start()
    for chat in chats:
        await rig.ask_ping(chat)
    await eventually(
        "pinged with the new keys", lambda: all(len(c.refreshes) >= goal[c.chat_id] for c in chats)
    )


async def test_sigterm_in_the_middle_of_a_restoration_loses_nothing(start: Start) -> None:
    rig = await start(servers=3, max_rate=80)
    rig.plant.rotate = {"key"}
    rig.plant.delay = 0.1
    chats = await rig.registered(80, alias="111")
    await rig.watching()
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("a part restored", lambda: sum(chat.hosted for chat in chats) >= 30)
    await rig.stop(within=5)
    assert sum(not chat.hosted for chat in chats) >= 20
    await rig.start()
    await eventually("the rest restored", lambda: not rig.plant.unrestored(), within=5)
    assert max(len(chat.refreshes) for chat in chats) <= 2


async def test_a_stop_with_idle_connections_is_quick(start: Start) -> None:
    rig = await start()
    (chat,) = await rig.registered()
    async with aiohttp.ClientSession() as kept:
        for url in (
            f"http://127.0.0.1:{rig.push_port}/push/{SECRETS[0]}",
            f"http://127.0.0.1:{rig.control_port}/v1/sessions/{chat.chat_id}/ping",
        ):
            async with kept.post(url, data=encoded(push(chat, "dummy message"))) as response:
                assert response.status in {200, 202}
        await rig.settled()
        async with stalls() as stalled:
            rig.terminate()
            begun = time.monotonic()
            assert await rig.ended() == 0
            took = time.monotonic() - begun
        assert took < 2 + stalled.total


async def test_a_second_signal_or_a_silent_client_does_not_hold_the_stop_for_ever(start: Start) -> None:
    rig = await start(receiver='body_timeout = "2s"')
    _, writer = await asyncio.open_connection("127.0.0.1", rig.push_port)
    writer.write(f"POST /push/{SECRETS[0]} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
    await writer.drain()
    rig.terminate()
    try:
        assert await rig.ended(within=8) == 0
    finally:
        writer.close()
        await writer.wait_closed()


class Poster:
    """A client like GMS: one kept connection, one push after the other, a new connection after a failure."""

    def __init__(self, rig: Rig, chats: list[Chat]) -> None:
        self.rig = rig
        self.chats = iter(chats)
        self.taken: list[Chat] = []
        self.failed: list[str] = []
        self.stopping = False

    async def post(self) -> None:
        url = f"http://127.0.0.1:{self.rig.push_port}/push/{SECRETS[1]}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
            for chat in self.chats:
                if self.stopping:
                    return
                try:
                    async with http.post(url, data=encoded(push(chat, tokens(chat)))) as response:
                        await response.read()
                        assert response.status == 200, response.status
                        self.taken.append(chat)
                    await asyncio.sleep(0.004)
                except aiohttp.ClientError as trouble:
                    self.failed.append(repr(trouble))
                    await asyncio.sleep(0.02)


def _posters(rig: Rig) -> list[Poster]:
    chats = rig.plant.several(20_000)
    for chat in chats:
        rig.plant.forget_position(chat)
    return [Poster(rig, chats[n::20]) for n in range(20)]


async def test_no_answered_push_of_twenty_clients_is_lost_over_a_graceful_stop(start: Start) -> None:
    rig = await start(max_rate=2000, max_in_flight=10)
    posters = _posters(rig)
    posting = asyncio.gather(*(poster.post() for poster in posters))
    await eventually("pushes on every connection", lambda: all(len(p.taken) >= 10 for p in posters))
    await rig.stop()
    for poster in posters:
        poster.stopping = True
    await posting
    taken = [chat for poster in posters for chat in poster.taken]
    await rig.start()
    for chat in taken:
        await rig.kept(chat)
    await eventually("all acknowledged", lambda: all(chat.refreshes for chat in taken), within=8)
    # Each client meets the closed port; none should find its request swallowed before.
    swallowed = [each for poster in posters for each in poster.failed if "Connect call failed" not in each]
    assert len(swallowed) <= 2, swallowed


def _ten_more(posters: list[Poster], before: list[int]) -> bool:
    return all(len(poster.taken) >= count + 10 for poster, count in zip(posters, before, strict=True))


async def test_with_a_systemd_socket_no_push_fails_over_a_restart(start: Start) -> None:
    rig = await start(max_rate=2000, max_in_flight=10)
    await rig.stop()
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", rig.push_port))
        listening.listen(128)
        await rig.start(fds={"receiver": listening})
        posters = _posters(rig)
        posting = asyncio.gather(*(poster.post() for poster in posters))
        for _ in range(2):
            before = [len(poster.taken) for poster in posters]
            await eventually("pushes on every connection", partial(_ten_more, posters, before))
            await rig.stop()
            await rig.start(fds={"receiver": listening})
        for poster in posters:
            poster.stopping = True
        await posting
        failed = [each for poster in posters for each in poster.failed]
        assert failed == []
        taken = [chat for poster in posters for chat in poster.taken]
        await eventually("all acknowledged", lambda: all(chat.refreshes for chat in taken), within=8)


async def test_a_corrupt_store_is_set_aside_and_the_daemon_runs(start: Start) -> None:
    rig = await start()
    await rig.registered(20)
    await rig.stop()
    files = list(rig.directory.glob("store.db*"))
    store = rig.directory / "store.db"
    size = store.stat().st_size
    store.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * (size // 256))
    await rig.start()
    assert len(list(rig.directory.glob("*store.db*"))) > len([file for file in files if file.exists()])
    chat = rig.plant.chat()
    rig.plant.forget_position(chat)
    await rig.acknowledged(chat, push(chat, tokens(chat)))
