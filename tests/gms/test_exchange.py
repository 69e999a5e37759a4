"""An exchange with a node: its deadline, its answer, and what becomes of answers that nobody waits for any more."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from conftest import PATIENCE, Certificates, ScriptedNode, settle, soon

from asyncchatd.gms import exchange as exchanging
from asyncchatd.gms.trouble import ExchangeError, Trouble

from .rig import HALF, Peer, Wire, ask, on_each_loop, pool_of, trouble, until_open

# No connection may have been left to the garbage collector, and no exception to the event loop.
pytestmark = pytest.mark.usefixtures("events")


# -- no answer ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("begun", [b"", HALF], ids=["nothing", "a beginning"])
@on_each_loop
async def test_an_answer_that_is_late_reaches_nobody(wire: Wire, begun: bytes) -> None:
    """It would be another session's reply, with another session's key."""
    late = asyncio.Event()
    async with wire.open(patience=0.5) as (node, pool):
        node.say(begun)
        node.answer(b"too late", when=late)
        node.answer(b"second")
        node.answer(b"third")
        assert await trouble(pool) == (Trouble.TIMEOUT, "no answer in time")
        assert await trouble(pool) == (Trouble.TIMEOUT, "no answer in time")
        await until_open(pool, 0)
        late.set()
        assert [await ask(pool), await ask(pool)] == [b"second", b"third"]
        assert (node.connections, pool.open) == (3, 1)


@on_each_loop
async def test_the_time_for_an_answer_is_not_prolonged_by_pieces_of_it(wire: Wire) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with wire.talking(trickle, patience=0.1) as pool:
        assert await trouble(pool) == (Trouble.TIMEOUT, "no answer in time")


async def test_the_time_for_an_answer_begins_with_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kept connection the time of a request before it must not run on."""
    loop, ahead = asyncio.get_running_loop(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + ahead)
    go_on = asyncio.Event()
    async with ScriptedNode() as node, pool_of(node.base, patience=PATIENCE) as pool:
        node.answer(b"first")
        node.answer(b"second", when=go_on)
        assert await ask(pool) == b"first"
        ahead += 0.75 * PATIENCE
        asking = asyncio.create_task(ask(pool))
        await node.asked(2)
        ahead += 0.5 * PATIENCE
        await settle()
        go_on.set()
        assert await asking == b"second"
        assert node.connections == 1


# -- what was not asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "apart"])
@on_each_loop
async def test_who_is_told_another_ones_answer_waits_for_the_next(wire: Wire, apart: bool) -> None:
    """And afterwards the connection is not used any more."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for body in (b"stale", b"right"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)
            if apart:
                await asyncio.sleep(0.01)
        await reader.read()

    async with wire.talking(talk) as pool:
        with await pool.post("support/chat-1/refresh", b"") as exchange:
            assert [(await soon(exchange.reply())).body for _ in range(2)] == [b"stale", b"right"]
        await until_open(pool, 0)


@on_each_loop
async def test_answers_without_an_end_are_given_up(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        node.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx" * 1000)
        with await pool.post("support/chat-1/refresh", b"") as exchange:
            for _ in range(exchanging.MOST_REPLIES):
                assert (await soon(exchange.reply())).body == b"x"
            with pytest.raises(ExchangeError) as failed:
                await soon(exchange.reply())
        assert failed.value.cause == Trouble.PROTOCOL
        await until_open(pool, 0)


# -- deadlines -------------------------------------------------------------------------------------------


class Waiter:
    """In place of an `Exchange`, on a loop whose only timer goes off when the test says so."""

    def __init__(
        self, deadlines: exchanging.Deadlines, timers: list[float], told: list[str], name: str
    ) -> None:
        self.loop = self
        self.again_at: float | None = None
        """When its time is over it has it once more from then on."""
        self._deadlines, self._timers, self._told, self._name = deadlines, timers, told, name

    def call_later(self, seconds: float, _: Callable[[], None]) -> object:
        self._timers.append(seconds)
        return object()

    def time_out(self) -> None:
        self._told.append(self._name)
        if self.again_at is not None:
            self._deadlines.begin(self, self.again_at)  # type: ignore[arg-type]


class Deadlines:
    """Deadlines of ten seconds, and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.timers: list[float] = []
        self.told: list[str] = []
        self._deadlines = exchanging.Deadlines(10.0)
        monkeypatch.setattr(exchanging, "time", SimpleNamespace(monotonic=lambda: self.now))

    def begin(self, name: str) -> Waiter:
        waiter = Waiter(self._deadlines, self.timers, self.told, name)
        self._deadlines.begin(waiter, self.now)  # type: ignore[arg-type]
        return waiter

    def end(self, waiter: Waiter) -> None:
        self._deadlines.end(waiter)  # type: ignore[arg-type]

    def go_off_at(self, now: float) -> None:
        self.now = now
        self._deadlines._look()


