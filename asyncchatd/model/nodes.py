"""The nodes: the asyncchatd processes that share one store."""

from __future__ import annotations

from enum import StrEnum

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
