"""Never the wrong key: each rule on its own, and all of them against a Chat Server that changes keys
under delayed, reordered and repeated messages."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from conftest import case

from asyncchatd.model.data import (
    Claim,
    Ms,
    Reason,
    Registration,
    Settlement,
    TokenNews,
    Tokens,
    Verdict,
    key_digest,
)
from asyncchatd.model.tokens import (
    CLOCK_TOLERANCE_MS,
    Handed,
    TokenRecord,
    doubt,
    from_app,
    from_push,
    from_registration,
    from_reply,
    from_settlement,
    from_take,
)
from asyncchatd.model.values import Value, replace

NOON = 1_700_000_000_000
MINUTE = 60_000

KNOWN = TokenRecord(user_id="user", secure_key="key-1", alias="117", sent_at=NOON, next_position=8)


def reply(
    known: TokenRecord,
    key: str | None = None,
    *,
    sent_key: str = "key-1",
    alias: str | None = None,
    sent_at: Ms = NOON + MINUTE,
    seen_utc: Ms | None = None,
    next_position: int | None = None,
) -> TokenRecord:
    """A reply that came a second after its request was sent."""
    return from_reply(
        known,
        sent_key,
        TokenNews(secure_key=key, alias=alias),
        sent_at=sent_at,
        answered_at=sent_at + 1000,
        seen_utc=seen_utc,
        next_position=next_position,
    )


def push(
    known: TokenRecord,
    key: str | None = None,
    *,
    user_id: str | None = None,
    alias: str | None = None,
    utc_time: Ms | None = None,
    position: int | None = None,
    at: Ms | None = None,
) -> TokenRecord:
    news = TokenNews(user_id=user_id, secure_key=key, alias=alias)
    return from_push(known, news, utc_time=utc_time, position=position, at=at)[0]


def registration(
    known: TokenRecord, key: str, *, at: Ms = NOON + MINUTE, next_position: int | None = None
) -> TokenRecord:
    news = TokenNews("chat", "user", key, "117")
    return from_registration(known, news, at=at, next_position=next_position)[0]


# -- replies -------------------------------------------------------------------------------------


def test_a_reply_brings_the_newest_tokens() -> None:
    news = TokenNews("chat", "user-2", "key-2", "118")
    known = from_reply(KNOWN, "key-1", news, sent_at=NOON + MINUTE, seen_utc=NOON + 9, next_position=11)
    assert (known.user_id, known.secure_key, known.alias) == ("user-2", "key-2", "118")
    assert (known.sent_at, known.seen_utc, known.next_position) == (NOON + MINUTE, NOON + 9, 11)


def test_what_a_reply_does_not_say_stays() -> None:
    known = reply(KNOWN)
    assert known == replace(KNOWN, sent_at=NOON + MINUTE)


def test_a_reply_that_repeats_the_key_was_made_before_the_push_that_told_another() -> None:
    told = push(KNOWN, "key-3")
    assert reply(told, None).secure_key == "key-3"
    assert reply(told, "key-1").secure_key == "key-3"


def test_nor_does_the_alias_count_of_a_reply_that_was_made_before_the_push() -> None:
    told = push(KNOWN, "key-3")
    assert reply(told, None, alias="118").alias == "117"
    assert reply(told, "key-1", alias="118").alias == "117"


@pytest.mark.parametrize("later", [0, 500])
def test_a_reply_whose_transcript_ends_before_the_push_was_made_before_it(later: Ms) -> None:
    told = push(KNOWN, "key-3", utc_time=NOON + MINUTE + later, position=9)
    assert reply(told, "key-2", next_position=9).secure_key == "key-3"


def test_a_reply_that_shows_the_event_of_the_push_was_made_after_it() -> None:
    told = push(KNOWN, "key-2", utc_time=NOON + MINUTE + 500, position=9)
    assert reply(told, "key-3", next_position=10).secure_key == "key-3"


@pytest.mark.parametrize("position", [None, 99])
def test_a_reply_was_made_after_a_push_of_an_event_before_its_request(position: int | None) -> None:
    told = push(KNOWN, "key-2", utc_time=NOON + MINUTE - 1, position=position)
    assert reply(told, "key-3", next_position=9).secure_key == "key-3"


def test_a_reply_was_made_after_a_push_that_does_not_say_where_its_event_stands() -> None:
    told = push(KNOWN, "key-3", utc_time=NOON + MINUTE + 500)
    assert reply(told, "key-2", next_position=9).secure_key == "key-2"


def test_a_reply_that_does_not_say_where_its_transcript_ends_was_made_after_the_push() -> None:
    told = push(KNOWN, "key-2", utc_time=NOON + MINUTE + 500, position=9)
    assert reply(told, "key-3", next_position=None).secure_key == "key-3"


def test_a_key_that_lost_to_a_push_does_not_come_back_with_a_late_push() -> None:
    known = reply(push(KNOWN, "key-3", utc_time=NOON + 2 * MINUTE, position=9), "key-2", next_position=9)
    assert push(known, "key-2", utc_time=NOON + 3 * MINUTE).secure_key == "key-3"


def test_what_a_push_taught_before_a_reply_confirmed_it_does_not_outlive_the_next_reply() -> None:
    told = push(KNOWN, "key-2", utc_time=NOON + 2 * MINUTE, position=99)
    confirmed = reply(told, "key-2", next_position=9)
    assert confirmed.told_position is None


def test_a_reply_confirms_the_key_that_a_push_told_first() -> None:
    told = push(KNOWN, "key-2", utc_time=NOON + MINUTE)
    known = reply(told, "key-2", alias="118")
    assert (known.secure_key, known.alias) == ("key-2", "118")


def test_the_reply_to_an_older_request_teaches_nothing() -> None:
    newest = reply(KNOWN, "key-2", alias="118", sent_at=NOON + 2 * MINUTE, next_position=20)
    late = reply(newest, "key-9", alias="119", sent_at=NOON + MINUTE, next_position=9)
    assert (late.secure_key, late.alias, late.next_position) == ("key-2", "118", 20)
    assert late.sent_at == NOON + 2 * MINUTE


def test_the_reply_to_an_older_request_proves_keys_old() -> None:
    newest = reply(KNOWN, "key-2", sent_at=NOON + 2 * MINUTE)
    late = reply(newest, "key-9", sent_at=NOON + MINUTE)
    assert push(late, "key-9", utc_time=NOON + 3 * MINUTE).secure_key == "key-2"
    assert reply(late, "key-9", sent_at=NOON + MINUTE).old_keys == late.old_keys


@pytest.mark.parametrize("key", ["key-1", None])
def test_the_reply_to_an_older_request_says_nothing_when_it_repeats_the_key(key: str | None) -> None:
    newest = reply(KNOWN, None, alias="118", sent_at=NOON + 2 * MINUTE)
    assert reply(newest, key, alias="117", sent_at=NOON + MINUTE).alias == "118"


def test_the_reply_to_an_older_request_counts_when_it_replaces_the_very_key_we_know() -> None:
    # Had Chat Server taken the older request first, the younger one would have carried a wrong key.
    answered = reply(KNOWN, "key-1", sent_at=NOON + 2 * MINUTE, next_position=20)
    known = reply(answered, "key-2", sent_at=NOON + MINUTE, next_position=9)
    assert known.secure_key == "key-2"
    assert (known.sent_at, known.next_position) == (NOON + 2 * MINUTE, 20)


def test_a_reply_that_repeats_what_it_was_asked_with_does_not_undo_what_a_push_told_of_it() -> None:
    told = push(KNOWN, user_id="user-2", alias="118", utc_time=NOON + MINUTE)

    def replied(user_id: str, alias: str) -> tuple[str | None, str | None]:
        news = TokenNews("chat", user_id, "key-1", alias)
        known = from_reply(
            told,
            "key-1",
            news,
            sent_at=NOON + MINUTE,
            seen_utc=None,
            next_position=None,
            sent_user="user",
            sent_alias="117",
        )
        return known.user_id, known.alias

    assert replied("user", "117") == ("user-2", "118")
    assert replied("user-3", "119") == ("user-3", "119")


def test_a_reply_may_bring_a_replaced_key_back() -> None:
    known = reply(reply(KNOWN, "key-2"), "key-1", sent_key="key-2", sent_at=NOON + 2 * MINUTE)
    assert known.secure_key == "key-1"
    assert known.old_keys == (key_digest("key-2"),)


def test_the_newest_event_time_never_goes_back() -> None:
    known = reply(KNOWN, seen_utc=NOON + 500)
    assert reply(known, seen_utc=NOON + 100, sent_at=NOON + 2 * MINUTE).seen_utc == NOON + 500


# -- pushes --------------------------------------------------------------------------------------


def test_a_push_teaches_what_is_newer_than_the_last_reply() -> None:
    known = push(KNOWN, "key-2", user_id="user-2", alias="118", utc_time=NOON + 1)
    assert (known.user_id, known.secure_key, known.alias) == ("user-2", "key-2", "118")


def test_what_a_push_does_not_say_stays() -> None:
    assert push(KNOWN, "key-2", utc_time=NOON + 1) == replace(
        KNOWN, secure_key="key-2", old_keys=(key_digest("key-1"),), seen_utc=NOON + 1
    )
    assert push(KNOWN, alias="118", utc_time=NOON + 1) == replace(KNOWN, alias="118")


def test_a_key_that_is_repeated_does_not_become_an_old_one() -> None:
    assert reply(KNOWN, "key-1").old_keys == ()
    assert push(KNOWN, "key-1", utc_time=NOON + 1).old_keys == ()
    assert registration(KNOWN, "key-1").old_keys == ()


def test_a_push_of_an_event_before_the_last_request_teaches_nothing() -> None:
    news = TokenNews(secure_key="key-0", alias="116")
    old = NOON - 2_001
    assert from_push(KNOWN, news, utc_time=old, position=None) == (KNOWN, True)


def test_a_push_of_an_event_before_the_newest_one_in_a_reply_teaches_nothing() -> None:
    known = reply(KNOWN, seen_utc=NOON + 5 * MINUTE)  # a Chat Server whose clock is ahead
    assert push(known, "key-0", utc_time=NOON + 5 * MINUTE - 1).secure_key == "key-1"
    assert push(known, "key-2", utc_time=NOON + 5 * MINUTE).secure_key == "key-2"


def test_a_chat_server_whose_clock_is_up_to_two_seconds_behind_is_believed() -> None:
    assert push(KNOWN, "key-2", utc_time=NOON - 2_000).secure_key == "key-2"


def test_a_time_outweighs_the_position() -> None:
    assert push(KNOWN, "key-2", utc_time=NOON + 1, position=1).secure_key == "key-2"


def test_without_a_time_the_position_decides() -> None:
    assert push(KNOWN, "key-0", position=7).secure_key == "key-1"
    assert push(KNOWN, "key-2", position=8).secure_key == "key-2"
    assert push(replace(KNOWN, next_position=None), "key-2", position=1).secure_key == "key-2"


def test_of_two_pushes_the_one_with_the_later_event_counts_whichever_comes_first() -> None:
    later_first = push(push(KNOWN, "key-3", utc_time=NOON + 30), "key-2", utc_time=NOON + 20)
    in_order = push(push(KNOWN, "key-2", utc_time=NOON + 20), "key-3", utc_time=NOON + 30)
    assert later_first.secure_key == in_order.secure_key == "key-3"


def test_a_push_that_repeats_the_known_key_confirms_it_against_earlier_events() -> None:
    confirmed = push(KNOWN, "key-1", utc_time=NOON + 30)
    assert push(confirmed, "key-0", utc_time=NOON + 20).secure_key == "key-1"


def test_a_key_told_without_a_time_does_not_make_earlier_events_news_again() -> None:
    dated = replace(KNOWN, seen_utc=NOON + 5 * MINUTE)
    known, ignored = from_push(dated, TokenNews(secure_key="key-2"), utc_time=None, position=8)
    assert (known.secure_key, ignored) == ("key-2", False)
    assert push(known, "key-0", utc_time=NOON + 4 * MINUTE).secure_key == "key-2"


def test_a_push_without_a_key_confirms_no_key() -> None:
    told = push(KNOWN, alias="118", utc_time=NOON + 30)
    assert push(told, "key-2", utc_time=NOON + 20).secure_key == "key-2"


@pytest.mark.parametrize("utc_time", [None, NOON + MINUTE])
def test_a_replaced_key_never_comes_back_with_a_push(utc_time: Ms | None) -> None:
    known = reply(KNOWN, "key-2")
    news = TokenNews(secure_key="key-1")
    assert from_push(known, news, utc_time=utc_time, position=None) == (known, True)


def test_no_more_than_the_last_sixty_four_keys_are_remembered() -> None:
    known = KNOWN
    for number in range(2, 66):
        known = reply(known, f"key-{number}", sent_key=f"key-{number - 1}", sent_at=NOON + number * MINUTE)
    assert len(known.old_keys) == 64
    assert push(known, "key-1").secure_key == "key-65"
    known = reply(known, "key-66", sent_key="key-65", sent_at=NOON + 99 * MINUTE)
    assert len(known.old_keys) == 64
    assert push(known, "key-2").secure_key == "key-66"


def test_a_push_that_was_overtaken_by_a_reply_with_a_new_key_teaches_nothing() -> None:
    renewed = reply(KNOWN, "key-3", next_position=9)
    before = NOON + MINUTE + 999  # it arrived while the request was on its way, and is absorbed now
    assert push(renewed, "key-2", at=before).secure_key == "key-3"
    assert push(renewed, "key-2", utc_time=NOON + MINUTE - 1, position=99, at=before).secure_key == "key-3"
    assert push(renewed, "key-2", utc_time=NOON + MINUTE + 1, at=before).secure_key == "key-3"
    assert push(renewed, "key-2", utc_time=NOON + MINUTE + 1, position=8, at=before).secure_key == "key-3"


def test_one_that_was_overtaken_teaches_nothing_where_no_end_of_a_transcript_is_known() -> None:
    renewed = reply(replace(KNOWN, next_position=None), "key-3")
    told = push(renewed, "key-2", utc_time=NOON + MINUTE + 1, position=9, at=NOON + MINUTE + 999)
    assert told.secure_key == "key-3"


@pytest.mark.parametrize("later", [0, 1])
def test_unless_its_event_stands_behind_the_end_of_the_replys_transcript(later: Ms) -> None:
    renewed = reply(KNOWN, "key-2", next_position=9)
    told = push(renewed, "key-3", utc_time=NOON + MINUTE + later, position=9, at=NOON + MINUTE + 999)
    assert told.secure_key == "key-3"


def test_a_push_that_came_after_the_reply_was_not_overtaken() -> None:
    renewed = reply(KNOWN, "key-2", next_position=9)
    assert push(renewed, "key-3", at=NOON + MINUTE + 1000).secure_key == "key-3"


def test_nor_was_one_before_a_reply_that_brought_no_new_key() -> None:
    answered = reply(KNOWN, "key-1", next_position=9)
    assert push(answered, "key-2", at=NOON + MINUTE + 999).secure_key == "key-2"


def test_without_a_time_a_push_changes_the_alias_only_together_with_the_key() -> None:
    news = TokenNews(user_id="user-0", secure_key="key-1", alias="116")
    assert from_push(KNOWN, news, utc_time=None, position=None) == (KNOWN, True)
    assert push(KNOWN, "key-2", alias="118").alias == "118"
    assert push(KNOWN, "key-1", alias="118", utc_time=NOON + MINUTE).alias == "118"


def test_a_push_that_says_nothing_new_was_not_ignored() -> None:
    repeated = (TokenNews(user_id="user"), TokenNews(secure_key="key-1"), TokenNews(alias="117"))
    for news in (TokenNews(), TokenNews("chat", "user", "key-1", "117"), *repeated):
        assert from_push(KNOWN, news, utc_time=None, position=3) == (KNOWN, False)


def test_an_old_push_that_tells_another_user_id_or_alias_alone_was_ignored() -> None:
    for news in (TokenNews(user_id="user-0"), TokenNews(alias="116")):
        assert from_push(KNOWN, news, utc_time=None, position=3) == (KNOWN, True)


def test_the_tokens_of_an_incomplete_session_gather_from_several_pushes() -> None:
    first = push(TokenRecord(), user_id="user")
    second = push(first, "key-1")
    assert not second.complete()
    third = push(second, alias="117")
    assert third.complete()
    assert (third.user_id, third.secure_key, third.alias) == ("user", "key-1", "117")


def test_a_session_that_lacks_one_token_is_not_complete() -> None:
    assert KNOWN.complete()
    for known in (replace(KNOWN, user_id=None), replace(KNOWN, secure_key=None), replace(KNOWN, alias=None)):
        assert not known.complete()


def test_an_old_push_of_which_something_was_taken_was_not_ignored() -> None:
    news = TokenNews(secure_key="key-0", alias="116")
    known, ignored = from_push(replace(KNOWN, alias=None), news, utc_time=NOON - MINUTE, position=None)
    assert (known.secure_key, known.alias, ignored) == ("key-1", "116", False)


def test_an_incomplete_session_keeps_the_key_of_the_later_event() -> None:
    known = push(TokenRecord(), "key-2", utc_time=NOON)
    known = push(known, "key-1", user_id="user", alias="117", utc_time=NOON - 1)
    assert known.complete()
    assert known.secure_key == "key-2"


def test_a_session_without_a_key_takes_one_from_an_old_push_too() -> None:
    known = push(replace(KNOWN, secure_key=None), "key-0", alias="116", utc_time=NOON - MINUTE)
    assert (known.secure_key, known.alias) == ("key-0", "117")


def test_an_incomplete_session_takes_the_key_of_the_later_event() -> None:
    known = push(push(TokenRecord(), "key-1", utc_time=NOON), "key-2", utc_time=NOON + 1)
    assert known.secure_key == "key-2"
    assert push(known, "key-1", user_id="user", alias="117").secure_key == "key-2"


def test_an_incomplete_session_never_takes_a_replaced_key() -> None:
    known = TokenRecord(old_keys=(key_digest("key-0"),))
    known = push(known, "key-0", user_id="user", alias="117", utc_time=NOON)
    assert (known.user_id, known.secure_key, known.alias) == ("user", None, "117")


# -- registrations -------------------------------------------------------------------------------


def test_a_registration_brings_a_new_key() -> None:
    known = registration(KNOWN, "key-2", next_position=20)
    assert (known.secure_key, known.sent_at, known.next_position) == ("key-2", NOON + MINUTE, 20)


def test_a_registration_without_a_key_brings_the_rest_and_makes_nothing_old() -> None:
    news = TokenNews("chat", "user", None, "118")
    known, ignored = from_registration(KNOWN, news, at=NOON + 10 * MINUTE, next_position=None)
    assert (known.secure_key, known.alias, known.sent_at, ignored) == ("key-1", "118", NOON, False)


def test_a_registration_that_repeats_a_replaced_key_changes_nothing() -> None:
    known = reply(KNOWN, "key-2", alias="118")
    news = TokenNews("chat", "user", "key-1", "117")
    assert from_registration(known, news, at=NOON + 9 * MINUTE, next_position=99) == (known, True)


def test_a_registration_makes_earlier_pushes_old() -> None:
    known = registration(KNOWN, "key-2", at=NOON + 10 * MINUTE)
    assert push(known, "key-x", utc_time=NOON + 9 * MINUTE).secure_key == "key-2"


def test_a_registration_that_repeats_the_known_key_makes_nothing_old() -> None:
    known = registration(KNOWN, "key-1", at=NOON + 10 * MINUTE)
    assert push(known, "key-2", utc_time=NOON + 9 * MINUTE).secure_key == "key-2"


def test_a_registration_never_takes_the_position_back() -> None:
    assert registration(KNOWN, "key-1", next_position=3).next_position == 8
    assert registration(KNOWN, "key-1", next_position=None).next_position == 8
    assert registration(replace(KNOWN, next_position=None), "key-1", next_position=3).next_position == 3


def test_the_reply_to_a_request_sent_before_a_new_key_was_registered_teaches_nothing() -> None:
    known = registration(KNOWN, "key-3", at=NOON + 2 * MINUTE)
    assert reply(known, "key-2", sent_at=NOON + MINUTE).secure_key == "key-3"


# -- settlements -----------------------------------------------------------------------------------------


def settled(
    known: TokenRecord, verdict: Verdict, news: TokenNews, *, numbered_at: Ms = 0, position: int | None = 12
) -> TokenRecord:
    """A request with the tokens of `KNOWN`, sent a minute after noon and settled two seconds later."""
    sent = Tokens("chat", "user", "key-1", "117")
    claim = Claim("chat", "support", sent, 8, Reason.KEEPALIVE, NOON, 0, None, 1, 0)
    settlement = Settlement(
        claim,
        verdict,
        NOON + 30 * MINUTE,
        sent_at=NOON + MINUTE,
        settled_at=NOON + MINUTE + 2000,
        news=news,
        next_position=position,
        seen_utc=NOON + 9,
    )
    return from_settlement(known, settlement, numbered_at=numbered_at)


def test_only_what_was_answered_teaches() -> None:
    news = TokenNews("chat", "user-2", "key-2", "118")
    taught = TokenRecord(
        user_id="user-2",
        secure_key="key-2",
        alias="118",
        old_keys=(key_digest("key-1"),),
        sent_at=NOON + MINUTE,
        seen_utc=NOON + 9,
        next_position=12,
        renewed_at=NOON + MINUTE + 2000,
    )
    for verdict in Verdict:
        with case(verdict):
            answered = verdict in (Verdict.ANSWERED, Verdict.LEARNED, Verdict.CALLED)
            assert settled(KNOWN, verdict, news) == (taught if answered else KNOWN)


def test_an_answer_that_repeats_what_was_sent_does_not_undo_what_was_told_meanwhile() -> None:
    told = push(KNOWN, "key-2", user_id="user-2", alias="118", utc_time=NOON + MINUTE)
    known = settled(told, Verdict.ANSWERED, TokenNews("chat", "user", "key-1", "117"))
    assert (known.user_id, known.secure_key, known.alias) == ("user-2", "key-2", "118")
    moved = push(KNOWN, user_id="user-2", alias="118", utc_time=NOON + MINUTE)
    known = settled(moved, Verdict.ANSWERED, TokenNews("chat", "user", "key-2", "117"))
    assert (known.user_id, known.secure_key, known.alias) == ("user-2", "key-2", "118")


def test_the_answer_to_a_request_of_before_events_were_numbered_anew_counts_no_events() -> None:
    for numbered_at, position in ((NOON, 12), (NOON + MINUTE, 12), (NOON + MINUTE + 1, 8)):
        with case(numbered_at):
            known = settled(KNOWN, Verdict.ANSWERED, TokenNews("chat"), numbered_at=numbered_at)
            assert known.next_position == position


# -- takes -----------------------------------------------------------------------------------------------

HANDED = Handed(NOON + MINUTE, key_digest("key-1"), "user", "117")
"""What `KNOWN` had to hand out, a minute after noon."""


def under_take(
    known: TokenRecord,
    key: str | None = "key-1",
    *,
    user_id: str | None = "user",
    alias: str | None = "117",
    next_position: int | None = None,
) -> tuple[TokenRecord, bool]:
    """What the custom-chat-app says a minute after it was handed the tokens."""
    news = TokenNews("chat", user_id, key, alias)
    return from_take(known, HANDED, news, at=NOON + 2 * MINUTE, next_position=next_position)


def test_what_a_reply_under_a_take_says_is_taken_as_a_reply_of_ours() -> None:
    known, refused = under_take(KNOWN, "key-2", user_id="user-2", alias="118", next_position=12)
    assert not refused
    assert known == TokenRecord(
        user_id="user-2",
        secure_key="key-2",
        alias="118",
        old_keys=(key_digest("key-1"),),
        sent_at=NOON + MINUTE,
        next_position=12,
        renewed_at=NOON + 2 * MINUTE,
    )


def test_tokens_that_come_back_as_they_were_handed_out_teach_nothing_but_the_position() -> None:
    assert under_take(KNOWN) == (KNOWN, False)
    assert under_take(KNOWN, next_position=12) == (replace(KNOWN, next_position=12), False)
    assert under_take(KNOWN, next_position=5) == (KNOWN, False)  # nor does the position go back


def test_a_reply_under_a_take_that_changes_one_of_the_tokens_comes_from_gms() -> None:
    for user_id, key, alias in (
        ("user-2", "key-1", "117"),
        ("user", "key-2", "117"),
        ("user", "key-1", "118"),
    ):
        with case(user_id, key, alias):
            known, refused = under_take(KNOWN, key, user_id=user_id, alias=alias)
            assert (known.user_id, known.secure_key, known.alias) == (user_id, key, alias)
            assert (known.sent_at, refused) == (NOON + MINUTE, False)


def test_a_reply_under_a_take_that_says_no_key_was_given_for_the_handed_one() -> None:
    known, refused = under_take(KNOWN, None, user_id=None, alias="118")
    assert (known.user_id, known.secure_key, known.alias) == ("user", "key-1", "118")
    assert (known.sent_at, known.renewed_at, refused) == (NOON + MINUTE, 0, False)


def test_what_a_reply_under_a_take_repeats_does_not_undo_what_was_told_meanwhile() -> None:
    told = push(KNOWN, "key-3", user_id="user-3", alias="118", utc_time=NOON + 90_000, position=9)
    known, refused = under_take(told, "key-1", user_id="user-2")
    assert (known.secure_key, known.alias, refused) == ("key-3", "118", True)
    # A reply whose transcript shows the event of the push was made after it.
    known, refused = under_take(told, "key-2", next_position=10)
    assert (known.user_id, known.secure_key, known.alias, refused) == ("user-3", "key-2", "118", False)
    known, refused = under_take(told, "key-2", next_position=9)
    assert (known.secure_key, refused) == ("key-3", True)
    known, refused = under_take(told, None, user_id=None, alias="119", next_position=10)
    assert (known.secure_key, known.alias, refused) == ("key-3", "118", False)


def test_a_take_whose_key_is_no_longer_known_teaches_nothing_but_a_key_that_is_old() -> None:
    pinged = reply(KNOWN, "key-4", sent_at=NOON + 3 * MINUTE)
    known, refused = under_take(pinged, "key-2", alias="118")
    assert (known.secure_key, known.alias, refused) == ("key-4", "117", True)
    assert key_digest("key-2") in known.old_keys


def test_a_replaced_key_does_not_come_back_with_a_take() -> None:
    pinged = reply(reply(KNOWN, "key-0"), "key-1", sent_key="key-0", sent_at=NOON + 2 * MINUTE)
    assert under_take(pinged, "key-0", next_position=99) == (pinged, True)
    assert under_take(doubt(KNOWN), "key-1") == (doubt(KNOWN), True)


# -- what the custom-chat-app registers ------------------------------------------------------------------


def registered(
    known: TokenRecord, key: str, position: int | None, handed: Handed | None, *, keeps_position: bool
) -> tuple[TokenRecord, bool]:
    said = Registration(Tokens("chat", "user", key, "117"), "support", "device", position)
    return from_app(known, said, handed, at=NOON + 2 * MINUTE, keeps_position=keeps_position)


def test_what_is_registered_counts_as_a_reply_only_where_tokens_were_handed_out() -> None:
    known, refused = registered(KNOWN, "key-2", None, None, keeps_position=False)
    assert (known.secure_key, known.sent_at, known.renewed_at, refused) == (
        "key-2",
        NOON + 2 * MINUTE,
        0,
        False,
    )
    known, refused = registered(KNOWN, "key-2", None, HANDED, keeps_position=False)
    assert (known.secure_key, known.sent_at, known.renewed_at, refused) == (
        "key-2",
        NOON + MINUTE,
        NOON + 2 * MINUTE,
        False,
    )
    told = push(KNOWN, "key-3", utc_time=NOON + 90_000, position=9)
    assert registered(told, "key-2", 9, HANDED, keeps_position=False)[1]


def test_no_event_is_skipped_for_those_who_are_told_of_transcripts() -> None:
    nowhere = replace(KNOWN, next_position=None)
    for handed in (None, HANDED):
        for known, keeps_position, position in (
            (KNOWN, False, 20),
            (KNOWN, True, 8),
            (nowhere, False, 20),
            (nowhere, True, 20),
        ):
            with case(handed, known.next_position, keeps_position):
                for key in ("key-1", "key-2"):
                    record, refused = registered(known, key, 20, handed, keeps_position=keeps_position)
                    assert (record.secure_key, record.next_position, refused) == (key, position, False)


# -- what a request carries ------------------------------------------------------------------------------


def test_a_request_is_made_of_all_its_tokens_or_not_at_all() -> None:
    assert KNOWN.tokens("chat") == Tokens("chat", "user", "key-1", "117")
    assert KNOWN.tokens(None) is None
    for record in (
        replace(KNOWN, user_id=None),
        replace(KNOWN, secure_key=None),
        replace(KNOWN, alias=None),
    ):
        with case(record.user_id, record.alias):
            assert record.tokens("chat") is None


# -- tokens that may be old --------------------------------------------------------------------------


def test_of_a_session_in_doubt_no_token_is_kept() -> None:
    known = doubt(KNOWN)
    assert (known.user_id, known.secure_key, known.alias) == (None, None, None)
    assert (known.sent_at, known.next_position) == (KNOWN.sent_at, KNOWN.next_position)
    assert "key-1" not in repr(known)


def test_a_doubted_key_comes_back_with_a_push_and_not_with_a_registration() -> None:
    doubted = doubt(reply(KNOWN, "key-2"))
    again = TokenNews("chat", "user", "key-2", "117")
    assert from_registration(doubted, again, at=NOON + 2 * MINUTE, next_position=None) == (doubted, True)
    pushed = push(doubted, "key-2", user_id="user", alias="117", utc_time=NOON + 2 * MINUTE)
    assert (pushed.secure_key, pushed.complete()) == ("key-2", True)
    assert push(doubted, "key-1", utc_time=NOON + 2 * MINUTE).secure_key is None


def test_a_session_in_doubt_takes_another_key_that_is_registered() -> None:
    known = registration(doubt(KNOWN), "key-2", at=NOON + 2 * MINUTE)
    assert (known.secure_key, known.complete()) == ("key-2", True)


def test_a_doubted_key_that_a_push_brought_back_may_be_registered_once_more() -> None:
    confirmed = push(doubt(KNOWN), "key-1", user_id="user", alias="117", utc_time=NOON + MINUTE)
    known, ignored = from_registration(
        confirmed, TokenNews("chat", "user", "key-1", "118"), at=NOON + 2 * MINUTE, next_position=None
    )
    assert (known.secure_key, known.alias, ignored) == ("key-1", "118", False)


def test_a_key_that_is_doubted_twice_is_remembered_once() -> None:
    once = doubt(KNOWN)
    assert doubt(once) == once
    assert doubt(replace(once, secure_key="key-1")).old_keys == once.old_keys
    assert len(once.old_keys[0]) == len(key_digest("key-1"))


def test_of_doubted_and_replaced_keys_together_the_last_sixty_four_are_remembered() -> None:
    full = replace(KNOWN, old_keys=tuple(key_digest(f"old-{number}") for number in range(64)))
    known = doubt(full)
    assert len(known.old_keys) == 64
    assert known.old_keys[:-1] == full.old_keys[1:]


def test_no_secure_key_shows_in_a_repr() -> None:
    known = reply(KNOWN, "key-2")
    assert "key-1" not in repr(known)
    assert "key-2" not in repr(known)


# -- all of them against a Chat Server -------------------------------------------------------------


BEYOND_DOUBT = 2 * CLOCK_TOLERANCE_MS + 1
"""What lies this far apart can be told apart by its time, whatever the clocks."""

MOST_KEYS = 16


class Said(Value, frozen=True):
    """A push: which key it carries, what it tells of its event, and when it arrived."""

    key: int
    utc_time: Ms | None
    position: int | None
    at: Ms = 0


@dataclass
class Asked:
    """A request on its way, and its reply once Chat Server has taken it."""

    key: int
    sent_at: Ms
    reply: int | None = None
    next_position: int | None = None


class OneChat:
    """A chat whose keys are numbered in the order in which Chat Server made them.

    Keys change when our requests are taken and when somebody else's are (the customer's client, an
    agent's desktop). Pushes may be late, out of order, repeated or lost, and wait before they take
    effect; replies may be late or lost, and two of our requests on their way at once, as after a lost
    lease. `told` holds the keys that any message which took effect has told, `replaced` those that we
    knew once and do not know any more.
    """

    def __init__(self, seed: int, *, dated: bool) -> None:
        self.chance = random.Random(seed)
        self.dated = dated
        """Whether every push tells time and position of its event."""
        self.story: list[str] = []
        self.now = NOON
        self.ahead = self.chance.choice((0, 0, 1, CLOCK_TOLERANCE_MS))
        """How far Chat Server's clock is ahead of ours, in milliseconds."""
        self.newest = 0
        self.index = 1
        self.on_their_way: list[Said] = []
        self.arrived: list[Said] = []
        self.asked: list[Asked] = []
        self.replaced: set[int] = set()
        for _ in range(self.chance.randint(1, 3)):
            self.happen()
            self.newest += 1
        self.now += BEYOND_DOUBT
        news = self.news(self.newest)
        self.record = from_registration(TokenRecord(), news, at=self.now, next_position=self.index)[0]
        self.told = {self.newest}

    def step(self) -> None:
        self.now += self.chance.choice((1, 1, 1, 500, 90_000))
        move = self.chance.choice(
            (
                *(self.happen, self.change, self.deliver, self.deliver, self.absorb, self.absorb),
                *(self.ask, self.ask, self.take, self.take, self.answer, self.answer, self.register),
            )
        )
        before = self.known
        move()
        self.story.append(f"{move.__name__}: key {before} -> {self.known} of {self.newest}, told {self.told}")

    @property
    def known(self) -> int:
        return int((self.record.secure_key or "").removeprefix("key-"))

    def news(self, key: int) -> TokenNews:
        return TokenNews("chat", "user", f"key-{key}", "117")

    # -- in the chat

    def happen(self) -> None:
        """Something happens and is pushed."""
        dated = self.dated or self.chance.random() < 0.5
        utc_time, position = (self.now + self.ahead, self.index) if dated else (None, None)
        self.on_their_way.append(Said(self.newest, utc_time, position))
        self.index += 1
        self.now += 1

    def change(self) -> None:
        """Somebody else's request is taken, and the key changes."""
        if self.newest < MOST_KEYS:
            self.newest += 1
            if self.chance.random() < 0.8:
                self.happen()

    def take(self) -> None:
        """Chat Server takes one of our requests. With an old key it would throw the customer out: here
        there is just no answer, and the story goes on."""
        waiting = [asked for asked in self.asked if asked.reply is None]
        if not waiting:
            return
        asked = self.chance.choice(waiting)
        if asked.key != self.newest:
            self.asked.remove(asked)
            return
        self.newest += self.newest < MOST_KEYS and self.chance.random() < 0.5
        asked.reply, asked.next_position = self.newest, self.index

    # -- at our end

    def ask(self) -> None:
        if len(self.asked) < 2 and not self.arrived:
            self.asked.append(Asked(self.known, self.now))

    def deliver(self) -> None:
        """A push arrives, perhaps not for the last time."""
        if self.on_their_way:
            said = self.chance.choice(self.on_their_way)
            if self.chance.random() < 0.7:
                self.on_their_way.remove(said)
            self.arrived.append(replace(said, at=self.now))

    def absorb(self) -> None:
        """The oldest push that arrived takes effect."""
        if self.arrived:
            said = self.arrived.pop(0)
            news = self.news(said.key)
            record, _ = from_push(
                self.record, news, utc_time=said.utc_time, position=said.position, at=said.at
            )
            self.learn(record, said.key)

    def answer(self) -> None:
        """A reply arrives, or is lost."""
        ready = [asked for asked in self.asked if asked.reply is not None]
        if not ready:
            return
        asked = self.chance.choice(ready)
        self.asked.remove(asked)
        assert asked.reply is not None
        if self.chance.random() < 0.2:
            return
        silent = asked.reply == asked.key and self.chance.random() < 0.5
        record = from_reply(
            self.record,
            f"key-{asked.key}",
            TokenNews() if silent else self.news(asked.reply),
            sent_at=asked.sent_at,
            answered_at=self.now,
            seen_utc=None,
            next_position=asked.next_position,
        )
        self.learn(record, asked.reply, by_reply=True)

    def register(self) -> None:
        """The app does, after a request of its own or once more with what it registered before."""
        key, position = self.newest, self.index
        if self.replaced and self.chance.random() < 0.7:
            key, position = self.chance.choice(sorted(self.replaced)), 1
        elif self.newest < MOST_KEYS:
            key = self.newest = self.newest + 1
        self.now += BEYOND_DOUBT
        record, _ = from_registration(self.record, self.news(key), at=self.now, next_position=position)
        self.learn(record, key)

    def learn(self, record: TokenRecord, key: int, *, by_reply: bool = False) -> None:
        """Nothing but Chat Server's own reply brings a key back that was replaced."""
        before, self.record = self.known, record
        if self.known != before:
            assert by_reply or self.known not in self.replaced, self.story
            self.replaced.add(before)
            self.replaced.discard(self.known)
        self.told.add(key)


