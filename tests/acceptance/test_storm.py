"""Keys that rotate under a storm of pushes, old and new, resent and out of order: never a wrong one."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from .conftest import Start
from .plant import Chat, event, now_ms, payload, push, tokens
from .rig import Rig, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


class Storm:
    """Pushes of every age against one rig, and new keys given in replies and in pushes."""

    def __init__(self, rig: Rig, chats: list[Chat], seed: int) -> None:
        self.rig = rig
        self.chats = chats
        self.chance = random.Random(seed)
        self.sent: dict[str, list[dict[str, object]]] = {chat.chat_id: [] for chat in chats}
        self.old_keys: dict[str, list[str]] = {chat.chat_id: [] for chat in chats}
        self.busy: set[str] = set()
        self.pushes = 0

    async def blow(self, seconds: float) -> None:
        stop = time.monotonic() + seconds
        await asyncio.gather(*(self._client(stop) for _ in range(8)))

    async def _client(self, stop: float) -> None:
        while time.monotonic() < stop:
            chat = self.chance.choice(self.chats)
            if chat.chat_id in self.busy:
                await asyncio.sleep(0)
                continue
            self.pushes += 1
            kinds = [self._news, self._news, self._resend, self._resend, self._old_key, self._plain]
            await self.chance.choice(kinds)(chat)

    async def _news(self, chat: Chat) -> None:
        """Chat Server changes the key, and a push brings it: only while nothing is on its way, so that it is
        knowable which is the newer: the daemon has had the time to read the last answer, on a busy machine too."""
        last = chat.refreshes[-1].answered if chat.refreshes else 0.0
        if chat.in_flight or last is None or time.monotonic() - last < 0.3:
            return
        self.busy.add(chat.chat_id)
        self.old_keys[chat.chat_id].append(chat.secure_key)
        self.rig.plant.rekey(chat)
        body = push(chat, payload(chat, event(self.chance.choice(["Message", "push-url"]))))
        self.sent[chat.chat_id].append(body)
        answer = await self.rig.push(body)
        assert answer.status == 200
        self.rig.plant.told(chat)
        self.busy.discard(chat.chat_id)

    async def _resend(self, chat: Chat) -> None:
        """One of the last pushes again, as Chat Server resends it."""
        if sent := self.sent[chat.chat_id]:
            assert (await self.rig.push(self.chance.choice(sent[-6:]))).status == 200

    async def _old_key(self, chat: Chat) -> None:
        """A late push with a key from before, with an old time or without one."""
        if known := self.old_keys[chat.chat_id]:
            # A resend is late by minutes, not by dozens of keys.
            old = tokens(chat) | {"secure-key": self.chance.choice(known[-12:])}
            if self.chance.random() < 0.5:
                old |= {"utcTime": now_ms(-self.chance.uniform(5, 60))}
            assert (await self.rig.push(push(chat, old))).status == 200

    async def _plain(self, chat: Chat) -> None:
        await self.rig.pushed(chat)


@pytest.mark.parametrize(
    "in_replies", [False, True], ids=["keys from pushes", "keys from pushes and replies"]
)
async def test_no_wrong_key_under_a_storm_of_pushes(start: Start, in_replies: bool) -> None:
    rig = await start(interval="400ms", max_rate=400, max_in_flight=20)
    rig.plant.delay = 0.03
    if in_replies:
        rig.plant.rotate = {"key", "position"}
    storm = Storm(rig, await rig.registered(40), seed=7)
    await storm.blow(4.0)
    assert storm.pushes > 300
    assert not rig.plant.breaches, rig.plant.evidence
    end = time.monotonic()
    await eventually("a last ping of each", lambda: all(c.refreshes[-1].at > end for c in storm.chats))


async def test_no_wrong_key_over_a_kill_in_the_storm(start: Start) -> None:
    rig = await start(interval="400ms", max_rate=400, lease="1s", gms_timeout="800ms")
    storm = Storm(rig, await rig.registered(40), seed=11)
    await storm.blow(1.0)
    await rig.kill()
    await rig.start()
    await storm.blow(1.0)
    end = time.monotonic()
    await eventually("a last ping of each", lambda: all(c.refreshes[-1].at > end for c in storm.chats))


async def test_a_key_learned_while_the_session_waits_for_its_turn_is_the_one_used(start: Start) -> None:
    """The work list is long; what is claimed early must not be sent with the tokens of that moment."""
    rig = await start(max_rate=30, max_in_flight=50)
    chats = await rig.registered(60)
    await rig.api("POST", "/v1/servers/chat-1/restore")
    await eventually("the first of them", lambda: len(rig.plant.refreshes) >= 5)
    waiting = [chat for chat in chats if not chat.refreshes]
    for chat in waiting[:25]:
        # Default content and no event: an acknowledgement that may wait behind others, with the key beside it.
        rig.plant.rekey(chat)
        assert (await rig.push(push(chat, tokens(chat) | {"utcTime": now_ms()}))).status == 200
        rig.plant.told(chat)
    await eventually("all pinged", lambda: all(chat.refreshes for chat in chats), within=8)


async def test_three_hundred_pushes_at_once_are_all_taken(start: Start) -> None:
    rig = await start(max_rate=400)
    chats = await rig.registered(300)
    answers = await asyncio.gather(*(rig.push(push(chat, payload(chat))) for chat in chats))
    assert {answer.status for answer in answers} == {200}
    await eventually("all acknowledged", lambda: all(chat.refreshes for chat in chats))
    assert rig.plant.peak(1.0) <= 408


async def test_resends_of_one_push_cost_few_refreshes(start: Start) -> None:
    """Forty copies within a moment: the Refresh acknowledges them all, and those behind it need one more each."""
    rig = await start()
    rig.plant.delay = 0.1
    (chat,) = await rig.registered()
    body = push(chat, payload(chat, event("push-url")))
    for _ in range(40):
        assert (await rig.push(body)).status == 200
    await eventually("acknowledged", lambda: chat.refreshes and chat.refreshes[-1].answered)
    await rig.settled()
    assert len(chat.refreshes) <= 6
