"""Bounds of what can be set, and of what is read."""

from __future__ import annotations

from datetime import timedelta

from asyncchatd.model import DAYS, durations

KIB = 1024

MOST = 1_000_000_000
"""The largest number of anything."""

LARGEST_FILE = 16 * KIB * KIB
"""Bytes of a configuration, or of a file of secrets: one that is longer, or endless as /dev/zero, is none."""

LONGEST = 36_500 * DAYS
"""The longest duration. A due time that far away is still a date that everything can write."""


def duration(value: object) -> timedelta:
    """A length of time above zero: a number with `ms`, `s`, `m`, `h` or `d`. Raises `ValueError`."""
    if isinstance(value, timedelta):
        length = value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError('expected a duration with its unit, such as "500ms", "6s", "30m", "1.5h" or "2d"')
    else:
        length = durations.parse(value if isinstance(value, str) else "")
    if length <= timedelta(0):
        raise ValueError("expected a duration above zero")
    if length > LONGEST:
        raise ValueError(f"expected a duration of at most {durations.text(LONGEST)}")
    return length


def at_least(key: str, least: timedelta | None, value: timedelta) -> timedelta:
    """The length of time, if it is no shorter than that of another key. Raises `ValueError`, with the key."""
    if least is not None and value < least:
        raise ValueError(f"expected at least {key}, which is {durations.text(least)}")
    return value
