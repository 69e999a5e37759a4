"""The judgement of an answer: what it means for its session, and when that is pinged next."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence, Set

from asyncchatd.config import Settings
from asyncchatd.gms import Answer, Landing, Trouble
from asyncchatd.model import Claim, Clock, EventKind, Ms, RawEvent, Reason, Settlement, Verdict
from asyncchatd.sending.settling import together_seconds
from asyncchatd.sending.telling import detail_of
from asyncchatd.stores import keepalive_ms
from asyncchatd.wire import Alive, Ended, NodeTrouble, PingFault, Refused, Reply, RetryLater, raw_event

INSISTING_TRIES = 5
"""So often, at least, a session that GMS refuses is tried again while it is to be restored. GMS' link to its
Chat Server may be failing over just then, and with it the servers themselves."""

AT_WORK_SECONDS = 2.0
"""A push waits no longer for a request that may have been taken, unless GMS may be at work on that one still."""

ONLY_THE_LAST, NONE_AT_ALL = -1, 0
"""The `transcriptPosition` that asks for one event, and for none (protocol section 2)."""

REMEMBERED = 10_000
"""Sessions whose last answer was too large. One that is forgotten costs one such answer more."""

# Looked up in its class a member costs ten times as much, and that several times a ping.
ANSWERED, FAILED = Landing.ANSWERED, Landing.FAILED


class Judge:
    """Judges answers by the settings in force, and knows whose transcript was too long an answer."""

    def __init__(self, settings: Settings, clock: Clock, told_kinds: Callable[[], Set[EventKind]]) -> None:
        """`told_kinds`: of which events somebody is told now."""
        self._clock = clock
        self._told_kinds = told_kinds
        self._learning: dict[str, int] = {}
        """Sessions whose transcript is too long an answer, and the position that will do to learn the next one."""
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Judge by these from now on."""
        self._settings = settings
        interval = settings.ping.interval.total_seconds()
        self._interval_ms = interval * 1000
        # A silence is no longer than the interval, also when a keepalive leaves as late as it may.
        self._longest_ms = (interval - 2 * together_seconds(interval)) * 1000

    def position(self, claim: Claim) -> int | None:
        """The position from which the session's transcript is asked for."""
        return self._learning.get(claim.chat_id, claim.next_position)

    def settlement(self, claim: Claim, answer: Answer) -> Settlement:
        """What the answer means for the session."""
        now = self._clock.now()
        if isinstance(answer.outcome, Alive):
            reply = answer.outcome.reply
            times = [event.utc_time for event in reply.events if event.utc_time is not None]
            # Whether a Refresh with another position than the session's own acknowledges a push, or restores
            # anything, nobody knows: the one with its own follows at once.
            learned = self._learning.pop(claim.chat_id, None) is not None and reply.next_position is not None
            return Settlement(
                claim,
                Verdict.LEARNED if learned else Verdict.ANSWERED,
                claim.due_at
                if learned
                else now + min(self._longest_ms, keepalive_ms(self._interval_ms, None, now)),
                answer.sent_at,
                now,
                reply.news,
                reply.next_position,
                max(times) if times else None,
                events=(events := self._events(reply.messages)),
                cut=reply.cut or learned or self._lacks(reply, events),
            )

        def verdict(
            what: Verdict,
            due_at: float,
            trouble: str | None = None,
            *,
            refused: bool = False,
            events: tuple[RawEvent, ...] = (),
        ) -> Settlement:
            detail = None if what is Verdict.ENDED else detail_of(answer)
            return Settlement(
                claim,
                what,
                due_at,
                answer.sent_at,
                now,
                trouble=trouble,
                detail=detail,
                refused=refused,
                events=events,
            )

        match answer.outcome:
            case Ended(detail, messages):
                return verdict(Verdict.ENDED, now, detail or None, events=self._events(messages))
            case Refused(cause) if answer.node is not None and self._insists(claim, now):
                return verdict(Verdict.RETRY, now + self._insisting_ms(claim.refusals), cause, refused=True)
            case Refused(cause):
                pause = keepalive_ms(self._interval_ms, claim.refused_since, now)
                return verdict(Verdict.REFUSED, now + pause, cause, refused=True)
            case NodeTrouble(Trouble.NO_NODE | Trouble.TOO_LATE):
                return verdict(Verdict.RELEASED, claim.due_at)
            case RetryLater(cause, retry_after) | NodeTrouble(cause, retry_after):
                if cause == Trouble.REPLY_TOO_LARGE:
                    self._ask_for_less(claim.chat_id)
                # Which node is spared, and for how long, is the GMS client's business: another may serve it.
                asked = min((retry_after or 0) * 1000, self._longest_backoff_ms())
                pause = max(self._backoff_ms(claim.attempts), asked)
                if answer.perhaps_taken:
                    # GMS may be at work on it still, and a second request meanwhile throws the customer out.
                    step = self._step_ms(claim.attempts) * random.uniform(0.9, 1)
                    pause = max(pause, step, answer.at_work * 1000)
                return verdict(Verdict.RETRY, now + pause, cause)

    def held_for(self, answer: Answer) -> float:
        """Seconds for which nobody gets the session of a request that may have been taken, whatever makes it due: GMS
        may be at work on it still, and a second one meanwhile throws the customer out."""
        shortest = min(self._settings.restoration.backoff.total_seconds() / 2, AT_WORK_SECONDS)
        return max(shortest, answer.at_work)

    def _events(self, messages: Sequence[dict[str, object]]) -> tuple[RawEvent, ...]:
        """What a reply shows of the transcript, where somebody is told of it."""
        if not messages or EventKind.CHAT not in self._told_kinds():
            return ()
        return tuple(event for event in map(raw_event, messages) if event is not None)

    def _lacks(self, reply: Reply, events: Sequence[RawEvent]) -> bool:
        """Whether the reply had an event that cannot be told."""
        known = {event.index for event in events}
        return EventKind.CHAT in self._told_kinds() and any(
            event.index is not None and event.index not in known for event in reply.events
        )

    def _ask_for_less(self, chat_id: str) -> None:
        """The next Refresh learns the position without the transcript: from the last event alone or, where even
        that is too large, without any."""
        known = chat_id in self._learning
        self._learning[chat_id] = NONE_AT_ALL if known else ONLY_THE_LAST
        if len(self._learning) > REMEMBERED:
            del self._learning[next(iter(self._learning))]

    def _insists(self, claim: Claim, now: Ms) -> bool:
        """Whether a session that GMS refuses is tried again soon. Only one that is to be restored: for the
        others there is no hurry, and a push that is not acknowledged is sent again. What failed for another
        reason is no refusal and takes no try away."""
        if claim.restoration is None and claim.reason is not Reason.RESTORE:
            return False
        if claim.refused_since is None:
            return True
        tries = self._settings.restoration.insist.total_seconds() * 1000
        return claim.refusals < INSISTING_TRIES or now - claim.refused_since < tries

    def _insisting_ms(self, refusals: int) -> float:
        """Each pause twice the one before, so that five fill `restoration.insist`; the longer ones are cut to
        the longest backoff, or a session would notice late that GMS serves it again."""
        share = (1 << min(refusals, INSISTING_TRIES - 1)) / ((1 << INSISTING_TRIES) - 1)
        pause = self._settings.restoration.insist.total_seconds() * 1000 * share
        return min(pause * random.uniform(1, 1.25), self._longest_backoff_ms() * random.uniform(0.8, 1))

    def _backoff_ms(self, attempts: int) -> float:
        """Full jitter: sessions that failed together do not come back together."""
        return random.uniform(0, self._step_ms(attempts))

    def _step_ms(self, attempts: int) -> float:
        first = self._settings.restoration.backoff.total_seconds() * 1000
        return min(self._longest_backoff_ms(), first * (1 << min(attempts, 20)))

    def _longest_backoff_ms(self) -> float:
        return self._settings.restoration.backoff_max.total_seconds() * 1000


