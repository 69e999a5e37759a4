"""A real `asyncchatd run` beside a stand-in plant: what the demo and the rehearsal both need.

The daemon is a process of its own with a configuration, a database and a log in a directory of its own;
the plant's pushes go to it. It is stopped in the end whatever happens, and killed when this process is.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress, ProgressColumn
from rich.text import Text

from asyncchatd.config import Listen
from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.model import durations
from asyncchatd.standin import TICK, Report, StandIn, session_line
from asyncchatd.terminal.bars import progress
from asyncchatd.terminal.screens import Screen

LOG_FILE = "asyncchatd.log"
GATEWAY_KEY_FILE = "gateway-keys"

START_SECONDS = 30.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05
REGISTERED_AT_ONCE = 250
WRITING_PAUSE_SECONDS = 0.1

Keys = Mapping[str, str | int | float | Sequence[str]]
"""The keys of a section, as the file writes them: durations are texts."""

Sections = Mapping[str, Keys]
"""Sections of a configuration by name."""


class TrialError(Exception):
    """It could not be carried out to its end."""


class Story:
    """Tells what happens, with the seconds since it began."""

    def __init__(self, console: Screen, unit: str = "chats") -> None:
        self.console = console
        self._unit = unit
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def tells(self, *lines: str, style: str = "") -> None:
        """One thing that happened."""
        for n, line in enumerate(lines):
            when = f"{self.seconds:5.1f} s  " if n == 0 else " " * 9
            self.console.print(Text.assemble((when, "dim"), (line, style)))

    def progress(self, *columns: ProgressColumn) -> Progress:
        """A bar that is gone when its part of the story is over."""
        return progress(self.console, self._unit, *columns)


class Daemon:
    """A running `asyncchatd run`."""

    def __init__(self, process: asyncio.subprocess.Process, control: Listen) -> None:
        self.pid = process.pid
        self.control = control
        self.gateway = ""
        """Base URL for chat clients; empty without a gateway."""
        self.exit_status = -1
        self._process = process

    def check(self) -> None:
        """Raises `TrialError` when it ended by itself."""
        if self._process.returncode is not None:
            raise TrialError(f"asyncchatd ended by itself, exit status {self._process.returncode}")


@asynccontextmanager
async def running_daemon(
    plant: StandIn, sections: Sections, directory: Path, consumers: Sequence[Keys] = ()
) -> AsyncIterator[Daemon]:
    """Start one for this plant, connect the plant's pushes to it, stop it in the end whatever happens.

    `sections` are those in which it differs from the defaults, `consumers` are told of what happens in chats. A section
    `gateway` needs neither an address nor a key. Raises `TrialError` when it does not start or ends by itself.
    """
    secret = secrets.token_urlsafe(24)
    control = Listen(path=str(directory / "control.sock"))
    config = directory / "asyncchatd.toml"
    if "gateway" in sections:
        own = {"listen": "127.0.0.1:0", "key_file": GATEWAY_KEY_FILE}
        sections = {**sections, "gateway": {**own, **sections["gateway"]}}
        write_secret(directory / GATEWAY_KEY_FILE, secrets.token_hex(32))
    config.write_text(configuration(plant, control, secret, sections, consumers))
    config.chmod(0o600)
    with (directory / LOG_FILE).open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "asyncchatd.tether", "run", "--config", str(config),
            stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
            start_new_session=True,  # Ctrl-C is ours: it would be the daemon's first signal, our stop its second
        )  # fmt: skip
    daemon = Daemon(process, control)
    try:
        told = await ready(process, directory / LOG_FILE)
        plant.plant.change({"push_url": f"http://{told['receiver'][0]}/push/{secret}"})
        if told["gateway"]:
            daemon.gateway = f"http://{told['gateway'][0]}/genesys"
        yield daemon
        daemon.check()
    finally:
        daemon.exit_status = await stopped(process)


async def register(story: Story, control: ControlClient, plant: StandIn) -> None:
    """The custom-chat-app tells asyncchatd its sessions, as JSON lines. Raises `TrialError` unless all
    were taken."""
    sessions = list(plant.plant.sessions.values())
    began = time.monotonic()
    with story.progress() as bar:
        task = bar.add_task("         registering", total=len(sessions))

        async def lines() -> AsyncIterator[bytes]:
            for begin in range(0, len(sessions), REGISTERED_AT_ONCE):
                some = sessions[begin : begin + REGISTERED_AT_ONCE]
                yield b"".join(json.dumps(session_line(session)).encode() + b"\n" for session in some)
                bar.advance(task, len(some))

        done = read(shapes.Registered, await control.register(lines()))
    if done.taken != len(sessions):
        raise TrialError(f"of {len(sessions)} sessions only {done.taken} were registered")
    story.tells(
        f"{done.taken:,} chats registered over the control API in {durations.measured(time.monotonic() - began)}."
    )


@asynccontextmanager
async def agents_writing(plant: StandIn, messages_per_second: float) -> AsyncIterator[None]:
    """Meanwhile agents write to customers, each message a push in another form."""

    async def write() -> None:
        owed = 0.0
        while True:
            owed += messages_per_second * WRITING_PAUSE_SECONDS
            for session in plant.plant.chats.some(int(owed)):
                plant.plant.say(session, "How may I help you?")
            owed -= int(owed)
            await asyncio.sleep(WRITING_PAUSE_SECONDS)

    async with meanwhile(write()):
        yield


@asynccontextmanager
async def meanwhile(*works: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Meanwhile these go on, until they end or are cancelled. What one of them raised is raised at the end."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for it, but not longer; whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


def rules(report: Report) -> dict[str, int]:
    """Requests that break a rule, other than the wrong key."""
    return {
        name: getattr(report, name)
        for name in (
            "wrong_user_id_requests",
            "wrong_alias_requests",
            "wrong_service_requests",
            "incomplete_requests",
            "overlapping_requests",
            "repeated_at_once_requests",
            "unknown_chat_requests",
            "unreadable_requests",
        )
    }


def most_requests(report: Report, rate: float) -> Load:
    """Whether the rate was kept in every second, for all the plant can tell.

    After a pause of its own the plant finds all requests that came meanwhile at once, and while it serves these the
    last of them waits for as long again. Those belong to the seconds before, so as many as two such pauses can hold are
    no offence, and neither is one at either end.
    """
    pause = report.longest_pause_seconds
    late = 2 * pause + TICK  # it cannot see a pause that is shorter than its look at the clock
    return Load(report.peak_requests_per_second, rate, round(rate * (1 + late)) + 1, pause)


@dataclass(frozen=True, slots=True)
class Load:
    """The busiest second, wherever it began."""

    peak: int
    rate: float
    allowed: int
    """What the plant may have counted at that rate."""
    pause: float
    """Seconds that the plant itself stood still at most."""

    @property
    def kept(self) -> bool:
        """Whether the rate was."""
        return self.peak <= self.allowed

    def __str__(self) -> str:
        said = f"{self.peak:,} of {self.rate:g}"
        if self.peak <= self.rate:
            return said
        return f"{said}, the plant paused {durations.measured(self.pause)}"


def overworked(report: Report, patience: float, *, left: int = 0) -> str | None:
    """Why a machine was too busy for promises that were broken to be asyncchatd's: the plant served what a daemon had
    waited for in vain, `patience` seconds. What such an answer said nobody was told; of a new key this costs a
    customer. `None` where the plant kept up. `left`: so many requests a daemon that was killed may have left behind."""
    if report.requests_abandoned <= left:
        return None
    return (
        f"This machine was too busy. The plant served {report.requests_abandoned:,} requests only after asyncchatd,"
        f" which waits {patience:g} s here and 10 s in production, had given up. A new key in such an answer is lost,"
        " whoever asked. Try again when there is less to do."
    )


def new_directory(purpose: str) -> Path:
    """A temporary one. The path of a Unix socket is short, that of a user's temporary directory may be long."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=f"asyncchatd-{purpose}-", dir=usual if len(usual) <= 60 else "/tmp"))


