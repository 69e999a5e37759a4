"""The plain data: words that outlive a release, a digest that does, and what a restoration's counts come to."""

from __future__ import annotations

from enum import Enum

import pytest

from asyncchatd.model import replace
from asyncchatd.model.data import (
    Cause,
    ChatServer,
    Claim,
    EndCause,
    Loss,
    Process,
    Reason,
    Registration,
    Restoration,
    RestorationState,
    ServerState,
    SessionState,
    Settled,
    Settlement,
    TokenNews,
    Tokens,
    Verdict,
    View,
    Views,
    key_digest,
)

NEWS = TokenNews("chat-1", "user-1", "key-1", "117")
RESTORATION = Restoration(
    id=1,
    alias="117",
    server="chat-a",
    cause=Cause.UNREACHABLE,
    started_at=1_000,
    marking=False,
    sessions=100,
    restored=40,
    ended=20,
    refused=0,
    moved=7,
    finished_at=None,
)


# -- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (SessionState, "live incomplete ended"),
        (EndCause, "chat_ended removed"),
        (ServerState, "unknown up suspect down"),
        (Cause, "unreachable restarted returned replaced announced operator"),
        (RestorationState, "running finished incomplete"),
        (Verdict, "answered ended retry refused released learned called"),
    ],
)
def test_words_stay_as_databases_and_consumers_know_them(kind: type[Enum], words: str) -> None:
    assert [each.value for each in kind] == words.split()


def test_reasons_stay_as_databases_have_them_the_most_urgent_first() -> None:
    assert [(reason.value, reason.word) for reason in Reason] == [
        (0, "acknowledge"),
        (1, "restore"),
        (2, "request"),
        (3, "keepalive"),
    ]


# -- keys ------------------------------------------------------------------------------------------------


def test_a_key_is_known_again_by_the_digest_that_an_older_release_wrote() -> None:
    assert key_digest("key-1") == "dc171018ddf2"


def test_a_key_that_is_no_text_has_a_digest_too() -> None:
    assert key_digest("\udc80") == "25b71e409594"


# -- what is not said ------------------------------------------------------------------------------------


def test_news_are_complete_with_all_four_tokens() -> None:
    assert NEWS.complete()
    for name in ("chat_id", "user_id", "secure_key", "alias"):
        assert not replace(NEWS, **{name: None}).complete()


def test_of_a_registration_nothing_holds_that_was_not_said() -> None:
    told = Registration(NEWS, "support")
    assert (told.of_gateway, told.ended) == (False, False)


def test_of_a_chat_server_that_was_never_seen_nothing_is_assumed() -> None:
    server, process = ChatServer("chat-a"), Process()
    assert (server.state, server.since, server.checked_at, server.epoch) == (ServerState.UNKNOWN, 0, 0, 0)
    assert (server.first_seen, server.last_seen, server.assumed) == (0, 0, False)
    assert (process.first_seen, process.last_seen, process.settled) == (0, 0, True)


def test_what_a_process_sees_is_of_now_and_of_one_server_unless_it_says_so() -> None:
    view = View(looked_at=0, failures=0, lost=False)
    assert not view.by_turns
    assert not Views(peer="", servers={"chat-a": view}, gms=True).silent
    assert not Loss("117", Cause.RESTARTED).again


def test_a_claim_was_never_refused_and_a_settlement_refuses_nothing_unless_it_says_so() -> None:
    tokens = Tokens("chat-1", "user-1", "key-1", "117")
    claim = Claim("chat-1", "support", tokens, None, Reason.REQUEST, 1_000.0, 0, None, claim_id=1, marks=0)
    assert (claim.row, claim.refusals) == (0, 0)
    settlement = Settlement(claim, Verdict.ANSWERED, 2_000.0)
    assert (settlement.sent_at, settlement.settled_at) == (0, 0)
    assert (settlement.refused, settlement.cut) == (False, False)
    assert not Settled("chat-1", lease_held=True, tokens_changed=False, alias=None).due_again


# -- restorations ----------------------------------------------------------------------------------------


def test_sessions_wait_that_were_not_answered_for() -> None:
    assert RESTORATION.waiting == 100 - 40 - 20 - 7
    assert replace(RESTORATION, refused=3).waiting == 30


@pytest.mark.parametrize(
    ("finished_at", "refused", "state"),
    [
        (None, 0, RestorationState.RUNNING),
        (None, 3, RestorationState.RUNNING),
        (2_000, 0, RestorationState.FINISHED),
        (2_000, 1, RestorationState.INCOMPLETE),
    ],
)
def test_a_restoration_is_incomplete_when_some_were_left_without_an_answer(
    finished_at: int | None, refused: int, state: RestorationState
) -> None:
    assert replace(RESTORATION, finished_at=finished_at, refused=refused).state is state
