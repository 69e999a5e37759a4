"""Which process answers at a health address: each question on its own, up to its bounds."""

from __future__ import annotations

import pytest

from asyncchatd.model.data import ChatServer, Ms, Process
from asyncchatd.model.values import replace
from asyncchatd.watcher.identity import (
    MAX_NAME,
    MOST_OTHERS,
    WAYS_SECONDS,
    Kin,
    came_back,
    compare,
    find,
    is_one,
    is_rather,
    is_small,
    ran_backwards,
    remembered,
)

SAME, STEPPED, ANOTHER = Kin.SAME, Kin.STEPPED, Kin.ANOTHER

T = 1_700_000_000.0
"""Epoch seconds at which the known process was last seen. It had been watched for a hundred seconds."""

UPTIME, START = "its uptime ran backwards", "its start time is a later one"


def process(
    app_dbid: str | None = "117",
    pid: str | None = "1",
    *,
    started: float | None = None,
    began: float | None = None,
    last_seen: Ms = 0,
    settled: bool = True,
) -> Process:
    return Process(app_dbid, pid, started, began, last_seen, last_seen, settled)


def known(
    pid: str | None = "1", *, started: float | None = None, began: float | None = None, watched: float = 100
) -> Process:
    last = round(T * 1000)
    return Process("117", pid, started, began, last - round(watched * 1000), last)


def seen(pid: str | None = "1", *, started: float | None = None, began: float | None = None) -> Process:
    """Five seconds later."""
    return process("117", pid, started=started, began=began, last_seen=round(T * 1000) + 5000)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (process(None, None), process(None, None), False),
        (process("117", None), process("117", None), True),
        (process("117", None), process(None, "1"), False),
        (process(None, "1"), process("117", "1"), True),
        (process("117", "1"), process("117", None), True),
        (process("117", "1"), process("118", "1"), False),
        (process("117", "1"), process("117", "2"), False),
        (process(began=1000), process(began=1090), True),
        (process(began=1000), process(began=1090.5), False),
        (process(began=1000), process(began=909), False),
        (process(began=1000, started=10), process(began=1000, started=99), True),
        (process(began=1000, started=10), process(started=13), True),
        (process(started=10), process(started=13.5), False),
        (process(started=10), process(), True),
    ],
)
def test_two_sights_are_of_one_process_when_all_that_both_say_agrees(
    one: Process, other: Process, expected: bool
) -> None:
    assert is_one(one, other) is expected
    assert is_one(other, one) is expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (known(), seen(), (SAME, "")),
        (known(began=T - 5000), seen(), (SAME, "")),
        (known(began=T - 5000), seen(began=T - 6000), (SAME, "")),
        (known(began=T - 5000), seen(began=T - 4995), (SAME, "")),
        (known(began=T - 5000), seen(began=T - 4994), (STEPPED, UPTIME)),
        (known(began=T - 5000), seen(began=T - 90.5), (STEPPED, UPTIME)),
        (known(began=T - 5000), seen(began=T - 90), (ANOTHER, UPTIME)),
        (known(began=T - 5000, started=1000), seen(began=T + 2, started=1003), (SAME, "")),
        (known(began=T - 5000, started=1000), seen(began=T + 2, started=1003.5), (ANOTHER, UPTIME)),
        (known(began=T - 5000), seen(began=T + 2, started=1000), (ANOTHER, UPTIME)),
        (known(began=T - 5000, started=1000), seen(began=T + 2), (ANOTHER, UPTIME)),
        (known(began=T - 5000, started=1000), seen(began=T - 2000, started=1000), (STEPPED, UPTIME)),
        (known(started=1000), seen(started=1003), (SAME, "")),
        (known(started=1000), seen(started=997), (SAME, "")),
        (known(started=1000), seen(started=1096), (STEPPED, START)),
        (known(started=1000), seen(started=1097), (ANOTHER, START)),
        (known(started=1000, watched=0), seen(started=990), (STEPPED, START)),
        (known(None, started=1000), seen(None, started=1097), (ANOTHER, START)),
    ],
)
def test_another_process_is_one_that_began_after_the_known_one_was_last_seen(
    before: Process, after: Process, expected: tuple[Kin, str]
) -> None:
    assert compare(before, after) == expected


def test_a_page_that_was_longer_on_its_way_than_the_one_another_node_read_just_before_is_of_no_later_start() -> (
    None
):
    before = known(began=T - 5)
    after = process(began=T - 3, last_seen=round(T * 1000) + 250)
    assert compare(before, after)[0] is ANOTHER
    assert compare(before, after, way=WAYS_SECONDS)[0] is SAME


