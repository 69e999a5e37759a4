"""Whether a Chat Server is gone, where several nodes look at it: more than half of those that count must find it so.
Whether it is another process than before: nobody must read the known one after another one was there, or more than half
must read one that nobody knew while it was disputed who answers.

Each node sees the plant over a network of its own. One that is cut off from Chat Servers would else have the sessions
of all of them restored. A tie means that the server lives: it is looked at again in a moment. One that is gone is back
once no more than half miss it: else it would be back and gone by turns where one reaches it and most do not.

A node that is led to another process than the known one, which was there beside it, neither reaches nor misses the
known one: it has no vote, as long as another one has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple

from asyncchatd.model import Ms, Process, View, Views
from asyncchatd.watcher.identity import find, is_one, is_other, is_rather

CLOCKS_MS = 1_000
"""How far the clocks of two nodes may be apart at most: only a look that began so much later is a later one."""

LOOKED_AT_MS = 3 * CLOCKS_MS
"""So long after one node first read another process all others look at once, each time that they hear of it."""


class Vote(NamedTuple):
    """What comes of all views."""

    down: bool | None
    """`None` where one who asks is led to another process, and a node may tell that is not."""
    reached: tuple[str, ...]
    """Who else reaches the server, by name."""
    lost: tuple[str, ...]
    """Who else finds it lost."""


class Known(NamedTuple):
    """Who is taken for a server, by its record."""

    process: Process = Process()
    beside: Sequence[Process] = ()
    """Other processes that answer there, as was found out while it was there."""


NOBODY = Known()


def vote(
    server: str,
    own: Views,
    others: Sequence[Views],
    *,
    now: Ms,
    window: Ms,
    known: Known = NOBODY,
    silent: Sequence[Views] = (),
) -> Vote:
    """Whether `server` is down by the views that can be right of all who looked at it in the last `window`. `silent`:
    what those said last that are not heard. They have no vote, but one of them may be the only one that can tell."""
    all_views = (own, *others)
    counting = [
        each
        for each in all_views
        if _looked(each, server, now, window) and is_sane(each, all_views, now, window)
    ]
    told = [each for each in counting if not _is_of_another(each.servers[server], known)]
    if own in counting and own not in told:
        unheard = (*silent, *(each for each in others if not _looked(each, server, now, window)))
        if told or any(server in each.servers for each in unheard):
            return Vote(None, (), ())
    counting = told or counting
    lost = [each for each in counting if each.servers[server].lost]
    return Vote(
        2 * len(lost) > len(counting),
        tuple(each.peer for each in counting if not each.servers[server].failures and each is not own),
        tuple(each.peer for each in lost if each is not own),
    )


def _is_of_another(view: View, known: Known) -> bool:
    """Whether somebody is led to another process, which says nothing of the known one. One that came after it was
    found out that there are several may have taken its place."""
    read = view.read
    if read is None or view.by_turns or not is_other(read, known.process):
        return False
    return find(known.beside, read) is not None


def is_sane(each: Views, all_views: Sequence[Views], now: Ms, window: Ms) -> bool:
    """Whether what somebody sees tells of the Chat Servers. It tells of his own network when he reaches less than half
    of them and another one reaches one that he does not, or when he reaches none and no GMS node either."""
    failing = {name for name, view in each.servers.items() if view.failures}
    if 2 * len(failing) <= len(each.servers):
        return True
    if len(failing) == len(each.servers) and not each.gms:
        return False
    return not any(
        _reaches(other, name, now, window) for other in all_views if other is not each for name in failing
    )


def _looked(each: Views, server: str, now: Ms, window: Ms) -> bool:
    view = each.servers.get(server)
    return view is not None and now - view.looked_at <= window


def _reaches(each: Views, server: str, now: Ms, window: Ms) -> bool:
    return _looked(each, server, now, window) and not each.servers[server].failures


class Heard(NamedTuple):
    """What other nodes say of who answers at a server."""

    reads: Sequence[Process] = ()
    """Whom those read that are heard, and can be right."""
    silent: bool = False
    """A node that looks there is not heard, or has read nobody yet, and may read another one."""
    missed: Sequence[Process] = ()
    """Whom those read last that find the server lost now."""


ALONE = Heard()
"""Nobody else looks."""


class Elsewhere(Enum):
    """Whether the process that was known answers other nodes, while this one reads another."""

    GONE = auto()
    UNKNOWN = auto()
    """One that read it has not looked since."""
    THERE = auto()


def sights(
    server: str, own: Views, others: Sequence[Views], *, now: Ms, window: Ms, lost: bool = False
) -> list[Process]:
    """What the others read at `server` in the last `window`, of those that can be right. A node that has missed it
    since counts until it finds it lost: a look that failed says nothing of which process is there. `lost`: what those
    read last, however long ago, that find it so."""
    all_views = (own, *others)
    return [
        view.read
        for each in others
        if (view := each.servers.get(server)) is not None
        and view.read is not None
        and view.lost is lost
        and (lost or now - view.read.last_seen <= window)
        and is_sane(each, all_views, now, window)
    ]


def elsewhere(known: Process, here: Process, sights: Sequence[Process] | None, *, since: Ms) -> Elsewhere:
    """Whether `known` answers others although another process, `here`, was read at `since`: then both are there, and
    neither has been restarted. `sights`: what the others read; `None` while they cannot be asked."""
    if sights is None:
        return Elsewhere.UNKNOWN
    # One that fell soon after its start has the uptime of the next one, within the tolerance.
    begun = [each.last_seen for each in sights if is_rather(each, known, here)]
    if any(each >= since + CLOCKS_MS for each in begun):
        return Elsewhere.THERE
    return Elsewhere.UNKNOWN if begun else Elsewhere.GONE


def fell_elsewhere(sights: Sequence[Process] | None, *, after: Ms, at: Ms) -> Elsewhere:
    """Whether the process that was known answers others, where nothing but counters tells: those read here ran
    backwards between `after` and `at`, and nobody can say which process has which. So more than half must find them so.
    Who began to look meanwhile cannot tell."""
    if sights is None:
        return Elsewhere.UNKNOWN
    went_on = [each for each in sights if each.first_seen < after - CLOCKS_MS]
    looked = [each for each in went_on if each.last_seen >= at + CLOCKS_MS]
    fell = [each for each in sights if not each.settled and each not in went_on]
    if len(looked) > len(fell):
        return Elsewhere.THERE
    return Elsewhere.UNKNOWN if len(went_on) > len(fell) else Elsewhere.GONE


def is_most_read(here: Process, sights: Sequence[Process] | None) -> bool:
    """Whether more than half read what is read here. `sights`: what the others read; `None` while they cannot be
    asked."""
    return sights is not None and 2 * readers(here, sights) > len(sights) + 1


def lead(here: Process, sights: Sequence[Process] | None) -> int:
    """By how many more nodes what is read here is read than any other process; fewer where it is below 0."""
    sights = sights or ()
    others = [sum(is_one(each, other) for each in sights) for other in sights if is_other(other, here)]
    return readers(here, sights) - max(others, default=0)


def readers(here: Process, sights: Sequence[Process]) -> int:
    """How many nodes read what is read here, this one among them."""
    return 1 + sum(is_one(each, here) for each in sights)


def hinted(own: Mapping[str, View], others: Sequence[Views]) -> set[str]:
    """The servers that somebody else has missed since they were looked at here."""
    return {
        name
        for each in others
        for name, view in each.servers.items()
        if view.failures and name in own and not own[name].failures and view.looked_at > own[name].looked_at
    }


def returned(own: Mapping[str, View], others: Sequence[Views]) -> set[str]:
    """The servers that are missed here, and that somebody else has begun to read since they were looked at."""
    return {
        name
        for each in others
        for name, view in each.servers.items()
        if name in own
        and own[name].failures
        and not view.failures
        and view.read is not None
        and own[name].looked_at < view.read.first_seen + LOOKED_AT_MS
    }


def doubted(own: Mapping[str, View], others: Sequence[Views]) -> set[str]:
    """The servers at which somebody else has begun to read another process since they were looked at here."""
    return {
        name
        for each in others
        for name, view in each.servers.items()
        if name in own and not own[name].failures and _is_news(view.read, own[name].read)
    }


def _is_news(theirs: Process | None, ours: Process | None) -> bool:
    if theirs is None or ours is None or not is_other(theirs, ours):
        return False
    return ours.last_seen < theirs.first_seen + LOOKED_AT_MS
