"""The judgement of one read of a health page: `step`, a pure function of what was known and what was seen.

The words are HAProxy's: `fall` failed reads in a row make a server down, `rise` good ones make it up again, and while
in doubt it is read faster.

Who answered is stored (`identity.py` tells one process from another). A server that is another process than
before has lost its sessions, also when nobody was looking while it happened. When a process comes *back* there
are two of them behind one address, a balancer's: that is said, and no reason to restore anything, since whoever
answers next says nothing of the other. So there are when other nodes go on reading the known one. Each process that
appears is the reason for one restoration at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto

from asyncchatd.config import ChatServerSettings, WatcherSettings
from asyncchatd.model import Cause, ChatServer, Loss, Ms, Process, ServerState, Value, replace
from asyncchatd.watcher import identity
from asyncchatd.watcher.identity import Kin
from asyncchatd.watcher.page import Page, Seen, Unreachable, Unreadable, Unseen
from asyncchatd.watcher.votes import (
    ALONE,
    Elsewhere,
    Heard,
    elsewhere,
    fell_elsewhere,
    is_most_read,
    lead,
    readers,
)
from asyncchatd.wire import HealthPage

STEADY_MS = 10 * 60_000
"""One process must answer alone for so long before an address where several did is believed again."""

BELIEVED_AGAIN_MS = 3_600_000
"""Counters alone tell of one restart an hour: two containers behind one address must not tell of one each time."""

TOLD_AGAIN_MS = 10 * 60_000
"""A server that nobody can look at is spoken of again: whatever becomes of it goes unseen."""

DISPUTED = "several processes answer at its health_url: make it the server's own address, not a balancer's"
"""What is said of a server as long as it is disputed who answers."""

ELSEWHERE = "{known} answers other nodes, and {other} this one"
"""Why it is disputed where each node reads one process alone."""


class Together(Enum):
    """Whether the counters of other servers ran backwards together with one's own."""

    ALONE = auto()
    UNKNOWN = auto()
    """Not all of them have been read since."""
    ALL = auto()


class Watch(Value, frozen=True):
    """What is known of one Chat Server between two reads."""

    server: ChatServer
    configured_alias: str | None = None
    failures: int = 0
    """Reads in a row that reached nobody."""
    successes: int = 0
    """Good reads in a row while down."""
    owed: bool = False
    """Down, and whose sessions it had is known only now: they were never made due."""
    changed: Process | None = None
    """Another process than the known one, to be confirmed by one more read."""
    counters: Mapping[str, float] = {}
    in_doubt: bool = False
    """The counters ran backwards, to be confirmed by one more read."""
    fell_at: Ms | None = None
    """When counters last ran backwards."""
    fell_after: Ms = 0
    """When they were read before that."""
    believed_from: Ms = 0
    """Until then counters alone are not believed: nobody restarts a server that often."""
    from_record: bool = False
    """What is known was not read here, or before the daemon started."""
    ahead: Ms = 0
    """By how much the wall clock was ahead of the steady one at the last page."""
    away: int = 0
    """Pages in a row that were not of the known process."""
    answering: Process | None = None
    alone_since: Ms = 0
    """Since when nobody else has answered."""
    unreadable: bool = False
    unseen: bool = False
    """Nobody could look at it the last time."""
    told: tuple[str, Ms] = ("", 0)
    """Why it could not be looked at, as it was said last, and when by the steady clock."""
    otherwise: bool = False
    """The page says another `app_dbid` than is configured, which is what counts."""

    @property
    def alias(self) -> str | None:
        """The alias whose sessions are concerned."""
        return self.configured_alias or self.server.app_dbid


class Turn(Enum):
    """What happened between two reads, for the log."""

    UP = auto()
    SUSPECT = auto()
    DOWN = auto()
    RESTARTED = auto()
    UNREADABLE = auto()
    UNSEEN = auto()
    IDENTITY = auto()
    DISPUTED = auto()
    COUNTERS = auto()


class Step(Value, frozen=True):
    """The result of one read."""

    watch: Watch
    turns: tuple[Turn, ...] = ()
    lost: tuple[Loss, ...] = ()
    """Their sessions must be pinged."""
    why: str | None = None


