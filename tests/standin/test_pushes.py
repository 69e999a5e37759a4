"""The plant's notifications: every form can be read, and what is not acknowledged comes again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import case

from asyncchatd.model.data import TokenNews
from asyncchatd.standin import ALL_FORMS, MessageForm, PlantError, PushForm
from asyncchatd.standin.messages import TokenSpelling
from asyncchatd.standin.pushes import CONTENT, TokenPlace, push_body, read_forms
from asyncchatd.wire.chat_api.calls import Operation
from asyncchatd.wire.chat_api.replies import ChatEvent
from asyncchatd.wire.push import read_push

from .plant_rig import Rig, make_rig

TOKENS = TokenNews("chat-7", "user-7", "key-7", "117")


def test_every_form_is_read_back() -> None:
    for form in ALL_FORMS:
        with case(*form.shown().values()):
            check_is_read_back(form)


def check_is_read_back(form: PushForm) -> None:
    event = ChatEvent(type="Message", participant_id=2, index=5, utc_time=1_700_000_000_000, text="hello")
    push = read_push(push_body(form, "device-7", TOKENS, "Message", event, 6))
    assert push.device_id == "device-7"
    assert push.news.secure_key == ("key-7" if form.carries_secure_key else None)
    said = "session-id" in form.content and form.place is not TokenPlace.EVENT
    assert push.news.chat_id == ("chat-7" if said else None)
    if form.payload:
        assert push.events[0].text == "hello"
        assert push.next_position == 6


def test_every_word_of_a_form_is_sent_unless_the_settings_say_otherwise() -> None:
    assert {form.message for form in ALL_FORMS} == set(MessageForm)
    assert {form.spelling for form in ALL_FORMS} == set(TokenSpelling)
    assert {form.place for form in ALL_FORMS} == set(TokenPlace)
    assert {name for form in ALL_FORMS for name in form.content} == set(CONTENT)


def test_the_document_names_every_word_of_a_form() -> None:
    text = (Path(__file__).parents[2] / "docs" / "standin.md").read_text()
    [row] = re.findall(r"^\| `push_forms` .*$", text, re.MULTILINE)
    for name, words in {
        "message": {*MessageForm},
        "content": {*CONTENT},
        "spelling": {*TokenSpelling},
        "place": {*TokenPlace},
    }.items():
        [said] = re.findall(rf"`{name}`: ([^;|]+)", row)
        assert set(re.findall(r"`([\w-]+)`", said)) == words, name


def test_the_documents_say_how_many_forms_there_are() -> None:
    root = Path(__file__).parents[2]
    said = {
        name: {
            int(number)
            for pair in re.findall(
                r"(\d+) (?:push )?forms\b|forms these pushes had *│ *(\d+) of (\d+)",
                (root / name).read_text(),
            )
            for number in pair
            if number
        }
        for name in ("README.md", "docs/demo.md", "docs/reliability.md")
    }
    assert all(numbers == {len(ALL_FORMS)} for numbers in said.values()), said


def test_forms_are_used_in_turn() -> None:
    forms = [{"message": "object"}, {"message": "text"}, {"message": "plain"}]
    rig = make_rig(push_forms=forms)
    session = rig.chat().session
    for _ in range(3):
        rig.plant.say(session, "hello")
    kinds = {type_of(push.body) for push in rig.pushes}
    assert kinds == {"object", "string", "plain"}


def test_forms_survive_being_shown() -> None:
    assert read_forms([form.shown() for form in ALL_FORMS]) == ALL_FORMS
    assert read_forms("all") == ALL_FORMS


def test_an_unacknowledged_push_comes_again_as_push_url_until_a_request() -> None:
    rig = make_rig(resend_delay=15, push_forms=[{"message": "object"}])
    customer = rig.chat()
    rig.plant.say(customer.session, "hello")
    rig.wait(31)
    assert [read_push(push.body).resend for push in rig.pushes] == [False, True, True]
    customer.refresh()
    rig.wait(60)
    assert len(rig.pushes) == 3
    report = rig.plant.report()
    assert (report.pushes_sent, report.pushes_resent, report.pushes_unacknowledged) == (3, 2, 0)
    assert report.acknowledgement_seconds.max == pytest.approx(31)


def test_resending_ends_after_the_last_attempt() -> None:
    rig = make_rig(resend_delay=5, resend_attempts=2)
    customer = rig.chat()
    rig.plant.say(customer.session, "hello")
    rig.wait(60)
    report = rig.plant.report()
    assert (report.pushes_resent, report.pushes_resends_exhausted, report.pushes_unacknowledged) == (2, 1, 1)
    rig.plant.say(customer.session, "hello again")
    rig.wait(60)
    assert rig.plant.report().pushes_resent == 4


def test_nothing_is_resent_without_the_subscription_to_it() -> None:
    rig = make_rig(resend=False)
    rig.plant.say(rig.chat().session, "hello")
    rig.wait(100)
    assert len(rig.pushes) == 1
    assert rig.plant.report().pushes_unacknowledged == 1


def test_a_dead_server_resends_nothing_and_a_hung_one_goes_on_later(rig: Rig) -> None:
    dead, hung = rig.chat("chat-1"), rig.chat("chat-2")
    rig.plant.say(dead.session, "hello")
    rig.plant.say(hung.session, "hello")
    rig.plant.servers.kill("chat-1")
    rig.plant.servers.hang("chat-2")
    rig.wait(20)
    assert len(rig.pushes) == 2
    rig.plant.servers.resume("chat-2")
    rig.wait(15)
    assert [push.chat_id for push in rig.pushes[2:]] == [hung.session.chat_id]


def test_an_agent_cannot_speak_through_a_server_that_is_gone(rig: Rig) -> None:
    session = rig.chat("chat-1").session
    rig.plant.servers.kill("chat-1")
    assert not rig.plant.say(session, "hello?")
    assert rig.pushes == []


def test_a_planned_stop_is_announced_to_each_session_as_reconnect() -> None:
    rig = make_rig(push_forms=[{"message": form.value, "payload": False} for form in MessageForm])
    for _ in range(4):
        rig.chat("chat-1")
    rig.chat("chat-2")
    assert rig.plant.servers.stop("chat-1") == 4
    notices = [read_push(push.body) for push in rig.pushes]
    assert all(notice.leaving for notice in notices)
    assert {notice.events[0].participant_id for notice in notices} == {1}
    assert {notice.events[0].quit_reason_advice for notice in notices} == {"reconnect"}


def test_many_notices_go_out_in_portions_and_not_to_sessions_that_moved_already() -> None:
    rig = make_rig()
    sessions = rig.plant.start_chats(1200, servers=["chat-1"])
    assert rig.plant.servers.stop("chat-1") == 1200
    assert len(rig.pushes) == 500
    rig.plant.move(sessions[-1:])
    rig.wait(0.1, step=0.02)
    assert [push.chat_id for push in rig.pushes] == [session.chat_id for session in sessions[:-1]]


def test_a_planned_stop_can_go_unannounced() -> None:
    rig = make_rig(shutdown_notify=False)
    rig.chat("chat-1")
    assert rig.plant.servers.stop("chat-1") == 0
    assert rig.pushes == []


def test_a_rotation_can_be_told_by_push(rig: Rig) -> None:
    customer = rig.chat()
    assert rig.plant.rotate([customer.session], announce=True) == 1
    news = read_push(rig.pushes[-1].body).news
    assert news.secure_key == customer.session.secure_key != customer.tokens.secure_key
    assert customer.refresh(secure_key=news.secure_key).status_code == 2, "the user id changed as well"
    assert rig.plant.report().wrong_user_id_requests == 1


@pytest.mark.parametrize(("delivered", "wrong"), [(False, 0), (True, 1)])
def test_a_key_that_only_a_push_told_which_nobody_took_is_known_to_nobody(
    delivered: bool, wrong: int
) -> None:
    rig = make_rig(rotate_user_id=False)
    customer = rig.chat()
    rig.plant.rotate([customer.session], announce=True)
    rig.plant.push_done(delivered=delivered, push=rig.pushes[-1])
    customer.refresh()
    assert rig.plant.report().wrong_key_requests == wrong
    assert rig.plant.report().forgiven_key_requests == 1 - wrong


def test_a_key_is_not_forgiven_because_another_push_was_not_taken(rig: Rig) -> None:
    customer = rig.chat()
    rig.plant.rotate([customer.session])
    rig.wait(1)
    old = customer.tokens.secure_key
    customer.refresh()
    rig.plant.say(customer.session, "Good morning")
    rig.plant.push_done(delivered=False, push=rig.pushes[-1])
    customer.refresh(secure_key=old)
    assert rig.plant.report().wrong_key_requests == 1


def test_a_rotation_by_push_needs_a_form_that_can_tell_it() -> None:
    rig = make_rig(push_forms=[{"content": ["session-id"]}])
    with pytest.raises(PlantError, match="secure key"):
        rig.plant.rotate([rig.chat().session], announce=True)


def test_a_late_push_carries_the_replaced_key(rig: Rig) -> None:
    customer = rig.chat()
    old = customer.tokens.secure_key
    assert rig.plant.push_late([customer.session]) == 0
    rig.plant.rotate([customer.session])
    rig.wait(1)
    customer.refresh()
    assert rig.plant.push_late([customer.session]) == 1
    late = read_push(rig.pushes[-1].body)
    assert late.news.secure_key == old
    assert late.utc_time is None or late.utc_time < rig.clock.wall_ms()


def test_the_customers_own_leaving_is_pushed_when_subscribed_to() -> None:
    rig = make_rig(notify_requestor=True, push_forms=[{"message": "object"}])
    customer = rig.chat()
    customer.refresh(secure_key="wrong")
    assert read_push(rig.pushes[-1].body).events[0].quit_reason_code == 6
    leaving = rig.chat()
    leaving.do(Operation.DISCONNECT)
    assert read_push(rig.pushes[-1].body).device_id == leaving.session.device_id
    assert read_push(rig.pushes[-1].body).events[0].quit_reason_code == 0


def test_a_session_lost_while_it_owed_an_acknowledgement_is_counted(rig: Rig) -> None:
    customer = rig.chat()
    rig.plant.say(customer.session, "hello")
    customer.refresh(secure_key="wrong")
    report = rig.plant.report()
    assert (report.pushes_unacknowledged, report.pushes_ended_unacknowledged) == (0, 1)


def test_a_push_does_not_show_its_tokens(rig: Rig) -> None:
    customer = rig.chat()
    rig.plant.say(customer.session, "hello")
    for shown in (repr(rig.pushes[0]), repr(customer.session)):
        assert customer.tokens.secure_key not in shown


def type_of(body: bytes) -> str:
    """What `message` is, without reading further."""
    if b'"message":"dummy message"' in body:
        return "plain"
    return "object" if b'"message":{' in body else "string"
