"""The examples of proxies before several nodes, run: whichever node stops, no push is refused."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from conftest import PATIENCE, Certificates, FakeClock, claimed_port, listening, settings_of, soon
from stores.waiting import until
from yarl import URL

from asyncchatd.model import Ms
from asyncchatd.preflight.extras import EXTRAS, planned
from asyncchatd.receiver import Receiver
from asyncchatd.standin.messages import write_push
from asyncchatd.stores import Taken
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.wire import Push

from .test_extras import HAPROXY, NGINX

pytestmark = [pytest.mark.usefixtures("events"), pytest.mark.slow]

PUSH = write_push("device-of-chat-1", {"session-id": "chat-1", "secure-key": "key-of-chat-1"})
CLIENTS = 6
"""Half of them make a connection for each push."""


@dataclass
class Node:
    """What a proxy sees of a node."""

    ready: bool = True
    keeps: bool = True
    taken: int = 0
    refused: int = 0
    ports: list[int] = field(default_factory=list)
    """Of the receiver and of the control API."""
    life: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def take_push(self, push: Push, *, now: Ms) -> Taken:
        if not self.keeps:
            self.refused += 1
            raise StoreUnwritable("the database is away")
        self.taken += 1
        return Taken.KNOWN

    async def start(self) -> None:
        settings = settings_of().receiver
        pushes = Receiver(self, settings, FakeClock(), asyncio.Event()).app()
        control = web.Application()
        control.router.add_get("/readyz", self._readyz)
        for app, grace in ((pushes, 1.0), (control, 0.0)):
            base = await self.life.enter_async_context(listening(app, grace=grace))
            self.ports.append(URL(base).port or 0)

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready else 503)


@asynccontextmanager
async def behind(
    name: str, program: str | None, directory: Path, certificates: Certificates
) -> AsyncIterator[tuple[list[Node], str]]:
    """Two nodes, and the address of the proxy before them, which runs by its example."""
    assert program is not None
    nodes = [Node(), Node()]
    async with AsyncExitStack() as stack:
        for node in nodes:
            await node.start()
            stack.push_async_callback(node.life.aclose)
        both = directory / "both.pem"
        both.write_bytes(certificates.server.read_bytes() + certificates.server_key.read_bytes())
        with claimed_port() as pushes, claimed_port() as clients:
            port, other = (each.getsockname()[1] for each in (pushes, clients))
        [(file, text)] = planned([name], directory, config="").items()
        text = re.sub(r"/etc/\S+\.(?:pem|key)(?=[;\s])", str(both), text)
        text = re.sub(r"(bind :|listen )8443\b", rf"\g<1>{port}", text).replace("bind :", "bind 127.0.0.1:")
        text = re.sub(r"(bind 127.0.0.1:|listen )443\b", rf"\g<1>{other}", text)
        text = re.sub(r"listen (\d+)", r"listen 127.0.0.1:\1", text)
        for host, node in zip(("10.0.0.1", "10.0.0.2"), nodes, strict=True):
            receiver, control = node.ports
            text = re.sub(rf"{host}:\d+ port \d+", f"127.0.0.1:{receiver} port {control}", text)
            text = re.sub(rf"{host}:\d+", f"127.0.0.1:{receiver}", text)
        file.write_text(text)
        command = [program, "-f", str(file)]
        if name.startswith("nginx"):
            whole = directory / "whole.conf"
            places = "".join(
                f"{each}_temp_path {directory}/{each}; "
                for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            whole.write_text(
                f"daemon off; master_process off; pid {directory}/pid; error_log stderr; events {{}}\n"
                f"http {{ access_log off; {places} include {file}; }}\n"
            )
            command = [program, "-p", str(directory), "-c", str(whole)]
        with (directory / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            yield nodes, f"https://127.0.0.1:{port}/push/push-secret-1"
        finally:
            process.terminate()
            await soon(process.wait())


@asynccontextmanager
async def pushes_without_end(url: str, certificates: Certificates) -> AsyncIterator[list[int | str]]:
    """Meanwhile pushes are sent; what each came to."""
    context = ssl.create_default_context(cafile=certificates.ca)
    answers: list[int | str] = []

    async def client(*, anew: bool) -> None:
        connector = aiohttp.TCPConnector(ssl=context, force_close=anew)
        async with aiohttp.ClientSession(connector=connector) as http:
            while True:
                try:
                    async with http.post(url, data=PUSH) as answer:
                        await answer.read()
                        answers.append(answer.status)
                except aiohttp.ClientError as error:
                    answers.append(repr(error))
                    await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(anew=number % 2 == 0)) for number in range(CLIENTS)]
        try:
            yield answers
        finally:
            for task in tasks:
                task.cancel()


async def served(answers: list[int | str], count: int = 100) -> None:
    """Wait for so many further pushes."""
    before = len(answers)
    await until(lambda: len(answers) >= before + count)


def test_both_examples_of_several_nodes_are_run_here() -> None:
    assert {name for name in EXTRAS if name.endswith("-nodes")} == {"haproxy-nodes", "nginx-nodes"}


@pytest.mark.parametrize(
    ("name", "program"),
    [
        pytest.param(
            "haproxy-nodes", HAPROXY, marks=pytest.mark.skipif(HAPROXY is None, reason="needs haproxy")
        ),
        pytest.param("nginx-nodes", NGINX, marks=pytest.mark.skipif(NGINX is None, reason="needs nginx")),
    ],
)
async def test_no_push_is_refused_while_a_node_stops(
    name: str, program: str | None, tmp_path: Path, certificates: Certificates
) -> None:
    async with behind(name, program, tmp_path, certificates) as (nodes, url):
        async with pushes_without_end(url, certificates) as answers:
            await until(lambda: 200 in answers and all(node.taken for node in nodes))
            begun = len(answers)
            await served(answers)
            await nodes[0].life.aclose()
            was = nodes[0].taken
            await served(answers, 300)
            assert nodes[0].taken == was
        assert set(answers[begun:]) == {200}
    # Nor does the proxy tell of the node that is gone with the path, which holds the secret.
    assert b"push-secret-1" not in (tmp_path / "log").read_bytes()


@pytest.mark.skipif(HAPROXY is None, reason="needs haproxy")
async def test_haproxy_gives_nothing_to_a_node_that_is_not_ready(
    tmp_path: Path, certificates: Certificates
) -> None:
    """Its pushes would be answered with 503 while it does not reach the database."""
    async with (
        behind("haproxy-nodes", HAPROXY, tmp_path, certificates) as (nodes, url),
        pushes_without_end(url, certificates) as answers,
    ):
        await until(lambda: all(node.taken for node in nodes))
        nodes[0].ready = False
        was = -1
        async with asyncio.timeout(PATIENCE):
            while was != nodes[0].taken:
                was = nodes[0].taken
                await served(answers)
        nodes[0].ready = True
        await until(lambda: nodes[0].taken > was)


@pytest.mark.skipif(HAPROXY is None, reason="needs haproxy")
async def test_haproxy_gives_a_push_that_a_node_could_not_keep_to_another_one(
    tmp_path: Path, certificates: Certificates
) -> None:
    """Until it has found out that the node is not ready."""
    async with (
        behind("haproxy-nodes", HAPROXY, tmp_path, certificates) as (nodes, url),
        pushes_without_end(url, certificates) as answers,
    ):
        await until(lambda: all(node.taken for node in nodes))
        begun = len(answers)
        nodes[0].keeps = False
        await served(answers, 300)
        assert nodes[0].refused
        assert set(answers[begun:]) == {200}
