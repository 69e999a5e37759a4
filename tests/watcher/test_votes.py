"""Whether a Chat Server is gone by the views of several nodes."""

from __future__ import annotations

import pytest

from asyncchatd.model.data import Ms, Process, View, Views
from asyncchatd.model.values import replace
from asyncchatd.watcher.votes import (
    CLOCKS_MS,
    LOOKED_AT_MS,
    Elsewhere,
    Known,
    doubted,
    elsewhere,
    fell_elsewhere,
    hinted,
    is_most_read,
    lead,
    returned,
    sights,
    vote,
)

NOW: Ms = 1_700_000_000_000
WINDOW: Ms = 9_000

REACHED = View(NOW - 1_000, 0, lost=False)
MISSED = View(NOW - 1_000, 1, lost=False)
LOST = View(NOW - 1_000, 3, lost=True)
OLD = View(NOW - WINDOW - 1, 0, lost=False)
JUST_LATELY = View(NOW - WINDOW, 0, lost=False)
OLD_LOST = View(NOW - WINDOW - 1, 3, lost=True)


def sees(peer: str, *views: View, gms: bool = True) -> Views:
    """What a node sees of chat-1, chat-2 and so on."""
    return Views(peer, {f"chat-{number}": view for number, view in enumerate(views, 1)}, gms)


@pytest.mark.parametrize(
    ("own", "others", "down"),
    [
        (LOST, [], True),
        (LOST, [LOST], True),
        (LOST, [REACHED], False),
        (LOST, [MISSED], False),
        (LOST, [LOST, REACHED], True),
        (LOST, [REACHED, REACHED], False),
        (LOST, [LOST, REACHED, REACHED], False),
        (LOST, [LOST, LOST, REACHED, REACHED], True),
        (LOST, [OLD], True),
        (LOST, [OLD, OLD, REACHED], False),
        (LOST, [JUST_LATELY], False),
        (REACHED, [LOST, LOST], True),
        (LOST, [OLD_LOST, REACHED], False),
    ],
)
def test_more_than_half_of_those_who_looked_lately_must_find_it_gone(
    own: View, others: list[View], down: bool
) -> None:
    """Each reaches two other servers besides."""
    all_of_them = [sees(f"node-{number}", each, REACHED, REACHED) for number, each in enumerate(others)]
    assert vote("chat-1", sees("", own, REACHED, REACHED), all_of_them, now=NOW, window=WINDOW).down is down


def test_who_does_not_watch_it_has_no_vote() -> None:
    others = [sees("node-2"), sees("node-3", LOST, REACHED)]
    assert vote("chat-1", sees("", LOST, REACHED), others, now=NOW, window=WINDOW).down


def test_who_is_cut_off_from_most_servers_has_no_vote_where_another_one_reaches_them() -> None:
    cut_off = sees("", LOST, LOST, REACHED)
    assert not vote("chat-1", cut_off, [sees("node-2", REACHED, LOST, REACHED)], now=NOW, window=WINDOW).down
    # Nor does it count for others.
    found = vote(
        "chat-2",
        sees("", LOST, LOST, REACHED),
        [sees("node-2", REACHED, LOST, REACHED)],
        now=NOW,
        window=WINDOW,
    )
    assert found.down


@pytest.mark.parametrize(
    ("own", "others"),
    [
        # One who reaches half of them is cut off from nobody.
        (sees("", LOST, REACHED), [(LOST, REACHED, REACHED), (REACHED, REACHED, REACHED)]),
        # Who reached them long ago says nothing of now.
        (sees("", LOST, LOST, REACHED), [(OLD, OLD, REACHED)]),
        # One who reaches a server is on the network, also without a GMS node.
        (sees("", LOST, LOST, REACHED, gms=False), []),
    ],
    ids=["half", "long ago", "no gms"],
)
def test_who_may_be_right_has_a_vote(own: Views, others: list[tuple[View, ...]]) -> None:
    heard = [sees(f"node-{number}", *views) for number, views in enumerate(others, 2)]
    assert vote("chat-1", own, heard, now=NOW, window=WINDOW).down


