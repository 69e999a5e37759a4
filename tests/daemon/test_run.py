"""The whole daemon in this process: it starts in order, stops without losing anything, and dies loudly."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from conftest import Events, FakeClock, MakeSettings, soon

from asyncchatd.config.settings import Settings
from asyncchatd.daemon import systemd
from asyncchatd.daemon.run import run
from asyncchatd.listening import ListenError
from asyncchatd.log.events import Event
from asyncchatd.model.clock import Clock
from asyncchatd.model.data import SessionState, TokenNews
from asyncchatd.sending.settling import STILL_SECONDS, Settling
from asyncchatd.standin.messages import write_push, write_reply
from asyncchatd.stores import Store, StoreError
from asyncchatd.stores.sqlite import SqliteStore
from asyncchatd.watcher.watcher import Watcher
from asyncchatd.worker.worker import Worker

pytestmark = pytest.mark.usefixtures("events")

SECRET = "push-secret-1"
KEY = "4ee15d7e1c343c8e"


# -- what stands around the daemon -----------------------------------------------------------------------


class Systemd:
    """The other end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    async def hears(self, word: str) -> None:
        """Return when a notification begins with this."""
        while True:
            said = (await soon(asyncio.get_running_loop().sock_recv(self._socket, 4096))).decode()
            self.told.append(said)
            if said.startswith(word):
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    listening = Systemd(tmp_path / "notify.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify.sock"))
    yield listening
    listening.close()


