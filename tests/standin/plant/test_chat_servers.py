"""The Chat Servers of the plant: sessions that are restored, hang, move away, or are lost."""

from __future__ import annotations

import pytest

from asyncchatd.standin import PlantError
from asyncchatd.wire.chat_api.calls import refresh
from asyncchatd.wire.chat_api.replies import read_reply

from ..plant_rig import Rig, make_rig

# --- restoration ----------------------------------------------------------------------------


def test_a_request_makes_another_server_restore_the_session(rig: Rig) -> None:
    customer = rig.chat("chat-1")
    key = customer.tokens.secure_key
    rig.plant.servers.kill("chat-1")
    rig.wait(7)
    assert rig.plant.report().sessions_without_server == 1
    assert customer.refresh().status_code == 0
    assert customer.tokens.alias in ("118", "119")
    assert customer.tokens.secure_key == key
    report = rig.plant.report()
    assert (report.restored, report.sessions_without_server, report.sessions_lost) == (1, 0, 0)
    assert report.without_server_seconds.max == pytest.approx(7)


def test_its_old_alias_is_no_offence_after_a_restoration(rig: Rig) -> None:
    customer = rig.chat("chat-1")
    rig.plant.move([customer.session])
    assert customer.session.alias != customer.tokens.alias
    assert customer.refresh().news.alias == customer.session.alias
    assert rig.plant.report().wrong_alias_requests == 0


def test_a_restarted_server_has_lost_its_sessions_too(rig: Rig) -> None:
    customer = rig.chat("chat-1")
    pid = rig.plant.servers.named("chat-1").process.pid
    rig.plant.servers.restart("chat-1")
    assert rig.plant.servers.named("chat-1").process.pid != pid
    assert rig.plant.report().sessions_without_server == 1
    customer.refresh()
    assert rig.plant.report().restored == 1


def test_a_restart_can_take_time_and_keep_its_pid(rig: Rig) -> None:
    pid = rig.plant.servers.named("chat-1").process.pid
    customer = rig.chat("chat-1")
    rig.plant.servers.restart("chat-1", downtime=3, same_pid=True)
    assert rig.plant.servers.named("chat-1").phase == "down"
    rig.wait(3)
    assert rig.plant.servers.named("chat-1").phase == "up"
    assert rig.plant.servers.named("chat-1").process.pid == pid
    assert rig.plant.servers.named("chat-1").process.sessions == {}
    assert customer.refresh().status_code == 0


def test_a_lone_server_restores_its_own_sessions_after_a_restart(rig: Rig) -> None:
    customer = rig.chat("chat-1")
    rig.plant.servers.kill("chat-2")
    rig.plant.servers.kill("chat-3")
    rig.plant.servers.kill("chat-1")
    assert customer.refresh().status_code == 1
    rig.plant.servers.start("chat-1")
    assert customer.refresh().status_code == 0
    assert customer.tokens.alias == "117"


def test_a_session_nobody_asks_for_is_lost_after_the_window() -> None:
    rig = make_rig(restoration_window=30)
    saved, lost = rig.chat("chat-1"), rig.chat("chat-1")
    rig.plant.servers.kill("chat-1")
    rig.wait(29.5)
    assert saved.refresh().status_code == 0
    rig.wait(1)
    report = rig.plant.report()
    assert (report.lost_by_cause, report.sessions_alive) == ({"restoration_window": 1}, 1)
    reply = lost.refresh()
    assert (reply.status_code, reply.chat_ended) == (2, True)


def test_a_request_too_late_does_not_restore_even_before_the_plant_noticed() -> None:
    rig = make_rig(restoration_window=30)
    customer = rig.chat("chat-1")
    rig.plant.servers.kill("chat-1")
    rig.clock.seconds += 31
    assert customer.refresh().chat_ended
    assert rig.plant.report().lost_by_cause == {"restoration_window": 1}


def test_a_window_made_longer_holds_for_servers_already_gone() -> None:
    rig = make_rig(restoration_window=30)
    customer = rig.chat("chat-1")
    rig.plant.servers.kill("chat-1")
    rig.plant.change({"restoration_window": 60})
    rig.wait(45)
    assert rig.plant.report().sessions_lost == 0
    rig.plant.change({"restoration_window": 40})
    rig.wait(1)
    assert rig.plant.report().sessions_lost == 1
    assert customer.session.ended == "restoration_window"


def test_a_wrong_key_restores_nothing(rig: Rig) -> None:
    customer = rig.chat("chat-1")
    rig.plant.servers.kill("chat-1")
    assert customer.refresh(secure_key="guessed").chat_ended
    report = rig.plant.report()
    assert (report.restored, report.sessions_without_server) == (0, 0)
    rig.wait(700)
    assert rig.plant.report().sessions_lost == 1


