"""What happened to one chat, one Chat Server or one restoration, and why: lines of the log in, a story out.

A story keeps what matters to its subject, says each event in a sentence, draws runs of the same together,
and ends with a verdict. A chat depends on its Chat Server, on GMS and on asyncchatd itself; what happened to
those while the chat lived belongs to its story, because a chat is seldom lost by its own fault.

    story = ChatStory("00048aAPEQJ8000U")
    for line in lines: told = story.hear(line)
    story.verdict()
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from asyncchatd.log import Event
from asyncchatd.logs.read import Line
from asyncchatd.logs.sentences import CHAT_EVENTS, Said, counted, in_words, length, number, sentence

SILENCE = timedelta(minutes=1)
"""A gap of this length in a story is told."""

WORTH_TELLING = timedelta(seconds=30)
"""A chat that waited so long for an answer is told to have waited, in the verdict."""

REMEMBERED = 1_000
"""Outages that are remembered, and lines about Chat Servers whose turn may come."""


@dataclass(frozen=True, slots=True)
class Told:
    """One sentence of a story."""

    time: datetime | None
    text: str
    event: str = ""
    """The event it tells; empty when it draws several together."""
    gap: timedelta = timedelta()
    """Since the sentence before it."""
    pings: int = 0
    """Keepalives answered in that gap; known when the log is of level debug."""


class Story(Protocol):
    """Lines in, sentences out."""

    def hear(self, line: Line) -> Iterator[Told]:
        """What this line adds to the story; some is held back until it is known how it goes on."""
        ...

    def pause(self) -> Iterator[Told]:
        """What is held back: nothing more comes at the moment."""
        ...

    def verdict(self, until: datetime | None) -> list[str]:
        """How it stood at the end of the log."""
        ...


def clock_time(when: datetime) -> str:
    """The time of day where the reader is, with the date when it is far from what stands around it."""
    return f"{when.astimezone():%H:%M:%S}"


def dated(when: datetime) -> str:
    """Date and time where the reader is."""
    return f"{when.astimezone():%Y-%m-%d %H:%M:%S}"


# What all chats depend on.


@dataclass(slots=True)
class Spell:
    """A time in which something was not there."""

    since: datetime
    until: datetime | None = None
    cut: bool = False
    """Its end was not seen: the daemon that saw it begin was gone."""

    def within(self, since: datetime, until: datetime) -> timedelta:
        return max(min(self.until or until, until) - max(self.since, since), timedelta())

    def said(self) -> str:
        return (
            f"from {clock_time(self.since)} to {clock_time(self.until)}"
            if self.until
            else (f"from {clock_time(self.since)} on")
        )


@dataclass(slots=True)
class Plant:
    """What the log says of GMS, the Chat Servers and asyncchatd itself, as it goes."""

    servers: dict[str, str] = field(default_factory=dict)
    """Names by alias."""
    running: bool | None = None
    outages: deque[Spell] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    absences: deque[Spell] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def hear(self, line: Line) -> str | None:
        """Take it in; a sentence about it when it is worth one to everybody."""
        said = Said(line.fields, self.servers)
        name, alias = said.text("server", ""), said.text("alias", "")
        if line.event.startswith("server_") and name and alias:
            self.servers[alias] = name
        if line.time is None:
            return None
        match line.event:
            case Event.DAEMON_STARTING:
                return self._started(line, said)
            case Event.DAEMON_READY:
                self._back(line.time)
            case Event.DAEMON_STOPPING | Event.DAEMON_STOPPED | Event.DAEMON_FAILED:
                return self._stopped(line, said)
            case Event.GMS_UNAVAILABLE if not self.outage:
                last = self.outages[-1] if self.outages else None
                if last is not None and last.cut and last.until and line.time - last.until < SILENCE:
                    last.until, last.cut = None, False  # the same one, as the next daemon sees it
                else:
                    self.outages.append(Spell(line.time))
            case Event.GMS_AVAILABLE:
                if self.outage is not None:
                    self.outage.until = line.time
                elif said.has("outage_ms"):
                    began = line.time - timedelta(milliseconds=said.number("outage_ms"))
                    self.outages.append(Spell(began, line.time))
        return sentence(line, self.servers)

    def _started(self, line: Line, said: Said) -> str:
        assert line.time is not None
        again = sentence(line, self.servers)
        away = self._open(self.absences)
        if self.running and line.before is not None:
            self.absences.append(Spell(line.before))
            again += (
                f"; the one before had broken off without a word, at {clock_time(line.before)} or later: killed,"
                " crashed, or the host went down"
            )
        elif away is not None:
            again = f"{again}, {length((line.time - away.since).total_seconds())} after it was stopped"
        self.running = True
        # A daemon that starts knows nothing of an outage that the one before it saw.
        if self.outage is not None:
            self.outage.cut, self.outage.until = True, line.time
        return again

    def _stopped(self, line: Line, said: Said) -> str:
        assert line.time is not None
        if self._open(self.absences) is None and said.text("part", "") != "start":
            self.absences.append(Spell(line.time))
        self.running = False
        return sentence(line, self.servers)

    def _back(self, when: datetime) -> None:
        self.running = True
        if (away := self._open(self.absences)) is not None:
            away.until = when

    @property
    def outage(self) -> Spell | None:
        """The time in which no GMS node answers, while it lasts."""
        return self._open(self.outages)

    @staticmethod
    def _open(spells: Sequence[Spell]) -> Spell | None:
        return spells[-1] if spells and spells[-1].until is None else None

    def reasons(self, since: datetime, until: datetime) -> list[str]:
        """Why nothing could be done for a chat in this time: asyncchatd away, GMS away."""
        found = []
        for spells, what in (
            (self.absences, "asyncchatd was not running"),
            (self.outages, "no GMS node answered"),
        ):
            parts = [spell for spell in spells if spell.within(since, until)]
            if parts:
                lasted = sum((spell.within(since, until) for spell in parts), timedelta())
                when = ", ".join(spell.said() for spell in parts[:3])
                more = f" and {len(parts) - 3} times more" if len(parts) > 3 else ""
                found.append(f"{what} {when}{more} ({length(lasted.total_seconds())} of it)")
        return found


PLANT_EVENTS = frozenset(
    event.value
    for event in (
        *(Event.DAEMON_STARTING, Event.DAEMON_READY, Event.DAEMON_STOPPING, Event.DAEMON_STOPPED),
        *(Event.DAEMON_FAILED, Event.GMS_UNAVAILABLE, Event.GMS_AVAILABLE, Event.STORE_CORRUPT),
        *(
            Event.STORE_FULL,
            Event.STORE_FAILED,
            Event.CLOCK_STEPPED,
            Event.LOOP_STALLED,
            Event.SELF_SUSPECTED,
        ),
    )
)
"""What every chat depends on."""

SERVER_EVENTS = frozenset(event.value for event in Event if event.value.startswith("server_"))

_ALARMING = re.compile(r"exited|killed|failed|watchdog|out of memory|oom|restart job", re.IGNORECASE)
"""What systemd says of a unit that did not simply start or stop."""


def alarming(line: Line) -> str | None:
    """What systemd or the kernel said, when it may be why the daemon was not there."""
    message = str(line.fields.get("message") or "")
    who = str(line.fields.get("identifier") or "")
    if line.time is None or who not in {"systemd", "kernel"} or not _ALARMING.search(message):
        return None
    return f"{who} said: {message}"


class Narrator:
    """Writes sentences one after the other, and draws runs of the same together."""

    def __init__(self, *, full: bool) -> None:
        self.full = full
        self.last: datetime | None = None
        """When the last sentence was told."""
        self._runs: dict[str, tuple[int, datetime | None, str]] = {}
        self._answered = 0

    def tell(self, when: datetime | None, text: str, event: str = "") -> Iterator[Told]:
        """A sentence, after what was drawn together before it."""
        yield from self.flush()
        yield self._told(when, text, event)

    def again(self, when: datetime | None, kind: str, one: str, many: str = "") -> None:
        """One more of a kind that needs no sentence of its own; `one` says a single one, `many` several, with
        a `{}` for how many."""
        count = self._runs[kind][0] if kind in self._runs else 0
        self._runs[kind] = (count + 1, when, many if count and many else one)

    def answered(self) -> None:
        """A keepalive was answered in the silence."""
        self._answered += 1

    def flush(self) -> Iterator[Told]:
        """The runs so far, in a sentence."""
        if not self._runs:
            return
        runs, self._runs = self._runs, {}
        when = max((each for _, each, _ in runs.values() if each is not None), default=None)
        text = "; ".join(words.replace("{}", f"{count:,}") for count, _, words in runs.values())
        yield self._told(when, f"… {text}")

    def _told(self, when: datetime | None, text: str, event: str = "") -> Told:
        gap = when - self.last if when is not None and self.last is not None else timedelta()
        pings, self._answered = self._answered, 0
        self.last = when or self.last
        return Told(when, text, event, max(gap, timedelta()), pings)


# One chat.


@dataclass(slots=True)
class Wait:
    """A time in which the chat needed an answer from GMS."""

    since: datetime
    why: str
    """What it waited for, such as `the push of 14:02:11 was not acknowledged`."""
    push: datetime | None = None
    lost: str | None = None
    """Name of the Chat Server that was lost."""
    pushes: int = 0
    lost_at: datetime | None = None
    causes: Counter[str] = field(default_factory=Counter)
    """Of tries without result."""
    nodes: set[str] = field(default_factory=set)
    """GMS nodes that were told to be in trouble."""
    until: datetime | None = None

    def length(self, now: datetime) -> timedelta:
        return (self.until or now) - self.since


@dataclass(slots=True)
class Ending:
    """How the chat ended."""

    time: datetime
    text: str
    reason: str
    removed: bool


class ChatStory:
    """The story of one chat."""

    def __init__(self, chat_id: str, *, full: bool = False) -> None:
        """`full`: every event has its own sentence."""
        self._chat_id = chat_id
        self._plant = Plant()
        self._narrator = Narrator(full=full)
        self._alias: str | None = None
        self._first: datetime | None = None
        self._heard: datetime | None = None
        self._answered: datetime | None = None
        self._incomplete = False
        self._refused: str | None = None
        self._leave: tuple[datetime, str] | None = None
        self._wait: Wait | None = None
        self._longest: Wait | None = None
        self._held: Told | None = None
        self._smooth = 0
        """Smoothly acknowledged pushes told one after the other."""
        self._smooth_at: datetime | None = None
        self._run_slowest = 0.0
        self._others: deque[tuple[str, Told]] = deque(maxlen=REMEMBERED)
        """What was said of other Chat Servers, by alias: one of them may turn out to be this chat's."""
        self._suspects: set[str] = set()
        self.ending: Ending | None = None

    @property
    def known(self) -> bool:
        """Whether the log spoke of this chat at all."""
        return self._first is not None

    def hear(self, line: Line) -> Iterator[Told]:
        """What this line adds to the story."""
        if not line.event:
            if (text := alarming(line)) is not None and self._lives:
                yield from self._tell(line.time, text)
            return
        if line.event in CHAT_EVENTS:
            if line.fields.get("chat_id") == self._chat_id and line.time is not None:
                yield from self._of_chat(line, line.time)
            return
        text = self._plant.hear(line)
        if text is not None and line.time is not None and self.ending is None:
            yield from self._of_plant(line, line.time, text)

    def pause(self) -> Iterator[Told]:
        """What was held back."""
        yield from self._release()
        yield from self._narrator.flush()

    @property
    def _lives(self) -> bool:
        return self.known and self.ending is None

    # -- the chat itself ---------------------------------------------------------------------------------

    def _of_chat(self, line: Line, when: datetime) -> Iterator[Told]:
        said = Said(line.fields, self._plant.servers)
        yield from self._catch_up(said)
        self._first = self._first or when
        self._heard = when
        was, self._alias = self._alias, said.text("alias", "") or self._alias
        match line.event:
            case Event.PUSH_RECEIVED:
                yield from self._pushed(line, when, said)
                return
            case Event.PING_OK:
                yield from self._ping_ok(line, when, said)
                return
            case Event.KEEPALIVE_OK:
                yield from self._keepalive(line, when)
                return
            case Event.PING_RETRY | Event.PING_FAILED | Event.PING_FOREIGN_REPLY:
                yield from self._retry(line, when, said)
                return
            case Event.SESSION_TOKENS_CHANGED if not self._narrator.full and self._alias == was:
                return  # told by the ping that brought them, or of no interest: only the keys changed
            case Event.PING_REFUSED:
                self._refused = said.cause()
                self._begin(when, f"GMS refused its ping: {said.cause()}")
            case Event.PUSH_UNKNOWN_SESSION:
                self._incomplete = True
            case Event.SESSION_COMPLETED | Event.PUSH_SESSION_ADOPTED | Event.SESSION_REGISTERED:
                self._incomplete = False
            case Event.SESSION_ENDED | Event.SESSION_REMOVED:
                yield from self._end(line, when, said)
                return
        yield from self._tell(when, self._sentence(line), line.event)

    def _pushed(self, line: Line, when: datetime, said: Said) -> Iterator[Told]:
        if said.has("quit_code") or said.fields.get("quit_code") == 0:
            self._leave = (when, self._sentence(line).removeprefix("GMS pushed that "))
        if self.ending is not None or said.text("known") == "ended":
            yield from self._tell(when, self._sentence(line), line.event)
            return
        pending = self._wait is not None and self._wait.push is not None
        self._begin(when, f"the push of {clock_time(when)} was not acknowledged", push=when)
        assert self._wait is not None
        self._wait.pushes += 1
        if pending and not self._narrator.full:
            yield from self._release()
            self._narrator.again(when, "pushes", "{} more pushed, not acknowledged yet")
            return
        yield from self._release()
        self._held = Told(when, self._sentence(line), line.event)

    def _ping_ok(self, line: Line, when: datetime, said: Said) -> Iterator[Told]:
        wait = self._close(when)
        moved = ""
        if said.has("previous_alias") and said.text("previous_alias") != said.text("alias"):
            moved = f"; it is on {said.server()} now"
        later = length((when - wait.since).total_seconds()) if wait else said.length("waited_ms")
        tries = said.number("attempt")
        at_try = f", at try {tries:g}" if tries > 1 else ""
        held, self._held = self._held, None
        if held is not None and wait is not None:
            text = f"{held.text} (acknowledged {later} later{at_try}{moved})"
            yield from self._smoothly(replace(held, text=text), when, wait, plain=not (moved or at_try))
            return
        if held is not None:
            yield from self._narrator.tell(held.time, held.text, held.event)
        if wait is not None and wait.lost_at is not None:
            later = length((when - wait.lost_at).total_seconds())
            text = f"Restored {later} after {wait.lost} was lost{at_try}{moved}"
        elif wait is not None and wait.push is not None:
            text = f"{number(wait.pushes, 'push', 'pushes')} acknowledged, the first after {later}{at_try}{moved}"
        elif wait is not None:
            text = f"Answered at last, {later} after the trouble began{at_try}{moved}"
        elif said.text("reason") == "restore":
            text = f"Restored{at_try}{moved}, {later} after it was due"
        else:
            text = self._sentence(line)
        yield from self._tell(when, text, line.event)

    def _smoothly(self, told: Told, when: datetime, wait: Wait, *, plain: bool) -> Iterator[Told]:
        """An acknowledged push. The third and later ones of a quick run are drawn together."""
        near = self._smooth_at is not None and wait.since - self._smooth_at < SILENCE
        if not near or not plain or self._narrator.full:
            self._smooth = 0
        self._smooth_at = when
        took = (when - wait.since).total_seconds()
        if self._smooth == 2:
            self._run_slowest = max(self._run_slowest, took)
            words = f"acknowledged within {length(self._run_slowest)}"
            self._narrator.again(when, "smooth", f"1 more pushed, {words}", f"{{}} more pushed, each {words}")
            return
        self._run_slowest = 0.0
        yield from self._narrator.tell(told.time, told.text, told.event)
        if plain:
            self._smooth += 1

    def _keepalive(self, line: Line, when: datetime) -> Iterator[Told]:
        if self._close(when) is not None or self._narrator.full:
            yield from self._tell(when, self._sentence(line), line.event)
        else:
            self._narrator.answered()

    def _retry(self, line: Line, when: datetime, said: Said) -> Iterator[Told]:
        cause = said.text("cause", str(line.event))
        self._begin(when, "its pings brought no result")
        assert self._wait is not None
        self._wait.causes[cause] += 1
        if self._wait.causes[cause] > 1 and not self._narrator.full:
            yield from self._release()
            words = f"without result ({in_words(cause)})"
            self._narrator.again(when, cause, f"1 more try {words}", f"{{}} more tries {words}")
        else:
            yield from self._tell(when, self._sentence(line), line.event)

    def _end(self, line: Line, when: datetime, said: Said) -> Iterator[Told]:
        waited = self._close(when)
        if waited is not None:
            self._longest = waited
        if self.ending is None:
            removed = line.event == Event.SESSION_REMOVED
            self.ending = Ending(when, self._sentence(line), said.text("reason", ""), removed)
        yield from self._tell(when, self._sentence(line), line.event)

    # -- what it depends on --------------------------------------------------------------------------------

    def _of_plant(self, line: Line, when: datetime, text: str) -> Iterator[Told]:
        alias = str(line.fields.get("alias") or "")
        told = Told(when, text, line.event)
        if line.event in SERVER_EVENTS or line.event == Event.RESTORATION_STARTED:
            worth = self._notes_server(line, alias)
            if worth and alias == (self._alias or ""):
                self._lost(line, when, alias)
                if self._lives:
                    yield from self._tell(when, text, line.event)
            elif worth:
                self._others.append((alias, told))
        elif line.event in PLANT_EVENTS:
            if self._lives and not (line.event == Event.DAEMON_STOPPING and "asked to" in text):
                yield from self._tell(when, text, line.event)
        elif line.event == Event.GMS_NODE_RESTING and self._wait is not None and self._plant.outage is None:
            node = str(line.fields.get("node"))
            if node not in self._wait.nodes or self._narrator.full:
                yield from self._tell(when, text, line.event)
            self._wait.nodes.add(node)
        elif line.event == Event.RESTORATION_PROGRESS and self._wait is not None and self._wait.lost:
            self._narrator.again(when, "progress", f"{text[0].lower()}{text[1:]}")

    def _notes_server(self, line: Line, alias: str) -> bool:
        """Whether this is news: that a server is up is only worth telling after it was not."""
        name = str(line.fields.get("server") or alias)
        if line.event == Event.SERVER_UP:
            if name not in self._suspects:
                return False
            self._suspects.discard(name)
        else:
            self._suspects.add(name)
        return True

    def _lost(self, line: Line, when: datetime, alias: str) -> None:
        """The chat waits from now on, if this means that its Chat Server is lost."""
        if line.event in _LOSSES and self._lives:
            name = self._plant.servers.get(alias) or str(line.fields.get("server") or f"alias {alias}")
            self._begin(when, f"its Chat Server {name} was lost", lost=name)

    def _catch_up(self, said: Said) -> Iterator[Told]:
        """The log did not say where the chat was, but now it does: tell what was said of that Chat Server."""
        was = said.text("previous_alias", "") or said.text("alias", "")
        if self._alias is not None or not was:
            return
        others, self._others = self._others, deque(maxlen=REMEMBERED)
        for alias, told in others:
            recent = self._narrator.last is None or (
                told.time is not None and told.time >= self._narrator.last
            )
            if alias != was or not recent or told.time is None:
                continue
            if told.event in _LOSSES and said.text("reason", "") in {"restore", "acknowledge"}:
                name = self._plant.servers.get(alias, f"alias {alias}")
                self._begin(told.time, f"its Chat Server {name} was lost", lost=name)
            yield from self._tell(told.time, told.text, told.event)

    # -- waiting -----------------------------------------------------------------------------------------

    def _begin(
        self, when: datetime, why: str, *, push: datetime | None = None, lost: str | None = None
    ) -> None:
        if self.ending is not None:
            return
        if self._wait is None:
            self._wait = Wait(when, why)
        self._wait.push = self._wait.push or push
        if lost is not None and self._wait.lost is None:
            self._wait.lost, self._wait.lost_at = lost, when

    def _close(self, when: datetime) -> Wait | None:
        self._answered, self._refused = when, None
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.until = when
            if self._longest is None or wait.length(when) > self._longest.length(when):
                self._longest = wait
        return wait

    # -- sentences ---------------------------------------------------------------------------------------

    def _sentence(self, line: Line) -> str:
        return sentence(line, self._plant.servers)

    def _tell(self, when: datetime | None, text: str, event: str = "") -> Iterator[Told]:
        yield from self._release()
        self._smooth = 0
        yield from self._narrator.tell(when, text, event)

    def _release(self) -> Iterator[Told]:
        held, self._held = self._held, None
        if held is not None:
            yield from self._narrator.tell(held.time, f"{held.text}", held.event)

    # -- the end -----------------------------------------------------------------------------------------

    def verdict(self, until: datetime | None) -> list[str]:
        """How the chat stood at the end, and why."""
        if self._first is None or self._heard is None:
            return [f"The log does not speak of the chat {self._chat_id}."]
        now = until or self._heard
        found = self._how_it_stands(now) if self.ending is None else self._how_it_ended(self.ending)
        longest = self._longest
        if (
            longest is not None
            and longest.until is not None
            and longest.length(now) >= WORTH_TELLING
            and (self.ending is None or longest.until < self.ending.time)
        ):
            found += [
                f"Its longest wait was {length(longest.length(now).total_seconds())}, from"
                f" {dated(longest.since)}: {longest.why}.",
                *self._why(longest, longest.until),
            ]
        return found

    def _how_it_ended(self, ending: Ending) -> list[str]:
        if ending.removed:
            return [
                f"The chat was ended over the control API at {dated(ending.time)}; GMS did not say that it was"
                " over. Who called is in the application's log."
            ]
        waited = self._longest
        if waited is not None and waited.until == ending.time and waited.lost_at is not None:
            before = length((ending.time - waited.lost_at).total_seconds())
            found = [
                f"The chat was over when GMS first answered for it again, at {dated(ending.time)}. Its Chat Server"
                f" {waited.lost} had been lost {before} before: most likely the chat was lost with it."
            ]
            if waited.push is not None:
                found.append(f"The push of {clock_time(waited.push)} was never acknowledged.")
            return found + self._why(waited, ending.time)
        found = [f"At {dated(ending.time)} {ending.text}."]
        if self._leave is not None:
            found.append(f"Before that, at {dated(self._leave[0])}, {self._leave[1]}.")
        else:
            found.append("The log does not say who ended it: no push told of somebody leaving before.")
        if waited is not None and waited.until == ending.time and waited.length(ending.time) > WORTH_TELLING:
            lasted = length(waited.length(ending.time).total_seconds())
            found += [f"It had waited {lasted} by then: {waited.why}.", *self._why(waited, ending.time)]
        return found

    def _how_it_stands(self, now: datetime) -> list[str]:
        heard = f"last heard of at {dated(self._heard)}" if self._heard else ""
        if self._incomplete:
            return [
                f"The chat is known only from pushes without all its tokens, {heard}: it cannot be pinged until"
                " the application registers it (PUT /v1/sessions/...)."
            ]
        if self._wait is not None:
            waiting = length(self._wait.length(now).total_seconds())
            return [
                f"At the end of the log ({dated(now)}) the chat still waits, since {waiting}: {self._wait.why}.",
                *self._why(self._wait, now),
            ]
        found = [f"Still alive at the end of the log ({dated(now)}), {heard}; nothing is waiting."]
        if self._plant.running is False:
            found.append(
                "But asyncchatd is not running since"
                f" {dated(self._plant.absences[-1].since)}: nobody pings it."
            )
        elif self._alias:
            found.append(f"It is on {Said({'alias': self._alias}, self._plant.servers).server()}.")
        return found

    def _why(self, wait: Wait, until: datetime) -> list[str]:
        """What stood in the way of an answer in this time."""
        reasons = self._plant.reasons(wait.since, until)
        if wait.causes:
            tries = ", ".join(counted(count, cause) for cause, count in wait.causes.most_common(3))
            reasons.append(f"{number(wait.causes.total(), 'try', 'tries')} brought no result ({tries})")
        if self._refused:
            reasons.append(f"GMS refused its ping: {self._refused}")
        if not reasons:
            if wait.length(until) < WORTH_TELLING:
                return []
            reasons = ["the log shows no trouble in that time; was its turn late under restoration.max_rate?"]
        return [f"Why: {'; '.join(reasons)}."]


