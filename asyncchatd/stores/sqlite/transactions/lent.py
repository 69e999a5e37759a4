"""What takes and asks have in common: a session that is left to the custom-chat-app.

While it is left to the application it has a lease with the claim `LENT`, so that no claim finds it.
"""

from __future__ import annotations

from asyncchatd.model import Cause, Ms
from asyncchatd.stores.sql.rows import LENT
from asyncchatd.stores.sqlite.database import Db

WILL_BE_MARKED = f"""EXISTS (SELECT 1 FROM restoration WHERE restoration.alias=session.alias AND finished_at IS NULL
    AND marking=1 AND cause<>'{Cause.ANNOUNCED}' AND started_at>=coalesce(session.answered_at, 0))"""
"""Whether the Chat Server of a session is lost, and the marking has not come to the session yet."""


def lease(db: Db, session: int, until: Ms) -> None:
    """Leave a session to the application until then."""
    db.execute("INSERT OR REPLACE INTO lease (session, claim, until) VALUES (?,?,?)", (session, LENT, until))


def give_back(db: Db, session: int) -> None:
    """End the lease of the application, if it has the session."""
    db.execute("DELETE FROM lease WHERE session=? AND claim=?", (session, LENT))


def is_taken(db: Db, session: int, now: Ms) -> bool:
    """Whether a take of the session lasts, whose end makes it due in any case."""
    taken = db.execute("SELECT 1 FROM take WHERE session=? AND over=0 AND until>?", (session, now)).fetchone()
    return taken is not None


def has_pushes(db: Db, session: int, chat_id: str | None, device_id: str | None) -> bool:
    """Whether a push of a session waits, which may tell other tokens. By the session's names too, because it may have
    been registered after its push was taken."""
    found = db.execute(
        "SELECT EXISTS (SELECT 1 FROM journal WHERE session=? OR chat_id=? OR chat_id IS NULL AND device_id=?)",
        (session, chat_id, device_id),
    ).fetchone()
    return bool(found[0])
