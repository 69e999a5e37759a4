"""The demo: a small one to its end, an interrupted one, and what its verdict rests on."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import ran, started

from asyncchatd.control import shapes
from asyncchatd.rehearsing.chat_app import Delivery
from asyncchatd.rehearsing.customers import Account
from asyncchatd.rehearsing.demo_plan import DemoPlan
from asyncchatd.rehearsing.trial import overworked
from asyncchatd.rehearsing.verdict import DemoResult, Failure, verdict
from asyncchatd.standin import Plant

DEMO = (sys.executable, "-m", "asyncchatd", "demo", "--sessions", "200", "--servers", "3", "--seconds", "3")
REHEARSAL = (sys.executable, "-m", "asyncchatd", "rehearse", "--sessions", "200", "--servers", "3")
ENDED_SECONDS = 5.0
"""A second is what it may take; the machine may be busy."""


@pytest.mark.slow
def test_a_small_demo_keeps_every_promise_and_shows_what_they_are_worth() -> None:
    done = ran(*DEMO, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(done.stdout)
    assert outcome["kept"] is True
    assert all(promise["kept"] for promise in outcome["promises"])
    guarded, unguarded = outcome["with_asyncchatd"], outcome["without_asyncchatd"]
    assert guarded["sessions_lost"] == 0
    customers, others = outcome["pages_through_the_gateway"], outcome["pages_straight_at_gms"]
    assert unguarded["lost_by_cause"]["wrong_key"] == others["pages"] == others["thrown_out"] > 0
    assert unguarded["sessions_lost"] == sum(unguarded["lost_by_cause"].values()) == outcome["chats_on_it"]
    assert guarded["restored"] > unguarded["restored"] == others["pages"]
    assert guarded["without_server_seconds"]["max"] < outcome["restoration_window_seconds"]
    assert guarded["acknowledged"] > 0
    assert guarded["answers_lost"] > 0
    assert guarded["requests_faulted"] > 0, "a node was redeployed"
    assert outcome["restoration"]["cause"] == "unreachable"
    assert outcome["directory"] is None
    delivery = outcome["delivery"]
    assert delivery["written"] == delivery["delivered"] > 0 == delivery["disordered"] == delivery["unsigned"]
    assert customers["pages"] == customers["moved"] == customers["rekeyed"] == others["pages"]
    assert customers["thrown_out"] == customers["twice"] == customers["disordered"] == 0
    assert customers["agents_seen"] == customers["agents_said"] > others["agents_seen"]
    assert customers["customers_heard"] == customers["customers_said"] > others["customers_heard"]
    assert others["polls"] == others["refreshes"], "each poll is one Refresh more at GMS"


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing_behind() -> None:
    with started(*DEMO, stderr=subprocess.PIPE) as demo:
        found = told(demo, r"asyncchatd runs, process (\d+), SQLite in (\S+)\.\n")
        os.kill(int(found[1]), 0)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 128 + signal.SIGINT
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)
    assert not Path(found[2]).exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waiting for another's child needs Linux")
@pytest.mark.parametrize("command", [DEMO, REHEARSAL], ids=["demo", "rehearse"])
@pytest.mark.parametrize("frozen", [False, True], ids=["at work", "stopped"])
def test_a_daemon_ends_with_the_demo_that_is_killed(
    command: Sequence[str], frozen: bool, tmp_path: Path
) -> None:
    with started(*command, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)}) as parent:
        daemon = int(told(parent, r"asyncchatd runs, process (\d+)[,.]")[1])
        ended = os.pidfd_open(daemon)
        try:
            if frozen:
                os.kill(daemon, signal.SIGSTOP)
            parent.kill()
            assert select.select([ended], [], [], ENDED_SECONDS)[0]
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(ended, signal.SIGKILL)
            os.close(ended)


def told(process: subprocess.Popen[bytes], what: str) -> re.Match[str]:
    """What it says, as soon as it does."""
    assert process.stdout is not None
    story = ""
    while (found := re.search(what, story)) is None:
        line = process.stdout.readline().decode()
        assert line, "it ended early"
        story += line
    return found


def outcome() -> DemoResult:
    """One of a demo in which all went well."""
    now = shapes.write_time(datetime.now(UTC))
    restoration = shapes.Restoration(
        id=1, server="chat-2", alias="118", cause="unreachable", started_at=now, finished_at=now,
        took_seconds=1.0, sessions=10, restored=10, ended=0, refused=0, moved=0, waiting=0,
    )  # fmt: skip
    suffered = replace(Plant().report(), acknowledged=5, restored=10)
    return DemoResult(
        DemoPlan(),
        Failure("chat-2", 10, 2.0, restoration),
        suffered,
        suffered,
        came(),
        went(),
        went(),
        0,
        40.0,
    )


def test_the_verdict_is_good_when_the_plant_suffered_nothing() -> None:
    assert outcome().kept


@pytest.mark.parametrize(
    "suffering",
    [
        {"sessions_lost": 1},
        {"sessions_without_server": 1},
        {"wrong_key_requests": 1},
        {"wrong_alias_requests": 1},
        {"overlapping_requests": 1},
        {"repeated_at_once_requests": 1},
        {"refreshes_of_closed_chats_max": 2},
        {"peak_requests_per_second": 203},
        {"pushes_failed": 1},
        {"pushes_unacknowledged": 1},
        {"acknowledged": 0},
    ],
)
def test_whatever_the_plant_suffered_breaks_the_verdict(suffering: dict[str, int]) -> None:
    good = outcome()
    broken = replace(good, guarded=replace(good.guarded, **suffering))  # type: ignore[arg-type]
    assert len([promise for promise in broken.promises if not promise.kept]) == 1


def came(*, written: int = 9, delivered: int = 9, disordered: int = 0, unsigned: int = 0) -> Delivery:
    """A delivery, of which all went well but for this."""
    return Delivery(written, delivered, disordered, twice=1, unsigned=unsigned, p50=0.02, longest=2.1)


@pytest.mark.parametrize(
    "delivery", [came(delivered=8), came(disordered=1), came(unsigned=1), came(written=0, delivered=0)]
)
def test_messages_that_did_not_come_as_they_should_break_the_verdict(delivery: Delivery) -> None:
    broken = replace(outcome(), delivery=delivery)
    assert [promise.text for promise in broken.promises if not promise.kept] == [
        "every message of an agent was delivered, in order"
    ]


def went(**otherwise: int) -> Account:
    """How ten pages fared, of which all rode through but for this."""
    well = {"pages": 10, "moved": 10, "rekeyed": 10, "thrown_out": 0, "polls": 300, "refreshes": 60}
    talk = {"agents_said": 50, "agents_seen": 50, "customers_said": 45, "customers_heard": 45}
    return Account(**{**well, **talk, "twice": 0, "disordered": 0, **otherwise})


@pytest.mark.parametrize(
    ("customers", "broken"),
    [
        (went(thrown_out=1), "a chat page that keeps its first key for ever is not thrown out"),
        (went(moved=9), "a chat page that keeps its first key for ever is not thrown out"),
        (went(rekeyed=9), "a chat page that keeps its first key for ever is not thrown out"),
        (went(agents_seen=49), "every message of a page's chat comes to the other side once, and in order"),
        (
            went(customers_heard=44),
            "every message of a page's chat comes to the other side once, and in order",
        ),
        (went(twice=1), "every message of a page's chat comes to the other side once, and in order"),
        (went(disordered=1), "every message of a page's chat comes to the other side once, and in order"),
        (went(refreshes=300), "polls of pages do not reach GMS"),
    ],
)
def test_what_the_pages_suffered_breaks_the_verdict(customers: Account, broken: str) -> None:
    result = replace(outcome(), customers=customers)
    assert [promise.text for promise in result.promises if not promise.kept] == [broken]


def test_what_the_other_pages_suffered_breaks_no_promise() -> None:
    assert replace(outcome(), others=went(thrown_out=10, agents_seen=20)).kept


def test_refreshes_are_allowed_for_messages_the_restoration_and_keepalives() -> None:
    good = outcome()
    allowed = 50 + 45 + 10 * (3 + 2)  # 40 s are two keepalives, of 30 s each
    assert good.refreshes_allowed == allowed
    assert replace(good, customers=went(refreshes=allowed)).kept
    assert not replace(good, customers=went(refreshes=allowed + 1)).kept


def test_the_rate_is_held_but_for_the_time_the_plant_itself_stood_still() -> None:
    good = outcome()
    report = replace(good.guarded, peak_requests_per_second=204)
    assert not replace(good, guarded=report).kept
    busy = replace(good, guarded=replace(report, longest_pause_seconds=0.03))
    assert busy.kept
    [said] = [promise.measured for promise in busy.promises if "rate" in promise.text]
    assert said == "204 of 200, the plant paused 30 ms"


def test_what_gms_answered_too_late_is_told_beside_what_was_broken() -> None:
    good = outcome()
    assert overworked(good.guarded, 2.0) is None
    late = replace(good.guarded, requests_abandoned=3, wrong_key_requests=2)
    broken = replace(good, guarded=late)
    doubt = overworked(broken.guarded, 2.0)
    said = verdict(broken, doubt).plain.splitlines()
    assert len(said) == 3
    assert said[2] == doubt
    assert "served 3 requests only after asyncchatd, which waits 2 s here" in said[2]
    assert overworked(late, 2.0, left=3) is None, "a node that is killed leaves some too"
    assert "promises kept" in verdict(replace(good, guarded=replace(late, wrong_key_requests=0)), doubt).plain


def test_an_unfinished_restoration_or_an_unclean_stop_breaks_the_verdict() -> None:
    good = outcome()
    assert not replace(good, failure=Failure("chat-2", 10, None, None)).kept
    assert not replace(good, exit_status=1).kept
