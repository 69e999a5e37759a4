"""What those who share a store have to agree upon, watched while the daemon runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from asyncchatd.config import Settings, alike
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Clock, Node, NodeState, differences
from asyncchatd.stores import Store, StoreError

LOOK_SECONDS = 5.0
"""How often the others are looked at."""

log = get_logger()


async def watch_nodes(
    store: Store, clock: Clock, settings: Callable[[], Settings], share: Callable[[int], None]
) -> None:
    """Tell of settings that are not the same for all nodes, once for each change. `share` hears how many nodes there
    are, among whom some of them are divided. `settings`: those that are in force here, which a reload may change."""
    told: dict[str, Mapping[str, str]] = {}
    while True:
        store.declare(alike(settings()))
        with suppress(StoreError):  # the store tells of it, and what was known holds
            if nodes := await store.nodes():
                share(max(1, sum(node.state is NodeState.PRESENT for node in nodes)))
                told = _tell(nodes, told)
        await clock.sleep(LOOK_SECONDS)


def _tell(nodes: Sequence[Node], told: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    found = {each.key: each.values for each in differences(nodes)}
    for key, values in found.items():
        if told.get(key) != values:
            log.error(
                Event.SETTINGS_DIFFER,
                key=key,
                values=", ".join(f"{value} at {name}" for name, value in sorted(values.items())),
            )
    for key in told.keys() - found.keys():
        log.info(Event.SETTINGS_AGREE, key=key)
    metrics.SETTINGS_DIFFERING.set(len(found))
    return found
