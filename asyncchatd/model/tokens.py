"""Never the wrong key: when a session's tokens change, and when they must not.

Chat Server removes a customer at once when a request carries a bad secure key (protocol section 2,
danger 1). Tokens therefore change by the pure rules below and nowhere else; every store
applies them inside the transaction that writes the result.

- A statusCode-0 **reply** is the best there is: it was given for the key we sent. It loses only to
  a push that taught a newer key while the request was in flight (`_saw_the_push`).
- A **push** teaches only what is newer than the last reply and than what a push has told or confirmed
  since: its own event time decides, or, where it has none, its transcript position. A key that was
  replaced before never comes back with it, and one of another shape, alone, is that of another protocol.
- A **registration** comes from the custom-chat-app, which may know the newest tokens or may repeat
  the first ones: a key that was replaced before does not come back either. One that names a **take** says what GMS
  replied to the custom-chat-app's own request, and is judged as that reply.
"""

from __future__ import annotations

from functools import reduce

from asyncchatd.model.data import Ms, Registration, Settlement, TokenNews, Tokens, Verdict, key_digest
from asyncchatd.model.values import Hidden, Value, replace

OLD_KEYS_KEPT = 64
"""Replaced keys remembered per session. A key changes at most once per ping; under a storm of pushes
that is several a second, and a push may be older than the clocks can tell by a few seconds."""

CLOCK_TOLERANCE_MS = 2_000
"""How far Chat Server's clock may be behind ours before its news look old. Its `utcTime` is seen in whole
seconds, which alone makes an event look up to a second older than it is."""

CLOCK_SET_BACK_MS = 15 * 60_000
"""A time that we noted and that lies further ahead was noted before our clock was set back. Nothing waits
so long: neither a push for its effect nor a reply for its settlement."""


UNLIKE = 2
"""A key so many times longer or shorter than the session's own is of another kind."""

HEX_KEY = 16
"""Keys of so many characters or more are told by their alphabet, too. In fewer, chance decides it."""


class TokenRecord(Value, frozen=True):
    """The record of one session's tokens: what is known of them, and what it takes to judge news of them."""

    user_id: str | None = None
    secure_key: Hidden[str | None] = None
    alias: str | None = None
    old_keys: tuple[str, ...] = ()
    """Digests of replaced secure keys, oldest first; in another spelling those of doubted ones."""
    sent_at: Ms = 0
    """When the last request that was answered with statusCode 0 was sent, by our clock; or when
    the session was registered. What happened before that, the reply has already told."""
    seen_utc: Ms = 0
    """Newest event time, by Chat Server's clock, that a reply showed or that a push with the known key
    carried: news of an earlier event are older than that key."""
    next_position: int | None = None
    renewed_at: Ms = 0
    """When a reply last brought a new key, by our clock."""
    told_position: int | None = None
    """Index of the event in the push that taught the key; none once a reply has confirmed or replaced it."""

    def complete(self) -> bool:
        """Whether a ping may be sent."""
        return None not in (self.user_id, self.secure_key, self.alias)

    def tokens(self, chat_id: str | None) -> Tokens | None:
        """The tokens that a request for this chat carries; none while one is missing."""
        if chat_id is None or self.user_id is None or self.secure_key is None or self.alias is None:
            return None
        return Tokens(chat_id, self.user_id, self.secure_key, self.alias)


