"""The soak of several nodes, two rounds of it: what holds of three daemons on one PostgreSQL, one of which is killed or
misled."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from .nodes.faults import killed, twins
from .nodes.rounds import calm, carry_out
from .nodes.site import soaking


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_nobody_notices_that_one_of_three_nodes_is_killed_while_a_chat_server_is_lost() -> None:
    with tempfile.TemporaryDirectory(prefix="asyncchatd-", dir="/tmp") as name:  # a socket's path is short
        async with soaking(Path(name), 1, 120) as soak:
            assert await calm(soak)
            figures, broken = await carry_out(soak, killed)
            assert not broken
            assert figures["restored"]
            gone = [line for node in soak.nodes for line in node.said("node_gone")]
            assert gone, "the others have noticed it"


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_node_that_is_led_to_another_process_has_nobody_restored() -> None:
    with tempfile.TemporaryDirectory(prefix="asyncchatd-", dir="/tmp") as name:
        async with soaking(Path(name), 1, 120) as soak:
            assert await calm(soak)
            figures, broken = await carry_out(soak, twins)
            assert not broken
            assert (figures["restorations"], figures["disputes_told"]) == (0, 1)
