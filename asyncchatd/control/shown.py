"""What the control API shows of the model: JSON values, and never a secure key."""

from __future__ import annotations

from datetime import UTC, datetime

from asyncchatd.model import ChatServer, Ms, Restoration, ServerState, Session, SessionState


def show_time(ms: float | None) -> str | None:
    """ISO 8601 in UTC, or nothing."""
    if ms is None or not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def show_session(session: Session) -> dict[str, object]:
    """A session without its secure key."""
    return {
        "chat_id": session.chat_id,
        "service": session.service,
        "user_id": session.user_id,
        "has_secure_key": session.secure_key is not None,
        "alias": session.alias,
        "device_id": session.device_id,
        "next_position": session.next_position,
        "state": session.state.value,
        "reason": session.reason.word if session.state is SessionState.LIVE else None,
        "due_at": show_time(session.due_at) if session.state is SessionState.LIVE else None,
        "attempts": session.attempts,
        "restoration": session.restoration,
        "registered_at": show_time(session.registered_at),
        "active_at": show_time(session.active_at),
        "answered_at": show_time(session.answered_at),
        "ended_at": show_time(session.ended_at),
        "end_cause": session.end_cause.value if session.end_cause else None,
        "last_trouble": session.last_trouble,
        "trouble_detail": session.trouble_detail,
        "refused_since": show_time(session.refused_since),
    }


def show_server(server: ChatServer, sessions: int | None = None) -> dict[str, object]:
    """A Chat Server, with the number of its sessions where it was counted."""
    shown: dict[str, object] = {
        "name": server.name,
        "state": server.state.value,
        "since": show_time(server.since),
        "app_dbid": server.app_dbid,
        "process_os_pid": server.process_os_pid,
        "checked_at": show_time(server.checked_at),
        "disputed": server.disputed is not None,
        "detail": server.detail if server.state is not ServerState.UP or server.disputed else None,
    }
    return shown if sessions is None else {**shown, "sessions": sessions}


def show_restoration(each: Restoration) -> dict[str, object]:
    """A restoration with its counts."""
    finished: Ms | None = each.finished_at
    return {
        "id": each.id,
        "server": each.server,
        "alias": each.alias,
        "cause": each.cause.value,
        "state": each.state.value,
        "started_at": show_time(each.started_at),
        "finished_at": show_time(finished),
        "took_seconds": None if finished is None else round((finished - each.started_at) / 1000, 3),
        "sessions": each.sessions,
        "restored": each.restored,
        "ended": each.ended,
        "refused": each.refused,
        "moved": each.moved,
        "waiting": each.waiting,
    }
