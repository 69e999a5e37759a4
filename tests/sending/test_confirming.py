"""The look right before sending: what others were told, and what this process was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from conftest import FakeClock

from asyncchatd.model.data import Claim, Ms, Reason, Tokens
from asyncchatd.sending.confirming import GOOD_FOR_SECONDS, LATE_SECONDS, Confirming
from asyncchatd.sending.settling import Settling
from asyncchatd.stores.sqlite import MemoryStore

LEASE_MS = 15_000
RATE = 100.0
"""At which two can be sent while a look counts."""

RENEWED = ["the leases"]


class SharedStore(MemoryStore):
    """A store whose other users were told tokens too."""

    def __init__(self) -> None:
        super().__init__("memory:", directory=Path())
        self.asked: list[list[str]] = []
        self.told_to_others: set[str] = set()
        self.told_to_us: set[str] = set()
        self.takes: Callable[[], None] = lambda: None
        """What passes until it answers."""

    async def confirm(self, claims: Sequence[Claim]) -> frozenset[tuple[int, str]]:
        self.asked.append([claim.chat_id for claim in claims])
        self.takes()
        return frozenset(
            (claim.claim_id, claim.chat_id) for claim in claims if claim.chat_id in self.told_to_others
        )

    async def renew(self, claims: Sequence[Claim], *, until: Ms) -> None:
        self.asked.append(RENEWED)

    def superseded(self, claim: Claim) -> bool:
        return claim.chat_id in self.told_to_us


def batch(*chat_ids: str) -> list[Claim]:
    return [
        Claim(
            chat_id,
            "support",
            Tokens(chat_id, "user", "key", "117"),
            None,
            Reason.KEEPALIVE,
            0.0,
            0,
            None,
            7,
            0,
        )
        for chat_id in chat_ids
    ]


def looking(store: SharedStore, clock: FakeClock, claims: Sequence[Claim]) -> Confirming:
    """Looks of a process that has just renewed its leases."""
    return Confirming(store, Settling(store, clock, asyncio.Event(), LEASE_MS), claims, RATE, clock)


async def test_what_others_were_told_is_asked_for_the_next_moments_together() -> None:
    store, clock = SharedStore(), FakeClock()
    store.told_to_others = {"chat-2"}
    looks = looking(store, clock, batch("chat-1", "chat-2", "chat-3"))
    assert [await looks.may_send(place) for place in range(3)] == [True, False, True]
    assert store.asked == [["chat-1", "chat-2"], ["chat-3"]]


async def test_a_look_counts_for_a_moment_only() -> None:
    store, clock = SharedStore(), FakeClock()
    looks = looking(store, clock, batch("chat-1", "chat-2"))
    assert await looks.may_send(0)
    store.told_to_others = {"chat-2"}
    await clock.advance(2 * GOOD_FOR_SECONDS)
    assert not await looks.may_send(1)


async def test_what_this_process_was_told_counts_at_once() -> None:
    store, clock = SharedStore(), FakeClock()
    looks = looking(store, clock, batch("chat-1", "chat-2"))
    assert await looks.may_send(0)
    store.told_to_us = {"chat-2"}
    assert not await looks.may_send(1)
    assert len(store.asked) == 1


async def test_an_answer_that_was_long_on_its_way_counts_for_nobody() -> None:
    store, clock = SharedStore(), FakeClock()
    store.takes = lambda: clock.stall(took)
    looks = looking(store, clock, batch("chat-1", "chat-2"))
    took = LATE_SECONDS + 0.01
    assert not await looks.may_send(0)
    took = LATE_SECONDS
    assert await looks.may_send(1)
    assert store.asked == [["chat-1", "chat-2"], ["chat-2"]]


async def test_after_a_standstill_the_leases_are_renewed_before_it_is_looked() -> None:
    """Another node may take in the next moment what this one holds."""
    store, clock = SharedStore(), FakeClock()
    looks = looking(store, clock, batch("chat-1", "chat-2"))
    assert await looks.may_send(0)
    clock.stall(60.0)
    assert await looks.may_send(1)
    assert store.asked == [["chat-1", "chat-2"], RENEWED, ["chat-2"]]


async def test_a_look_during_which_the_process_stood_still_is_taken_again_behind_a_renewal() -> None:
    store, clock = SharedStore(), FakeClock()
    looks = looking(store, clock, batch("chat-1", "chat-2"))
    stalls = [60.0, 0.0]
    store.takes = lambda: clock.stall(stalls.pop(0))
    assert await looks.may_send(0)
    assert store.asked == [["chat-1", "chat-2"], RENEWED, ["chat-1", "chat-2"]]


async def test_a_claim_is_given_back_for_which_no_look_comes_in_time() -> None:
    store, clock = SharedStore(), FakeClock()
    store.takes = lambda: clock.stall(60.0)
    assert not await looking(store, clock, batch("chat-1")).may_send(0)
    assert store.asked == [["chat-1"], RENEWED, ["chat-1"]]
