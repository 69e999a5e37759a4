"""The open line to a health port: by its end a Chat Server's own shows at once, and it does no harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from conftest import Events, FakeClock, MakeSettings, PromptStore, register, settle

from asyncchatd.config import ChatServerSettings
from asyncchatd.config.settings import Settings
from asyncchatd.log.events import Event
from asyncchatd.model.data import Cause, ServerState
from asyncchatd.standin.health_page import HealthFormat, write_health
from asyncchatd.watcher.open_line import GIVEN_UP_SECONDS, MOST_SAID, OpenLine
from asyncchatd.watcher.page import HealthPages, Page, Seen, Unreachable
from asyncchatd.watcher.watcher import Watcher
from asyncchatd.wire import read_health

pytestmark = pytest.mark.usefixtures("events")

INTERVAL = 5.0
LATE = Unreachable("no answer in time", TimeoutError())
REFUSED = Unreachable("connection refused", ConnectionRefusedError())


class Wire(asyncio.Transport):
    """A connection that lives until one side ends it."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.is_open = True
        protocol.connection_made(self)

    def abort(self) -> None:
        self.cut()

    def cut(self) -> None:
        """It ends."""
        if self.is_open:
            self.is_open = False
            self.protocol.connection_lost(None)


@dataclass
class Port:
    """A health port, and the process behind it."""

    clock: FakeClock
    pid: str = "1001"
    dead: bool = False
    one_at_a_time: bool = False
    """It serves one connection after the other."""
    one_alone: bool = False
    """It refuses a second connection."""
    hangs: bool = False
    wires: list[Wire] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)

    @property
    def open(self) -> list[Wire]:
        return [wire for wire in self.wires if wire.is_open]

    async def look(self, server: ChatServerSettings, seconds: float, *_: object) -> Seen:
        self.looks.append(self.clock.monotonic())
        if self.hangs or (self.one_at_a_time and self.open):
            await self.clock.sleep(seconds)
            return LATE
        if self.dead or (self.one_alone and self.open):
            return REFUSED
        return Page(read_health(write_health(HealthFormat.JSON, "117", self.pid)))

    async def connect(
        self, server: ChatServerSettings, seconds: float, protocol: Callable[[], asyncio.Protocol]
    ) -> Wire:
        if self.dead:
            raise ConnectionRefusedError
        self.wires.append(Wire(protocol()))
        return self.wires[-1]

    def cut(self) -> None:
        """All connections end, as with their process."""
        for wire in self.open:
            wire.cut()

    def kill(self) -> None:
        self.dead = True
        self.cut()

    def since(self, moment: float) -> list[float]:
        return [at - moment for at in self.looks if at >= moment]


