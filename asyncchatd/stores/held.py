"""The claims that are held, and what was told since: a claim is not sent after somebody told other tokens.

A request with tokens that were replaced would throw the customer out. Pushes, registrations and replies tell tokens
before their transactions run, and a claim reads its tokens in a transaction of its own: whatever is told between the
order for the claim and its end may be newer than what the claim has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from asyncchatd.model import (
    Claim,
    Registration,
    Settlement,
    TokenNews,
    Tokens,
    Verdict,
    is_unlike,
)
from asyncchatd.wire import Push

WITH_NEWS = frozenset({Verdict.ANSWERED, Verdict.LEARNED, Verdict.CALLED})
"""Verdicts on requests whose replies may tell tokens."""


class Told(NamedTuple):
    """Tokens that a push, a registration or a reply told."""

    chat_id: str | None
    device_id: str | None
    news: TokenNews
    pushed: bool = False

    @classmethod
    def by_push(cls, push: Push) -> Told:
        """What a push tells."""
        return cls(push.news.chat_id, push.device_id, push.news, pushed=True)

    def concerns(self, known: Tokens) -> bool:
        """Whether a request with the tokens that are known may have to wait for these. As `tokens.from_push`
        will judge them, and at a flood of pushes that teach nothing no ping waits."""
        said = self.news
        if self.chat_id is None and said.user_id not in (None, known.user_id):
            return False
        alone = self.pushed and None in (said.user_id, said.alias)
        return said.alias not in (None, known.alias) or (
            said.secure_key not in (None, known.secure_key)
            and not (alone and is_unlike(known.secure_key, said.secure_key))
        )


class HeldClaims:
    """The claims between their transaction and their settlement, in the memory of one store."""

    def __init__(self, on_their_way: Callable[[], Iterable[Told]] = tuple) -> None:
        """`on_their_way`: what was told and is not written yet, where a claim's transaction does not wait for that."""
        self._on_their_way = on_their_way
        self._held: dict[str, tuple[Claim, str | None]] = {}
        """By chat id, with the device id."""
        self._claiming = 0
        """Claims that wait for their transaction."""
        self._told: list[Told] = []
        """What was told since the oldest of these was ordered."""
        self._superseded: set[tuple[int, str]] = set()

    def __len__(self) -> int:
        return len(self._held)

    def hear(self, told: Told) -> None:
        """Take note of tokens that somebody told: held claims with others must not be sent any more."""
        if told.news.secure_key is None and told.news.alias is None:
            return
        if self._claiming:
            self._told.append(told)
        self._supersede(told)

    def hear_registrations(self, registrations: Sequence[Registration]) -> None:
        """Take note of the tokens that registrations tell."""
        for each in registrations:
            said = each.tokens
            news = TokenNews(said.chat_id, said.user_id, said.secure_key, said.alias)
            self.hear(Told(said.chat_id, each.device_id, news))

    def hear_settlements(self, settlements: Sequence[Settlement]) -> None:
        """Take note of the tokens that replies told: where a lease was lost, somebody may hold the session with those
        before."""
        for each in settlements:
            if each.verdict in WITH_NEWS:
                self.hear(Told(each.claim.chat_id, None, each.news))

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """The time from the order for claims until they are held; what is told meanwhile is kept for them."""
        self._claiming += 1
        for told in self._on_their_way():
            self.hear(told)
        try:
            yield
        finally:
            self._claiming -= 1
            if not self._claiming:
                self._told.clear()

    def hold(self, claims: Sequence[tuple[Claim, str | None]]) -> None:
        """Hold new claims, each with its device id. Called within `claiming`."""
        self._held.update((claim.chat_id, (claim, device)) for claim, device in claims)
        for told in self._told:
            self._supersede(told)

    @property
    def is_claiming(self) -> bool:
        """Whether claims are being made of which it is not known yet what they are of."""
        return self._claiming > 0

    def holds(self, chat_id: str) -> bool:
        """Whether a claim of this session is not settled yet, however long ago its lease ran out."""
        return chat_id in self._held

    def claims(self) -> list[Claim]:
        """All that are held."""
        return [claim for claim, _ in self._held.values()]

    def told_since(self, known: Tokens, device_id: str | None) -> bool:
        """Whether other tokens were told for a session since the order to read these. Called within `claiming`."""
        return any(
            told.concerns(known)
            for told in self._told
            if told.chat_id == known.chat_id or (told.chat_id is None and told.device_id == device_id)
        )

    def superseded(self, claim: Claim) -> bool:
        """Whether other tokens were told for this claim's session."""
        return (claim.claim_id, claim.chat_id) in self._superseded

    def let_go(self, settlements: Sequence[Settlement]) -> None:
        """Forget claims that were settled; a session that somebody else holds by now stays held."""
        for each in settlements:
            held = self._held.get(each.claim.chat_id)
            if held is not None and held[0].claim_id == each.claim.claim_id:
                del self._held[each.claim.chat_id]
            self._superseded.discard((each.claim.claim_id, each.claim.chat_id))

    def clear(self) -> None:
        """Forget all of them, as a crash would."""
        self._held.clear()
        self._superseded.clear()

    def _supersede(self, told: Told) -> None:
        if told.chat_id is not None:
            held = [self._held[told.chat_id]] if told.chat_id in self._held else []
        else:
            held = [each for each in self._held.values() if each[1] == told.device_id]
        for claim, _ in held:
            if told.concerns(claim.tokens):
                self._superseded.add((claim.claim_id, claim.chat_id))