_LOSSES = frozenset(
    event.value
    for event in (
        *(Event.SERVER_DOWN, Event.SERVER_RESTARTED, Event.SERVER_IDENTITY_CHANGED),
        Event.RESTORATION_STARTED,
    )
)


def _lower(text: str) -> str:
    return text if text.startswith("GMS") else text[:1].lower() + text[1:]


# A Chat Server, a restoration, or all.


class PlantStory:
    """What happened to a Chat Server, in a restoration, or at all. Chats are counted, not told one by one,
    unless it is told in full."""

    def __init__(
        self, *, server: str | None = None, restoration: int | None = None, full: bool = False
    ) -> None:
        self._server = server
        self._restoration = restoration
        self._plant = Plant()
        self._narrator = Narrator(full=full)
        self._aliases: set[str] = set()
        self._since: datetime | None = None
        self._lost_at: datetime | None = None
        self._losses: list[tuple[datetime, timedelta | None]] = []
        self._state: tuple[str, datetime] | None = None
        self._done: list[str] = []
        self._running: dict[int, str] = {}
        self._ended: list[str] = []
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
        if self._narrator.full:
            text = _lower(sentence(line, self._plant.servers))
            yield from self._narrator.tell(when, f"chat {chat}: {text}", line.event)
            return
        cause = str(line.fields.get("cause") or "")
        if line.event in _TROUBLE:
            self._without[cause] += 1
            words = f"without result ({in_words(cause)})"
            self._narrator.again(when, f"{line.event} {cause}", f"1 ping {words}", f"{{}} pings {words}")
        elif line.event in _COUNTED:
            self._narrator.again(when, line.event, *_COUNTED[line.event])
        elif line.event != Event.KEEPALIVE_OK:
            text = _lower(sentence(line, self._plant.servers))
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
            case Event.RESTORATION_FINISHED:
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
            some = ", ".join(self._ended[:10]) + (" ..." if len(self._ended) > 10 else "")
            found.append(f"Over when they were asked for: {some}. asyncchatd logs --chat ID tells of each.")
        return found or ["The log has only a part of it: look in older files for its beginning."]

    def _unfinished(self) -> list[str]:
        return [
            f"Restoration #{each}, begun at {began}, was not finished at the end of the log."
            for each, began in self._running.items()
        ]


