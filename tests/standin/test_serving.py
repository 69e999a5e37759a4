"""The plant's rules under a fake clock: what a client may do, and what it costs to break a rule."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from plant_rig import Rig, make_rig

from asyncchatd.model.data import Tokens
from asyncchatd.model.values import replace
from asyncchatd.standin import PlantError, PlantSettings, SettingError
from asyncchatd.standin.measure import SlidingPeak, spread
from asyncchatd.wire.chat_api.calls import Call, Operation, call, refresh
from asyncchatd.wire.chat_api.outcome import Alive, Ended, classify
from asyncchatd.wire.chat_api.replies import read_reply


@pytest.fixture
def rig() -> Rig:
    return make_rig()


# --- a well-behaved client ------------------------------------------------------------------


def test_a_refresh_is_answered_with_tokens_and_the_next_position(rig: Rig) -> None:
    customer = rig.chat()
    reply = customer.refresh()
    assert reply.status_code == 0
    assert reply.news.complete()
    assert reply.next_position == customer.session.next_index
    assert reply.events == ()


def test_a_refresh_shows_what_was_said_since_its_position(rig: Rig) -> None:
    customer = rig.chat()
    rig.plant.say(customer.session, "one")
    rig.plant.say(customer.session, "two")
    assert [event.text for event in customer.refresh().events] == ["one", "two"]
    assert customer.refresh().events == ()
    assert [event.text for event in customer.refresh(position=-1).events] == ["two"]
    assert len(customer.refresh(position=1).events) == 3


def test_indexes_have_gaps(rig: Rig) -> None:
    customer = rig.chat()
    for n in range(8):
        rig.plant.say(customer.session, str(n))
    indexes = [event.index or 0 for event in customer.refresh(position=1).events]
    assert indexes == sorted(set(indexes))
    assert indexes[-1] > len(indexes)


@pytest.mark.parametrize(
    "operation",
    [
        Operation.SEND,
        Operation.START_TYPING,
        Operation.STOP_TYPING,
        Operation.PUSH_URL,
        Operation.UPDATE_NICKNAME,
        Operation.CUSTOM_NOTICE,
        Operation.UPDATE_DATA,
        Operation.READ_RECEIPT,
        Operation.FILE_LIMITS,
    ],
)
def test_every_operation_is_answered_and_counts_as_a_sign_of_life(rig: Rig, operation: Operation) -> None:
    customer = rig.chat()
    rig.plant.say(customer.session, "are you there?")
    assert customer.do(operation, ("message", "yes"), ("transcriptPosition", "2")).status_code == 0
    assert rig.plant.report().pushes_unacknowledged == 0


def test_a_chat_can_be_requested_subscribed_and_left(rig: Rig) -> None:
    wishes = {
        "GCTI_Chat_PushSubscribe": "true",
        "GCTI_GMS_PushDeviceId": "phone-7",
        "GCTI_GMS_PushDeviceType": "customhttp",
        "GCTI_GMS_PushIncludePayload": "true",
    }
    fields = [("nickname", "Ann"), ("text", "hello"), *((f"userData[{k}]", v) for k, v in wishes.items())]
    answer = rig.ask(call(Operation.REQUEST_CHAT, "support", None, fields))
    assert answer is not None
    reply = read_reply(answer.body)
    assert [event.text for event in reply.events] == [None, "hello"]
    session = rig.plant.chats.named(reply.news.chat_id or "")
    assert (session.device_id, session.resend, session.payload) == ("phone-7", False, True)
    left = rig.ask(call(Operation.DISCONNECT, "support", _tokens_of(reply.news.chat_id, rig)))
    assert left is not None
    assert isinstance(classify(200, left.body, chat_id=session.chat_id), Ended)
    assert rig.plant.report().ended_by_cause == {"disconnected": 1}


def test_an_uploaded_file_can_be_fetched_and_deleted(rig: Rig) -> None:
    customer = rig.chat()
    session = customer.session
    upload = call(
        Operation.FILE_UPLOAD, session.service, customer.tokens, file=("note.txt", b"\x00\r\nbytes")
    )
    assert rig.ask(upload) is not None
    assert session.files is not None
    file_id = next(iter(session.files))
    fetched = rig.ask(call(Operation.FILE_DOWNLOAD, session.service, customer.tokens, file_id=file_id))
    assert fetched is not None
    assert fetched.body == b"\x00\r\nbytes"
    assert customer.do(Operation.FILE_DELETE, file_id=file_id).status_code == 0
    assert customer.do(Operation.FILE_DELETE, file_id=file_id).status_code == 2


def test_a_closed_chat_tells_its_last_words_once(rig: Rig) -> None:
    customer = rig.chat()
    rig.plant.say(customer.session, "good bye")
    rig.plant.end_chats([customer.session])
    last = customer.refresh()
    assert (last.status_code, last.chat_ended) == (0, True)
    assert last.events[0].text == "good bye"
    again = customer.refresh()
    assert (again.status_code, again.chat_ended) == (2, True)


# --- broken rules ---------------------------------------------------------------------------


def test_a_wrong_key_throws_the_customer_out_at_once(rig: Rig) -> None:
    customer = rig.chat()
    reply = customer.refresh(secure_key="guessed")
    assert (reply.status_code, reply.chat_ended) == (2, True)
    report = rig.plant.report()
    assert (report.wrong_key_requests, report.previous_key_requests) == (1, 0)
    assert report.lost_by_cause == {"wrong_key": 1}
    assert customer.session.events[-1].quit_reason_code == 6
    assert customer.refresh().chat_ended, "the right key comes too late"


def test_a_key_replaced_by_a_rotation_is_a_wrong_key() -> None:
    rig = make_rig(rotate="refresh", rotate_every=1)
    customer = rig.chat()
    old = customer.tokens.secure_key
    customer.refresh()
    assert customer.tokens.secure_key != old
    assert customer.refresh(secure_key=old).chat_ended
    assert rig.plant.report().previous_key_requests == 1


def test_a_replaced_key_is_taken_within_the_grace_when_one_is_set() -> None:
    rig = make_rig(rotate="refresh", rotate_every=2, previous_key_grace=5)
    customer = rig.chat()
    first = customer.tokens
    customer.refresh()
    customer.refresh()
    assert customer.tokens != first
    customer.tokens = first
    assert customer.refresh().status_code == 0
    customer.tokens = first
    rig.wait(5)
    assert customer.refresh().chat_ended


def test_another_user_id_is_refused_but_ends_nothing(rig: Rig) -> None:
    customer = rig.chat()
    right = customer.tokens
    customer.tokens = replace(right, user_id="somebody-else")
    reply = customer.refresh()
    assert (reply.status_code, reply.chat_ended) == (2, False)
    customer.tokens = right
    assert customer.refresh().status_code == 0
    assert rig.plant.report().wrong_user_id_requests == 1


def test_a_foreign_alias_and_a_foreign_service_are_counted(rig: Rig) -> None:
    customer = rig.chat()
    made = refresh("another-service", replace(customer.tokens, alias="999"), customer.position)
    rig.ask(made)
    report = rig.plant.report()
    assert (report.wrong_alias_requests, report.wrong_service_requests) == (1, 1)


def test_a_request_without_its_whole_identity_is_counted(rig: Rig) -> None:
    session = rig.chat().session
    for body in (b"userId=u&alias=117", b"userId=u&secureKey=&alias=117", b"secureKey=k&alias=117", b""):
        rig.ask(Call(f"{session.service}/{session.chat_id}/refresh", body))
    report = rig.plant.report()
    assert (report.incomplete_requests, report.wrong_key_requests, report.sessions_alive) == (4, 0, 1)


def test_two_requests_of_one_session_in_flight_are_counted(rig: Rig) -> None:
    customer, other = rig.chat(), rig.chat()
    made = refresh(customer.session.service, customer.tokens, customer.position)
    first = rig.begin(made)
    rig.begin(refresh(other.session.service, other.tokens, other.position))
    assert rig.plant.report().overlapping_requests == 0
    rig.begin(made)
    assert rig.plant.report().overlapping_requests == 1
    assert first.delay > 0, "a request takes time, or none could overlap"


def test_a_request_after_one_that_was_given_up_is_counted_apart(rig: Rig) -> None:
    customer = rig.chat()
    made = refresh(customer.session.service, customer.tokens, customer.position)
    first = rig.begin(made)
    first.wanted = lambda: False
    rig.begin(made)
    report = rig.plant.report()
    assert (report.overlapping_requests, report.overlapping_abandoned_requests) == (0, 1)


def test_refreshes_of_a_closed_chat_are_counted_with_the_largest_number_per_chat(rig: Rig) -> None:
    one, two = rig.chat(), rig.chat()
    rig.plant.end_chats([one.session, two.session])
    one.refresh()
    for _ in range(3):
        two.refresh()
    report = rig.plant.report()
    assert (report.refreshes_of_closed_chats, report.refreshes_of_closed_chats_max) == (4, 3)


def test_an_unknown_chat_is_answered_as_ended(rig: Rig) -> None:
    answer = rig.ask(refresh("support", Tokens("nobody", "u", "k", "117"), 1))
    assert answer is not None
    assert isinstance(classify(200, answer.body, chat_id="nobody"), Ended)
    assert rig.plant.report().unknown_chat_requests == 1


def test_error_replies_carry_fields_that_punish_whoever_trusts_them(rig: Rig) -> None:
    customer = rig.chat()
    for name in rig.plant.servers:
        rig.plant.servers.kill(name)
    made = refresh(customer.session.service, customer.tokens, customer.position)
    answer = rig.ask(made)
    assert answer is not None
    assert b'"secureKey":"not-the-secure-key"' in answer.body
    assert b'"chatEnded":true' in answer.body
    assert read_reply(answer.body).status_code == 1


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


# --- capacity -------------------------------------------------------------------------------


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


# --- the report -----------------------------------------------------------------------------


def test_the_peak_is_found_wherever_its_second_begins() -> None:
    peak = SlidingPeak(1.0)
    for time in (0.1, 0.9, 0.95, 1.0, 1.05, 1.5, 1.89, 3.0):
        peak.add(time)
    assert peak.peak == 6


def test_a_spread_reports_measured_values_only() -> None:
    assert spread([]).max is None
    figures = spread([3.0, 1.0, 2.0])
    assert (figures.p50, figures.p95, figures.max) == (2.0, 3.0, 3.0)


def test_the_timeline_has_a_row_for_every_second(rig: Rig) -> None:
    customer = rig.chat("chat-1")
    customer.refresh()
    rig.plant.servers.kill("chat-1")
    rig.wait(2)
    customer.refresh()
    assert rig.plant.timeline.rows(rig.clock()) == [(0, 1, 0), (1, 0, 0), (2, 1, 1)]


def test_a_reset_report_counts_anew_and_keeps_the_sessions(rig: Rig) -> None:
    customer = rig.chat()
    customer.refresh()
    rig.plant.reset_report()
    report = rig.plant.report()
    assert (report.requests, report.peak_requests_per_second, report.sessions_alive) == (0, 0, 1)
    assert isinstance(
        classify(200, _refreshed(rig, customer.session.chat_id), chat_id=customer.session.chat_id), Alive
    )


def test_sessions_take_turns(rig: Rig) -> None:
    rig.plant.start_chats(5)
    first = [session.chat_id for session in rig.plant.chats.some(3)]
    rig.plant.end_chats([rig.plant.chats.named(first[0])])
    second = [session.chat_id for session in rig.plant.chats.some(9)]
    assert len(second) == 4
    assert set(second) == {s.chat_id for s in rig.plant.sessions.values() if s.ended is None}
    assert second[:2] == [chat_id for chat_id in rig.plant.sessions if chat_id not in first]


# --- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rotate": "sometimes"}, "never, restore, refresh, always"),
        ({"latency": -1}, "0 or more"),
        ({"latency": True}, "a number"),
        ({"nonsense": 1}, "no such setting"),
        ({"push_url": "http://example.com/push"}, "loopback"),
        ({"push_url": "http://127.0.0.1.example.com/push"}, "loopback"),
        ({"gms_capacity": 0}, "above 0"),
        ({"push_forms": [{"message": "poem"}]}, "one of object, text, nested, plain"),
        ({"push_forms": [{"content": ["password"]}]}, "session-id"),
        ({"servers": []}, "no such setting"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_expected(
    rig: Rig, values: dict[str, object], said: str
) -> None:
    before = rig.plant.settings
    with pytest.raises(SettingError, match=said):
        rig.plant.change(values)
    assert rig.plant.settings is before


def test_the_push_secret_does_not_show() -> None:
    settings = PlantSettings(push_url="http://127.0.0.1:1/push/hush", required_headers={"apikey": "hush"})
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings.shown())


def test_the_documentation_names_every_setting_and_every_figure(rig: Rig) -> None:
    text = (Path(__file__).parents[2] / "docs" / "standin.md").read_text()
    names = {*PlantSettings().shown(), *(figure.name for figure in fields(rig.plant.report()))} - {"seconds"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def _tokens_of(chat_id: str | None, rig: Rig) -> Tokens:
    session = rig.plant.chats.named(chat_id or "")
    return Tokens(session.chat_id, session.user_id, session.secure_key, session.alias)


def _refreshed(rig: Rig, chat_id: str) -> bytes:
    answer = rig.ask(refresh("customer-support", _tokens_of(chat_id, rig), None))
    assert answer is not None
    return answer.body


# --- a client that dies -----------------------------------------------------------------------


def test_a_key_told_by_a_reply_that_died_with_the_client_is_not_held_against_it() -> None:
    rig = make_rig(rotate="always", rotate_every=1)
    customer, other = rig.chat(), rig.chat()
    known, stale = customer.tokens, other.tokens
    other.refresh()
    rig.wait(5)
    since = rig.plant.wall_ms()
    customer.refresh()
    assert rig.plant.replies_lost(since) == 1
    customer.tokens, other.tokens = known, stale
    assert customer.refresh().status_code == 0
    assert other.refresh().status_code == 2, "it had five seconds"
    assert rig.plant.report().wrong_key_requests == 1


def test_several_lost_replies_in_a_row_are_forgiven_until_the_client_knows_the_newest_key() -> None:
    rig = make_rig(rotate="always", rotate_every=1)
    customer = rig.chat()
    known = customer.tokens
    for _ in range(3):
        since = rig.plant.wall_ms()
        customer.refresh()
        rig.plant.replies_lost(since)
        customer.tokens = known
    assert customer.refresh().status_code == 0
    assert customer.refresh().status_code == 0
    customer.tokens = known
    assert customer.refresh().status_code == 2
    assert rig.plant.report().wrong_key_requests == 1


def test_an_end_told_by_a_lost_reply_may_be_asked_for_once_more() -> None:
    rig = make_rig()
    customer = rig.chat()
    rig.plant.end_chats([customer.session])
    since = rig.plant.wall_ms()
    customer.refresh()
    assert rig.plant.replies_lost(since) == 1
    customer.refresh()
    assert customer.session.closed_refreshes == 1


def test_what_a_dead_client_asked_is_answered_to_nobody() -> None:
    """What was on its way, and what lay in a socket; not what the next client asks."""
    rig = make_rig(rotate="always", rotate_every=1)
    customer, other = rig.chat(), rig.chat()
    known, stale = customer.tokens, other.tokens
    rig.plant.client_died()
    customer.refresh()
    rig.plant.client_starts()
    other.refresh()
    rig.wait(5)
    customer.tokens, other.tokens = known, stale
    assert customer.refresh().status_code == 0
    assert other.refresh().status_code == 2
    assert rig.plant.answered_to_nobody == 1


def test_each_death_allows_one_more_refresh_of_a_closed_chat() -> None:
    rig = make_rig()
    customer = rig.chat()
    rig.plant.end_chats([customer.session])
    for _ in range(3):
        rig.plant.client_died()
        customer.refresh()
        rig.plant.client_starts()
    assert customer.session.closed_refreshes == 0
    customer.refresh()
    customer.refresh()
    assert customer.session.closed_refreshes == 2


def test_the_last_answer_alone_is_forgiven_to_a_client_that_died() -> None:
    rig = make_rig()
    customer = rig.chat()
    rig.plant.end_chats([customer.session])
    since = rig.plant.wall_ms()
    customer.refresh()
    customer.refresh()
    rig.plant.replies_lost(since)
    assert customer.session.closed_refreshes == 1


def test_a_push_that_was_taken_waits_for_a_request() -> None:
    rig = make_rig()
    customer = rig.chat()
    rig.plant.say(customer.session, "Hello")
    [push] = rig.pushes
    rig.plant.push_done(delivered=False, push=push)
    assert not customer.session.push_taken
    rig.plant.push_done(delivered=True, push=push)
    assert customer.session.push_taken
    customer.refresh()
    assert not customer.session.push_taken
