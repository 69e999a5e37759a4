"""The commands, against a real daemon and a stand-in plant, each a process of its own on loopback."""

from __future__ import annotations

import asyncio
import errno
import importlib
import itertools
import json
import os
import pkgutil
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.request import Request, urlopen

import click
import pytest
from click.testing import CliRunner, Result
from conftest import started
from msgspec import structs

from asyncchatd import __version__
from asyncchatd.cli import commands as cli
from asyncchatd.cli import options, tables
from asyncchatd.config.sections.gateway import GatewaySettings
from asyncchatd.config.sections.listeners import ControlSettings, MetricsSettings, ReceiverSettings
from asyncchatd.config.values.addresses import Listen
from asyncchatd.control import shapes
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.terminal.screens import screen, show

COMMAND = (sys.executable, "-m", "asyncchatd")
SESSIONS = 30


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll until the condition holds; the time only ends a hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def configuration(directory: Path, control: str, **more: str) -> Path:
    tables = {
        "receiver": 'listen = "127.0.0.1:0"\nsecrets = ["a-secret-of-some-length"]',
        "control": f'listen = "{control}"',
        "gms": 'nodes = ["http://127.0.0.1:9/genesys"]\nservice = "customer-support"',
        "watcher": 'interval = "500ms"\ntimeout = "10s"',  # nothing hangs here: it only bounds a busy machine
    } | more
    path = directory / "asyncchatd.toml"
    path.write_text("\n".join(f"[{name}]\n{keys}" for name, keys in tables.items()))
    path.chmod(0o600)
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def shown(*arguments: str | Path) -> str:
    """What a command that succeeds prints."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def complaint(*arguments: str | Path) -> str:
    """What a command that fails says on standard error: never a traceback."""
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stderr


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


# Without a daemon.


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    text = shown(name, "--help")
    assert f"Example:\n    asyncchatd {name}" in text
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    assert "None" not in text


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["statsu"]])
def test_what_needs_no_command_imports_none(arguments: list[str]) -> None:
    program = f"""
import sys
from asyncchatd.cli import main
try:
    main({arguments})
