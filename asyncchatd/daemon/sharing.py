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
    """Tell of settings that are not the same for all nodes, and of nodes that nobody hears of, once for each change.
    `share` hears how many nodes there are, among whom some of the settings are divided. `settings`: those that are in
    force here, which a reload may change."""
    told: dict[str, Mapping[str, str]] = {}
    silence = Silence()
    while True:
        store.declare(alike(settings()))
        with suppress(StoreError):  # the store tells of it, and what was known holds
            if nodes := await store.nodes():
                share(max(1, sum(node.state is NodeState.PRESENT for node in nodes)))
                told = _tell(nodes, told)
                silence.tell(nodes)
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


class Silence:
    """The nodes that nobody hears of. One is told of at the second look: after an outage of the database all are silent
    until they are back."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._told: set[int] = set()

    def tell(self, nodes: Sequence[Node]) -> None:
        """Log who has fallen silent, and who is heard of again. `nodes`: at least this one."""
        now = max(node.seen_at for node in nodes)
        silent = {node.number: node for node in nodes if node.state is NodeState.SILENT}
        for number in (self._seen & silent.keys()) - self._told:
            node = silent[number]
            log.warning(Event.NODE_SILENT, peer=node.name, number=number, silent_ms=now - node.seen_at)
            self._told.add(number)
        for node in nodes:
            if node.number in self._told and node.state is NodeState.PRESENT:
                log.info(Event.NODE_HEARD, peer=node.name, number=node.number)
        self._told &= silent.keys()
        self._seen = set(silent)