class Look(Value, frozen=True):
    """How one read is to be judged."""

    fall: int
    rise: int
    now: Ms
    """Wall clock, for people and the store."""
    steady: Ms
    """What is compared: never set."""
    together: Together
    heard: Heard | None
    """What other nodes say of who answers; `None` while they cannot be asked."""

    @property
    def sights(self) -> Sequence[Process] | None:
        """Whom the others read; `None` while they cannot be asked."""
        return None if self.heard is None else self.heard.reads


def first_watch(remembered: ChatServer | None, configured: ChatServerSettings, now: Ms) -> Watch:
    """The watch with which watching starts. A server that was down when the daemon stopped is still down, its
    restoration is in the store; of any other it is open whether it still is what it was."""
    server = remembered or ChatServer(configured.name)
    if configured.app_dbid is not None:
        server = replace(server, assumed=False)
    if server.state is not ServerState.DOWN:
        server = replace(server, state=ServerState.UNKNOWN, since=now)
        return Watch(server, configured.app_dbid, from_record=True)
    told = configured.app_dbid is not None and configured.app_dbid != server.app_dbid
    return Watch(server, configured.app_dbid, owed=told, from_record=True)


def step(
    watch: Watch,
    seen: Seen,
    *,
    fall: int,
    rise: int,
    now: Ms,
    steady: Ms | None = None,
    together: Together = Together.ALONE,
    heard: Heard | None = ALONE,
) -> Step:
    """What one read makes of a Chat Server. `steady` is `now` as long as nobody sets the clock. What others say is
    needed only where it is `contested` who answers."""
    look = Look(fall, rise, now, now if steady is None else steady, together, heard)
    if isinstance(seen, Unseen):
        return _unseen(watch, seen.why, look)
    watch = replace(watch, server=replace(watch.server, checked_at=now), unseen=False)
    match seen:
        case Unreachable(why):
            return _failed(watch, why, look)
        case Unreadable(why):
            return _unreadable(watch, why, look)
        case Page(page):
            return _read(watch, page, look)


def contested(watch: Watch, seen: Seen, *, steady: Ms) -> bool:
    """Whether what a read comes to depends on whom other nodes read."""
    if not isinstance(seen, Page) or watch.server.state is ServerState.DOWN:
        return False
    doubtful = watch.changed is not None or watch.server.disputed is not None or watch.in_doubt
    return doubtful or identity.is_other(identity.known(watch.server), _observed(watch, seen.page, steady))


def _observed(watch: Watch, page: HealthPage, steady: Ms) -> Process:
    """Who answered. A configured alias counts, whatever the page says."""
    process = identity.observed(page, steady)
    return process if watch.configured_alias is None else replace(process, app_dbid=watch.configured_alias)


def _failed(watch: Watch, why: str, look: Look) -> Step:
    state = watch.server.state
    watch = _calm(replace(watch, failures=watch.failures + 1, successes=0, unreadable=False))
    if state is ServerState.DOWN:
        return _owing(watch, why, look) if watch.owed else Step(_in_state(watch, state, look, why))
    if watch.failures < look.fall:
        turns = (Turn.SUSPECT,) if state is ServerState.UP else ()
        return Step(_in_state(watch, ServerState.SUSPECT, look, why), turns, why=why)
    lost = tuple(Loss(alias, Cause.UNREACHABLE) for alias in _aliases(watch))
    return Step(_in_state(watch, ServerState.DOWN, look, why), (Turn.DOWN,), lost, why)


def _owing(watch: Watch, why: str, look: Look) -> Step:
    """Still down, and now it is known as whom. It fell long ago: one more failed read is enough. From here on
    the record names its own alias, or the next reload would find these sessions lost once more."""
    server = replace(watch.server, app_dbid=watch.alias)
    watch = _in_state(replace(watch, server=server, owed=False), ServerState.DOWN, look, why)
    return Step(watch, (Turn.DOWN,), _lost(watch.alias, Cause.UNREACHABLE), why)


def _unseen(watch: Watch, why: str, look: Look) -> Step:
    """Nobody could look: all stays as it was, and that is said."""
    before, at = watch.told
    tell = why != before or look.steady - at >= TOLD_AGAIN_MS
    watch = replace(watch, unseen=True, told=(why, look.steady) if tell else watch.told)
    return Step(_in_state(watch, watch.server.state, look, why), (Turn.UNSEEN,) if tell else (), why=why)


def _calm(watch: Watch) -> Watch:
    """Nothing waits to be confirmed."""
    return replace(watch, changed=None, in_doubt=False)


