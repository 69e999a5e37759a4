"""The capacity of the plant: what a request costs, and when one is turned away."""

from __future__ import annotations

import pytest

from asyncchatd.wire.chat_api.calls import refresh

from ..plant_rig import make_rig


def test_requests_beyond_capacity_wait_longer_and_longer_and_are_then_turned_away() -> None:
    rig = make_rig(gms_capacity=10, gms_queue=5, latency=0)
    customers = [rig.chat() for _ in range(7)]
    tickets = [rig.begin(refresh(c.session.service, c.tokens, c.position)) for c in customers]
    assert [round(ticket.delay, 3) for ticket in tickets[:5]] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [ticket.refused is None for ticket in tickets] == [True] * 5 + [False] * 2
    assert tickets[5].refused is not None
    assert tickets[5].refused.status == 503
    assert rig.plant.report().requests_turned_away == 2


def test_a_restoration_costs_more_than_a_refresh() -> None:
    rig = make_rig(gms_capacity=10, restore_cost=5, latency=0)
    customer = rig.chat("chat-1")
    rig.plant.servers.kill("chat-1")
    ticket = rig.begin(refresh(customer.session.service, customer.tokens, customer.position))
    assert ticket.delay == pytest.approx(0.5)


def test_a_request_whose_client_gave_up_costs_as_much() -> None:
    rig = make_rig(gms_capacity=10, latency=0)
    customer, other = rig.chat(), rig.chat()
    abandoned = rig.begin(refresh(customer.session.service, customer.tokens, customer.position))
    abandoned.wanted = lambda: False
    assert rig.begin(refresh(other.session.service, other.tokens, other.position)).delay == pytest.approx(0.2)
    assert rig.plant.serve(abandoned) is not None
    assert rig.plant.report().requests_abandoned == 1


def test_the_queue_empties_as_requests_are_served() -> None:
    rig = make_rig(gms_capacity=10, gms_queue=1, latency=0)
    customer = rig.chat()
    for _ in range(5):
        rig.clock.seconds += 1
        assert customer.refresh().status_code == 0
    assert rig.plant.report().requests_turned_away == 0
