"""A Chat Server at a request: what a client may do, and what it costs to break a rule."""

from __future__ import annotations

import pytest

from asyncchatd.model.data import Tokens
from asyncchatd.model.values import replace
from asyncchatd.standin.messages import write_event
from asyncchatd.wire.chat_api.calls import Call, Operation, call, refresh
from asyncchatd.wire.chat_api.outcome import Ended, classify
from asyncchatd.wire.chat_api.replies import read_reply

from ..plant_rig import Rig, make_rig, tokens_of

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
    ("position", "texts"),
    [
        ("1", [None, "one", "two", "three"]),
        (None, [None, "one", "two", "three"]),
        ("undefined", [None, "one", "two", "three"]),
        ("0", []),
        ("-1", ["three"]),
        ("2", ["one", "two", "three"]),
        ("3", ["two", "three"]),
        ("4", ["two", "three"]),
        ("99", []),
    ],
)
def test_a_position_says_which_events_are_wanted(
    rig: Rig, position: str | None, texts: list[str | None]
) -> None:
    customer = rig.chat()
    for text in ("one", "two", "three"):
        rig.plant.say(customer.session, text)
    assert [event.index for event in customer.session.events] == [1, 2, 4, 5]
    fields = [] if position is None else [("transcriptPosition", position)]
    assert [event.text for event in customer.do(Operation.REFRESH, *fields).events] == texts


def test_what_is_sent_without_a_position_is_answered_without_events(rig: Rig) -> None:
    customer = rig.chat()
    rig.plant.say(customer.session, "one")
    sent = customer.do(Operation.SEND, ("message", "two"))
    assert (sent.events, sent.next_position) == ((), customer.session.next_index)
    sent = customer.do(Operation.SEND, ("message", "three"), ("transcriptPosition", "1"))
    assert [event.text for event in sent.events] == [None, "one", "two", "three"]


def test_a_message_and_a_notice_keep_what_was_sent_with_them(rig: Rig) -> None:
    customer = rig.chat()
    customer.do(
        Operation.SEND,
        ("message", "hi"),
        ("messageType", "text"),
        ("eventAttributes", '{"mood":{"good":true}}'),
    )
    customer.do(Operation.CUSTOM_NOTICE, ("eventAttributes", "no JSON"))
    customer.do(Operation.CUSTOM_NOTICE, ("message", "look"))
    _, said, notice, other = (write_event(event) for event in customer.session.events)
    assert (said["messageType"], said["eventAttributes"]) == ("text", {"mood": {"good": True}})
    assert ("text" in notice, notice["eventAttributes"]) == (False, "no JSON")
    assert (other["text"], "eventAttributes" in other) == ("look", False)


def test_a_read_receipt_says_how_far_the_customer_read(rig: Rig) -> None:
    customer = rig.chat()
    for position in ("3", "2", "undefined"):
        assert customer.do(Operation.READ_RECEIPT, ("transcriptPosition", position)).events == ()
    assert customer.session.read_to == 3


def test_a_subscription_without_all_that_it_must_say_is_none(rig: Rig) -> None:
    wishes = {
        "GCTI_Chat_PushSubscribe": "true",
        "GCTI_GMS_PushDeviceId": "d",
        "GCTI_GMS_NodeGroup": "cluster",
    }
    fields = [("nickname", "Ann"), *((f"userData[{k}]", v) for k, v in wishes.items())]
    answer = rig.ask(call(Operation.REQUEST_CHAT, "support", None, fields))
    assert answer is not None
    assert rig.plant.chats.named(read_reply(answer.body).news.chat_id or "").device_id is None


def test_a_message_that_came_twice_is_counted(rig: Rig) -> None:
    customer, other = rig.chat(), rig.chat()
    rig.plant.say(customer.session, "yes")
    for text in ("yes", "yes", "no"):
        customer.do(Operation.SEND, ("message", text))
    other.do(Operation.SEND, ("message", "yes"))
    assert rig.plant.report().doubled_messages == 1


def test_a_position_of_zero_is_a_question_of_a_refresh_alone() -> None:
    rig = make_rig(position_zero_counts=False)
    customer = rig.chat()
    rig.plant.say(customer.session, "one")
    customer.do(Operation.SEND, ("message", "two"), ("transcriptPosition", "0"))
    report = rig.plant.report()
    assert (report.position_zero_requests, report.pushes_unacknowledged) == (0, 0)


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
        "GCTI_GMS_NodeGroup": "chat-cluster",
        "GCTI_GMS_PushIncludePayload": "true",
    }
    fields = [("nickname", "Ann"), ("text", "hello"), *((f"userData[{k}]", v) for k, v in wishes.items())]
    answer = rig.ask(call(Operation.REQUEST_CHAT, "support", None, fields))
    assert answer is not None
    reply = read_reply(answer.body)
    assert [event.text for event in reply.events] == [None, "hello"]
    session = rig.plant.chats.named(reply.news.chat_id or "")
    assert (session.device_id, session.resend, session.payload) == ("phone-7", False, True)
    left = rig.ask(call(Operation.DISCONNECT, "support", tokens_of(reply.news.chat_id, rig)))
    assert left is not None
    assert isinstance(classify(200, left.body, chat_id=session.chat_id), Ended)
    assert rig.plant.report().ended_by_cause == {"disconnected": 1}


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
