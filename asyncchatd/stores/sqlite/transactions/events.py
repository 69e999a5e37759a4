"""Transactions about the transcript: what settled answers showed of it is written, and read for consumers.

Which events are new is judged in `stores/transcripts.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import orjson

from asyncchatd.model import (
    Consumer,
    EndCause,
    EventKind,
    Ms,
    Reason,
    Settled,
    Settlement,
    StoredEvent,
)
from asyncchatd.stores.answers import Kept
from asyncchatd.stores.sql.rows import EVENT_TOLD, LIVE, STORED, TOLD
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions.rows import run
from asyncchatd.stores.sqlite.transactions.session_rows import as_json
from asyncchatd.stores.transcripts import (
    ALL_EVENTS,
    NOTHING_KNOWN,
    OF_A_SAMPLE,
    OF_ALL,
    EventRow,
    Known,
    about_session,
    behind_the_known,
    counts_anew,
    places,
    shows,
    shows_all,
    stored,
    told_of,
    unknown,
    within,
)


def happened(db: Db, kind: EventKind, sessions: Iterable[int], at: Ms) -> None:
    """Write that this happened to these sessions, where somebody is told of that kind."""
    if kind in db.kinds:
        _insert(db, [told_of(kind, session, at) for session in sessions])


def write(db: Db, settlements: Sequence[Settlement], settled: Sequence[Settled]) -> int:
    """Write what these settlements have to tell. How many events."""
    kinds = db.kinds
    showing = [each for each in settlements if shows(each)] if EventKind.CHAT in kinds else []
    known = _known(db, showing) if showing else NOTHING_KNOWN
    rows: list[EventRow] = []
    for each, one in zip(settlements, settled, strict=True):
        numbering = known.numberings.get(each.claim.row, 0)
        if each.cut and EventKind.GAP in kinds and each.claim.row in known.numberings:
            # What is missing came before what is there.
            rows.append(told_of(EventKind.GAP, each.claim.row, each.settled_at, numbering))
        if EventKind.CHAT in kinds:
            rows += _of_chat(db, each, known)
        rows += about_session(each, one, numbering, kinds)
    _insert(db, rows)
    return len(rows)


def _known(db: Db, showing: Sequence[Settlement]) -> Known:
    sessions = [(each.claim.row, each.claim.chat_id) for each in showing]
    counts = run(
        db,
        "SELECT session.id, numbering, numbered_at FROM row CROSS JOIN session ON session.id=row.id"
        " AND session.chat_id=row.chat"
        f" WHERE session.end_cause IS NOT '{EndCause.REMOVED}'",
        "id, chat",
        sessions,
    )
    numberings = {row: numbering for row, numbering, _ in counts}
    asked = [
        (each.claim.row, numberings[each.claim.row], event.index)
        for each in showing
        if each.claim.row in numberings
        for event in each.events
    ]
    written = run(
        db,
        "SELECT event.session, event.idx, event.likeness FROM row CROSS JOIN event ON event.session=row.session"
        " AND event.numbering=row.numbering AND event.idx=row.idx",
        "session, numbering, idx",
        asked,
    )
    marks = {(session, index): likeness for session, index, likeness in written}
    return Known(numberings, {row: at for row, _, at in counts}, marks)


def _of_chat(db: Db, each: Settlement, known: Known) -> Iterator[EventRow]:
    """The chat events of one reply that are new. Where the reply counts anew, none: the session is asked for all."""
    session = each.claim.row
    numbering = known.numberings.get(session)
    if numbering is None:
        return  # it is gone
    marked = [(event, db.sealing.mark(event.likeness)) for event in each.events]
    if counts_anew(each, marked, known):
        _count_anew(db, session, each.settled_at)
        return
    new = unknown(each, marked, known)
    if shows_all(each, known):
        recognised = [_takes_over(db, session, numbering, event.index, mark) for event, mark in new]
        if any(recognised):
            new = behind_the_known(new, recognised)
        elif new and EventKind.GAP in db.kinds:
            yield told_of(EventKind.GAP, session, each.settled_at, numbering)
    for event, mark in new:
        index = event.index
        if known.mark_at(session, event) is not None:
            # Of an end, or once more within the minute: it cannot be asked for again.
            if _is_known(db, session, mark):
                continue
            index = None
        body = db.sealing.seal_event(event.body, each.claim.chat_id)
        yield EventRow(session, numbering, index, EventKind.CHAT, each.settled_at, mark, body)


def _is_known(db: Db, session: int, mark: bytes) -> bool:
    found = db.execute(
        "SELECT EXISTS (SELECT 1 FROM event WHERE session=? AND likeness=?)", (session, mark)
    ).fetchone()
    return bool(found[0])


def _count_anew(db: Db, session: int, now: Ms) -> None:
    """The session's events have other indexes now: it is asked for all of them."""
    db.execute(
        f"UPDATE session SET numbering=numbering+1, numbered_at=?, next_position={ALL_EVENTS}, marks=marks+1,"
        f" due_at=min(due_at, ?), reason=min(reason, ?) WHERE id=? AND state={LIVE}",
        (now, now, Reason.REQUEST, session),
    )


