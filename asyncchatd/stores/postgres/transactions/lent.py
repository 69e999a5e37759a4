"""What takes and asks have in common: a session that is left to the custom-chat-app.

While it is left to the application its claim is `LENT`, so that no claim finds it. It belongs to no node: the death of
one does not end it. All of this is done while the session's two rows are locked (`session_rows.find`).
"""

from __future__ import annotations

from asyncchatd.model import Cause, Ms
from asyncchatd.stores.postgres.transactions.session_rows import NOBODY
from asyncchatd.stores.postgres.wire import Tx
from asyncchatd.stores.sql.rows import LENT

WILL_BE_MARKED = f"""EXISTS (SELECT 1 FROM restoration WHERE restoration.alias=session.alias AND finished_at IS NULL
    AND marking AND cause<>'{Cause.ANNOUNCED}' AND started_at>=coalesce(session.answered_at, 0))"""
"""Whether the Chat Server of a session is lost, and the marking has not come to the session yet."""

HAS_PUSHES = """(EXISTS (SELECT 1 FROM journal WHERE journal.session=session.id)
    OR EXISTS (SELECT 1 FROM journal WHERE journal.session IS NULL AND journal.chat_id=session.chat_id)
    OR EXISTS (SELECT 1 FROM journal WHERE journal.chat_id IS NULL AND journal.device_id=session.device_id))"""
"""Whether a push of a session waits, which may tell other tokens. By the session's names too, because it may have been
registered after its push was taken."""


async def lease(tx: Tx, session: int, until: Ms) -> None:
    """Leave a session to the application until then."""
    await tx.run(f"UPDATE work SET claim={LENT}, node=0, held_until=$2 WHERE session=$1", session, until)


async def give_back(tx: Tx, session: int) -> None:
    """End the lease of the application, if it has the session."""
    await tx.run(
        f"UPDATE work SET claim={NOBODY}, held_until=0 WHERE session=$1 AND claim={LENT}",
        session,
    )


async def is_taken(tx: Tx, session: int, now: Ms) -> bool:
    """Whether a take of the session lasts, whose end makes it due in any case."""
    found = await tx.value("SELECT 1 FROM take WHERE session=$1 AND NOT over AND until>$2", session, now)
    return found is not None


async def has_pushes(tx: Tx, session: int) -> bool:
    """Whether a push of a session waits."""
    return bool(await tx.value(f"SELECT {HAS_PUSHES} FROM session WHERE id=$1", session))
