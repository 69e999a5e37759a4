"""The soak in small, so that it works when it is wanted, and what it plans and judges."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from conftest import FakeClock

from asyncchatd.control import shapes
from asyncchatd.rehearsing.trial import new_directory
from asyncchatd.standin import Plant

from .judge import Hindered, Loss, Observed, judge
from .plan import ON_THE_DAEMON, THEMES, TURNS, What, plan
from .rounds import Scale, soaking

SMALL = Scale(
    sessions=300, servers=3, nodes=2, rate=150.0, window=30.0, interval=12.0, long_chats=1, pace=0.5
)
SEED = 1
ROUNDS = (3, 4)


@pytest.mark.slow
async def test_a_small_soak_keeps_every_promise() -> None:
    """Half a minute of it: a full disk, a hanging Chat Server, then a daemon that is killed, a Chat Server
    that dies with it, GMS nodes that are slow and lose answers after the work, and a planned stop."""
    planned = [plan(SEED, number, servers=SMALL.servers, nodes=SMALL.nodes)[1] for number in ROUNDS]
    whats = {fault.what for faults in planned for fault in faults}
    assert whats >= {What.DISK_FULL, What.HANG, What.DAEMON_KILL, What.KILL, What.NODE_LOSES, What.STOP}
    async with soaking(SEED, SMALL, new_directory("soak")) as soak:
        for number in ROUNDS:
            outcome = await soak.round(number)
            assert not outcome.broken, "\n".join((*outcome.broken, *outcome.faults))
            assert outcome.counts["acknowledged"] > 0
            assert outcome.counts["chat-app: chat"] > 0
            assert outcome.counts["reader: chat"] > 0
            assert outcome.counts["pushes failed"] > 0, "the daemon had no disk, or was away"
    assert outcome.counts["restored"] > 0


# -- the plan --------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_faults_again_and_another_gives_others() -> None:
    def faults(seed: int) -> list[object]:
        return [plan(seed, number, servers=5, nodes=3) for number in range(30)]

    assert faults(1) == faults(1)
    assert faults(1) != faults(2)


def test_every_fault_there_is_comes_within_a_few_hundred_rounds_and_every_theme_in_a_dozen() -> None:
    rounds = [plan(7, number, servers=5, nodes=3) for number in range(300)]
    assert {fault.what for _, faults in rounds for fault in faults} == set(What)
    assert {theme for theme, _ in rounds[: len(TURNS)]} == set(THEMES)


def test_there_is_one_daemon_to_which_things_happen_one_after_another() -> None:
    for number in range(300):
        _, faults = plan(3, number, servers=5, nodes=3)
        done_to_it = [fault for fault in faults if fault.what in ON_THE_DAEMON]
        assert all(first.at + first.seconds < second.at for first, second in pairwise(done_to_it))


# -- the judgement -----------------------------------------------------------------------------------


@pytest.fixture
def well(clock: FakeClock) -> Observed:
    """A round in which nothing went wrong."""
    report = Plant(now=clock.monotonic).report()
    return Observed(report=report, rate=100.0, sessions=500, interval=20.0)


def test_a_round_in_which_all_was_kept_breaks_nothing(well: Observed) -> None:
    assert judge(well) == []


WINDOW = Loss("chat-1", "restoration_window", since=100.0, until=140.0)


@pytest.mark.parametrize(
    ("hindered", "held_against_it"),
    [
        ([], True),
        ([Hindered(90.0, 105.0, "the daemon was kept away")], True),
        ([Hindered(95.0, 139.0, "the daemon was kept away")], False),
        # Twenty-eight of forty seconds; where intervals overlap they count once.
        ([Hindered(100.0, 120.0, "no GMS"), Hindered(110.0, 120.0, "no daemon")], True),
        ([Hindered(100.0, 118.0, "no GMS"), Hindered(125.0, 140.0, "no daemon")], False),
    ],
)
def test_a_lost_session_counts_when_a_perfect_client_had_time_for_it(
    hindered: list[Hindered], held_against_it: bool, well: Observed
) -> None:
    found = judge(replace(well, losses=[WINDOW], hindered=hindered))
    assert bool(found) is held_against_it


def test_a_wrong_key_is_never_excused(well: Observed) -> None:
    loss = Loss("chat-1", "wrong_key", since=100.0, until=140.0)
    assert judge(replace(well, losses=[loss], hindered=[Hindered(0.0, 1000.0, "no daemon")]))


@pytest.mark.parametrize(
    "changed",
    [
        {"closed_refreshes": 2},
        {"calm": "3 pushes"},
        {"unanswered_pushes": 1},
        {"strangers": ["chat-1 is unknown"]},
        {"taken_without_disk": 1},
        {"taken_without_store": 1},
        {"untold": 1},
        {"last_words": 2, "answers_lost": 1},
        {"told_wrongly": ["an event out of order"]},
        {"complaints": ["Traceback"]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_each_promise_can_be_broken(changed: dict[str, object], well: Observed) -> None:
    assert len(judge(replace(well, **changed))) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        *("wrong_key_requests", "wrong_user_id_requests", "wrong_alias_requests", "overlapping_requests"),
        *("incomplete_requests", "unknown_chat_requests", "wrong_service_requests", "unreadable_requests"),
    ],
)
def test_each_rule_of_the_plant_is_judged(name: str, well: Observed) -> None:
    found = judge(replace(well, report=replace(well.report, **{name: 1})))  # type: ignore[arg-type]
    assert len(found) == 1


def test_the_rate_is_held_but_for_the_time_the_plant_itself_stood_still(well: Observed) -> None:
    report = replace(well.report, peak_requests_per_second=110)
    assert judge(replace(well, report=report))
    assert not judge(replace(well, report=replace(report, longest_pause_seconds=0.1)))


def test_a_plant_that_stood_still_for_long_was_gone_for_the_watcher(well: Observed) -> None:
    at = "2024-01-01T00:00:00.000Z"
    view = shapes.Restoration(
        id=1, server="chat-1", alias="117", cause="returned", started_at=at,
        finished_at=at, took_seconds=0.5, state="finished",
        sessions=1, restored=1, ended=0, refused=0, moved=0, waiting=0,
    )  # fmt: skip
    stormy = replace(well, storms=[view])
    assert judge(stormy)
    assert not judge(replace(stormy, report=replace(well.report, longest_pause_seconds=2.0)))


@pytest.mark.parametrize(
    ("counts", "finished", "well_done"),
    [
        (Counter(sessions=5, restored=4, ended=1), True, True),
        (Counter(sessions=5, restored=4, ended=1), False, False),
        (Counter(sessions=5, restored=4), True, False),
        (Counter(sessions=5, restored=4, waiting=1), False, False),
        (Counter(sessions=5, restored=6), True, False),
    ],
)
def test_counts_of_restorations_must_be_true(
    counts: Counter[str], finished: bool, well_done: bool, well: Observed
) -> None:
    at = "2024-01-01T00:00:00.000Z"
    view = shapes.Restoration(
        id=1, server="chat-1", alias="117", cause="unreachable", started_at=at,
        finished_at=at if finished else None, took_seconds=1.0 if finished else None,
        sessions=counts["sessions"], restored=counts["restored"], ended=counts["ended"],
        refused=counts["refused"], moved=counts["moved"], waiting=counts["waiting"],
    )  # fmt: skip
    assert (judge(replace(well, restorations=[view])) == []) is well_done
