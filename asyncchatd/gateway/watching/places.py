"""Where a new client is in its chat, which takes over every position that it is told."""

from __future__ import annotations

from asyncchatd.gateway.watching.watched import Line, Watched


class Place:
    """How far one stream, or one poll that is held, has come.

    It begins at a position. From then on it goes by the ids of events: Chat Server may count anew meanwhile.
    """

    __slots__ = ("_passed", "_position")

    def __init__(self, position: int) -> None:
        """At a `transcriptPosition`."""
        self._position = position
        self._passed: int | None = None
        """The highest id of all events that were here when it was looked at last."""

    def take(self, chat: Watched) -> list[Line] | None:
        """The events from here on, which count as taken. None while they are not here, or while GMS is asked for what
        comes before them."""
        passed = self._passed
        if not chat.followed or (passed is None and chat.looks_back_for(self._position)):
            return None
        self._passed = max(passed or 0, chat.newest)
        if passed is None:
            return chat.behind(self._position)
        return [line for line in chat.lines if line.id > passed]