@pytest.fixture
def port(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Port:
    port = Port(clock)
    monkeypatch.setattr(HealthPages, "look", lambda _, *how: port.look(*how))
    monkeypatch.setattr(HealthPages, "connect", lambda _, *how: port.connect(*how))
    return port


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(
        watcher={"interval": "5s"}, chat_servers=[{"name": "chat-a", "health_url": "http://chat-a/"}]
    )


@pytest.fixture
async def watcher(
    store: PromptStore, clock: FakeClock, settings: Settings, port: Port
) -> AsyncIterator[Watcher]:
    """A watcher of one server, which is up and has been read twice."""
    await register(store, "hers", now=clock.now())
    watcher = Watcher(store, settings, clock, asyncio.Event())
    await watcher.load()
    running = asyncio.create_task(watcher.run())
    await clock.advance(INTERVAL * 1.2)
    assert [server.state for server in watcher.servers()] == [ServerState.UP]
    assert len(port.open) == 1
    yield watcher
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not port.open, "a watcher that ends leaves no connection"


async def test_a_process_that_dies_is_lost_within_fall_looks_at_a_tenth_of_a_second(
    watcher: Watcher, port: Port, clock: FakeClock, store: PromptStore
) -> None:
    killed = clock.monotonic()
    port.kill()
    await clock.advance(0.3)
    [begun] = await store.restorations()
    assert begun.cause is Cause.UNREACHABLE
    assert [round(at, 1) for at in port.since(killed)] == [0.0, 0.1, 0.2]


async def test_a_process_that_is_another_at_once_is_a_restart_after_a_tenth_of_a_second(
    watcher: Watcher, port: Port, clock: FakeClock, store: PromptStore
) -> None:
    port.pid = "1002"
    port.cut()
    await clock.advance(0.2)
    [begun] = await store.restorations()
    assert begun.cause is Cause.RESTARTED
    await clock.advance(60)
    assert len(await store.restorations()) == 1


async def test_a_listener_that_closes_idle_connections_costs_one_look_in_an_interval(
    watcher: Watcher, port: Port, clock: FakeClock, store: PromptStore, events: Events
) -> None:
    began, looks = clock.monotonic(), len(port.looks)
    while clock.monotonic() < began + 600:
        await clock.advance(0.5)
        port.cut()
    assert not await store.restorations()
    assert not events.of(Event.SERVER_SUSPECT)
    assert len(port.looks) - looks <= 2 * 600 / (INTERVAL * 0.9)


async def test_a_server_that_hangs_or_whose_host_is_gone_is_found_as_before(
    watcher: Watcher, port: Port, clock: FakeClock, store: PromptStore
) -> None:
    hung = clock.monotonic()
    port.hangs = True
    await clock.advance(INTERVAL * 1.1 + 3 * 2 + 2 * 1.25 * 1.1)
    [begun] = await store.restorations()
    assert begun.cause is Cause.UNREACHABLE
    first, second, third = port.since(hung)[:3]
    assert 3.1 < second - first < 3.4
    assert 3.1 < third - second < 3.4


async def test_one_that_closes_its_connections_and_hangs_is_not_hurried(
    watcher: Watcher, port: Port, clock: FakeClock
) -> None:
    """Its answer may only be slow: each look has its time, and the pause between them too."""
    cut = clock.monotonic()
    port.hangs = True
    port.cut()
    await clock.advance(8)
    looks = port.since(cut)
    assert looks[0] == 0
    assert looks[1] > 3.1


async def test_a_refusal_without_the_end_of_the_line_is_not_hurried(
    watcher: Watcher, port: Port, clock: FakeClock, store: PromptStore
) -> None:
    """A firewall that swallows the line, and a port that is refused for a moment."""
    refused = clock.monotonic()
    port.dead = True
    await clock.advance(INTERVAL * 1.1 + 2 * 1.25 * 1.1)
    [begun] = await store.restorations()
    assert begun.cause is Cause.UNREACHABLE
    first, second, third = port.since(refused)[:3]
    assert min(second - first, third - second) > 1.1


async def test_a_listener_that_serves_one_after_the_other_is_left_without_a_line(
    store: PromptStore, clock: FakeClock, settings: Settings, port: Port, events: Events
) -> None:
    port.one_at_a_time = True
    watcher = Watcher(store, settings, clock, asyncio.Event())
    await watcher.load()
    running = asyncio.create_task(watcher.run())
    await clock.advance(GIVEN_UP_SECONDS - 60)
    assert len(port.wires) == 1
    assert not port.open
    assert not events.of(Event.SERVER_SUSPECT)
    assert events.one(Event.SERVER_LINE_GIVEN_UP)["server"] == "chat-a"
    await clock.advance(120)
    assert len(port.wires) == 2, "it is tried again"
    assert not events.of(Event.SERVER_SUSPECT)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_listener_that_refuses_a_second_connection_is_left_without_a_line(
    store: PromptStore, clock: FakeClock, settings: Settings, port: Port, events: Events
) -> None:
    port.one_alone = True
    watcher = Watcher(store, settings, clock, asyncio.Event())
    await watcher.load()
    running = asyncio.create_task(watcher.run())
    await clock.advance(60)
    assert len(port.wires) == 1
    assert not port.open
    assert not events.of(Event.SERVER_SUSPECT)
    assert events.one(Event.SERVER_LINE_GIVEN_UP)["server"] == "chat-a"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_line_beside_which_the_daemon_itself_stood_still_is_kept(
    store: PromptStore, clock: FakeClock, settings: Settings, port: Port, events: Events
) -> None:
    watcher = Watcher(store, settings, clock, asyncio.Event())
    await watcher.load()
    running = asyncio.create_task(watcher.run())
    await clock.advance(1)
    port.hangs = True
    await clock.advance(INTERVAL)
    watcher.stalled()
    port.hangs = False
    await clock.advance(INTERVAL)
    assert len(port.open) == 1
    assert not events.of(Event.SERVER_LINE_GIVEN_UP)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_process_that_is_another_again_and_again_is_seen_each_time(
    watcher: Watcher, port: Port, clock: FakeClock, store: PromptStore
) -> None:
    for number in range(5):
        port.pid = str(2000 + number)
        port.cut()
        await clock.advance(0.3)
        assert len(await store.restorations()) == number + 1
        assert len(port.open) == 1


async def test_a_server_that_is_back_has_a_line_again(watcher: Watcher, port: Port, clock: FakeClock) -> None:
    port.kill()
    await clock.advance(30)
    assert not port.open
    port.dead, port.pid = False, "1002"
    await clock.advance(30)
    assert len(port.open) == 1


async def test_another_description_has_a_line_of_its_own(
    watcher: Watcher, port: Port, clock: FakeClock, make_settings: MakeSettings
) -> None:
    [line] = port.open
    watcher.reload(
        make_settings(
            watcher={"interval": "5s"}, chat_servers=[{"name": "chat-a", "health_url": "http://chat-b/"}]
        )
    )
    await clock.advance(1)
    assert not line.is_open
    assert len(port.open) == 1


async def test_a_server_that_was_away_from_the_configuration_during_a_look_is_noticed_as_before(
    watcher: Watcher, port: Port, clock: FakeClock, settings: Settings, make_settings: MakeSettings
) -> None:
    port.hangs = True
    await clock.advance(INTERVAL * 1.1)
    watcher.reload(make_settings(watcher={"interval": "5s"}, chat_servers=[]))
    watcher.reload(settings)
    port.hangs = False
    await clock.advance(INTERVAL * 1.5)
    killed = clock.monotonic()
    port.kill()
    await clock.advance(0.01)
    assert port.since(killed) == [0.0]


async def test_there_is_none_where_it_is_not_wanted_from_the_next_look_on(
    watcher: Watcher, port: Port, clock: FakeClock, make_settings: MakeSettings, store: PromptStore
) -> None:
    server = {"name": "chat-a", "health_url": "http://chat-a/"}
    watcher.reload(make_settings(watcher={"interval": "5s", "idle_connection": False}, chat_servers=[server]))
    await clock.advance(1)
    assert not port.open
    killed = clock.monotonic()
    port.kill()
    await clock.advance(INTERVAL * 1.1 + 2 * 1.25 * 1.1)
    assert len(await store.restorations()) == 1
    first, second, third = port.since(killed)[:3]
    assert min(second - first, third - second) > 1.1


async def test_who_says_much_unasked_is_hung_up_on(clock: FakeClock, port: Port) -> None:
    rang: list[None] = []
    line = OpenLine(clock, lambda: rang.append(None))

    async def connect(protocol: Callable[[], asyncio.Protocol]) -> Wire:
        wire = Wire(protocol())
        port.wires.append(wire)
        return wire

    line.keep(connect)
    await settle()
    [wire] = port.wires
    wire.protocol.data_received(b"HTTP/1.0 408 Request Timeout\r\n\r\n")
    assert wire.is_open
    wire.protocol.data_received(bytes(MOST_SAID))
    assert not wire.is_open
    assert (len(rang), line.ended.is_set()) == (1, True)


async def test_a_line_that_ends_while_it_is_opened_ends(clock: FakeClock, port: Port) -> None:
    line = OpenLine(clock, lambda: None)

    async def connect(protocol: Callable[[], asyncio.Protocol]) -> Wire:
        wire = Wire(protocol())
        wire.cut()
        return wire

    line.keep(connect)
    await settle()
    assert line.ended.is_set()
    assert not line.is_open


async def test_a_line_is_not_opened_before_the_end_of_the_last_was_looked_into(
    clock: FakeClock, port: Port
) -> None:
    """Who closes the connection before for each new one would close the look's for it."""
    line = OpenLine(clock, lambda: None)

    async def connect(protocol: Callable[[], asyncio.Protocol]) -> Wire:
        port.wires.append(Wire(protocol()))
        return port.wires[-1]

    line.keep(connect)
    await settle()
    line.look_begins(INTERVAL)
    port.cut()
    line.keep(connect)
    await settle()
    assert not port.open
    line.look_begins(INTERVAL)
    await clock.advance(INTERVAL)
    line.keep(connect)
    await settle()
    assert len(port.open) == 1
    line.close()


@pytest.mark.parametrize("seen", [LATE, REFUSED])
async def test_a_look_that_began_before_the_line_does_not_tell_that_it_is_borne(
    clock: FakeClock, port: Port, seen: Seen
) -> None:
    line = OpenLine(clock, lambda: None)

    async def connect(protocol: Callable[[], asyncio.Protocol]) -> Wire:
        port.wires.append(Wire(protocol()))
        return port.wires[-1]

    page = Page(read_health(write_health(HealthFormat.JSON, "117", port.pid)))
    line.look_begins(INTERVAL)
    line.keep(connect)
    await settle()
    assert not line.is_unborne_by(page)
    line.look_begins(INTERVAL)
    assert line.is_unborne_by(seen)
    assert not port.open


async def test_a_line_that_is_closed_while_it_is_opened_is_not_left(clock: FakeClock, port: Port) -> None:
    line = OpenLine(clock, lambda: pytest.fail("nobody is called"))
    reached = asyncio.Event()

    async def connect(protocol: Callable[[], asyncio.Protocol]) -> Wire:
        wire = Wire(protocol())
        port.wires.append(wire)
        await reached.wait()
        return wire

    line.keep(connect)
    await settle()
    line.close()
    await settle()
    assert not port.open
    assert not line.is_open