STORIES, STEPS = 400, 40


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_of_all_keys_we_were_told_we_send_the_newest(part: int) -> None:
    for seed in range(part * STORIES, (part + 1) * STORIES):
        chat = OneChat(seed, dated=True)
        for _ in range(STEPS):
            chat.step()
            assert chat.known == max(chat.told), (seed, chat.story)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_whatever_pushes_leave_out_no_replaced_key_comes_back(part: int) -> None:
    """Where a push tells nothing of when its event was, an old key that we never had cannot be told
    from a new one; one that was replaced before our eyes can. `learn` asserts it."""
    for seed in range(part * STORIES, (part + 1) * STORIES):
        chat = OneChat(seed, dated=False)
        for _ in range(STEPS):
            chat.step()


def test_a_push_of_an_event_that_a_reply_has_shown_does_not_bring_an_old_user_id_back() -> None:
    """By default a push carries no key; it was made before the reply and came after it."""
    known = from_reply(
        KNOWN,
        "key-1",
        TokenNews("chat", "user-2", "key-2", "118"),
        sent_at=NOON + MINUTE,
        seen_utc=NOON + MINUTE,
        next_position=11,
    )
    late = push(known, user_id="user", alias="117", utc_time=NOON + MINUTE, at=NOON + MINUTE + 500)
    assert (late.user_id, late.alias) == ("user-2", "118")
    newer = push(known, user_id="user-3", utc_time=NOON + MINUTE + 1, at=NOON + MINUTE + 500)
    assert newer.user_id == "user-3"


