"""Tickets: each opens one stream of one chat, within half a minute."""

from __future__ import annotations

import pytest
from conftest import FakeClock

from asyncchatd.gateway.keys import Keys
from asyncchatd.gateway.tickets import TICKET_SECONDS, Tickets

OLD, NEW, FOREIGN = (bytes([number]) * 32 for number in range(3))
CHAT = ("support", "chat-1")


@pytest.fixture
def tickets(clock: FakeClock) -> Tickets:
    return Tickets(clock)


def test_a_ticket_is_good_once(tickets: Tickets) -> None:
    keys = Keys([NEW])
    first, second = (tickets.give(keys, *CHAT) for _ in range(2))
    assert tickets.take(keys, *CHAT, first)
    assert not tickets.take(keys, *CHAT, first)
    assert tickets.take(keys, *CHAT, second)


async def test_a_ticket_runs_out_after_half_a_minute_and_is_good_once_up_to_then(
    tickets: Tickets, clock: FakeClock
) -> None:
    keys = Keys([NEW])
    in_time, late = (tickets.give(keys, *CHAT) for _ in range(2))
    await clock.advance(TICKET_SECONDS)
    assert tickets.take(keys, *CHAT, in_time)
    assert not tickets.take(keys, *CHAT, in_time)
    await clock.advance(0.001)
    assert not tickets.take(keys, *CHAT, late)
    assert not tickets.take(keys, *CHAT, in_time)


async def test_none_that_was_given_before_others_might_have_one_is_good(
    tickets: Tickets, clock: FakeClock
) -> None:
    keys = Keys([NEW])
    before = tickets.give(keys, *CHAT)
    await clock.advance(1)
    at_once = tickets.give(keys, *CHAT)
    tickets.forget()
    await clock.advance(0.001)
    after = tickets.give(keys, *CHAT)
    assert [tickets.take(keys, *CHAT, each) for each in (before, at_once, after)] == [False, False, True]


def test_a_ticket_is_of_its_chat_and_service(tickets: Tickets) -> None:
    keys = Keys([NEW])
    given = tickets.give(keys, *CHAT)
    assert not tickets.take(keys, "sales", "chat-1", given)
    assert not tickets.take(keys, "support", "chat-2", given)
    assert tickets.take(keys, *CHAT, given)


def test_a_ticket_outlives_a_rotation_of_the_keys_and_a_foreign_one_is_none(tickets: Tickets) -> None:
    given = tickets.give(Keys([OLD]), *CHAT)
    assert not tickets.take(Keys([FOREIGN]), *CHAT, given)
    assert tickets.take(Keys([NEW, OLD]), *CHAT, given)


def test_a_ticket_from_the_future_is_none(tickets: Tickets, clock: FakeClock) -> None:
    """The signature says how long it would be good: nobody else can make that longer."""
    keys = Keys([NEW])
    until = str(round(clock.now() + TICKET_SECONDS * 1000) + 1)
    assert not tickets.take(keys, *CHAT, f"{until}.00.{keys.signature(until, '00', *CHAT)}")


@pytest.mark.parametrize("told", ["", "1.2.3", "9999999999999.aa.bb", "x.y.z", "\u0661.a.b", "\ud800.a.b"])
def test_what_is_no_ticket_opens_nothing(tickets: Tickets, told: str) -> None:
    assert not tickets.take(Keys([NEW]), *CHAT, told)


async def test_used_tickets_are_forgotten_once_they_ran_out(tickets: Tickets, clock: FakeClock) -> None:
    keys = Keys([NEW])
    for _ in range(100):
        assert tickets.take(keys, *CHAT, tickets.give(keys, *CHAT))
        await clock.advance(1)
    assert len(tickets._used) <= TICKET_SECONDS + 1
