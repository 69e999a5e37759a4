"""The programs of examples/, run as a reader would run them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from .rig import SECRETS, Rig, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

EXAMPLES = Path(__file__).parents[2] / "examples"


async def ran(name: str, *words: str) -> tuple[int, str]:
    """Exit status and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / name), *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_chat_application_tells_a_chat_and_its_end(rig: Rig) -> None:
    chat = rig.plant.chat()
    base = f"http://127.0.0.1:{rig.control_port}"
    words = ("--chat", chat.chat_id, "--user", chat.user_id, "--key", chat.secure_key, "--alias", chat.alias)
    assert await ran("registering.py", base, *words) == (
        0,
        f"{chat.chat_id}: live\n{chat.chat_id}: ended\n",
    )
    assert not chat.refreshes


async def test_a_push_is_taken_and_acknowledged(rig: Rig) -> None:
    [chat] = await rig.registered(1)
    url = f"http://127.0.0.1:{rig.push_port}/push/{SECRETS[0]}"
    words = ("--chat", chat.chat_id, "--user", chat.user_id)
    assert await ran("push.py", url, *words) == (0, "taken\n")
    await eventually("the acknowledgement", lambda: chat.refreshes)


async def test_a_push_with_a_wrong_secret_is_refused(rig: Rig) -> None:
    url = f"http://127.0.0.1:{rig.push_port}/push/guessed"
    status, output = await ran("push.py", url, "--chat", "1", "--user", "2")
    assert (status, output) == (1, "refused: HTTP 404\n")


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
async def test_each_example_says_how_it_is_used_and_is_listed(name: str) -> None:
    status, output = await ran(name, "--help")
    assert status == 0
    assert "usage:" in output
    assert f"python examples/{name} " in output
    assert f"]({name})" in (EXAMPLES / "README.md").read_text()
