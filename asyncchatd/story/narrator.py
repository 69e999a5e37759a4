"""How a story is told: sentence after sentence, with the silence between them, and runs of the same drawn
together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from asyncchatd.story.read import Line

SILENCE = timedelta(minutes=1)
"""A gap of this length in a story is told."""


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


def clock_time(when: datetime) -> str:
    """The time of day where the reader is, with the date when it is far from what stands around it."""
    return f"{when.astimezone():%H:%M:%S}"


def dated(when: datetime) -> str:
    """Date and time where the reader is."""
    return f"{when.astimezone():%Y-%m-%d %H:%M:%S}"


def lowered(text: str) -> str:
    """The sentence as it goes on after a colon."""
    return text if text.startswith("GMS") else text[:1].lower() + text[1:]