def test_what_a_suspended_host_slept_through_counts() -> None:
    before, after = known(began=T - 5000), seen(began=T - 690)
    assert compare(before, after)[0] is STEPPED
    assert compare(before, after, slept=600)[0] is ANOTHER


@pytest.mark.parametrize(
    ("after", "kin"),
    [
        (-31, STEPPED),
        (-30, ANOTHER),
        (35, ANOTHER),
        (36, STEPPED),
        (900 - 31, STEPPED),
        (900 - 30, ANOTHER),
        (900 + 35, ANOTHER),
        (54_000, ANOTHER),
        (54_900, STEPPED),
    ],
)
@pytest.mark.parametrize("ahead", [0.0, 420.0])
def test_a_process_id_comes_round_again_only_with_a_start_since_the_last_look_in_some_time_zone(
    after: float, kin: Kin, ahead: float
) -> None:
    before = known("4711", started=T - 90_000)
    assert compare(before, seen("4711", started=T + after + ahead), ahead=ahead)[0] is kin


@pytest.mark.parametrize(("pid", "small"), [(None, True), ("1", True), ("299", True), ("300", False)])
def test_a_small_process_id_or_none_says_little(pid: str | None, small: bool) -> None:
    assert is_small(pid) is small


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ({"a": 5}, {"a": 4}, "a"),
        ({"a": 5}, {"a": 5}, None),
        ({"a": 1}, {"a": 0}, "a"),
        ({"a": 5}, {"a": -1}, None),
        ({"a": 0}, {"a": 0}, None),
        ({"a": 5}, {"b": 0}, None),
        ({"a": 5, "b": 5}, {"a": 4, "b": 6}, "a"),
        ({"a": 5, "b": 5, "c": 5}, {"a": 4, "b": 6, "c": 6}, None),
        ({"a": 5, "b": 5, "c": 5, "d": 5}, {"a": 4, "b": 4, "c": 6, "d": 6}, "a"),
        ({"a" * 99: 5}, {"a" * 99: 4}, "a" * MAX_NAME),
    ],
)
def test_counters_ran_backwards_when_half_of_them_did(
    before: dict[str, float], after: dict[str, float], name: str | None
) -> None:
    assert ran_backwards(before, after) == name


def test_others_are_remembered_for_a_day_the_one_seen_last_first() -> None:
    day = 24 * 3_600_000
    others = [process(pid=str(at), last_seen=at) for at in (3, 7, 5)]
    assert [each.last_seen for each in remembered(others, now=day + 5)] == [7, 5]
    crowd = [process(pid=str(at), last_seen=at) for at in range(40)]
    assert [each.last_seen for each in remembered(crowd, now=100)] == list(range(39, 39 - MOST_OTHERS, -1))


def test_a_process_that_begins_after_a_settled_one_was_last_seen_is_not_that_one() -> None:
    settled = process(began=T - 20, last_seen=round(T * 1000))
    assert find([settled], process(began=T + 3)) is settled
    assert find([settled], process(began=T + 3.5)) is None
    assert find([settled], process()) is settled
    unsettled = replace(settled, settled=False)
    assert find([unsettled], process(began=T + 3.5)) is unsettled
    assert find([settled], process("118")) is None


ONE, OTHER = process(began=1000), process(began=1060)


@pytest.mark.parametrize(
    ("sight", "one", "other", "expected"),
    [
        (process(began=1020), ONE, OTHER, True),
        (process(began=1030), ONE, OTHER, True),
        (process(began=1050), ONE, OTHER, False),
        (process(began=1050), ONE, None, True),
        (process(began=980), ONE, OTHER, True),
        (process(began=890), ONE, OTHER, False),
        (process(), ONE, OTHER, True),
        (process("118"), ONE, OTHER, False),
        (process(began=1050), process(), OTHER, True),
        (process(began=1050), ONE, process(), True),
        (process(began=1050), ONE, process("118", began=1060), True),
        (process(began=1020), process("118", began=1000), OTHER, False),
    ],
)
def test_of_two_processes_of_like_uptimes_a_sight_is_rather_of_the_nearer_one(
    sight: Process, one: Process, other: Process | None, expected: bool
) -> None:
    assert is_rather(sight, one, other) is expected


def test_a_process_came_back_when_somebody_else_was_seen_since() -> None:
    server = ChatServer("chat-a", "117", "1", last_seen=10)
    former = process(pid="2", last_seen=5)
    assert came_back(server, former)
    assert not came_back(server, replace(former, last_seen=10))
    assert not came_back(server, process(pid="1", last_seen=5))
    third = process(pid="3", last_seen=12)
    assert came_back(replace(server, others=(third,)), replace(former, last_seen=10))
