"""The record of a Chat Server that nodes share."""

from __future__ import annotations

from asyncchatd.model import ChatServer, ServerState, replace
from asyncchatd.watcher.record import tells_news

NOTED = ChatServer("chat-1", app_dbid="117", process_os_pid="1000", state=ServerState.UP, first_seen=90_000)


def test_a_node_that_starts_has_no_news_of_a_server_that_goes_on() -> None:
    """Else every other node begins to watch it anew, forgets what it missed, and tells that it is up."""
    for off in (-1, 1):
        assert not tells_news(replace(NOTED, first_seen=90_000 + off), NOTED)


def test_another_process_of_the_same_id_is_news() -> None:
    assert tells_news(replace(NOTED, first_seen=92_000), NOTED)
    assert tells_news(replace(NOTED, state=ServerState.DOWN), NOTED)
    assert tells_news(NOTED, None)