def _takes_over(db: Db, session: int, numbering: int, index: int | None, mark: bytes) -> bool:
    """Whether an event is known from an earlier count. It has this index from now on."""
    found = db.execute(
        "SELECT id FROM event WHERE session=? AND numbering<? AND likeness=? ORDER BY id LIMIT 1",
        (session, numbering, mark),
    ).fetchone()
    if found is None:
        return False
    db.execute("UPDATE event SET numbering=?, idx=? WHERE id=?", (numbering, index, found[0]))
    return True


def _insert(db: Db, rows: Sequence[EventRow]) -> None:
    run(db, _INSERT, ", ".join(EventRow._fields), rows)


_INSERT = f"""INSERT OR IGNORE INTO event ({", ".join(EventRow._fields)})
    SELECT {", ".join(EventRow._fields)} FROM row WHERE session IS NOT NULL"""


# -- reading ---------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """What one consumer is told of all events."""

    name: str
    kinds: str
    """In JSON."""
    services: str
    """In JSON; empty: of all."""

    @classmethod
    def by(cls, consumer: Consumer) -> Wanted:
        """What this consumer wants, as the configuration has it."""
        return cls(consumer.name, as_json(sorted(consumer.kinds)), as_json(sorted(consumer.services)))

    def values(self, **more: object) -> dict[str, object]:
        """The parameters of a statement with `WANTED`, and its others."""
        return {"name": self.name, "kinds": self.kinds, "services": self.services, **more}


WANTED = f"""(session.id IS NOT NULL OR event.session={OF_ALL})
    AND kind IN (SELECT value FROM json_each(:kinds)) AND coalesce(event.consumer, :name)=:name
    AND (session.service IS NULL OR :services='[]' OR session.service IN (SELECT value FROM json_each(:services)))"""
"""An event of `TOLD` that is told, by `Wanted.values`. A chat of which only a push told
has no service yet: it may be anybody's, and what is passed over is never told."""


def after(db: Db, last: int, limit: int, most_bytes: int, wanted: Wanted) -> tuple[list[StoredEvent], int]:
    """Events behind an id, in the order of all chats, and the id up to which was looked. One in any case, else not more
    than so many bytes."""
    until = newest(db)
    found = db.execute(
        f"{EVENT_TOLD} WHERE event.id>:last AND event.id<=:until AND {WANTED} ORDER BY event.id LIMIT :limit",
        wanted.values(last=last, until=until, limit=limit),
    )
    rows = 0

    def read() -> Iterator[StoredEvent]:
        nonlocal rows
        for row in found:
            rows += 1
            yield stored(db.sealing, row)

    told = within(read(), most_bytes)
    cut = len(told) == limit or rows > len(told)
    return told, told[-1].id if cut else max(last, until)


def ids_after(db: Db, last: int, limit: int, wanted: Wanted) -> tuple[list[tuple[int, int]], int]:
    """The ids of events behind an id, each with its session, and the id up to which was looked."""
    until = newest(db)
    rows = db.execute(
        f"SELECT event.id, event.session FROM {TOLD} WHERE event.id>:last AND event.id<=:until AND {WANTED}"
        " ORDER BY event.id LIMIT :limit",
        wanted.values(last=last, until=until, limit=limit),
    ).fetchall()
    return rows, rows[-1][0] if len(rows) == limit else max(last, until)


def of_session(
    db: Db, session: int, first: int, until: int, limit: int, wanted: Wanted, *, newest_tokens: bool = False
) -> list[StoredEvent]:
    """Events of one session between two ids, both included. `newest_tokens`: those of tokens that were replaced since
    are passed over."""
    since = _tokens_since(db, session) if newest_tokens else 0
    rows = db.execute(
        f"{EVENT_TOLD} WHERE event.session=:session AND event.id BETWEEN :first AND :until AND {WANTED}"
        f" AND (kind<>'{EventKind.TOKENS}' OR event.id>=:since) ORDER BY event.id LIMIT :limit",
        wanted.values(session=session, first=first, until=until, since=since, limit=limit),
    ).fetchall()
    return [stored(db.sealing, row) for row in rows]


