"""What the tests of the running parts share: time that stands still until it is told to pass, a store
without a thread, GMS nodes that are not there, and the log as programs read it."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import heapq
import io
import itertools
import logging
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

import hypothesis
import orjson
import pytest
import schemas
import structlog
from _pytest.faulthandler import fault_handler_stderr_fd_key
from aiohttp import ClientResponse, web
from aiohttp.abc import AbstractStreamWriter
from aioresponses import aioresponses

from asyncchatd.config.sections.listeners import ReceiverSettings
from asyncchatd.config.settings import Settings
from asyncchatd.listening.listener import Listener
from asyncchatd.log import redaction
from asyncchatd.log.events import Event
from asyncchatd.log.lines import configure
from asyncchatd.model.data import Ms, Reason, Registration, Tokens
from asyncchatd.standin import stop_listening
from asyncchatd.stores.answers import Absorbed
from asyncchatd.stores.sqlite import MemoryStore
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file.writer import Connection

T = TypeVar("T")

NOON = 1_700_000_000_000
"""The wall clock's time when a test begins."""

FAR_OFF_MS = 1e12
"""A spread over which a session registered now is as good as never due."""

PATIENCE = 20.0
"""Seconds after which something on real sockets is taken to hang. Never reached by a test that passes."""

LONGEST_TEST = 120.0
"""Seconds after which a test as a whole is taken to hang, setup and teardown included. One that needs longer
says so with a mark. Ten times what the slowest without a mark takes on a machine with nothing else to do."""


# -- properties ------------------------------------------------------------------------------------

# A busy machine is no failure: no example has a deadline. `make quick` tries fewer, `make fuzz` many.
hypothesis.settings.register_profile("few", max_examples=50, deadline=None)
hypothesis.settings.register_profile("fewer", max_examples=10, deadline=None)
hypothesis.settings.register_profile("many", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("few")


# -- nothing waits for ever ------------------------------------------------------------------------


def ran(*command: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """A program that ended, and what it said. One that does not is asked to before it is made to: what it has
    started itself ends with it then."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said, complained = process.communicate(timeout=seconds)
        except BaseException:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


@contextmanager
def case(*what: object) -> Iterator[None]:
    """One of many cases that a test goes through, because a test of its own costs more than the case does. A failure
    inside names it."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as failure:
        failure.add_note("The case: " + ", ".join(map(ascii, what)))
        raise
    except pytest.skip.Exception as skipped:
        pytest.fail(f"A case cannot be skipped, or those after it were too: {skipped}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is collected stays to the end of the run: who looks for garbage need not look through it each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONGEST_TEST))


DEAF_SECONDS = 600.0
"""Seconds after which a worker that does not hear the bound of its test, as in a loop of uvloop's, is ended, and says
where it hung."""

REARM_SECONDS = 30.0
_armed_at = -math.inf


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """The watch over a worker that hangs. It is a thread, which takes longer to start and to end than most tests: so it
    is set anew for many tests at once, and not for each as by pytest's own option."""
    global _armed_at
    now = time.monotonic()
    if now - _armed_at > REARM_SECONDS:
        _armed_at = now
        told = item.config.stash[fault_handler_stderr_fd_key]
        faulthandler.dump_traceback_later(DEAF_SECONDS, file=told, exit=True)
    return (yield)


def pytest_unconfigure() -> None:
    faulthandler.cancel_dump_traceback_later()


def _children_obey_ctrl_c() -> None:
    """A background job of a script is started with SIGINT ignored, and what is ignored stays so in every
    program it starts. A handler is not inherited, even one that does nothing: the job goes on ignoring
    Ctrl-C, and its children obey the SIGINT that a test sends them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)


_children_obey_ctrl_c()

os.environ["SSL_CERT_FILE"] = os.devnull
"""No authority of this host is trusted in a test, nor in a process that one starts. Reading them all takes longer than
most tests, and each client of GMS does."""

# -- files ------------------------------------------------------------------------------------------

MEMORY = Path("/dev/shm")
"""Files that are in memory."""

ROOM = 2 << 30
"""Bytes. Several workers of `make test`, each with its PostgreSQL, take a third of it."""


def _files_in_memory() -> None:
    """The files of tests are in memory where there is room, unless TMPDIR says where they are: to write and sync those
    of SQLite and PostgreSQL on a disk is a tenth of what the tests take, and as long again to wait for it."""
    with suppress(OSError):
        if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
            tempfile.tempdir = os.environ.setdefault("TMPDIR", str(MEMORY))


_files_in_memory()

_number = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the test's own. pytest's own fixture looks through those of all tests before for its number."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    path = tmp_path_factory.getbasetemp() / f"{name}{next(_number)}"
    path.mkdir(mode=0o700)
    return path


# -- programs --------------------------------------------------------------------------------------


@contextmanager
def started(
    *command: str | Path,
    stdout: int | BinaryIO = subprocess.PIPE,
    stderr: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is gone afterwards, whatever the test came to. A plain `Popen` would wait for it without
    a bound, and so would never tell what the test came to."""
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


# -- time ----------------------------------------------------------------------------------------


class FakeClock:
    """`asyncchatd.model.clock.Clock` for tests: time passes when `advance` says so, and not otherwise.

    With `jumping` a sleep takes its time at once instead: for tests in which pauses do not matter.
    """

    def __init__(self, *, jumping: bool = False) -> None:
        self.jumping = jumping
        self._elapsed = 0.0
        self._stepped: Ms = 0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> Ms:
        return NOON + self._stepped + round(self._elapsed * 1000)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if self.jumping:
            self._elapsed += max(0.0, seconds)
        if self.jumping or seconds <= 0:
            await asyncio.sleep(0)
            return
        await self._alarm(seconds)

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        if event.is_set():
            return True
        alarm = self._alarm(seconds)
        rung = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait((alarm, rung), return_when=asyncio.FIRST_COMPLETED)
            return event.is_set()
        finally:
            alarm.cancel()
            rung.cancel()

    async def advance(self, seconds: float) -> None:
        """Let time pass: sleepers wake in the order of their times, and after each one everything that
        can happen at that moment happens."""
        end = self._elapsed + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, alarm = heapq.heappop(self._sleepers)
            if not alarm.done():
                self._elapsed = max(self._elapsed, at)
                alarm.set_result(None)
                await settle()
        self._elapsed = end
        await settle()

    def stall(self, seconds: float) -> None:
        """The process stands still: time passes and nobody is woken for it before the next `advance`."""
        self._elapsed += seconds

    def set_wall(self, step_ms: Ms) -> None:
        """Somebody sets the machine's clock, by so many milliseconds."""
        self._stepped += step_ms

    def _alarm(self, seconds: float) -> asyncio.Future[None]:
        alarm = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), alarm))
        return alarm