class Gms:
    """A GMS node on loopback that gives every session a new key and the next alias."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        """Secure keys of the pings that came."""
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.base = ""

    async def refresh(self, request: web.Request) -> web.Response:
        self.keys += parse_qs((await request.read()).decode())["secureKey"]
        self.arrived.set()
        await self.go_on.wait()
        chat_id = request.match_info["chat_id"]
        return web.Response(
            body=write_reply(0, TokenNews(chat_id, None, f"new-{KEY}", "118"), next_position=9)
        )


@pytest.fixture
async def gms() -> AsyncIterator[Gms]:
    node = Gms()
    app = web.Application()
    app.router.add_post("/genesys/2/chat/{service}/{chat_id}/refresh", node.refresh)
    async with TestServer(app) as server:
        node.base = str(server.make_url("/genesys"))
        yield node


@dataclass
class Daemon:
    """A daemon that is ready."""

    settings: Settings
    events: Events
    stop: asyncio.Event
    task: asyncio.Task[None]
    service_manager: Systemd
    control: str = ""
    receiver: str = ""
    http: aiohttp.ClientSession = field(init=False)

    async def call(self, method: str, path: str, said: object = None) -> tuple[int, dict[str, object]]:
        body = None if said is None else orjson.dumps(said)
        async with self.http.request(method, self.control + path, data=body) as response:
            answer = await response.read()
            return response.status, orjson.loads(answer) if answer else {}

    async def register(self, chat_id: str = "chat-1", *, alias: str = "117") -> None:
        tokens = {"user_id": "user-1", "secure_key": KEY, "alias": alias}
        assert (await self.call("PUT", f"/v1/sessions/{chat_id}", tokens))[0] == 201

    async def push(self, chat_id: str = "chat-1") -> int:
        body = write_push("device-1", {"session-id": chat_id})
        async with self.http.post(f"{self.receiver}/push/{SECRET}", data=body) as response:
            return response.status

    async def until(self, true: Callable[[dict[str, object]], bool], path: str) -> dict[str, object]:
        """Ask until the answer is so."""
        async with asyncio.timeout(20):
            while True:
                _, answer = await self.call("GET", path)
                if true(answer):
                    return answer

    async def ends(self) -> None:
        """It was asked to stop, and it does."""
        await self.http.close()
        self.stop.set()
        await soon(self.task)


@asynccontextmanager
async def ready(
    settings: Settings, events: Events, service_manager: Systemd, clock: Clock | None = None
) -> AsyncIterator[Daemon]:
    """A running daemon; it is stopped on leaving if it has not been."""
    stop = asyncio.Event()
    task = asyncio.create_task(run(settings, clock=clock, stop=stop))
    daemon = Daemon(settings, events, stop, task, service_manager)
    heard = asyncio.create_task(service_manager.hears("READY=1"))
    await asyncio.wait((task, heard), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        heard.cancel()
        await task
    daemon.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
    try:
        while not events.of(Event.DAEMON_READY):
            await soon(one_turn())
        addresses = events.of(Event.DAEMON_READY)[-1]
        daemon.control, daemon.receiver = (address_of(addresses[part]) for part in ("control", "receiver"))
        yield daemon
    finally:
        await daemon.http.close()
        stop.set()
        await asyncio.wait((task,))
    await task


async def one_turn() -> None:
    """Let the event loop and its threads go on."""
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)


def address_of(addresses: object) -> str:
    assert isinstance(addresses, list)
    return f"http://{addresses[0]}"


@pytest.fixture
def settings(make_settings: MakeSettings, gms: Gms) -> Settings:
    return make_settings(
        gms={"nodes": [gms.base], "timeout": "5s", "connect_timeout": "1s"},
        store={"url": "sqlite:///sessions.db"},
    )


async def stored(settings: Settings, look: Callable[[Store], Awaitable[None]]) -> None:
    """Look into the store after the daemon has let go of it."""
    store = SqliteStore(settings.store_url, directory=settings.directory)
    await store.open()
    try:
        await look(store)
    finally:
        await store.close()


# -- starting --------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_it_is_ready_when_pushes_and_requests_are_taken(
    settings: Settings, events: Events, service_manager: Systemd
) -> None:
    async with ready(settings, events, service_manager) as daemon:
        assert await daemon.call("GET", "/readyz") == (200, {"ready": True})
        assert await daemon.push() == 200
        await daemon.ends()
    steps = ("daemon_starting", "store_opened", "daemon_ready", "daemon_stopping", "daemon_stopped")
    assert [name for name in events.names() if name in steps] == list(steps)
    assert events.one(Event.DAEMON_STOPPING)["cause"] == "asked to"
    assert events.one(Event.DAEMON_STOPPED)["in_flight"] == 0


@pytest.mark.slow
async def test_the_service_manager_hears_ready_then_status_then_stopping(
    settings: Settings, events: Events, service_manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    async with ready(settings, events, service_manager) as daemon:
        await service_manager.hears("STATUS=")
        for _ in range(2):
            await service_manager.hears("WATCHDOG=1")
        daemon.stop.set()
        await service_manager.hears("STOPPING=1")
        assert not daemon.task.done()
    assert service_manager.told[0] == "READY=1"
    assert "STATUS=0 sessions, 0 due, 0 pings in flight" in service_manager.told


async def test_nothing_is_ready_that_could_not_start(
    settings: Settings, events: Events, service_manager: Systemd, make_settings: MakeSettings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        blocked = settings.model_copy(
            update={"receiver": make_settings(receiver={"secrets": [SECRET], "listen": where}).receiver}
        )
        with pytest.raises(ListenError, match=rf"^receiver\.listen: {where} is in use"):
            async with ready(blocked, events, service_manager):
                pass
    assert "READY=1" not in service_manager.told
    assert not events.of(Event.DAEMON_READY)
    # Everything was let go of: it starts on the same files now.
    async with ready(settings, events, service_manager):
        pass


async def test_it_warns_of_a_store_that_was_not_there_until_a_session_lives_in_it(
    settings: Settings, events: Events, service_manager: Systemd
) -> None:
    """The directory of the database may have been renamed away while it was stopped."""
    async with ready(settings, events, service_manager) as daemon:
        told = events.one(Event.STORE_NEW)
        assert (told["level"], "expected at the first start only" in str(told["advice"])) == ("warning", True)
        assert "sessions.db was not there" in str((await daemon.call("GET", "/v1/status"))[1]["store_note"])
        await daemon.register()
        assert (await daemon.call("GET", "/v1/status"))[1]["store_note"] is None
    events.forget()
    async with ready(settings, events, service_manager) as daemon:
        assert (await daemon.call("GET", "/v1/status"))[1]["store_note"] is None
    assert not events.of(Event.STORE_NEW)


async def test_it_says_once_that_secure_keys_stand_in_the_clear(
    settings: Settings, events: Events, service_manager: Systemd
) -> None:
    async with ready(settings, events, service_manager) as daemon:
        await daemon.register()
    assert "store.keys_file" in str(events.one(Event.STORE_UNENCRYPTED)["advice"])


async def test_with_a_store_key_no_secure_key_stands_on_the_disk(
    settings: Settings, events: Events, service_manager: Systemd, make_settings: MakeSettings
) -> None:
    (settings.directory / "store-keys").write_text("ab" * 32)
    encrypting = make_settings(store={"url": settings.store.url, "keys_file": "store-keys"}).store
    settings = settings.model_copy(update={"store": encrypting})
    async with ready(settings, events, service_manager) as daemon:
        await daemon.register()
        assert await daemon.push() == 200
        await daemon.until(lambda shown: shown["next_position"] == 9, "/v1/sessions/chat-1")
        content = [file.read_bytes() for file in settings.directory.glob("sessions.db*")]
    assert sum(map(len, content)) > 4096
    assert not any(KEY.encode() in file for file in content)
    assert not events.of(Event.STORE_UNENCRYPTED)

    async def look(store: Store) -> None:
        assert await store.sessions()

    with pytest.raises(StoreError, match=r"store\.keys_file is not set"):
        await stored(settings, look)


async def test_two_daemons_do_not_share_a_database_file(
    settings: Settings, events: Events, service_manager: Systemd
) -> None:
    async with ready(settings, events, service_manager) as daemon:
        with pytest.raises(StoreError, match="in use by another asyncchatd"):
            await run(settings, stop=asyncio.Event())
        assert (await daemon.call("GET", "/readyz"))[0] == 200


async def test_a_damaged_database_is_set_aside_loudly_and_the_daemon_starts(
    settings: Settings, events: Events, service_manager: Systemd
) -> None:
    (settings.directory / "sessions.db").write_bytes(b"SQLite format 3\0" + b"garbage " * 2000)
    async with ready(settings, events, service_manager) as daemon:
        await daemon.register()
    aside = events.one(Event.STORE_CORRUPT)["set_aside"]
    assert aside in [str(path) for path in settings.directory.iterdir()]


@pytest.mark.slow
async def test_sockets_handed_over_by_systemd_are_taken_by_their_names(
    settings: Settings, events: Events, service_manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: dict[str, list[socket.socket]] = {}
    for name in ("control", "receiver"):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        handed[name] = [listener]
    ports = {name: sockets[0].getsockname()[1] for name, sockets in handed.items()}
    monkeypatch.setattr(systemd, "listen_fds", lambda: handed)
    async with ready(settings, events, service_manager) as daemon:
        assert daemon.receiver == f"http://127.0.0.1:{ports['receiver']}"
        assert daemon.control == f"http://127.0.0.1:{ports['control']}"
        assert await daemon.push() == 200
        assert (await daemon.call("GET", "/healthz"))[0] == 200


# -- stopping --------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_an_answer_in_flight_at_the_stop_is_waited_for_and_kept(
    settings: Settings, events: Events, service_manager: Systemd, gms: Gms
) -> None:
    """It may carry a new secure key that nobody will tell again."""
    gms.go_on.clear()
    async with ready(settings, events, service_manager) as daemon:
        await daemon.register()
        await daemon.call("POST", "/v1/sessions/chat-1/ping")
        await soon(gms.arrived.wait())
        await daemon.http.close()
        daemon.stop.set()
        await service_manager.hears("STOPPING=1")
        gms.go_on.set()
        await soon(daemon.task)
    assert events.one(Event.DAEMON_STOPPING)["in_flight"] == 1
    assert events.one(Event.DAEMON_STOPPED)["in_flight"] == 0

    async def look(store: Store) -> None:
        session = await store.get("chat-1")
        assert session is not None
        assert (session.secure_key, session.alias, session.leased_until) == (f"new-{KEY}", "118", 0)
        assert session.answered_at is not None

    await stored(settings, look)


@pytest.mark.slow
async def test_a_push_answered_before_the_stop_is_acknowledged_after_the_next_start(
    settings: Settings, events: Events, service_manager: Systemd, gms: Gms
) -> None:
    gms.go_on.clear()
    async with ready(settings, events, service_manager) as daemon:
        await daemon.register()
        await daemon.call("POST", "/v1/sessions/chat-1/ping")
        await soon(gms.arrived.wait())
        assert await daemon.push() == 200  # while a ping of the same session is under way
        await daemon.http.close()
        daemon.stop.set()
        await service_manager.hears("STOPPING=1")
        gms.go_on.set()
    gms.arrived.clear()
    async with ready(settings, events, service_manager):
        await soon(gms.arrived.wait())
    assert gms.keys == [KEY, f"new-{KEY}"]


async def test_sigterm_stops_it_in_good_order(
    settings: Settings, events: Events, service_manager: Systemd
) -> None:
    async with ready(settings, events, service_manager) as daemon:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        await daemon.http.close()
        signal.raise_signal(signal.SIGTERM)
        await soon(daemon.task)
    assert events.names()[-1] == "daemon_stopped"


@pytest.mark.slow
async def test_who_watches_the_status_page_does_not_hold_up_the_stop(
    settings: Settings, events: Events, service_manager: Systemd
) -> None:
    async with (
        ready(settings, events, service_manager) as daemon,
        daemon.http.get(daemon.control + "/v1/live") as response,
    ):
        while await soon(response.content.readline()) != b"event: picture\n":
            pass
        daemon.stop.set()
        assert (await soon(response.content.read())).endswith(b"event: stopping\ndata: {}\n\n")
        await soon(daemon.task)
    assert events.names()[-1] == "daemon_stopped"


@pytest.mark.slow
async def test_after_the_stop_nothing_of_it_runs_on(
    settings: Settings, events: Events, service_manager: Systemd
) -> None:
    before = asyncio.all_tasks()
    async with ready(settings, events, service_manager) as daemon:
        await daemon.register()
        await daemon.push()
        await daemon.ends()
    assert asyncio.all_tasks() - before == set()


# -- failing ---------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_root_task_that_fails_stops_the_daemon_and_is_its_error(
    settings: Settings, events: Events, service_manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = asyncio.Event()

    async def broken(_: Watcher) -> None:
        await fail.wait()
        raise LookupError("the watcher's own trouble")

    monkeypatch.setattr(Watcher, "run", broken)

    async def live() -> None:
        async with ready(settings, events, service_manager) as daemon:
            await daemon.register()
            await daemon.http.close()
            fail.set()
            await asyncio.wait((daemon.task,))

    with pytest.raises(LookupError, match="the watcher's own trouble"):
        await live()
    failed = events.one(Event.DAEMON_FAILED)
    assert failed["part"] == "watcher"
    assert "the watcher's own trouble" in str(failed["exception"])
    assert events.one(Event.DAEMON_STOPPING)["cause"] == "watcher"

    async def look(store: Store) -> None:
        assert await store.get("chat-1") is not None

    await stored(settings, look)


async def test_a_root_task_that_just_ends_is_a_failure_too(
    settings: Settings, events: Events, service_manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = asyncio.Event()

    async def ending(_: Worker) -> None:
        await end.wait()

    monkeypatch.setattr(Worker, "report_progress", ending)

    async def live() -> None:
        async with ready(settings, events, service_manager) as daemon:
            await daemon.http.close()
            end.set()
            await asyncio.wait((daemon.task,))

    with pytest.raises(RuntimeError, match="progress ended"):
        await live()
    assert events.one(Event.DAEMON_FAILED)["part"] == "progress"


# -- running ---------------------------------------------------------------------------------------------


async def test_a_push_is_acknowledged_by_a_ping(
    settings: Settings, events: Events, service_manager: Systemd, gms: Gms
) -> None:
    async with ready(settings, events, service_manager) as daemon:
        await daemon.register()
        assert await daemon.push() == 200
        session = await daemon.until(
            lambda session: session["answered_at"] is not None, "/v1/sessions/chat-1"
        )
        assert (session["alias"], session["next_position"], session["reason"]) == ("118", 9, "keepalive")
        await daemon.until(lambda status: status["due"] == dict.fromkeys(status["due"], 0), "/v1/status")  # type: ignore[call-overload]
    assert gms.keys == [KEY]


async def test_no_secret_gets_into_the_log_of_a_whole_life(
    make_settings: MakeSettings, gms: Gms, events: Events, service_manager: Systemd, tmp_path: Path
) -> None:
    settings = make_settings(
        gms={
            "nodes": [gms.base],
            "username": "asyncchatd",
            "password": "gms-password-1",
            "headers": {"apikey": "gms-apikey-1"},
        },
        store={"url": "sqlite:///sessions.db"},
    )
    async with ready(settings, events, service_manager) as daemon:
        await daemon.register()
        assert await daemon.push() == 200
        await daemon.until(lambda session: session["answered_at"] is not None, "/v1/sessions/chat-1")
    for secret in (KEY, SECRET, "gms-password-1", "gms-apikey-1"):
        assert secret not in events.text


async def test_the_status_shows_the_nodes_and_the_limits(
    settings: Settings, events: Events, service_manager: Systemd, gms: Gms
) -> None:
    async with ready(settings, events, service_manager) as daemon:
        _, status = await daemon.call("GET", "/v1/status")
    pings = status["pings"]
    assert isinstance(pings, dict)
    assert (status["ready"], pings["in_flight"], pings["gms_available"]) == (True, 0, True)
    assert pings["nodes"] == [{"node": gms.base, "resting": False, "cause": None}]


async def test_a_clock_that_is_set_is_noticed_and_due_times_are_read_anew(
    settings: Settings, events: Events, service_manager: Systemd, clock: FakeClock
) -> None:
    async with ready(settings, events, service_manager, clock) as daemon:
        await daemon.register()
        await clock.advance(0.3)
        clock.set_wall(-7 * 86_400_000)  # a week back: keepalives would come a week late
        await clock.advance(0.3)
        latest = "2023-11-07T22:43:21"
        await daemon.until(lambda session: str(session["due_at"]) < latest, "/v1/sessions/chat-1")
    assert events.one(Event.CLOCK_STEPPED)["step_ms"] == -7 * 86_400_000


async def test_a_daemon_that_stood_still_says_so(
    settings: Settings, events: Events, service_manager: Systemd, clock: FakeClock
) -> None:
    async with ready(settings, events, service_manager, clock):
        await clock.advance(1)
        clock.stall(3)
        await clock.advance(1)
    stall = events.one(Event.LOOP_STALLED)["stall_ms"]
    assert isinstance(stall, int)
    assert 2700 <= stall <= 3000


async def test_the_daemon_hears_in_time_that_it_runs_however_long_due_times_take_to_read(
    settings: Settings,
    events: Events,
    service_manager: Systemd,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard, read = list[float](), list[float]()
    monkeypatch.setattr(Settling, "come_round", lambda _: heard.append(clock.monotonic()))

    async def slowly_and_in_vain(*_: object, **__: object) -> int:
        await clock.sleep(3)
        read.append(clock.monotonic())
        raise StoreError("the disk is full")

    async with ready(settings, events, service_manager, clock):
        monkeypatch.setattr(SqliteStore, "pull_in", slowly_and_in_vain)
        await clock.advance(0.3)
        clock.set_wall(-86_400_000)
        await clock.advance(8)
        assert len(read) == 2
        assert len(heard) > 8
        assert all(then - before < STILL_SECONDS for before, then in pairwise(heard))
    assert not events.of(Event.LOOP_STALLED)


@pytest.mark.slow
async def test_what_ended_is_forgotten_when_its_time_is_over(
    make_settings: MakeSettings, gms: Gms, events: Events, service_manager: Systemd, clock: FakeClock
) -> None:
    settings = make_settings(
        gms={"nodes": [gms.base]}, store={"url": "sqlite:///sessions.db", "keep_ended": "1h"}
    )
    async with ready(settings, events, service_manager, clock) as daemon:
        await daemon.register()
        await daemon.call("DELETE", "/v1/sessions/chat-1")
        assert (await daemon.call("GET", "/v1/sessions/chat-1"))[1]["state"] == SessionState.ENDED
        await clock.advance(1800)
        assert (await daemon.call("GET", "/v1/sessions/chat-1"))[0] == 200
        async with asyncio.timeout(20):
            while (await daemon.call("GET", "/v1/sessions/chat-1"))[0] == 200:
                await clock.advance(60)


async def test_sessions_of_a_server_nobody_watches_are_reported_once(
    make_settings: MakeSettings, gms: Gms, events: Events, service_manager: Systemd, clock: FakeClock
) -> None:
    # A keepalive would move it to another alias.
    settings = make_settings(gms={"nodes": [gms.base]}, ping={"interval": "365d"})
    async with ready(settings, events, service_manager, clock) as daemon:
        await daemon.register()
        async with asyncio.timeout(20):
            while not events.of(Event.SESSIONS_UNWATCHED):
                await clock.advance(20)
                await daemon.call("GET", "/healthz")
        for _ in range(10):
            await clock.advance(20)
            await daemon.call("GET", "/v1/status")
    reported = events.one(Event.SESSIONS_UNWATCHED)
    assert (reported["alias"], reported["sessions"]) == ("117", 1)
    assert reported["advice"] == "add a [[chat_server]] for it, then reload"


async def test_sessions_of_nobody_beside_servers_that_never_said_who_they_are_are_reported(
    make_settings: MakeSettings, gms: Gms, events: Events, service_manager: Systemd, clock: FakeClock
) -> None:
    servers = [
        {"name": name, "health_url": f"http://127.0.0.1:{unused_port()}/"} for name in ("chat-a", "chat-b")
    ]
    settings = make_settings(gms={"nodes": [gms.base]}, ping={"interval": "365d"}, chat_servers=servers)
    async with ready(settings, events, service_manager, clock) as daemon:
        await daemon.register()
        async with asyncio.timeout(20):
            while not events.of(Event.SESSIONS_UNWATCHED):
                await clock.advance(20)
                await daemon.call("GET", "/healthz")
    reported = events.one(Event.SESSIONS_UNWATCHED)
    assert (reported["alias"], reported["sessions"]) == ("117", 1)
    assert reported["advice"] == "set app_dbid of chat-a, chat-b, whose may be this alias, then reload"


async def test_sessions_of_nobody_may_be_those_of_a_server_whose_alias_is_assumed(
    make_settings: MakeSettings, gms: Gms, events: Events, service_manager: Systemd, clock: FakeClock
) -> None:
    server = {"name": "chat-a", "health_url": f"http://127.0.0.1:{unused_port()}/"}
    settings = make_settings(gms={"nodes": [gms.base]}, ping={"interval": "365d"}, chat_servers=[server])
    async with ready(settings, events, service_manager, clock) as daemon:
        await daemon.register()
        for awaited in (Event.SERVER_ALIAS_ASSUMED, Event.SESSIONS_UNWATCHED):
            async with asyncio.timeout(20):
                while not events.of(awaited):
                    await clock.advance(2)
                    await daemon.call("GET", "/healthz")
            if awaited is Event.SERVER_ALIAS_ASSUMED:
                await daemon.register("chat-2", alias="118")
    advice = {said["advice"] for said in events.of(Event.SESSIONS_UNWATCHED)}
    assert advice == {"set app_dbid of chat-a, whose may be this alias, then reload"}
