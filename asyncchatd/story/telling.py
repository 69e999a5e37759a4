"""What `asyncchatd logs` does: choose where the log is, read it, and print the story or the summary."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from asyncchatd.story import read
from asyncchatd.story.chat import ChatStory
from asyncchatd.story.narrator import Told, dated
from asyncchatd.story.sentences import CHAT_EVENTS
from asyncchatd.story.show import StoryLines, moment, narrate
from asyncchatd.story.summary import Summary
from asyncchatd.story.whole import PlantStory
from asyncchatd.terminal import say, say_json

CONTEXT = timedelta(days=1)
"""So far before `--since` the journal is read, to know what was so by then."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be read, and how it is to be told."""

    files: tuple[Path, ...] = ()
    """Empty: the journal, or what is piped in."""
    unit: str = "asyncchatd"
    since: datetime | None = None
    until: datetime | None = None
    follow: bool = False
    full: bool = False
    as_json: bool = False

    def from_journal(self) -> bool:
        """Whether nothing else is named or piped in. From cron, standard input is /dev/null: nothing."""
        if self.files:
            return False
        mode = os.fstat(sys.stdin.fileno()).st_mode
        return not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode))

    def raw_lines(self, since: datetime | None) -> Iterator[bytes]:
        """The log, as it was written. Raises `LogsError`, also when its time can hold nothing."""
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise read.LogsError(
                f"nothing lies between --since {dated(self.since)} and --until {dated(self.until)}"
            )
        if self.from_journal():
            return read.journal(self.unit, since=since, follow=self.follow)
        if not self.files or self.files == (Path("-"),):
            return read.pipe(sys.stdin.buffer, follow=self.follow)
        return read.files(self.files, follow=self.follow)


def tell(
    asked: Asked, *, chat_id: str | None = None, server: str | None = None, restoration: int | None = None
) -> bool:
    """Print the story of a chat, a Chat Server, a restoration, or of everything; whether the log knew of it and of the
    time that was asked for."""
    everything = chat_id is None and server is None and restoration is None
    full = asked.full or (everything and asked.follow)
    story: ChatStory | PlantStory
    if chat_id is not None:
        story = ChatStory(chat_id, full=full)
    else:
        story = PlantStory(server=server, restoration=restoration, full=full)
    reading, page = read.Reading(), StoryLines()
    wanted = _about(chat_id) if chat_id is not None else (lambda event, raw: True)
    lines = reading.of(asked.raw_lines(asked.since and asked.since - CONTEXT), wanted)
    some = False
    with suppress(KeyboardInterrupt):
        for told in narrate(story, lines, asked.since, asked.until):
            some = True
            _print(told, page, asked)
    until = min(filter(None, (asked.until, reading.last)), default=None)
    missing = _unreadable(reading, asked)
    verdict = [] if missing else story.verdict(until)
    missing = missing or _beside(reading, asked)
    if missing is not None:
        verdict.append(missing)
    elif story.known and not some and reading.lines:
        verdict.append(NOTHING if everything else NOTHING_OF_IT)
    if not story.known:
        verdict += _of_unknown(reading)
    _print_verdict(verdict, some, asked)
    return story.known and missing is None


def summarize(asked: Asked) -> bool:
    """Print what happened, in numbers; whether the log knew of the time that was asked for."""
    since = asked.since
    if since is None and asked.from_journal():
        since = moment("today", datetime.now(UTC))
    reading, summary = read.Reading(), Summary()
    first: datetime | None = None
    last: datetime | None = None
    for line in reading.of(asked.raw_lines(since), lambda event, raw: summary.wants(event)):
        if line is None or (line.time is not None and since is not None and line.time < since):
            continue
        if line.time is not None and asked.until is not None and line.time > asked.until:
            break
        first, last = first or line.time, line.time or last
        summary.hear(line)
    missing = _unreadable(reading, asked) or _beside(reading, asked)
    if asked.as_json:
        say_json(summary.shown(first, last, reading.lines, reading.foreign))
    elif missing is None:
        for text in summary.text(first, last, reading.lines, reading.foreign):
            say(text)
        if first is None:
            say(NOTHING)
    if missing is not None:
        say(missing, error=asked.as_json)
    return missing is None


NOTHING = "Nothing was logged in this time."
NOTHING_OF_IT = "Nothing was logged of it in this time."


def _unreadable(reading: read.Reading, asked: Asked) -> str | None:
    """Why what was read is no log, if so."""
    if not reading.lines:
        return None if asked.follow else "There was nothing to read."
    if reading.lines > reading.foreign:
        return None
    others = f"{reading.lines:,} were others'" if reading.lines > 1 else "the only one was another's"
    return (
        f"No line was one of asyncchatd's ({others}): is it the right file? It writes JSON lines unless log.format is"
        ' "console".'
    )


def _beside(reading: read.Reading, asked: Asked) -> str | None:
    """Why the log cannot know of the time that was asked for, if so. The journal goes on until now, however quiet it
    is."""
    if reading.first is None or reading.last is None or asked.follow:
        return None
    if asked.until is not None and reading.first > asked.until:
        return f"The log begins at {dated(reading.first)}, after --until {dated(asked.until)}."
    ends = reading.last if not asked.from_journal() else max(reading.last, datetime.now(UTC))
    if asked.since is not None and ends < asked.since:
        return f"The log ends at {dated(ends)}, before --since {dated(asked.since)}."
    return None


def _about(chat_id: str) -> Callable[[str, bytes], bool]:
    """Lines about one chat, and all that are not about any. Text that JSON would write otherwise than it is
    cannot be searched for; then every line is parsed."""
    plain = chat_id.isascii() and chat_id.isprintable() and not set(chat_id) & set('"\\/')
    needle = chat_id.encode(errors="replace") if plain else b""
    return lambda event, raw: event not in CHAT_EVENTS or needle in raw


def _print(told: Told, page: StoryLines, asked: Asked) -> None:
    if asked.as_json:
        say_json(
            {
                "time": told.time,
                "text": told.text,
                "event": told.event or None,
                "gap_seconds": round(told.gap.total_seconds(), 3),
                "keepalives_answered": told.pings,
            },
            line=True,
        )
        return
    for text in page.lines(told):
        say(text)


def _of_unknown(reading: read.Reading) -> list[str]:
    """What is to be said of a log that does not know what was asked for."""
    if reading.first is None or reading.last is None:
        return []
    found = [
        f"The log goes from {dated(reading.first)} to {dated(reading.last)}. Is the name right? Older files may"
        " know it: name them too (asyncchatd logs ... FILE FILE.1.gz). What the daemon knows now is shown by"
        " asyncchatd sessions, servers and restorations."
    ]
    if reading.foreign:
        found.append(f"{reading.foreign:,} of {reading.lines:,} lines were not asyncchatd's.")
    return found


def _print_verdict(verdict: list[str], some: bool, asked: Asked) -> None:
    """Print how it stood, apart from the story where there was `some`."""
    if asked.as_json:
        say_json({"verdict": verdict}, line=True)
        return
    if verdict and some:
        say()
    for text in verdict:
        say(text)
