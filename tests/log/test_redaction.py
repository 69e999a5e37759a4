"""The log: its catalogue, its lines, and that no secret gets out by any way."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asyncchatd.config.loading import load
from asyncchatd.config.problems import ConfigError, Problem
from asyncchatd.log import events as event_catalogue
from asyncchatd.log import lines, redaction
from asyncchatd.log.events import FIELDS, Event, Level, Subject, Trait
from asyncchatd.log.lines import Format, configure, get_logger
from asyncchatd.log.redaction import REDACTED, redact, scrub
from asyncchatd.log.rendering import to_json
from asyncchatd.model.data import TokenNews, Tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The log is one for the process: what a test sets up must not reach the next one."""
    secrets, needles = dict(redaction._secrets), set(redaction._needles)
    handlers = logging.getLogger().handlers[:]
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    for registry, before in ((redaction._secrets, secrets), (redaction._needles, needles)):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]


class Written(io.BytesIO):
    """What the log wrote."""

    def text(self) -> str:
        return self.getvalue().decode()

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def line(self) -> dict[str, object]:
        [line] = self.lines()
        return line


def writing(level: Level = "info", format: Format = "json") -> Written:
    output = Written()
    configure(level, format, output)
    # pytest listens too, and raises what a library's message is made wrong with.
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if type(handler).__module__ == lines.__name__]
    return output


def test_a_line_says_when_how_bad_and_what() -> None:
    output = writing()
    get_logger().info(Event.PUSH_RECEIVED, chat_id="0008", alias="117", resend=False)
    line = output.line()
    assert list(line) == ["time", "level", "event", "chat_id", "alias", "resend"]
    assert datetime.fromisoformat(str(line["time"])).utcoffset() == timedelta(0)
    assert str(line["time"]).endswith("Z")
    assert (line["level"], line["event"], line["chat_id"]) == ("info", "push_received", "0008")


def test_lines_below_the_level_are_not_written() -> None:
    output = writing("warning")
    get_logger().info(Event.PUSH_RECEIVED)
    get_logger().warning(Event.STORE_FULL)
    assert [line["event"] for line in output.lines()] == ["store_full"]


def test_a_logger_made_before_is_redirected() -> None:
    logger = get_logger()
    first = writing()
    logger.info(Event.DAEMON_READY)
    second = writing()
    logger.info(Event.DAEMON_STOPPED)
    assert (first.line()["event"], second.line()["event"]) == ("daemon_ready", "daemon_stopped")


def test_every_line_is_written_out_at_once() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as written, os.fdopen(writer, "wb") as output:
        configure("info", "auto", output)
        get_logger().info(Event.DAEMON_READY)
        assert json.loads(written.read(10_000))["event"] == "daemon_ready"


def test_a_reader_that_is_gone_does_not_stop_the_daemon() -> None:
    reader, writer = os.pipe()
    output = os.fdopen(writer, "wb", buffering=0)
    configure("info", "json", output)
    os.close(reader)
    get_logger().info(Event.DAEMON_READY)
    output.close()
    get_logger().info(Event.DAEMON_STOPPED)


def test_a_terminal_gets_words_and_a_traceback_without_local_variables() -> None:
    output = writing(format="console")
    local_variable = "value of a local variable"
    try:
        raise ValueError("went wrong")
    except ValueError:
        get_logger().exception(Event.DAEMON_FAILED, part="watcher")
    assert "daemon_failed" in output.text()
    assert "part=watcher" in output.text()
    assert "ValueError: went wrong" in output.text()
    assert output.text().count(local_variable) == 0


def test_an_exception_comes_as_its_traceback() -> None:
    output = writing()
    error = ValueError("went wrong")
    get_logger().error(Event.DAEMON_FAILED, exc_info=error)
    assert output.line()["exception"] == "ValueError: went wrong"


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError


