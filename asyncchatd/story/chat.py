"""What happened to one chat, and why.

A story keeps what matters to its subject, says each event in a sentence, draws runs of the same together,
and ends with a verdict. A chat depends on its Chat Server, on GMS and on asyncchatd itself; what happened to
those while the chat lived belongs to its story, because a chat is seldom lost by its own fault.

    story = ChatStory("00048aAPEQJ8000U")
    for line in lines:
        for told in story.hear(line): ...
    story.verdict(until)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from asyncchatd.log import Event
from asyncchatd.model import Cause, durations
from asyncchatd.story.deliveries import Deliveries
from asyncchatd.story.narrator import SILENCE, Narrator, Told, clock_time, dated
from asyncchatd.story.phrases import ASKED, told_by_push
from asyncchatd.story.plant import PlantState, alarming
from asyncchatd.story.read import Line
from asyncchatd.story.sentences import CHAT_EVENTS, PLANT_EVENTS, SERVER_EVENTS, sentence
from asyncchatd.story.waiting import Acknowledged, Ending, Wait
from asyncchatd.story.words import Said, counted, in_words, number

WORTH_TELLING = timedelta(seconds=30)
"""A chat that waited so long for an answer is told to have waited, in the verdict."""

REMEMBERED = 1_000
"""Sentences about other Chat Servers whose turn may come."""


class ChatStory:
    """The story of one chat."""

    def __init__(self, chat_id: str, *, full: bool = False) -> None:
        """`full`: every event has its own sentence."""
        self._chat_id = chat_id
        self._plant = PlantState()
        self._narrator = Narrator(full=full)
        self._alias: str | None = None
        self._first: datetime | None = None
        self._heard: datetime | None = None
        self._incomplete = False
        self._refused: str | None = None
        self._leave: tuple[datetime, str] | None = None
        self._wait: Wait | None = None
        self._longest: Wait | None = None
        self._held: Told | None = None
        self._acknowledged: Acknowledged | None = None
        self._deliveries = Deliveries(chat_id)
        self._smooth = 0
        """Smoothly acknowledged pushes told one after the other."""
        self._smooth_for: tuple[str, ...] = ()
        """The consumers that took what they brought."""
        self._smooth_at: datetime | None = None
        self._run_slowest = 0.0
        self._run_latest = 0.0
        """Of the deliveries, in seconds."""
        self._others: deque[tuple[str, bool, Told]] = deque(maxlen=REMEMBERED)
        """What was said of other Chat Servers, by alias, and whether it was a loss: one of them may turn out
        to be this chat's."""
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
        self._deliveries.hear(line)
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
                self._incomplete = False
                yield from self._ping_ok(line, when, said)
                return
            case Event.KEEPALIVE_OK:
                self._incomplete = False
                yield from self._keepalive(line, when)
                return
            case Event.PING_RETRY | Event.PING_FAILED | Event.PING_FOREIGN_REPLY:
                yield from self._retry(line, when, said)
                return
            case Event.EVENTS_DELIVERED | Event.EVENTS_SHOWN if self._taken(said):
                return
            case Event.ACKNOWLEDGEMENT_ASKED if self._wait is not None:
                self._wait.asked = self._wait.pushes
            case Event.ACKNOWLEDGEMENT_CAME if self._wait is not None and self._wait.covered:
                yield from self._acknowledged_by_application(line, when)
                return
            case Event.SESSION_TOKENS_CHANGED if not self._narrator.full and self._alias == was:
                return  # told by the ping that brought them, or of no interest: only the keys changed
            case Event.PING_REFUSED:
                self._refused = said.cause()
                self._begin(when, f"GMS refused its ping: {said.cause()}")
            case Event.PUSH_UNKNOWN_SESSION | Event.SECURE_KEY_DAMAGED:
                self._incomplete = True
            case Event.SESSION_COMPLETED | Event.PUSH_SESSION_ADOPTED | Event.SESSION_REGISTERED:
                self._incomplete = False
            case Event.SESSION_ENDED | Event.SESSION_REMOVED:
                yield from self._end(line, when)
                return
        yield from self._tell(when, self._sentence(line), line.event)

    def _pushed(self, line: Line, when: datetime, said: Said) -> Iterator[Told]:
        if said.has("quit_code") or said.fields.get("quit_code") == 0:
            self._leave = (when, told_by_push(said))
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
        later = durations.in_words((when - wait.since).total_seconds()) if wait else said.length("waited_ms")
        tries = said.number("attempt")
        at_try = f", at try {tries:g}" if tries > 1 else ""
        held, self._held = self._held, None
        places = said.places()
        if held is not None and wait is not None:
            fetched = f" with {places}" if places else ""
            text = f"{held.text} (acknowledged {later} later{fetched}{at_try}{moved})"
            told, plain = replace(held, text=text), not (moved or at_try)
            if not places:
                yield from self._smoothly(told, when, wait, plain=plain)
                return
            yield from self._release()
            self._acknowledged = Acknowledged(told, when, wait, plain, said.number("last_index"))
            return
        if held is not None:
            yield from self._narrator.tell(held.time, held.text, held.event)
        if wait is not None and wait.lost_at is not None:
            later = durations.in_words((when - wait.lost_at).total_seconds())
            text = f"Restored {later} after {wait.lost} was lost{at_try}{moved}"
        elif wait is not None and wait.pushes == 1:
            text = f"The push was acknowledged {later} after it came{at_try}{moved}"
        elif wait is not None and wait.push is not None:
            text = f"{number(wait.pushes, 'push', 'pushes')} acknowledged, the first after {later}{at_try}{moved}"
        elif wait is not None:
            text = f"Answered at last, {later} after the trouble began{at_try}{moved}"
        elif said.text("reason") == "restore":
            text = f"Restored{at_try}{moved}, {later} after it was due"
        else:
            text, places = self._sentence(line), ""
        yield from self._tell(when, f"{text}; it fetched {places}" if places else text, line.event)

    def _acknowledged_by_application(self, line: Line, when: datetime) -> Iterator[Told]:
        wait = self._close(when)
        assert wait is not None
        later = durations.in_words((when - wait.since).total_seconds())
        came = "it came" if wait.pushes == 1 else f"the first of {wait.pushes} came"
        yield from self._tell(when, f"{self._sentence(line)}, {later} after {came}", line.event)

    def _taken(self, said: Said) -> bool:
        """Whether this delivery is told together with the push that brought the event."""
        push, tries = self._acknowledged, said.number("tries") if said.has("tries") else 1
        if push is None or self._narrator.full or said.number("last_index") != push.last or not said.places():
            return False
        consumer, later = said.taker(), said.length("lag_ms")
        again = f", at try {tries:g}" if tries > 1 else ""
        text = f"{push.told.text.removesuffix(')')}; {consumer} took it {later} after that{again})"
        push.told, push.plain = replace(push.told, text=text), push.plain and not again
        push.takers[consumer] = said.number("lag_ms") / 1000
        return True

    def _smoothly(
        self,
        told: Told,
        when: datetime,
        wait: Wait,
        *,
        plain: bool,
        takers: Mapping[str, float] | None = None,
    ) -> Iterator[Told]:
        """An acknowledged push. The third and later ones of a quick run are drawn together."""
        near = self._smooth_at is not None and wait.since - self._smooth_at < SILENCE
        takers = takers or {}
        consumers = tuple(sorted(takers))
        if not near or not plain or self._narrator.full or consumers != self._smooth_for:
            self._smooth = 0
        self._smooth_at, self._smooth_for = when, consumers
        took = (when - wait.since).total_seconds()
        if self._smooth == 2:
            self._run_slowest = max(self._run_slowest, took)
            self._run_latest = max(self._run_latest, *takers.values(), 0.0)
            words = f"acknowledged within {durations.in_words(self._run_slowest)}"
            if consumers:
                taken = durations.in_words(self._run_latest)
                words += f", and taken by {' and '.join(consumers)} within {taken}"
            self._narrator.again(when, "smooth", f"1 more pushed, {words}", f"{{}} more pushed, each {words}")
            return
        self._run_slowest = self._run_latest = 0.0
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
        if self._wait is None:  # it is over, and one that was on its way comes back
            yield from self._tell(when, self._sentence(line), line.event)
            return
        self._wait.causes[cause] += 1
        if self._wait.causes[cause] > 1 and not self._narrator.full:
            yield from self._release()
            words = f"without result ({in_words(cause)})"
            self._narrator.again(when, cause, f"1 more try {words}", f"{{}} more tries {words}")
        else:
            yield from self._tell(when, self._sentence(line), line.event)

    def _end(self, line: Line, when: datetime) -> Iterator[Told]:
        waited = self._close(when)
        if waited is not None:
            self._longest = waited
        if self.ending is None:
            removed = line.event == Event.SESSION_REMOVED
            self.ending = Ending(when, self._sentence(line), removed)
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
                self._others.append((alias, _is_loss(line), told))
        elif line.event in PLANT_EVENTS:
            if self._lives and not (
                line.event == Event.DAEMON_STOPPING and line.fields.get("cause") == ASKED
            ):
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
        if self._lives and _is_loss(line):
            name = self._plant.servers.get(alias) or str(line.fields.get("server") or f"alias {alias}")
            self._begin(when, f"its Chat Server {name} was lost", lost=name)

    def _catch_up(self, said: Said) -> Iterator[Told]:
        """The log did not say where the chat was, but now it does: tell what was said of that Chat Server."""
        was = said.text("previous_alias", "") or said.text("alias", "")
        if self._alias is not None or not was:
            return
        others, self._others = self._others, deque(maxlen=REMEMBERED)
        for alias, is_loss, told in others:
            recent = self._narrator.last is None or (
                told.time is not None and told.time >= self._narrator.last
            )
            if alias != was or not recent or told.time is None:
                continue
            if is_loss and said.text("reason", "") in {"restore", "acknowledge"}:
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
        self._refused = None
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
        push, self._acknowledged = self._acknowledged, None
        if push is not None:
            yield from self._smoothly(push.told, push.when, push.wait, plain=push.plain, takers=push.takers)
        held, self._held = self._held, None
        if held is not None:
            yield from self._narrator.tell(held.time, f"{held.text}", held.event)

    # -- the end -----------------------------------------------------------------------------------------

    def verdict(self, until: datetime | None) -> list[str]:
        """How the chat stood at the end, and why."""
        if self._first is None or self._heard is None:
            return [f"The log does not speak of the chat {self._chat_id}."]
        now = until or self._heard
        untaken = self._deliveries.verdict(now)
        if self.ending is None:
            found = self._how_it_stands(now, all_taken=not untaken)
        else:
            found = self._how_it_ended(self.ending)
        found += untaken
        longest = self._longest
        if (
            longest is not None
            and longest.until is not None
            and longest.length(now) >= WORTH_TELLING
            and (self.ending is None or longest.until < self.ending.time)
        ):
            found += [
                f"Its longest wait was {durations.in_words(longest.length(now).total_seconds())}, from"
                f" {dated(longest.since)}: {longest.why}.",
                *self._during(longest, longest.until),
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
            before = durations.in_words((ending.time - waited.lost_at).total_seconds())
            found = [
                f"The chat was over when GMS first answered for it again, at {dated(ending.time)}. Its Chat Server"
                f" {waited.lost} had been lost {before} before: most likely the chat was lost with it."
            ]
            if waited.push is not None:
                found.append(f"The push of {clock_time(waited.push)} was never acknowledged.")
            return found + self._during(waited, ending.time)
        found = [f"At {dated(ending.time)} {ending.text}."]
        if self._leave is not None:
            found.append(f"Before that, at {dated(self._leave[0])}, {self._leave[1]}.")
        else:
            found.append("The log does not say who ended it: no push told of somebody leaving before.")
        if waited is not None and waited.until == ending.time and waited.length(ending.time) > WORTH_TELLING:
            lasted = durations.in_words(waited.length(ending.time).total_seconds())
            found += [f"It had waited {lasted} by then: {waited.why}.", *self._during(waited, ending.time)]
        return found

    def _how_it_stands(self, now: datetime, *, all_taken: bool) -> list[str]:
        heard = f"last heard of at {dated(self._heard)}" if self._heard else ""
        if self._incomplete:
            return [
                f"The chat is known only from pushes without all its tokens, {heard}: it cannot be pinged until"
                " the application registers it (PUT /v1/sessions/...)."
            ]
        if self._wait is not None:
            waiting = durations.in_words(self._wait.length(now).total_seconds())
            found = [
                f"At the end of the log ({dated(now)}) the chat still waits, since {waiting}: {self._wait.why}.",
                *self._during(self._wait, now),
            ]
            if len(self._plant.nodes) == 1:
                found.append(
                    f"This is the log of {min(self._plant.nodes)} alone: another node may have pinged the chat"
                    " since. Name the logs of all: docs/logs.md, Several nodes."
                )
            return found
        waiting = "nothing is waiting" if all_taken else "no ping is waiting, but events are"
        found = [f"Still alive at the end of the log ({dated(now)}), {heard}; {waiting}."]
        if self._plant.running is False:
            found.append(
                "But asyncchatd is not running since"
                f" {dated(self._plant.absences[-1].since)}: nobody pings it."
            )
        elif self._alias:
            found.append(f"It is on {Said({'alias': self._alias}, self._plant.servers).server()}.")
        return found

    def _during(self, wait: Wait, until: datetime) -> list[str]:
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
            reasons = [
                "the log shows no trouble in that time; perhaps its turn was late under restoration.max_rate"
            ]
        return [f"Why: {'; '.join(reasons)}."]


def _is_loss(line: Line) -> bool:
    """Whether its Chat Server has lost its sessions by this. A restoration may also have been asked for, or
    begin while the server still runs."""
    if line.event == Event.RESTORATION_STARTED:
        return line.fields.get("cause") not in (Cause.OPERATOR, Cause.ANNOUNCED)
    return line.event in _LOSSES


_LOSSES = {
    event.value for event in (Event.SERVER_DOWN, Event.SERVER_RESTARTED, Event.SERVER_IDENTITY_CHANGED)
}