def configuration(*more: str, store: str = "sqlite:///chats.db") -> str:
    """A daemon's own, on ports of the system's choice, for tests of its store: nobody listens at its GMS node, so
    pings stay due. `more` lines follow the store's."""
    lines = (
        *("[receiver]", 'listen = "127.0.0.1:0"', 'secrets = ["push-secret-1"]'),
        *("[control]", 'listen = "127.0.0.1:0"'),
        *("[gms]", 'nodes = ["http://127.0.0.1:9/genesys"]'),
        *("[store]", f'url = "{store}"', *more),
    )
    return "\n".join(lines) + "\n"


async def settle() -> None:
    """Return when nothing can happen any more without time or a socket: the loop has no callback left
    that is ready to run."""
    ready = getattr(asyncio.get_running_loop(), "_ready")  # noqa: B009 - asyncio tells it nowhere else
    while True:
        await asyncio.sleep(0)
        if not ready:
            return


async def soon(awaited: Awaitable[T]) -> T:
    """Wait for something on real sockets; hanging is a failure of the test, not of the run."""
    async with asyncio.timeout(PATIENCE):
        return await awaited


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# -- the log -------------------------------------------------------------------------------------


class Events:
    """What was logged, in the form in which programs read it."""

    def __init__(self) -> None:
        self.output = io.BytesIO()

    @property
    def text(self) -> str:
        """Every line as it was written."""
        return self.output.getvalue().decode()

    def all(self) -> list[dict[str, object]]:
        return [orjson.loads(line) for line in self.output.getvalue().splitlines()]

    def of(self, event: Event) -> list[dict[str, object]]:
        """The events of this name."""
        return [line for line in self.all() if line["event"] == event]

    def one(self, event: Event) -> dict[str, object]:
        """The only event of this name."""
        [line] = self.of(event)
        return line

    def names(self) -> list[object]:
        return [line["event"] for line in self.all()]

    def forget(self) -> None:
        self.output.seek(0)
        self.output.truncate()


