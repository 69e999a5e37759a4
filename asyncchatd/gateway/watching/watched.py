"""The chats that clients look at, and the newest events of each in memory: a poll never touches the disk.

The store is the one copy of the truth. What lies here is filled when a chat is looked at first, follows what is
written from then on, and may be dropped at any time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

from asyncchatd.log import Event, get_logger
from asyncchatd.model import EventKind, Hidden, Ms, SessionState, StoredEvent, Value
from asyncchatd.stores import Store
from asyncchatd.wire import ALL_EVENTS, LAST_EVENT, NO_EVENTS

KEPT_EVENTS = 1_000
"""Of one chat."""

KEPT_BYTES = 256 * 1024 * 1024
"""Of all chats together."""

A_CHAT = 2_048
"""Bytes that a watched chat takes beside its events."""

READ_AT_ONCE = 1_000

log = get_logger()


class Line(Value, frozen=True):
    """One event of a chat, as polls are answered with it."""

    id: int
    index: int
    """Of one that Chat Server did not count, that of the event before it."""
    body: Hidden[bytes]
    at: Ms = 0
    """When it was fetched; 0 of one that was before the transcript began."""
    counted: bool = True
    """Whether Chat Server counted it."""


class Watched:
    """One chat that clients look at."""

    __slots__ = (
        "__weakref__",
        "before",
        "came_with",
        "chat_id",
        "device_id",
        "ended",
        "followed",
        "given",
        "is_known",
        "lines",
        "looks_back",
        "next_position",
        "not_back_before",
        "of_gateway",
        "position_given",
        "recounted",
        "service",
        "size",
        "turn",
        "waiting",
    )

    def __init__(self, chat_id: str) -> None:
        self.chat_id = chat_id
        self.service: str | None = None
        """As the store knows it; None when the session is not known."""
        self.device_id: str | None = None
        """Of its subscription to pushes, as the store knew it when the chat was read."""
        self.is_known = False
        """Whether the store knows the session."""
        self.of_gateway = False
        self.came_with: str | None = None
        """The digest of the key that its client came with."""
        self.ended = False
        self.followed = True
        """Whether it follows the store. One that had to make room does not: its events are not here, until it is asked
        for again."""
        self.lines: list[Line] = []
        self.before: list[Line] = []
        """What was said before the transcript begins, as far as GMS was asked for it."""
        self.looks_back = False
        """Whether GMS is being asked for it."""
        self.not_back_before = 0.0
        """It is not asked again before, in seconds of the monotonic clock."""
        self.size = 0
        self.next_position = ALL_EVENTS
        """The index behind the last event."""
        self.position_given: int | None = None
        """The `nextPosition` that a poll was last answered with."""
        self.given = 0
        """The highest id of an event that a poll was answered with."""
        self.recounted = 0
        """A position by another count of events than that by which Chat Server goes now: the last one that a client
        asked for beyond all, or that it was told before the events were counted anew."""
        self.waiting: tuple[asyncio.Event, ...] = ()
        """Of those who wait for something to happen here."""
        self.turn = asyncio.Lock()
        """For calls: first come, first served."""

    @contextmanager
    def heard_by(self, waiting: asyncio.Event) -> Iterator[None]:
        """The event is set whenever something happened here that polls and streams tell."""
        self.waiting += (waiting,)
        try:
            yield
        finally:
            self.waiting = tuple(each for each in self.waiting if each is not waiting)

    def ring(self) -> None:
        """Have those look who wait."""
        for each in self.waiting:
            each.set()

    def behind(self, position: int) -> list[Line]:
        """The events that a poll asks for. A client that asks for more than there can be goes by another count of
        events than Chat Server does now, and gets what no poll was given yet for as long as it asks for the same. Where
        no event is here yet, the client may just know more of its chat."""
        if position == NO_EVENTS:
            return []
        if position == LAST_EVENT:
            return self.lines[-1:] or self.before[-1:]
        if self.lines and position > self.next_position:
            self.recounted = position
        if position == self.recounted:
            return [line for line in self.lines if line.id > self.given]
        first = len(self.lines)
        while first and self._is_news(self.lines[first - 1], position):
            first -= 1
        if first or not self.before:
            return self.lines[first:]
        return [line for line in self.before if line.index >= position] + self.lines

    def _is_news(self, line: Line, position: int) -> bool:
        """Whether a poll from this position is answered with this event. One that was not counted has no position of
        its own: it is told once to whoever asks behind the one before it."""
        return line.index >= position or (
            not line.counted and line.id > self.given and line.index == position - 1
        )

    @property
    def newest(self) -> int:
        """The highest id of an event that is here."""
        return max((line.id for line in self.lines), default=0)

    def gave(self, lines: Sequence[Line], now: Ms) -> None:
        """A client was told these."""
        first_told = [line for line in lines if line.id > self.given]
        if not first_told:
            return
        self.given = max(line.id for line in first_told)
        log.info(
            Event.EVENTS_SHOWN,
            chat_id=self.chat_id,
            count=len(first_told),
            first_index=min(line.index for line in first_told),
            last_index=max(line.index for line in first_told),
            lag_ms=round(max(0, now - min(line.at for line in first_told))),
        )

    @property
    def complete_from(self) -> int:
        """The position behind which every event is here."""
        shown = self.before or self.lines
        return shown[0].index if shown else self.next_position

    def lacks(self, position: int) -> bool:
        """Whether a poll from this position asks for events that are not here."""
        if position == LAST_EVENT:
            return not self.before and not self.lines and self.next_position > ALL_EVENTS
        return position != NO_EVENTS and position < self.complete_from

    def looks_back_for(self, position: int) -> bool:
        """Whether GMS is being asked for events that a poll from this position asks for."""
        return self.looks_back and self.lacks(position)

    def add(self, event: StoredEvent) -> bool:
        """Follow the store by one event. False when Chat Server counts anew, and all is to be read again."""
        if self.lines and event.id <= self.lines[-1].id:
            return True
        if event.index is not None and event.index < self.next_position and self.lines:
            if self.position_given is not None:
                self.recounted = self.position_given  # which the client asks for next, by the count of before
            return False
        index = self.next_position - 1 if event.index is None else event.index
        body = event.body or b""
        self.lines.append(Line(event.id, max(0, index), body, event.at, event.index is not None))
        self.size += len(body)
        self.next_position = max(self.next_position, index + 1)
        if len(self.lines) > KEPT_EVENTS:
            self.size -= sum(len(line.body) for line in (self.lines.pop(0), *self.before))
            self.before = []  # else there were a hole
        return True


class Watching:
    """The chats that are looked at; those that were not for longest go when there are too many."""

    def __init__(
        self,
        store: Store,
        *,
        most_bytes: int = KEPT_BYTES,
        heard: Callable[[StoredEvent], None] = lambda event: None,
    ) -> None:
        """`heard` is told each event of a chat that the store wrote since, in its order."""
        self._store = store
        self._heard = heard
        self._most_bytes = most_bytes
        self._chats: OrderedDict[str, Watched] = OrderedDict()
        self._size = 0
        self._dropped: WeakValueDictionary[str, Watched] = WeakValueDictionary()
        """Chats that had to make room, as long as somebody is held there or has a call under way."""
        self._loading: dict[str, list[StoredEvent]] = {}
        """Chats that are being read, and what came of them meanwhile."""
        self._read: dict[str, asyncio.Task[Watched]] = {}
        self._passed = 0
        """Up to this event everything was taken in."""

    def __len__(self) -> int:
        return len(self._chats)

    @property
    def size(self) -> int:
        """Bytes that they take, about."""
        return self._size

    def __iter__(self) -> Iterator[Watched]:
        return iter(self._chats.values())

    async def begin(self) -> None:
        """Take in what is written from now on. Raises `StoreError`."""
        self._passed = (await self._store.kept()).newest

    def now(self, chat_id: str) -> Watched | None:
        """A chat that is watched already."""
        found = self._chats.get(chat_id)
        if found is not None:
            self._chats.move_to_end(chat_id)
        return found

    async def get(self, chat_id: str) -> Watched:
        """A chat, read from the store when it is not watched yet. Raises `StoreError`."""
        return self.now(chat_id) or await self._loaded(chat_id)

    async def _loaded(self, chat_id: str) -> Watched:
        """A chat as the store has it, read once for all who ask."""
        if chat_id not in self._read:
            task = self._read[chat_id] = asyncio.create_task(self._load(chat_id))
            task.add_done_callback(lambda _: self._read.pop(chat_id, None))
        return await asyncio.shield(self._read[chat_id])

    async def look_again(self, chat: Watched) -> None:
        """Whether the key that its client came with is known by now: a chat may be registered, with its key, when it is
        looked at already. Raises `StoreError`."""
        if not chat.is_known or chat.of_gateway or chat.came_with is not None:
            return
        session = await self._store.get(chat.chat_id)
        if session is not None:
            chat.came_with, chat.of_gateway = session.came_with, session.of_gateway

    async def _load(self, chat_id: str) -> Watched:
        came = self._loading[chat_id] = []
        try:
            session = await self._store.get(chat_id)
            events = () if session is None else await self._store.transcript(chat_id, limit=KEPT_EVENTS)
        finally:
            del self._loading[chat_id]
        old = self._chats.pop(chat_id, None)
        chat = old or self._dropped.pop(chat_id, None) or Watched(chat_id)
        if old is not None:
            self._size -= A_CHAT + old.size
        chat.is_known = session is not None
        chat.service = None if session is None else session.service
        chat.of_gateway = session is not None and session.of_gateway
        chat.came_with = None if session is None else session.came_with
        chat.device_id = None if session is None else session.device_id
        chat.ended = session is not None and session.state is SessionState.ENDED
        chat.lines, chat.before, chat.size, chat.next_position = [], [], 0, ALL_EVENTS
        chat.not_back_before = 0.0  # Chat Server may count anew
        for event in _in_order(events):
            chat.add(event)
        if session is not None and not events:
            chat.next_position = session.next_position or ALL_EVENTS
        if not all(self._add(chat, event) for event in came):
            return await self._load(chat_id)  # Chat Server counts anew since
        if chat.is_known:  # what anybody may name is not kept
            chat.followed = True
            self._chats[chat_id] = chat
            self._size += A_CHAT + chat.size
            self._shrink()
        return chat

    def put_before(self, chat: Watched, lines: Sequence[Line]) -> None:
        """Show these, of all that was said in a chat, before its transcript begins."""
        begins = chat.lines[0].index if chat.lines else chat.next_position
        was = chat.size
        chat.size -= sum(len(line.body) for line in chat.before)
        chat.before = [line for line in lines if line.index < begins]
        chat.size += sum(len(line.body) for line in chat.before)
        if self._chats.get(chat.chat_id) is chat:
            self._size += chat.size - was
            self._shrink()

    async def follow(self) -> None:
        """Take in what was written since. Raises `StoreError`."""
        while True:
            events, looked = await self._store.news(self._passed, limit=READ_AT_ONCE)
            for event in events:
                await self._take_in(event)
            self._passed = max(self._passed, looked)
            if len(events) < READ_AT_ONCE:
                return

    async def _take_in(self, event: StoredEvent) -> None:
        chat_id = event.chat_id
        if chat_id is None:
            return  # nobody can watch a chat that is known by its device alone
        self._heard(event)
        if event.kind is EventKind.NOTIFIED:
            return
        if chat_id in self._loading:
            self._loading[chat_id].append(event)
        chat = self._chats.get(chat_id)
        if chat is None:
            dropped = self._dropped.get(chat_id)
            if dropped is not None:
                dropped.ring()
            return
        before = chat.size
        if self._add(chat, event):
            self._size += chat.size - before
            self._shrink()
        else:
            await self._loaded(chat_id)
        chat.ring()

    def _add(self, chat: Watched, event: StoredEvent) -> bool:
        if event.kind is EventKind.ENDED:
            chat.ended = True
        return event.kind is not EventKind.CHAT or chat.add(event)

    async def forget(self, chat_id: str) -> None:
        """Show nothing more of a chat whose transcript was erased: it is read anew."""
        if chat_id in self._read:
            await asyncio.wait({self._read[chat_id]})
        chat = self._chats.pop(chat_id, None)
        if chat is not None:
            self._drop(chat)
            chat.ring()

    def _shrink(self) -> None:
        while self._size > self._most_bytes and len(self._chats) > 1:
            # Nobody is woken: to read it again for each who is held there would have the next chat make room at once.
            self._drop(self._chats.popitem(last=False)[1])

    def _drop(self, chat: Watched) -> None:
        """Follow a chat no more, that is not kept any more."""
        self._size -= A_CHAT + chat.size
        chat.followed, chat.lines, chat.before, chat.size = False, [], [], 0
        self._dropped[chat.chat_id] = chat


def _in_order(events: Sequence[StoredEvent]) -> list[StoredEvent]:
    """By what Chat Server counts now; those it does not count stay behind the one before them."""
    last = 0
    places = []
    for event in events:
        last = last if event.index is None else event.index
        places.append((last, event.id, event))
    return [event for *_, event in sorted(places, key=lambda each: each[:2])]
