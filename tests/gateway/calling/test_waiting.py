"""Calls that wait: of typing the newest, of read receipts the highest, of all others each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.gateway.calling.waiting import with_call
from asyncchatd.wire import ClientCall, Operation, client_call

TYPING = ("startTyping", "stopTyping")


def call(operation: str, position: int | None = None) -> ClientCall:
    said = [] if position is None else [("transcriptPosition", str(position))]
    return client_call(f"s/c/{operation}", said)


def queue(*calls: ClientCall) -> list[ClientCall]:
    waiting: list[ClientCall] = []
    for each in calls:
        waiting = with_call(waiting, each) or waiting
    return waiting


calls = st.builds(
    call,
    st.sampled_from(["send", "startTyping", "stopTyping", "readReceipt", "disconnect"]),
    st.integers(1, 5),
)


@given(st.lists(calls, max_size=12))
def test_of_typing_the_newest_and_of_receipts_the_highest_wait(came: list[ClientCall]) -> None:
    waiting = queue(*came)
    assert [each for each in came if any(each is one for one in waiting)] == waiting, "in the order they came"
    typing = [each for each in came if each.operation.value in TYPING]
    assert [each for each in waiting if each.operation.value in TYPING] == typing[-1:]
    receipts = [each for each in came if each.operation is Operation.READ_RECEIPT]
    highest = max((each.asked_from for each in receipts), default=None)
    kept = [each.asked_from for each in waiting if each.operation is Operation.READ_RECEIPT]
    assert kept == ([] if highest is None else [highest])
    others = {Operation.SEND, Operation.DISCONNECT}
    assert [each for each in waiting if each.operation in others] == [
        each for each in came if each.operation in others
    ]


def test_two_messages_that_are_alike_are_two() -> None:
    first, second = call("send"), call("send")
    assert [id(each) for each in queue(first, second)] == [id(first), id(second)]


def test_a_receipt_that_says_less_does_not_wait() -> None:
    assert with_call([call("send"), call("readReceipt", 9)], call("readReceipt", 8)) is None
    assert with_call([call("readReceipt", 9)], call("readReceipt", 9)) is None
    assert with_call([call("readReceipt", 9)], call("readReceipt")) is None
    assert with_call([call("send", 9)], call("readReceipt", 8)) is not None
