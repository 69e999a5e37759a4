"""Names of chats, and a Chat Server that is gone."""

from __future__ import annotations

from asyncchatd.model.data import ChatServer, Claim, ServerState

from ..desk import Desk


def chats(count: int) -> list[str]:
    return [f"chat-{number}" for number in range(1, count + 1)]


def named(claims: list[Claim]) -> list[str]:
    return [claim.chat_id for claim in claims]


async def gone(desk: Desk, app_dbid: str = "117", *, state: ServerState = ServerState.DOWN) -> None:
    known = {server.name: server.epoch for server in await desk.store.servers()}
    server = ChatServer("chat", app_dbid, "4711", state=state, since=desk.now)
    assert await desk.store.note(server, epoch=known.get("chat", 0), losses=(), now=desk.now)
