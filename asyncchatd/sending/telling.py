"""What is told of requests for sessions: a log line for each ping, and what is counted of them; restorations that a
settlement finished."""

from __future__ import annotations

from collections.abc import Sequence

from asyncchatd.gms import Answer
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Claim, Reason, Restoration, RestorationState, Settled, Settlement, Verdict
from asyncchatd.stores import is_repeatable
from asyncchatd.wire import Alive, NodeTrouble, PingFault, Refused, RetryLater

LOST_NAMED = 100
"""So many sessions with lost answers are named."""

LOST_ADVICE = (
    "they are pinged with keys that GMS may have replaced: before the start, asyncchatd store distrust --before now,"
    " docs/backup.md"
)

log = get_logger()


def tell_lost(settlements: Sequence[Settlement]) -> None:
    """Log the answers that nobody will say again and that are not written when the daemon ends."""
    lost = [each.claim.chat_id for each in settlements if not is_repeatable(each)]
    if lost:
        log.error(Event.ANSWERS_LOST, count=len(lost), chat_ids=lost[:LOST_NAMED], advice=LOST_ADVICE)


def note(settlement: Settlement, settled: Settled) -> None:
    """Log and count what became of a session by a settlement."""
    claim = settlement.claim
    if settlement.verdict not in _NO_PING:
        _PINGS[claim.reason, settlement.verdict].inc()
    if settled.lease_held and settlement.verdict is Verdict.ENDED:
        log.info(
            Event.SESSION_ENDED,
            chat_id=claim.chat_id,
            alias=claim.tokens.alias,
            cause="chat_ended",
            detail=settlement.trouble,
            reason=claim.reason.word,
            restoration=claim.restoration,
            **_fetched(settlement),
        )
    elif not settled.lease_held:
        log.warning(Event.LEASE_LOST, chat_id=claim.chat_id, reason=claim.reason.word)
    if settled.tokens_changed:
        log.info(
            Event.SESSION_TOKENS_CHANGED,
            chat_id=claim.chat_id,
            alias=settled.alias,
            previous_alias=claim.tokens.alias,
        )


_NO_PING = frozenset((Verdict.RELEASED, Verdict.CALLED))

_PINGS = {
    (reason, verdict): metrics.PINGS.labels(reason.word, verdict.value)
    for reason in Reason
    for verdict in Verdict
    if verdict not in _NO_PING
}


def is_usual(settlement: Settlement) -> bool:
    """Whether this is a keepalive answered at its first try that fetched nothing: most pings there are, and nothing an
    operator asks about."""
    claim = settlement.claim
    plain = claim.reason is Reason.KEEPALIVE and not claim.attempts and not settlement.events
    return plain and settlement.verdict is Verdict.ANSWERED


def log_ping(settlement: Settlement, answer: Answer, now: int) -> None:
    """Log how a ping ended. `now` is in milliseconds since the epoch."""
    match settlement.verdict:
        case Verdict.ANSWERED:
            _log_answered(settlement, answer)
        case Verdict.RETRY if settlement.trouble == PingFault.FOREIGN_REPLY:
            log.error(Event.PING_FOREIGN_REPLY, **_names(settlement.claim, answer))
        case Verdict.RETRY:
            log.warning(
                Event.PING_RETRY,
                **_names(settlement.claim, answer),
                cause=settlement.trouble,
                detail=detail_of(answer),
                said=_said(answer),
                attempt=settlement.claim.attempts + 1,
                next_ms=round(settlement.due_at - now),
            )
        case Verdict.REFUSED:
            log.error(
                Event.PING_REFUSED,
                **_names(settlement.claim, answer),
                cause=settlement.trouble,
                detail=detail_of(answer),
                said=_said(answer),
            )
        case _:
            pass


def _log_answered(settlement: Settlement, answer: Answer) -> None:
    claim = settlement.claim
    alias = settlement.news.alias or claim.tokens.alias
    took_ms = round(answer.took * 1000, 1)
    if is_usual(settlement):
        log.debug(Event.KEEPALIVE_OK, chat_id=claim.chat_id, alias=alias, node=answer.node, took_ms=took_ms)
        return
    log.info(
        Event.PING_OK,
        chat_id=claim.chat_id,
        alias=alias,
        reason=claim.reason.word,
        restoration=claim.restoration,
        node=answer.node,
        previous_alias=claim.tokens.alias if alias != claim.tokens.alias else None,
        attempt=claim.attempts + 1,
        waited_ms=max(0, round(settlement.settled_at - claim.due_at)),
        took_ms=took_ms,
        **_fetched(settlement),
    )


def _fetched(settlement: Settlement) -> dict[str, int | None]:
    """The places in the transcript that the reply showed, where somebody is told of them."""
    indexes = [event.index for event in settlement.events if event.index is not None]
    return {"first_index": min(indexes, default=None), "last_index": max(indexes, default=None)}


def detail_of(answer: Answer) -> str | None:
    """HTTP status and GMS' own words."""
    return None if isinstance(answer.outcome, Alive) else answer.outcome.detail or None


def _said(answer: Answer) -> str | None:
    """GMS' own words alone."""
    match answer.outcome:
        case RetryLater(said=said) | Refused(said=said) | NodeTrouble(said=said):
            return said or None
        case _:
            return None


def _names(claim: Claim, answer: Answer) -> dict[str, object]:
    """Which ping it was."""
    return {
        "chat_id": claim.chat_id,
        "alias": claim.tokens.alias,
        "reason": claim.reason.word,
        "restoration": claim.restoration,
        "node": answer.node,
    }


def log_finished(restoration: Restoration) -> None:
    """Log and measure a restoration that is over."""
    took_ms = (restoration.finished_at or restoration.started_at) - restoration.started_at
    if restoration.sessions > restoration.moved:
        metrics.RESTORATION_SECONDS.observe(took_ms / 1000)
    metrics.SESSIONS_LEFT.inc(restoration.refused)
    said = {
        "restoration": restoration.id,
        "server": restoration.server,
        "restored": restoration.restored,
        "ended": restoration.ended,
        "refused": restoration.refused,
        "moved": restoration.moved,
        "took_ms": took_ms,
    }
    if restoration.state is RestorationState.INCOMPLETE:
        log.warning(Event.RESTORATION_INCOMPLETE, **said)
    else:
        log.info(Event.RESTORATION_FINISHED, **said)
