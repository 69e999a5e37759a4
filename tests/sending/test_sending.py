"""What it takes to send a request, among several processes that do."""

from __future__ import annotations

import asyncio
from typing import cast

from conftest import FakeClock, MakeSettings

from asyncchatd.gms import GmsClient, InFlight, Pacer
from asyncchatd.sending import Sending
from asyncchatd.stores import Store


class Untold:
    """A store that nobody is told of, and a GMS that nobody asks."""

    told_kinds = frozenset[str]()


async def test_what_may_be_in_flight_is_divided_among_the_nodes(make_settings: MakeSettings) -> None:
    clock, in_flight = FakeClock(), InFlight(100, 1.0, FakeClock())
    sending = Sending(
        cast(Store, Untold()),
        cast(GmsClient, Untold()),
        Pacer(200, clock),
        in_flight,
        make_settings(restoration={"max_in_flight": 100}),
        clock,
        asyncio.Event(),
    )
    assert in_flight.ceiling == 100
    sending.share(3)
    assert in_flight.ceiling == 34
    sending.reload(make_settings(restoration={"max_in_flight": 50}))
    assert in_flight.ceiling == 17
    sending.share(1)
    assert in_flight.ceiling == 50
