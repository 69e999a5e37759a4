"""The nodes that share a store: who is there, which names several have, and in what their settings differ."""

from __future__ import annotations

from collections.abc import Mapping

from asyncchatd.model.nodes import Difference, Node, NodeState, differences, living, shared_names

NOON = 1_700_000_000_000
MINUTE = 60_000


def node(
    number: int,
    name: str = "chat-1",
    state: NodeState = NodeState.PRESENT,
    *,
    began: int = 0,
    seen: int = 10,
    settings: Mapping[str, str] | None = None,
) -> Node:
    """A node that began so many minutes after noon, and was heard of so many after."""
    return Node(
        number, name, "1.0", state, NOON + began * MINUTE, NOON + seen * MINUTE, 0, settings=settings or {}
    )


def numbers(nodes: list[Node]) -> list[int]:
    return [each.number for each in nodes]


def test_who_is_silent_or_gone_is_not_there() -> None:
    nodes = [node(3, "c"), node(2, "b", NodeState.SILENT), node(1, "a"), node(4, "d", NodeState.GONE)]
    assert numbers(living(nodes)) == [1, 3]


def test_a_node_that_was_started_anew_is_there_once() -> None:
    before, after = node(1, began=0, seen=5), node(2, began=5, seen=10)
    assert numbers(living([before, after])) == [2]
    assert numbers(living([after, before])) == [2]


def test_a_node_that_has_just_begun_is_there() -> None:
    assert numbers(living([node(1, began=10, seen=10)])) == [1]


def test_two_nodes_of_one_name_are_both_there_while_both_are_heard_of() -> None:
    earlier, later = node(1, began=0, seen=6), node(2, began=5, seen=10)
    assert numbers(living([later, earlier])) == [1, 2]


def test_a_node_whose_successor_is_gone_as_well_is_there_while_it_is_heard_of() -> None:
    assert numbers(living([node(1, seen=5), node(2, state=NodeState.GONE, began=7)])) == [1]


def test_a_name_that_several_have_is_told_with_how_many_have_it() -> None:
    nodes = [node(1, "b"), node(2, "b"), node(3, "c"), node(4, "a"), node(5, "a"), node(6, "a")]
    assert list(shared_names(nodes).items()) == [("a", 3), ("b", 2)]


def test_nodes_that_agree_and_a_node_alone_differ_in_nothing() -> None:
    same = {"ping.interval": "30m"}
    assert differences([]) == []
    assert differences([node(1, "a", settings=same)]) == []
    assert differences([node(1, "a", settings=same), node(2, "b", settings=same)]) == []


def test_each_setting_in_which_nodes_differ_is_told_with_what_each_has() -> None:
    nodes = [
        node(1, "a", settings={"ping.interval": "30m", "gateway": "on", "store": "x"}),
        node(2, "b", settings={"ping.interval": "20m", "gateway": "off", "store": "x"}),
    ]
    assert differences(nodes) == [
        Difference("gateway", {"a": "on", "b": "off"}),
        Difference("ping.interval", {"a": "30m", "b": "20m"}),
    ]


def test_an_older_node_that_does_not_say_a_setting_does_not_differ_in_it() -> None:
    nodes = [
        node(1, "old", settings={"ping.interval": "30m"}),
        node(2, "a", settings={"ping.interval": "30m", "gateway": "on"}),
        node(3, "b", settings={"ping.interval": "30m", "gateway": "off"}),
    ]
    assert differences(nodes) == [Difference("gateway", {"a": "on", "b": "off"})]
    assert differences(nodes[:2]) == []


def test_nodes_of_one_name_are_told_apart_by_their_numbers_where_they_differ() -> None:
    nodes = [
        node(1, "a", settings={"gateway": "on"}),
        node(2, "a", settings={"gateway": "off"}),
        node(3, "b", settings={"gateway": "on"}),
    ]
    assert differences(nodes) == [Difference("gateway", {"a (1)": "on", "a (2)": "off", "b": "on"})]


def test_a_node_that_is_gone_or_has_a_successor_differs_from_nobody_and_a_silent_one_may() -> None:
    replaced = node(1, "a", settings={"gateway": "on"})
    successor = node(3, "a", began=20, seen=30, settings={"gateway": "new"})
    gone = node(2, "b", NodeState.GONE, settings={"gateway": "off"})
    silent = node(2, "b", NodeState.SILENT, settings={"gateway": "off"})
    assert differences([replaced, gone, successor]) == []
    assert differences([replaced, silent, successor]) == [Difference("gateway", {"b": "off", "a": "new"})]
