"""Agents in the chats of the plant: what they do is an event, and a push."""

from __future__ import annotations

import json

import pytest

from asyncchatd.standin.messages import write_event
from asyncchatd.wire.chat_api.calls import Operation

from ..plant_rig import Rig, make_rig


def test_what_an_agent_does_is_seen_and_pushed(rig: Rig) -> None:
    customer, agents = rig.chat(), rig.plant.agents
    assert agents.join(customer.session)
    assert agents.say(customer.session, "hello")
    assert agents.notice(customer.session, None, {"price": 3})
    events = customer.refresh().events
    assert [(event.kind, event.participant_type) for event in events] == [
        ("participantjoined", "Agent"),
        ("message", "Agent"),
        ("customnotice", "Agent"),
    ]
    assert write_event(customer.session.events[-1])["eventAttributes"] == {"price": 3}
    assert len(rig.pushes) == 3
    assert rig.plant.report().acknowledged == 1


def test_an_agents_typing_is_shown_until_he_does_something_else_and_never_kept(rig: Rig) -> None:
    customer, agents = rig.chat(), rig.plant.agents
    began = customer.position
    agents.type(customer.session, started=True)
    assert [event.kind for event in customer.refresh(position=began).events] == ["typingstarted"]
    customer.do(Operation.SEND, ("message", "are you there?"))
    assert [event.kind for event in customer.refresh(position=began).events] == ["typingstarted", "message"]
    agents.type(customer.session, started=False)
    assert [event.kind for event in customer.refresh(position=began).events] == ["message", "typingstopped"]
    agents.say(customer.session, "yes")
    events = customer.refresh(position=began).events
    assert [event.kind for event in events] == ["message", "message"]
    assert (events[1].index or 0) > (events[0].index or 0) + 1, "typing had an index"


@pytest.mark.parametrize("push_typing", [False, True])
def test_whether_typing_is_pushed_is_a_setting(push_typing: bool) -> None:
    rig = make_rig(push_typing=push_typing)
    customer = rig.chat()
    assert rig.plant.agents.type(customer.session, started=True)
    assert len(rig.pushes) == push_typing
    assert rig.plant.report().pushes_unacknowledged == push_typing


@pytest.mark.parametrize("push_end", [False, True])
def test_whether_the_end_of_a_chat_is_pushed_is_a_setting(push_end: bool) -> None:
    rig = make_rig(push_end=push_end, push_forms=[{"place": "beside"}])
    customer = rig.chat()
    assert rig.plant.end_chats([customer.session, customer.session]) == 1
    assert len(rig.pushes) == push_end
    for push in rig.pushes:
        [event] = json.loads(push.body)["message"]["messages"]
        assert (event["type"], event["from"]["participantId"]) == ("ParticipantLeft", 2)
    report = rig.plant.report()
    assert (report.pushes_unacknowledged, report.pushes_ended_unacknowledged) == (0, 0), "it is over"
    rig.wait(60)
    assert len(rig.pushes) == push_end


def test_nobody_acts_where_the_chat_server_is_gone(rig: Rig) -> None:
    customer, agents = rig.chat("chat-1"), rig.plant.agents
    rig.plant.servers.hang("chat-1")
    done = [
        agents.join(customer.session),
        agents.say(customer.session, "hello"),
        agents.type(customer.session, started=True),
        agents.notice(customer.session, "look"),
    ]
    assert not any(done)
    assert len(customer.session.events) == 1
