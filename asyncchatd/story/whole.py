"""What happened to a Chat Server, in a restoration, or at all: many chats, so they are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from asyncchatd.log import Event
from asyncchatd.model import durations
from asyncchatd.story.narrator import Narrator, Told, dated, lowered
from asyncchatd.story.plant import PlantState, alarming
from asyncchatd.story.read import Line
from asyncchatd.story.sentences import CHAT_EVENTS, COUNTED, FRUITLESS, PLANT_EVENTS, SERVER_EVENTS, sentence
from asyncchatd.story.words import Said, counted, in_words, number


class PlantStory:
    """What happened to a Chat Server, in a restoration, or at all. Chats are counted, not told one by one,
    unless it is told in full."""

    def __init__(
        self, *, server: str | None = None, restoration: int | None = None, full: bool = False
    ) -> None:
        self._server = server
        self._restoration = restoration
        self._plant = PlantState()
        self._narrator = Narrator(full=full)
        self._aliases: set[str] = set()
        self._since: datetime | None = None
        self._lost_at: datetime | None = None
        self._losses: list[tuple[datetime, timedelta | None]] = []
        self._state: tuple[str, datetime] | None = None
        self._done: list[str] = []
        self._running: dict[int, str] = {}
        """When those restorations began that are not finished."""
        self._ended: list[str] = []
        self._left: list[str] = []
        self._without = Counter[str]()
        self.known = server is None and restoration is None

    def hear(self, line: Line) -> Iterator[Told]:
        """What this line adds to the story."""
        if not line.event:
            if (text := alarming(line)) is not None:
                yield from self._narrator.tell(line.time, text)
            return
        if line.event in CHAT_EVENTS:
            if line.time is not None and self._concerns(line):
                yield from self._of_chat(line, line.time)
            return
        text = self._plant.hear(line) or ""
        if line.time is None or not self._concerns(line):
            return
        self._notes(line, line.time)
        if self._is_chatter(line):
            self._narrator.again(line.time, "progress", f"{text[0].lower()}{text[1:]}")
            return
        yield from self._narrator.tell(line.time, text, line.event)

    def pause(self) -> Iterator[Told]:
        """What was drawn together so far."""
        yield from self._narrator.flush()

    def _is_chatter(self, line: Line) -> bool:
        return line.event == Event.RESTORATION_PROGRESS and not self._narrator.full

    def _concerns(self, line: Line) -> bool:
        said = Said(line.fields, self._plant.servers)
        if self._restoration is not None:
            if said.fields.get("restoration") == self._restoration:
                self.known = True
                if line.event == Event.RESTORATION_STARTED:
                    self._aliases.add(said.text("alias", ""))
                return True
            going = self._restoration in self._running
            if going and line.event == Event.RESTORATION_STARTED and said.text("alias", "") in self._aliases:
                return True  # it takes this one over
            resting = line.event == Event.GMS_NODE_RESTING and self._plant.outage is None
            return going and (resting or line.event in PLANT_EVENTS)
        if self._server is None:
            return True
        name, alias = said.text("server", ""), said.text("alias", "")
        if name == self._server:
            self.known = True
            if alias and line.event in SERVER_EVENTS:
                self._aliases.add(alias)
            return True
        if line.event in CHAT_EVENTS:
            return alias in self._aliases or said.text("previous_alias", "") in self._aliases
        return self.known and line.event in PLANT_EVENTS

    def _of_chat(self, line: Line, when: datetime) -> Iterator[Told]:
        chat = str(line.fields.get("chat_id") or f"of device {line.fields.get('device_id')}")
        if line.event == Event.SESSION_ENDED and self._restoration is not None:
            self._ended.append(chat)
        if line.event == Event.PING_REFUSED and self._restoration is not None:
            self._left.append(chat)
        if self._narrator.full:
            text = lowered(sentence(line, self._plant.servers))
            yield from self._narrator.tell(when, f"chat {chat}: {text}", line.event)
            return
        cause = str(line.fields.get("cause") or "")
        if line.event in FRUITLESS:
            self._without[cause] += 1
            words = f"without result ({in_words(cause)})"
            self._narrator.again(when, f"{line.event} {cause}", f"1 ping {words}", f"{{}} pings {words}")
        elif line.event in COUNTED:
            self._narrator.again(when, line.event, *COUNTED[line.event])
        elif line.event != Event.KEEPALIVE_OK:
            text = lowered(sentence(line, self._plant.servers))
            yield from self._narrator.tell(when, f"chat {chat}: {text}", line.event)

    def _notes(self, line: Line, when: datetime) -> None:
        said = Said(line.fields, self._plant.servers)
        match line.event:
            case Event.SERVER_DOWN:
                self._lost_at, self._state = when, ("down", when)
                self._losses.append((when, None))
            case Event.SERVER_RESTARTED:
                self._losses.append((when, timedelta()))
                self._lost_at, self._state = None, ("up", when)
            case Event.SERVER_UP:
                if self._lost_at is not None:
                    self._losses[-1] = (self._lost_at, when - self._lost_at)
                self._lost_at, self._state = None, ("up", when)
            case Event.SERVER_SUSPECT:
                self._state = ("suspect", when)
            case Event.RESTORATION_STARTED:
                self._running[int(said.number("restoration"))] = dated(when)
            case Event.RESTORATION_FINISHED | Event.RESTORATION_INCOMPLETE:
                self._running.pop(int(said.number("restoration")), None)
                self._done.append(sentence(line, self._plant.servers))

    def verdict(self, until: datetime | None) -> list[str]:
        """How it stood at the end."""
        if not self.known:
            what = f"the Chat Server {self._server}" if self._server else f"restoration #{self._restoration}"
            return [f"The log does not speak of {what}."]
        if self._restoration is not None:
            return self._of_restoration()
        return self._of_server() if self._server is not None else []

    def _of_server(self) -> list[str]:
        found = []
        if self._state is not None:
            state, since = self._state
            found.append(f"At the end {self._server} was {state}, since {dated(since)}.")
        if self._losses:
            losses = ", ".join(
                f"{dated(when)} ({'restarted' if away == timedelta() else _for(away)})"
                for when, away in self._losses[-10:]
            )
            found.append(f"Lost {number(len(self._losses), 'time')}: {losses}.")
        else:
            found.append("It was not lost in this time.")
        return found + [f"{each}." for each in self._done[-10:]] + self._unfinished()

    def _of_restoration(self) -> list[str]:
        found = [f"{each}." for each in self._done] or self._unfinished()
        if self._without:
            tries = ", ".join(counted(count, cause) for cause, count in self._without.most_common(4))
            found.append(f"On the way {number(self._without.total(), 'ping')} brought no result: {tries}.")
        if self._ended:
            found.append(f"Over when they were asked for: {_some(self._ended)}.")
        if self._left:
            found.append(f"Left without an answer: {_some(self._left)}.")
        if self._ended or self._left:
            found.append("asyncchatd logs --chat ID tells of each.")
        return found or ["The log has only a part of it: look in older files for its beginning."]

    def _unfinished(self) -> list[str]:
        return [
            f"Restoration #{each}, begun at {began}, was not finished at the end of the log."
            for each, began in self._running.items()
        ]


def _some(chats: Sequence[str]) -> str:
    return ", ".join(chats[:10]) + (" ..." if len(chats) > 10 else "")


def _for(away: timedelta | None) -> str:
    return (
        "not back by the end of the log"
        if away is None
        else f"for {durations.in_words(away.total_seconds())}"
    )
