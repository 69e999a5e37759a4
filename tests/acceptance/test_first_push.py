"""Whether GMS reaches the daemon: when the last push came, from where, and who was refused for what."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import cast

import aiohttp
import pytest

from .conftest import Start
from .plant import push
from .rig import SECRETS, Json, Rig

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def sent(rig: Rig, path: str, body: Json, *, address: str) -> int | None:
    """A push from this address of loopback; its answer's status, `None` where the connection was hung up on."""
    url = f"http://127.0.0.1:{rig.push_port}{path}"
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    async with aiohttp.ClientSession(connector=connector) as http:
        try:
            async with http.post(url, data=json.dumps(body)) as response:
                return response.status
        except aiohttp.ClientError:
            return None


async def test_it_is_said_from_where_pushes_come_and_who_was_refused(start: Start) -> None:
    rig = await start(receiver='allow = ["127.0.0.2", "127.0.0.3"]')
    [chat] = await rig.registered()
    pushes = cast(Json, (await rig.get("/v1/status"))["pushes"])
    assert pushes == {"count": 0, "last_at": None, "senders": [], "refused": []}
    assert await sent(rig, f"/push/{SECRETS[0]}", push(chat, "dummy message"), address="127.0.0.9") is None
    assert await sent(rig, "/push/another-secret", push(chat, "dummy message"), address="127.0.0.3") == 404
    assert await sent(rig, f"/push/{SECRETS[0]}", push(chat, "dummy message"), address="127.0.0.2") == 200
    pushes = cast(Json, (await rig.get("/v1/status"))["pushes"])
    [sender] = cast(list[Json], pushes["senders"])
    assert (pushes["count"], sender["client"], sender["count"]) == (1, "127.0.0.2", 1)
    assert pushes["last_at"] == sender["last_at"]
    refused = [(each["client"], each["cause"]) for each in cast(list[Json], pushes["refused"])]
    assert refused == [("127.0.0.3", "secret"), ("127.0.0.9", "network")]
    shown = (await rig.api("GET", "/metrics")).body.decode()
    assert 'asyncchatd_pushes_by_sender_total{sender="127.0.0.2"} 1.0' in shown
    assert 'asyncchatd_push_refusals_total{cause="network"} 1.0' in shown
    await rig.settled()


async def test_an_operator_is_led_to_the_first_push_with_the_daemon_that_runs(start: Start) -> None:
    rig = await start(receiver='allow = ["127.0.0.2"]', metrics="")
    [chat] = await rig.registered()
    command = ("check", "--connect", "--wait-for-push", "--timeout", "60", "--config", str(rig.config))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncchatd", *command), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    told = [line async for line in lines_until(process.stdout, "the daemon that runs is asked")]
    for listener, port in (("receiver", rig.push_port), ("metrics", rig.metrics_port)):
        assert any(
            f"{listener}.listen: 127.0.0.1:{port} is in use, and a daemon runs" in line for line in told
        )
    assert any(line.strip() == f"customhttp.url    http://HOST:{rig.push_port}/push/SECRET" for line in told)
    assert await sent(rig, f"/push/{SECRETS[0]}", push(chat, "dummy message"), address="127.0.0.1") is None
    told = [line async for line in lines_until(process.stdout, "receiver.allow")]
    assert "refused from 127.0.0.1: its address is not in receiver.allow" in told[-1]
    assert await sent(rig, f"/push/{SECRETS[0]}", push(chat, "dummy message"), address="127.0.0.2") == 200
    said, _ = await asyncio.wait_for(process.communicate(), 20)
    assert "a push from 127.0.0.2 has come, and was kept" in said.decode()
    assert process.returncode == 0
    assert not any(secret in line for secret in SECRETS for line in (*told, said.decode()))
    await rig.settled()


async def lines_until(reader: asyncio.StreamReader, words: str) -> AsyncIterator[str]:
    """The lines up to one with these words."""
    async with asyncio.timeout(30):
        while line := (await reader.readline()).decode():
            yield line
            if words in line:
                return
    raise AssertionError(f"never said: {words}")
