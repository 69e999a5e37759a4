"""Never the wrong key: each rule on its own, and all of them against a Chat Server that changes keys
under delayed, reordered and repeated messages."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncchatd.model import Ms, TokenNews, key_digest
from asyncchatd.tokens import (
    CLOCK_TOLERANCE_MS,
    OLD_KEYS_KEPT,
    TokenRecord,
    from_push,
    from_registration,
    from_reply,
)

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
    news = TokenNews(secure_key=key, alias=alias)
    return from_reply(known, sent_key, news, sent_at=sent_at, seen_utc=seen_utc, next_position=next_position)


def push(
    known: TokenRecord,
    key: str | None = None,
    *,
    user_id: str | None = None,
    alias: str | None = None,
    utc_time: Ms | None = None,
    position: int | None = None,
) -> TokenRecord:
    news = TokenNews(user_id=user_id, secure_key=key, alias=alias)
    return from_push(known, news, utc_time=utc_time, position=position)[0]


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


def test_a_reply_loses_to_a_key_that_a_push_told_while_the_request_was_on_its_way() -> None:
    told = push(KNOWN, "key-3", utc_time=NOON + MINUTE)
    assert reply(told, "key-2").secure_key == "key-3"
    assert reply(told, None).secure_key == "key-3"


def test_a_key_that_lost_to_a_push_does_not_come_back_with_a_late_push() -> None:
    known = reply(push(KNOWN, "key-3", utc_time=NOON + MINUTE), "key-2")
    assert push(known, "key-2", utc_time=NOON + 2 * MINUTE).secure_key == "key-3"


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


def test_the_reply_to_an_older_request_says_nothing_when_it_repeats_the_key() -> None:
    newest = reply(KNOWN, None, alias="118", sent_at=NOON + 2 * MINUTE)
    assert reply(newest, "key-1", alias="117", sent_at=NOON + MINUTE).alias == "118"


def test_the_reply_to_an_older_request_counts_when_it_replaces_the_very_key_we_know() -> None:
    # Had Chat Server taken the older request first, the younger one would have carried a wrong key.
    answered = reply(KNOWN, "key-1", sent_at=NOON + 2 * MINUTE, next_position=20)
    known = reply(answered, "key-2", sent_at=NOON + MINUTE, next_position=9)
    assert known.secure_key == "key-2"
    assert (known.sent_at, known.next_position) == (NOON + 2 * MINUTE, 20)


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


def test_a_push_of_an_event_before_the_last_request_teaches_nothing() -> None:
    news = TokenNews(secure_key="key-0", alias="116")
    old = NOON - CLOCK_TOLERANCE_MS - 1
    assert from_push(KNOWN, news, utc_time=old, position=None) == (KNOWN, True)


def test_a_push_of_an_event_before_the_newest_one_in_a_reply_teaches_nothing() -> None:
    known = reply(KNOWN, seen_utc=NOON + 5 * MINUTE)  # a Chat Server whose clock is ahead
    assert push(known, "key-0", utc_time=NOON + 5 * MINUTE - 1).secure_key == "key-1"
    assert push(known, "key-2", utc_time=NOON + 5 * MINUTE).secure_key == "key-2"


def test_a_chat_server_whose_clock_is_a_little_behind_is_believed() -> None:
    assert push(KNOWN, "key-2", utc_time=NOON - CLOCK_TOLERANCE_MS).secure_key == "key-2"


def test_where_the_time_leaves_it_open_the_position_decides() -> None:
    assert push(KNOWN, "key-0", utc_time=NOON - 10, position=7).secure_key == "key-1"
    assert push(KNOWN, "key-0", utc_time=NOON + 10, position=7).secure_key == "key-1"
    assert push(KNOWN, "key-2", utc_time=NOON - 10, position=8).secure_key == "key-2"


def test_a_time_that_is_clear_outweighs_the_position() -> None:
    assert push(KNOWN, "key-2", utc_time=NOON + MINUTE, position=1).secure_key == "key-2"


def test_without_a_time_the_position_decides() -> None:
    assert push(KNOWN, "key-0", position=7).secure_key == "key-1"
    assert push(KNOWN, "key-2", position=8).secure_key == "key-2"


def test_of_two_pushes_the_one_with_the_later_event_counts_whichever_comes_first() -> None:
    later_first = push(push(KNOWN, "key-3", utc_time=NOON + 30), "key-2", utc_time=NOON + 20)
    in_order = push(push(KNOWN, "key-2", utc_time=NOON + 20), "key-3", utc_time=NOON + 30)
    assert later_first.secure_key == in_order.secure_key == "key-3"


def test_a_push_that_repeats_the_known_key_confirms_it_against_earlier_events() -> None:
    confirmed = push(KNOWN, "key-1", utc_time=NOON + 30)
    assert push(confirmed, "key-0", utc_time=NOON + 20).secure_key == "key-1"


def test_a_push_without_a_key_confirms_no_key() -> None:
    told = push(KNOWN, alias="118", utc_time=NOON + 30)
    assert push(told, "key-2", utc_time=NOON + 20).secure_key == "key-2"


@pytest.mark.parametrize("utc_time", [None, NOON + MINUTE])
def test_a_replaced_key_never_comes_back_with_a_push(utc_time: Ms | None) -> None:
    known = reply(KNOWN, "key-2")
    news = TokenNews(secure_key="key-1")
    assert from_push(known, news, utc_time=utc_time, position=None) == (known, True)


def test_the_last_sixteen_keys_are_remembered() -> None:
    known = KNOWN
    for number in range(2, 18):
        known = reply(known, f"key-{number}", sent_key=f"key-{number - 1}", sent_at=NOON + number * MINUTE)
    assert push(known, "key-1").secure_key == "key-17"
    assert len(known.old_keys) == 16
    assert len(reply(known, "next", sent_key="key-17", sent_at=NOON + 99 * MINUTE).old_keys) == 16


def test_without_a_time_a_push_changes_the_alias_only_together_with_the_key() -> None:
    news = TokenNews(user_id="user-0", secure_key="key-1", alias="116")
    assert from_push(KNOWN, news, utc_time=None, position=None) == (KNOWN, True)
    assert push(KNOWN, "key-2", alias="118").alias == "118"
    assert push(KNOWN, "key-1", alias="118", utc_time=NOON + MINUTE).alias == "118"


def test_a_push_that_says_nothing_new_was_not_ignored() -> None:
    for news in (TokenNews(), TokenNews("chat", "user", "key-1", "117")):
        assert from_push(KNOWN, news, utc_time=None, position=3) == (KNOWN, False)


def test_the_tokens_of_an_incomplete_session_gather_from_several_pushes() -> None:
    first = push(TokenRecord(), user_id="user")
    second = push(first, "key-1")
    assert not second.complete()
    third = push(second, alias="117")
    assert third.complete()
    assert (third.user_id, third.secure_key, third.alias) == ("user", "key-1", "117")


def test_an_incomplete_session_keeps_the_key_of_the_later_event() -> None:
    known = push(TokenRecord(), "key-2", utc_time=NOON)
    known = push(known, "key-1", user_id="user", alias="117", utc_time=NOON - 1)
    assert known.complete()
    assert known.secure_key == "key-2"


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


def test_no_secure_key_shows_in_a_repr() -> None:
    known = reply(KNOWN, "key-2")
    assert "key-1" not in repr(known)
    assert "key-2" not in repr(known)


# -- all of them against a Chat Server -------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A push on its way: which key it carries, and what it tells of its event."""

    key: int
    utc_time: Ms | None
    position: int | None