def test_who_reaches_neither_servers_nor_gms_has_no_vote() -> None:
    assert not vote("chat-1", sees("", LOST, LOST, gms=False), [], now=NOW, window=WINDOW).down
    others = [sees("node-2", LOST, LOST, gms=False), sees("node-3", REACHED, REACHED)]
    assert not vote("chat-1", sees("", LOST, LOST, gms=False), others, now=NOW, window=WINDOW).down


def test_a_plant_that_went_down_as_a_whole_is_down() -> None:
    assert vote("chat-1", sees("", LOST, LOST), [sees("node-2", LOST, LOST)], now=NOW, window=WINDOW).down


def test_those_who_reach_it_are_named() -> None:
    others = [sees("node-2", REACHED, REACHED), sees("node-3", MISSED, REACHED), sees("node-4", OLD, REACHED)]
    for own in (LOST, REACHED):
        found = vote("chat-1", sees("", own, REACHED, REACHED), others, now=NOW, window=WINDOW)
        assert found.reached == ("node-2",), "others, never oneself"


@pytest.mark.parametrize(
    ("theirs", "ours", "look"),
    [
        (MISSED, View(NOW - 2_000, 0, lost=False), True),
        (MISSED, View(NOW - 2_000, 1, lost=False), False),
        (MISSED, REACHED, False),
        (MISSED, View(NOW, 0, lost=False), False),
        (REACHED, View(NOW - 2_000, 0, lost=False), False),
    ],
    ids=["since", "missed here too", "in the same moment", "before", "reached"],
)
def test_what_another_one_missed_since_is_a_hint(theirs: View, ours: View, look: bool) -> None:
    """They watch a server besides that is not watched here."""
    assert hinted(sees("", ours).servers, [sees("node-2", theirs, LOST)]) == ({"chat-1"} if look else set())


A, B = Process("117", "1001"), Process("117", "2002")


def read(process: Process, *, since: Ms = NOW - 60_000, at: Ms = NOW - 1_000) -> View:
    """Who was read by a look that began then, and since when nobody else was."""
    return View(at, 0, lost=False, read=replace(process, first_seen=since, last_seen=at))


GONE, OF_B = replace(LOST, read=A), read(B)
BESIDE = Known(A, [B])
WELL = (REACHED, REACHED)


@pytest.mark.parametrize(
    ("own", "others", "silent", "known", "down"),
    [
        (GONE, [OF_B], [], BESIDE, True),
        (GONE, [OF_B, REACHED], [], BESIDE, False),
        (GONE, [OF_B], [], Known(A, [Process("117", "3003")]), False),
        (GONE, [replace(OF_B, by_turns=True)], [], BESIDE, False),
        (GONE, [replace(LOST, read=B), read(A)], [], BESIDE, False),
        (OF_B, [GONE], [], BESIDE, None),
        (replace(LOST, read=B), [read(A)], [], BESIDE, None),
        (replace(LOST, read=B), [], [], BESIDE, True),
        (replace(LOST, read=B), [], [read(A)], BESIDE, None),
        (replace(LOST, read=B), [OLD], [], BESIDE, None),
        (GONE, [OF_B], [read(A)], BESIDE, True),
    ],
    ids=[
        "only who reads the other one reaches anybody",
        "one reaches it",
        "which may have come in its place",
        "both answer there by turns",
        "who missed the other one does not count",
        "who reads the other one leaves it to the others",
        "also where he misses it",
        "but not where there is nobody else",
        "nor where that one is silent",
        "or has not looked lately",
        "who is silent has no vote",
    ],
)
def test_who_is_led_to_a_process_that_was_there_beside_the_known_one_has_no_vote(
    own: View, others: list[View], silent: list[View], known: Known, down: bool | None
) -> None:
    heard, unheard = (
        [sees(f"node-{number}", each, *WELL) for number, each in enumerate(views, 2)]
        for views in (others, silent)
    )
    found = vote("chat-1", sees("", own, *WELL), heard, now=NOW, window=WINDOW, known=known, silent=unheard)
    assert found.down is down