def from_reply(
    known: TokenRecord,
    sent_key: str | None,
    news: TokenNews,
    *,
    sent_at: Ms,
    answered_at: Ms = 0,
    seen_utc: Ms | None,
    next_position: int | None,
    sent_user: str | None = None,
    sent_alias: str | None = None,
) -> TokenRecord:
    """Take over what a statusCode-0 reply says. `sent_key`, `sent_user` and `sent_alias` are what the
    request carried: a reply that only repeats them does not undo what a push told meanwhile. A `sent_key` that is
    `None` is neither the known one nor the reply's, and was replaced since.

    A reply to a request older than the last answered one (its lease was lost meanwhile) teaches
    nothing but the keys it proves to be old; unless it replaces the very key we know. Then Chat Server
    took the younger request first, or it would have thrown the customer out for it.
    """
    news = replace(
        news,
        user_id=known.user_id if news.user_id == sent_user else news.user_id,
        alias=known.alias if news.alias == sent_alias else news.alias,
    )
    known = _by_our_clock(known, sent_at)
    late = sent_at < known.sent_at
    if late and (known.secure_key != sent_key or news.secure_key in (None, sent_key)):
        proved_old = {sent_key, news.secure_key} - {known.secure_key}
        return reduce(_retire, sorted(key for key in proved_old if key is not None), known)
    heard = replace(
        known,
        sent_at=max(known.sent_at, sent_at),
        seen_utc=max(known.seen_utc, seen_utc or 0),
        next_position=known.next_position if next_position is None or late else next_position,
    )
    if known.secure_key not in (sent_key, news.secure_key) and not _saw_the_push(
        known, sent_key, news, sent_at, next_position
    ):
        return _retire(heard, news.secure_key)
    renewed = news.secure_key not in (None, sent_key)
    return replace(
        _take(heard, news), told_position=None, renewed_at=answered_at if renewed else known.renewed_at
    )


def from_settlement(known: TokenRecord, each: Settlement, *, numbered_at: Ms) -> TokenRecord:
    """What is known once a request of ours is settled: `from_reply`, where there was a reply. `numbered_at` is when
    Chat Server last began to count events anew; the answer to a request of before counts as it counted then."""
    if each.verdict not in (Verdict.ANSWERED, Verdict.LEARNED, Verdict.CALLED):
        return known
    sent = each.claim.tokens
    return from_reply(
        known,
        sent.secure_key,
        each.news,
        sent_at=each.sent_at,
        answered_at=each.settled_at,
        seen_utc=each.seen_utc,
        next_position=None if each.sent_at < numbered_at else each.next_position,
        sent_user=sent.user_id,
        sent_alias=sent.alias,
    )


def _saw_the_push(
    known: TokenRecord, sent_key: str | None, news: TokenNews, sent_at: Ms, next_position: int | None
) -> bool:
    """A push taught a key while the request was on its way, and the reply has yet another one. Which is
    newer? A reply that repeats the key it was asked with was made before the push. One with a new key
    was made after it, unless the push's event came later than the request was sent and stands behind
    the end of the reply's transcript."""
    if news.secure_key in (None, sent_key):
        return False
    if known.seen_utc < sent_at or known.told_position is None or next_position is None:
        return True
    return next_position > known.told_position


def from_push(
    known: TokenRecord, news: TokenNews, *, utc_time: Ms | None, position: int | None, at: Ms | None = None
) -> tuple[TokenRecord, bool]:
    """Take over what an authenticated push says; also whether it said something that was ignored.

    `utc_time` is the newest event time it carries, `position` the highest event index, `at` when it
    arrived by our clock.
    """
    if news.secure_key is None and news.user_id is None and news.alias is None:
        return known, False
    if at is not None:
        known = _by_our_clock(known, at)
    if None in (news.user_id, news.alias) and is_unlike(known.secure_key, news.secure_key):
        without, _ = from_push(known, replace(news, secure_key=None), utc_time=utc_time, position=position)
        return without, True
    if (
        _is_older(known, utc_time, position)
        or _was_overtaken(known, utc_time, position, at)
        or (news.secure_key is not None and key_digest(news.secure_key) in known.old_keys)
        # Without a time, or of an event that a reply has shown already, an alias or user id may be an old
        # one, and there is no replaced key to tell it by; the Refresh that follows will tell.
        or (news.secure_key in (None, known.secure_key) and (utc_time is None or utc_time <= known.seen_utc))
    ):
        filled = _fill(known, news)
        return filled, filled == known and _differs(known, news)
    taken = _take(known, news)
    if news.secure_key is not None:
        taken = replace(taken, seen_utc=max(known.seen_utc, utc_time or 0), told_position=position)
    return taken, False


