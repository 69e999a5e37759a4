"""Clients that are slow, many or endless, and operators who mistype."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from forked import ran_forked

from .conftest import Start
from .plant import KEY_MARK, Chat, Reply, encoded, payload, push, tokens
from .rig import SECRETS, Answer, Rig, eventually, stalls

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for n in range(0, len(body), 4096):
        yield body[n : n + 4096]


async def _push_in_chunks(rig: Rig, body: bytes) -> Answer:
    url = f"http://127.0.0.1:{rig.push_port}/push/{SECRETS[0]}"
    async with rig.http.post(url, data=_in_pieces(body)) as response:
        return Answer(response.status, await response.read(), response.headers)


async def test_a_push_in_chunks_is_taken(rig: Rig) -> None:
    (chat,) = await rig.registered()
    answer = await _push_in_chunks(rig, encoded(push(chat, payload(chat, text="x" * 50_000))))
    assert answer.status == 200
    await eventually("the Refresh", lambda: chat.refreshes)


async def test_a_push_in_chunks_too_large_is_refused_with_413(rig: Rig) -> None:
    (chat,) = await rig.registered()
    assert (await _push_in_chunks(rig, encoded(push(chat, "x" * 500_000)))).status == 413


async def test_pushes_beyond_the_queue_are_refused_with_503_and_none_taken_is_lost(start: Start) -> None:
    rig = await start(receiver="queue = 2", max_rate=2000)
    chats = rig.plant.several(400)
    for chat in chats:
        rig.plant.forget_position(chat)
    answers = await asyncio.gather(*(rig.push(push(chat, tokens(chat))) for chat in chats))
    assert {answer.status for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status == 503:
            assert int(answer.headers["Retry-After"]) >= 1
    taken = [chat for chat, answer in zip(chats, answers, strict=True) if answer.status == 200]
    assert taken
    await eventually("all acknowledged", lambda: all(chat.refreshes for chat in taken))
    refused = [chat for chat, answer in zip(chats, answers, strict=True) if answer.status == 503]
    assert not any(chat.refreshes for chat in refused)


STALLING = {
    "in the first line": b"POST /push/",
    "in a header": f"POST /push/{SECRETS[0]} HTTP/1.1\r\nHost: x\r\nContent-Le".encode(),
    "in the body": f"POST /push/{SECRETS[0]} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode(),
    "in a chunk": f"POST /push/{SECRETS[0]} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{".encode(),
}


async def test_clients_that_stall_are_let_go(start: Start) -> None:
    rig = await start(receiver='body_timeout = "500ms"\nheader_timeout = "500ms"')

    async def stall(where: str, sent: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.push_port)
        try:
            writer.write(sent)
            async with stalls() as stalled:
                begun = time.monotonic()
                answer = await asyncio.wait_for(reader.read(1000), 20)
                took = time.monotonic() - begun
            assert took < 3 + stalled.total, f"{where}: the time-outs are 5 s unless they are set"
            assert not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 5")), where
        finally:
            writer.close()
            await writer.wait_closed()

    await asyncio.gather(*(stall(where, sent) for where, sent in STALLING.items()))
    (chat,) = await rig.registered()
    await rig.acknowledged(chat, push(chat, "dummy message"))


async def test_hundreds_of_idle_connections_do_not_hinder_a_push(start: Start) -> None:
    rig = await start()
    opened = [await asyncio.open_connection("127.0.0.1", rig.push_port) for _ in range(300)]
    try:
        (chat,) = await rig.registered()
        await rig.acknowledged(chat, push(chat, "dummy message"))
    finally:
        for _, writer in opened:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in opened), return_exceptions=True)


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\x00" * 9000, b"A" * 20_000]
)
async def test_what_is_no_http_is_refused_without_a_traceback(rig: Rig, garbage: bytes) -> None:
    for port in (rig.push_port, rig.control_port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(garbage + b"\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 6)
            assert not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 5"))
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    assert (await rig.api("GET", "/healthz")).status == 200


async def test_a_huge_answer_of_gms_does_not_hurt(start: Start) -> None:
    rig = await start()
    (chat,) = await rig.registered()
    rig.plant.forget_position(chat)  # the last event alone is asked for, to learn it
    chat.answers.append(Reply(b'{"statusCode":0,"messages":["' + b"x" * 40_000_000 + b'"]}'))
    await rig.ask_ping(chat)
    await eventually("the huge answer", lambda: chat.refreshes)
    (other,) = await rig.registered()
    await rig.acknowledged(other, push(other, "dummy message"), within=4)
    await rig.ask_ping(chat)
    await eventually("a usual answer", lambda: chat.refreshes[-1].status_code == 0, within=4)


# Starting


@pytest.mark.parametrize(
    ("command", "wrong", "right", "named"),
    [
        ("run", "\nintervall = ", "\ninterval = ", ("intervall", "interval")),
        ("check", 'interval = "soon"', 'interval = "30m"', ("interval", "soon")),
        ("run", "max_rate = -1", "max_rate = 200", ("max_rate",)),
        ("check", 'nodes = "http://x"', 'nodes = ["http://127.0.0.1:8080/genesys"]', ("nodes",)),
        ("run", "[pinging]", "[ping]", ("pinging", "ping")),
    ],
)
async def test_a_mistake_in_the_configuration_is_named(
    tmp_path: Path, command: str, wrong: str, right: str, named: tuple[str, ...]
) -> None:
    example = (Path(__file__).parents[2] / "etc" / "asyncchatd.toml").read_text()
    assert right in example
    config = tmp_path / "asyncchatd.toml"
    config.write_text(example.replace(right, wrong, 1))
    ended = await asyncio.to_thread(ran_forked, command, "--config", str(config), directory=tmp_path)
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    assert "Traceback" not in said
    for name in named:
        assert name in said


async def test_a_port_in_use_is_said_without_a_traceback(start: Start) -> None:
    rig = await start()
    await rig.stop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", rig.push_port))
        taken.listen()
        ended = await asyncio.to_thread(
            ran_forked, "run", "--config", str(rig.config), directory=rig.directory
        )
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    assert "Traceback" not in said
    assert str(rig.push_port) in said


# Commands


async def test_the_commands_tell_programs_what_the_daemon_knows(rig: Rig) -> None:
    await rig.watching()
    (chat,) = await rig.registered()
    config = ("--config", str(rig.config))
    said = ""
    for command in ("status", "sessions", "servers"):
        ended = await asyncio.to_thread(ran_forked, command, *config, "--json", directory=rig.directory)
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)
        said += ended.stdout + ended.stderr
    plain = await asyncio.to_thread(ran_forked, "sessions", *config, directory=rig.directory)
    assert plain.returncode == 0, plain.stderr
    said += plain.stdout + plain.stderr
    assert chat.chat_id in said
    for secret in (KEY_MARK, *SECRETS):
        assert secret not in said
    pinged = await asyncio.to_thread(ran_forked, "ping", chat.chat_id, *config, directory=rig.directory)
    assert pinged.returncode == 0, pinged.stderr
    await eventually("the ping", lambda: chat.refreshes)
    nobody = await asyncio.to_thread(ran_forked, "ping", "nobody", *config, directory=rig.directory)
    assert nobody.returncode != 0
    assert "Traceback" not in nobody.stderr
    restored = await asyncio.to_thread(ran_forked, "restore", "chat-1", *config, directory=rig.directory)
    assert restored.returncode == 0, restored.stderr
    await eventually("a ping more", lambda: len(chat.refreshes) >= 2)


async def test_a_command_without_a_daemon_fails_plainly(start: Start) -> None:
    rig = await start()
    await rig.stop()
    ended = await asyncio.to_thread(
        ran_forked, "status", "--config", str(rig.config), directory=rig.directory
    )
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr + ended.stdout


# Sessions of servers nobody configured


async def test_sessions_of_an_alias_without_a_server_are_reported(rig: Rig) -> None:
    chats: list[Chat] = await rig.registered(3, alias="alias-nobody-has")

    async def told() -> bool:
        return "alias-nobody-has" in (await rig.api("GET", "/v1/servers")).body.decode()

    await rig.eventually("a report of the alias", told)
    await rig.pinged(chats[0])