# -- our clock was set back ----------------------------------------------------------------------------

AHEAD = replace(KNOWN, sent_at=NOON + 60 * MINUTE, renewed_at=NOON + 60 * MINUTE)
"""Noted while our clock was an hour ahead."""


def test_a_push_teaches_after_our_clock_was_set_back() -> None:
    assert push(AHEAD, "key-2", utc_time=NOON + MINUTE, at=NOON + MINUTE).secure_key == "key-2"


def test_a_reply_counts_after_our_clock_was_set_back() -> None:
    known = reply(AHEAD, "key-1", alias="118", next_position=9)
    assert (known.alias, known.next_position, known.sent_at) == ("118", 9, NOON + MINUTE)


def test_what_was_noted_up_to_a_quarter_of_an_hour_ahead_is_no_sign_of_a_clock_set_back() -> None:
    known = replace(KNOWN, renewed_at=NOON + 15 * MINUTE)
    assert push(known, "key-2", at=NOON).secure_key == "key-1"
    assert push(replace(known, renewed_at=NOON + 15 * MINUTE + 1), "key-2", at=NOON).secure_key == "key-2"


def test_only_what_was_noted_ahead_is_taken_back_to_now() -> None:
    now, later = NOON + 60 * MINUTE, NOON + 120 * MINUTE
    asked = push(replace(KNOWN, sent_at=later), "key-2", utc_time=now, at=now)
    assert (asked.secure_key, asked.sent_at, asked.renewed_at) == ("key-2", now, KNOWN.renewed_at)
    renewed = push(replace(KNOWN, renewed_at=later), "key-2", utc_time=NOON + MINUTE, at=now)
    assert (renewed.secure_key, renewed.sent_at, renewed.renewed_at) == ("key-2", KNOWN.sent_at, now)