@pytest.mark.parametrize(
    ("theirs", "ours", "look"),
    [
        (read(A, since=LOST.looked_at), LOST, True),
        (read(A, since=LOST.looked_at - LOOKED_AT_MS + 1), LOST, True),
        (read(A, since=LOST.looked_at - LOOKED_AT_MS), LOST, False),  # and was missed here since
        (read(A, since=LOST.looked_at), MISSED, True),
        (read(A, since=LOST.looked_at), REACHED, False),
        (replace(read(A, since=LOST.looked_at), failures=1), LOST, False),  # it was read, and then missed
        (REACHED, LOST, False),  # of a version that does not say since when
    ],
)
def test_that_another_one_begins_to_read_what_is_missed_here_is_a_hint(
    theirs: View, ours: View, look: bool
) -> None:
    found = returned(sees("", ours).servers, [sees("node-2", theirs, read(A, since=NOW))])
    assert found == ({"chat-1"} if look else set())


@pytest.mark.parametrize(
    ("known_there_at", "found"),
    [
        ([], Elsewhere.GONE),
        ([NOW - 1], Elsewhere.UNKNOWN),
        ([NOW], Elsewhere.UNKNOWN),
        ([NOW + CLOCKS_MS - 1], Elsewhere.UNKNOWN),
        ([NOW + CLOCKS_MS], Elsewhere.THERE),
        ([NOW - 1, NOW + CLOCKS_MS], Elsewhere.THERE),
    ],
)
def test_only_a_look_that_began_later_says_that_the_known_process_is_there(
    known_there_at: list[Ms], found: Elsewhere
) -> None:
    others = [replace(B, last_seen=NOW + 60_000), Process("118", "1001", last_seen=NOW + 60_000), Process()]
    seen = [replace(A, last_seen=at) for at in known_there_at]
    assert elsewhere(A, B, [*others, *seen], since=NOW) is found
    assert elsewhere(A, B, None, since=NOW) is Elsewhere.UNKNOWN, "nobody can be asked"


@pytest.mark.parametrize(("uptime_of", "found"), [("first", Elsewhere.THERE), ("second", Elsewhere.GONE)])
def test_one_that_fell_soon_after_its_start_is_told_from_the_next_one(
    uptime_of: str, found: Elsewhere
) -> None:
    """In a container both have one id, and uptimes that differ by less than they may waver."""
    first, second = (Process("117", "1", began=NOW / 1000 + at) for at in (0.0, 48.0))
    there = replace(first if uptime_of == "first" else second, last_seen=NOW + 60_000)
    assert elsewhere(first, second, [there], since=NOW + 50_000) is found


def counted(since: Ms, at: Ms, *, fell: bool = False) -> Process:
    """What another one reads of a server whose counters alone tell: since when they have not run backwards."""
    return Process("117", first_seen=NOW + since, last_seen=NOW + at, settled=not fell)


ON, FELL, YET = counted(-60_000, 6_000), counted(2_000, 6_000, fell=True), counted(-60_000, 4_000)
ANEW = counted(2_000, 6_000)


