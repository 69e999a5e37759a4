"""Pushes that come thick: what they can make due, and how often. Kept by every store."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from asyncchatd.model.data import Claim, Ms, Reason, Verdict
from asyncchatd.stores import make_store
from asyncchatd.stores.answers import Effect
from asyncchatd.stores.rules import AT_ONCE, DEVICE_CHATS, SPACING_MS

from .desk import MINUTE, SECOND, Desk, push, registration

TICK = 50
"""Milliseconds between two pushes, and between two looks at what is due."""

PING = 100
"""Milliseconds that GMS takes for an answer."""


class Flood:
    """A worker that pings at once what is due, while pushes come."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._flying: list[tuple[Ms, Claim]] = []
        self.pinged: list[tuple[Ms, str]] = []
        """When, and which chat."""

    async def run(
        self, milliseconds: int, *pushed: str | None, device_id: str | None = None, failing: bool = False
    ) -> None:
        """Each of these chats is pushed once every tick."""
        end = self._desk.now + milliseconds
        while self._desk.now < end:
            await self._desk.push(*(push(chat_id, device_id=device_id) for chat_id in pushed))
            for claim in await self._desk.claim(reasons=[Reason.ACKNOWLEDGE, Reason.RESTORE]):
                self.pinged.append((self._desk.now, claim.chat_id))
                self._flying.append((self._desk.now + PING, claim))
            await self._land(failing)
            self._desk.later(TICK)

    async def _land(self, failing: bool) -> None:
        landed = [claim for lands_at, claim in self._flying if lands_at <= self._desk.now]
        self._flying = [each for each in self._flying if each[1] not in landed]
        for claim in landed:
            await self._desk.settle(claim, Verdict.RETRY if failing else Verdict.ANSWERED)

    def times(self, chat_id: str = "chat-1") -> list[Ms]:
        return [at for at, name in self.pinged if name == chat_id]


async def quiet(desk: Desk, *chat_ids: str, device_id: str | None = None) -> None:
    await desk.register(*(registration(chat_id, device_id=device_id) for chat_id in chat_ids))
    desk.later(1)


@pytest.mark.slow
async def test_a_chat_pushed_twenty_times_a_second_is_pinged_three_times_and_then_once_a_second(
    desk: Desk,
) -> None:
    await quiet(desk, "chat-1")
    flood = Flood(desk)
    begun = desk.now
    await flood.run(10 * SECOND, "chat-1")
    times = flood.times()
    assert times[0] == begun, "the first push never waits"
    assert len([at for at in times if at < begun + SPACING_MS]) == AT_ONCE
    assert len(times) <= AT_ONCE + 10
    for early, late in zip(times[AT_ONCE - 1 :], times[AT_ONCE:], strict=False):
        assert late - early >= SPACING_MS - 2 * (PING + TICK)


@pytest.mark.slow
async def test_what_was_pushed_last_is_acknowledged_within_a_second(desk: Desk) -> None:
    await quiet(desk, "chat-1")
    flood = Flood(desk)
    for _ in range(8):
        await flood.run(1_350, "chat-1")
        last = desk.now - TICK
        await flood.run(SPACING_MS + PING + TICK)
        assert [at for at in flood.times() if last <= at <= last + SPACING_MS + TICK]
        assert (await desk.due())[0] is Reason.KEEPALIVE


@pytest.mark.slow
async def test_a_push_never_waits_when_its_session_was_quiet(desk: Desk) -> None:
    await quiet(desk, "chat-1")
    flood = Flood(desk)
    await flood.run(5 * SECOND, "chat-1")
    for _ in range(5):
        desk.later(AT_ONCE * SPACING_MS + SECOND)
        await flood.run(TICK * 4)
        before, now = len(flood.pinged), desk.now
        await flood.run(TICK, "chat-1")
        assert flood.pinged[before:] == [(now, "chat-1")]
        await flood.run(TICK * 4)


@pytest.mark.slow
async def test_pings_that_fail_keep_the_distance_too(desk: Desk) -> None:
    await quiet(desk, "chat-1")
    flood = Flood(desk)
    await flood.run(10 * SECOND, "chat-1", failing=True)
    assert len(flood.times()) <= AT_ONCE + 10