def test_position_zero_can_be_told_not_to_restore_or_acknowledge() -> None:
    rig = make_rig(position_zero_counts=False)
    customer = rig.chat("chat-1")
    rig.plant.say(customer.session, "hello")
    assert customer.refresh(position=0).events == ()
    assert rig.plant.report().pushes_unacknowledged == 1
    rig.plant.servers.kill("chat-1")
    assert customer.refresh(position=0).status_code == 1
    assert rig.plant.report().position_zero_requests == 2


def test_a_restored_transcript_may_have_other_indexes() -> None:
    rig = make_rig(renumber=True)
    customer = rig.chat("chat-1")
    for n in range(6):
        rig.plant.say(customer.session, str(n))
    rig.plant.agents.type(customer.session, started=True)
    before = customer.refresh(position=1)
    assert [event.index for event in before.events] == [1, 2, 4, 5, 6, 8, 9, 10]
    rig.plant.servers.kill("chat-1")
    asked = customer.position
    first = customer.refresh()
    assert (first.events, first.next_position) == ((), 8)
    assert asked > 8
    after = customer.refresh(position=1)
    assert [event.index for event in after.events] == [1, 2, 3, 4, 5, 6, 7]
    assert [event.text for event in after.events] == [None, "0", "1", "2", "3", "4", "5"]
    rig.plant.say(customer.session, "6")
    assert [event.text for event in customer.refresh(position=8).events] == ["6"]


def test_indexes_stay_the_same_where_nothing_else_is_said(rig: Rig) -> None:
    customer = rig.chat("chat-1")
    for n in range(6):
        rig.plant.say(customer.session, str(n))
    before = customer.refresh(position=1).events
    rig.plant.servers.kill("chat-1")
    assert customer.refresh(position=1).events == before


# --- hanging and stopping -------------------------------------------------------------------


def test_a_hung_server_answers_nothing_and_keeps_its_sessions(rig: Rig) -> None:
    customer = rig.chat("chat-1")
    made = refresh(customer.session.service, customer.tokens, customer.position)
    rig.plant.servers.hang("chat-1")
    ticket = rig.begin(made)
    assert rig.plant.serve(ticket) is None
    assert read_reply(rig.plant.give_up(ticket).body).status_code == 1
    rig.plant.leave(ticket)
    rig.plant.servers.resume("chat-1")
    assert customer.refresh().status_code == 0
    report = rig.plant.report()
    assert (customer.tokens.alias, report.restored) == ("117", 0)


def test_gms_can_be_told_to_give_a_hung_server_up() -> None:
    rig = make_rig(hang_detected_after=10)
    moved, stayed = rig.chat("chat-1"), rig.chat("chat-1")
    rig.plant.servers.hang("chat-1")
    rig.wait(10)
    assert moved.refresh().status_code == 0
    rig.plant.servers.resume("chat-1")
    stayed.refresh()
    assert moved.tokens.alias != "117"
    assert stayed.tokens.alias == "117"
    assert rig.plant.report().without_server_seconds.max == pytest.approx(10)


def test_a_hung_server_that_is_killed_loses_its_sessions_from_then_on() -> None:
    rig = make_rig(restoration_window=30)
    customer = rig.chat("chat-1")
    rig.plant.servers.hang("chat-1")
    rig.wait(40)
    rig.plant.servers.kill("chat-1")
    rig.wait(29)
    assert customer.refresh().status_code == 0
    assert rig.plant.report().without_server_seconds.max == pytest.approx(69)


def test_sessions_move_away_from_a_stopping_server_without_a_gap(rig: Rig) -> None:
    early, late = rig.chat("chat-1"), rig.chat("chat-1")
    assert rig.plant.servers.stop("chat-1", delay=5) == 2
    assert early.refresh().status_code == 0
    assert early.tokens.alias != "117"
    rig.wait(5)
    assert rig.plant.servers.named("chat-1").phase == "down"
    assert rig.plant.report().sessions_without_server == 1
    rig.wait(2)
    assert late.refresh().status_code == 0
    report = rig.plant.report()
    assert (report.without_server_seconds.p50, report.without_server_seconds.max) == (2, 2)


def test_a_server_started_again_is_not_stopped_by_an_older_plan(rig: Rig) -> None:
    rig.plant.servers.stop("chat-1", delay=5)
    rig.plant.servers.restart("chat-1")
    rig.wait(6)
    assert rig.plant.servers.named("chat-1").phase == "up"


def test_commands_that_make_no_sense_are_refused(rig: Rig) -> None:
    with pytest.raises(PlantError, match="not hung"):
        rig.plant.servers.resume("chat-1")
    with pytest.raises(PlantError, match="chat-1, chat-2, chat-3"):
        rig.plant.servers.kill("chat-9")
    rig.plant.servers.kill("chat-1")
    with pytest.raises(PlantError, match="down"):
        rig.plant.servers.hang("chat-1")
    with pytest.raises(PlantError, match="no Chat Server is up"):
        rig.plant.start_chats(1, servers=["chat-1"])
