"""Chat Servers as several nodes see them, each over ways of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncchatd.config import ChatServerSettings
from asyncchatd.standin.health_page import HealthFormat, write_health
from asyncchatd.watcher.page import HealthPages, Page, Seen, Unreachable
from asyncchatd.wire import read_health

REFUSED = Unreachable("connection refused", ConnectionRefusedError())
ALIASES = {"chat-a": "117", "chat-b": "118", "chat-c": "119"}


@dataclass
class Plant:
    pids: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(ALIASES, "1001"))
    cut: set[tuple[str, str]] = field(default_factory=set)
    """Node and server between which there is no way."""
    misled: dict[tuple[str, str], str] = field(default_factory=dict)
    """The process to which a node's way to a server leads instead of the right one."""


class Ways(HealthPages):
    """The ways from one node to the Chat Servers."""

    def __init__(self, plant: Plant, node: str) -> None:
        super().__init__()
        self._plant = plant
        self._node = node

    async def look(self, server: ChatServerSettings, *_: object) -> Seen:
        way = (self._node, server.name)
        pid = self._plant.misled.get(way, self._plant.pids[server.name])
        if pid is None or way in self._plant.cut:
            return REFUSED
        return Page(read_health(write_health(HealthFormat.JSON, ALIASES[server.name], pid)))
