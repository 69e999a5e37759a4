"""No secret gets out by any way."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asyncchatd.config.loading import load
from asyncchatd.config.sources.problems import ConfigError, Problem
from asyncchatd.log.events import Event
from asyncchatd.log.lines import Format, get_logger
from asyncchatd.log.redaction import REDACTED, redact, scrub
from asyncchatd.model.data import TokenNews, Tokens

from .rig import writing

# Each way plants this key somewhere; it must not come out anywhere.
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
