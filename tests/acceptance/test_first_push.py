"""Whether GMS reaches the daemon: when the last push came, from where, and who was refused for what."""

from __future__ import annotations

import json
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
