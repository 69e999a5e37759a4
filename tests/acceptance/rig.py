"""The rig: one plant, one daemon as a process, and the words a test says to both."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypedDict, Unpack, cast

import aiohttp
from forked import Forked, forked

from .plant import KEY_MARK, Body, Chat, Plant, Refresh, encoded, free_port, push

SECRETS = ("pushsecret-first-7d1f", "pushsecret-second-90ac")

TOKEN = "controltoken-4c2b"

GATEWAY_KEY = "9b" * 32

Json = dict[str, object]


@dataclass
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Json:
        return cast(Json, json.loads(self.body))

    @property
    def error(self) -> Json:
        return cast(Json, self.json["error"])


async def eventually(what: str, true: Callable[[], object], *, within: float = 5.0) -> float:
    """Wait for a condition; how long it took in seconds. AssertionError when the time is over."""
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > within:
            raise AssertionError(f"not within {within} s: {what}")
        await asyncio.sleep(0.01)
    return time.monotonic() - start


async def never(what: str, true: Callable[[], object], *, during: float) -> None:
    """Watch that a condition does not come true during a bounded time."""
    start = time.monotonic()
    while time.monotonic() - start < during:
        assert not true(), f"happened: {what}"
        await asyncio.sleep(0.01)


class Settings(TypedDict, total=False):
    """What a test may want of the configuration; durations as in the file."""

    interval: str
    max_rate: float
    max_in_flight: int
    watch: str
    fast: str
    watch_timeout: str
    gms_timeout: str
    rest: str
    lease: str
    backoff: str
    backoff_max: str
    insist: str
    gms: str
    receiver: str
    rights: str
    """Of the token that the rig shows; without, there are no tokens."""
    server_keys: Mapping[str, str]
    consumer: str
    """The lines of one `[[consumer]]`."""
    metrics: str
    """The lines of `[metrics]` besides its address."""
    log: str
    """Further lines of `[log]`."""
    gateway: str
    """The lines of `[gateway]` besides its address, its keys and the GMS cluster."""


class Scene(Settings, total=False):
    """A plant and the settings of its daemon."""

    servers: int
    nodes: int
    prepare: Callable[[Plant], object]


class Rig:
    """The daemon under judgement and the plant it serves."""

    def __init__(
        self, directory: Path, plant: Plant, http: aiohttp.ClientSession, **settings: Unpack[Settings]
    ) -> None:
        self.plant = plant
        self.http = http
        self.directory = directory
        self.push_port, self.control_port, self.gateway_port = free_port(), free_port(), free_port()
        self.metrics_port = free_port()
        self.config = directory / "asyncchatd.toml"
        self.output = directory / "output.log"
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.forgiven: set[str] = set()
        """Kinds of breaches that the scenario itself makes unavoidable."""
        self.config.write_text(self._configuration(settings))

    def _configuration(self, settings: Settings) -> str:
        nodes = ", ".join(f'"{node.url}"' for node in self.plant.nodes)
        lines = f"""
            [receiver]
            listen = "127.0.0.1:{self.push_port}"
            secrets = {list(SECRETS)}
            {settings.get("receiver", "")}
            [control]
            listen = "127.0.0.1:{self.control_port}"
            {self._tokens(settings)}
            [gms]
            nodes = [{nodes}]
            service = "customer-support"
            timeout = "{settings.get("gms_timeout", "2s")}"
            connect_timeout = "500ms"
            rest = "{settings.get("rest", "200ms")}"
            rest_max = "1s"
            {settings.get("gms", "")}
            [store]
            url = "sqlite:///store.db"
            [ping]
            interval = "{settings.get("interval", "365d")}"
            [restoration]
            max_rate = {settings.get("max_rate", 500)}
            max_in_flight = {settings.get("max_in_flight", 50)}
            lease = "{settings.get("lease", "2500ms")}"
            backoff = "{settings.get("backoff", "200ms")}"
            backoff_max = "{settings.get("backoff_max", "800ms")}"
            insist = "{settings.get("insist", "2m")}"
            [watcher]
            interval = "{settings.get("watch", "200ms")}"
            timeout = "{settings.get("watch_timeout", "300ms")}"
            fall = 3
            rise = 2
            fast_interval = "{settings.get("fast", "100ms")}"
            [log]
            level = "debug"
            format = "json"
            {settings.get("log", "")}
            """
        for server in self.plant.servers:
            more = settings.get("server_keys", {}).get(server.name, "")
            lines += f'[[chat_server]]\nname = "{server.name}"\nhealth_url = "{server.health_url}"\n{more}\n'
        if "metrics" in settings:
            lines += f'[metrics]\nlisten = "127.0.0.1:{self.metrics_port}"\n{settings["metrics"]}\n'
        if "gateway" in settings:
            lines += f"[gateway]\n{self._gateway(settings)}\n"
        if "consumer" in settings:
            lines += f"[[consumer]]\n{settings['consumer']}\n"
        return "\n".join(line.strip() for line in lines.splitlines())

    def _gateway(self, settings: Settings) -> str:
        (self.directory / "gateway-keys").write_text(f"{GATEWAY_KEY}\n")
        (self.directory / "gateway-keys").chmod(0o600)
        listen = f'listen = "127.0.0.1:{self.gateway_port}"'
        return f'{listen}\nkey_file = "gateway-keys"\nnode_group = "gms-cluster"\n{settings["gateway"]}'

    def _tokens(self, settings: Settings) -> str:
        if "rights" not in settings:
            return ""
        (self.directory / "tokens").write_text(f"{TOKEN} {settings['rights']}\n")
        (self.directory / "tokens").chmod(0o600)
        self.http.headers["Authorization"] = f"Bearer {TOKEN}"
        return 'token_file = "tokens"'

    # The process

    async def start(self, *, within: float = 30.0, fds: Mapping[str, socket.socket] | None = None) -> None:
        """Start the daemon and wait until it is ready; `fds` are systemd's sockets by their names."""
        arguments = ["run", "--config", str(self.config)]
        env = {
            name: value for name, value in os.environ.items() if not name.startswith(("LISTEN_", "NOTIFY_"))
        }
        with self.output.open("ab") as output:
            if fds:
                self.process = _activated(fds, arguments, directory=self.directory, env=env, output=output)
            else:
                self.process = forked(arguments, directory=self.directory, env=env, output=output)
        deadline = time.monotonic() + within
        while not await self._is_ready():
            assert self.process.poll() is None, (
                f"the daemon ended with {self.process.returncode}: {self.log_text()}"
            )
            assert time.monotonic() < deadline, f"not ready within {within} s: {self.log_text()}"
            await asyncio.sleep(0.02)

    async def _is_ready(self) -> bool:
        try:
            return (await self.api("GET", "/readyz")).status == 200
        except aiohttp.ClientError:
            return False

    async def ended(self, *, within: float = 10.0) -> int:
        """Wait for the process to end; its exit code."""
        assert self.process is not None
        process = self.process
        await eventually("the daemon's end", lambda: process.poll() is not None, within=within)
        self.process = None
        assert process.returncode is not None
        return process.returncode

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    async def stop(self, *, within: float = 10.0) -> None:
        """A planned stop, which must be clean."""
        self.terminate()
        code = await self.ended(within=within)
        assert code == 0, f"exit code {code} after SIGTERM: {self.log_text()[-3000:]}"

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.ended()

    def log_text(self) -> str:
        return self.output.read_text(errors="replace")

    def log(self, name: str) -> list[Json]:
        """The log's events of this name."""
        events = []
        for line in self.log_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                entry = cast(Json, json.loads(line))
                if entry.get("event") == name:
                    events.append(entry)
        return events

    async def told(self, chat: Chat) -> str:
        """The story that `asyncchatd logs` tells of a chat."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asyncchatd", "logs", "--chat", chat.chat_id, str(self.output)),
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
        return told.decode()

    # The control API

    async def api(self, method: str, path: str, body: object = None, *, raw: bytes | None = None) -> Answer:
        payload = raw if raw is not None else None if body is None else json.dumps(body).encode()
        data = None if payload is None else BytesIO(payload)
        headers = {} if data is None else {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.control_port}{path}"
        async with self.http.request(method, url, data=data, headers=headers) as response:
            return Answer(response.status, await response.read(), response.headers)

    async def get(self, path: str) -> Json:
        answer = await self.api("GET", path)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json

    async def session(self, chat: Chat) -> Json:
        return await self.get(f"/v1/sessions/{chat.chat_id}")

    async def kept(self, chat: Chat) -> None:
        """The session can be seen, as it must be soon after the push that brought it."""

        async def seen() -> bool:
            return (await self.api("GET", f"/v1/sessions/{chat.chat_id}")).status == 200

        await self.eventually("the session", seen, within=1)

    async def register(self, chats: Iterable[Chat]) -> Answer:
        """Many at once, one JSON object on a line."""
        lines = "".join(json.dumps(chat.body()) + "\n" for chat in chats)
        url = f"http://127.0.0.1:{self.control_port}/v1/sessions"
        headers = {"Content-Type": "application/x-ndjson"}
        async with self.http.post(url, data=BytesIO(lines.encode()), headers=headers) as response:
            answer = Answer(response.status, await response.read(), response.headers)
        assert answer.status in {200, 201}, (answer.status, answer.body)
        return answer

    async def registered(self, count: int = 1, alias: str | None = None) -> list[Chat]:
        """New chats on a Chat Server, registered with the daemon."""
        chats = self.plant.several(count, alias)
        await self.register(chats)
        return chats

    async def ask_ping(self, chat: Chat) -> Answer:
        answer = await self.api("POST", f"/v1/sessions/{chat.chat_id}/ping")
        assert answer.status in {200, 202, 204}, (answer.status, answer.body)
        return answer

    async def pinged(self, chat: Chat) -> Refresh:
        """Ask for a ping and wait for its answer to have been given."""
        before = len(chat.refreshes)
        await self.ask_ping(chat)
        await eventually("the ping asked for", lambda: answered(chat.refreshes[before:]))
        await self.settled()
        return chat.refreshes[before]

    async def settled(self) -> None:
        """Nothing is in flight, nor has been for a moment: what the replies carried is in the store."""
        deadline = time.monotonic() + 5
        calm = 0
        while calm < 3:
            pings = cast(Json, (await self.get("/v1/status"))["pings"])
            calm = calm + 1 if pings["in_flight"] == 0 else 0
            assert time.monotonic() < deadline, f"still in flight: {pings}"
            await asyncio.sleep(0.01)

    async def told_ended(self, chat: Chat) -> None:
        async def ended() -> bool:
            return (await self.session(chat))["state"] == "ended"

        await self.eventually("the end in the store", ended)

    async def told_answered(self, chat: Chat) -> None:
        async def has_answer() -> bool:
            return (await self.session(chat))["answered_at"] is not None

        await self.eventually("the first answer in the store", has_answer)

    async def servers(self) -> dict[str, Json]:
        listed = cast(list[Json], (await self.get("/v1/servers"))["servers"])
        return {str(server["name"]): server for server in listed}

    async def watching(self) -> None:
        """Every Chat Server is known to be up."""
        await self.eventually("all servers up", self._all_up)

    async def _all_up(self) -> bool:
        return all(server["state"] == "up" for server in (await self.servers()).values())

    async def until_state(self, name: str, *states: str, within: float = 5.0) -> None:
        async def seen() -> bool:
            return (await self.servers())[name]["state"] in states

        await self.eventually(f"{name} in {states}", seen, within=within)

    async def eventually(
        self, what: str, true: Callable[[], Awaitable[object]], *, within: float = 5.0
    ) -> None:
        deadline = time.monotonic() + within
        while not await true():
            assert time.monotonic() < deadline, f"not within {within} s: {what}"
            await asyncio.sleep(0.02)

    # The push endpoint

    async def push(
        self,
        body: Body,
        *,
        secret: str = SECRETS[0],
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        url = f"http://127.0.0.1:{self.push_port}/push/{secret}"
        async with self.http.post(
            url, data=encoded(body), headers={"Content-Type": "application/json"} | dict(headers or {})
        ) as response:
            return Answer(response.status, await response.read(), response.headers)

    async def pushed(self, chat: Chat, message: object = "dummy message") -> None:
        """A push that must be taken."""
        answer = await self.push(push(chat, message))
        assert answer.status == 200, (answer.status, answer.body)

    async def acknowledged(
        self,
        chat: Chat,
        body: Body,
        *,
        within: float = 2.0,
        secret: str = SECRETS[0],
        headers: Mapping[str, str] | None = None,
    ) -> Refresh:
        """A push that must be taken and acknowledged by a Refresh; the Refresh."""
        before = len(chat.refreshes)
        answer = await self.push(body, secret=secret, headers=headers)
        assert answer.status == 200, (answer.status, answer.body)
        await eventually(
            "the Refresh that acknowledges", lambda: answered(chat.refreshes[before:]), within=within
        )
        return chat.refreshes[before]

    async def acknowledged_anywhere(self, chat: Chat, body: Body) -> Refresh:
        """As `acknowledged`, where the daemon cannot know the position: none or any but 0 will do."""
        self.plant.forget_position(chat)
        return await self.acknowledged(chat, body)

    async def api_on_push_port(self, method: str, path: str, body: bytes) -> Answer:
        async with self.http.request(
            method, f"http://127.0.0.1:{self.push_port}{path}", data=body
        ) as response:
            return Answer(response.status, await response.read(), response.headers)

    # The verdict

    def verdict(self) -> None:
        """No rule was broken, and nothing secret came out."""
        broken = {kind: count for kind, count in self.plant.breaches.items() if kind not in self.forgiven}
        assert not broken, f"{broken}: {self.plant.evidence}"
        text = self.log_text()
        for secret in (KEY_MARK, TOKEN, GATEWAY_KEY, *SECRETS):
            where = text.find(secret)
            assert where < 0, f"a secret in the log: ...{text[max(0, where - 300) : where + 100]}"
        assert "Traceback" not in text, text[text.find("Traceback") - 500 :][:3000]


def _activated(
    fds: Mapping[str, socket.socket],
    arguments: Sequence[str],
    *,
    directory: Path,
    env: Mapping[str, str],
    output: BinaryIO,
) -> subprocess.Popen[bytes]:
    """The daemon as systemd starts it: with sockets from descriptor 3 on, for the process it names."""
    numbers = [one.fileno() for one in fds.values()]
    passed = " ".join(f"{3 + n}<&{number}" for n, number in enumerate(numbers))
    command = str(Path(sys.executable).with_name("asyncchatd"))
    return subprocess.Popen(
        ["/bin/bash", "-c", f'LISTEN_PID=$$ exec "$@" {passed}', "bash", command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=directory,
        env={**env, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(fds)},
        pass_fds=numbers,
    )


def _settings(scene: Scene) -> Settings:
    of_the_plant = {"servers", "nodes", "prepare"}
    return cast(Settings, {name: value for name, value in scene.items() if name not in of_the_plant})


def answered(refreshes: Iterable[Refresh]) -> bool:
    return any(refresh.answered is not None for refresh in refreshes)


@asynccontextmanager
async def running(directory: Path, **scene: Unpack[Scene]) -> AsyncIterator[Rig]:
    """A plant and a daemon, both started; at the end a planned stop and the verdict."""
    plant = Plant(servers=scene.get("servers", 2), nodes=scene.get("nodes", 1))
    if "prepare" in scene:
        scene["prepare"](plant)
    await plant.start()
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as http:
        rig = Rig(directory, plant, http, **_settings(scene))
        try:
            await rig.start()
            yield rig
            if rig.process is not None:
                await rig.stop()
            rig.verdict()
        finally:
            if rig.process is not None:
                rig.process.kill()
                await rig.ended()
            await plant.stop()


@dataclass
class Stalls:
    """How long this process, which is the plant, stood still: then requests arrive together, and late."""

    longest: float = 0.0
    """Seconds."""
    total: float = 0.0
    """Seconds, of all that were worth mentioning."""


@asynccontextmanager
async def stalls() -> AsyncIterator[Stalls]:
    """What the machine does to the plant meanwhile; the daemon beside it fares no better."""
    seen = Stalls()

    async def watch() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.002)
            late = time.monotonic() - began - 0.002
            seen.longest = max(seen.longest, late)
            seen.total += late if late > 0.005 else 0.0

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()