def test_what_is_old_stays_old_after_our_clock_was_set_back() -> None:
    known = replace(AHEAD, old_keys=(key_digest("key-0"),), seen_utc=NOON)
    assert push(known, "key-0", utc_time=NOON + MINUTE, at=NOON + MINUTE).secure_key == "key-1"
    assert push(known, "key-2", utc_time=NOON - MINUTE, at=NOON + MINUTE).secure_key == "key-1"


# -- keys of another protocol ----------------------------------------------------------------------

HEX, OTHER_HEX = "4ee15d7e1c343c8e", "02f8e3936f763afffcce"
COMETD = "dGhlIGtleSBvZiBhIGNoYXQgb3ZlciBDb21ldEQsIHdoaWNoIGlzIGEgbG9uZyB0ZXh0IGluIGJhc2U2NA=="
OWN = replace(KNOWN, secure_key=HEX)


@pytest.mark.parametrize(
    "key", [COMETD, COMETD[:24], "b+4/Zk9sQ0tXb2w=", "a" * 15 + "b" * 64, "a" * 33, "a" * 7]
)
@pytest.mark.parametrize(("user_id", "alias"), [(None, None), ("user", None), (None, "117")])
def test_a_key_of_another_shape_without_its_triple_does_not_replace_a_known_one(
    key: str, user_id: str | None, alias: str | None
) -> None:
    news = TokenNews(user_id=user_id, secure_key=key, alias=alias)
    for utc_time in (None, NOON + MINUTE):
        known, ignored = from_push(OWN, news, utc_time=utc_time, position=99, at=NOON + MINUTE)
        assert (known.secure_key, known.old_keys, ignored) == (HEX, (), True)


