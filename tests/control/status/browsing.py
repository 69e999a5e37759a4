"""Two ways to run the status page's script: in Chromium, where there is one, and in V8 with a DOM of our own.

Both are asked the same: `tell` sends an event of `/v1/live`, `once` waits until an expression is true, and `look`
is the value of one.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from py_mini_racer import MiniRacer

from asyncchatd.control.status import page

PATIENCE_SECONDS = 60.0
DOM = Path(__file__).with_name("dom.js").read_text()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(Protocol):
    """Somebody who has the status page open."""

    async def tell(self, event: str, data: object) -> None:
        """The daemon sends an event."""

    async def hang_up(self) -> None:
        """The daemon ends the answer."""

    async def refuse(self, status: int, answer: object) -> None:
        """The daemon ends the answer, and gives this one in place of the next."""

    async def once(self, condition: str) -> None:
        """Wait until the expression is true."""

    async def look(self, expression: str) -> Any:
        """The value of an expression in the page."""


def block(event: str, data: object) -> str:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


class Ids(HTMLParser):
    """The elements of the page that have an id, and its script."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.script = ""
        self._within = ""
        self.feed(page.HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        if name := dict(attrs).get("id"):
            self.found.append((tag, name))

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.script += data


class InEngine:
    """The script in V8, with `dom.js` in place of a browser. All that it does is done when a call returns."""

    def __init__(self) -> None:
        parsed = Ids()
        self._engine = MiniRacer()
        self._engine.eval(DOM)
        self._engine.eval(f"build({json.dumps(parsed.found)})")
        self._engine.eval(parsed.script)

    async def tell(self, event: str, data: object) -> None:
        self._engine.eval(f"stream.push({json.dumps(block(event, data))}), 0")

    async def hang_up(self) -> None:
        self._engine.eval("stream.end(), 0")

    async def refuse(self, status: int, answer: object) -> None:
        self._engine.eval(f"stream.refused = {json.dumps({'status': status, 'answer': answer})}, 0")
        await self.hang_up()

    async def once(self, condition: str) -> None:
        if not self._engine.eval(f"Boolean({condition})"):
            self._engine.eval("fire(RETRY_MS), 0")
        assert self._engine.eval(f"Boolean({condition})"), await self.look("document.body.textContent")

    async def look(self, expression: str) -> Any:
        return json.loads(str(self._engine.eval(f"JSON.stringify({expression})")))


class Daemon:
    """What the page asks, with its own headers; the events are the test's."""

    def __init__(self) -> None:
        self.parts: asyncio.Queue[str | None] = asyncio.Queue()
        self.refused: tuple[int, object] | None = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/v1/live", self._live)
        return app

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=page.HTML, content_type="text/html", charset="utf-8", headers=page.HEADERS)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        if self.refused:
            return web.json_response(self.refused[1], status=self.refused[0])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while (part := await self.parts.get()) is not None:
            await response.write(part.encode())
        return response


class InBrowser:
    """The page in Chromium, spoken to over the DevTools protocol."""

    def __init__(self, daemon: Daemon, pipe: Pipe, session: str) -> None:
        self._daemon = daemon
        self._pipe = pipe
        self._session = session

    async def loaded(self) -> None:
        """Wait until the script has run."""
        await self._evaluate(
            "document.readyState === 'complete' || new Promise((done) => addEventListener('load', () => done(true)))"
        )

    async def tell(self, event: str, data: object) -> None:
        self._daemon.parts.put_nowait(block(event, data))

    async def hang_up(self) -> None:
        self._daemon.parts.put_nowait(None)

    async def refuse(self, status: int, answer: object) -> None:
        self._daemon.refused = (status, answer)
        await self.hang_up()

    async def once(self, condition: str) -> None:
        await self._evaluate(
            f"""new Promise((done) => {{
                const look = () => ({condition}) && done(true);
                new MutationObserver(look).observe(document,
                    {{ subtree: true, childList: true, attributes: true, characterData: true }});
                look();
            }})"""
        )

    async def look(self, expression: str) -> Any:
        return json.loads(await self._evaluate(f"JSON.stringify({expression})"))

    async def _evaluate(self, expression: str) -> Any:
        answer = await self._pipe.call(
            "Runtime.evaluate", self._session, expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")


class Pipe:
    """The DevTools protocol over two pipes: JSON messages, each ended by a zero byte."""

    def __init__(self, reader: asyncio.StreamReader, write: int) -> None:
        self._reader = reader
        self._write = write
        self._numbers = itertools.count(1)

    async def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """The result of a call; events and what is said between are passed over."""
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                said = json.loads((await self._reader.readuntil(b"\0"))[:-1])
                if said.get("id") == number:
                    assert "error" not in said, said
                    result: dict[str, Any] = said["result"]
                    return result


@asynccontextmanager
async def in_browser() -> AsyncIterator[InBrowser]:
    """The page in a Chromium of its own, which is gone afterwards."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    daemon = Daemon()
    async with TestServer(daemon.app(), host="127.0.0.1") as server:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            async with _chromium(CHROMIUM, directory) as pipe:
                target = await pipe.call("Target.createTarget", url="about:blank")
                attached = await pipe.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
                reader = InBrowser(daemon, pipe, attached["sessionId"])
                # Answered once the page is there: what is asked before that is asked of the blank one.
                await pipe.call("Page.navigate", attached["sessionId"], url=str(server.make_url("/")))
                await reader.loaded()
                yield reader
                daemon.parts.put_nowait(None)


@asynccontextmanager
async def _chromium(program: str, directory: str) -> AsyncIterator[Pipe]:
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    high = [fcntl.fcntl(each, fcntl.F_DUPFD, 20) for each in (theirs_in, theirs_out)]
    os.close(theirs_in)
    os.close(theirs_out)
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        f" --disable-component-update --disable-sync --user-data-dir={directory} --remote-debugging-pipe"
    )
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", f'exec "$0" {options} about:blank 3<&{high[0]} 4>&{high[1]}', program,
        pass_fds=high, start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    for each in high:
        os.close(each)
    stream = asyncio.StreamReader(limit=1 << 24)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(ours_in, "rb")
    )
    try:
        yield Pipe(stream, ours_out)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        transport.close()
        os.close(ours_out)


@asynccontextmanager
async def in_engine() -> AsyncIterator[InEngine]:
    """The page in V8."""
    yield InEngine()
