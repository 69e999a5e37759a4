"""What consumers have been told of one chat, as far as the log says it.

The log says which events a ping fetched, what each webhook took, refused, or had put aside, and what a page of the
customer was told through the gateway. It does not say what a consumer has that fetches by itself, nor of which chats a
consumer is told: who has taken an event of the transcript of this chat before is told of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from asyncchatd.log import Event
from asyncchatd.model import durations
from asyncchatd.story.narrator import dated
from asyncchatd.story.read import Line
from asyncchatd.story.words import THE_PAGE, Said

REMEMBERED = 10_000
"""Fetches whose events may still be waiting, and batches put aside."""

WHERE_ELSE = "asyncchatd consumers shows how far each is"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the transcript, and when it was fetched or refused."""

    when: datetime
    first: float
    last: float
    words: str
    cause: str = ""


@dataclass(slots=True)
class Progress:
    """How far one consumer is with this chat."""

    last: float | None = None
    """The place of the newest event of the transcript that it took, or that was put aside."""
    refused: Part | None = None
    """What it does not take."""
    parked: deque[Part] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class Deliveries:
    """The events of one chat on their way to consumers."""

    def __init__(self, chat_id: str) -> None:
        self._chat_id = chat_id
        self._fetched: deque[Part] = deque(maxlen=REMEMBERED)
        self._consumers: dict[str, Progress] = {}
        self._down: dict[str, tuple[datetime, str]] = {}
        """Consumers whose endpoint does not answer: since when, and why."""
        self._paused: dict[str, datetime] = {}
        self._of_gateway = False
        """Whether the customer's page comes through the gateway."""

    def hear(self, line: Line) -> None:
        """Take in a line about a consumer, or about this chat."""
        if line.time is None:
            return
        said = Said(line.fields, {})
        name = said.text("consumer", "")
        match line.event:
            case Event.CONSUMER_DOWN:
                self._down.setdefault(name, (line.time, said.cause()))
            case Event.CONSUMER_UP:
                self._down.pop(name, None)
            case Event.CONSUMER_GONE | Event.CONSUMER_PAUSED:
                self._paused.setdefault(name, line.time)
            case Event.CONSUMER_RESUMED:
                self._paused.pop(name, None)
            case Event.DAEMON_STARTING:
                self._down.clear()  # the next daemon finds out anew
            case _ if said.text("chat_id", "") == self._chat_id:
                self._of_chat(line, line.time, said)

    def _of_chat(self, line: Line, when: datetime, said: Said) -> None:
        part = Part(when, said.number("first_index"), said.number("last_index"), said.places(), said.cause())
        match line.event:
            case Event.PING_OK | Event.SESSION_ENDED if part.words:
                self._fetched.append(part)
            case Event.EVENTS_DELIVERED | Event.EVENTS_REFUSED | Event.EVENTS_PARKED | Event.EVENTS_SHOWN:
                self._told(line, part, self._consumers.setdefault(said.taker(), Progress()))
            case Event.CHAT_OPENED | Event.CHAT_ADOPTED | Event.CALL_DONE:
                self._of_gateway = True
            case Event.SESSION_REMOVED:  # with all that was kept of it
                self._fetched.clear()
                self._consumers.clear()

    def _told(self, line: Line, part: Part, progress: Progress) -> None:
        if line.event == Event.EVENTS_REFUSED:
            progress.refused = part
            return
        progress.refused = None
        if line.event == Event.EVENTS_PARKED:
            progress.parked.append(part)
        else:
            same = next((each for each in progress.parked if _is_same(each, part)), None)
            if same is not None:
                progress.parked.remove(same)
        if part.words:
            progress.last = max(progress.last or 0, part.last)
            while self._fetched and all(
                self._fetched[0].last <= (each.last or 0) for each in self._readers()
            ):
                self._fetched.popleft()

    def _readers(self) -> Iterator[Progress]:
        """Those who are told what is said in this chat."""
        return (each for each in self._consumers.values() if each.last is not None)

    def verdict(self, now: datetime) -> list[str]:
        """What no consumer has taken, and why; nothing where all is told."""
        found: list[str] = []
        for name, progress in sorted(self._consumers.items()):
            found += self._of_consumer(name, progress, now)
        if self._fetched and not any(self._readers()):
            found.append(self._of_nobody(now))
        return found

    def _of_consumer(self, name: str, progress: Progress, now: datetime) -> Iterator[str]:
        for part in progress.parked:
            yield (
                f"{_capital(part)} {_were(part)} put aside at {dated(part.when)}, as consumer {name} refused"
                f" {_them(part)} for too long ({part.cause}). Mend the consumer, then:"
                f" asyncchatd consumers replay {name}."
            )
        if progress.refused is not None:
            part = progress.refused
            again = f"; {_they_are(part)} tried again, and what came after waits behind {_them(part)}"
            if name in self._paused or name in self._down:
                again = self._why(name)
            yield f"Consumer {name} refuses {part.words or 'an event'} since {dated(part.when)} ({part.cause}){again}."
        elif progress.last is not None:
            waiting = [each for each in self._fetched if each.last > progress.last]
            if waiting:
                yield self._waits(name, waiting, now)

    def _waits(self, name: str, waiting: list[Part], now: datetime) -> str:
        part = _all_of(waiting)
        if name == THE_PAGE:
            return self._unseen(part, now)
        since = durations.in_words((now - part.when).total_seconds())
        return f"{_capital(part)} {_waits(part)} for consumer {name}, since {since}{self._why(name)}."

    def _unseen(self, part: Part, now: datetime) -> str:
        since = durations.in_words((now - part.when).total_seconds())
        return f"No page of the customer has asked for {part.words}, fetched {since} before."

    def _why(self, name: str) -> str:
        if name in self._paused:
            return f": it is paused since {dated(self._paused[name])}; asyncchatd consumers resume {name}"
        if name in self._down:
            since, cause = self._down[name]
            return f": its endpoint does not answer since {dated(since)} ({cause})"
        return f", and the log does not say why; {WHERE_ELSE}"

    def _of_nobody(self, now: datetime) -> str:
        """What the log does not say to have been taken by anybody: perhaps by one who fetches."""
        part = _all_of(self._fetched)
        if self._of_gateway:
            return self._unseen(part, now)
        halted = sorted({*self._down, *self._paused})
        if halted:
            names = "; ".join(f"consumer {name}{self._why(name)}" for name in halted)
            return f"No consumer has taken {part.words}, fetched from {dated(part.when)} on. {_capital_text(names)}."
        return (
            f"The log does not say that a consumer has taken {part.words}, fetched from {dated(part.when)} on: one that"
            f" fetches by itself leaves no line; {WHERE_ELSE}."
        )


def _is_same(parked: Part, taken: Part) -> bool:
    """A batch keeps its events from try to try."""
    return (parked.first, parked.last) == (taken.first, taken.last)


def _all_of(parts: list[Part] | deque[Part]) -> Part:
    first, last = min(each.first for each in parts), max(each.last for each in parts)
    words = f"event {first:.0f}" if first == last else f"events {first:.0f} to {last:.0f}"
    return Part(parts[0].when, first, last, words)


def _capital(part: Part) -> str:
    return _capital_text(part.words or "an event")


def _capital_text(text: str) -> str:
    return text[:1].upper() + text[1:]


def _were(part: Part) -> str:
    return "was" if part.first == part.last else "were"


def _waits(part: Part) -> str:
    return "waits" if part.first == part.last else "wait"


def _they_are(part: Part) -> str:
    return "it is" if part.first == part.last else "they are"


def _them(part: Part) -> str:
    return "it" if part.first == part.last else "them"