@pytest.mark.parametrize(
    ("sights", "found"),
    [
        ([], Elsewhere.GONE),
        ([FELL], Elsewhere.GONE),
        ([ON], Elsewhere.THERE),
        ([YET], Elsewhere.UNKNOWN),
        ([ON, FELL], Elsewhere.GONE),
        ([ON, ON], Elsewhere.THERE),
        ([ON, YET], Elsewhere.THERE),
        ([YET, FELL], Elsewhere.GONE),
        ([ON, ANEW], Elsewhere.THERE),
        ([ANEW, ANEW], Elsewhere.GONE),
        ([ON, ON, FELL], Elsewhere.THERE),
        ([ON, ON, FELL, FELL], Elsewhere.GONE),
        ([counted(-CLOCKS_MS, 6_000, fell=True)], Elsewhere.GONE),
        ([counted(-CLOCKS_MS - 1, 6_000, fell=True)], Elsewhere.THERE),
        ([counted(-60_000, 5_000 + CLOCKS_MS)], Elsewhere.THERE),
        ([counted(-60_000, 5_000 + CLOCKS_MS - 1)], Elsewhere.UNKNOWN),
        (None, Elsewhere.UNKNOWN),
    ],
)
def test_more_than_half_must_find_that_counters_ran_backwards(
    sights: list[Process] | None, found: Elsewhere
) -> None:
    """They did here between now and in five seconds. Who began to look in that time cannot tell."""
    assert fell_elsewhere(sights, after=NOW, at=NOW + 5_000) is found


C = Process("117", "3003")


@pytest.mark.parametrize(
    ("others", "most", "ahead"),
    [
        ([], True, 1),
        ([A], True, 2),
        ([B], False, 0),
        ([A, B], True, 1),
        ([B, C], False, 0),
        ([B, B], False, -1),
        ([A, B, B], False, 0),
        ([A, B, C], False, 1),
    ],
)
def test_what_is_read_here_may_be_what_most_read_or_more_than_any_other(
    others: list[Process], most: bool, ahead: int
) -> None:
    assert is_most_read(A, others) is most
    assert lead(A, others) == ahead


def test_while_nobody_can_be_asked_nothing_is_read_by_most() -> None:
    assert not is_most_read(A, None)


def test_what_others_read_counts_of_those_who_looked_lately_and_can_be_right() -> None:
    def heard(*others: Views) -> list[Process]:
        return sights("chat-1", sees("", read(B), REACHED, REACHED), others, now=NOW, window=WINDOW)

    lately, old = read(A), read(A, at=NOW - WINDOW - 1)
    assert heard(sees("node-2", lately, REACHED, REACHED)) == [lately.read]
    assert heard(sees("node-2", read(A, at=NOW - WINDOW), REACHED, REACHED)), "just lately"
    assert not heard(sees("node-2", old, REACHED, REACHED)), "it looks no more"
    assert not heard(sees("node-2", REACHED)), "an older asyncchatd does not say whom it read"
    assert not heard(sees("node-2"))
    assert not heard(sees("node-2", lately, LOST, LOST)), "it is cut off from most"
    missed, lost = (replace(lately, failures=count, lost=count == 3) for count in (1, 3))
    assert heard(sees("node-2", missed, REACHED, REACHED)) == [lately.read]
    assert not heard(sees("node-2", lost, REACHED, REACHED))
    others = [sees("node-2", replace(old, failures=3, lost=True), *WELL), sees("node-3", lately, *WELL)]
    own = sees("", read(B), *WELL)
    assert sights("chat-1", own, others, now=NOW, window=WINDOW, lost=True) == [old.read], "however long ago"


@pytest.mark.parametrize(
    ("theirs", "ours", "look"),
    [
        (read(B, since=NOW), read(A), True),
        (read(B, since=NOW - 2_000), read(A, at=NOW), True),
        (read(B, since=NOW - LOOKED_AT_MS), read(A, at=NOW), False),
        (read(A, since=NOW), read(A), False),
        (read(B, since=NOW), read(B), False),
        (read(B, since=NOW), MISSED, False),
        (read(B, since=NOW), replace(read(A), failures=1), False),
        (REACHED, read(A), False),
        (read(Process(), since=NOW), read(A), False),
    ],
)
def test_that_another_one_begins_to_read_another_process_is_a_hint(
    theirs: View, ours: View, look: bool
) -> None:
    assert doubted(sees("", ours).servers, [sees("node-2", theirs, REACHED)]) == (
        {"chat-1"} if look else set()
    )
