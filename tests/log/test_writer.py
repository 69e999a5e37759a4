"""Who reads the log may stall, be slow or be gone: the daemon goes on, and says what is missing."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import select
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from conftest import PATIENCE, claimed_port, soon

from asyncchatd.log.writer import GRAVE_RESERVE, LINE_COST, MOST_WAITING, LogWriter

LINE = b"x" * 1000


class Output:
    """A log whose other end nobody reads until it is told to."""

    def __init__(self, write_end: int, read_end: int) -> None:
        self.lost = 0
        self.told: list[int] = []
        self.text = b""
        self.file = os.fdopen(write_end, "wb", buffering=0)
        self.writer = LogWriter(self.file, lost=self._count, tell=self._tell)
        self._read_end = read_end

    def _count(self, count: int) -> None:
        self.lost += count

    def _tell(self, count: int) -> None:
        self.told.append(count)
        self.writer.write([b"lost %d" % count], grave=True)

    def read_to(self, last: bytes) -> list[bytes]:
        """All lines, of which this is the last one."""
        until = time.monotonic() + PATIENCE
        while not self.text.endswith(b"\n" + last + b"\n"):
            assert select.select([self._read_end], [], [], until - time.monotonic())[0], self.text[-100:]
            self.text += os.read(self._read_end, 1 << 20)
        return self.text.splitlines()

    def close(self) -> None:
        self.writer.close()
        self.file.close()
        os.close(self._read_end)


def pipe() -> Output:
    reading, writing = os.pipe()
    return Output(writing, reading)


def journal() -> Output:
    """What systemd gives as standard output."""
    reading, writing = socket.socketpair()
    return Output(writing.detach(), reading.detach())


def terminal() -> Output:
    reading, writing = os.openpty()
    raw = termios.tcgetattr(writing)
    raw[1] &= ~termios.OPOST
    termios.tcsetattr(writing, termios.TCSANOW, raw)
    return Output(writing, reading)


def of_another(monkeypatch: pytest.MonkeyPatch) -> Output:
    """One that cannot be opened a second time."""

    def forbidden(*_: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr("asyncchatd.log.writer.os.open", forbidden)
        return pipe()


@pytest.fixture(params=["pipe", "journal", "terminal", "of another"])
def output(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Output]:
    ways: dict[str, Callable[[], Output]] = {
        "pipe": pipe,
        "journal": journal,
        "terminal": terminal,
        "of another": lambda: of_another(monkeypatch),
    }
    made = ways[request.param]()
    yield made
    made.close()


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d " % number + LINE for number in range(start, start + count)]


def test_a_reader_that_stalls_holds_nobody_up_and_gets_every_line_in_order(output: Output) -> None:
    lines = numbered(2_000)
    for line in lines:
        output.writer.write([line])
    assert output.read_to(lines[-1]) == lines
    assert (output.lost, output.told) == (0, [])
    assert output.writer.flush(PATIENCE)
    output.writer.write([b"at once again"])
    assert output.read_to(b"at once again") == [*lines, b"at once again"]


@pytest.mark.slow
def test_what_does_not_fit_is_dropped_counted_and_told_in_its_place(output: Output) -> None:
    fit = MOST_WAITING // (len(LINE) + LINE_COST)
    lines = numbered(fit + 2_000)
    for line in lines:
        output.writer.write([line])
    dropped = output.lost
    assert 1_000 < dropped < 2_100
    kept = output.read_to(b"lost %d" % dropped)
    assert kept == [*lines[: len(lines) - dropped], b"lost %d" % dropped]
    output.writer.write([b"after"])
    assert output.read_to(b"after")[-2:] == [b"lost %d" % dropped, b"after"]
    assert (output.told, output.lost) == ([dropped], dropped)


@pytest.mark.slow
def test_what_is_grave_has_room_of_its_own(output: Output) -> None:
    for line in numbered(MOST_WAITING // len(LINE) + 1_000):
        output.writer.write([line])
    dropped = output.lost
    output.writer.write([b"an info", b"a warning"], grave=True)
    assert output.lost == dropped + 1
    grave = 2 * GRAVE_RESERVE // len(LINE)
    for _ in range(grave):
        output.writer.write([LINE], grave=True)
    assert output.lost > dropped + grave // 3  # half of them, but for what a terminal takes meanwhile
    assert b"a warning" in output.read_to(b"lost %d" % output.lost)


def test_many_threads_may_write(output: Output) -> None:
    def write(name: int) -> None:
        for number in range(300):
            output.writer.write([b"%d %d " % (name, number) + LINE])

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    output.writer.write([b"the last"])
    found = [tuple(map(int, line.split()[:2])) for line in output.read_to(b"the last")[:-1]]
    assert sorted(found) == [(name, number) for name in range(4) for number in range(300)]
    assert [each for each in found if each[0] == 2] == [(2, number) for number in range(300)]


def test_the_last_lines_wait_for_their_reader_only_so_long(output: Output) -> None:
    output.writer.write(numbered(2_000))
    assert not output.writer.flush(0.05)


def test_others_who_share_the_pipe_go_on_waiting_for_its_reader() -> None:
    output = pipe()
    output.writer.write([b"a line"])
    assert os.get_blocking(output.file.fileno())
    output.close()


def test_a_reader_that_is_gone_is_written_to_no_more() -> None:
    reading, writing = os.pipe()
    lost: list[int] = []
    with open(writing, "wb", buffering=0) as file:
        writer = LogWriter(file, lost=lost.append, tell=lambda _: pytest.fail("nobody could read it"))
        writer.write([b"read"])
        assert os.read(reading, 100) == b"read\n"
        os.close(reading)
        for _ in range(3):
            writer.write([b"one", b"two"])
        assert writer.flush(PATIENCE)
        writer.close()
    assert sum(lost) == 6


def test_a_full_disk_under_the_log_is_told_when_there_is_room_again(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    lost: list[int] = []
    with open(tmp_path / "log", "ab", buffering=0) as file:
        writer = LogWriter(file, lost=lost.append, tell=lambda count: writer.write([b"lost %d" % count]))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (25, before[1]))
            for number in range(5):
                writer.write([b"the line %d" % number])  # the third one is cut
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        writer.write([b"room again"])
        writer.write([b"and on"])
        writer.close()
    assert lost == [1, 1, 1]
    assert (tmp_path / "log").read_bytes().splitlines() == [
        b"the line 0", b"the line 1", b"the", b"room again", b"lost 3", b"and on",
    ]  # fmt: skip


def test_a_file_in_memory_will_do() -> None:
    file = io.BytesIO()
    writer = LogWriter(file, lost=lambda _: None, tell=lambda _: None)
    writer.write([b"one", b"two"])
    assert file.getvalue() == b"one\ntwo\n"


# -- the daemon ------------------------------------------------------------------------------------

CONFIGURATION = """
[receiver]
listen = "127.0.0.1:{receiver}"
secrets = ["push-secret-1"]
[control]
listen = "127.0.0.1:{control}"
[gms]
nodes = ["{gms}"]
[store]
url = "memory:"
[log]
format = "json"
[watcher]
interval = "200ms"
[[chat_server]]
name = "chat-1"
health_url = "{health}"
"""


class Gms:
    """A node and a health page; counts what it is asked."""

    def __init__(self) -> None:
        self.pings = self.looks = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.Response:
            if request.method == "GET":
                self.looks += 1
                return aiohttp.web.Response(text="app_dbid=117\nprocess_os_pid=4711\n")
            self.pings += 1
            return aiohttp.web.json_response({"statusCode": 0, "chatEnded": False})

        runner = aiohttp.web.ServerRunner(aiohttp.web.Server(handle))
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()


def a_push(number: int) -> bytes:
    tokens = {"session-id": f"c{number}", "user-id": "u1", "secure-key": f"k{number}", "app-dbid": "117"}
    message = {"type": "push-url", "text": "x" * 500, **tokens}
    return json.dumps({"deviceId": f"device-{number}", "message": message}).encode()


@asynccontextmanager
async def daemon(
    tmp_path: Path, gms: str, stdout: int, *, stderr: int = asyncio.subprocess.DEVNULL
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    """`asyncchatd run`, until it is ready; it and the addresses of its listeners."""
    with claimed_port() as first, claimed_port() as second:
        receiver, control = first.getsockname()[1], second.getsockname()[1]
    config = tmp_path / "asyncchatd.toml"
    config.write_text(
        CONFIGURATION.format(receiver=receiver, control=control, gms=f"{gms}/genesys", health=f"{gms}/")
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncchatd", "run", "--config", str(config), stdout=stdout, stderr=stderr
    )
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(PATIENCE):
            while True:
                with suppress(aiohttp.ClientError):
                    async with http.get(f"http://127.0.0.1:{control}/readyz") as response:
                        if response.status == 200:
                            break
                await asyncio.sleep(0.02)
        yield process, f"http://127.0.0.1:{receiver}/push/push-secret-1", f"http://127.0.0.1:{control}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def push(http: aiohttp.ClientSession, url: str, numbers: Sequence[int]) -> list[int]:
    async def one(number: int) -> int:
        async with http.post(url, data=a_push(number)) as response:
            return response.status

    return list(await soon(asyncio.gather(*map(one, numbers))))


@pytest.mark.slow
async def test_a_log_that_nobody_reads_stops_neither_pushes_nor_pings_nor_looks(tmp_path: Path) -> None:
    gms = Gms()
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    async with gms.listening() as url, daemon(tmp_path, url, writing) as (process, push_url, _):
        os.close(writing)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as http:
            for start in range(0, 600, 50):
                assert await push(http, push_url, range(start, start + 50)) == [200] * 50
            pinged, looked = gms.pings, gms.looks
            async with asyncio.timeout(PATIENCE):
                while gms.looks < looked + 3 or gms.pings <= pinged:
                    await push(http, push_url, [1_000])
                    await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        text = b""

        def read() -> bytes:
            return b"".join(iter(lambda: os.read(reading, 1 << 16), b""))

        text = await soon(asyncio.to_thread(read))
        assert await soon(process.wait()) == 0
    os.close(reading)
    lines = [json.loads(line) for line in text.splitlines()]
    pushed = [line["device_id"] for line in lines if line["event"] == "push_received"]
    assert set(pushed) >= {f"device-{number}" for number in range(600)}
    assert lines[-1]["event"] == "daemon_stopped"


@pytest.mark.slow
async def test_the_daemon_stops_although_nobody_reads_its_log(tmp_path: Path) -> None:
    gms = Gms()
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    async with (
        gms.listening() as url,
        daemon(tmp_path, url, writing, stderr=writing) as (process, push_url, _),
    ):
        os.close(writing)
        async with aiohttp.ClientSession() as http:
            assert await push(http, push_url, range(50)) == [200] * 50
        process.send_signal(signal.SIGTERM)
        assert await soon(process.wait()) == 0
    os.close(reading)


@pytest.mark.slow
async def test_a_daemon_that_cannot_start_ends_although_nobody_reads_why(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    config = tmp_path / "asyncchatd.toml"
    config.write_text(
        CONFIGURATION.format(
            receiver=0, control=0, gms="http://127.0.0.1:9", health="http://127.0.0.1:9"
        ).replace("127.0.0.1:0", "192.0.2.1:80")
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncchatd", "run", "--config", str(config), stdout=writing, stderr=writing
    )
    try:
        assert await soon(process.wait()) == 1
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(reading)
        os.close(writing)


@pytest.mark.slow
async def test_the_daemon_lives_on_when_who_reads_its_log_has_left(tmp_path: Path) -> None:
    gms = Gms()
    reading, writing = os.pipe()
    async with gms.listening() as url, daemon(tmp_path, url, writing) as (process, push_url, control):
        os.close(writing)
        assert os.read(reading, 10).startswith(b"{")
        os.close(reading)
        async with aiohttp.ClientSession() as http:
            assert await push(http, push_url, range(50)) == [200] * 50
            async with http.get(f"{control}/metrics") as response:
                assert "asyncchatd_log_lines_lost_total 0.0" not in await response.text()
        process.send_signal(signal.SIGTERM)
        assert await soon(process.wait()) == 0


def test_a_writer_goes_on_in_another_file_with_all_it_was_given(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with one.open("ab") as file:
        writer = LogWriter(file, lost=_nothing, tell=_nothing)
    writer.write([b"first"])
    with other.open("ab") as file:
        writer.use(file)
    writer.write([b"second", b"third"], grave=True)
    writer.close()
    assert (one.read_bytes(), other.read_bytes()) == (b"first\n", b"second\nthird\n")


def test_what_a_stalled_reader_did_not_take_goes_to_the_other_file(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    other = tmp_path / "other"
    with os.fdopen(write_end, "wb", buffering=0) as pipe:
        writer = LogWriter(pipe, lost=_nothing, tell=_nothing)
        writer.write([LINE] * 1000)
        with other.open("ab") as file:
            writer.use(file)
        writer.write([b"last"])
        assert writer.flush(PATIENCE)
        writer.close()
    os.set_blocking(read_end, False)
    taken = os.read(read_end, 2_000_000).count(b"\n")
    os.close(read_end)
    lines = other.read_bytes().splitlines()
    assert lines[-1] == b"last"
    assert set(lines[1:-1]) == {LINE}
    assert taken + len(lines) >= 1001


@pytest.mark.parametrize("again", [True, False], ids=["opened anew", "at the start"])
def test_half_a_line_at_the_end_of_a_file_stays_alone(tmp_path: Path, again: bool) -> None:
    """Whoever wrote it found the disk full, or was killed."""
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    with log.open("ab") as file:
        writer = LogWriter(file, lost=_nothing, tell=_nothing)
        log.write_bytes(b"before\nhalf a li")
        if again:
            writer.use(file)
        else:
            writer.close()
            writer = LogWriter(file, lost=_nothing, tell=_nothing)
        writer.write([b"first"])
        writer.write([b"second"])
        writer.close()
    assert log.read_bytes() == b"before\nhalf a li\nfirst\nsecond\n"


def test_a_file_that_may_be_written_and_not_read_is_written(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    log.chmod(0o200)
    with log.open("ab") as file:
        writer = LogWriter(file, lost=_nothing, tell=_nothing)
    writer.write([b"first"])
    writer.close()
    log.chmod(0o600)
    assert log.read_bytes() == b"first\n"


def _nothing(count: int) -> None:
    pytest.fail(f"{count} lines were lost")
