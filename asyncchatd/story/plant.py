"""What every chat depends on: asyncchatd itself, GMS, and the Chat Servers, as the log tells of them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from asyncchatd.log import Event
from asyncchatd.model import durations
from asyncchatd.story.narrator import SILENCE, clock_time
from asyncchatd.story.read import Line
from asyncchatd.story.sentences import SERVER_EVENTS, sentence
from asyncchatd.story.words import Said

REMEMBERED = 1_000
"""Outages that are remembered."""


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
class PlantState:
    """What the log says of GMS, the Chat Servers and asyncchatd itself, as it goes."""

    servers: dict[str, str] = field(default_factory=dict)
    """Names by alias."""
    nodes: set[str] = field(default_factory=set)
    """Those that share a database and have written into this log: one, where it is not the logs of all together."""
    running: bool | None = None
    outages: deque[Spell] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    absences: deque[Spell] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    full_disks: deque[Spell] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """When the store could not be written, for this reason or another: nothing was pinged then."""

    def hear(self, line: Line) -> str | None:
        """Take it in; a sentence about it when it is worth one to everybody."""
        said = Said(line.fields, self.servers)
        name, alias = said.text("server", ""), said.text("alias", "")
        if line.event in SERVER_EVENTS and name and alias:
            self.servers[alias] = name
        if line.time is None:
            return None
        match line.event:
            case Event.DAEMON_STARTING if not self.several:
                return self._started(line, said)
            case Event.DAEMON_READY:
                self._back(line.time)
            case Event.DAEMON_STOPPING | Event.DAEMON_STOPPED | Event.DAEMON_FAILED if not self.several:
                return self._stopped(line, said)
            case Event.NODE_JOINED | Event.NODE_RETURNED:
                self.nodes.add(said.text("peer"))
                if self.several:
                    self.absences.clear()
                    self.running = True
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
            case Event.STORE_UNWRITABLE if self._open(self.full_disks) is None:
                self.full_disks.append(Spell(line.time))
            case Event.STORE_WRITABLE:
                if (full := self._open(self.full_disks)) is not None:
                    full.until = line.time
                elif said.has("outage_ms"):
                    began = line.time - timedelta(milliseconds=said.number("outage_ms"))
                    self.full_disks.append(Spell(began, line.time))
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
            again = f"{again}, {durations.in_words((line.time - away.since).total_seconds())} after it was stopped"
        self.running = True
        # A daemon that starts knows nothing of an outage that the one before it saw.
        if self.outage is not None:
            self.outage.cut, self.outage.until = True, line.time
        if (full := self._open(self.full_disks)) is not None:
            full.cut, full.until = True, line.time
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
    def several(self) -> bool:
        """These are the logs of several nodes: while one is away the others go on."""
        return len(self.nodes) > 1

    @property
    def outage(self) -> Spell | None:
        """The time in which no GMS node answers, while it lasts."""
        return self._open(self.outages)

    @staticmethod
    def _open(spells: Sequence[Spell]) -> Spell | None:
        return spells[-1] if spells and spells[-1].until is None else None

    @property
    def stopped_at(self) -> datetime | None:
        """When it was stopped, if nothing later tells of a start: the log ends there, and no absence is known of."""
        away = self._open(self.absences)
        return None if away is None else away.since

    def reasons(self, since: datetime, until: datetime) -> list[str]:
        """Why nothing could be done for a chat in this time: asyncchatd away, GMS away, the disk full."""
        found = []
        for spells, what in (
            (self.absences, "asyncchatd was not running"),
            (self.outages, "no GMS node answered"),
            (self.full_disks, "the store could not be written, so nothing was pinged,"),
        ):
            parts = [spell for spell in spells if spell.within(since, until)]
            if parts:
                lasted = sum((spell.within(since, until) for spell in parts), timedelta())
                when = ", ".join(spell.said() for spell in parts[:3])
                more = f" and {len(parts) - 3} times more" if len(parts) > 3 else ""
                found.append(f"{what} {when}{more} ({durations.in_words(lasted.total_seconds())} of it)")
        return found


_ALARMING = re.compile(r"exited|killed|failed|watchdog|out of memory|oom|restart job", re.IGNORECASE)
"""What systemd says of a unit that did not simply start or stop."""


def alarming(line: Line) -> str | None:
    """What systemd or the kernel said, when it may be why the daemon was not there."""
    message = str(line.fields.get("message") or "")
    who = str(line.fields.get("identifier") or "")
    if line.time is None or who not in {"systemd", "kernel"} or not _ALARMING.search(message):
        return None
    return f"{who} said: {message}"
