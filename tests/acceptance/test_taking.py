"""A chat application that talks to GMS itself, and takes a chat before it does."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from .conftest import Start
from .plant import KEY_MARK, Chat, push, tokens
from .rig import Json, Rig, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

RIGHTS = "read register operate keys"


class Application:
    """It has no key of its own: what it needs to know of a chat, a take tells."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.sent = 0
        self.refused = 0

    async def take(self, chat: Chat, **how: object) -> Json | None:
        """The tokens, or none when they cannot be had now."""
        said = {"for": "10s"} | how
        answer = await self.rig.api("POST", f"/v1/sessions/{chat.chat_id}/take", said)
        if answer.status == 409:
            assert answer.headers["Retry-After"]
            self.refused += 1
            return None
        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
        return answer.json

    async def ask(self, taken: Json) -> Json:
        """A request of its own, with the tokens of a take; GMS' reply."""
        url = f"{self.rig.plant.nodes[0].url}/2/chat/{taken['service']}/{taken['chat_id']}/refresh"
        form = {
            "userId": taken["user_id"],
            "secureKey": taken["secure_key"],
            "alias": taken["alias"],
            "transcriptPosition": str(taken["next_position"]),
        }
        self.sent += 1
        async with self.rig.http.post(url, data=form) as response:
            reply: Json = await response.json()
        assert reply["statusCode"] == 0, reply
        return reply

    async def put_back(self, taken: Json, reply: Json) -> Json:
        answer = await self.rig.api(
            "PUT", f"/v1/sessions/{taken['chat_id']}?take_id={taken['take_id']}", reply
        )
        assert answer.status == 200, answer.body
        return answer.json

    async def use(self, chat: Chat, until: float) -> None:
        """One request after the other."""
        while time.monotonic() < until:
            if (taken := await self.take(chat)) is not None:
                assert (await self.put_back(taken, await self.ask(taken)))["outcome"] == "updated"


async def disturb(rig: Rig, chat: Chat, until: float, chance: random.Random) -> None:
    """Pushes, some of which tell the newest tokens, and pings that somebody asks for."""
    while time.monotonic() < until:
        match chance.randrange(3):
            case 0:
                await rig.ask_ping(chat)
            case 1:
                await rig.pushed(chat)
            case 2:
                assert (await rig.push(push(chat, tokens(chat)))).status == 200
        await asyncio.sleep(chance.uniform(0, 0.1))


async def test_an_application_and_the_daemon_ask_gms_by_turns_though_each_reply_changes_the_key(
    start: Start,
) -> None:
    rig = await start(rights=RIGHTS)
    rig.plant.rotate = {"key", "position"}
    rig.plant.delay = 0.03
    chats = await rig.registered(4)
    application, chance = Application(rig), random.Random(7)
    until = time.monotonic() + 5
    await asyncio.gather(
        *(application.use(chat, until) for chat in chats),
        *(disturb(rig, chat, until, chance) for chat in chats),
    )
    pings = len(rig.plant.refreshes) - application.sent
    assert application.sent > 20
    assert pings > 20
    for chat in chats:
        await rig.pinged(chat)
        assert (await rig.session(chat))["state"] == "live"
    assert rig.plant.breaches == {}
    assert len(rig.log("session_taken")) == application.sent
    assert KEY_MARK not in rig.log_text()


async def test_a_take_keeps_a_push_waiting_and_outlives_a_kill(start: Start) -> None:
    rig = await start(rights=RIGHTS)
    rig.plant.rotate = {"key"}
    [chat] = await rig.registered()
    application = Application(rig)
    taken = await application.take(chat, **{"for": "60s"})
    assert taken is not None
    await rig.pushed(chat)
    await rig.kill()
    await rig.start()
    assert chat.refreshes == []
    reply = await application.ask(taken)
    await application.put_back(taken, reply)
    await eventually("the push's acknowledgement", lambda: len(chat.refreshes) == 2)
    await rig.settled()


async def test_a_take_that_runs_out_is_told_and_the_chat_is_pinged(start: Start) -> None:
    rig = await start(rights=RIGHTS)
    [chat] = await rig.registered()
    application = Application(rig)
    assert await application.take(chat, **{"for": "1s"}) is not None
    await eventually("the ping after its end", lambda: chat.refreshes, within=4)
    await eventually("the line", lambda: rig.log("take_ran_out"), within=8)
    await rig.settled()
    taken = await application.take(chat)
    assert taken is not None
    said = {"take_id": taken["take_id"]}
    answer = await rig.api("POST", f"/v1/sessions/{chat.chat_id}/release", said)
    assert answer.status == 204