@pytest.fixture
def events() -> Iterator[Events]:
    """The log, from debug upwards. Afterwards no library may have complained: an exception that nobody
    retrieved and a connection that nobody closed come out this way."""
    secrets, needles = dict(redaction._secrets), set(redaction._needles)
    handlers = logging.getLogger().handlers[:]
    written = Events()
    configure("debug", "json", written.output)
    yield written
    complaints = written.of(Event.LIBRARY_MESSAGE)
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    redaction._secrets.clear()
    redaction._secrets.update(secrets)
    redaction._needles.clear()
    redaction._needles.update(needles)
    assert not complaints


# -- the configuration ---------------------------------------------------------------------------


class MakeSettings(Protocol):
    def __call__(self, **sections: object) -> Settings: ...


@pytest.fixture
def make_settings(tmp_path: Path) -> MakeSettings:
    """As `settings_of`, for the test's own directory."""

    def make(**sections: object) -> Settings:
        return settings_of(tmp_path, **sections)

    return make


def settings_of(directory: Path = Path("/nowhere"), **sections: object) -> Settings:
    """The smallest valid configuration, with sections replaced; validated as a file's content is."""
    tree: dict[str, object] = {
        "path": directory / "asyncchatd.toml",
        "directory": directory,
        "receiver": {"secrets": ["push-secret-1"], "listen": "127.0.0.1:0"},
        "control": {"listen": "127.0.0.1:0"},
        "gms": {"nodes": ["http://gms-1:8080/genesys"]},
        "store": {"url": "memory:"},
    }
    return Settings.model_validate(tree | sections, context={"directory": directory})


# -- the store -----------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _schema_made_once() -> Iterator[None]:
    with schemas.copied():
        yield


@pytest.fixture
def migrating() -> Iterator[None]:
    """For tests about the migrations: they run for each new database."""
    with schemas.migrated():
        yield


class _Disk(Db):
    """A database whose disk can be full."""

    full = False

    def execute(self, *arguments: object) -> sqlite3.Cursor:
        if self.full:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
            raise error
        return super().execute(*arguments)  # type: ignore[arg-type]


class _Inline:
    """In the place of a connection with a thread: runs at once, so that `settle` sees to the end of it."""

    def __init__(self) -> None:
        self.disk = sqlite3.connect(":memory:", isolation_level=None, factory=_Disk)

    async def visit(self, work: Callable[[Db], T]) -> T:
        await asyncio.sleep(0)
        return work(self.disk)

    async def close(self) -> None:
        self.disk.close()


class PromptStore(MemoryStore):
    """The memory store on the event loop itself, with a disk that can be full."""

    def __init__(self) -> None:
        super().__init__("memory:", directory=Path())
        self.absorbed = 0
        """How often somebody asked for pushes to take effect."""

    async def absorb(self, limit: int, *, now: Ms = 0, listening: Collection[str] = ()) -> list[Absorbed]:
        self.absorbed += 1
        return await super().absorb(limit, now=now, listening=listening)

    async def _connect(self, *_: str) -> Connection:
        self._inline = _Inline()
        connection = cast(Connection, self._inline)
        self._connections.append(connection)
        return connection

    def fill_disk(self) -> None:
        """From now on nothing can be written or read."""
        self._inline.disk.full = True

    def free_disk(self) -> None:
        """The operator made room."""
        self._inline.disk.full = False


@pytest.fixture
async def store() -> AsyncIterator[PromptStore]:
    opened = PromptStore()
    await opened.open()
    yield opened
    opened.free_disk()
    await opened.close()


def tokens(chat_id: str = "chat-1", *, secure_key: str | None = None, alias: str = "117") -> Tokens:
    """Tokens that belong to this chat alone."""
    return Tokens(chat_id, f"user-of-{chat_id}", secure_key or f"key-of-{chat_id}", alias)


def registration(chat_id: str = "chat-1", *, alias: str = "117", position: int | None = 3) -> Registration:
    return Registration(tokens(chat_id, alias=alias), "support", f"device-of-{chat_id}", position)


async def register(
    store: PromptStore, *chat_ids: str, now: Ms, spread_ms: float = FAR_OFF_MS, alias: str = "117"
) -> None:
    """Sessions that the custom-chat-app announced: not due for days unless `spread_ms` is 0."""
    await store.register(
        [registration(chat_id, alias=alias) for chat_id in chat_ids], now=now, spread_ms=spread_ms
    )


