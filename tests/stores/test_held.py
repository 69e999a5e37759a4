"""Claims that are held: none is sent after somebody told other tokens."""

from __future__ import annotations

from contextlib import suppress

import pytest

from asyncchatd.model.data import Claim, Reason, Settlement, TokenNews, Tokens, Verdict
from asyncchatd.stores import StoreError
from asyncchatd.stores.held import HeldClaims, Told

KNOWN = Tokens("chat-1", "user", "key", "301")
NEWER = Told("chat-1", None, TokenNews("chat-1", secure_key="newer"))


def claim(claim_id: int = 1) -> Claim:
    return Claim("chat-1", "service", KNOWN, None, Reason.KEEPALIVE, 0.0, 0, None, claim_id, 0)


def holding(*claims: Claim, device: str | None = None) -> HeldClaims:
    held = HeldClaims()
    with held.claiming():
        held.hold([(each, device) for each in claims])
    return held


@pytest.mark.parametrize(
    ("news", "superseded"),
    [
        (TokenNews("chat-1", secure_key="newer"), True),
        (TokenNews("chat-1", alias="302"), True),
        (TokenNews("chat-1", "user", "key", "301"), False),
        (TokenNews("chat-1"), False),
    ],
)
def test_a_held_claim_is_superseded_by_other_tokens_alone(news: TokenNews, superseded: bool) -> None:
    held = holding(claim())
    held.hear(Told("chat-1", None, news))
    assert held.superseded(claim()) is superseded


def test_what_is_told_while_a_claim_waits_for_its_transaction_counts() -> None:
    held = HeldClaims()
    with held.claiming():
        held.hear(NEWER)
        held.hold([(claim(), None)])
    assert held.superseded(claim())


def test_what_was_told_before_a_claim_was_ordered_does_not_count() -> None:
    held = HeldClaims()
    held.hear(NEWER)
    with held.claiming():
        held.hold([(claim(), None)])
    assert not held.superseded(claim())


def test_what_is_on_its_way_into_the_store_counts_for_claims_that_do_not_wait_for_it() -> None:
    held = HeldClaims(lambda: [NEWER])
    with held.claiming():
        held.hold([(claim(), None)])
    assert held.superseded(claim())


def test_what_was_told_is_kept_until_the_last_of_several_claims_is_held() -> None:
    held = HeldClaims()
    with held.claiming():
        with held.claiming():
            held.hear(NEWER)
        held.hold([(claim(), None)])
    assert held.superseded(claim())


def test_what_was_told_is_forgotten_when_claiming_fails() -> None:
    held = HeldClaims()
    with suppress(StoreError), held.claiming():
        held.hear(NEWER)
        raise StoreError
    with held.claiming():
        held.hold([(claim(), None)])
    assert not held.superseded(claim())


def test_tokens_without_a_chat_id_concern_the_chats_of_the_device() -> None:
    held = holding(claim(), device="device-1")
    held.hear(Told(None, "device-2", TokenNews(None, secure_key="newer")))
    assert not held.superseded(claim())
    held.hear(Told(None, "device-1", TokenNews(None, user_id="another", secure_key="newer")))
    assert not held.superseded(claim())
    held.hear(Told(None, "device-1", TokenNews(None, secure_key="newer")))
    assert held.superseded(claim())


def test_a_settled_claim_is_forgotten_and_one_that_took_over_stays() -> None:
    held = holding(claim(1), claim(2))
    held.hear(NEWER)
    held.let_go([Settlement(claim(1), Verdict.ANSWERED, 0.0)])
    assert len(held) == 1
    assert held.superseded(claim(2))
    held.let_go([Settlement(claim(2), Verdict.ANSWERED, 0.0)])
    assert len(held) == 0
    assert not held.superseded(claim(2))