def _aliases(watch: Watch) -> list[str]:
    """Whose sessions are lost when nobody answers any more: of all who answered here by turns."""
    others = watch.server.others if watch.server.disputed else ()
    aliases = (watch.alias, *(other.app_dbid for other in others))
    return list(dict.fromkeys(alias for alias in aliases if alias is not None))


def _unreadable(watch: Watch, why: str, look: Look) -> Step:
    turns = () if watch.unreadable else (Turn.UNREADABLE,)
    watch = _calm(replace(watch, failures=0, unreadable=True))
    if watch.server.state is ServerState.DOWN:
        rising = _rising(watch, None, look)
        return replace(rising, turns=(*turns, *rising.turns), why=why)
    return Step(_in_state(watch, ServerState.UP, look, why), turns, why=why)


def _read(watch: Watch, page: HealthPage, look: Look) -> Step:
    if watch.server.assumed and page.app_dbid is not None:
        return _named_itself(watch, page.app_dbid, page, look)
    otherwise = identity.differ(watch.configured_alias, page.app_dbid)
    told = (Turn.IDENTITY,) if otherwise and not watch.otherwise else ()
    others = identity.remembered(watch.server.others, now=look.steady)
    server = replace(watch.server, others=others)
    watch = replace(watch, server=server, failures=0, unreadable=False, otherwise=otherwise)
    process = _observed(watch, page, look.steady)
    result = _judge(_answered_by(watch, process, look), process, page, look)
    result = replace(result, watch=replace(result.watch, ahead=look.now - look.steady))
    if told:
        why = f"configured is {watch.configured_alias}, the page says {page.app_dbid}"
        return replace(result, turns=(*told, *result.turns), why=result.why or why)
    return result


def _named_itself(watch: Watch, app_dbid: str, page: HealthPage, look: Look) -> Step:
    """A server whose `app_dbid` was assumed tells it. If that was wrong, its own sessions have not been pinged yet:
    while it is down its return tells whose they are, as of a server that was never seen. Those it was assumed to have
    are nobody's loss once more."""
    assumed = watch.server.app_dbid
    result = _read(replace(watch, server=replace(watch.server, app_dbid=app_dbid, assumed=False)), page, look)
    if not identity.differ(assumed, app_dbid):
        return result
    lost = result.lost
    if watch.server.state is not ServerState.DOWN:
        lost = (*lost, *_lost(app_dbid, Cause.RETURNED))
    why = f"assumed was {assumed}, the page says {app_dbid}"
    return replace(result, turns=(Turn.IDENTITY, *result.turns), lost=lost, why=why)


def _answered_by(watch: Watch, process: Process, look: Look) -> Watch:
    alone = watch.answering is not None and identity.is_one(watch.answering, process)
    heard = look.heard
    shared = heard is None or heard.silent or any(identity.is_other(each, process) for each in heard.reads)
    since = watch.alone_since if alone and not shared else process.last_seen
    return replace(watch, answering=process, alone_since=since)


def _judge(watch: Watch, process: Process, page: HealthPage, look: Look) -> Step:
    server = watch.server
    if server.state is ServerState.DOWN:
        return _rising(watch, process, look)
    known, other = identity.known(server), identity.find(server.others, process)
    kin, why = _compared(watch, process, look)
    if kin is Kin.SAME and _is_beside(watch, process, look):
        kin = Kin.STEPPED
    if kin is Kin.SAME and (other is None or identity.is_rather(process, known, other)):
        return _known(watch, process, page, look)
    if server.disputed is not None:
        return _by_turns(watch, process, other, (kin, why), look)
    if other is not None and identity.came_back(server, other):
        return _dispute(watch, process, other, look, "{known} and {other} answer by turns")
    if kin is Kin.ANOTHER or (other is not None and not other.settled):
        return _another(watch, process, other, why or "its uptime ran backwards", look)
    if kin is Kin.STEPPED:
        return _stepped(watch, process, other, page, why, look)
    return _known(watch, process, page, look)


def _is_beside(watch: Watch, process: Process, look: Look) -> bool:
    """Whether others read the known process, and here an older one is read: for one who looks alone that is a clock
    that was set."""
    known = identity.known(watch.server)
    there = elsewhere(known, process, look.sights, since=process.last_seen)
    return identity.is_other(known, process) and there is not Elsewhere.GONE


