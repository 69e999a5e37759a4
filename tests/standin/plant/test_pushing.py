"""The way of a push within GMS: one node for each session, and what becomes of it when that is gone."""

from __future__ import annotations

import pytest

from asyncchatd.wire.chat_api.calls import Operation, call
from asyncchatd.wire.chat_api.replies import read_reply

from ..plant_rig import Customer, Rig, make_rig

WISHES = {
    "GCTI_Chat_PushSubscribe": "true",
    "GCTI_GMS_PushDeviceId": "phone-7",
    "GCTI_GMS_PushDeviceType": "customhttp",
    "GCTI_GMS_NodeGroup": "chat-cluster",
}


def requested(rig: Rig, node: int, **wishes: str) -> Customer:
    """A chat that a client asked a node for."""
    rig.node = node
    fields = [("nickname", "Ann"), *((f"userData[{k}]", v) for k, v in (WISHES | wishes).items())]
    answer = rig.ask(call(Operation.REQUEST_CHAT, "support", None, fields))
    assert answer is not None
    return Customer(rig, rig.plant.chats.named(read_reply(answer.body).news.chat_id or ""))


def test_pushes_go_by_the_node_that_was_asked_for_the_chat(rig: Rig) -> None:
    first, second = requested(rig, 1), requested(rig, 2)
    rig.plant.node_gone(1)
    for customer in (first, second):
        rig.plant.say(customer.session, "hello")
    assert [push.chat_id for push in rig.pushes] == [second.session.chat_id]
    report = rig.plant.report()
    assert (report.pushes_sent, report.pushes_swallowed, report.pushes_unacknowledged) == (1, 1, 2)


def test_without_resending_a_lost_push_is_never_repeated_and_the_next_goes_by_another_node(rig: Rig) -> None:
    customer = requested(rig, 1)
    rig.plant.node_gone(1)
    rig.plant.say(customer.session, "lost")
    rig.wait(300)
    assert rig.pushes == []
    rig.plant.say(customer.session, "told")
    assert (len(rig.pushes), customer.session.node) == (1, 2)


def test_what_is_resent_finds_another_node(rig: Rig) -> None:
    customer = requested(rig, 1, GCTI_GMS_PushResend="true")
    rig.plant.node_gone(1)
    rig.plant.say(customer.session, "hello")
    rig.wait(15)
    assert len(rig.pushes) == 1


def test_pushes_can_stop_until_the_client_asks_for_something() -> None:
    rig = make_rig(rebind="request")
    customer = requested(rig, 1, GCTI_GMS_PushResend="true")
    rig.plant.node_gone(1)
    for _ in range(3):
        rig.plant.say(customer.session, "hello")
        rig.wait(40)
    assert rig.pushes == []
    assert rig.plant.report().pushes_swallowed > 3
    rig.node = 2
    assert len(customer.refresh().events) == 3
    rig.plant.say(customer.session, "hello")
    assert len(rig.pushes) == 1


def test_a_node_that_is_there_again_pushes_again() -> None:
    rig = make_rig(rebind="request")
    customer = requested(rig, 1)
    rig.plant.node_gone(1)
    rig.plant.say(customer.session, "lost")
    rig.plant.node_gone(1, gone=False)
    rig.plant.say(customer.session, "told")
    assert (len(rig.pushes), customer.session.node) == (1, 1)


def test_a_request_at_another_node_changes_nothing_while_the_first_is_there(rig: Rig) -> None:
    customer = requested(rig, 1)
    rig.node = 2
    customer.refresh()
    assert customer.session.node == 1


def test_a_restoration_binds_the_pushes_to_the_node_that_was_asked(rig: Rig) -> None:
    customer = requested(rig, 1)
    rig.plant.servers.kill(customer.session.process.server.name)
    rig.node = 2
    customer.refresh()
    assert customer.session.node == 2


def test_with_every_node_gone_the_binding_stays(rig: Rig) -> None:
    customer = requested(rig, 2)
    rig.plant.node_gone(1)
    rig.plant.node_gone(2)
    rig.plant.say(customer.session, "lost")
    assert customer.session.node == 2


def test_the_pushes_of_one_session_or_of_all_can_be_swallowed(rig: Rig) -> None:
    one, other = rig.chat(), rig.chat()
    assert rig.plant.swallow([one.session]) == 1
    for customer in (one, other):
        rig.plant.say(customer.session, "hello")
    assert [push.chat_id for push in rig.pushes] == [other.session.chat_id]
    rig.plant.swallow([one.session], False)
    rig.plant.change({"swallow_rate": 1})
    for customer in (one, other):
        rig.plant.say(customer.session, "hello")
    rig.plant.change({"swallow_rate": 0})
    rig.plant.say(one.session, "hello")
    assert len(rig.pushes) == 2
    assert rig.plant.report().pushes_swallowed == 3


@pytest.mark.parametrize("arrives", [True, False])
def test_a_key_that_only_a_swallowed_push_told_is_not_held_against_the_client(
    rig: Rig, arrives: bool
) -> None:
    customer = rig.chat()
    old = customer.tokens
    rig.plant.swallow([customer.session], not arrives)
    rig.plant.rotate([customer.session], announce=True)
    assert customer.tokens == old
    assert customer.refresh().status_code == (2 if arrives else 0)
    assert rig.plant.report().forgiven_key_requests == (not arrives)


def test_a_chat_that_was_not_requested_has_a_node_too(rig: Rig) -> None:
    nodes = {session.node for session in rig.plant.start_chats(6)}
    assert nodes == {1, 2}
