"""A store with everything in it, filled through the contract."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from asyncchatd.model.data import Cause, ChatServer, Process, Reason, ServerState, TokenNews, Verdict
from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind
from asyncchatd.model.values import replace
from asyncchatd.stores import Store
from asyncchatd.stores.moving import TABLES, Row
from asyncchatd.stores.moving.copying import Carrier, opened_rows

from ..desk import MINUTE, SECOND, SPREAD, Desk, complete_push, push, registration
from ..test_transcript import message, refresh

KINDS = frozenset(EventKind)
FETCHES = Consumer("fetches", KINDS, services=frozenset({"support"}), max_backlog=1_000_000)
HOOK = Consumer("hook", KINDS, pushes=True)
LISTENS = Consumer("listens", frozenset({EventKind.NOTIFIED}), pushes=True, acknowledges_ms=20 * MINUTE)
GOES = Consumer("goes", frozenset({EventKind.LOST}))
TOLD = (FETCHES, HOOK, LISTENS)

RARELY = """
    UPDATE file SET gap=6, trimmed=3, ended_looked=2, ended_at=1700000000001, ended_row=7, ended_kept=1700000000002;
    UPDATE restoration SET ended=1, refused=2, moved=3, finished_at=1700000000003, told=1 WHERE cause='operator';
    UPDATE session SET numbering=2, numbered_at=1700000000004 WHERE chat_id='said';
    UPDATE event SET numbering=2 WHERE session=(SELECT id FROM session WHERE chat_id='said') AND idx=3;
    UPDATE journal SET resent=1, alias='117' WHERE chat_id='pushed';
    UPDATE ask SET told=1, outcome=2 WHERE outcome=1;
    UPDATE take SET told=1 WHERE over=1;
    UPDATE consumer SET ran_out=4, missed_at=1700000000005 WHERE name='goes';
    INSERT INTO event (session, numbering, kind, at, consumer) VALUES (0, 0, 'gap', 1700000000006, 'goes');
    DELETE FROM event WHERE id=(SELECT max(id) FROM event WHERE kind='ended');
