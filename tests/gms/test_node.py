"""A GMS node as the client sees it fare: it rests and comes back."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading

import pytest
from conftest import Events, FakeClock, MakeSettings, ScriptedNode
from prometheus_client import Counter, Gauge

from asyncchatd.gms.node import STRIKES
from asyncchatd.gms.trouble import Trouble
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.wire.chat_api.outcome import Alive, NodeTrouble

from .client_rig import GOOD, client, ping, reply_of, standing

pytestmark = pytest.mark.usefixtures("events")


async def test_a_node_that_cannot_be_reached_rests_and_is_not_asked(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode, events: Events
) -> None:
    await a.stop()
    b.answer(GOOD, times=None)
    jumping = FakeClock(jumping=True)
    async with client(make_settings, a.base, b.base, clock=jumping, rest="1s") as gms:
        assert (await ping(gms)).node == b.base
        await a.start()
        for _ in range(4):
            assert (await ping(gms)).node == b.base
    assert a.connections == 0
    assert len(b.requests) == 5
    resting = events.one(Event.GMS_NODE_RESTING)
    assert (resting["node"], resting["cause"]) == (a.base, Trouble.CONNECT)
    assert not events.of(Event.GMS_UNAVAILABLE)


async def test_three_strikes_in_a_row_make_a_node_rest(make_settings: MakeSettings, a: ScriptedNode) -> None:
    """One or two HTTP 500 may be about a session or its Chat Server."""
    a.answer(status=500, times=STRIKES)
    async with client(make_settings, a.base) as gms:
        stood = []
        for alias in range(STRIKES):
            await ping(gms, alias=str(alias))
            stood += standing(gms)
    assert stood == [True] * (STRIKES - 1) + [False]


@pytest.mark.parametrize(
    ("status", "rests"), [(500, False), (504, False), (408, False), (502, True), (503, True), (403, True)]
)
async def test_what_may_be_one_chat_servers_trouble_is_not_held_against_the_node(
    status: int, rests: bool, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """A hanging Chat Server makes GMS hang, or fail, for its sessions alone."""
    a.answer(status=status, times=None)
    async with client(make_settings, a.base) as gms:
        for number in range(STRIKES):
            await ping(gms, f"chat-{number}", alias="117")
        assert standing(gms) == [not rests]
        await ping(gms, alias="118")
        assert standing(gms) == [False]


@pytest.mark.parametrize("status", [403, 500])
async def test_the_troubles_before_a_good_answer_no_longer_count(
    status: int, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """Else those of one session, or of one Chat Server, would be taken for those of several."""
    a.answer(status=status)
    a.answer(GOOD)
    a.answer(status=status, times=None)
    async with client(make_settings, a.base) as gms:
        await ping(gms, "chat-1", alias="117")
        await ping(gms, "chat-1", alias="117")
        for _ in range(3 * STRIKES):
            await ping(gms, "chat-2", alias="118")
        assert standing(gms) == [True]


@pytest.mark.parametrize("status", [403, 404, 500, 502, 503])
async def test_one_sessions_trouble_never_rests_a_node(
    status: int, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    a.answer(status=status, times=None)
    async with client(make_settings, a.base) as gms:
        for _ in range(3 * STRIKES):
            await ping(gms)
        assert standing(gms) == [True]
        await ping(gms, "chat-2", alias="118")
        assert standing(gms) == [False]


async def test_a_node_in_doubt_is_asked_after_the_others(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    a.answer(status=500)
    a.answer(GOOD, times=None)
    b.answer(GOOD, times=None)
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, b.base, clock=clock, rest="1s") as gms:
        asked = [(await ping(gms)).node for _ in range(5)]
        assert asked == [a.base, *[b.base] * 4]
        await clock.sleep(1.1)
        assert a.base in [(await ping(gms)).node for _ in range(2)]


@pytest.mark.parametrize("answer", [GOOD, reply_of(1), reply_of(2), reply_of(2, chat_ended=True)])
async def test_whatever_a_node_says_of_a_session_clears_its_strikes(
    answer: bytes, make_settings: MakeSettings, a: ScriptedNode
) -> None:
    for _ in range(3):
        a.answer(status=500, times=STRIKES - 1)
        a.answer(answer)
    async with client(make_settings, a.base) as gms:
        for alias in range(3 * STRIKES):
            await ping(gms, alias=str(alias))
        assert standing(gms) == [True]


async def test_rest_grows_with_every_failure_up_to_its_bound(
    make_settings: MakeSettings, a: ScriptedNode, events: Events
) -> None:
    await a.stop()
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, clock=clock, rest="1s", rest_max="6s") as gms:
        for _ in range(6):
            await ping(gms)
            await clock.sleep(gms.retry_in())
    rests = [rest for line in events.of(Event.GMS_NODE_RESTING) if isinstance(rest := line["rest_ms"], int)]
    for rest, longest in zip(rests, [1000, 2000, 4000, 6000, 6000, 6000], strict=True):
        assert 0.8 * longest <= rest <= longest


async def test_a_node_rests_as_long_as_it_asks_for(make_settings: MakeSettings, a: ScriptedNode) -> None:
    a.answer(status=503, headers={"Retry-After": "20"})
    async with client(make_settings, a.base, rest="1s", rest_max="30s") as gms:
        await ping(gms)
        assert gms.retry_in() == pytest.approx(20)


async def test_a_node_cannot_ask_for_more_than_sessions_can_wait(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    a.answer(status=503, headers={"Retry-After": "3000"})
    async with client(make_settings, a.base, rest="1s", rest_max="30s") as gms:
        await ping(gms)
        assert gms.retry_in() == pytest.approx(30)


async def test_what_this_host_lacks_for_a_connection_is_held_against_no_node(
    make_settings: MakeSettings, a: ScriptedNode, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    def fail(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    a.answer(GOOD)
    async with client(make_settings, a.base) as gms:
        monkeypatch.setattr(socket, "socket", fail)
        outcomes = [(await ping(gms)).outcome for _ in range(5)]
        monkeypatch.undo()
        assert outcomes == [NodeTrouble(Trouble.OWN_LACK, None, "too many open files")] * 5
        assert gms.available
        assert gms.slots() is None
        assert isinstance((await ping(gms)).outcome, Alive)
    assert not events.of(Event.GMS_NODE_RESTING)


async def test_a_name_server_that_does_not_answer_is_named(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(10) and [])
    try:
        async with client(make_settings, "http://gms.example:1", connect_timeout="50ms") as gms:
            outcome = (await ping(gms)).outcome
    finally:
        over.set()
    assert isinstance(outcome, NodeTrouble)
    assert outcome.cause == Trouble.CONNECT
    assert outcome.detail == "its name cannot be resolved: no name server answers within 0.05 s"


async def test_while_all_nodes_rest_nothing_is_sent(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode, events: Events
) -> None:
    clock = FakeClock(jumping=True)
    for node in (a, b):
        await node.stop()
    async with client(make_settings, a.base, b.base, clock=clock, rest="1s") as gms:
        assert gms.slots() is None
        await ping(gms)
        assert gms.slots() == 0
        assert 0.8 <= gms.retry_in() <= 1
        assert not gms.available
        answer = await ping(gms)
        assert answer.outcome == NodeTrouble(Trouble.NO_NODE)
        assert answer.node is None
        assert events.one(Event.GMS_UNAVAILABLE)["cause"] == Trouble.CONNECT

        for node in (a, b):
            await node.start()
            node.answer(GOOD)
        await clock.sleep(1)
        assert gms.slots() == 2
        assert gms.retry_in() == 0
        assert isinstance((await ping(gms)).outcome, Alive)
        assert gms.slots() is None
        assert gms.available
    assert events.one(Event.GMS_AVAILABLE)["outage_ms"] == pytest.approx(1000, abs=5)
    assert len(events.of(Event.GMS_NODE_BACK)) == 1


async def test_a_node_back_from_its_rest_is_tried_with_a_single_ping(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """A hundred pings to a node that is still starting would only make it start slower."""
    go_on = asyncio.Event()
    a.answer(status=503, headers={"Retry-After": "1"})
    a.answer(GOOD, when=go_on)
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, clock=clock) as gms:
        await ping(gms)
        await clock.sleep(1)
        trial = asyncio.create_task(ping(gms))
        await a.asked(2)
        assert gms.slots() == 1  # and it is taken
        assert (await ping(gms)).outcome == NodeTrouble(Trouble.NO_NODE)
        go_on.set()
        assert isinstance((await trial).outcome, Alive)
        assert gms.slots() is None
        assert len(a.requests) == 2


async def test_while_a_node_is_being_tried_there_is_something_to_wait_for(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """`retry_in` 0 would keep the worker spinning for as long as the trial takes."""
    go_on = asyncio.Event()
    a.answer(status=503, headers={"Retry-After": "1"})
    a.answer(GOOD, when=go_on)
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, clock=clock) as gms:
        await ping(gms)
        await clock.sleep(1)
        trial = asyncio.create_task(ping(gms))
        await a.asked(2)
        assert gms.retry_in() >= 0.1
        go_on.set()
        await trial


async def test_a_node_that_answers_what_was_sent_before_its_rest_is_asked_again_at_once(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    answers = asyncio.Event()
    a.answer(GOOD, when=answers)
    a.answer(status=503, headers={"Retry-After": "20"})
    a.answer(GOOD)
    async with client(make_settings, a.base, rest_max="30s") as gms:
        early = asyncio.create_task(ping(gms))
        await a.asked(1)
        await ping(gms, "chat-2")
        assert (await ping(gms)).outcome == NodeTrouble(Trouble.NO_NODE)
        answers.set()
        assert isinstance((await early).outcome, Alive)
        assert isinstance((await ping(gms)).outcome, Alive)


async def test_a_failed_trial_makes_the_node_rest_longer(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    await a.stop()
    a.answer(status=500)
    clock = FakeClock(jumping=True)
    async with client(make_settings, a.base, clock=clock, rest="1s") as gms:
        await ping(gms)
        await clock.sleep(1)
        await ping(gms)
        assert gms.nodes[0].failures == 2
        assert gms.retry_in() >= 1.6


async def test_pings_sent_before_a_node_failed_do_not_make_it_rest_longer(
    make_settings: MakeSettings, a: ScriptedNode
) -> None:
    """Fifty requests that fail together are one failure."""
    fail = asyncio.Event()
    a.answer(status=503, headers={"Retry-After": "1"}, times=20, when=fail)
    async with client(make_settings, a.base) as gms:
        pings = [asyncio.create_task(ping(gms, f"chat-{number}")) for number in range(20)]
        await a.asked(20)
        fail.set()
        await asyncio.gather(*pings)
        assert gms.nodes[0].failures == 1


# -- metrics -------------------------------------------------------------------------------------------


def shown(metric: Counter | Gauge, **labels: str) -> dict[str, float]:
    """The series of a metric with these labels, by the values of the others."""
    return {
        "".join(value for key, value in each.labels.items() if key not in labels): each.value
        for family in metric.collect()
        for each in family.samples
        if not each.name.endswith("_created") and labels.items() <= each.labels.items()
    }


async def test_each_request_is_counted_by_its_node_and_by_how_it_came_back(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    before = [
        shown(metrics.REFRESHES, node=node.base) for node in (a, b)
    ]  # an earlier test may have had the port

    def counted() -> list[dict[str, float]]:
        now = [shown(metrics.REFRESHES, node=node.base) for node in (a, b)]
        return [
            {how: more for how, count in new.items() if (more := count - old.get(how, 0))}
            for old, new in zip(before, now, strict=True)
        ]

    a.answer(GOOD, times=3)
    a.answer(status=503)
    b.answer(GOOD)
    async with client(make_settings, a.base) as gms:
        for _ in range(4):
            await ping(gms)
        gms.reload(make_settings(gms={"nodes": [b.base]}))
        await ping(gms)
    assert counted() == [{"success": 3, "unavailable": 1}, {"success": 1}]


async def test_each_node_is_shown_as_it_stands_and_no_longer_when_it_is_none_of_ours(
    make_settings: MakeSettings, a: ScriptedNode, b: ScriptedNode
) -> None:
    def stands() -> list[float | None]:
        return [shown(metrics.NODE_UP).get(node.base) for node in (a, b)]

    await a.stop()
    b.answer(GOOD, times=None)
    async with client(make_settings, a.base, b.base) as gms:
        assert stands() == [1, 1]
        await ping(gms)
        assert stands() == [0, 1]
        gms.reload(make_settings(gms={"nodes": [b.base]}))
        assert stands() == [None, 1]
