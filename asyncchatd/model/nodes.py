"""The nodes: the asyncchatd processes that share one store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from asyncchatd.model.data import Ms
from asyncchatd.model.values import Value


class NodeState(StrEnum):
    """Whether a node is there."""

    PRESENT = "present"
    SILENT = "silent"
    """Nobody has heard of it for a while: it is stopped, its host is gone, or it does not reach the store."""
    GONE = "gone"
    """It ended without taking leave, and none of its name has come since."""


class Node(Value, frozen=True):
    """A node, as those who share the store with it see it."""

    number: int
    """New with each start."""
    name: str
    """As people call it."""
    version: str
    state: NodeState
    started_at: Ms
    seen_at: Ms
    claims: int
    """So many sessions are claimed by it now."""
    own: bool = False
    """Whether it is this process."""
    settings: Mapping[str, str] = {}
    """What must be alike in the configurations of all, as this one has it, by the keys. An older one says less."""


class Difference(Value, frozen=True):
    """A setting that must be the same for all nodes, and is not."""

    key: str
    values: Mapping[str, str]
    """By the nodes' names."""


def differences(nodes: Sequence[Node]) -> list[Difference]:
    """In what those differ who are there, or may be: one that is silent has what it said last, until it says otherwise
    or is known to be gone. Nodes of one name are told apart by their numbers."""
    silent = [node for node in nodes if node.state is NodeState.SILENT]
    there = sorted((*living(nodes), *silent), key=lambda node: node.number)
    shared = shared_names(there)
    labels = {
        node.number: f"{node.name} ({node.number})" if node.name in shared else node.name for node in there
    }
    found = []
    for key in sorted({key for node in there for key in node.settings}):
        values = {labels[node.number]: node.settings[key] for node in there if key in node.settings}
        if len(set(values.values())) > 1:
            found.append(Difference(key, values))
    return found


class _Node(Protocol):
    """A `Node`, or what is shown of one."""

    @property
    def number(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def started_at(self) -> Any: ...

    @property
    def seen_at(self) -> Any: ...


N = TypeVar("N", bound=_Node)


def living(nodes: Iterable[N]) -> list[N]:
    """Those who are there. One that was heard of last before another of its name began was started anew as that one."""
    there = sorted((node for node in nodes if node.state == NodeState.PRESENT), key=lambda node: node.number)
    newest = {node.name: node for node in there}
    return [
        node for node in there if node is newest[node.name] or node.seen_at > newest[node.name].started_at
    ]


def shared_names(there: Iterable[_Node]) -> Mapping[str, int]:
    """The names that several have, and how many."""
    names = Counter(node.name for node in there)
    return {name: count for name, count in sorted(names.items()) if count > 1}
