"""What a chat waited for, what it was answered with, and how it ended: the parts of its story."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from asyncchatd.story.narrator import Told


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
    asked: int = 0
    """Pushes that had come when the application was last asked to acknowledge them."""
    lost_at: datetime | None = None
    causes: Counter[str] = field(default_factory=Counter)
    """Of tries without result."""
    nodes: set[str] = field(default_factory=set)
    """GMS nodes that were told to be in trouble."""
    until: datetime | None = None

    @property
    def covered(self) -> bool:
        """Whether an acknowledgement of the application's ends it: a push after it was asked is not covered."""
        return self.lost is None and 0 < self.pushes <= self.asked

    def length(self, now: datetime) -> timedelta:
        return (self.until or now) - self.since


@dataclass(slots=True)
class Ending:
    """How the chat ended."""

    time: datetime
    text: str
    removed: bool


@dataclass(slots=True)
class Acknowledged:
    """An acknowledged push whose events may still be told to be taken by consumers, before it is told itself."""

    told: Told
    when: datetime
    wait: Wait
    plain: bool
    last: float
    """The place in the transcript of the last event that the acknowledgement fetched."""
    takers: dict[str, float] = field(default_factory=dict)
    """Consumers that took it, and within how many seconds."""