async def stopped(process: asyncio.subprocess.Process) -> int:
    """Stop a daemon as an operator does, also one that stands still; its exit status. It is killed when it does not end
    in time."""
    try:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_SECONDS):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()
    except BaseException:
        # Cancelled a second time: no more waiting, but nothing stays behind either.
        with suppress(ProcessLookupError):
            process.kill()
        raise


def said(log: Path, event: str, since: int = 0) -> list[dict[str, Any]]:
    """The lines of a daemon's log with this event, from a place of the file on."""
    found = []
    for line in log.read_bytes()[since:].splitlines():
        with suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and told.get("event") == event:
                found.append(told)
    return found


async def ready(process: asyncio.subprocess.Process, log: Path, since: int = 0) -> dict[str, Any]:
    """The line of its log that says that it is ready, and at which ports, which the system chose. Raises `TrialError`
    when it does not come."""
    found: list[dict[str, Any]] = []

    def is_told() -> bool:
        found[:] = said(log, "daemon_ready", since)
        return bool(found) or process.returncode is not None

    if not await until(is_told, START_SECONDS):
        raise TrialError(f"asyncchatd was not ready within {START_SECONDS:.0f} s")
    if not found:
        raise TrialError(f"asyncchatd did not start, exit status {process.returncode}")
    return found[0]


def write_secret(path: Path, secret: str) -> None:
    path.touch(mode=0o600)
    path.write_text(f"{secret}\n")


def configuration(
    plant: StandIn,
    control: Listen,
    secret: str,
    sections: Sections,
    consumers: Sequence[Keys],
    pages: Mapping[str, str] | None = None,
) -> str:
    """The file of a daemon of this plant. `pages` are the URLs of health pages by Chat Server, where those of the plant
    are not asked themselves."""
    own: Sections = {
        "control": {"listen": str(control)},
        "log": {"format": "json"},
        "store": {"url": "sqlite:///asyncchatd.db"},
    }
    gms = "\n".join(_keys(sections.get("gms", {})))
    others = "\n".join(
        "\n".join([f"[{name}]", *_keys(keys)]) for name, keys in {**own, **sections}.items() if name != "gms"
    )
    servers = "\n".join(
        f"[[chat_server]]\nname = {json.dumps(name)}\nhealth_url = {json.dumps(url)}"
        for name, url in (pages or plant.health_urls).items()
    )
    told = "\n".join("\n".join(["[[consumer]]", *_keys(each)]) for each in consumers)
    return f"""\
[receiver]
listen = "127.0.0.1:0"
secrets = [{json.dumps(secret)}]
[gms]
nodes = {json.dumps(plant.gms_urls)}
service = {json.dumps(plant.plant.settings.service)}
{gms}
{others}
{servers}
{told}
"""


def _keys(keys: Keys) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
