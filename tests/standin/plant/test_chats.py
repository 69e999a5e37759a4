"""The chats of the plant: tokens that rotate, clients that are silent, and whose turn it is."""

from __future__ import annotations

import pytest

from ..plant_rig import Rig, make_rig

# --- rotation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rotate", "refreshed", "restored"),
    [
        ("never", False, False),
        ("restore", False, True),
        ("refresh", True, False),
        ("always", True, True),
    ],
)
def test_tokens_rotate_when_the_settings_say(rotate: str, refreshed: bool, restored: bool) -> None:
    rig = make_rig(rotate=rotate, rotate_every=2)
    customer = rig.chat("chat-1")
    first = customer.tokens
    customer.refresh()
    assert customer.tokens == first
    customer.refresh()
    second = customer.tokens
    assert (second.secure_key != first.secure_key, second.user_id != first.user_id) == (refreshed, refreshed)
    rig.plant.servers.kill("chat-1")
    customer.refresh()
    assert (customer.tokens.secure_key != second.secure_key) == restored
    assert customer.refresh().status_code == 0


def test_restoration_and_refresh_together_rotate_once() -> None:
    rig = make_rig(rotate="always", rotate_every=1, previous_key_grace=5)
    customer = rig.chat("chat-1")
    first = customer.tokens.secure_key
    rig.plant.servers.kill("chat-1")
    customer.refresh()
    assert customer.session.previous is not None
    assert customer.session.previous.secure_key == first


def test_a_rotation_on_command_comes_with_the_next_reply(rig: Rig) -> None:
    customer = rig.chat()
    first = customer.tokens
    assert rig.plant.rotate([customer.session]) == 1
    assert customer.refresh().status_code == 0
    assert customer.tokens.secure_key != first.secure_key
    assert rig.plant.report().wrong_key_requests == 0


# --- silence --------------------------------------------------------------------------------


def test_a_silent_client_is_removed_after_its_time_out() -> None:
    rig = make_rig(flex_push_timeout=60, flex_disconnect_timeout=20)
    talking, silent = rig.chat(), rig.chat()
    without_push = rig.plant.start_chats(1, subscribe=False)[0]
    rig.wait(30)
    assert without_push.ended == "silence"
    talking.refresh()
    rig.wait(40)
    assert silent.refresh().chat_ended
    assert talking.refresh().status_code == 0
    assert rig.plant.report().lost_by_cause == {"silence": 2}
    assert silent.session.events[-1].quit_reason_code == 3


def test_a_dead_server_counts_no_silence_and_a_restoration_starts_it_anew() -> None:
    rig = make_rig(flex_push_timeout=60)
    customer = rig.chat("chat-1")
    rig.plant.servers.kill("chat-1")
    rig.wait(100)
    assert rig.plant.report().sessions_lost == 0
    customer.refresh()
    rig.wait(59)
    assert customer.session.ended is None
    rig.wait(2)
    assert customer.session.ended == "silence"


# --- turns ----------------------------------------------------------------------------------


def test_sessions_take_turns(rig: Rig) -> None:
    rig.plant.start_chats(5)
    first = [session.chat_id for session in rig.plant.chats.some(3)]
    rig.plant.end_chats([rig.plant.chats.named(first[0])])
    second = [session.chat_id for session in rig.plant.chats.some(9)]
    assert len(second) == 4
    assert set(second) == {s.chat_id for s in rig.plant.sessions.values() if s.ended is None}
    assert second[:2] == [chat_id for chat_id in rig.plant.sessions if chat_id not in first]
