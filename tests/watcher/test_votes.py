"""Whether a Chat Server is gone by the views of several nodes."""

from __future__ import annotations

import pytest

from asyncchatd.model.data import Ms, View, Views
from asyncchatd.watcher.votes import hinted, vote

NOW: Ms = 1_700_000_000_000
WINDOW: Ms = 9_000

REACHED = View(NOW - 1_000, 0, lost=False)
MISSED = View(NOW - 1_000, 1, lost=False)
LOST = View(NOW - 1_000, 3, lost=True)
OLD = View(NOW - WINDOW - 1, 0, lost=False)
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


def test_who_reaches_neither_servers_nor_gms_has_no_vote() -> None:
    assert not vote("chat-1", sees("", LOST, LOST, gms=False), [], now=NOW, window=WINDOW).down
    others = [sees("node-2", LOST, LOST, gms=False), sees("node-3", REACHED, REACHED)]
    assert not vote("chat-1", sees("", LOST, LOST, gms=False), others, now=NOW, window=WINDOW).down


def test_a_plant_that_went_down_as_a_whole_is_down() -> None:
    assert vote("chat-1", sees("", LOST, LOST), [sees("node-2", LOST, LOST)], now=NOW, window=WINDOW).down


def test_those_who_reach_it_are_named() -> None:
    others = [sees("node-2", REACHED, REACHED), sees("node-3", MISSED, REACHED), sees("node-4", OLD, REACHED)]
    found = vote("chat-1", sees("", LOST, REACHED, REACHED), others, now=NOW, window=WINDOW)
    assert found.against == ("node-2",)


def test_what_another_one_missed_since_is_a_hint() -> None:
    own = sees("", View(NOW - 2_000, 0, lost=False), MISSED, View(NOW, 0, lost=False), REACHED).servers
    others = [sees("node-2", MISSED, MISSED, MISSED, REACHED, LOST)]
    assert hinted(own, others) == {"chat-1"}
