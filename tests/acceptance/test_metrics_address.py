"""The address for Prometheus: the metrics without a token, and nothing else."""

from __future__ import annotations

import signal

import aiohttp
import pytest

from .conftest import Start
from .rig import SECRETS, TOKEN, Answer, Rig, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def scraped(rig: Rig, path: str = "/metrics", method: str = "GET") -> Answer:
    """What somebody without a token is answered there."""
    url = f"http://127.0.0.1:{rig.metrics_port}{path}"
    async with aiohttp.ClientSession() as stranger, stranger.request(method, url) as response:
        return Answer(response.status, await response.read(), response.headers)


def helps(page: bytes) -> set[str]:
    """What is said of each metric on a page."""
    return {line for line in page.decode().splitlines() if line.startswith("# HELP")}


async def test_it_serves_the_metrics_without_a_token_and_nothing_else(start: Start) -> None:
    rig = await start(rights="read register operate", metrics="")
    await eventually("it says that it is ready", lambda: rig.log("daemon_ready"))
    [ready] = rig.log("daemon_ready")
    assert ready["metrics"] == [f"127.0.0.1:{rig.metrics_port}"]
    assert (await rig.get("/v1/status"))["metrics"] == ready["metrics"]
    await rig.watching()
    [chat] = await rig.registered()
    await rig.pushed(chat)
    page = await scraped(rig)
    assert (page.status, page.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    text = page.body.decode()
    assert 'asyncchatd_chat_server_state{server="chat-1",state="up"} 1.0' in text
    assert 'asyncchatd_pushes_total{outcome="known"} 1.0' in text
    there = helps((await rig.api("GET", "/metrics")).body)
    assert helps(page.body) <= there, "some begin once something has happened"

    async def here_too() -> bool:
        return there <= helps((await scraped(rig)).body)

    await rig.eventually("here is all that is there", here_too)
    for secret in (*SECRETS, TOKEN, chat.secure_key, chat.user_id, chat.chat_id):
        assert secret not in text

    for path in ("/", "/v1/status", "/healthz", "/openapi.json", f"/v1/sessions/{chat.chat_id}", "/metrics/"):
        answer = await scraped(rig, path)
        assert (answer.status, answer.error["code"]) == (404, "not_found"), path
    assert (await scraped(rig, "/v1/sessions", "POST")).status == 404
    for method in ("POST", "PUT", "DELETE"):
        assert (await scraped(rig, method=method)).status == 405
    assert (await scraped(rig, method="HEAD")).status == 200
    # The control API asks for its token as before.
    url = f"http://127.0.0.1:{rig.control_port}/metrics"
    async with aiohttp.ClientSession() as stranger, stranger.get(url) as response:
        assert response.status == 401


async def test_who_may_scrape_is_taken_over_by_a_reload(start: Start) -> None:
    rig = await start(metrics="")
    assert (await scraped(rig)).status == 200
    rig.config.write_text(rig.config.read_text().replace("[metrics]\n", '[metrics]\nallow = ["192.0.2.1"]\n'))
    assert rig.process is not None
    rig.process.send_signal(signal.SIGHUP)
    await eventually("the reload", lambda: rig.log("config_reloaded"))
    assert rig.log("config_reloaded")[0]["changed"] == ["metrics.allow"]
    with pytest.raises(aiohttp.ClientError):
        await scraped(rig)


async def test_without_the_section_it_comes_with_a_restart_alone(start: Start) -> None:
    rig = await start()
    rig.config.write_text(f'{rig.config.read_text()}\n[metrics]\nlisten = "127.0.0.1:{rig.metrics_port}"\n')
    assert rig.process is not None
    rig.process.send_signal(signal.SIGHUP)
    await eventually("the refusal", lambda: rig.log("config_refused"))
    assert "metrics.listen cannot be changed" in str(rig.log("config_refused")[0]["cause"])
    await rig.stop()
    await rig.start()
    assert (await scraped(rig)).status == 200
