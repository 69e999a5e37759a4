"""What goes on while things go wrong: agents write, keys change, chats begin and end, the custom-chat-app
registers them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import ClientError, read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.standin.control import session_line
from asyncchatd.standin.plant import LONG_TEXT, Plant
from asyncchatd.standin.plant.parts import ChatSession, Phase

from .host import Host

PAUSE_SECONDS = 0.1
MESSAGES, BEGINNINGS, ROTATIONS, LATE_PUSHES, MOVES = 30.0, 4.0, 3.0, 2.0, 1.0
"""Per second. As many chats end as begin."""

REGISTERED_AT_ONCE = 250

LONG_TRANSCRIPT = 5_000_000
"""Bytes: more than any client reads at once."""
LONG_EVENTS = LONG_TRANSCRIPT // len(LONG_TEXT)


class Life:
    """Root tasks: `go_on` and `register`."""

    def __init__(self, plant: Plant, host: Host, chance: random.Random) -> None:
        self.registered: dict[str, int | None] = {}
        """Chats that the daemon has taken over and should know, and the position with which: what comes from there on
        is told."""
        self.quiet = True
        """Nothing new happens; what happened may have its consequences."""
        self.keys_by_push: Callable[[], bool] = lambda: True
        """Whether a key told by a push alone can arrive now. Who cannot be told cannot know."""
        self.forgotten_at = 0
        """When the daemon last lost its memory, wall clock: keys older than that are new to it."""
        self._plant = plant
        self._host = host
        self._chance = chance
        self._owed: dict[str, float] = {}

    def forgotten(self) -> None:
        """The store is gone: the custom-chat-app registers all its chats again."""
        self.registered.clear()
        self.forgotten_at = self._plant.wall_ms()

    def unregistered(self) -> list[ChatSession]:
        return [
            session
            for session in self._plant.sessions.values()
            if session.ended is None and session.chat_id not in self.registered
        ]

    async def go_on(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            if self.quiet:
                continue
            plant = self._plant
            for session in plant.chats.some(self._count("messages", MESSAGES)):
                plant.say(session, "How may I help you?")
            if any(server.phase is Phase.UP for server in plant.servers.values()):
                plant.start_chats(self._count("beginnings", BEGINNINGS))
                plant.end_chats(self._some(self._count("ends", BEGINNINGS)))
                plant.move(self._some(self._count("moves", MOVES)))
            if self._host.able and self.keys_by_push():
                plant.rotate(self._idle(self._count("rotations", ROTATIONS)), announce=True)
            plant.push_late(self._rotated(self._count("late", LATE_PUSHES)))

    async def register(self) -> None:
        """Until cancelled: tell the daemon the chats it does not know, again when it did not take them."""
        async with ControlClient(self._host.control) as control:
            while True:
                await asyncio.sleep(PAUSE_SECONDS)
                if waiting := self.unregistered():
                    await self._register(control, waiting)

    async def _register(self, control: ControlClient, sessions: list[ChatSession]) -> None:
        lives = self._host.lives
        told: dict[str, int | None] = {}

        async def lines() -> AsyncIterator[bytes]:
            for begin in range(0, len(sessions), REGISTERED_AT_ONCE):
                some = [each for each in sessions[begin : begin + REGISTERED_AT_ONCE] if each.ended is None]
                lines = [_line(each) for each in some]
                told.update(
                    (each.chat_id, line["next_position"]) for each, line in zip(some, lines, strict=True)
                )
                yield b"".join(json.dumps(line).encode() + b"\n" for line in lines)

        try:
            done = read(shapes.Registered, await control.register(lines()))
        except ClientError:
            return  # it is away, or has no disk: once more
        if done.taken == len(told) and self._host.lives == lives:
            self.registered.update(told)

    def _count(self, what: str, per_second: float) -> int:
        owed = self._owed.get(what, 0.0) + per_second * PAUSE_SECONDS
        self._owed[what] = owed - int(owed)
        return int(owed)

    def _some(self, count: int) -> list[ChatSession]:
        """Registered ones on a living Chat Server, by chance."""
        found: list[ChatSession] = []
        names = list(self._plant.sessions) if count else []
        for _ in range(count * 20):
            session = self._plant.sessions[self._chance.choice(names)]
            alive = session.ended is None and not session.process.dead
            if alive and session.chat_id in self.registered and len(found) < count:
                found.append(session)
        return found

    def _idle(self, count: int) -> Iterator[ChatSession]:
        """Those with no request on its way: one that crosses the push would carry the key before."""
        for session in self._some(count):
            if session.in_flight is None and session.process.server.phase is Phase.UP:
                yield session

    def _rotated(self, count: int) -> Iterable[ChatSession]:
        """Those of which the daemon has seen an older key: it can know that one for old."""
        return [
            session
            for session in self._some(count)
            if session.previous is not None
            and session.previous.at_ms > self.forgotten_at
            and not session.doubtful
        ]


def _line(session: ChatSession) -> dict[str, Any]:
    """As the custom-chat-app would register it. It does not know the position in a long transcript."""
    line = session_line(session)
    return line | {"next_position": None} if len(session.events) >= LONG_EVENTS else line
