"""The findings of a check: how good each is, what it is about, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How good a finding is."""

    OK = "ok"
    NOTE = "note"
    """Nothing wrong is known, as it was not tried."""
    WARNING = "warning"
    """The daemon runs, but probably not as meant."""
    ERROR = "error"
    """The daemon does not start, or cannot do its work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found out."""

    level: Level
    key: str
    """The setting it is about, `gms.nodes[0]`; empty when it is about the file as a whole."""
    message: str
    """What was found."""
    advice: str = ""
    """What to do next; empty when it is fine."""


def ok(key: str, message: str) -> Finding:
    """A finding that is fine."""
    return Finding(Level.OK, key, message)


def note(key: str, message: str) -> Finding:
    """A finding that something was not tried."""
    return Finding(Level.NOTE, key, message)


def warning(key: str, message: str, advice: str) -> Finding:
    """A finding with which the daemon runs, but probably not as meant."""
    return Finding(Level.WARNING, key, message, advice)


def error(key: str, message: str, advice: str) -> Finding:
    """A finding with which the daemon does not start or cannot do its work."""
    return Finding(Level.ERROR, key, message, advice)