def _compared(watch: Watch, process: Process, look: Look) -> tuple[Kin, str]:
    ahead = look.now - look.steady
    return identity.compare(
        identity.known(watch.server),
        process,
        ahead=ahead / 1000,
        slept=max(0, ahead - watch.ahead) / 1000,
        way=identity.WAYS_SECONDS if watch.from_record else 0.0,
        any_dbid=watch.configured_alias is not None,
    )


def _known(watch: Watch, process: Process, page: HealthPage, look: Look) -> Step:
    """The known process answered."""
    watch = replace(watch, changed=None, away=0)
    if watch.server.disputed is not None:
        return _steady(_seen_again(replace(watch, counters={}), process), process, look)
    fell = identity.ran_backwards(watch.counters, page.counters)
    if fell is None:
        return _well(_learned(watch, process, page), look)
    why = f"its counter {fell} ran backwards"
    if not watch.in_doubt:
        watch = replace(watch, fell_at=look.steady, fell_after=watch.server.last_seen)
    telling = identity.counters_may_tell(identity.known(_seen_again(watch, process).server))
    all_did = watch.in_doubt and look.together is Together.ALL  # before, it speaks of the last time they fell
    there = _goes_on_elsewhere(watch, look)
    if not telling or look.steady < watch.believed_from or all_did or there is Elsewhere.THERE:
        # A documented option zeroes all cumulative counters, those of every server at once.
        well = _well(_learned(watch, process, page), look)
        return replace(well, turns=(*well.turns, Turn.COUNTERS), why=why)
    if not watch.in_doubt or look.together is Together.UNKNOWN or there is Elsewhere.UNKNOWN:
        doubt = replace(_seen_again(watch, process), in_doubt=True)
        turns = () if watch.in_doubt else (Turn.SUSPECT,)
        return Step(_in_state(doubt, ServerState.SUSPECT, look, why), turns, why=why)
    after = _learned(replace(watch, believed_from=look.steady + BELIEVED_AGAIN_MS), process, page)
    after = replace(after, server=replace(after.server, first_seen=look.steady))
    return Step(_in_state(after, ServerState.UP, look, None), *_restarted(watch, after), why)


def _goes_on_elsewhere(watch: Watch, look: Look) -> Elsewhere:
    """Whether the process whose counters ran backwards here goes on elsewhere: asked once it was confirmed here."""
    if not watch.in_doubt or watch.fell_at is None:
        return Elsewhere.GONE
    return fell_elsewhere(look.sights, after=watch.fell_after, at=watch.fell_at)


def _seen_again(watch: Watch, process: Process) -> Watch:
    before = watch.server
    wavers = identity.is_one(Process(started=before.started), Process(started=process.started))
    server = replace(
        identity.takes(before, process),
        # Compared with the first, or it might wander away by rounding.
        started=before.started if wavers or process.started is None else process.started,
        began=before.began if process.began is None else process.began,
        first_seen=before.first_seen or process.first_seen,
    )
    return replace(watch, server=server, from_record=False)


def _learned(watch: Watch, process: Process, page: HealthPage) -> Watch:
    return replace(_seen_again(watch, process), counters=page.counters, in_doubt=False)


def _well(watch: Watch, look: Look) -> Step:
    turns = () if watch.server.state is ServerState.UP else (Turn.UP,)
    return Step(_in_state(watch, ServerState.UP, look, None), turns)


def _another(watch: Watch, process: Process, other: Process | None, why: str, look: Look) -> Step:
    """Another process answered. Once is a doubt, twice in a row a restart, unless other nodes read the known one
    still: until all who did have looked again, it stays a doubt."""
    changed, turns = process, [Turn.SUSPECT]
    if other is not None and watch.changed is not None and identity.is_one(watch.changed, process):
        match elsewhere(identity.known(watch.server), process, look.sights, since=watch.changed.last_seen):
            case Elsewhere.GONE if lead(process, look.sights) >= 0 and not _is_rather_lost(process, look):
                return _replaced(watch, process, other, why, look)
            case Elsewhere.THERE:
                return _dispute(watch, process, other, look, ELSEWHERE)
            case _:
                changed, turns = watch.changed, []
    watch = replace(_met(watch, process, other), changed=changed, away=watch.away + 1)
    return Step(_in_state(watch, ServerState.SUSPECT, look, why), tuple(turns), why=why)


def _is_rather_lost(process: Process, look: Look) -> bool:
    """Whether more nodes find the server lost than read what is read here: then this one is led to another process,
    or the server is back in this moment, which the others are about to see."""
    return look.heard is not None and len(look.heard.missed) > readers(process, look.heard.reads)