_OF_THE_NODE = frozenset(
    [
        *(Trouble.CONNECT, Trouble.OWN_LACK, Trouble.TLS, Trouble.NO_NODE, Trouble.TOO_LATE),
        *(PingFault.BAD_REQUEST, PingFault.NOT_FOUND, PingFault.METHOD_NOT_ALLOWED, PingFault.CONFLICT),
        *(PingFault.GONE, PingFault.BODY_TOO_LARGE, PingFault.URI_TOO_LONG, PingFault.UNPROCESSABLE),
        *(PingFault.UNSUPPORTED_MEDIA_TYPE, PingFault.CLIENT_ERROR, PingFault.UNAUTHORIZED),
        *(PingFault.FORBIDDEN, PingFault.PROXY_AUTHENTICATION, PingFault.REDIRECT),
    ]
)
"""One node's affair, said at once: it has no application, or lets nobody in. That says nothing of how much GMS can
bear."""


def landing(answer: Answer) -> Landing:
    """How an answer is counted by the limit of what GMS may have in flight."""
    match answer.outcome:
        case Alive() | Ended() | Refused():
            return ANSWERED
        case NodeTrouble(Trouble.REPLY_TOO_LARGE):
            return ANSWERED  # at length
        case RetryLater(cause) if cause == PingFault.STATUS_CODE_1:
            return Landing.BUSY
        case NodeTrouble(cause) if cause in _OF_THE_NODE:
            return Landing.UNSENT
        case _:
            return FAILED
