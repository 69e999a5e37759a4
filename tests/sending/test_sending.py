"""What it takes to send a request, among several processes that do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest
from conftest import Events, FakeClock, MakeSettings, case, soon

from asyncchatd.config import Settings
from asyncchatd.gms import GmsClient, InFlight, Landing, Pacer
from asyncchatd.log import Event
from asyncchatd.model import Claim, Ms
from asyncchatd.sending import Sending
from asyncchatd.stores import Store


class Untold:
    """A store that nobody is told of, and a GMS that nobody asks."""

    told_kinds = frozenset[str]()

    def slots(self) -> None:
        return None

    async def renew(self, claims: Sequence[Claim], *, until: Ms) -> None:
        pass


def sending_of(in_flight: InFlight, clock: FakeClock, settings: Settings) -> Sending:
    return Sending(
        *(cast(Store, Untold()), cast(GmsClient, Untold()), Pacer(200, clock), in_flight, settings, clock),
        asyncio.Event(),
    )


async def test_a_call_for_which_there_is_no_turn_is_not_sent_once_it_is_over(
    make_settings: MakeSettings,
) -> None:
    """The database is so far that each turn is void when it comes."""
    clock = FakeClock(jumping=True)

    async def turns(count: int, *, rate: float) -> Sequence[float]:
        moment = clock.monotonic()
        await clock.sleep(0.4)
        return [moment + place / rate for place in range(count)]

    sending = sending_of(InFlight(100, 1.0, clock), clock, make_settings())
    sending.pacer = Pacer(200, clock, turns)
    over = clock.monotonic() + 2.5
    assert not await soon(sending.turn_for_call(lambda: clock.monotonic() >= over))
    assert over <= clock.monotonic() < over + 1.0


async def test_what_may_be_in_flight_is_divided_among_the_nodes(make_settings: MakeSettings) -> None:
    clock, in_flight = FakeClock(), InFlight(100, 1.0, FakeClock())
    sending = sending_of(in_flight, clock, make_settings(restoration={"max_in_flight": 100}))
    assert in_flight.ceiling == 100
    sending.share(3)
    assert in_flight.ceiling == 34
    sending.reload(make_settings(restoration={"max_in_flight": 50}))
    assert in_flight.ceiling == 17
    sending.share(1)
    assert in_flight.ceiling == 50


@pytest.mark.parametrize("stands_still", [False, True])
async def test_gms_is_not_called_slow_for_answers_that_waited_while_this_process_stood_still(
    make_settings: MakeSettings, events: Events, stands_still: bool
) -> None:
    """Whether its leases are renewed before the answers are read, or after them."""
    for is_renewed_first in (False, True):
        with case(is_renewed_first):
            clock = FakeClock()
            in_flight = InFlight(100, 1.0, clock)
            sending = sending_of(in_flight, clock, make_settings(restoration={"lease": "9s"}))
            left = [sending.flight.left("117") for _ in range(in_flight.limit)]
            clock.stall(120 if stands_still else 2)
            if is_renewed_first:
                await sending.settling.renew_late()
            for each in left:
                sending.flight.landed(each, Landing.ANSWERED)
            assert len(events.of(Event.GMS_SLOW)) == (not stands_still)
            assert (in_flight.count, sending.flight.has_room()) == (0, True)
            events.forget()


@pytest.mark.parametrize("comes_round_first", [False, True])
async def test_a_standstill_too_short_for_the_leases_is_not_blamed_on_gms_either(
    make_settings: MakeSettings, events: Events, comes_round_first: bool
) -> None:
    """Whether the answers are read before the event loop is known to have come round, or after it."""
    clock = FakeClock()
    in_flight = InFlight(100, 1.0, clock)
    sending = sending_of(in_flight, clock, make_settings(restoration={"lease": "15s"}))
    sending.settling.come_round()
    left = [sending.flight.left("117") for _ in range(in_flight.limit)]
    clock.stall(2)
    if comes_round_first:
        sending.settling.come_round()
    for each in left:
        sending.flight.landed(each, Landing.ANSWERED)
    assert not events.of(Event.GMS_SLOW)
    sending.settling.come_round()
    clock.stall(0.01)
    left = [sending.flight.left("117") for _ in range(in_flight.limit)]
    for _ in range(8):
        clock.stall(0.25)
        sending.settling.come_round()
    for each in left:
        sending.flight.landed(each, Landing.ANSWERED)
    assert len(events.of(Event.GMS_SLOW)) == 1