"""
"""What the columns hold besides, that it takes long to come to."""

LONG = 30 * MINUTE
"""A lease that lasts until the copy goes on."""


async def fill(store: Store) -> Desk:
    """Sessions of all states and reasons, with all that may be known of them; and who is told of them."""
    desk = Desk(store)
    await store.enrol([*TOLD, GOES], now=desk.now)
    await desk.live(*(f"lost-{number}" for number in range(1, 7)), alias="118")
    await desk.live(
        "quiet", "said", "refused", "over", "taken", "was-taken", "asked", "was-asked", "held", "pushed"
    )
    await store.enrol(TOLD, now=desk.later(SECOND))  # the other one is gone from now on
    await desk.register(replace(registration("by-gateway"), of_gateway=True, came_with="digest"))
    await store.gateway_keys(["key-b", "key-a"])
    await _say(desk)
    await _trouble(desk)
    await _pings(desk)
    await _lend(desk)
    await _lose(desk)
    await store.take_push(
        push("pushed", key="newest", utc_time=desk.now, position=7, next_position=9), now=desk.now
    )
    await store.take_push(push("nobody-knows-it", leaving=True, resend=True), now=desk.now)
    await store.take_push(push(None, device_id="device-of-nobody", user_id="u"), now=desk.now)
    return desk


async def _say(desk: Desk) -> None:
    """Words of a chat, of which one consumer has taken some, and a webhook none."""
    await refresh(desk, message(1, "Hello"), message(2, "Ünïcöde"), chat_id="said")
    await refresh(desk, message(3, "again"), chat_id="said")
    await refresh(desk, message(3, "Good day"), message(4, "Sir"), chat_id="quiet")
    first = await desk.store.fetch("fetches", after=None, limit=3, now=desk.now)
    await desk.store.fetch("fetches", after=first.events[0].id, limit=2, now=desk.now)
    batches = await desk.store.batches(
        "hook", now=desk.now, limit=100, busy=(), most_events=100, most_bytes=1 << 20
    )
    one, other, *_ = batches
    await desk.store.undelivered(one, due_at=desk.now + SPREAD, failing_since=desk.now)
    await desk.store.undelivered(other, due_at=desk.now, failing_since=desk.now, parked=True)
    await desk.store.pause("hook", paused=True)


async def _trouble(desk: Desk) -> None:
    """GMS refuses a session, and says of another that it is over; of a third only a push told."""
    for chat_id in ("refused", "over"):
        await desk.store.make_due(chat_id, Reason.REQUEST, now=desk.now)
    for claim in await desk.claim(reasons=[Reason.REQUEST]):
        if claim.chat_id == "over":
            await desk.settle(claim, Verdict.ENDED)
        else:
            await desk.settle(claim, Verdict.RETRY, trouble="status_code_2", detail="error 34", refused=True)
    await desk.push(
        push("half", key="a-key", alias="117"), push(None, device_id="device-alone", key="another")
    )


async def _pings(desk: Desk) -> None:
    """Sessions that are due for each reason, with other tokens than before."""
    await desk.push(push("quiet", key="second-key", utc_time=desk.now, position=5))
    claims = await desk.claim(reasons=[Reason.ACKNOWLEDGE])
    await desk.answer(*claims, news=TokenNews(secure_key="third-key", alias="119"))
    await desk.store.make_due("quiet", Reason.REQUEST, now=desk.now)
    await desk.push(complete_push("said"))
    await desk.store.make_due("held", Reason.REQUEST, now=desk.later(MINUTE))
    claims = await desk.claim(reasons=[Reason.REQUEST], lease_ms=LONG)
    assert "held" in {claim.chat_id for claim in claims}


async def _lend(desk: Desk) -> None:
    """Sessions that the application has, or had."""
    await desk.release(await desk.take("was-taken"))
    await desk.take("taken", last=LONG)
    told: list[int] = []
    for chat_id in ("was-asked", "asked"):
        await desk.push(push(chat_id), listening=["listens"])
        batches = await desk.store.batches(
            "listens", now=desk.now, limit=100, busy=(), most_events=100, most_bytes=1 << 20
        )
        events = [event for batch in batches for event in batch.events]
        asked = await desk.store.hand_out("listens", events, now=desk.now)
        await desk.store.delivered(batches, now=desk.now)
        told += asked.asked
        if chat_id == "was-asked":
            assert await desk.store.acknowledge(chat_id, events[-1].id, now=desk.now, spread_ms=SPREAD)
    assert len(told) == 2


async def _lose(desk: Desk) -> None:
    """Chat Servers: one that is watched, and one that is lost, of whose sessions half are marked."""
    watched = ChatServer("chat-b", "117", "4711", state=ServerState.UP, since=desk.now)
    lost = ChatServer(
        "chat-a",
        "118",
        "4712",
        started=1.5,
        began=2.5,
        state=ServerState.DOWN,
        since=desk.now,
        checked_at=desk.now,
        detail="refused\0 ",
        first_seen=desk.now,
        last_seen=desk.now,
        disputed=desk.now,
        assumed=True,
        others=(Process("118", "4713", 1.0, 2.0, desk.now, desk.now),),
    )
    for server in (watched, lost):
        assert await desk.store.note(server, epoch=0, losses=(), now=desk.now)
    done = await desk.store.begin_restoration(alias="119", server=None, cause=Cause.OPERATOR, now=desk.now)
    while await desk.store.mark(done.id, limit=3, now=desk.now):
        pass
    begun = await desk.store.begin_restoration(
        alias="118", server="chat-a", cause=Cause.UNREACHABLE, now=desk.later(SECOND)
    )
    assert await desk.store.mark(begun.id, limit=2, now=desk.now)
    claims = await desk.claim(1, reasons=[Reason.RESTORE])
    await desk.answer(*claims)
    await desk.push(complete_push("shutting-down", alias="120", leaving=True))


async def rows(carrier: Carrier) -> dict[str, list[Row]]:
    """All rows of a store, secure keys and events in the clear."""
    async with carrier.leaving() as leaving:
        found: dict[str, list[Row]] = {}
        for table in TABLES:
            found[table.name] = [
                tuple(row)
                async for portion in leaving.rows(table)
                for row in opened_rows(table, portion, leaving.sealing)
            ]
    return found


def lacking(found: dict[str, list[Row]]) -> set[str]:
    """The columns that say nothing in any row."""
    return {
        f"{table.name}.{column}"
        for table in TABLES
        for place, column in enumerate(table.columns)
        if all(_says_nothing(row[place]) for row in found[table.name])
    }


def _says_nothing(value: object) -> bool:
    return value is None or value == 0 or (isinstance(value, Collection | Sequence) and not value)