async def make_due(store: PromptStore, reason: Reason, *chat_ids: str, now: Ms) -> None:
    for chat_id in chat_ids:
        assert await store.make_due(chat_id, reason, now=now)


# -- GMS nodes that are not there ------------------------------------------------------------------


class _Sent(AbstractStreamWriter):
    """The writer of a request that was never written."""

    output_size = 0

    async def write(self, chunk: object) -> None: ...

    async def write_eof(self, chunk: bytes = b"") -> None: ...

    async def drain(self) -> None: ...

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None: ...

    def enable_chunking(self) -> None: ...

    async def write_headers(self, status_line: str, headers: object) -> None: ...


class MockedResponse(ClientResponse):
    """A response of aioresponses, on the loop of the test: its own mock of a loop is in debug mode, in which each
    response remembers the stack that it was made on."""

    def __init__(self, *arguments: object, **named: object) -> None:
        named["loop"] = asyncio.get_running_loop()
        super().__init__(*arguments, **named, stream_writer=_Sent())  # type: ignore[arg-type]


class MockedNodes(aioresponses):
    """`aioresponses` for aiohttp 3.14, whose responses want a `stream_writer` that it does not give."""

    def add(self, *arguments: object, **named: object) -> None:
        named.setdefault("response_class", MockedResponse)
        super().add(*arguments, **named)  # type: ignore[arg-type]


@pytest.fixture
def nodes() -> Iterator[MockedNodes]:
    mocked = MockedNodes()
    with mocked:
        yield mocked


# -- real sockets ----------------------------------------------------------------------------------


@asynccontextmanager
async def listening(
    app: web.Application,
    listen: str = "127.0.0.1:0",
    *,
    header_seconds: float = 5.0,
    keepalive_seconds: float = 75.0,
    grace: float = 0.0,
    receiver: Mapping[str, object] | None = None,
) -> AsyncIterator[str]:
    """The application behind our own `Listener`, with more settings of `[receiver]`; gives the address,
    `http://...` for TCP, `https://...` with a certificate."""
    settings = ReceiverSettings.model_validate(
        {
            "listen": listen,
            "secrets": ["push-secret-1"],
            "header_timeout": timedelta(seconds=header_seconds),
            "keepalive_timeout": timedelta(seconds=keepalive_seconds),
            **(receiver or {}),
        }
    )
    listener = Listener(app, settings, name="receiver")
    await listener.start()
    try:
        yield f"{'https' if settings.tls_certificate else 'http'}://{listener.addresses[0]}"
    finally:
        await listener.stop(grace)


_stop_site = web.BaseSite.stop


async def _let_in_and_stop(site: web.BaseSite) -> None:
    if isinstance(site._server, asyncio.Server):
        await stop_listening(site._server)
    await _stop_site(site)


