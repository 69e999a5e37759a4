"""The plant itself: what it makes of an answer after the work, and what it forgives a client that cannot know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import aiohttp
import pytest
import pytest_asyncio

from .plant import (
    Chat,
    Plant,
    Reply,
    Spoil,
    damaged_gzip,
    farewell,
    half_body,
    hung_up,
    replaced,
    twice,
    under,
)
from .rig import eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def plant() -> AsyncIterator[Plant]:
    plant = Plant()
    plant.rotate = {"key", "user", "position"}
    await plant.start()
    yield plant
    await plant.stop()


def form(chat: Chat) -> bytes:
    return urlencode(
        {
            "userId": chat.user_id,
            "secureKey": chat.secure_key,
            "alias": chat.alias,
            "transcriptPosition": chat.next_position,
        }
    ).encode()


async def say(plant: Plant, chat: Chat, body: bytes) -> bytes:
    """A Refresh on a connection of its own; everything that comes until the node hangs up, or for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plant.nodes[0].listener.port)
    head = f"POST /genesys/2/chat/customer-support/{chat.chat_id}/refresh HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n".encode() + body)
    came = b""
    try:
        async with asyncio.timeout(0.2):
            while some := await reader.read(1 << 16):
                came += some
    except TimeoutError:
        pass
    finally:
        writer.close()
    return came


LOST: dict[str, tuple[Spoil, bytes]] = {
    "hung up": (hung_up(), b""),
    "half a body": (half_body, b"HTTP/1.1 200"),
    "damaged gzip": (damaged_gzip, b"HTTP/1.1 200"),
    "empty": (replaced(Reply()), b"HTTP/1.1 200"),
    "502": (replaced(Reply("<html>", 502)), b"HTTP/1.1 502"),
    "500 over a success": (under(500), b"HTTP/1.1 500"),
}


@pytest.mark.parametrize(("spoil", "begin"), LOST.values(), ids=LOST)
async def test_a_lost_answer_has_changed_the_keys_and_the_old_ones_are_forgiven(
    plant: Plant, spoil: Spoil, begin: bytes
) -> None:
    chat = plant.chat()
    known, body = chat.secure_key, form(chat)
    plant.nodes[0].spoil(spoil)
    came = await say(plant, chat, body)
    assert came.startswith(begin)
    assert bool(came) == bool(begin)
    assert chat.secure_key != known
    await say(plant, chat, body)
    plant.nodes[0].spoil(None)
    assert chat.secure_key.encode() in await say(plant, chat, body)
    assert not plant.breaches
    await say(plant, chat, body)  # it was told better
    assert plant.breaches["wrong_key"] == 1


async def test_a_node_hangs_up_by_rst(plant: Plant) -> None:
    chat = plant.chat()
    plant.nodes[0].spoil(hung_up("rst"))
    with pytest.raises(ConnectionResetError):
        await say(plant, chat, form(chat))


@pytest.mark.parametrize(
    ("spoil", "counts"),
    [(twice(), (2, 2)), (twice(0.01), (2, 2)), (twice(0.01, without=["chatId"]), (2, 1)), (farewell(0.01), (2, 1))],
    ids=["glued", "late", "without chatId", "408"],
)  # fmt: skip
async def test_something_comes_behind_an_answer(plant: Plant, spoil: Spoil, counts: tuple[int, int]) -> None:
    chat = plant.chat()
    plant.nodes[0].spoil(spoil, loses_answers=False)
    came = await say(plant, chat, form(chat))
    assert (came.count(b"HTTP/1.1"), came.count(b'"chatId"')) == counts


async def test_a_proxy_hangs_up_while_chat_server_works(plant: Plant) -> None:
    chat = plant.chat()
    node, body = plant.nodes[0], form(chat)
    node.patience, plant.delay = 0.01, 0.5
    assert await say(plant, chat, body) == b""
    assert chat.in_flight == 1
    await say(plant, chat, body)
    assert plant.breaches == {"overlapping": 1}
    await eventually("the end of the work", lambda: not chat.in_flight)
    node.patience, plant.delay = None, 0
    known = chat.secure_key
    assert known.encode() in await say(plant, chat, body)
    assert plant.breaches == {"overlapping": 1}


async def test_an_end_that_was_not_heard_may_be_asked_for_once_more(plant: Plant) -> None:
    chat = plant.chat()
    chat.answers.append({"chatEnded": True})
    plant.nodes[0].spoil(hung_up())
    body = form(chat)
    await say(plant, chat, body)
    plant.nodes[0].spoil(None)
    assert b'"chatEnded": true' in await say(plant, chat, body)
    assert not plant.breaches
    await say(plant, chat, body)
    assert plant.breaches == {"after_end": 1}


async def test_a_client_of_the_plant_needs_no_more_than_http(plant: Plant) -> None:
    chat = plant.chat()
    url = f"{plant.nodes[0].url}/2/chat/customer-support/{chat.chat_id}/refresh"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with aiohttp.ClientSession() as http, http.post(url, data=form(chat), headers=headers) as response:
        assert (await response.json())["secureKey"] == chat.secure_key