def _stepped(
    watch: Watch, process: Process, other: Process | None, page: HealthPage, why: str, look: Look
) -> Step:
    """No restart: a clock was set. But should the known process come back, or answer other nodes still, there are two
    of them."""
    known, first = identity.known(watch.server), watch.changed or process
    first = first if identity.is_one(first, process) else process
    match elsewhere(known, process, look.sights, since=first.last_seen):
        case Elsewhere.GONE:
            watch = replace(watch, server=replace(watch.server, others=(known, *watch.server.others)))
            return _known(watch, process, page, look)
        case Elsewhere.THERE:
            return _dispute(watch, process, other or process, look, ELSEWHERE)
        case Elsewhere.UNKNOWN:
            turns = (Turn.SUSPECT,) if why and watch.changed is None else ()
            watch = replace(watch, changed=first, away=watch.away + 1)
            state = ServerState.SUSPECT if why else watch.server.state
            return Step(_in_state(watch, state, look, why or None), turns, why=why)


def _met(watch: Watch, process: Process, other: Process | None) -> Watch:
    """A process that is not the known one is remembered, and when it was seen."""
    if other is not None:
        process = replace(process, first_seen=other.first_seen, settled=other.settled)
    others = (process, *(each for each in watch.server.others if each is not other))
    return replace(watch, server=replace(watch.server, others=others[: identity.MOST_OTHERS]))


def _replaced(watch: Watch, process: Process, other: Process | None, why: str, look: Look) -> Step:
    """Another process has taken the place of the known one; its sessions are lost."""
    after = _in_state(_takes(watch, process, other), ServerState.UP, look, None)
    return Step(after, *_restarted(watch, after), why)


def _takes(watch: Watch, process: Process, other: Process | None) -> Watch:
    server, met = watch.server, other or process
    others = (identity.known(server), *(each for each in server.others if each is not other))
    server = replace(
        identity.takes(server, replace(process, first_seen=met.first_seen)),
        others=others[: identity.MOST_OTHERS],
    )
    return replace(watch, server=server, counters={}, changed=None, in_doubt=False, from_record=False, away=0)


def _restarted(watch: Watch, after: Watch) -> tuple[tuple[Turn, ...], tuple[Loss, ...]]:
    """What it means that another process answers than the known one."""
    several = {other.app_dbid for other in watch.server.others} if watch.server.disputed else set()
    if watch.alias is not None and watch.alias != after.alias and after.alias not in several:
        return (Turn.IDENTITY,), (Loss(watch.alias, Cause.REPLACED),)
    return (Turn.RESTARTED,), _lost(after.alias, Cause.RESTARTED)


def _lost(alias: str | None, cause: Cause) -> tuple[Loss, ...]:
    return () if alias is None else (Loss(alias, cause),)


def _dispute(watch: Watch, process: Process, other: Process, look: Look, why: str) -> Step:
    """A process answered after another had in its place: there are two behind this address. Whichever answers
    next says nothing of the other, so from here on only a process never seen before is a restart."""
    watch = replace(_met(watch, process, other), changed=None, away=watch.away + 1)
    watch = replace(watch, server=replace(watch.server, disputed=look.steady))
    why = why.format(known=identity.named(identity.known(watch.server)), other=identity.named(process))
    return Step(_in_state(watch, ServerState.UP, look, None), (Turn.DISPUTED,), why=why)


def _by_turns(
    watch: Watch, process: Process, other: Process | None, found: tuple[Kin, str], look: Look
) -> Step:
    """Several processes are known to answer here, and it was not the one that is taken for this server."""
    watch = replace(_met(watch, process, other), away=watch.away + 1)
    met = watch.server.others[0]
    assert watch.server.disputed is not None
    kin, why = found
    twice = other is not None and not other.settled
    fresh = met.first_seen > watch.server.disputed
    full = len(watch.server.others) == identity.MOST_OTHERS
    gone = (
        elsewhere(identity.known(watch.server), process, look.sights, since=met.first_seen) is Elsewhere.GONE
    )
    ahead = lead(process, look.sights)
    if fresh:
        # The known process may be one to which the fewer nodes are led. One that is older, as it seems to be where a
        # page stood still and goes on, has not come in its place.
        restarted = kin is Kin.ANOTHER and ((gone and ahead >= 0) or is_most_read(process, look.sights))
    else:
        # It was there beside the known one, which a node that is not heard may go on reading; and where one that did
        # finds it lost, it is that.
        restarted = gone and ahead > 0 and _is_known_gone(watch, look) and watch.away >= look.fall
    if twice and not full and restarted:
        why = why or f"{identity.named(identity.known(watch.server))} answers no more"
        return _replaced(watch, process, met, why, look)
    return _steady(watch, process, look)


