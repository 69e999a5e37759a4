"""What stands in front of several nodes, as docs/nodes.md has HAProxy.

Pushes go to the nodes in turn, what a chat page asks goes to the node that its chat id names. A node that is not ready
gets nothing, and what it was asked is cut off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256

import aiohttp
from aiohttp import web

from asyncchatd.rehearsing.together.node import Node
from asyncchatd.rehearsing.trial import meanwhile

LOOK_SECONDS = 1.0
"""Between two looks at whether a node is ready, and so long a look may take."""

FALL = 2
"""So many looks must fail for a node to get nothing more."""

CONNECT_SECONDS = 2.0
PUSH_SECONDS, PAGE_SECONDS = 60.0, 120.0

PATH = "/genesys"

OWN = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})
"""Headers of one connection."""


class Balancer:
    """The address of all nodes. `refused` counts what it could not get an answer for."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = list(nodes)
        self._failed = dict.fromkeys(self._nodes, 0)
        self._asked: dict[Node, set[asyncio.Task[object]]] = {node: set() for node in self._nodes}
        self._turn = 0
        self.push_url = ""
        self.gateway = ""
        """Base URL for chat clients."""
        self.refused_pushes = 0
        self.refused_pages = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It listens meanwhile."""
        app = web.Application()
        app.router.add_post("/push", self._push)
        app.router.add_route("*", f"{PATH}/{{path:.*}}", self._page)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.push_url, self.gateway = f"http://{host}:{port}/push", f"http://{host}:{port}{PATH}"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._http:
            try:
                async with meanwhile(*(self._look(node) for node in self._nodes)):
                    yield
            finally:
                await runner.cleanup()

    async def _look(self, node: Node) -> None:
        timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(node.control.path or "")) as http:
            while True:
                began = time.monotonic()
                ready = False
                with suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with http.get("http://control/readyz", timeout=timeout) as answer:
                        ready = answer.status == 200
                self._failed[node] = 0 if ready else self._failed[node] + 1
                if self._failed[node] == FALL:
                    for task in self._asked[node]:
                        task.cancel()
                await asyncio.sleep(max(0.0, began + LOOK_SECONDS - time.monotonic()))

    def _serve(self) -> list[Node]:
        return [node for node in self._nodes if node.push_url and self._failed[node] < FALL]

    async def _push(self, request: web.Request) -> web.Response:
        nodes = self._serve()
        self._turn += 1
        turn = self._turn % max(1, len(nodes))
        in_turn = [*nodes[turn:], *nodes[:turn]]
        answer = await self._passed_on(request, in_turn, lambda node: node.push_url, PUSH_SECONDS)
        self.refused_pushes += answer.status != 200
        return answer

    async def _page(self, request: web.Request) -> web.Response:
        parts = request.rel_url.raw_path.split("/")
        chat = parts[5] if len(parts) > 5 else str(self._turn)
        self._turn += len(parts) <= 5
        nodes = sorted(self._serve(), key=lambda node: sha256(f"{node.name}/{chat}".encode()).digest())
        path = request.rel_url.raw_path_qs.removeprefix(PATH)
        answer = await self._passed_on(request, nodes, lambda node: node.gateway + path, PAGE_SECONDS)
        self.refused_pages += answer.status >= 500
        return answer

    async def _passed_on(
        self, request: web.Request, nodes: Sequence[Node], url: Callable[[Node], str], seconds: float
    ) -> web.Response:
        """The answer of the first of these nodes to which a connection is made: what was sent is not sent twice."""
        body = await request.read()
        for node in nodes:
            asked = asyncio.create_task(self._answer(request, body, url(node), seconds))
            self._asked[node].add(asked)
            try:
                await asyncio.wait((asked,))
            finally:
                asked.cancel()  # where the client has gone
                self._asked[node].discard(asked)
            if asked.cancelled():
                return web.Response(status=502)
            if (answer := asked.result()) is not None:
                return answer
        return web.Response(status=503)

    async def _answer(
        self, request: web.Request, body: bytes, url: str, seconds: float
    ) -> web.Response | None:
        """A node's answer, 502 where none came; `None` without a connection to it."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in OWN}
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        try:
            async with self._http.request(
                request.method,
                url,
                data=body or None,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in OWN}
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return web.Response(status=502)
