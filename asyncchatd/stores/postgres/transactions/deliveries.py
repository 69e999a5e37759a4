"""Transactions about consumers: who is told, how far each one is, and the batches of those with a webhook.

Events are shared out over the chats they belong to, once: `cursor` says how far that went. From then on a chat has a
row in `delivery` as long as there is something it has to tell, so a restart delivers a batch again and not hours. A
batch that is parked has a row of its own, and the chat's goes on behind it.

Whoever changes how far a consumer is, or what is shared out for it, has its row locked, whichever node that is.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from asyncchatd.model import Batch, Consumer, ConsumerState, EventKind, Ms, Portion, StoredEvent
from asyncchatd.stores.errors import ConsumerUnknown, CursorAhead
from asyncchatd.stores.postgres.transactions import events
from asyncchatd.stores.postgres.transactions.events import EVER, WANTED, Part, Wanted, as_columns
from asyncchatd.stores.postgres.wire import Row, Tx
from asyncchatd.stores.rules import LONGEST_BACKOFF_MS
from asyncchatd.stores.sql.rows import CHATS_COUNTED, COUNTED, FETCHED_BYTES, JOINED, TOLD
from asyncchatd.stores.transcripts import OF_A_SAMPLE, places, within, written

SHARED_OUT = 1_500
"""Events that are shared out at once."""

_LOCKED = "FOR NO KEY UPDATE"


async def enrol(tx: Tx, consumers: Sequence[Consumer], shown: Set[EventKind], now: Ms) -> None:
    """Tell these consumers from now on, each from where it was, and a new one from now or from the oldest event on. One
    that is not among them any more is remembered as gone."""
    gap = await tx.value(f"SELECT gap FROM store {_LOCKED}")  # one at a time
    await lock_all(tx)
    newest = await events.newest(tx) if gap is None else gap - 1  # whoever is new since is told of it
    oldest = await tx.value("SELECT coalesce(min(id), 1) FROM event") - 1
    missed = dict(await _pairs(tx, "SELECT name, missed_at FROM consumer WHERE missed_at IS NOT NULL"))
    for consumer in sorted(consumers, key=lambda each: each.name):
        begins = oldest if consumer.from_oldest else newest
        await tx.run(
            "INSERT INTO consumer (name, kinds, services, cursor, given, moved_at, keep_ms, max_backlog)"
            " VALUES ($1, $2, $3, $4, $4, $5, $6, $7) ON CONFLICT (name) DO UPDATE SET gone_at=NULL, missed_at=NULL,"
            " kinds=excluded.kinds, services=excluded.services, keep_ms=excluded.keep_ms,"
            " max_backlog=excluded.max_backlog",
            *(*Wanted.by(consumer), begins, now, consumer.keep_ms, consumer.max_backlog),
        )
        if not consumer.pushes:
            await _fetches_from_now_on(tx, consumer.name)
    if consumers:
        await tx.run("UPDATE store SET gap=NULL WHERE gap IS NOT NULL")
    await tx.run(
        "UPDATE consumer SET gone_at=$1 WHERE gone_at IS NULL AND name<>ALL($2::text[])",
        *(now, [consumer.name for consumer in consumers]),
    )
    await tx.run(
        "UPDATE consumer SET missed_at=$1 WHERE gone_at IS NOT NULL AND missed_at IS NULL"
        " AND NOT kinds <@ $2::text[]",
        *(now, sorted(written(consumers, shown))),
    )
    for consumer in consumers:
        since = missed.get(consumer.name)
        if since is not None:  # events that were not written for one who might come back
            await events.gap_of_all(tx, now, consumer.name, since=since, until=now)


async def _pairs(tx: Tx, sql: str) -> list[tuple[str, int]]:
    return [(row[0], row[1]) for row in await tx.rows(sql)]


async def lock_all(tx: Tx) -> None:
    """Until the transaction ends, no consumer goes on."""
    await tx.run(f"SELECT 1 FROM consumer ORDER BY name {_LOCKED}")


async def _fetches_from_now_on(tx: Tx, name: str) -> None:
    """What was shared out for a webhook that a consumer has no more, it fetches."""
    first = await tx.value("SELECT min(first) FROM delivery WHERE consumer=$1", name)
    if first is not None:
        await tx.run("UPDATE consumer SET cursor=least(cursor, $2) WHERE name=$1", name, first - 1)
        await tx.run("DELETE FROM delivery WHERE consumer=$1", name)


async def dismiss(tx: Tx, now: Ms) -> bool:
    """Forget the consumers that are gone for as long as they were to be remembered. Whether there are others."""
    gone = [
        row[0] for row in await tx.rows("DELETE FROM consumer WHERE gone_at+keep_ms<=$1 RETURNING name", now)
    ]
    if gone:
        await tx.run("DELETE FROM delivery WHERE consumer=ANY($1::text[])", gone)
    return bool(await tx.value("SELECT EXISTS (SELECT 1 FROM consumer)"))


# -- consumers that fetch -------------------------------------------------------------------------------


async def fetch(
    tx: Tx, consumer: Consumer, acknowledged: int | None, limit: int, now: Ms, beyond: int | None
) -> Portion:
    """The events behind what was acknowledged, which is remembered, and behind `beyond`. Raises `CursorAhead`."""
    lock = ""
    while True:
        found = await tx.row(
            f"SELECT cursor, given, paused FROM consumer WHERE name=$1 {lock}", consumer.name
        )
        if found is None:
            raise ConsumerUnknown(consumer.name)
        was, given, paused = found
        if max(acknowledged or 0, beyond or 0) > given:
            raise CursorAhead(given)
        cursor = max(was, acknowledged or 0)
        moved_at = None if cursor == was else now
        begins = max(cursor, beyond or 0)
        if paused:
            portion, reached = Portion((), begins), given
        else:
            told, looked = await events.after(tx, begins, limit, FETCHED_BYTES, Wanted.by(consumer))
            portion, reached = Portion(tuple(told), looked), max(given, looked)
            if begins == cursor and not told:
                cursor = max(cursor, looked)  # what it is not told it need not acknowledge
        if (cursor, reached) == (was, given):
            return portion  # as most often, and nothing is written
        moved = await tx.run(
            "UPDATE consumer SET cursor=$4, given=$5, moved_at=coalesce($6, moved_at)"
            " WHERE name=$1 AND cursor=$2 AND given=$3",
            *(consumer.name, was, given, cursor, reached, moved_at),
        )
        if moved:
            return portion
        lock = _LOCKED  # somebody else has moved it meanwhile: once more, alone


# -- consumers with a webhook --------------------------------------------------------------------------


async def share_out(tx: Tx, consumer: Consumer) -> bool:
    """Give new events to the chats they belong to. Whether there are more."""
    cursor = await _cursor(tx, consumer)
    if await events.newest(tx) <= cursor:
        return False
    cursor = await _cursor(tx, consumer, lock=True)
    told, looked = await events.ids_after(tx, cursor, SHARED_OUT, Wanted.by(consumer))
    first: dict[int, int] = {}
    for number, session in told:
        first.setdefault(session, number)
    await _give_places(tx, consumer, first)
    if looked > cursor:
        await tx.run("UPDATE consumer SET cursor=$2, given=$2 WHERE name=$1", consumer.name, looked)
    return len(told) == SHARED_OUT


async def _cursor(tx: Tx, consumer: Consumer, *, lock: bool = False) -> int:
    """Up to where events were shared out; with `lock`, nobody else shares them out until the transaction ends."""
    found = await tx.value(
        f"SELECT cursor FROM consumer WHERE name=$1 {_LOCKED if lock else ''}", consumer.name
    )
    if found is None:
        raise ConsumerUnknown(consumer.name)
    return int(found)


async def _give_places(tx: Tx, consumer: Consumer, first: Mapping[int, int]) -> None:
    """Give these chats their own place, from an event on, where they have none."""
    if first:
        await tx.run(
            "INSERT INTO delivery (consumer, session, first)"
            " SELECT $1, * FROM unnest($2::bigint[], $3::bigint[])"
            " ON CONFLICT (consumer, session) WHERE own DO NOTHING",
            *(consumer.name, list(first), list(first.values())),
        )


class _Place(NamedTuple):
    """A row of `delivery` that is due."""

    session: int
    first: int
    until: int | None
    own: bool
    batch: str
    tries: int
    failing: Ms | None


_DUE = f"""SELECT {", ".join(_Place._fields)} FROM delivery WHERE consumer=$1 AND NOT parked AND due_at<=$2
    AND session<>ALL($3::bigint[]) AND NOT (SELECT paused FROM consumer WHERE name=$1)
    ORDER BY first, session LIMIT $4"""


async def batches(
    tx: Tx,
    consumer: Consumer,
    now: Ms,
    limit: int,
    busy: Collection[int],
    most_events: int,
    most_bytes: int,
) -> list[Batch]:
    """The next batch of each of so many chats, the longest waiting first; not of those that are `busy`."""
    due = (consumer.name, now, sorted(busy), limit)
    if not await tx.rows(_DUE, *due):
        return []  # as most often, and nothing is locked
    cursor = await _cursor(tx, consumer, lock=True)
    found = [_Place(*row) for row in await tx.rows(_DUE, *due)]

    def part(place: _Place, until: int | None) -> Part:
        # What was given before is given again as it was.
        size = most_bytes if until is None else EVER
        return Part(place.session, place.first, cursor if until is None else until, size)

    async def read(parts: Sequence[Part]) -> list[list[StoredEvent]]:
        """What batches have to tell. Who is told the tokens themselves is told the newest at each try: older events of
        tokens say nothing more."""
        return await events.of_sessions(
            tx, parts, most_events, Wanted.by(consumer), newest_tokens=consumer.send_keys
        )

    made: dict[int, Batch] = {}
    gone: list[_Place] = []
    new: list[tuple[_Place, Batch]] = []
    for place, told in zip(found, await read([part(each, each.until) for each in found]), strict=True):
        if place.session in made:
            continue  # one that is replayed, and the chat's own
        until = place.until
        if until is not None and place.own and not told:  # tokens alone that were replaced since
            until = None
            [told] = await read([part(place, None)])
        if until is None:
            told = within(told, most_bytes)
        if not told:  # its events are gone: trimmed, or erased with the session
            gone.append(place)
            continue
        number = secrets.token_hex(12) if until is None else place.batch
        batch = Batch(consumer.name, place.session, number, tuple(told), place.tries, place.failing)
        made[place.session] = batch
        if until is None:
            new.append((place, batch))
    await _forget_places(tx, consumer, gone)
    await _name_batches(tx, consumer, new)
    return list(made.values())


async def _forget_places(tx: Tx, consumer: Consumer, gone: Sequence[_Place]) -> None:
    if gone:
        await tx.run(
            "DELETE FROM delivery USING unnest($2::bigint[], $3::bigint[]) AS row (session, first)"
            " WHERE consumer=$1 AND delivery.session=row.session AND delivery.first=row.first",
            *(consumer.name, [place.session for place in gone], [place.first for place in gone]),
        )


async def _name_batches(tx: Tx, consumer: Consumer, new: Sequence[tuple[_Place, Batch]]) -> None:
    if new:
        await tx.run(
            "UPDATE delivery SET until=row.until, batch=row.batch"
            " FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::text[]) AS row (session, first, until, batch)"
            " WHERE consumer=$1 AND delivery.session=row.session AND delivery.first=row.first",
            consumer.name,
            [place.session for place, _ in new],
            [place.first for place, _ in new],
            [batch.events[-1].id for _, batch in new],
            [batch.number for _, batch in new],
        )


_OF_BATCHES = """FROM unnest($2::bigint[], $3::text[]) AS row (session, batch)
    WHERE consumer=$1 AND delivery.session=row.session AND delivery.batch=row.batch"""


async def delivered(tx: Tx, consumer: Consumer, done: Sequence[Batch], now: Ms) -> None:
    """Note that batches were taken: each chat goes on behind its own."""
    cursor = await _cursor(tx, consumer, lock=True)
    places = await tx.rows(
        f"DELETE FROM delivery {_OF_BATCHES.replace('FROM', 'USING', 1)} RETURNING delivery.session, until, own",
        *_batches(consumer, done),
    )
    await _go_on(tx, consumer, cursor, places)
    await tx.run("UPDATE consumer SET moved_at=$2 WHERE name=$1", consumer.name, now)


async def undelivered(
    tx: Tx, consumer: Consumer, batch: Batch, due_at: Ms, failing_since: Ms | None, parked: bool
) -> None:
    """Note that a batch was not taken, and is due again then; or `parked`, until it is replayed, and its chat goes on
    behind it."""
    had = _batches(consumer, [batch])
    cursor = await _cursor(tx, consumer, lock=True)
    if parked:
        own = await tx.rows(
            f"UPDATE delivery SET own=false {_OF_BATCHES} AND own RETURNING delivery.session, until, true",
            *had,
        )
        await _go_on(tx, consumer, cursor, own)
    await tx.run(
        f"UPDATE delivery SET tries=tries+1, due_at=$4, failing=$5, parked=$6 {_OF_BATCHES}",
        *(*had, due_at, failing_since, parked),
    )


def _batches(consumer: Consumer, batches: Sequence[Batch]) -> tuple[object, ...]:
    return consumer.name, [batch.row for batch in batches], [batch.number for batch in batches]


async def _go_on(tx: Tx, consumer: Consumer, cursor: int, places: Iterable[Row]) -> None:
    """The chats whose own places these were, given with their last event, get the places behind them, if there is
    something to tell there."""
    behind = [Part(session, until + 1, cursor) for session, until, own in places if own]
    await _give_places(tx, consumer, await events.next_of(tx, behind, Wanted.by(consumer)))


async def pause(tx: Tx, name: str, paused: bool) -> bool:
    """Stop or go on telling a consumer. Whether there is one of that name."""
    return await tx.run("UPDATE consumer SET paused=$2 WHERE name=$1", name, paused) > 0


async def replay(tx: Tx, name: str) -> int:
    """Try parked batches once more, each when nothing of its chat is on its way. How many."""
    return await _of_consumer(tx, name, "SET parked=false, due_at=0, failing=NULL WHERE parked")


async def hurry(tx: Tx, name: str) -> int:
    """Try at once what waits for another try. How many."""
    return await _of_consumer(tx, name, "SET due_at=0 WHERE NOT parked AND due_at>0")


async def _of_consumer(tx: Tx, name: str, change: str) -> int:
    await tx.run(f"SELECT 1 FROM consumer WHERE name=$1 {_LOCKED}", name)
    return await tx.run(f"UPDATE delivery {change} AND consumer=$1", name)


async def cut(tx: Tx, now: Ms) -> None:
    """Make batches due that wait longer than any can: they were refused before the clock was set back."""
    await lock_all(tx)
    await tx.run("UPDATE delivery SET due_at=$1 WHERE due_at>$2", now, now + LONGEST_BACKOFF_MS)
    await tx.run("UPDATE delivery SET failing=$1 WHERE failing>$1", now)


async def next_due(tx: Tx, name: str, busy: Collection[int]) -> Ms | None:
    """When the next batch of a consumer may be tried that is not of those sessions."""
    found = await tx.value(
        "SELECT due_at FROM delivery WHERE consumer=$1 AND NOT parked AND session<>ALL($2::bigint[])"
        " AND NOT (SELECT paused FROM consumer WHERE name=$1) ORDER BY due_at LIMIT 1",
        *(name, sorted(busy)),
    )
    return None if found is None else int(found)


class Remembered(NamedTuple):
    """A consumer that is told, or was and may come back."""

    name: str
    kinds: Sequence[str]
    services: Sequence[str]
    cursor: int
    keep_ms: Ms
    max_backlog: int | None

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.name, self.kinds, self.services)


async def remembered(tx: Tx) -> list[Remembered]:
    """All consumers that are remembered, by name."""
    rows = await tx.rows(f"SELECT {', '.join(Remembered._fields)} FROM consumer ORDER BY name")
    return [Remembered(*row) for row in rows]


async def oldest(tx: Tx, consumer: Remembered) -> int:
    """The oldest event that a consumer may have to be told yet."""
    shared = [
        await tx.value(f"SELECT min(first) FROM delivery WHERE consumer=$1 AND {which}", consumer.name)
        for which in ("parked", "NOT parked")
    ]
    return min((each for each in shared if each is not None), default=consumer.cursor + 1)


async def behind(tx: Tx, consumer: Remembered, *, gaps: bool = True) -> int:
    """How many events a consumer has not been told, of those that it is told; about how many where there are more than
    can be counted in passing. What is parked is not among them."""
    wanted = WANTED if gaps else f"{WANTED} AND kind<>'{EventKind.GAP}'"
    return round(await _shared_out(tx, consumer, wanted) + await _not_shared_out(tx, consumer, wanted))


async def _not_shared_out(tx: Tx, consumer: Remembered, wanted: str) -> float:
    last = await events.newest(tx)
    [(looked, reached, count)] = await _looked_at(tx, consumer, wanted, [(consumer.cursor, EVER)], COUNTED)
    if looked < COUNTED or reached >= last:
        return count
    samples = places(reached, last)
    told = ids = 0
    for (begins, ends), (number, furthest, found) in zip(
        samples, await _looked_at(tx, consumer, wanted, samples, OF_A_SAMPLE), strict=True
    ):
        told += found
        ids += furthest - begins if number == OF_A_SAMPLE else ends - begins
    return count + (last - reached) * told / max(1, ids)


async def _looked_at(
    tx: Tx, consumer: Remembered, wanted: str, where: Sequence[tuple[int, int]], limit: int
) -> list[tuple[int, int, int]]:
    """The next so many events behind one and up to another, of each of these places: how many there are, the last of
    them, and how many the consumer is told."""
    rows = await tx.rows(
        f"""SELECT looked.* FROM unnest($4::bigint[], $5::bigint[]) WITH ORDINALITY AS place (begins, ends, which)
        CROSS JOIN LATERAL (SELECT count(*), coalesce(max(event.id), begins), count(*) FILTER (WHERE {wanted})
            FROM (SELECT * FROM event WHERE id>begins AND id<=ends ORDER BY id LIMIT $6) AS event {JOINED}) AS looked
        ORDER BY which""",
        *(*consumer.wanted, *as_columns(where, 2), limit),
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def _shared_out(tx: Tx, consumer: Remembered, wanted: str) -> float:
    found = await tx.row(
        f"""SELECT count(*), coalesce(sum(told.number), 0)::bigint FROM
            (SELECT session, first, CASE WHEN own THEN $4 ELSE until END AS until FROM delivery
                WHERE consumer=$1 AND NOT parked ORDER BY first LIMIT {CHATS_COUNTED}) AS chat
        CROSS JOIN LATERAL (SELECT count(*) AS number FROM {TOLD}
            WHERE event.session=chat.session AND event.id BETWEEN chat.first AND chat.until AND {wanted}) AS told""",
        *(*consumer.wanted, consumer.cursor),
    )
    chats, count = found or (0, 0)
    if chats < CHATS_COUNTED:
        return float(count)
    all_of_them = await tx.value(
        "SELECT count(*) FROM delivery WHERE consumer=$1 AND NOT parked", consumer.name
    )
    return float(count) * float(all_of_them) / float(chats)


async def states(tx: Tx) -> list[ConsumerState]:
    """How far each consumer is that is there."""
    there = {row[0] for row in await tx.rows("SELECT name FROM consumer WHERE gone_at IS NULL")}
    newest = await events.newest(tx)
    return [await _state(tx, newest, each) for each in await remembered(tx) if each.name in there]


async def _state(tx: Tx, newest: int, consumer: Remembered) -> ConsumerState:
    found = await tx.row(
        "SELECT paused, moved_at, asked, acknowledged, ran_out,"
        " (SELECT count(DISTINCT session) FROM delivery WHERE consumer=name),"
        " (SELECT count(*) FROM delivery WHERE consumer=name AND parked) FROM consumer WHERE name=$1",
        consumer.name,
    )
    paused, moved_at, asked, acknowledged, ran_out, chats, parked = found or (False, 0, 0, 0, 0, 0, 0)
    return ConsumerState(
        name=consumer.name,
        cursor=consumer.cursor,
        newest=newest,
        behind=await behind(tx, consumer),
        oldest_at=await _oldest_at(tx, consumer),
        chats=chats,
        parked=parked,
        paused=paused,
        moved_at=moved_at,
        asked=asked,
        acknowledged=acknowledged,
        ran_out=ran_out,
    )


async def _oldest_at(tx: Tx, consumer: Remembered) -> Ms | None:
    """When the oldest event came that a consumer has not been told; where none of the next `COUNTED` is for it, when
    the one behind them did."""
    first = await tx.value(
        "SELECT first FROM delivery WHERE consumer=$1 AND NOT parked ORDER BY first LIMIT 1", consumer.name
    )
    found: Ms | None = await tx.value(
        f"""SELECT coalesce(
            (SELECT at FROM (SELECT * FROM event WHERE id>$4 ORDER BY id LIMIT {COUNTED}) AS event {JOINED}
                WHERE {WANTED} ORDER BY event.id LIMIT 1),
            (SELECT at FROM event WHERE id>$4 ORDER BY id LIMIT 1 OFFSET {COUNTED}))""",
        *(*consumer.wanted, consumer.cursor if first is None else first - 1),
    )
    return found