def test_what_stands_beside_such_a_key_is_judged_without_it() -> None:
    assert push(OWN, COMETD, alias="118", utc_time=NOON + MINUTE).alias == "118"


@pytest.mark.parametrize(
    ("known", "key"),
    [
        (HEX, OTHER_HEX),
        (OTHER_HEX, HEX),
        (HEX, HEX.upper().replace("4", "5")),
        (COMETD, COMETD.replace("C", "D")),
        (HEX, "a" * 32),
        (HEX, "a" * 8),
        ("key-1", "key-2"),
        ("k", "key-2"),
        ("key-1", "k"),
        ("0123456789", "b+4/Zk9sQ0tXb2w="),
        ("b+4/Zk9sQ0tXb2w=", "Zm91ciBmaXZlIHNpeA=="),
        ("0123456789abcde", "b+4/Zk9sQ0tXb2w"),
    ],
)
def test_a_key_of_the_same_shape_is_taken_from_a_push_alone(known: str, key: str) -> None:
    assert push(replace(KNOWN, secure_key=known), key, utc_time=NOON + MINUTE).secure_key == key


def test_a_key_of_another_shape_is_taken_with_its_triple_and_where_none_is_known() -> None:
    assert push(OWN, COMETD, user_id="user", alias="117", utc_time=NOON + MINUTE).secure_key == COMETD
    assert push(replace(KNOWN, secure_key=None), COMETD, utc_time=NOON + MINUTE).secure_key == COMETD
    assert reply(OWN, COMETD, sent_key=HEX).secure_key == COMETD
    assert registration(OWN, COMETD).secure_key == COMETD