def _is_known_gone(watch: Watch, look: Look) -> bool:
    """Whether nobody is left that read the known process."""
    if look.heard is None or look.heard.silent:
        return False
    known = identity.known(watch.server)
    return not any(identity.is_one(each, known) for each in look.heard.missed)


def _steady(watch: Watch, process: Process, look: Look) -> Step:
    """Nothing follows from who of several answers, until only one has been answering for long."""
    watch = _in_state(watch, ServerState.UP, look, None)
    if look.steady - watch.alone_since < STEADY_MS:
        return Step(watch)
    if not identity.is_one(identity.known(watch.server), process):
        watch = _takes(watch, process, identity.find(watch.server.others, process))
    watch = replace(watch, server=replace(watch.server, disputed=None))
    return Step(_in_state(watch, ServerState.UP, look, None), (Turn.UP,))


def _rising(watch: Watch, process: Process | None, look: Look) -> Step:
    """Back after having been down. Whether it is the same process or another, what its sessions
    went through meanwhile is uncertain, so they are pinged."""
    watch = replace(watch, successes=watch.successes + 1)
    if watch.successes < look.rise:
        return Step(watch)
    result = _risen(replace(watch, successes=0, counters={}, owed=False), process, look)
    # Whose sessions were made due when it went has none any more where all were restored elsewhere.
    lost = (replace(loss, again=loss.alias == watch.alias and not watch.owed) for loss in result.lost)
    return replace(result, lost=tuple(lost))


def _risen(watch: Watch, process: Process | None, look: Look) -> Step:
    if process is None:
        return _back(watch, watch, look)
    kin, why = _compared(watch, process, look)
    other = identity.find(watch.server.others, process)
    if kin is not Kin.ANOTHER:
        return _back(watch, _seen_again(watch, process), look)
    if other is not None and other.settled:
        return _back(watch, _takes(watch, process, other), look)
    return _replaced(watch, process, other, why, look)


def _back(watch: Watch, after: Watch, look: Look) -> Step:
    # A server that was never seen up tells only now whose sessions have been waiting.
    lost = _lost(after.alias, Cause.RETURNED)
    return Step(_in_state(after, ServerState.UP, look, None), (Turn.UP,), lost)


def _in_state(watch: Watch, state: ServerState, look: Look, detail: str | None) -> Watch:
    server = watch.server
    since = server.since if server.state is state else look.now
    if detail is None and server.disputed is not None:
        detail = DISPUTED
    return replace(watch, server=replace(server, state=state, since=since, detail=detail))


def together(watches: Mapping[str, Watch], name: str, *, within: Ms, steady: Ms) -> Together:
    """Whether counters ran backwards on one server or, in the same moments, on at least half of the others."""
    began = watches[name].fell_at
    if began is None:
        return Together.ALONE

    def fell_too(each: Watch) -> bool:
        return each.fell_at is not None and abs(each.fell_at - began) <= within

    others = [
        each
        for other, each in watches.items()
        if other != name
        and not each.failures
        and (fell_too(each) or any(value > 0 for value in each.counters.values()))
    ]
    fell = [each for each in others if fell_too(each)]
    if fell and 2 * len(fell) >= len(others):
        return Together.ALL
    unread = any(each.server.last_seen < began for each in others)
    return Together.UNKNOWN if unread and steady - began <= within else Together.ALONE


def pause(watch: Watch, settings: WatcherSettings, *, hurried: bool = False) -> float:
    """Seconds until the next read, before jitter: faster while in doubt. `hurried` where the server closed its
    connections, and answered at once since, or refused to."""
    doubtful = watch.failures > 0 and watch.server.state is not ServerState.DOWN
    doubtful = doubtful or watch.changed is not None or watch.in_doubt
    fast = settings.fast_interval.total_seconds()
    if doubtful and hurried:
        return min(fast, settings.refused_interval.total_seconds())
    if doubtful or watch.successes > 0 or watch.unseen:
        return fast
    return settings.interval.total_seconds()
