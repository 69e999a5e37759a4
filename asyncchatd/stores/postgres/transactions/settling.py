"""Transactions about what came of claims: sessions are settled.

It happens thousands of times a second, so it goes in portions, one statement for many rows, which is a transaction of
its own. A settlement that does not fit the common case takes the plain way, by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from asyncchatd.model import (
    EndCause,
    Ms,
    Reason,
    Settled,
    Settlement,
    Verdict,
    key_digest,
    replace,
    tokens,
)
from asyncchatd.stores.postgres.transactions import events
from asyncchatd.stores.postgres.transactions.columns import Columns
from asyncchatd.stores.postgres.transactions.restorations import (
    Credits,
    credit,
    due_if_lost,
    lost_server,
    stand,
)
from asyncchatd.stores.postgres.transactions.session_rows import (
    LAX,
    NOBODY,
    SessionRow,
    accounted,
    end,
    find,
    lock,
    write_record,
)
from asyncchatd.stores.postgres.wire import Tx
from asyncchatd.stores.rules import agrees
from asyncchatd.stores.sealing import Sealing
from asyncchatd.stores.sql.rows import AHEAD_MS, ENDED, LIVE, OLD_KEYS_TEXT, differ, news_of


def may_be_alike(settlements: Sequence[Settlement]) -> bool:
    """Whether `settle_alike` may do for these."""
    return all(
        each.verdict is Verdict.ANSWERED
        and each.claim.restoration is None
        and news_of(each.news.alias, each.claim.tokens.alias) is None
        for each in settlements
    )


async def settle_alike(tx: Tx, settlements: Sequence[Settlement], *, durable: bool) -> list[Settled] | None:
    """`settle` where all were answered and nothing happened to any of them meanwhile, in one statement. `None`, and
    nothing is done, where that is not so."""
    answered = dict(enumerate(settlements))
    done = await _untouched(tx, answered, whole=True, lax=not durable)
    return [_settled(each) for each in settlements] if len(done) == len(settlements) else None


async def settle(tx: Tx, settlements: Sequence[Settlement]) -> tuple[list[Settled], int]:
    """`Store.settle`; also how many events were written."""
    await lock(tx, "SELECT unnest($1::bigint[])", [each.claim.row for each in settlements])
    await stand(tx, (each.news.alias for each in settlements))
    credits: Credits = Counter()
    is_answered = Verdict.ANSWERED
    answered = {place: each for place, each in enumerate(settlements) if each.verdict is is_answered}
    usual = await _settle_usual(tx, answered, credits)
    usual |= await _settle_released(
        tx, {place: each for place, each in enumerate(settlements) if each.verdict is Verdict.RELEASED}
    )
    settled = [usual.get(place) or await _settle(tx, each, credits) for place, each in enumerate(settlements)]
    if credits:
        finished = await credit(tx, credits, max(each.settled_at for each in settlements))
        settled = [
            replace(one, finished=each.claim.restoration) if each.claim.restoration in finished else one
            for one, each in zip(settled, settlements, strict=True)
        ]
    return settled, await events.write(tx, settlements, settled) if tx.kinds else 0


async def _settle_usual(tx: Tx, answered: Mapping[int, Settlement], credits: Credits) -> dict[int, Settled]:
    """Those that were answered and to which nothing happened meanwhile: the row is as it was claimed. They
    come and go by their place among all that are settled together.
    Then the reply's tokens are simply the newest (`tokens.from_reply`), and nothing keeps it due."""
    if not answered:
        return {}
    lost = await _lost_since(tx, list(answered.values()))
    usual = {
        place: each
        for place, each in answered.items()
        if news_of(each.news.alias, each.claim.tokens.alias) not in lost
    }
    untouched = await _untouched(tx, usual) if usual else []
    for place in untouched:
        credits[answered[place].claim.restoration, "restored"] += 1
    return {place: _settled(answered[place]) for place in untouched}


def _settled(each: Settlement) -> Settled:
    known = each.claim.tokens
    return Settled(
        each.claim.chat_id,
        lease_held=True,
        tokens_changed=not agrees(each.news, known),
        alias=each.news.alias or known.alias,
    )


async def _untouched(
    tx: Tx, answered: Mapping[int, Settlement], *, whole: bool = False, lax: bool = False
) -> list[int]:
    """Settle those that are as they were claimed: their places. `whole`: all of them or none."""
    said = _SAID.values(_columns(tx.sealing, place, each) for place, each in answered.items())
    rows = await tx.rows(_ANSWERED, *said, whole, lax)
    return [place for place, _ in rows]


