"""What a consumer was told, held against what the plant has: each event once at least, in the order of its chat, and
what is missing covered by a gap."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from asyncchatd.model import Ms
from asyncchatd.standin.messages import write_event
from asyncchatd.standin.plant.parts import ChatSession

Event = dict[str, Any]


def mark(event: Mapping[str, Any]) -> bytes:
    """By this a transcript's event is known again, whatever its index is now."""
    told = {name: value for name, value in event.items() if name != "index"}
    return blake2b(orjson.dumps(told, option=orjson.OPT_SORT_KEYS), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class _Heard:
    """An event that was told."""

    index: int
    mark: bytes


def _place(session: ChatSession, start: int, heard: _Heard) -> int | None:
    """Its place in the plant's transcript, from `start` on: under its index, else under another that it has now."""
    ahead = range(start, len(session.events))
    under_it = (at for at in ahead if session.events[at].index == heard.index)
    return next(
        (at for at in (*under_it, *ahead) if mark(write_event(session.events[at])) == heard.mark), None
    )


class _Chat:
    """What one consumer was told of one chat."""

    def __init__(self) -> None:
        self.heard: list[_Heard | None] = []
        """Events that are not judged yet, in their order; none for a gap."""
        self.epoch = ""
        self.newest = -1
        """The highest id."""
        self.at = 0
        """The place in the plant's transcript behind what was told."""
        self.hole = 0
        """Events that were passed over, and no gap told of them yet."""
        self.gap = False
        """A gap was told since the last event."""


class Account:
    """What one consumer was told, held against what the plant has."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wrong: list[str] = []
        """What should not have happened."""
        self.counts: Counter[str] = Counter()
        self.lags: list[float] = []
        """Seconds from the moment an event was written to the one it was told first."""
        self._chats: defaultdict[str, _Chat] = defaultdict(_Chat)
        self._known: set[str] = set()

    def take(self, events: Iterable[Event]) -> None:
        """These were told, in this order."""
        for event in events:
            if event["id"] in self._known:
                self.counts["told twice"] += 1
                continue
            self._known.add(event["id"])
            self._first(self._chats[event["chat_id"]], event)

    def _first(self, chat: _Chat, event: Event) -> None:
        epoch, _, number = event["id"].rpartition("-")
        if epoch != chat.epoch:
            chat.epoch, chat.newest, chat.at = epoch, -1, 0
        if int(number) <= chat.newest:
            self.wrong.append(f"{self.name}: {event['id']} of {event['chat_id']} behind {chat.newest}")
        chat.newest = int(number)
        self.counts[event["kind"]] += 1
        if event["kind"] == "chat":
            chat.heard.append(_Heard(event["event"]["index"], mark(event["event"])))
            self.lags.append(max(0.0, time.time() - event["event"]["utcTime"] / 1000))
        elif event["kind"] == "gap":
            chat.heard.append(None)

    def untold(self, session: ChatSession, begins: int | None) -> int:
        """How many of a chat's events were not told, nor covered by a gap. Those below index `begins` need not be; all
        before the first one told where it is none."""
        chat = self._chats[session.chat_id]
        for heard in chat.heard:
            if heard is None:
                chat.hole, chat.gap = 0, True
                continue
            found = _place(session, chat.at, heard)
            if found is None:
                self.wrong.append(f"{self.name}: an event of {session.chat_id} out of order, or of no chat")
                continue
            if not chat.gap and not (chat.at == 0 and begins is None):
                chat.hole += self._missing(session, chat.at, found, begins)
            chat.at, chat.gap = found + 1, False
        chat.heard.clear()
        if begins is None and chat.at == 0:
            return 0
        return chat.hole + (0 if chat.gap else self._missing(session, chat.at, len(session.events), begins))

    def oldest(self, session: ChatSession, begins: int | None) -> Ms | None:
        """When the first of them was written."""
        if not self.untold(session, begins):
            return None
        ahead = session.events[self._chats[session.chat_id].at :]
        return next((event.utc_time for event in ahead if (event.index or 0) >= (begins or 0)), None)

    @staticmethod
    def _missing(session: ChatSession, start: int, end: int, begins: int | None) -> int:
        return sum((event.index or 0) >= (begins or 0) for event in session.events[start:end])

    def excuse(self, session: ChatSession) -> None:
        """Whatever is missing of a chat until now will not be told any more."""
        chat = self._chats[session.chat_id]
        chat.hole, chat.at = 0, max(chat.at, len(session.events))