def _for(away: timedelta | None) -> str:
    return "not back by the end of the log" if away is None else f"for {length(away.total_seconds())}"


_TROUBLE = {
    event.value for event in (Event.PING_RETRY, Event.PING_FAILED, Event.PING_FOREIGN_REPLY, Event.LEASE_LOST)
}
_COUNTED: Mapping[str, tuple[str, str]] = {
    Event.PUSH_RECEIVED: ("1 push", "{} pushes"),
    Event.PING_OK: ("1 ping answered", "{} pings answered"),
    Event.SESSION_REGISTERED: ("1 registration", "{} registrations"),
    Event.SESSION_TOKENS_CHANGED: ("1 chat with new tokens", "{} chats with new tokens"),
    Event.SESSION_COMPLETED: ("1 chat completed", "{} chats completed"),
    Event.SESSION_ENDED: ("1 chat over", "{} chats over"),
    Event.SESSION_REMOVED: ("1 chat removed", "{} chats removed"),
    Event.PUSH_SESSION_ADOPTED: ("1 chat adopted from a push", "{} chats adopted from pushes"),
    Event.PUSH_UNKNOWN_SESSION: (
        "1 push for a chat nobody registered",
        "{} pushes for chats nobody registered",
    ),
    Event.PUSH_TOKENS_IGNORED: ("1 late push", "{} late pushes"),
    Event.PING_REQUESTED: ("1 ping asked for", "{} pings asked for"),
}
"""Of single chats, and too many to tell each."""
