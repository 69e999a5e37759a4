"""Whether a Chat Server is gone, where several nodes look at it: more than half of those that count must find it so.

Each node sees the plant over a network of its own. One that is cut off from Chat Servers would else have the sessions
of all of them restored. A tie means that the server lives: it is looked at again in a moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asyncchatd.model import Ms, View, Views


class Vote(NamedTuple):
    """What comes of all views."""

    down: bool
    against: tuple[str, ...]
    """Who reaches the server, by name."""


def vote(server: str, own: Views, others: Sequence[Views], *, now: Ms, window: Ms) -> Vote:
    """Whether `server` is down by the views that can be right of all who looked at it in the last `window`."""
    all_views = (own, *others)
    counting = [
        each
        for each in all_views
        if _looked(each, server, now, window) and is_sane(each, all_views, now, window)
    ]
    lost = sum(each.servers[server].lost for each in counting)
    against = tuple(each.peer for each in counting if not each.servers[server].failures and each is not own)
    return Vote(2 * lost > len(counting), against)


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


def hinted(own: Mapping[str, View], others: Sequence[Views]) -> set[str]:
    """The servers that somebody else has missed since they were looked at here."""
    return {
        name
        for each in others
        for name, view in each.servers.items()
        if view.failures and name in own and not own[name].failures and view.looked_at > own[name].looked_at
    }
