"""The gateway's door, as browsers find it: whose pages are served, and that a reload changes it."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing

import pytest
from conftest import soon

from .conftest import Start
from .rig import GATEWAY_KEY, Answer, Rig, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SHOP, OTHER = "https://shop.example", "https://other.example"


async def asked(rig: Rig, method: str, origin: str) -> Answer:
    """What a browser is answered that shows a page of this origin."""
    headers = {"Origin": origin}
    if method == "OPTIONS":
        headers |= {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "apikey"}
    url = f"http://127.0.0.1:{rig.gateway_port}/genesys/2/chat/customer-support"
    async with rig.http.request(method, url, headers=headers) as response:
        return Answer(response.status, await response.read(), response.headers)


async def test_a_page_that_is_served_gets_its_preflight_and_a_foreign_one_gets_nothing(start: Start) -> None:
    rig = await start(gateway=f'origins = ["{SHOP}"]')
    await eventually("it says that it is ready", lambda: rig.log("daemon_ready"))
    [ready] = rig.log("daemon_ready")
    assert ready["gateway"] == [f"127.0.0.1:{rig.gateway_port}"]
    assert (await rig.get("/v1/status"))["gateway"] == ready["gateway"]
    preflight = await asked(rig, "OPTIONS", SHOP)
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == SHOP
    assert preflight.headers["Access-Control-Allow-Headers"] == "apikey"
    for method in ("OPTIONS", "POST"):
        foreign = await asked(rig, method, OTHER)
        assert foreign.status == 403
        assert not any(name.startswith("Access-Control-") for name in foreign.headers)

    rig.config.write_text(rig.config.read_text().replace(SHOP, OTHER))
    assert rig.process is not None
    rig.process.send_signal(signal.SIGHUP)
    await eventually("the reload", lambda: rig.log("config_reloaded"))
    assert rig.log("config_reloaded")[0]["changed"] == ["gateway.origins"]
    assert (await asked(rig, "OPTIONS", SHOP)).status == 403
    assert (await asked(rig, "OPTIONS", OTHER)).status == 204


async def test_a_stream_ends_when_others_may_come_than_did(start: Start) -> None:
    rig = await start(gateway=f'origins = ["{SHOP}"]')
    url, page = f"http://127.0.0.1:{rig.gateway_port}/genesys/2/chat/customer-support", {"Origin": SHOP}
    [chat] = await rig.registered()
    said = {"userId": chat.user_id, "secureKey": chat.secure_key, "transcriptPosition": "3"}
    async with rig.http.post(f"{url}/{chat.chat_id}/events", data=said, headers=page) as stream:
        assert (stream.status, stream.headers["Access-Control-Allow-Origin"]) == (200, SHOP)
        assert await soon(stream.content.readline()) == b"retry: 1000\n"
        rig.config.write_text(rig.config.read_text().replace(SHOP, OTHER))
        assert rig.process is not None
        rig.process.send_signal(signal.SIGHUP)
        await soon(stream.content.read())


async def test_a_reload_of_the_keys_of_another_gateway_is_refused(start: Start) -> None:
    """Each client would be told that its chat is over."""
    rig = await start(gateway="")
    await rig.registered()
    with closing(sqlite3.connect(rig.directory / "store.db")) as db, db:
        db.execute("UPDATE session SET of_gateway=1")  # as a chat that was begun here
    assert rig.process is not None
    (rig.directory / "gateway-keys").write_text("7a" * 32)
    rig.process.send_signal(signal.SIGHUP)
    await eventually("the refusal", lambda: rig.log("config_refused"))
    assert "gateway.key_file" in str(rig.log("config_refused")[0]["cause"])
    (rig.directory / "gateway-keys").write_text(f"{'7a' * 32}\n{GATEWAY_KEY}\n")
    rig.process.send_signal(signal.SIGHUP)
    await eventually("the reload", lambda: rig.log("config_reloaded"))
    assert rig.log("config_reloaded")[0]["changed"] == ["gateway.key_file"]


async def test_without_its_section_nobody_listens_for_clients(start: Start) -> None:
    rig = await start()
    assert (await rig.get("/v1/status"))["gateway"] == []
    await eventually("it says that it is ready", lambda: rig.log("daemon_ready"))
    assert rig.log("daemon_ready")[0]["gateway"] is None
    rig.config.write_text(f"{rig.config.read_text()}\n[gateway]\nkey_file = 'keys'\nnode_group = 'gms'\n")
    (rig.directory / "keys").write_text("9b" * 32)
    assert rig.process is not None
    rig.process.send_signal(signal.SIGHUP)
    await eventually("the refusal", lambda: rig.log("config_refused"))
    assert "gateway.listen cannot be changed" in str(rig.log("config_refused")[0]["cause"])
