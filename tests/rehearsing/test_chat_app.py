"""The demo's chat application: it takes what the daemon signed, each event once, and is judged by the plant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from standardwebhooks import Webhook

from asyncchatd.rehearsing.chat_app import ChatApp
from asyncchatd.standin import Plant

Event = dict[str, object]


def secret_of(app: ChatApp) -> str:
    """What the daemon signs with."""
    return Path(str(app.consumer["secret_file"])).read_text().strip()


async def posted(app: ChatApp, events: Sequence[Event], *, secret: str | None = None) -> int:
    """A webhook of these events; the status of the answer."""
    body = json.dumps({"chat_id": "1", "events": list(events)})
    signs = Webhook(secret or secret_of(app))
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "batch-1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signs.sign("batch-1", now, body),
    }
    async with (
        aiohttp.ClientSession() as http,
        http.post(str(app.consumer["url"]), data=body, headers=headers) as response,
    ):
        return response.status


def told(plant: Plant, chat_id: str) -> list[Event]:
    """What agents wrote in this chat, as the daemon tells it."""
    return [
        {
            "id": f"e-{chat_id}-{each.index}",
            "kind": "chat",
            "chat_id": chat_id,
            "event": {
                "index": each.index,
                "type": each.type,
                "from": {"type": each.participant_type},
                "text": each.text,
                "utcTime": each.utc_time,
            },
        }
        for each in plant.sessions[chat_id].events
        if each.type == "Message"
    ]


@pytest.fixture
def plant() -> Plant:
    """A plant with one chat, in which an agent has written twice."""
    plant = Plant()
    [session] = plant.start_chats(1)
    assert plant.say(session, "Good morning")
    assert plant.say(session, "How are you?")
    return plant


async def test_what_came_signed_complete_and_in_order_is_well(plant: Plant, tmp_path: Path) -> None:
    [chat_id] = plant.sessions
    async with ChatApp(tmp_path) as app:
        assert await posted(app, told(plant, chat_id)) == 204
        message = await app.shows(chat_id, "How are you?", seconds=1)
        delivery = app.delivery(plant)
    assert message is not None
    assert delivery.kept
    assert (delivery.written, delivery.delivered, delivery.twice) == (2, 2, 0)
    assert delivery.longest == max(message.after, delivery.p50 or 0)


async def test_an_event_that_comes_again_counts_as_twice_and_costs_nothing(
    plant: Plant, tmp_path: Path
) -> None:
    [chat_id] = plant.sessions
    async with ChatApp(tmp_path) as app:
        await posted(app, told(plant, chat_id)[:1])
        await posted(app, told(plant, chat_id))
        delivery = app.delivery(plant)
    assert delivery.kept
    assert delivery.twice == 1


async def test_messages_that_are_missing_or_out_of_order_are_found(plant: Plant, tmp_path: Path) -> None:
    [chat_id] = plant.sessions
    first, second = told(plant, chat_id)
    async with ChatApp(tmp_path) as app:
        await posted(app, [second])
        assert await app.shows(chat_id, "Good morning", seconds=0) is None
        assert not app.delivery(plant).complete
        await posted(app, [first])
        delivery = app.delivery(plant)
    assert delivery.complete
    assert delivery.disordered == 1
    assert not delivery.kept
    assert replace(delivery, disordered=0).kept


async def test_what_another_secret_signed_is_refused(plant: Plant, tmp_path: Path) -> None:
    [chat_id] = plant.sessions
    async with ChatApp(tmp_path) as app:
        assert await posted(app, told(plant, chat_id), secret="whsec_" + "A" * 32) == 401
        delivery = app.delivery(plant)
    assert (delivery.delivered, delivery.unsigned) == (0, 1)
    assert not delivery.kept