except SystemExit:
    heavy = ("rich.console", "pydantic", "aiohttp", "structlog", "asyncio", "asyncchatd.log")
    print([name for name in heavy if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_every_command_is_where_it_is_announced_to_be() -> None:
    for announced in cli.ANNOUNCED:
        command = announced.load()
        assert (command.name, command.short_help) == (announced.name, announced.short_help)
        assert not command.hidden


def test_every_command_stands_under_the_heading_of_its_module() -> None:
    for announced in cli.ANNOUNCED:
        module = announced.place.partition(":")[0].rpartition(".")[2]
        heading = rf"^    {module} .*\b{announced.name}\b"
        assert re.search(heading, cli.__doc__ or "", re.MULTILINE), announced.name


def test_every_command_that_is_written_is_announced() -> None:
    announced = {announced.place for announced in cli.ANNOUNCED}
    for module in pkgutil.iter_modules(cli.__path__, f"{cli.__name__}."):
        written = vars(importlib.import_module(module.name))
        commands = {name: each for name, each in written.items() if isinstance(each, click.Command)}
        of_groups = {
            one
            for each in commands.values()
            if isinstance(each, click.Group)
            for one in each.commands.values()
        }
        own = {
            f"{module.name}:{name}"
            for name, each in commands.items()
            if each not in of_groups and each.callback is not None and each.callback.__module__ == module.name
        }
        assert own <= announced


def test_the_documents_name_the_commands_that_take_no_configuration() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    said = re.search(r"^All commands but (.*?) take `--config FILE`", text, re.MULTILINE)
    assert said is not None
    without = {
        announced.name
        for announced in cli.ANNOUNCED
        if not any(each.name == "config" for each in _parameters(announced.load()))
    }
    assert set(re.findall(r"`(\w+)`", said[1])) == without


def _parameters(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    if isinstance(command, click.Group):
        for name in command.commands:
            further = command.get_command(click.Context(command), name)
            assert further is not None
            yield from _parameters(further)


def test_whether_a_file_can_be_read_is_not_said_by_the_option_that_names_it() -> None:
    """One that cannot be read is as wrong as one that is not there: exit status 1, and what to do."""
    paths = [(each.name, each.type) for each in _parameters(cli.main) if isinstance(each.type, click.Path)]
    assert len(paths) > 10
    assert [name for name, path in paths if path.readable] == []


@pytest.mark.parametrize("kind", ["missing", "directory", "unreadable"])
@pytest.mark.parametrize(
    "command", ["check", "run", "status", "consumers", "rehearse", "store distrust --before now"]
)
def test_a_configuration_that_cannot_be_read_is_exit_status_1(
    command: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "asyncchatd.toml"
    if kind == "directory":
        path.mkdir()
    elif kind == "unreadable":
        path.write_text("")
        path.chmod(0)
        monkeypatch.setattr(os, "access", lambda *_, **__: False)  # as for another user than root

        def refuse(self: Path, *_: object, **__: object) -> bytes:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

        monkeypatch.setattr(Path, "read_bytes", refuse)
        monkeypatch.setattr(Path, "read_text", refuse)
        monkeypatch.setattr(Path, "open", refuse)
    result = invoke(*command.split(), "--config", path)
    assert result.exit_code == 1, result.output
    assert "cannot be read" in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--wait-for-push"], "expected --connect together with --wait-for-push"),
        (["--timeout", "60"], "expected --wait-for-push together with --timeout"),
        (["--connect", "--timeout", "600"], "expected --wait-for-push together with --timeout"),
    ],
)
def test_an_option_of_check_that_would_do_nothing_is_a_wrong_one(
    options: list[str], words: str, tmp_path: Path
) -> None:
    result = invoke("check", *options, "--config", tmp_path / "asyncchatd.toml")
    assert (result.exit_code, words in result.output) == (2, True), result.output


@pytest.mark.parametrize("gms", ["nodes = []", 'nodes = ["http://gms-1/genesys/2/chat/support"]'])
def test_no_push_is_waited_for_with_a_wrong_configuration(gms: str, tmp_path: Path) -> None:
    config = tmp_path / "asyncchatd.toml"
    config.write_text(
        f"""
        [receiver]
        secrets = ["0123456789abcdef0123456789abcdef"]
        [gms]
        {gms}
        service = "support"
        [[chat_server]]
        name = "chat-1"
        health_url = "http://127.0.0.1:4001/"
        """
    )
    result = invoke("check", "--connect", "--wait-for-push", "--timeout", "1", "--config", config)
    assert result.exit_code == 1
    assert "no push is waited for before these errors are corrected" in result.output
    assert "itself failed" not in result.output


@pytest.mark.slow
def test_a_push_is_waited_for_though_the_address_of_the_metrics_is_held(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held, socket.create_server(("127.0.0.1", 0)) as free:
        taken, port = held.getsockname()[1], free.getsockname()[1]
        free.close()
        config = tmp_path / "asyncchatd.toml"
        config.write_text(
            f"""
            [receiver]
            listen = "127.0.0.1:{port}"
            secrets = ["0123456789abcdef0123456789abcdef"]
            [control]
            listen = "unix:{tmp_path}/control.sock"
            [metrics]
            listen = "127.0.0.1:{taken}"
            [gms]
            nodes = ["http://127.0.0.1:{port}/genesys"]
            service = "support"
            [[chat_server]]
            name = "chat-1"
            health_url = "http://127.0.0.1:{port}/"
            """
        )
        os.chmod(config, 0o600)
        result = invoke("check", "--connect", "--wait-for-push", "--timeout", "1", "--config", config)
    told = " ".join(result.output.split())
    assert f"metrics.listen: 127.0.0.1:{taken} is in use by something else" in told
    assert "no push has come within 1.0 s" in told
    assert result.exit_code == 1


class _Read:
    """A session, and what was read of it."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        values: dict[str, Any] = dict.fromkeys(shapes.Session.__struct_fields__, "a word")
        for name in values:
            if name.endswith(("_at", "_since")):
                values[name] = shapes.write_time(datetime.now(UTC))
        self._session = shapes.Session(**values)

    def __getattr__(self, name: str) -> object:
        self.names.add(name)
        return getattr(self._session, name)


def test_every_field_that_the_api_shows_of_a_session_is_shown_by_the_command_too() -> None:
    read = _Read()
    tables.session(cast(shapes.Session, read))
    assert read.names == set(shapes.Session.__struct_fields__)


def test_without_a_configuration_it_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASYNCCHATD_CONFIG", raising=False)
    monkeypatch.setattr(options, "USUAL_FILES", (tmp_path / "one.toml", tmp_path / "two.toml"))
    text = complaint("status")
    assert all(word in text for word in ("one.toml", "two.toml", "--config", "$ASYNCCHATD_CONFIG"))


@pytest.mark.slow
def test_the_configuration_is_found_in_the_usual_place_unless_the_environment_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = configuration(tmp_path, "127.0.0.1:8092")
    monkeypatch.delenv("ASYNCCHATD_CONFIG", raising=False)
    monkeypatch.setattr(options, "USUAL_FILES", (tmp_path / "nothing.toml", usual))
    assert f"{usual} is valid" in shown("check")
    monkeypatch.setenv("ASYNCCHATD_CONFIG", str(tmp_path / "elsewhere.toml"))
    assert "cannot be read" in invoke("check").stdout


def test_a_daemon_that_does_not_run_is_one_line_with_advice(tmp_path: Path) -> None:
    for control in (f"127.0.0.1:{free_port()}", f"unix:{tmp_path}/none.sock"):
        text = complaint("status", "--config", configuration(tmp_path, control))
        assert control in text
        assert "asyncchatd run" in text
        assert len(text.splitlines()) == 1


def test_a_port_the_system_chooses_cannot_be_asked(tmp_path: Path) -> None:
    assert "set a fixed one" in complaint("servers", "--config", configuration(tmp_path, "127.0.0.1:0"))


def test_a_bad_control_section_is_told_and_the_rest_is_not_looked_at(tmp_path: Path) -> None:
    config = configuration(tmp_path, f"unix:{tmp_path}/none.sock", receiver="secrets = []")
    assert "no daemon answers" in complaint("status", "--config", config)
    assert "control.listen" in complaint("status", "--config", configuration(tmp_path, "nowhere"))


def test_check_prints_a_checklist_and_fails_on_errors_only(tmp_path: Path) -> None:
    config = configuration(tmp_path, "127.0.0.1:8092", ping='interval = "20h"')
    assert "warning" in shown("check", "--config", config)
    config = configuration(tmp_path, "127.0.0.1:8092", ping='intervall = "20m"')
    result = invoke("check", "--config", config)
    assert result.exit_code == 1
    assert "did you mean ping.interval?" in result.stdout
    result = invoke("check", "--config", config, "--json")
    assert result.exit_code == 1
    assert [(found["level"], found["key"]) for found in json.loads(result.stdout)] == [
        ("error", "ping.intervall")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"ping": 'interval = "soon"'}, "ping.interval"),
        ({"receiver": 'listen = "127.0.0.1:{taken}"\nsecrets = ["a-secret-of-some-length"]'}, "is in use"),
        ({"store": 'url = "sqlite:////dev/null/all.db"'}, "/dev/null/all.db"),
    ],
)
def test_run_that_cannot_start_is_one_line_and_an_event(
    tmp_path: Path, sections: dict[str, str], expected: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        sections = {name: keys.replace("{taken}", port) for name, keys in sections.items()}
        config = configuration(tmp_path, f"unix:{tmp_path}/control.sock", **sections)
        done = subprocess.run(
            [*COMMAND, "run", "--config", config], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "ping.interval" in expected or "asyncchatd check --connect" in done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["part"]) == ("daemon_failed", "start")
    assert expected in last["cause"]


@pytest.mark.slow
def test_a_terminal_without_check_marks_shows_the_rest(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "check", "--config", configuration(tmp_path, "127.0.0.1:8092")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert "? ok" in done.stdout
    assert "! warning" in done.stdout


def test_a_stand_in_pushes_to_loopback_only() -> None:
    assert "loopback" in complaint("standin", "--push-url", "http://192.0.2.1/push/secret")


def test_a_stand_in_whose_port_is_taken_says_how_to_give_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        anywhere = ("--health-port", "0", "--control-port", "0")
        assert "--gms-port" in complaint("standin", "--gms-port", port, *anywhere)


@pytest.mark.slow
def test_a_stand_in_prints_a_configuration_that_fits_it(tmp_path: Path) -> None:
    anywhere = [
        "--gms-port",
        "0",
        "--health-port",
        "0",
        "--control-port",
        "0",
        "--health",
        "json",
        "--health",
        "html",
    ]
    with started(*COMMAND, "standin", *anywhere) as plant:
        assert plant.stdout is not None
        printed = ""
        while "/report" not in printed:
            line = plant.stdout.readline().decode()
            assert line, "the stand-in ended early"
            printed += line
        config = tmp_path / "asyncchatd.toml"
        config.write_text(printed.partition("asyncchatd:\n")[2].partition("\n#")[0])
        config.chmod(0o600)
        text = shown("check", "--config", config)
        plant.terminate()
        assert plant.wait(20) == 128 + signal.SIGTERM
    assert f"{config} is valid" in text
    assert config.read_text().count("[[chat_server]]") == 3


# With one.


@dataclass
class Running:
    """A daemon, the plant it looks after, and the plant's sessions."""

    config: Path
    process: subprocess.Popen[bytes]
    plant: dict[str, str]
    chats: list[dict[str, str]]

    @property
    def log(self) -> Path:
        return self.config.parent / "log"

    def json(self, *arguments: str) -> dict[str, list[dict[str, object]]]:
        found: dict[str, list[dict[str, object]]] = json.loads(
            shown(*arguments, "--config", self.config, "--json")
        )
        return found

    def text(self, *arguments: str) -> str:
        return shown(*arguments, "--config", self.config)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A stand-in and a daemon with a Unix control socket, both commands of ours, with chats registered."""
    rehearsal = [*COMMAND, "standin", "--json", "--servers", "2", "--sessions", str(SESSIONS)]
    rehearsal += ["--gms-port", "0", "--health-port", "0", "--control-port", "0", "--health", "prometheus"]
    with (
        tempfile.TemporaryDirectory(prefix="asyncchatd-", dir="/tmp") as name,
        started(*rehearsal) as plant,
    ):
        directory = Path(name)
        try:
            assert plant.stdout is not None
            where = json.loads(plant.stdout.readline())
            with urlopen(f"{where['control']}/sessions", timeout=10) as answer:
                lines = answer.read()
            config = configuration(
                directory,
                f"unix:{directory}/control.sock",
                gms=f'nodes = {json.dumps(where["gms"])}\nservice = "customer-support"',
            )
            with config.open("a") as more:
                for server, url in where["health"].items():
                    more.write(f'\n[[chat_server]]\nname = "{server}"\nhealth_url = "{url}"')
            with (
                (directory / "log").open("wb") as log,
                started(*COMMAND, "run", "--config", config, stdout=log) as daemon,
            ):
                try:
                    control = f"unix:{directory}/control.sock"
                    until(lambda: invoke("status", "--config", config).exit_code == 0)
                    asyncio.run(register(control, lines))
                    yield Running(config, daemon, where, [json.loads(line) for line in lines.splitlines()])
                finally:
                    daemon.terminate()
                    daemon.wait(20)
                assert daemon.returncode == 0
        finally:
            plant.terminate()
            plant.wait(20)
        assert plant.returncode == 128 + signal.SIGTERM


async def register(control: str, lines: bytes) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield lines

    async with ControlClient(Listen.parse(control)) as client:
        assert await client.register(body()) == {
            "taken": SESSIONS,
            "kept": 0,
            "kept_lines": [],
            "refused": 0,
            "errors": [],
        }


def report(running: Running) -> dict[str, int]:
    with urlopen(f"{running.plant['control']}/report", timeout=10) as answer:
        found: dict[str, int] = json.loads(answer.read())
        return found


@pytest.mark.slow
def test_status_shows_how_the_daemon_is(running: Running) -> None:
    until(lambda: running.text("status").count(" up ") >= 2)
    text = running.text("status")
    assert re.search(r"daemon +ready, up for ", text)
    assert all(url in text for url in running.plant["gms"])
    status = json.loads(shown("status", "--config", running.config, "--json"))
    assert status["ready"] is True
    assert status["sessions"]["live"] in {SESSIONS, SESSIONS - 1}, "one is ended by another test"
    assert f"{status['sessions']['live']} live" in text


@pytest.mark.slow
def test_following_the_status_goes_on_until_it_is_interrupted(running: Running) -> None:
    follow = [*COMMAND, "status", "--follow", "--every", "0.1", "--json", "--config", str(running.config)]
    with started(*follow) as following:
        assert following.stdout is not None
        lines = [json.loads(following.stdout.readline()) for _ in range(2)]
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 0
    assert lines[0]["uptime_seconds"] <= lines[1]["uptime_seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["json", "lines", "terminal"])
def test_following_the_status_outlives_a_restart_of_the_daemon(tmp_path: Path, how: str) -> None:
    with tempfile.TemporaryDirectory(prefix="asyncchatd-", dir="/tmp") as name:  # a socket's path is short
        config = configuration(Path(name), f"unix:{name}/control.sock")
        reading, writing = os.openpty() if how == "terminal" else os.pipe()
        follow = [*COMMAND, "status", "--follow", "--every", "0.1", "--config", str(config)]
        follow += ["--json"] if how == "json" else []
        with (
            os.fdopen(reading, "rb", buffering=0) as shown,
            os.fdopen(writing, "wb") as out,
            (Path(name) / "log").open("wb") as log,
        ):
            text = b""

            def reads(word: bytes, since: int) -> int:
                nonlocal text
                while word not in text[since:]:
                    assert select.select([shown], [], [], 30)[0], text[since:]
                    text += shown.read(65_536)
                return len(text)

            def run() -> AbstractContextManager[subprocess.Popen[bytes]]:
                return started(*COMMAND, "run", "--config", config, stdout=log)

            up = b'"ready":true' if how == "json" else b"ready, up for"
            with run() as daemon:
                until(lambda: invoke("status", "--config", config).exit_code == 0)
                with started(*follow, stdout=out, stderr=out.fileno()) as following:
                    at = reads(up, 0)
                    daemon.terminate()
                    assert daemon.wait(20) == 0
                    at = reads(b"waiting for it", at)
                    with run() as again:
                        reads(up, at)
                        following.send_signal(signal.SIGINT)
                        assert following.wait(10) == 0
                        again.terminate()
                        assert again.wait(20) == 0
    if how != "terminal":
        assert text.count(b"waiting for it") == 1, "said once, however long it takes"


@pytest.mark.slow
def test_servers_are_listed_with_their_sessions(running: Running) -> None:
    until(lambda: all(each["app_dbid"] for each in running.json("servers")["servers"]))
    servers = running.json("servers")["servers"]
    assert [(each["name"], each["app_dbid"]) for each in servers] == [("chat-1", "117"), ("chat-2", "118")]
    text = running.text("servers")
    assert re.search(r"^chat-2 +up .* 118 ", text, re.MULTILINE)


@pytest.mark.slow
def test_sessions_are_listed_and_filtered(running: Running) -> None:
    assert len(running.json("sessions", "--limit", "1000")["sessions"]) == SESSIONS
    assert len(running.json("sessions", "--limit", "7")["sessions"]) == 7
    assert "there are more" in running.text("sessions", "--limit", "7")
    ended = running.json("sessions", "--state", "ended")["sessions"]  # another test may have ended one
    assert all(each["state"] == "ended" for each in ended)
    assert running.json("sessions", "--alias", "4711")["sessions"] == []
    text, over = running.text("sessions", "--state", "live"), {each["chat_id"] for each in ended}
    assert [
        chat["chat_id"] for chat in running.chats if (chat["chat_id"] in text) == (chat["chat_id"] in over)
    ] == []


def test_more_sessions_than_a_page_holds_are_listed_page_by_page(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncchatd.control.clients.calls.PAGE", 4)
    found = running.json("sessions", "--limit", "1000")["sessions"]
    assert [each["chat_id"] for each in found] == sorted(chat["chat_id"] for chat in running.chats)


def test_a_ping_that_is_waited_for_has_been_answered(running: Running) -> None:
    chat_id = running.chats[0]["chat_id"]
    before = report(running)["requests"]
    text = running.text("ping", chat_id, "--wait")
    assert report(running)["requests"] > before
    assert re.search(r"answered +[\d.]+ s ago", text)
    assert re.search(r"secure key +known", running.text("sessions", "--chat", chat_id))


def test_a_ping_without_waiting_makes_the_session_due(running: Running) -> None:
    chat_id = running.chats[1]["chat_id"]
    found = json.loads(shown("ping", chat_id, "--config", running.config, "--json"))
    assert found["chat_id"] == chat_id


def test_what_is_not_known_is_said_in_a_line(running: Running) -> None:
    assert "no such session" in complaint("ping", "no/such?chat", "--config", running.config)
    text = complaint("sessions", "--chat", "none", "--config", running.config)
    assert "no such session" in text
    assert "asyncchatd logs --chat" in text
    text = complaint("restore", "chat-9", "--config", running.config)
    assert "no Chat Server of this name" in text
    assert "asyncchatd servers" in text


def test_a_restoration_is_waited_for_and_listed(running: Running) -> None:
    until(lambda: all(each["app_dbid"] for each in running.json("servers")["servers"]))
    answer = json.loads(shown("restore", "chat-1", "--wait", "--config", running.config, "--json"))
    assert answer["finished_at"] is not None
    assert answer["restored"] == answer["sessions"] > 0
    assert answer["cause"] == "operator"
    listed = running.json("restorations")["restorations"]
    assert answer["id"] in [each["id"] for each in listed]
    assert re.search(rf"^#{answer['id']} +chat-1 +operator ", running.text("restorations"), re.MULTILINE)


def test_a_chat_that_is_over_is_said_to_be(running: Running) -> None:
    chat_id = running.chats[2]["chat_id"]
    end = Request(f"{running.plant['control']}/end", json.dumps({"chat_id": chat_id}).encode())
    with urlopen(end, timeout=10):
        pass

    def over() -> bool:
        return "is over" in invoke("ping", chat_id, "--wait", "--config", running.config).stderr

    until(over)  # the first answer after the end still is the chat's last words
    assert "this session has ended" in complaint("ping", chat_id, "--config", running.config)


def test_the_log_tells_how_a_chat_fared(running: Running) -> None:
    chat_id = running.chats[4]["chat_id"]
    running.text("ping", chat_id, "--wait")
    until(lambda: "was answered" in shown("logs", "--chat", chat_id, running.log))
    text = shown("logs", "--chat", chat_id, running.log)
    assert "Somebody asked for a ping of it" in text
    assert "Still alive at the end of the log" in text
    assert "asyncchatd was started" in shown("logs", running.log).replace(f" {__version__} ", " ")
    assert f"{SESSIONS} registered" in shown("logs", "--summary", running.log)
    assert "does not speak of" in invoke("logs", "--chat", "none", running.log).stdout
    assert invoke("logs", "--chat", "none", running.log).exit_code == 1


@pytest.mark.slow
def test_check_connects_to_everything_the_file_names(running: Running) -> None:
    result = invoke("check", "--connect", "--config", running.config, "--json")
    assert result.exit_code == 0, result.output
    messages = " ".join(finding["message"] for finding in json.loads(result.stdout))
    assert "a daemon runs" in messages
    assert "app_dbid 117" in messages


def test_no_output_shows_a_secure_key(running: Running) -> None:
    chat = running.chats[3]
    output = "".join(
        invoke(*command, *more, "--config", running.config).output
        for command in (("status",), ("sessions",), ("sessions", "--chat", chat["chat_id"]), ("servers",))
        for more in ((), ("--json",))
    )
    output += (running.config.parent / "log").read_text()
    assert chat["chat_id"] in output
    assert not [each for each in running.chats if each["secure_key"] in output]


@pytest.mark.slow
def test_a_daemon_on_a_tcp_port_is_asked_there_and_stops_when_told(tmp_path: Path) -> None:
    config = configuration(tmp_path, f"127.0.0.1:{free_port()}", store='url = "memory:"')
    with (
        (tmp_path / "log").open("wb") as log,
        started(*COMMAND, "run", "--config", config, stdout=log) as daemon,
    ):
        try:
            until(lambda: invoke("status", "--config", config).exit_code == 0)
            assert "no Chat Server is configured" in shown("servers", "--config", config)
            assert "no restoration so far" in shown("restorations", "--config", config)
        finally:
            daemon.terminate()
        assert daemon.wait(20) == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events[0] == "config_warning"
    assert events[-1] == "daemon_stopped"


@pytest.mark.slow
@pytest.mark.parametrize("after", ["daemon_starting", "daemon_stopped"])
def test_a_signal_that_comes_twice_ends_the_daemon_in_order(tmp_path: Path, after: str) -> None:
    """A terminal sends Ctrl-C to a whole group, and who started the daemon hands it on."""
    config = configuration(tmp_path, f"unix:{tmp_path}/s")
    with started(*COMMAND, "run", "--config", config) as daemon:
        assert daemon.stdout is not None
        lines = iter(daemon.stdout.readline, b"")
        seen = [next(line for line in lines if b"daemon_starting" in line)]
        daemon.terminate()
        if after == "daemon_stopped":  # Python takes its leave
            seen += itertools.takewhile(lambda line: b"daemon_stopped" not in line, lines)
        daemon.terminate()
        seen += lines
        assert daemon.wait(20) == 0
    assert b"daemon_stopping" in b"".join(seen)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "standin"])
def test_a_background_job_of_a_script_leaves_ctrl_c_to_what_runs_in_front(
    tmp_path: Path, command: str
) -> None:
    config = configuration(tmp_path, f"unix:{tmp_path}/s", store='url = "memory:"')
    options = ["--config", config] if command == "run" else ["--gms-port", "0", "--control-port", "0"]
    ready = b"daemon_ready" if command == "run" else b"/report"
    with started("sh", "-c", 'trap "" INT HUP; exec "$@"', "sh", *COMMAND, command, *options) as job:
        assert job.stdout is not None
        while ready not in (line := job.stdout.readline()):
            assert line, "it ended early"
        job.send_signal(signal.SIGINT)
        job.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(0.5)
        job.terminate()
        assert job.wait(20) == (0 if command == "run" else 128 + signal.SIGTERM)


# Details.


def test_moments_are_for_people() -> None:
    now = datetime.now(UTC)

    def told(away: timedelta) -> str:
        return tables.time_in_words(shapes.write_time(now + away), now)

    assert tables.time_in_words(None, now) == "-"
    assert told(timedelta(seconds=-12)) == "12 s ago"
    assert told(timedelta(minutes=5)) == "in 5 min"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", told(timedelta(days=-3)))


def test_the_nodes_that_share_the_store_are_listed_and_the_status_says_who_is_gone() -> None:
    now = datetime.now(UTC)

    def node(name: str, state: str, *, own: bool = False, seen: float = 60) -> shapes.SharingNode:
        started, heard = (shapes.write_time(now - timedelta(seconds=ago)) for ago in (7200, seen))
        return shapes.SharingNode(
            number=3 if own or seen == 60 else 2,
            name=name,
            version="1.2.0",
            state=state,
            started_at=started,
            seen_at=heard,
            claims=1200,
            own=own,
        )

    def shown(*nodes: shapes.SharingNode) -> tuple[str, str]:
        view = shapes.Status(
            started_at=shapes.write_time(now),
            ready=True,
            uptime_seconds=90.0,
            sessions={},
            due={},
            pings=shapes.Pings(in_flight=0, in_flight_limit=16, max_rate=200.0, gms_available=True, nodes=[]),
            servers=[],
            restorations=[],
            nodes=list(nodes),
        )
        said = []
        for what in (tables.status(view), tables.nodes(view)):
            with (console := screen()).capture() as printed:
                show(console, what)
            said.append(" ".join(printed.get().split()))
        return said[0], said[1]

    status, listed = shown(node("north", "present", own=True), node("south", "gone"))
    assert "nodes 1 shares the store; south is gone and holds 1,200 sessions" in status
    assert "north 3 present 1.2.0 2 h ago 60 s ago 1,200 this one" in listed.replace("1 min ago", "60 s ago")
    assert "south 3 gone 1.2.0" in listed
    assert "have the name" not in listed
    _, listed = shown(node("north", "present", own=True), node("north", "present"), node("north", "gone"))
    assert "2 of them have the name north: give each its own, node=NAME in store.url" in listed
    _, listed = shown(node("north", "present", own=True), node("north", "present", seen=7_300))
    assert "have the name" not in listed, "it was started anew as the other one"
    status, listed = shown()
    assert "share" not in status
    assert "nobody shares the store" in listed


def test_the_status_says_where_clients_are_served_and_why_the_store_cannot_be_written() -> None:
    pings = shapes.Pings(in_flight=0, in_flight_limit=16, max_rate=200.0, gms_available=True, nodes=[])
    view = shapes.Status(
        started_at=shapes.write_time(datetime.now(UTC)),
        ready=False,
        store_trouble="the store could not be written: database or disk is full",
        uptime_seconds=90.0,
        sessions={},
        due={},
        pings=pings,
        gateway=["127.0.0.1:8090"],
        gateway_chats=1200,
        gateway_polls=900,
        gateway_streams=1,
        configuration=shapes.Configuration(
            taken_over_at=shapes.write_time(datetime.now(UTC)),
            refused=shapes.Refused(
                at=shapes.write_time(datetime.now(UTC)),
                cause="ping.intervall: unknown key",
                advice="correct it and reload again",
            ),
        ),
        metrics=["127.0.0.1:8095"],
        servers=[],
        restorations=[],
    )
    with (console := screen()).capture() as shown:
        show(console, tables.status(view))
    assert re.search(r"gateway +chat clients at 127\.0\.0\.1:8090, 1,200 live chats began here", shown.get())
    assert "began here, 900 polls held, 1 stream open" in " ".join(shown.get().split())
    assert re.search(r"store +the store could not be written: database or disk is full", shown.get())
    assert re.search(r"metrics +scraped at 127\.0\.0\.1:8095", shown.get())
    said = " ".join(shown.get().split())
    assert "configuration the changed file was refused" in said
    assert "ping.intervall: unknown key; correct it" in said


@pytest.mark.slow
def test_the_restorations_say_how_many_sessions_were_left_without_an_answer() -> None:
    began = shapes.write_time(datetime.now(UTC))
    view = shapes.Restoration(
        id=3, server="chat-1", alias="117", cause="unreachable", state="incomplete",
        started_at=began, finished_at=began, took_seconds=130.0,
        sessions=10, restored=8, ended=0, refused=2, moved=0, waiting=0,
    )  # fmt: skip
    with (console := screen()).capture() as shown:
        show(console, tables.restorations(shapes.Restorations(restorations=[view])))
    assert "2 left without an answer" in shown.get()


def test_the_restorations_say_what_is_left_to_do() -> None:
    view = shapes.Restoration(
        id=3, server="chat-1", alias="117", cause="unreachable", state="running",
        started_at=shapes.write_time(datetime.now(UTC)), finished_at=None, took_seconds=None,
        sessions=1499, restored=367, ended=0, refused=0, moved=0, waiting=1132, left_seconds=89.2,
    )  # fmt: skip
    for left, words in ((89.2, ", about 89 s left"), (None, "")):
        table = tables.restorations(
            shapes.Restorations(restorations=[structs.replace(view, left_seconds=left)])
        )
        with (console := screen()).capture() as shown:
            show(console, table)
        assert shown.get().rstrip().endswith(f"1,132 of 1,499 sessions wait{words}")


@pytest.mark.slow
def test_no_two_parts_of_a_trial_on_one_host_listen_on_one_port_by_default() -> None:
    """The daemon's listeners, the stand-in plant, and the chat application of examples/."""
    sections = (ReceiverSettings, ControlSettings, MetricsSettings, GatewaySettings)
    ports = [each.model_fields["listen"].default.port for each in sections]
    ports += [
        int(port) for port in re.findall(r"\[default: (\d+); 0<=x<=65535\]", _squeezed("standin", "--help"))
    ]
    example = Path(__file__).parents[2] / "examples" / "chat_app.py"
    ports += [int(port) for port in re.findall(r"\"--port\", type=int, default=(\d+)", example.read_text())]
    assert len(ports) == len(set(ports)) == 8


def _squeezed(*arguments: str) -> str:
    return re.sub(r"\s+", " ", invoke(*arguments).output)