def _tokens_since(db: Db, session: int) -> int:
    """The event since which a session has its tokens."""
    found = db.execute(
        "SELECT id FROM event WHERE session=? AND kind=? ORDER BY id DESC LIMIT 1",
        (session, EventKind.TOKENS),
    ).fetchone()
    return 0 if found is None else int(found[0])


def news(db: Db, last: int, limit: int) -> tuple[list[StoredEvent], int]:
    """Events behind an id, of all chats, and the id up to which was looked."""
    until = newest(db)
    rows = db.execute(
        f"{STORED} WHERE event.id>? AND event.id<=? AND event.consumer IS NULL ORDER BY event.id LIMIT ?",
        (last, until, limit),
    )
    told = [stored(db.sealing, row) for row in rows]
    return told, told[-1].id if len(told) == limit else max(last, until)


def transcript(db: Db, chat_id: str, limit: int) -> list[StoredEvent]:
    """The last chat events of one session, the oldest of them first."""
    rows = db.execute(
        f"{STORED} WHERE session.chat_id=? AND kind=? ORDER BY event.id DESC LIMIT ?",
        (chat_id, EventKind.CHAT, limit),
    ).fetchall()
    return [stored(db.sealing, row) for row in reversed(rows)]


def reached(db: Db) -> int:
    """The id up to which every consumer that is remembered has been told, or has it shared out."""
    return int(db.execute("SELECT coalesce(min(cursor), 1<<62) FROM consumer").fetchone()[0])


def newest(db: Db) -> int:
    """The highest id that there ever was."""
    return int(
        db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name='event'").fetchone()[0]
    )


def kept(db: Db) -> Kept:
    """About how many events there are, and how large all are together; few are counted."""
    oldest, last = (
        db.execute(f"SELECT coalesce({end}(id), 0) FROM event").fetchone()[0] for end in ("min", "max")
    )
    count = size = 0.0
    for begins, ends in places(oldest, last + 1):
        number, total, reached = db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0), max(id) FROM"
            " (SELECT id, body FROM event WHERE id>=? AND id<? ORDER BY id LIMIT ?)",
            (begins, ends, OF_A_SAMPLE),
        ).fetchone()
        # Where there are more than were looked at, the rest of the place is as full as this part of it.
        share = 1.0 if number < OF_A_SAMPLE else (ends - begins) / (reached + 1 - begins)
        count, size = count + number * share, size + total * share
    return Kept(round(count), round(size), oldest, newest(db))


# -- forgetting ------------------------------------------------------------------------------------


def forget(db: Db, session: int) -> None:
    """Erase what is kept of a session's transcript, and what consumers were still to be told of it."""
    forget_of(db, "SELECT ?", (session,))


def forget_of(db: Db, sessions: str, parameters: Sequence[object]) -> None:
    """Erase the same of the sessions that a query selects."""
    chosen = as_json([row for (row,) in db.execute(sessions, parameters)])
    for table in ("event", "delivery"):
        db.execute(f"DELETE FROM {table} WHERE session IN (SELECT value FROM json_each(?))", (chosen,))


def gap_of_all(db: Db, at: Ms, consumer: str | None = None, **what: object) -> int:
    """Tell that events of any chat may be missing, one consumer or all. Its id."""
    return gap(db, OF_ALL, "", at, what, consumer)


def gap(db: Db, session: int, chat_id: str, at: Ms, what: Mapping[str, object], consumer: str | None) -> int:
    """Tell that events of a session may be missing, one consumer or all. Its id."""
    found = db.execute(
        "INSERT INTO event (session, numbering, kind, at, body, consumer) VALUES (?,0,?,?,?,?)",
        (session, EventKind.GAP, at, db.sealing.seal_event(orjson.dumps(what), chat_id), consumer),
    )
    assert found.lastrowid is not None
    return found.lastrowid


def epoch(db: Db, *, anew: bool) -> str:
    """The name of this history of ids; `anew`: it has another one from now on, and begins with a gap. That of the one
    before will do where nothing was written since."""
    if anew:
        db.execute("UPDATE file SET epoch=lower(hex(randomblob(4)))")
        if db.execute("SELECT gap FROM file").fetchone()[0] != newest(db):
            db.execute("UPDATE file SET gap=?", (gap_of_all(db, round(time.time() * 1000)),))
    [[name]] = db.execute("SELECT epoch FROM file").fetchall()
    return str(name)