def from_registration(
    known: TokenRecord, news: TokenNews, *, at: Ms, next_position: int | None
) -> tuple[TokenRecord, bool]:
    """Take over what the custom-chat-app says; also whether its key was an old one and ignored."""
    if _may_be_old(known, news.secure_key):
        return known, True
    taken = _take(known, news)
    changed = taken.secure_key != known.secure_key
    return replace(
        taken,
        sent_at=at if changed else known.sent_at,
        next_position=_furthest(known.next_position, next_position),
    ), False


class Handed(Value, frozen=True):
    """The tokens that were handed to the custom-chat-app with a take, and when. The key is known by its digest."""

    at: Ms
    key_digest: str
    user_id: str
    alias: str


def from_take(
    known: TokenRecord, handed: Handed, news: TokenNews, *, at: Ms, next_position: int | None
) -> tuple[TokenRecord, bool]:
    """Take over what the custom-chat-app says that GMS replied to its own request, which it sent with the tokens that
    were handed to it; also whether its key was an old one and ignored.

    `from_registration` would believe any key that is not known to be old. Here it is known which key the request
    carried and since when it may have been on its way, so that a push which told another key meanwhile, or a ping
    after the end of the take, is weighed against it as against a reply of ours. Tokens that only repeat what was
    handed out need not come from a reply: they teach nothing.
    """
    if _may_be_old(known, news.secure_key):
        return known, True
    said = (news.secure_key and key_digest(news.secure_key), news.user_id, news.alias)
    record = known
    if said != (handed.key_digest, handed.user_id, handed.alias):
        both = {news.secure_key, known.secure_key}
        record = from_reply(
            known,
            next((key for key in both if key is not None and key_digest(key) == handed.key_digest), None),
            news,
            sent_at=handed.at,
            answered_at=at,
            seen_utc=None,
            next_position=next_position,
            sent_user=handed.user_id,
            sent_alias=handed.alias,
        )
    furthest = _furthest(known.next_position, next_position)
    return replace(record, next_position=furthest), news.secure_key not in (None, record.secure_key)


def from_app(
    known: TokenRecord, registration: Registration, handed: Handed | None, *, at: Ms, keeps_position: bool
) -> tuple[TokenRecord, bool]:
    """Take over what the custom-chat-app registers of a known session, by `from_take` where tokens were handed to it
    and by `from_registration` elsewhere; also whether its key was an old one and ignored. `keeps_position`: somebody
    is told of transcripts, and a position that is known stays."""
    said, position = registration.tokens, registration.next_position
    news = TokenNews(said.chat_id, said.user_id, said.secure_key, said.alias)
    stays = keeps_position and known.next_position is not None
    if handed is None:
        return from_registration(known, news, at=at, next_position=None if stays else position)
    record, refused = from_take(known, handed, news, at=at, next_position=position)
    return (replace(record, next_position=known.next_position) if stays else record), refused


def _may_be_old(known: TokenRecord, secure_key: str | None) -> bool:
    """Whether a key that the custom-chat-app tells was replaced before, or is doubted."""
    return secure_key is not None and not {key_digest(secure_key), _doubted(secure_key)}.isdisjoint(
        known.old_keys
    )


def doubt(known: TokenRecord) -> TokenRecord:
    """Forget the tokens of a session of which there may be newer ones. The key may still be the right one, so that
    a push may bring it back. A registration may not: the custom-chat-app may repeat what it told us first,
    as it need not know what GMS gave us since."""
    kept = known.old_keys
    if known.secure_key is not None and _doubted(known.secure_key) not in kept:
        kept = (*kept, _doubted(known.secure_key))[-OLD_KEYS_KEPT:]
    return replace(known, user_id=None, secure_key=None, alias=None, old_keys=kept)


