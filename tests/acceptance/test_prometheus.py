"""A real Prometheus, where there is one: it scrapes a running daemon, and an alert fires and is resolved."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from .conftest import Start
from .plant import free_port
from .rig import Rig

ROOT = Path(__file__).parents[2]
PROMETHEUS = shutil.which("prometheus")
WITHIN = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus (Debian: apt-get install prometheus)"),
]


def quickened() -> dict[str, Any]:
    """The rules of the project, looked at every second, and none waits longer than that."""
    rules: dict[str, Any] = yaml.safe_load((ROOT / "etc/alerts.yml").read_text())
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s"
    return rules


class Prometheus:
    """A server that runs, asked over its API."""

    def __init__(self, port: int, http: aiohttp.ClientSession) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._http = http

    async def ready(self) -> bool:
        try:
            async with self._http.get(f"{self._base}/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def scrapes(self) -> bool:
        """Whether its only target is up."""
        async with self._http.get(f"{self._base}/api/v1/targets") as response:
            targets = (await response.json())["data"]["activeTargets"]
        return [each["health"] for each in targets] == ["up"]

    async def alerts(self) -> dict[str, dict[str, Any]]:
        """Those that are pending or firing, by name."""
        async with self._http.get(f"{self._base}/api/v1/alerts") as response:
            found = (await response.json())["data"]["alerts"]
        return {each["labels"]["alertname"]: each for each in found}

    async def fires(self, name: str) -> bool:
        alert = (await self.alerts()).get(name)
        return alert is not None and alert["state"] == "firing"


@asynccontextmanager
async def prometheus(directory: Path, rig: Rig) -> AsyncIterator[Prometheus]:
    """One that scrapes the daemon at its address of its own, with the rules of the project."""
    assert PROMETHEUS is not None
    (directory / "alerts.yml").write_text(yaml.safe_dump(quickened()))
    config = yaml.safe_load((ROOT / "etc/prometheus.yml").read_text())
    config["rule_files"] = [str(directory / "alerts.yml")]
    config["scrape_configs"][0] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{rig.metrics_port}"]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            PROMETHEUS,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        async with aiohttp.ClientSession() as http:
            server = Prometheus(port, http)
            await rig.eventually("Prometheus is ready", server.ready, within=WITHIN)
            yield server
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_an_alert_fires_when_a_chat_server_is_killed_and_ends_when_it_is_back(
    start: Start, tmp_path: Path
) -> None:
    rig = await start(metrics="")
    await rig.watching()
    async with prometheus(tmp_path, rig) as server:
        await rig.eventually("the daemon is scraped", server.scrapes, within=WITHIN)
        assert "AsyncchatdChatServerDown" not in await server.alerts()
        lost = rig.plant.servers[0]
        await rig.plant.kill(lost)
        await rig.eventually(
            "the alert fires", lambda: server.fires("AsyncchatdChatServerDown"), within=WITHIN
        )
        alert = (await server.alerts())["AsyncchatdChatServerDown"]
        assert alert["labels"]["server"] == lost.name
        assert alert["labels"]["severity"] == "critical"
        assert alert["annotations"]["runbook_url"] == "docs/runbook.md#asyncchatdchatserverdown"
        await rig.plant.revive(lost)

        async def resolved() -> bool:
            return "AsyncchatdChatServerDown" not in await server.alerts()

        await rig.eventually("the alert ends", resolved, within=WITHIN)

        # The daemon itself: away, and back.
        await rig.stop()
        await rig.eventually("its absence fires", lambda: server.fires("AsyncchatdDown"), within=WITHIN)
        await rig.start()

        async def back() -> bool:
            return "AsyncchatdDown" not in await server.alerts()

        await rig.eventually("it is back", back, within=WITHIN)
