"""Consumers seen and steered on the command line."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result
from conftest import Events, FakeClock, PromptStore, listening, settings_of
from control.test_api import PINGS
from stores.desk import Desk
from stores.test_transcript import message, refresh

from asyncchatd.cli import commands as cli
from asyncchatd.control.api import Control
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.model import Consumer, EventKind
from cli.test_commands import configuration

TEXT = "Hello, your parcel is here"
EVERYTHING = frozenset(EventKind)


@pytest.fixture(autouse=True)
def config(tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An API with two consumers, whom the environment's configuration leads to; a webhook has refused a batch."""
    ready: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        store, clock, stopped = PromptStore(), FakeClock(), asyncio.Event()
        await store.open()
        desk = Desk(store, clock.now())
        await store.enrol(
            [Consumer("app", EVERYTHING), Consumer("hook", EVERYTHING, pushes=True)], now=desk.now
        )
        await desk.live("chat-1")
        await refresh(desk, message(3, TEXT))
        [batch] = await store.batches(
            "hook", now=desk.now, limit=1, busy=(), most_events=9, most_bytes=1 << 20
        )
        await store.undelivered(batch, due_at=desk.now, failing_since=desk.now, parked=True)
        await clock.advance((desk.now - clock.now()) / 1000 + 600)
        around = Surroundings(list, lambda: PINGS, lambda: True)
        control = Control(store, clock, asyncio.Event(), around, settings_of())
        async with listening(control.app()) as base:
            ready.set_result((base, asyncio.get_running_loop(), stopped))
            await stopped.wait()
        await store.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    base, loop, stopped = ready.result(20)
    monkeypatch.setenv("ASYNCCHATD_CONFIG", str(configuration(tmp_path, urlsplit(base).netloc)))
    yield
    loop.call_soon_threadsafe(stopped.set)
    thread.join(20)
    assert not thread.is_alive()
    assert TEXT not in events.text


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.main, ["consumers", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert TEXT not in result.output
    return result


def rows(shown: str) -> list[list[str]]:
    """The words of each line of a table."""
    return [line.split() for line in shown.splitlines() if line.strip()]


def test_consumers_are_listed_with_how_far_each_is() -> None:
    head, app, hook = rows(invoke().stdout)
    assert head == ["consumer", "how", "behind", "oldest", "waits", "chats", "parked", "state"]
    assert app == ["app", "fetch", "1", "10", "min", "0", "0", "ok"]
    assert hook[:2] == ["hook", "webhook"]
    assert hook[-3:] == ["1", "1", "ok"]


def test_for_programs_they_are_json() -> None:
    told = json.loads(invoke("--json").stdout)["consumers"]
    assert [(each["name"], each["behind"], each["lag_seconds"], each["parked"]) for each in told] == [
        ("app", 1, 600.0, 0),
        ("hook", told[1]["behind"], told[1]["lag_seconds"], 1),
    ]


def test_one_is_paused_and_goes_on(events: Events) -> None:
    paused, again = (invoke("pause", "app").stdout for _ in range(2))
    assert paused.startswith("app is paused: it is told nothing, and what happens is kept for it\n")
    assert again.startswith("app is paused already: ")
    assert rows(again)[-1][-1] == "paused"
    resumed = invoke("resume", "app").stdout
    assert resumed.startswith("app is told again what happens, and first what it missed: 1 event\n")
    assert rows(resumed)[-1][-1] == "ok"
    assert invoke("resume", "app").stdout.startswith("app was not paused\n")
    said = [name for name in events.names() if str(name).startswith("consumer_")]
    assert said == ["consumer_paused", "consumer_resumed"], "what is so already is not told"


def test_what_was_put_aside_is_tried_again() -> None:
    assert invoke("retry", "hook").stdout.startswith(
        "nothing of hook waits for another try; what is put aside is tried by asyncchatd consumers replay hook\n"
    )
    shown = invoke("replay", "hook").stdout
    assert shown.startswith("1 batch is tried again now\n")
    assert rows(shown)[-1][-3:] == ["1", "0", "ok"]
    assert invoke("replay", "hook").stdout.startswith("nothing of hook is put aside\n")
    assert invoke("retry", "hook").stdout.startswith("nothing of hook waits for another try\n")


def test_what_a_paused_one_did_not_take_is_not_said_to_be_tried() -> None:
    invoke("pause", "hook")
    assert invoke("retry", "hook").stdout.startswith(
        "hook is paused: nothing is tried before it is resumed, asyncchatd consumers resume hook; what is put aside is"
    )
    replayed = invoke("replay", "hook").stdout
    assert replayed.startswith(
        "hook is paused: 1 batch will be tried again when it is resumed, asyncchatd consumers resume hook\n"
    )
    assert rows(replayed)[-1][-1] == "paused"


def test_what_cannot_be_done_is_said() -> None:
    assert invoke("replay", "nobody").stderr == (
        "Error: no consumer of this name is configured; asyncchatd consumers lists them\n"
    )
    assert invoke("replay", "hok").stderr == (
        "Error: no consumer of this name is configured: did you mean hook?; asyncchatd consumers lists them\n"
    )
    assert "gets again by itself" in invoke("retry", "app").stderr
    assert (invoke("pause").exit_code, invoke("drop", "app").exit_code) == (2, 2)


def test_the_status_shows_them() -> None:
    result = CliRunner().invoke(cli.main, ["status"])
    assert [
        line.split()[:3] for line in result.stdout.splitlines() if line.startswith(("app ", "hook "))
    ] == [
        ["app", "fetch", "1"],
        ["hook", "webhook", result.stdout.split("webhook", 1)[1].split()[0]],
    ]