@pytest.mark.slow
async def test_shutdown_notices_that_come_thick_keep_it_too(desk: Desk) -> None:
    await quiet(desk, "chat-1")
    flood = Flood(desk)
    for _ in range(10 * SECOND // TICK):
        await desk.push(push(leaving=True))
        await flood.run(TICK)
    assert len(flood.times()) <= AT_ONCE + 10


@pytest.mark.slow
async def test_a_flooded_chat_still_waits_for_nobody_when_its_server_is_lost(desk: Desk) -> None:
    await quiet(desk, "chat-1")
    flood = Flood(desk)
    await flood.run(3 * SECOND, "chat-1")
    await flood.run(2 * SPACING_MS)
    await desk.lose()
    assert [claim.reason for claim in await desk.claim()] == [Reason.RESTORE]


@pytest.mark.slow
async def test_the_distance_does_not_outlive_a_clock_that_is_set_back(desk: Desk) -> None:
    await quiet(desk, "chat-1")
    await Flood(desk).run(3 * SECOND, "chat-1")
    await Flood(desk).run(2 * SPACING_MS)
    desk.now -= 60 * MINUTE
    await desk.store.pull_in(now=desk.now, spread_ms=30 * MINUTE)
    flood = Flood(desk)
    await flood.run(SPACING_MS + TICK, "chat-1")
    assert flood.times()


@pytest.mark.slow
async def test_the_distance_outlives_a_restart(tmp_path: Path) -> None:
    stores = [make_store("sqlite:///chats.db", directory=tmp_path) for _ in range(2)]
    await stores[0].open()
    desk = Desk(stores[0])
    await quiet(desk, "chat-1")
    first = Flood(desk)
    await first.run(5 * SECOND, "chat-1")
    await first.run(PING + TICK)
    await stores[0].close()
    await stores[1].open()
    again = Desk(stores[1], now=desk.now)
    second = Flood(again)
    await second.run(5 * SECOND, "chat-1")
    assert len(first.times()) + len(second.times()) <= AT_ONCE + 11
    await stores[1].close()


@pytest.mark.slow
async def test_twenty_flooded_chats_leave_the_others_their_turn(desk: Desk) -> None:
    chats = [f"chat-{number}" for number in range(20)]
    await quiet(desk, *chats)
    flood = Flood(desk)
    await flood.run(5 * SECOND, *chats)
    assert len(flood.pinged) <= 20 * (AT_ONCE + 5)


# -- a device that many chats share --------------------------------------------------------------------


@pytest.mark.slow
async def test_a_push_that_names_only_a_device_of_many_chats_makes_the_most_recently_active_due(
    desk: Desk,
) -> None:
    chats = [f"chat-{number:03}" for number in range(200)]
    for chat_id in chats:
        await quiet(desk, chat_id, device_id="kiosk")
    active = chats[40 : 40 + DEVICE_CHATS]
    for chat_id in active:
        await desk.push(push(chat_id, device_id="kiosk"))
        desk.later(SECOND)
        await Flood(desk).run(PING + TICK)
    desk.later(MINUTE)
    effects = await desk.push(push(None, device_id="kiosk"))
    assert {claim.chat_id for claim in await desk.claim(reasons=[Reason.ACKNOWLEDGE])} == set(active)
    crowded = [each for each in effects if each.effect is Effect.CROWDED]
    assert [(each.chat_id, each.device_id) for each in crowded] == [(None, "kiosk")]
    assert len(effects) == DEVICE_CHATS + 1


@pytest.mark.slow
async def test_twenty_pushes_for_a_device_of_two_hundred_chats_are_few_pings(desk: Desk) -> None:
    await quiet(desk, *(f"chat-{number}" for number in range(200)), device_id="kiosk")
    flood = Flood(desk)
    await flood.run(20 * TICK, None, device_id="kiosk")
    await flood.run(10 * SECOND)
    acknowledged = Counter(chat_id for _, chat_id in flood.pinged)
    assert len(acknowledged) == DEVICE_CHATS
    assert max(acknowledged.values()) <= AT_ONCE + 1


async def test_the_chat_whose_user_is_named_is_the_first_to_be_acknowledged(desk: Desk) -> None:
    chats = [f"chat-{number:03}" for number in range(30)]
    for chat_id in chats:
        await quiet(desk, chat_id, device_id="kiosk")
    await desk.push(push(None, device_id="kiosk", user_id="user-of-chat-003", key="of whom?"))
    claims = await desk.claim(reasons=[Reason.ACKNOWLEDGE])
    assert "chat-003" in {claim.chat_id for claim in claims}
    assert all(claim.tokens.secure_key == f"key-of-{claim.chat_id}" for claim in claims)


@pytest.mark.parametrize("chats", [1, 2, DEVICE_CHATS])
async def test_a_few_chats_of_one_device_are_no_crowd(desk: Desk, chats: int) -> None:
    await quiet(desk, *(f"chat-{number}" for number in range(chats)), device_id="phone")
    effects = await desk.push(push(None, device_id="phone", alias="118"))
    assert Effect.CROWDED not in {each.effect for each in effects}
    assert len(await desk.claim(reasons=[Reason.ACKNOWLEDGE])) == chats


async def test_a_chat_of_a_crowd_that_is_named_is_found(desk: Desk) -> None:
    await quiet(desk, *(f"chat-{number}" for number in range(50)), device_id="kiosk")
    assert (await desk.push(push("chat-7", device_id="kiosk")))[:1] == []
    assert [claim.chat_id for claim in await desk.claim(reasons=[Reason.ACKNOWLEDGE])] == ["chat-7"]