@pytest.fixture(scope="session", autouse=True)
def polite_sites() -> Iterator[None]:
    """A site of aiohttp that is stopped, with its runner or a `TestServer`, lets in who was accepted before: else a
    client that comes in this moment leaves a socket that nobody closes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web.BaseSite, "stop", _let_in_and_stop)
        yield


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(
    talk: Talk, port: int = 0, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A port on loopback where each connection is `talk`: for servers that do not keep to HTTP. On leaving,
    talks that wait for something that will not come are broken off."""
    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(talk(reader, writer))
        talks.add(task)
        await asyncio.wait([task])
        writer.close()

    server = await asyncio.start_server(serve, host, port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await stop_listening(server)
        for task in talks:
            task.cancel()
        for result in await asyncio.gather(*talks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, (OSError, EOFError)):
                raise result
        await server.wait_closed()


def claimed_port() -> socket.socket:
    """A socket that keeps a port of loopback for whoever listens there, as servers do with SO_REUSEADDR. Until
    somebody does, and again afterwards, connections are refused; nobody else is given the port meanwhile."""
    claim = socket.socket()
    claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    claim.bind(("127.0.0.1", 0))
    return claim


@contextmanager
def crowded_port() -> Iterator[int]:
    """A port where somebody listens who takes no connection any more: one who tries waits, and hears nothing."""
    with ExitStack() as sockets:
        server = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        port = server.getsockname()[1]
        assert isinstance(port, int)
        yield port


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a node got it."""

    head: bytes
    body: bytes

    @property
    def path(self) -> str:
        return self.head.split(b" ")[1].decode()

    @property
    def headers(self) -> dict[str, str]:
        """In their order, by their names in small letters."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


class Then(Enum):
    """What a node does once it has said what it was to say."""

    STAY = auto()
    """It waits for the next request."""
    HANG_UP = auto()
    RESET = auto()
    """It hangs up with an RST, as a process that is killed does."""


@dataclass(frozen=True, slots=True)
class _Act:
    said: bytes
    then: Then
    when: asyncio.Event | None


class ScriptedNode:
    """A GMS node on a socket of loopback that does with each request what it was told to do with the next one,
    whichever connection it comes over. `async with` has it listen; afterwards there must have been no request
    that it was told nothing about."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Asked] = []
        self.connections = 0
        """How many were made to it, until now."""
        self._tls = tls
        self._script: Iterator[_Act] = iter(())
        self._surplus: list[Asked] = []
        self._arrived = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening = AsyncExitStack()
        self._claim = claimed_port()
        self.port: int = self._claim.getsockname()[1]

    @property
    def base(self) -> str:
        """The base URL, as the configuration has it."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/genesys"

    # -- what it is told ---------------------------------------------------------------------------

    def answer(
        self,
        body: bytes = b"",
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        times: int | None = 1,
        when: asyncio.Event | None = None,
    ) -> None:
        """Answer the next request, or the next so many, or with `None` all that come; not before `when`."""
        lines = {"Content-Length": str(len(body)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.say(f"HTTP/1.1 {status} Scripted\r\n{head}\r\n".encode("latin-1") + body, times=times, when=when)

    def say(
        self,
        raw: bytes,
        then: Then = Then.STAY,
        *,
        times: int | None = 1,
        when: asyncio.Event | None = None,
    ) -> None:
        """Say these very bytes to it; without any, nothing."""
        act = _Act(raw, then, when)
        acts = itertools.repeat(act) if times is None else itertools.repeat(act, times)
        self._script = itertools.chain(self._script, acts)

    def hang_up(self, *, times: int | None = 1) -> None:
        """Hang up without an answer."""
        self.say(b"", Then.HANG_UP, times=times)

    # -- what happens to it ------------------------------------------------------------------------

    async def __aenter__(self) -> ScriptedNode:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self._claim.close()
        assert not self._surplus

    async def start(self) -> None:
        """Listen, again on the same port."""
        await self._listening.enter_async_context(raw_server(self._talk, self.port, self._tls))

    async def stop(self) -> None:
        """Be not there: all connections are closed, and new ones are refused."""
        await self._listening.aclose()

    async def asked(self, count: int) -> None:
        """Wait until it was asked so often."""
        while len(self.requests) < count:
            self._arrived.clear()
            await soon(self._arrived.wait())

    def interject(self, raw: bytes) -> None:
        """Say something on every connection that nobody asked for."""
        for writer in self._writers:
            writer.write(raw)

    def leave(self) -> None:
        """Close every connection, and be there for new ones."""
        for writer in self._writers:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._serve_one(reader, writer) is Then.STAY:
                pass
        finally:
            self._writers.remove(writer)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Then:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        asked = Asked(head, await reader.readexactly(length))
        self.requests.append(asked)
        self._arrived.set()
        act = next(self._script, None)
        if act is None:
            self._surplus.append(asked)
            return Then.HANG_UP
        if act.when is not None:
            await act.when.wait()
        writer.write(act.said)
        await writer.drain()
        if act.then is Then.RESET:
            _reset(writer)
        return act.then


def _reset(writer: asyncio.StreamWriter) -> None:
    at_once = struct.pack("ii", 1, 0)  # lingering, for no time: the kernel sends an RST
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.transport.abort()


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files of a private CA, of a server on 127.0.0.1, and of a client; keys beside them."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made once with `openssl`, which every host with TLS has."""
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=PATIENCE)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl(
        *("req", "-x509", *curve, "-subj", "/CN=asyncchatd test CA", "-keyout", "ca.key", "-out", "ca.pem"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        (directory / f"{name}.ext").write_text(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n")
        openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem"),
        )
    return Certificates(
        ca=directory / "ca.pem",
        server=directory / "server.pem",
        server_key=directory / "server.key",
        client=directory / "client.pem",
        client_key=directory / "client.key",
    )


def server_tls(certificates: Certificates, *, ask_client: bool = False) -> ssl.SSLContext:
    """How a node with that certificate talks TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.verify_mode = ssl.CERT_REQUIRED if ask_client else ssl.CERT_NONE
    return context