ODD_VALUES: list[object] = [
    2**80,
    "\ud800",
    {1: 2},
    {("a", 1): "\udfff"},
    {2**70},
    b"\xff",
    float("nan"),
    Unshowable(),
    [[[[[[[[[[[1]]]]]]]]]]],
    Tokens("c", "u", "k", "117"),
    datetime(2024, 1, 1),
    Path("/x"),
    ValueError("x"),
]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("format", ["json", "console"])
def test_no_value_makes_logging_fail(value: object, format: Format) -> None:
    output = writing(format=format)
    get_logger().info(Event.DAEMON_READY, value=value, nested=[{"value": value}])
    get_logger().info(Event.DAEMON_READY, value=value, text="secure")
    assert output.text().count("daemon_ready") == 2
    if format == "json":
        assert len(output.lines()) == 2


_WHATEVER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(_WHATEVER)
def test_whatever_is_logged_is_one_line_of_json(value: object) -> None:
    line = to_json(None, "info", {"event": Event.DAEMON_READY, "value": value, "text": "password"})
    assert b"\n" not in line
    assert json.loads(line)["event"] == "daemon_ready"


# Secrets. Each way plants this key somewhere; it must not come out anywhere.

KEY = "4ee15d7e1c343c8e"
PUSH_SECRET = "Zx9-push~secret"
PASSWORD = 'p"ss\\wörd & 1'

TOKENS = Tokens("0008", "052B", KEY, "117")


@dataclass
class Carrier:
    """Something with a default repr that shows all."""

    secure_key: str = KEY


def _raising(text: str) -> Callable[[], None]:
    def plant() -> None:
        try:
            try:
                raise ConnectionError(text)
            except ConnectionError as error:
                raise RuntimeError("ping failed") from error
        except RuntimeError:
            get_logger().exception(Event.DAEMON_FAILED)

    return plant


def _asyncio_failure() -> None:
    loop = asyncio.new_event_loop()
    loop.call_exception_handler(
        {"message": "failed", "exception": ValueError(f"secureKey={KEY}"), "body": TOKENS}
    )
    loop.close()


def _say(**fields: object) -> Callable[[], None]:
    return lambda: get_logger().warning(Event.PING_RETRY, **fields)


def _library(message: str, *args: object) -> Callable[[], None]:
    return lambda: logging.getLogger("aiohttp.client").warning(message, *args)


