"""What the control API shows of the model, in the shapes of its answers, and never a secure key."""

from __future__ import annotations

from datetime import UTC, datetime

from asyncchatd.control import shapes
from asyncchatd.control.shapes import Time
from asyncchatd.model import (
    ChatServer,
    ConsumerState,
    Ms,
    Node,
    Refusal,
    Restoration,
    Sender,
    ServerState,
    Session,
    SessionState,
)


def show_time(ms: float) -> Time:
    """A time in milliseconds since the epoch, as the API writes it."""
    return shapes.write_time(datetime.fromtimestamp(ms / 1000, UTC))


def show_session(session: Session) -> shapes.Session:
    """A session without its secure key."""
    return shapes.Session(
        chat_id=session.chat_id,
        service=session.service,
        user_id=session.user_id,
        has_secure_key=session.secure_key is not None,
        alias=session.alias,
        device_id=session.device_id,
        next_position=session.next_position,
        state=session.state.value,
        reason=session.reason.word if session.state is SessionState.LIVE else None,
        due_at=_known(session.due_at) if session.state is SessionState.LIVE else None,
        attempts=session.attempts,
        restoration=session.restoration,
        registered_at=_known(session.registered_at),
        active_at=_known(session.active_at),
        answered_at=_known(session.answered_at),
        ended_at=_known(session.ended_at),
        end_cause=session.end_cause.value if session.end_cause else None,
        last_trouble=session.last_trouble,
        trouble_detail=session.trouble_detail,
        refused_since=_known(session.refused_since),
    )


def show_pushes(
    count: int, last_at: Ms | None, senders: list[Sender], refusals: list[Refusal]
) -> shapes.Pushes:
    """Who has sent pushes, and who tried to."""
    return shapes.Pushes(
        count=count,
        last_at=None if last_at is None else show_time(last_at),
        senders=[
            shapes.PushSender(
                client=each.client,
                count=each.count,
                first_at=show_time(each.first_at),
                last_at=show_time(each.last_at),
            )
            for each in senders
        ],
        refused=[
            shapes.PushRefusal(
                client=each.client,
                cause=each.failing.value,
                message=each.message,
                advice=each.advice,
                count=each.count,
                first_at=show_time(each.first_at),
                last_at=show_time(each.last_at),
            )
            for each in refusals
        ],
    )


def show_server(server: ChatServer) -> shapes.Server:
    """A Chat Server."""
    return shapes.Server(
        name=server.name,
        state=server.state.value,
        since=_known(server.since),
        app_dbid=server.app_dbid,
        process_os_pid=server.process_os_pid,
        checked_at=_known(server.checked_at),
        disputed=server.disputed is not None,
        detail=server.detail if server.state is not ServerState.UP or server.disputed else None,
    )


def show_counted_server(server: ChatServer, sessions: int) -> shapes.CountedServer:
    """A Chat Server with the number of its sessions."""
    return shapes.CountedServer(**shapes.fields_of(show_server(server)), sessions=sessions)


def show_node(node: Node) -> shapes.SharingNode:
    """A process that shares the store."""
    return shapes.SharingNode(
        number=node.number,
        name=node.name,
        version=node.version,
        state=node.state.value,
        started_at=show_time(node.started_at),
        seen_at=show_time(node.seen_at),
        claims=node.claims,
        own=node.own,
    )


def show_restoration(each: Restoration, now: Ms) -> shapes.Restoration:
    """A restoration with its counts, and how long it still takes."""
    took = None if each.finished_at is None else round((each.finished_at - each.started_at) / 1000, 3)
    return shapes.Restoration(
        id=each.id,
        server=each.server,
        alias=each.alias,
        cause=each.cause.value,
        state=each.state.value,
        started_at=show_time(each.started_at),
        finished_at=_known(each.finished_at),
        took_seconds=took,
        sessions=each.sessions,
        restored=each.restored,
        ended=each.ended,
        refused=each.refused,
        moved=each.moved,
        waiting=each.waiting,
        left_seconds=_left_seconds(each, now),
    )


LAST = 0.05
"""How the others went says nothing of the last sessions of a restoration, of this share: these are the ones that GMS or
another node lets wait."""


def _left_seconds(each: Restoration, now: Ms) -> float | None:
    done = each.sessions - each.waiting
    if (
        each.finished_at is not None
        or each.waiting <= each.sessions * LAST
        or done <= 0
        or now <= each.started_at
    ):
        return None
    return round((now - each.started_at) / 1000 * each.waiting / done, 1)


def show_consumer(state: ConsumerState, now: Ms, trouble: str | None) -> shapes.Consumer:
    """A consumer, how far it is, and why its webhook takes nothing, if so."""
    return shapes.Consumer(
        name=state.name,
        how="webhook" if state.pushes else "fetch",
        behind=max(0, state.behind),
        oldest_at=_known(state.oldest_at),
        lag_seconds=lag_seconds(state, now),
        chats=state.chats,
        parked=state.parked,
        paused=state.paused,
        trouble=trouble,
        moved_at=_known(state.moved_at),
        acknowledges=state.acknowledges,
        asked=state.asked,
        acknowledged=state.acknowledged,
        ran_out=state.ran_out,
    )


def lag_seconds(state: ConsumerState, now: Ms) -> float:
    """For how long the oldest event has waited that a consumer has not acknowledged."""
    return 0.0 if state.oldest_at is None else max(0, now - state.oldest_at) / 1000


def _known(ms: float | None) -> Time | None:
    return show_time(ms) if ms else None
