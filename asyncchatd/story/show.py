"""How a story is shown: times in front, gaps between, the verdict below; or a JSON object for each line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime, time, timedelta

from asyncchatd.config import duration
from asyncchatd.model import durations
from asyncchatd.story.narrator import SILENCE, Story, Told, clock_time
from asyncchatd.story.read import NEWEST, OLDEST, Line
from asyncchatd.story.words import number


class StoryLines:
    """Writes a story down, line by line."""

    def __init__(self) -> None:
        self._day = ""

    def lines(self, told: Told) -> Iterator[str]:
        """The day when it is another one, the silence before it, and the sentence."""
        if told.gap >= SILENCE:
            pings = f"; {number(told.pings, 'keepalive')} answered" if told.pings else ""
            yield f"          … {durations.in_words(told.gap.total_seconds())} of silence{pings} …"
        if told.time is None:
            yield f"          {told.text}"
            return
        day = f"{told.time.astimezone():%A, %Y-%m-%d (%Z)}"
        if day != self._day:
            yield f"--- {day}"
            self._day = day
        yield f"{clock_time(told.time)}  {told.text}"


def narrate(
    story: Story, lines: Iterable[Line | None], since: datetime | None, until: datetime | None
) -> Iterator[Told]:
    """The sentences of a story that fall between two times. What came before is heard, not told: what was
    known by then belongs to the verdict."""
    for line in lines:
        if line is None:
            heard = story.pause()
        elif until is not None and line.time is not None and line.time > until:
            break
        else:
            heard = story.hear(line)
        yield from (told for told in heard if _shown(told, since))
    yield from (told for told in story.pause() if _shown(told, since))


def _shown(told: Told, since: datetime | None) -> bool:
    return since is None or (told.time is not None and told.time >= since)


def moment(text: str, now: datetime) -> datetime:
    """A point in time as people give it: `2h` ago, `today`, `yesterday`, `14:30`, `2026-11-22 14:30`. Without
    an offset it is local time. `now` is aware. Raises `ValueError`."""
    word = text.strip().lower()
    today = now.astimezone().date()
    if word == "now":
        return now
    if word in _DAYS:
        return datetime.combine(today + timedelta(days=_DAYS[word]), time()).astimezone()
    with suppress(ValueError):
        return now - duration(word.removesuffix("ago").strip())
    try:
        if re.fullmatch(r"\d?\d:\d\d(:\d\d)?", word):
            at = time.fromisoformat(word if word[1].isdigit() else f"0{word}")
            return datetime.combine(today, at).astimezone()
        found = datetime.fromisoformat(text.strip().upper().replace(" UTC", "Z"))
        if not OLDEST.year <= found.year < NEWEST.year:
            raise ValueError
        return found.astimezone()
    except ValueError:
        raise ValueError(
            f"{text!r} is no time: say 2h, 30m, today, yesterday, 14:30, or 2026-11-22 14:30"
        ) from None


_DAYS = {"today": 0, "yesterday": -1}