def _doubted(secure_key: str) -> str:
    """How a key is remembered that may be an old one; as long as the digest of one that is."""
    return f"?{key_digest(secure_key)[1:]}"


def is_unlike(known_key: str | None, said: str | None) -> bool:
    """Whether two keys are of different kinds. Chat API over CometD, another protocol, has long base64 texts
    where the Chat API has hexadecimal ones (protocol section 7). A push that tells one, without the rest of
    its triple, does not tell the session's own."""
    if known_key is None or said is None:
        return False
    short, long = sorted((len(known_key), len(said)))
    if long < HEX_KEY:
        return False
    return long > UNLIKE * short or (short >= HEX_KEY and _is_hex(said) != _is_hex(known_key))


def _is_hex(key: str) -> bool:
    return _HEX.issuperset(key)


_HEX = frozenset("0123456789abcdefABCDEF")


def _by_our_clock(known: TokenRecord, now: Ms) -> TokenRecord:
    """What we noted before our clock was set back is not newer than all that follows."""
    if max(known.sent_at, known.renewed_at) <= now + CLOCK_SET_BACK_MS:
        return known
    return replace(known, sent_at=min(known.sent_at, now), renewed_at=min(known.renewed_at, now))


def _was_overtaken(known: TokenRecord, utc_time: Ms | None, position: int | None, at: Ms | None) -> bool:
    """It arrived while a request was on its way whose reply brought a new key, and takes effect after it.
    Then the same holds as in `_saw_the_push`."""
    if at is None or at >= known.renewed_at:
        return False
    if (utc_time or 0) < known.sent_at or position is None or known.next_position is None:
        return True
    return position < known.next_position


def _is_older(known: TokenRecord, utc_time: Ms | None, position: int | None) -> bool:
    if utc_time is not None:
        return utc_time < max(known.seen_utc, known.sent_at - CLOCK_TOLERANCE_MS)
    return position is not None and known.next_position is not None and position < known.next_position


def _differs(known: TokenRecord, news: TokenNews) -> bool:
    return (
        news.secure_key not in (None, known.secure_key)
        or news.user_id not in (None, known.user_id)
        or news.alias not in (None, known.alias)
    )


def _fill(known: TokenRecord, news: TokenNews) -> TokenRecord:
    """Of what may be old a session takes only what it lacks, and never a replaced key."""
    if news.secure_key is not None and key_digest(news.secure_key) in known.old_keys:
        news = replace(news, secure_key=None)
    return replace(
        known,
        user_id=known.user_id or news.user_id,
        secure_key=known.secure_key or news.secure_key,
        alias=known.alias or news.alias,
    )


def _take(known: TokenRecord, news: TokenNews) -> TokenRecord:
    retired = known
    if news.secure_key is not None and news.secure_key != known.secure_key:
        retired = _retire(_reinstate(known, news.secure_key), known.secure_key)
    return replace(
        retired,
        user_id=news.user_id or known.user_id,
        secure_key=news.secure_key or known.secure_key,
        alias=news.alias or known.alias,
    )


def _retire(known: TokenRecord, secure_key: str | None) -> TokenRecord:
    if secure_key is None or key_digest(secure_key) in known.old_keys:
        return known
    return replace(known, old_keys=(*known.old_keys, key_digest(secure_key))[-OLD_KEYS_KEPT:])


def _reinstate(known: TokenRecord, secure_key: str) -> TokenRecord:
    right = {key_digest(secure_key), _doubted(secure_key)}
    return replace(known, old_keys=tuple(old for old in known.old_keys if old not in right))


def _furthest(known: int | None, said: int | None) -> int | None:
    if known is None or said is None:
        return said if known is None else known
    return max(known, said)