def _columns(sealing: Sealing, place: int, each: Settlement) -> tuple[object, ...]:
    """A row of `_SAID`."""
    claim, news, known = each.claim, each.news, each.claim.tokens
    key = news_of(news.secure_key, known.secure_key)
    return (
        *(place, claim.row, claim.claim_id, claim.marks),
        *(sealing.seal(known.secure_key, claim.chat_id), known.alias),
        *(each.due_at, each.sent_at, each.settled_at, each.seen_utc, each.next_position),
        *(news_of(news.user_id, known.user_id), news_of(news.alias, known.alias)),
        *(
            (None, None, None)
            if key is None
            else (sealing.seal(key, claim.chat_id), key_digest(key), key_digest(known.secure_key))
        ),
    )


_SAID = Columns(
    {
        "place": "integer",
        "session": "bigint",
        "claim": "bigint",
        "marks": "bigint",
        "secure_key": "text",
        "alias": "text",
        "due_at": "double precision",
        "sent_at": "bigint",
        "settled_at": "bigint",
        "seen_utc": "bigint",
        "position": "bigint",
        "told_user": "text",
        "told_alias": "text",
        "told_key": "text",
        "told_digest": "text",
        "old_digest": "text",
    }
)

_ANSWERED = f"""WITH said AS MATERIALIZED (
        SELECT * FROM {_SAID.unnest} AS said({_SAID.names})),
    held AS MATERIALIZED (
        SELECT said.* FROM said JOIN work ON work.session=said.session JOIN session ON session.id=said.session
        -- In other words than those of the index of aliases. As long as nobody has counted the sessions, PostgreSQL
        -- takes it for the shortest, and looks through all that are live, or for each all of its Chat Server.
        WHERE work.claim=said.claim AND work.marks=said.marks AND session.state::integer={LIVE}
        AND session.secure_key IS NOT DISTINCT FROM said.secure_key AND session.alias IS NOT DISTINCT FROM said.alias
        AND (said.told_digest IS NULL OR position(said.told_digest in session.old_keys)=0)
        ORDER BY session.id FOR NO KEY UPDATE OF session, work),
    kept AS MATERIALIZED (
        SELECT * FROM held WHERE NOT $17 OR (SELECT count(*) FROM held)=(SELECT count(*) FROM said)),
    told AS (
        UPDATE session SET last_trouble=NULL, trouble_detail=NULL, sent_at=kept.sent_at, answered_at=kept.settled_at,
            seen_utc=greatest(session.seen_utc, kept.seen_utc), next_position=coalesce(kept.position, next_position),
            user_id=coalesce(told_user, session.user_id), alias=coalesce(told_alias, session.alias),
            secure_key=coalesce(told_key, session.secure_key),
            renewed_at=CASE WHEN told_key IS NULL THEN session.renewed_at ELSE kept.settled_at END,
            old_keys=CASE WHEN told_key IS NULL THEN old_keys
                ELSE right(btrim(old_keys || ' ' || old_digest), {OLD_KEYS_TEXT}) END,
            version=version+1
        FROM kept WHERE session.id=kept.session),
    given_back AS (
        UPDATE work SET claim={NOBODY}, held_until=0, attempts=0, refused_since=NULL, restoration=NULL,
            reason={Reason.KEEPALIVE:d}, due_at=kept.due_at, pinged_until={accounted("kept.settled_at")}
        FROM kept WHERE work.session=kept.session)
    SELECT place, CASE WHEN $18 THEN {LAX} END FROM kept"""


async def _settle_released(tx: Tx, released: Mapping[int, Settlement]) -> dict[int, Settled]:
    """Those that nobody was asked for, all in one statement: a node that stood still gives back whatever it holds, and
    the others wait for these rows. By their places, as in `_settle_usual`."""
    if not released:
        return {}
    rows = _GIVEN_BACK.values(
        (place, each.claim.row, each.claim.chat_id, each.claim.claim_id, each.claim.marks, each.due_at)
        for place, each in released.items()
    )
    found = {place: rest for place, *rest in await tx.rows(_RELEASED, *rows)}
    settled = {}
    for place, each in released.items():
        held, same, alias = found.get(place, (False, False, None))
        settled[place] = Settled(
            each.claim.chat_id,
            lease_held=held,
            tokens_changed=False,
            alias=alias,
            due_again=held and (not same or each.due_at <= each.settled_at),
        )
    return settled


_GIVEN_BACK = Columns(
    {
        "place": "integer",
        "session": "bigint",
        "chat": "text",
        "claim": "bigint",
        "marks": "bigint",
        "due_at": "double precision",
    }
)

