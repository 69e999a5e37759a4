"""Genesys' widgets in a headless Chromium, driven over its DevTools port."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8"></head><body><script>
window._genesys = {widgets: {
  main: {theme: "light", lang: "en", plugins: ["cx-webchat", "cx-webchat-service"]},
  webchat: {dataURL: "%(base)s/genesys/2/chat/%(service)s", apikey: "", userData: {order: "7"},
    uploadsEnabled: false, cometD: {enabled: false}, ajaxTimeout: 3000},
  onReady: function (bus) { begin(bus); }}};
function say(what) { tell(JSON.stringify(what)); }
function begin(bus) {
  var me = window.me = bus.registerPlugin ? bus.registerPlugin("Rig") : bus;
  me.subscribe("WebChatService.started", function (e) { say({started: true}); });
  me.subscribe("WebChatService.restored", function (e) { say({restored: true}); });
  me.subscribe("WebChatService.restoreFailed", function () { say({failed: "restore"}); });
  me.subscribe("WebChatService.chatServerWentOffline", function () { say({offline: true}); });
  me.subscribe("WebChatService.error", function (e) { say({failed: JSON.stringify(e && e.data)}); });
  me.subscribe("WebChatService.ended", function () { say({ended: true}); });
  me.subscribe("WebChatService.messageReceived", function (e) {
    ((e.data && e.data.originalMessages && e.data.originalMessages.messages) || e.data.messages || [])
      .forEach(function (m) {
        if (m.type === "Message") say({shown: m.text, from: m.from.type || m.from.participantType});
      });
  });
  say({ready: true});
}
window.onerror = function (text) { say({failed: text}); };
</script><script src="/widgets.min.js"></script></body></html>"""


class Page:
    """One page of a browser."""

    def __init__(
        self, socket: aiohttp.ClientWebSocketResponse, heard: Callable[[dict[str, Any]], None]
    ) -> None:
        self._socket = socket
        self._heard = heard
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def listen(self) -> None:
        """Take what the browser says, until it is gone."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said and said["id"] in self._answers:
                self._answers.pop(said["id"]).set_result(said)
            elif said.get("method") == "Runtime.bindingCalled":
                self._heard(json.loads(said["params"]["payload"]))

    async def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of a command of DevTools."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, 20)

    async def run(self, script: str) -> dict[str, Any]:
        """What the page's script gives."""
        return await self.ask("Runtime.evaluate", expression=script, awaitPromise=False)


@asynccontextmanager
async def served(widgets: Path, base: str, service: str, port: int) -> AsyncIterator[str]:
    """A site with a page that has the widgets; its URL."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE % {"base": base, "service": service}, content_type="text/html")

    async def script(_: web.Request) -> web.FileResponse:
        return web.FileResponse(widgets)

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/widgets.min.js", script)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "localhost", port).start()
    try:
        yield f"http://localhost:{port}/"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def opened(url: str, heard: Callable[[dict[str, Any]], None]) -> AsyncIterator[Page]:
    """That page in a Chromium of its own; what it tells is heard."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
        chromium = await asyncio.create_subprocess_exec(
            "chromium",
            *options,
            *("--remote-debugging-port=0", f"--user-data-dir={directory}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(await _page(http, Path(directory)), max_msg_size=0) as socket,
            ):
                page = Page(socket, heard)
                listening = asyncio.create_task(page.listen())
                await page.ask("Runtime.enable")
                await page.ask("Runtime.addBinding", name="tell")
                await page.ask("Page.enable")
                await page.ask("Page.navigate", url=url)
                try:
                    yield page
                finally:
                    listening.cancel()
        finally:
            chromium.terminate()
            await chromium.wait()


async def _page(http: aiohttp.ClientSession, directory: Path) -> str:
    """The address of the browser's only page."""
    async with asyncio.timeout(60):
        told = directory / "DevToolsActivePort"
        while not (told.exists() and told.read_text().strip()):  # noqa: ASYNC110 - it is another process' file
            await asyncio.sleep(0.05)
        port = told.read_text().split()[0]
        while True:
            async with http.get(f"http://127.0.0.1:{port}/json/list") as response:
                for each in await response.json(content_type=None):
                    if each["type"] == "page":
                        return str(each["webSocketDebuggerUrl"])
            await asyncio.sleep(0.05)
