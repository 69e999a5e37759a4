"""Rules that every store keeps, and that its callers go by."""

from __future__ import annotations

import random
from collections.abc import Iterator

from asyncchatd.model import Ms, Reason, Settlement, TokenNews, Tokens, Verdict, replace

EVERY_REASON = tuple(Reason)

ANNOUNCED_LINGER_MS = 30_000
"""A restoration made of shutdown notices stays open this long after the last notice, because
sessions are restored faster than a stopping Chat Server announces them. Meanwhile `finished_at` says when none of
its sessions waited any more, and a further notice takes that back."""

AT_ONCE = 3
"""Pings of one session that pushes may cause one right after the other."""

SPACING_MS = 1_000
"""Between two pings of one session that pushes cause, once there were `AT_ONCE`: a chat in which somebody
types without end costs GMS no more than that, and what was pushed last waits no longer."""

DEVICE_CHATS = 10
"""Chats that a push without a chat id makes due when many share its device, the most recently active first."""

PULL_IN_CHUNK = 5_000
"""Sessions that are brought nearer in one transaction, at the most."""

LONGEST_SILENCE_MS = 22 * 3_600_000
"""The longest silence of a session that GMS refuses again and again. Chat Server removes a client of which it
hears nothing for `flex-push-timeout`, a day as Genesys advises."""

KEEPALIVE_JITTER = 0.1
"""A keepalive comes up to this share of the interval early, never late."""

LONGEST_BACKOFF_MS = 375_000
"""A batch that a webhook refused is tried again after no longer."""

LONGEST_TAKE_MS = 60_000
"""Nobody takes a session for longer."""


def silence_ms(interval_ms: float, refused_since: Ms | None, now: Ms) -> float:
    """How long a session may wait for its next keepalive: the interval, and while GMS refuses it as long
    again as it has been refused. So its silence doubles, and what GMS will not do costs it ever less."""
    if refused_since is None:
        return interval_ms
    return max(interval_ms, min(LONGEST_SILENCE_MS, interval_ms + max(0, now - refused_since)))


def keepalive_ms(interval_ms: float, refused_since: Ms | None, now: Ms) -> float:
    """How long a session that was just answered waits for its next keepalive: `silence_ms`, and no two alike."""
    return silence_ms(interval_ms, refused_since, now) * random.uniform(1 - KEEPALIVE_JITTER, 1)


def is_repeatable(each: Settlement) -> bool:
    """Whether forgetting this would only mean one ping more: no tokens, no events, no end."""
    return each.verdict is not Verdict.ENDED and not each.events and agrees(each.news, each.claim.tokens)


def without_extras(refused: Settlement) -> Iterator[Settlement]:
    """What is tried, one after the other, in the place of a settlement that a store refuses to write: without what it
    may be refused for, and at last only that the session was not answered."""
    missing = refused.cut or bool(refused.events)
    yield replace(refused, next_position=None, seen_utc=None, detail=None, events=(), cut=missing)
    yield Settlement(
        refused.claim,
        Verdict.RETRY,
        refused.due_at,
        sent_at=refused.sent_at,
        settled_at=refused.settled_at,
        trouble="not_written",
    )


def agrees(news: TokenNews, known: Tokens) -> bool:
    """Whether news of a session's tokens say nothing that is not known."""
    return (
        news.secure_key in (None, known.secure_key)
        and news.alias in (None, known.alias)
        and news.user_id in (None, known.user_id)
    )