# `settle` has locked the rows.
_RELEASED = f"""WITH said AS MATERIALIZED (
        SELECT * FROM {_GIVEN_BACK.unnest} AS said({_GIVEN_BACK.names})),
    found AS MATERIALIZED (
        SELECT said.*, work.claim=said.claim AS held, work.marks=said.marks AS same, session.alias
        FROM said JOIN work ON work.session=said.session JOIN session ON session.id=said.session
        WHERE session.chat_id=said.chat AND session.state::integer<>{ENDED}),
    freed AS (
        UPDATE work SET claim={NOBODY}, held_until=0,
            due_at=CASE WHEN found.same THEN found.due_at ELSE work.due_at END
        FROM found WHERE work.session=found.session AND found.held)
    SELECT place, held, same, alias FROM found"""


async def _lost_since(tx: Tx, answered: Sequence[Settlement]) -> frozenset[str]:
    """Aliases that sessions just came to and whose Chat Server was lost after they were asked for:
    those sessions missed the marking."""
    came: dict[str, Ms] = {}
    for each in answered:
        alias = news_of(each.news.alias, each.claim.tokens.alias)
        if alias is not None:
            came[alias] = min(each.sent_at, came.get(alias, each.sent_at))
    return frozenset(
        [alias for alias in sorted(came) if await lost_server(tx, alias, came[alias]) is not None]
    )


async def _settle(tx: Tx, each: Settlement, credits: Credits) -> Settled:
    claim = each.claim
    found = await find(tx, "WHERE session.id=$1 AND chat_id=$2", claim.row, claim.chat_id)
    if not found or found[0].state == ENDED:
        return Settled(claim.chat_id, lease_held=False, tokens_changed=False, alias=None)
    known = found[0]
    if each.verdict is Verdict.ENDED:
        await end(tx, known.id, EndCause.CHAT_ENDED, each.settled_at)
        credits[known.restoration, "ended"] += 1
        return Settled(claim.chat_id, lease_held=True, tokens_changed=False, alias=known.record.alias)
    record = tokens.from_settlement(known.record, each, numbered_at=known.numbered_at)
    if record != known.record:
        await write_record(tx, known, known.chat_id, record)
    held = known.claim == claim.claim_id
    if held:
        await _give_back(tx, known, each, credits)
    again = held and (known.marks != claim.marks or each.due_at <= each.settled_at)
    if record.alias != known.record.alias:
        again |= await due_if_lost(tx, known.id, record.alias, each.sent_at, each.settled_at, credits)
    changed = differ(known.record, record)
    return Settled(
        claim.chat_id, lease_held=held, tokens_changed=changed, alias=record.alias, due_again=again
    )


async def _give_back(tx: Tx, known: SessionRow, each: Settlement, credits: Credits) -> None:
    """End the lease. What made the session due while the ping was on its way keeps it due, and waits when pings have
    come thick."""
    done = each.verdict in (Verdict.ANSWERED, Verdict.REFUSED)
    same = known.marks == each.claim.marks
    answered = each.verdict is Verdict.ANSWERED
    pinged = each.verdict not in (Verdict.RELEASED, Verdict.CALLED)
    failed = pinged and not answered and each.verdict is not Verdict.LEARNED
    until = accounted("said.now")
    work = [f"claim={NOBODY}", "held_until=0"]
    if pinged:
        work.append(f"pinged_until={until}")
    if same:
        work.append("due_at=said.due_at")
        work += [f"reason={Reason.KEEPALIVE:d}"] * done
    elif pinged:
        free = f"{until} - {AHEAD_MS}"
        work.append(
            f"due_at=CASE WHEN {free} > said.now THEN greatest(work.due_at, {free}) ELSE work.due_at END"
        )
    if each.verdict is Verdict.CALLED and each.due_at <= each.settled_at:
        work.append(f"reason=least(reason, {Reason.REQUEST:d})")
    if answered:
        work += ["attempts=0", "refused_since=NULL"]
    elif failed:
        work.append("attempts=attempts+1")
        if each.refused:
            work.append("refusals=CASE WHEN refused_since IS NULL THEN 1 ELSE refusals+1 END")
            work.append("refused_since=coalesce(refused_since, said.now)")
    if done and same and known.restoration is not None:
        work.append("restoration=NULL")
        credits[known.restoration, "restored" if answered else "refused"] += 1
    await tx.run(
        f"UPDATE work SET {', '.join(work)}"
        " FROM (SELECT $2::bigint AS now, $3::double precision AS due_at) AS said WHERE session=$1",
        *(known.id, each.settled_at, float(each.due_at)),
    )
    if answered:
        await tx.run(
            "UPDATE session SET answered_at=$2, last_trouble=NULL, trouble_detail=NULL WHERE id=$1",
            *(known.id, each.settled_at),
        )
    elif failed:
        await tx.run(
            "UPDATE session SET last_trouble=$2, trouble_detail=$3 WHERE id=$1",
            *(known.id, each.trouble, each.detail),
        )
