"""The record of a Chat Server in the store: what of it is worth a new one, and the times in it."""

from __future__ import annotations

from asyncchatd.model import ChatServer, Ms, Process, ServerState, replace
from asyncchatd.watcher.votes import CLOCKS_MS


def lasting(server: ChatServer) -> ChatServer:
    """What of it does not change with each read."""
    others = frozenset(
        replace(other, started=None, began=None, last_seen=0, first_seen=0) for other in server.others
    )
    return replace(
        server,
        checked_at=0,
        last_seen=0,
        began=None,
        epoch=0,
        others=tuple(sorted(others, key=repr)),
    )


def on_the_wall(server: ChatServer, ahead: Ms) -> ChatServer:
    """With the times that were taken by the steady clock as the wall clock would have shown them: a daemon that
    starts knows no other."""
    return replace(
        server,
        began=None if server.began is None else server.began + ahead / 1000,
        first_seen=server.first_seen and server.first_seen + ahead,
        last_seen=server.last_seen and server.last_seen + ahead,
        disputed=None if server.disputed is None else server.disputed + ahead,
        others=tuple(shifted(other, ahead) for other in server.others),
    )


def shifted(process: Process, by: Ms) -> Process:
    """The process with its times by a clock that is ahead by so much."""
    return replace(
        process,
        began=None if process.began is None else process.began + by / 1000,
        first_seen=process.first_seen + by,
        last_seen=process.last_seen + by,
    )


def forgetful(server: ChatServer) -> ChatServer:
    """Another description may name another counter for the start time: it would look like a restart."""
    return replace(undisputed(server), started=None, began=None)


def undisputed(server: ChatServer) -> ChatServer:
    """Whoever reloads the configuration says that one process answers there."""
    return replace(server, others=(), disputed=None)


def who(server: ChatServer) -> tuple[object, ...]:
    """Who serves, and whether anybody does: what all who share the store have to agree upon."""
    others = frozenset(other.process_os_pid for other in server.others)
    down = server.state is ServerState.DOWN
    return server.app_dbid, server.process_os_pid, server.started, others, server.disputed is None, down


def tells_news(stored: ChatServer, noted: ChatServer | None) -> bool:
    """Whether somebody else has noted something of a server that counts here, since the record was as `noted`. A node
    that starts notes the same times as its own clock has them, some ms off."""
    if noted is None or who(stored) != who(noted):
        return True
    return abs(stored.first_seen - noted.first_seen) >= CLOCKS_MS
