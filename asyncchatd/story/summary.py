"""What happened in a stretch of the log, in numbers: for the morning after, or the handing over of a shift."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from asyncchatd.log import Event
from asyncchatd.model import durations
from asyncchatd.story.narrator import dated
from asyncchatd.story.plant import PlantState, Spell, alarming
from asyncchatd.story.read import Line
from asyncchatd.story.sentences import CHAT_EVENTS, SUMMED, sentence
from asyncchatd.story.words import Said, counted, number

SLOWEST = 5
TOLD = 20
"""At most so many lines about single restorations, outages, losses."""

STEPS = 16
"""Buckets for each doubling of a time: what is said of the half and the 95 % is right to 5 %."""


@dataclass(slots=True)
class Spread:
    """Times, in buckets: constant memory however many."""

    buckets: Counter[int] = field(default_factory=Counter)
    longest: list[tuple[float, datetime, str]] = field(default_factory=list)

    def add(self, seconds: float, when: datetime, chat: str) -> None:
        self.buckets[round(math.log2(max(seconds, 0.0005)) * STEPS)] += 1
        heapq.heappush(self.longest, (seconds, when, chat))
        if len(self.longest) > SLOWEST:
            heapq.heappop(self.longest)

    @property
    def count(self) -> int:
        return self.buckets.total()

    def share(self, share: float) -> float:
        """Seconds within which this share of them was."""
        below, wanted = 0, share * self.count
        for bucket, count in sorted(self.buckets.items()):
            below += count
            if below >= wanted:
                return min(float(2 ** (bucket / STEPS)), max(self.longest)[0])
        return 0.0


class Summary:
    """Lines in, numbers out."""

    def __init__(self) -> None:
        self._plant = PlantState()
        self._events: Counter[str] = Counter()
        self._levels: Counter[str] = Counter()
        self._pushed: dict[str, datetime] = {}
        """First push of each chat that is not yet acknowledged."""
        self._acknowledged = Spread()
        self._told: dict[str, Spread] = {}
        """By consumer: how long after they were fetched it took batches of events."""
        self._events_told: Counter[str] = Counter()
        self._pushes: Counter[str] = Counter()
        self._registered = 0
        self._begun = 0
        """Chats that clients began at the gateway, or were taken over from there."""
        self._ended: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._happened: list[tuple[datetime, str]] = []
        self._left_out = 0

    def wants(self, event: str) -> bool:
        """All but keepalives at their first try."""
        return event != Event.KEEPALIVE_OK

    def hear(self, line: Line) -> None:
        """Count it."""
        if line.time is None:
            return
        if not line.event:
            if (text := alarming(line)) is not None:
                self._note(line.time, text)
            return
        self._events[line.event] += 1
        self._levels[line.level] += 1
        told = "" if line.event in CHAT_EVENTS else self._plant.hear(line) or ""
        said = Said(line.fields, self._plant.servers)
        match line.event:
            case Event.PUSH_RECEIVED:
                self._pushes[said.text("known")] += 1
                if said.has("chat_id") and said.text("known") != "ended":
                    self._pushed.setdefault(said.text("chat_id"), line.time)
            case Event.PING_OK:
                self._answered(said, line.time)
            case Event.ACKNOWLEDGEMENT_CAME:
                self._answered(said, line.time)
            case Event.EVENTS_DELIVERED | Event.EVENTS_SHOWN:
                self._events_told[consumer := said.taker()] += round(said.number("count"))
                self._told.setdefault(consumer, Spread()).add(
                    said.number("lag_ms") / 1000, line.time, said.text("chat_id")
                )
            case Event.SESSIONS_REGISTERED:
                # Chats, not registrations: a chat may be registered again. Logs of before do not say which were.
                self._registered += round(said.number("created" if "created" in line.fields else "count"))
            case Event.SESSION_REGISTERED:
                self._registered += said.text("outcome") == "created"
            case Event.CHAT_OPENED | Event.CHAT_ADOPTED:
                self._begun += 1
            case Event.SESSION_ENDED:
                self._pushed.pop(said.text("chat_id"), None)
                reason = said.text("reason", "")
                self._ended[f"GMS said so to {_article(reason)} ping" if reason else "GMS said so"] += 1
            case Event.SESSION_REMOVED:
                self._pushed.pop(said.text("chat_id"), None)
                self._ended[
                    "they were ended over the control API"
                    if said.text("cause") == "request"
                    else said.cause()
                ] += 1
            case Event.PING_RETRY:
                self._retries[said.cause()] += 1
            case Event.PING_REFUSED:
                self._refusals[said.cause()] += 1
            case _ if told and (line.event in SUMMED or line.level in {"error", "critical"}):
                self._note(line.time, told)
            case _ if line.event in SUMMED or line.event == Event.PING_FAILED:  # of one chat
                self._note(line.time, f"chat {said.text('chat_id')}: {sentence(line, self._plant.servers)}")

    def _answered(self, said: Said, when: datetime) -> None:
        pushed = self._pushed.pop(said.text("chat_id"), None)
        if pushed is not None:
            self._acknowledged.add((when - pushed).total_seconds(), when, said.text("chat_id"))
        elif said.text("reason") == "acknowledge":
            self._acknowledged.add(said.number("waited_ms") / 1000, when, said.text("chat_id"))

    def _note(self, when: datetime, text: str) -> None:
        """The first and the last happenings stay."""
        self._happened.append((when, text))
        if len(self._happened) > 2 * TOLD:
            del self._happened[TOLD]
            self._left_out += 1

    def shown(
        self, since: datetime | None, until: datetime | None, lines: int, foreign: int
    ) -> dict[str, object]:
        """All of it as plain values, for programs."""
        return {
            "since": since,
            "until": until,
            "lines": lines,
            "foreign_lines": foreign,
            "levels": dict(self._levels),
            "events": dict(self._events.most_common()),
            "registered": self._registered,
            "begun": self._begun,
            "ended": dict(self._ended.most_common()),
            "pushes": dict(self._pushes.most_common()),
            "acknowledged": self._acknowledged.count,
            "acknowledged_p50_seconds": round(self._acknowledged.share(0.5), 4),
            "acknowledged_p95_seconds": round(self._acknowledged.share(0.95), 4),
            "slowest_acknowledgements": [
                {"seconds": round(seconds, 3), "time": when, "chat_id": chat}
                for seconds, when, chat in sorted(self._acknowledged.longest, reverse=True)
            ],
            "unacknowledged": len(self._pushed),
            "delivered": {
                consumer: {
                    "events": self._events_told[consumer],
                    "p50_seconds": round(lags.share(0.5), 4),
                    "p95_seconds": round(lags.share(0.95), 4),
                }
                for consumer, lags in sorted(self._told.items())
            },
            "pings_without_result": dict(self._retries.most_common()),
            "pings_refused": dict(self._refusals.most_common()),
            "gms_outage_seconds": round(_sum(self._plant.outages, until).total_seconds(), 1),
            "daemon_absent_seconds": round(_sum(self._absences, until).total_seconds(), 1),
            "daemon_stopped_at": self._plant.stopped_at,
            "store_unwritable_seconds": round(_sum(self._plant.full_disks, until).total_seconds(), 1),
            "happened": [{"time": when, "text": text} for when, text in self._happened],
        }

    def text(self, since: datetime | None, until: datetime | None, lines: int, foreign: int) -> Iterator[str]:
        """All of it in words."""
        if since is None or until is None:
            return
        yield f"{dated(since)} to {dated(until)}, {number(lines, 'line')}, {number(foreign, 'line')} of others"
        yield ""
        yield from self._of_chats()
        yield from self._of_deliveries()
        yield from self._of_pings()
        for spells, what in (
            (self._plant.outages, "No GMS node answered"),
            (self._absences, "asyncchatd was not running"),
            (self._plant.full_disks, "Store not writable"),
        ):
            if spells:
                yield _fact(
                    what,
                    f"{number(len(spells), 'time')}, {durations.in_words(_sum(spells, until).total_seconds())}",
                )
        if self._plant.stopped_at is not None:
            yield _fact("Stopped", f"{dated(self._plant.stopped_at)}, and not started again in what was read")
        yield _fact("Said", ", ".join(f"{count:,} {level}" for level, count in self._levels.most_common()))
        yield from self._of_the_day()

    @property
    def _absences(self) -> list[Spell]:
        """Those that are over: behind a last stop there is nothing to know of."""
        return [spell for spell in self._plant.absences if spell.until is not None]

    def _of_chats(self) -> Iterator[str]:
        ended = "".join(f", {count:,} of them because {why}" for why, count in self._ended.most_common())
        begun = f", {self._begun:,} begun by clients" if self._begun else ""
        yield _fact("Chats", f"{self._registered:,} registered{begun}, {self._ended.total():,} over{ended}")
        kinds = {"resent": "sent again", "unknown": "for unknown chats", "ended": "for chats that were over"}
        notes = "".join(
            f", {count:,} {kinds[kind]}" for kind, count in self._pushes.most_common() if kind in kinds
        )
        yield _fact("Pushes", f"{self._pushes.total():,} received{notes}")
        times = self._acknowledged
        if times.count:
            waiting = f", {len(self._pushed):,} chats still waiting at the end" if self._pushed else ""
            yield _fact(
                "Acknowledged",
                f"{times.count:,}; half of them within {durations.in_words(times.share(0.5))}, 95 % within"
                f" {durations.in_words(times.share(0.95))}{waiting}",
            )
            slowest = ", ".join(
                f"{durations.in_words(seconds)} (chat {chat}, {dated(when)})"
                for seconds, when, chat in sorted(times.longest, reverse=True)
            )
            yield _fact("Slowest", slowest)

    def _of_deliveries(self) -> Iterator[str]:
        for consumer, lags in sorted(self._told.items()):
            yield _fact(
                "Delivered",
                f"{number(self._events_told[consumer], 'event')} to {consumer}; half of the batches within"
                f" {durations.in_words(lags.share(0.5))} of being fetched, 95 % within"
                f" {durations.in_words(lags.share(0.95))}",
            )

    def _of_pings(self) -> Iterator[str]:
        for counts, what in ((self._retries, "Pings without result"), (self._refusals, "Pings refused")):
            if counts:
                causes = "; ".join(counted(count, cause) for cause, count in counts.most_common(6))
                yield _fact(what, f"{counts.total():,} ({causes})")

    def _of_the_day(self) -> Iterator[str]:
        yield ""
        if not self._happened:
            yield "Nothing went wrong."
        for number_, (when, text) in enumerate(self._happened):
            if self._left_out and number_ == TOLD:
                yield f"… {self._left_out:,} more; --since and --until narrow it down"
            yield f"{dated(when)}  {text}"


def _article(reason: str) -> str:
    return f"an {reason}" if reason.startswith("a") else f"a {reason}"


def _sum(spells: Sequence[Spell], now: datetime | None) -> timedelta:
    """Nothing when no line was heard, and so no spell began."""
    if now is None:
        return timedelta()
    return sum(((spell.until or now) - spell.since for spell in spells), timedelta())


def _fact(name: str, words: str) -> str:
    return f"{name + ':':28}{words}"