@dataclass
class Asked:
    """A request on its way, and its reply once Chat Server has taken it."""

    key: int
    sent_at: Ms
    reply: int | None = None
    seen_utc: Ms | None = None
    next_position: int | None = None


class OneChat(RuleBasedStateMachine):
    """A chat whose keys are numbered in the order in which Chat Server made them.

    Keys change when our requests are taken and when somebody else's are (the customer's client, an
    agent's desktop). Pushes may be late, out of order, repeated or lost, replies late or lost, and two
    of our requests on their way at once, as after a lost lease. `told` holds the keys that any message
    which reached us has told: of these we must know the newest.
    """

    dated = True
    """Every push tells time and position of its event."""

    @initialize(behind=st.integers(-CLOCK_TOLERANCE_MS, CLOCK_TOLERANCE_MS), before=st.integers(1, 3))
    def begin(self, behind: int, before: int) -> None:
        self.now = NOON
        self.behind = behind
        self.newest = 0
        self.index = 1
        self.on_their_way: list[Said] = []
        self.asked: list[Asked] = []
        self.thrown_out = False
        self.replaced: set[int] = set()
        for _ in range(before):
            self.pass_time(400)
            self.happen(True)
            self.newest += 1
        self.pass_time(400)
        self.record = from_registration(
            TokenRecord(), self.news(self.newest), at=self.now, next_position=self.index
        )[0]
        self.told = {self.newest}

    # -- Chat Server

    def news(self, key: int) -> TokenNews:
        return TokenNews("chat", "user", f"key-{key}", "117")

    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds

    @rule(milliseconds=st.integers(1, 90_000))
    def wait(self, milliseconds: int) -> None:
        self.pass_time(milliseconds)

    @precondition(lambda self: self.newest < OLD_KEYS_KEPT)
    @rule(told=st.booleans())
    def somebody_else_changes_the_key(self, told: bool) -> None:
        self.pass_time(1)
        self.newest += 1
        if told:
            self.happen(True)

    @rule(tells_time=st.booleans())
    def happen(self, tells_time: bool) -> None:
        """Something happens in the chat and is pushed."""
        self.pass_time(1)
        dated = self.dated or tells_time
        self.on_their_way.append(
            Said(self.newest, self.now - self.behind if dated else None, self.index if dated else None)
        )
        self.index += 1

    @precondition(lambda self: any(asked.reply is None for asked in self.asked))
    @rule(data=st.data(), change=st.booleans())
    def take_a_request(self, data: st.DataObject, change: bool) -> None:
        asked = data.draw(st.sampled_from([asked for asked in self.asked if asked.reply is None]))
        if asked.key != self.newest:
            self.thrown_out = True
            return
        self.pass_time(1)
        self.newest += change and self.newest < OLD_KEYS_KEPT
        asked.reply, asked.next_position = self.newest, self.index

    # -- what reaches us

    def learn(self, record: TokenRecord, key: int, *, proof: bool) -> None:
        """`proof` comes from Chat Server's own reply, which may bring a replaced key back."""
        before, after = self.known, int((record.secure_key or "").removeprefix("key-"))
        if after != before:
            self.replaced.add(before)
            assert proof or after not in self.replaced
            self.replaced.discard(after)
        self.record = record
        self.told.add(key)

    @property
    def known(self) -> int:
        return int((self.record.secure_key or "").removeprefix("key-"))

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data(), again=st.booleans())
    def deliver_a_push(self, data: st.DataObject, again: bool) -> None:
        said = data.draw(st.sampled_from(self.on_their_way))
        if not again:
            self.on_their_way.remove(said)
        record, _ = from_push(
            self.record, self.news(said.key), utc_time=said.utc_time, position=said.position
        )
        self.learn(record, said.key, proof=False)

    @precondition(lambda self: len(self.asked) < 2 and not self.thrown_out)
    @rule()
    def ask(self) -> None:
        self.pass_time(1)
        self.asked.append(Asked(self.known, self.now))

    @precondition(lambda self: any(asked.reply is not None for asked in self.asked))
    @rule(data=st.data(), lost=st.booleans(), says_key=st.booleans())
    def deliver_a_reply(self, data: st.DataObject, lost: bool, says_key: bool) -> None:
        asked = data.draw(st.sampled_from([asked for asked in self.asked if asked.reply is not None]))
        self.asked.remove(asked)
        assert asked.reply is not None
        if lost:
            return
        record = from_reply(
            self.record,
            f"key-{asked.key}",
            self.news(asked.reply) if says_key or asked.reply != asked.key else TokenNews(),
            sent_at=asked.sent_at,
            seen_utc=None,
            next_position=asked.next_position,
        )
        self.learn(record, asked.reply, proof=True)

    @rule(change=st.booleans(), old=st.booleans(), data=st.data())
    def the_app_registers(self, change: bool, old: bool, data: st.DataObject) -> None:
        """After a request of its own, or once more what it registered before."""
        self.pass_time(1)
        if old and self.replaced:
            key = data.draw(st.sampled_from(sorted(self.replaced)))
        else:
            self.newest += change and self.newest < OLD_KEYS_KEPT
            key = self.newest
        record, _ = from_registration(
            self.record, self.news(key), at=self.now, next_position=self.index if key == self.newest else 1
        )
        self.learn(record, key, proof=False)

    # -- what must hold

    @invariant()
    def the_newest_key_we_were_told_is_the_one_we_send(self) -> None:
        if self.dated:
            assert self.known == max(self.told)


class OneUndatedChat(OneChat):
    """Pushes that may say nothing of when their event was: an old key that we never had cannot be told
    from a new one then, but one that was replaced before our eyes can. `learn` asserts it."""

    dated = False


_MANY = settings(
    max_examples=250,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestOneChat = OneChat.TestCase
TestOneChat.settings = _MANY
TestOneUndatedChat = OneUndatedChat.TestCase
TestOneUndatedChat.settings = _MANY
