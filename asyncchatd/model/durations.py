"""Lengths of time: how they are read, and how they are written.

A file has them exactly and can be read back. People have them in words, as precise as is of use. What was measured, and
stands in a table of measurements, has a digit more, so that two of them can be compared.
"""

from __future__ import annotations

import re
from datetime import timedelta

MS = timedelta(milliseconds=1)
SECONDS = timedelta(seconds=1)
MINUTES = timedelta(minutes=1)
HOURS = timedelta(hours=1)
DAYS = timedelta(days=1)

_UNITS = {"d": DAYS, "h": HOURS, "m": MINUTES, "s": SECONDS, "ms": MS}
_TEXT = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(_UNITS)})")


def parse(text: str) -> timedelta:
    """The length that a file or an option writes: a number with `ms`, `s`, `m`, `h` or `d`.

    What is beyond all times is `timedelta.max`. Raises `ValueError`.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError('expected a duration such as "500ms", "6s", "30m", "1.5h" or "2d"')
    try:
        return float(match[1]) * _UNITS[match[2]]
    except OverflowError:
        return timedelta.max


def text(length: timedelta) -> str:
    """A length as a file writes it, which `parse` reads as the very same: `30m`, `1.25s`, `500ms`."""
    unit, size = next(
        ((unit, size) for unit, size in _UNITS.items() if length >= size and not length % (size / 100)),
        ("ms", MS),
    )
    return f"{str(length / size).removesuffix('.0')}{unit}"


def in_words(seconds: float) -> str:
    """A length for people: `0.03 s`, `4.2 s`, `45 s`, `28 min`, `3 h 12 min`, `4 d 2 h`."""
    if seconds < 0.0095:
        return f"{seconds:.1g} s" if seconds >= 0.0005 else "0 s"
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def measured(seconds: float | None, never: str = "-") -> str:
    """A length that was measured: `34 ms` below a second, else `131.4 s`; `never` where there was none."""
    if seconds is None:
        return never
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"