def test_one_timer_tells_each_request_at_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines(monkeypatch)
    deadlines.begin("first")
    deadlines.now = 104.0
    deadlines.begin("second")
    assert deadlines.timers == [10.0]
    deadlines.go_off_at(110.0)
    assert deadlines.told == ["first"]
    assert deadlines.timers == [10.0, 4.0]
    deadlines.go_off_at(114.0)
    assert deadlines.told == ["first", "second"]
    assert deadlines.timers == [10.0, 4.0]  # nobody waits


def test_a_request_that_was_answered_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines(monkeypatch)
    answered = deadlines.begin("answered")
    deadlines.end(answered)
    deadlines.go_off_at(110.0)
    assert deadlines.told == []
    deadlines.begin("next")
    assert deadlines.timers == [10.0, 10.0]


def test_a_timer_that_goes_off_early_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines(monkeypatch)
    deadlines.begin("first")
    deadlines.go_off_at(109.9999)
    assert deadlines.told == []
    assert deadlines.timers == [10.0, exchanging.SHORTEST_SECONDS]


def test_who_has_his_time_again_does_not_put_off_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines(monkeypatch)
    deadlines.begin("paused").again_at = 110.5
    deadlines.now = 104.0
    deadlines.begin("other")
    deadlines.go_off_at(110.5)
    assert deadlines.told == ["paused"]
    assert deadlines.timers == [10.0, 3.5]
    deadlines.go_off_at(114.0)
    assert deadlines.told == ["paused", "other"]
    assert deadlines.timers == [10.0, 3.5, 6.5]


# -- pauses ----------------------------------------------------------------------------------------------


PAUSED = """
import asyncio, ssl, sys, uvloop
from yarl import URL
from asyncchatd.gms.connections import Connections
from asyncchatd.gms.trouble import ExchangeError

async def main() -> None:
    tls = ssl.create_default_context(cafile=sys.argv[3])
    pool = Connections(URL(sys.argv[2]), {}, tls, connect_timeout=20, timeout=1.5)

    async def ask(number: int) -> int:
        try:
            with await pool.post(f"support/chat-{number}/refresh", b"") as exchange:
                return len((await exchange.reply()).body) > 0
        except ExchangeError as error:
            print(error, file=sys.stderr)
            return 0

    print(sum(await asyncio.gather(*map(ask, range(20)))))
    await pool.close()

loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
with asyncio.Runner(loop_factory=loops[sys.argv[1]]) as runner:
    runner.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_answers_that_came_during_a_pause_beyond_the_time_out_are_read(
    loop: str, wire: Wire, certificates: Certificates
) -> None:
    """SIGSTOP, or a VM that sleeps: both loops may run their timers before they look at their sockets."""
    go_on = asyncio.Event()
    async with ScriptedNode(wire.node_tls) as node:
        node.answer(b"x" * 1000, times=20, when=go_on)
        paused = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PAUSED, loop, node.base, str(certificates.ca)),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            await node.asked(20)
            paused.send_signal(signal.SIGSTOP)
            go_on.set()
            await asyncio.sleep(
                2.0
            )  # longer than its time-out, and long enough for what was said to get there
            paused.send_signal(signal.SIGCONT)
            said, _ = await soon(paused.communicate())
        finally:
            if paused.returncode is None:
                paused.kill()
                await paused.wait()
    assert said == b"20\n"


@pytest.mark.slow
@on_each_loop
async def test_answers_that_came_while_the_event_loop_stood_still_are_read(wire: Wire) -> None:
    peer = Peer(wire.node_tls)
    scheme = "https" if wire.node_tls else "http"
    try:
        async with pool_of(f"{scheme}://127.0.0.1:{peer.port}/x", wire.tls, patience=0.3) as pool:
            asking = asyncio.create_task(ask(pool))
            answering = asyncio.create_task(
                peer.answer(b'{"messages":["%s"],"alias":"118"}' % (b"x" * 200_000))
            )
            async with asyncio.timeout(PATIENCE):
                while not peer.connections or pool.open == 0:  # noqa: ASYNC110 - they tell only those who ask
                    await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251 - everything stands still
            assert await asking == b'{"alias":"118"}'
            await answering
    finally:
        peer.close()