WAYS: dict[str, Callable[[], None]] = {
    "field": _say(secure_key=KEY),
    "camel": _say(secureKey=KEY),
    "hyphen": _say(**{"Secure-Key": KEY}),
    "upper": _say(SECURE_KEY=KEY),
    "number": _say(password=int(KEY, 16)),
    "bytes": _say(secret=KEY.encode()),
    "list": _say(secrets=[KEY, KEY]),
    "table": _say(authorization={"Basic": KEY}),
    "header": _say(headers={"X-ApiKey": KEY, "Authorization": f"Basic {KEY}", "Cookie": f"a={KEY}"}),
    "nested": _say(reply={"messages": [{"userData": {"secure-key": KEY}}]}),
    "deep": _say(reply=[[[[[[[[[[{"secureKey": KEY}]]]]]]]]]]),
    "form": _say(message=f"POST userId=052B&secureKey={KEY}&alias=117"),
    "json text": _say(message=f'{{"userId": "052B", "secureKey": "{KEY}", "alias": "117"}}'),
    "json in json": _say(message=json.dumps({"message": json.dumps({"secure-key": KEY})})),
    "cut json": _say(message=f'{{"userId": "052B", "secure_key":"{KEY}'),
    "python text": _say(message=f"{{'secure_key': '{KEY}'}}"),
    "header text": _say(message=f"Authorization: Basic {KEY}\r\napikey: {KEY}"),
    "headers of aiohttp": _say(message=f"<CIMultiDict('Authorization': 'Basic {KEY}', 'apikey': '{KEY}')>"),
    "raw headers": _say(message=f"((b'Authorization', b'Bearer {KEY}'), (b'apikey', b'{KEY}'))"),
    "quoted with spaces": _say(message=f'password="two words {KEY}" host=a'),
    "registered": _say(message=f"404 for /push/{PUSH_SECRET}", cause=["x", {"y": PUSH_SECRET}], count=5),
    "registered as key": _say(reply={PUSH_SECRET: 1}),
    "registered bytes": _say(cause=PUSH_SECRET.encode()),
    "registered in repr": _say(cause=ValueError(PUSH_SECRET)),
    "registered odd": _say(message=f"login with {PASSWORD} failed"),
    "registered odd in json": _say(message=json.dumps({"x": PASSWORD})),
    "registered odd in repr": _say(message=repr(PASSWORD)),
    "registered odd in url": _say(message="http://u:p%22ss%5Cw%C3%B6rd%20%26%201@h"),
    "registered odd in form": _say(message="p=p%22ss%5Cw%C3%B6rd+%26+1"),
    "tokens": _say(tokens=TOKENS, news=TokenNews(secure_key=KEY)),
    "dataclass": _say(carrier=Carrier(), carriers=[Carrier()]),
    "exception": _raising(f"refresh with secureKey={KEY} failed"),
    "exception json": _raising(json.dumps({"secureKey": KEY})),
    "exception registered": _raising(f"http://h/push/{PUSH_SECRET}"),
    "library": _library("refused: secureKey=%s", KEY),
    "library registered": _library("GET /push/%s", PUSH_SECRET),
    "library with broken arguments": _library(f"secureKey={KEY} %d", "x"),
    "asyncio": _asyncio_failure,
    "config error": lambda: get_logger().error(
        Event.DAEMON_FAILED,
        exc_info=ConfigError(Path("x"), [Problem("gms.headers", 1, f"got apikey: {KEY}")]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("way", WAYS)
def test_no_secret_gets_out(way: str, format: Format, capfd: pytest.CaptureFixture[str]) -> None:
    redact(PUSH_SECRET)
    redact(PASSWORD)
    output = writing(format=format)
    WAYS[way]()
    printed = capfd.readouterr()
    everything = output.text() + printed.out + printed.err
    assert output.text().count("\n") >= 1
    for planted in (KEY, str(int(KEY, 16)), "Zx9", "wörd", "w\\u00f6rd", "w%C3"):
        assert planted not in everything
    if "tokens" not in way:
        assert REDACTED in output.text()
    if format == "json":
        assert output.line()["event"] in set(Event)


def test_what_is_no_secret_stays() -> None:
    redact(PUSH_SECRET)
    output = writing()
    get_logger().warning(
        Event.PING_RETRY,
        chat_id="0008",
        message=f"userId=052B&secureKey={KEY}&alias=117",
        has_secure_key=True,
        secret=None,
    )
    line = output.line()
    assert line["message"] == f"userId=052B&secureKey={REDACTED}&alias=117"
    assert (line["chat_id"], line["has_secure_key"], line["secret"]) == ("0008", True, None)


def test_a_very_short_secret_does_not_take_the_log_away() -> None:
    redact("a")
    assert scrub("POST /push/a: a chat was adopted") == f"POST /push/{REDACTED}: {REDACTED} chat was adopted"
    output = writing()
    get_logger().info(Event.PUSH_RECEIVED, alias="117", message="/push/a")
    assert output.line()["event"] == "push_received"
    assert output.line()["message"] == f"/push/{REDACTED}"


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=8).filter(lambda text: text.strip() == text), st.text(), st.text())
def test_any_registered_secret_is_gone_from_any_text(secret: str, before: str, after: str) -> None:
    redact(secret)
    assert secret not in scrub(f"{before} {secret} {after}").replace(REDACTED, "")


def test_a_file_full_of_secrets_shows_none(tmp_path: Path) -> None:
    path = tmp_path / "asyncchatd.toml"
    path.write_text(
        f'[receiver]\nsecrets = ["{PUSH_SECRET}"]\n[gms]\nnodes = ["http://gms/"]\nusername = "u"\n'
        f'password = "{KEY}"\nheaders = {{ X-Custom = "{KEY}-2" }}\n'
    )
    loaded = load(path)
    output = writing()
    get_logger().info(Event.DAEMON_STARTING, settings=loaded, gms=loaded.gms, all=loaded.model_dump())
    for secret in loaded.secret_values():
        redact(secret)
    get_logger().warning(
        Event.PING_RETRY, cause=f"X-Custom was {KEY}-2, Basic {list(loaded.secret_values())[2]}"
    )
    assert not [secret for secret in loaded.secret_values() if secret in output.text()]
    assert KEY not in output.text()


# Libraries.


def test_libraries_are_heard_from_warnings_upwards() -> None:
    output = writing("debug")
    logging.getLogger("aiohttp.server").info("not this")
    logging.getLogger("aiohttp.server").error("Error handling request %s", 7)
    line = output.line()
    assert (line["event"], line["level"], line["logger"]) == ("library_message", "error", "aiohttp.server")
    assert line["message"] == "Error handling request 7"


def test_configuring_twice_does_not_write_twice() -> None:
    writing()
    output = writing()
    logging.getLogger("asyncio").warning("slow")
    assert len(output.lines()) == 1


# The catalogue.


@pytest.mark.slow
def test_the_documentation_is_the_catalogue() -> None:
    command = [sys.executable, "-m", "asyncchatd.log", "events"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert (ROOT / "docs" / "log-events.md").read_text() == printed, (
        "run python -m asyncchatd.log events > docs/log-events.md"
    )
    assert all(f"| `{event}` |" in printed for event in Event)


def test_every_field_of_an_event_is_described() -> None:
    used = {name for event in Event for name in event.fields}
    assert used == set(FIELDS)
    assert not used & {"time", "level", "event", "exception", "exc_info"}
    assert all(event.value == event.name.lower() and event.meaning.endswith(".") for event in Event)


@pytest.mark.parametrize("words", ["", "summary", "chat often", "guest"])
def test_an_event_that_does_not_say_whose_story_it_belongs_to_is_named(words: str) -> None:
    with pytest.raises(TypeError, match="loop_stalled has to say whose story"):
        event_catalogue._story("loop_stalled", words)


def test_what_speaks_of_one_chat_names_it() -> None:
    for event in Event:
        assert (event.subject is Subject.CHAT) == ("chat_id" in event.fields), event.value
        assert (event.subject is Subject.SERVER) == event.value.startswith("server_"), event.value
        if event.traits & {Trait.COUNTED, Trait.FRUITLESS}:
            assert event.subject is Subject.CHAT, event.value


@pytest.mark.slow
def test_the_program_logs_what_the_catalogue_says() -> None:
    """Every `log.info(Event.X, ...)` has the level and only the fields of X."""
    wrong = []
    for file in sorted((ROOT / "asyncchatd").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args:
                wrong += [
                    f"{file.name}:{call.lineno}: {problem}" for problem in _differences(call, call.func.attr)
                ]
    assert not wrong


def _differences(call: ast.Call, method: str) -> Iterator[str]:
    name = call.args[0]
    if method not in LEVELS or not (
        isinstance(name, ast.Attribute) and ast.unparse(name.value).endswith("Event")
    ):
        return
    event = Event.__members__.get(name.attr)
    if event is None:
        yield f"no event {name.attr} in the catalogue"
        return
    if LEVELS[method] != event.level:
        yield f"{event} is of level {event.level}"
    for keyword in call.keywords:
        if keyword.arg and keyword.arg not in {*event.fields, "exc_info"}:
            yield f"{event} has no field {keyword.arg}"


LEVELS = {level: level for level in ("debug", "info", "warning", "error", "critical")} | {
    "exception": "error"
}


class _Counted(io.BytesIO):
    flushed = 0

    def flush(self) -> None:
        self.flushed += 1


async def test_the_lines_of_one_turn_of_the_event_loop_share_a_write() -> None:
    output = _Counted()
    configure("info", "json", output)
    for _ in range(3):
        get_logger().info(Event.DAEMON_READY)
    assert output.flushed == 0
    await asyncio.sleep(0)
    assert output.flushed == 1
    get_logger().info(Event.DAEMON_READY)
    await asyncio.sleep(0)
    assert output.flushed == 2


async def test_what_is_bad_is_written_at_once_with_all_that_came_before() -> None:
    output = _Counted()
    configure("info", "json", output)
    get_logger().info(Event.DAEMON_READY)
    get_logger().error(Event.STORE_FAILED)
    assert output.flushed == 1


def test_without_an_event_loop_every_line_is_written_at_once() -> None:
    output = _Counted()
    configure("info", "json", output)
    get_logger().info(Event.DAEMON_READY)
    assert output.flushed == 1
