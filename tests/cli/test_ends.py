"""However a command ends, it ends in a line or two: never with a traceback."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from asyncchatd.cli import commands as cli
from asyncchatd.cli import loops

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", "asyncchatd")
PATIENCE = 30.0

CONFIG = """
[receiver]
listen = "127.0.0.1:0"
secrets = ["a-secret-of-some-length"]
[control]
listen = "unix:{directory}/none.sock"
[gms]
nodes = ["http://127.0.0.1:9/genesys"]
"""

ODD_LINES = b"""\
{"time":"2026-11-22T14:02:11Z","level":"info","event":"ping_ok","chat_id":"c","attempt":1e999,"took_ms":1e999}
{"time":"2026-11-22T14:02:11Z","level":"info","event":"gms_available","outage_ms":1e300}
{"time":"2026-11-22T14:02:11Z","level":"info","event":"gms_available","outage_ms":-1e30}
{"time":"2026-11-22T14:02:12Z","level":"warning","event":"ping_retry","chat_id":"c","cause":NaN,"next_ms":-1e999}
{"time":"2026-11-22T14:02:12Z","level":"warning","event":"restoration_started","restoration":1e999,"alias":"1"}
{"time":"0001-01-01T00:00:00+14:00","level":"info","event":"push_received","chat_id":"c"}
{"time":"9999-12-31T23:59:59-14:00","level":"info","event":"ping_ok","chat_id":"c"}
{"time":"2026-11-22T14:02:13Z","level":"info","event":"push_received","chat_id":"\\ud800","type":"\\ud800"}
{"time":"2026-11-22T14:02:14Z","level":"info","event":"later_one","deep":%s1%s,"wide":123456789012345678901234567890}
\xff\xfe\x00{"time":
""" % (b"[" * 900, b"]" * 900)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a configuration, logs good and odd, and what is no file."""
    (tmp_path / "asyncchatd.toml").write_text(CONFIG.format(directory=tmp_path))
    (tmp_path / "asyncchatd.toml").chmod(0o600)
    (tmp_path / "good.log").write_bytes(
        b'{"time":"2026-11-22T14:02:11Z","level":"info","event":"push_received","chat_id":"c"}\n' * 20
    )
    (tmp_path / "odd.log").write_bytes(ODD_LINES)
    (tmp_path / "binary").write_bytes(os.urandom(100_000))
    (tmp_path / "packed.gz").write_bytes(b"\x1f\x8b" + os.urandom(100))
    (tmp_path / "latin.toml").write_bytes(b'[gms]\nservice = "caf\xe9"\n')
    (tmp_path / "directory").mkdir()
    return tmp_path


def run(place: Path, words: str, more: list[bytes] | None = None) -> tuple[int, str, str]:
    """What a shell command comes to, with `asyncchatd` for the command: exit status, output, complaint."""
    script = words.replace("asyncchatd", '"$PYTHON" -m asyncchatd', 1)
    environment = {**os.environ, "ASYNCCHATD_CONFIG": f"{place}/asyncchatd.toml", "PYTHON": sys.executable}
    done = subprocess.run(
        [b"bash", b"-c", script.encode(errors="surrogateescape"), b"bash", *(more or [])],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def is_told(complaint: str) -> bool:
    """A line or two for people, and nothing of Python's."""
    spoken = [line for line in complaint.splitlines() if not line.startswith(("Usage:", "Try "))]
    python = ("Traceback", "Exception ignored", "itself failed", 'File "', "Error in sys")
    return 0 < len([line for line in spoken if line]) <= 3 and not any(word in complaint for word in python)


UNWRITABLE = (
    *(f"asyncchatd {words} >/dev/full" for words in (
        "--help", "check", "check --json", "logs good.log", "init --dir new --no-systemd",
        "standin --json --gms-port 0 --health-port 0 --control-port 0",
    )),
    *(f"asyncchatd {words} >&-" for words in ("--help", "check --json", "logs good.log", "run", "demo")),
)  # fmt: skip
"""Commands whose output cannot be written."""


@pytest.mark.parametrize("words", UNWRITABLE)
def test_an_output_that_cannot_be_written_is_told_in_a_line(place: Path, words: str) -> None:
    status, _, complaint = run(place, words)
    assert status == 1, complaint
    assert is_told(complaint), complaint
    assert "standard output" in complaint


FAILING = (
    # numbers and times
    "logs --since 999999d good.log",
    "logs --since 9999999999999999999d good.log",
    "logs --since 10000-01-01 good.log",
    "logs --since 0000-01-01 good.log",
    "logs --since 0001-01-01 odd.log",
    "logs --since 9999-12-31 odd.log",
    "logs --until 0001-01-01 odd.log",
    "logs --until 9999-12-31 odd.log",
    "logs --since 99:99 good.log",
    "logs --until nan good.log",
    "logs --until 1e999d good.log",
    "logs --restoration 99999999999999999999 good.log",
    "status --follow --every nan",
    "status --follow --every inf",
    "status --follow --every 1e300",
    "ping c --wait --timeout nan",
    "restore s --wait --timeout inf",
    "sessions --limit 1e5",
    "sessions --limit 99999999999999999999999999",
    "restorations --limit 99999999999999999999999999",
    "standin --latency nan",
    "standin --latency 1e300 --gms-port 0 --health-port 0 --control-port 0",
    "standin --capacity inf",
    "standin --resend-delay nan",
    "standin --resend-delay 1e300",
    "standin --restoration-window inf",
    "standin --resend-attempts 99999999999999999999999 --gms-port 99999",
    "standin --sessions 99999999999999999999",
    "standin --rotate-every 99999999999999999999999999 --push-url nonsense",
    "standin --push-url http://127.0.0.1:99999/push/x",
    "standin --push-url http://[::1/push/x",
    "demo --rate nan",
    "demo --seconds nan",
    "rehearse --latency nan",
    "rehearse --lost-answers nan",
    "rehearse --redeploy nan",
    "rehearse --latency inf",
    "rehearse --window nan",
    "rehearse --window inf",
    "rehearse --gms-capacity nan",
    "rehearse --restore-cost nan",
    "rehearse --messages-per-second inf",
    "rehearse --max-rate nan",
    "rehearse --max-rate inf",
    "rehearse --max-in-flight 999999999999999999999999999",
    "rehearse --ping-interval 1e999d",
    "rehearse --ping-interval 999999999999d",
    "rehearse --config nowhere.toml",
    "rehearse --svg directory",
    "rehearse --svg nowhere/x.svg",
    # files that are none, or none of ours
    "check --config directory",
    "check --config binary",
    "check --config latin.toml",
    "check --config nowhere.toml",
    "check --config good.log/x.toml",
    "check --config /dev/zero",
    "check --config /dev/null",
    "check --config ''",
    f"check --config {'x' * 5000}",
    "status --config directory",
    "run --config directory",
    "run --config binary",
    "run --config /dev/zero",
    "logs nowhere.log",
    "logs directory",
    "logs packed.gz",
    "logs --summary packed.gz",
    "logs --follow packed.gz",
    "logs good.log/x",
    "logs /dev/zero",
    f"logs {'x' * 5000}",
    "ASYNCCHATD_TOKEN_FILE=directory status",
    "ASYNCCHATD_TOKEN_FILE=binary status",
    "ASYNCCHATD_TOKEN='\n' status",
    "ASYNCCHATD_TOKEN='a\nb' status",
    "ASYNCCHATD_TOKEN=\udcff status",
    "init --dir good.log/x --no-systemd",
    "init --dir /proc/x --no-systemd",
    "init --dir new --no-systemd --listen nonsense",
    "init --dir new --no-systemd --gms nonsense",
    "init --dir new --no-systemd --chat-server nonsense",
    # bytes that are no text, and text that nobody sees
    "ping \udcff",
    "restore \udcff",
    "sessions --alias \udcff",
    "sessions --chat \udcff",
    "logs --unit \udcff",
    "logs --since \udcff good.log",
    "logs \udcff",
    "check --config \udcff",
    "status --config \udcff",
    "\udcff",
    "--\udcff",
    "init --dir new --no-systemd --gms 'http://h/\udcff'",
    "init --dir new --no-systemd --service \udcff",
    "init --dir new --no-systemd --chat-server '\udcff=http://h/'",
    "init --dir 'new\udcff/x' --no-systemd --gms 'http://h/\udcff'",
    "standin --push-url 'http://127.0.0.1:1/\udcff'",
    "standin --service \udcff --gms-port 0 --health-port 0 --control-port 99999",
    "completion '\x1b[31m'",
)  # fmt: skip
"""Commands that cannot do what they are asked."""


@pytest.mark.parametrize(
    "options",
    [[], ["--full"], ["--json"], ["--summary"], ["--summary", "--json"], ["--chat", "c"], ["--restoration", "1"],
     ["--server", "x"], ["--since", "1h"]],
)  # fmt: skip
@pytest.mark.parametrize("file", ["odd.log", "binary"])
def test_no_line_of_a_log_breaks_its_telling(place: Path, file: str, options: list[str]) -> None:
    ended = CliRunner().invoke(cli.main, ["logs", *options, str(place / file)])
    assert ended.exit_code in {0, 1}
    assert "a fault to report" not in ended.output


@pytest.mark.timeout(20)
@pytest.mark.parametrize("words", FAILING)
def test_a_command_that_fails_says_why_in_a_line(
    place: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = shlex.split(words)
    if arguments[0].startswith("ASYNCCHATD_"):
        name, _, value = arguments.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ASYNCCHATD_CONFIG", f"{place}/asyncchatd.toml")
    monkeypatch.chdir(place)
    ended = CliRunner().invoke(cli.main, arguments)
    assert ended.exit_code in {1, 2}, ended.output
    assert isinstance(ended.exception, SystemExit)
    if "✗ error" not in ended.stdout:  # check lists what it found where it lists all
        assert is_told(ended.stderr), ended.output
    assert "a fault to report" not in ended.output


GOING = (
    "asyncchatd logs --chat $'\\xff' good.log",
    "asyncchatd logs --server $'\\xff' good.log",
    "asyncchatd logs 0<&-",
    "asyncchatd logs - 0<&-",
    "asyncchatd logs odd.log",
    "asyncchatd logs --summary --json odd.log",
    "asyncchatd logs --summary binary odd.log",
    "asyncchatd check 0<&-",
    "asyncchatd check 0<&- 2>&-",
    "asyncchatd sessions 2>/dev/full",
    "asyncchatd nonsense 2>/dev/full",
    "asyncchatd logs <(cat good.log)",
    "asyncchatd logs good.log | head -1",
    "asyncchatd logs --json good.log | true",
)
"""Commands in odd company that do what can be done."""


@pytest.mark.parametrize("words", GOING)
def test_a_command_in_odd_company_ends_without_a_traceback(place: Path, words: str) -> None:
    status, _, complaint = run(place, words)
    assert status in {0, 1, 2}, complaint
    assert complaint == "" or is_told(complaint), complaint


@pytest.mark.parametrize(
    "words",
    ["logs --follow good.log", "status --follow", "standin --gms-port 0 --health-port 0 --control-port 0"],
)
@pytest.mark.parametrize("after", [0.0, 0.3, 0.9])
def test_ctrl_c_at_any_moment_ends_it_without_a_traceback(place: Path, words: str, after: float) -> None:
    process = subprocess.Popen(
        [*COMMAND, *words.split()],
        cwd=place,
        env={**os.environ, "ASYNCCHATD_CONFIG": f"{place}/asyncchatd.toml"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for_our_imports(process)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=PATIENCE)
    assert b"Traceback" not in complaint, complaint.decode()
    assert b"Exception ignored" not in complaint, complaint.decode()


def wait_for_our_imports(process: subprocess.Popen[bytes]) -> None:
    """Until the command reads its modules: what Python says of a Ctrl-C before that is Python's. It may have ended by
    then."""
    maps, until = Path(f"/proc/{process.pid}/maps"), time.monotonic() + PATIENCE
    while "msgspec" not in maps.read_text() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_ctrl_c_waits_until_there_is_a_loop_that_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    new_event_loop, at_work = asyncio.new_event_loop, []

    def interrupted() -> asyncio.AbstractEventLoop:
        # To this thread, the only one that a command has by then: the test's process has others, which would take it.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        return new_event_loop()

    async def work() -> None:
        at_work.append(True)
        await asyncio.sleep(PATIENCE)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(asyncio, "new_event_loop", interrupted)
        monkeypatch.setattr("asyncio.events.new_event_loop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loops.run(work)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert at_work
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
