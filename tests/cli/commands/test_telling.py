"""Chats told on the command line: from files and standard input, and no key is ever seen."""

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
from control.test_api import KEY, PINGS, body, reply

from asyncchatd.cli import commands as cli
from asyncchatd.control.api import Control
from asyncchatd.control.status.picture import Surroundings
from cli.test_commands import configuration


@pytest.fixture
def config(tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The configuration of an API that is served in a thread of its own, named by the environment."""
    ready: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        store, stopped = PromptStore(), asyncio.Event()
        await store.open()
        around = Surroundings(list, lambda: PINGS, lambda: True)
        control = Control(store, FakeClock(), asyncio.Event(), around, settings_of())
        async with listening(control.app()) as base:
            ready.set_result((base, asyncio.get_running_loop(), stopped))
            await stopped.wait()
        await store.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    base, loop, stopped = ready.result(20)
    path = configuration(tmp_path, urlsplit(base).netloc)
    monkeypatch.setenv("ASYNCCHATD_CONFIG", str(path))
    yield path
    loop.call_soon_threadsafe(stopped.set)
    thread.join(20)
    assert not thread.is_alive()


def invoke(*arguments: str | Path, said: object = None) -> Result:
    """A command, with bytes or JSON on its standard input."""
    content = said if isinstance(said, bytes | None) else json.dumps(said).encode()
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments], input=content)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert KEY not in result.output
    return result


def shown(chat_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(invoke("sessions", "--chat", chat_id, "--json").stdout)
    return found


def file_with(directory: Path, value: object) -> Path:
    path = directory / "chats.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=2))
    return path


# -- register ------------------------------------------------------------------------------------------


def test_the_reply_of_gms_is_registered_from_a_file(config: Path) -> None:
    path = file_with(config.parent, reply())
    result = invoke("register", "--service", "sales & more", "--device-id", "phone 1", path)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "1 registered\n", "")
    session = shown("chat-1")
    assert (session["state"], session["service"], session["device_id"]) == ("live", "sales & more", "phone 1")
    assert (session["next_position"], session["has_secure_key"]) == (2, True)


@pytest.mark.parametrize(
    "said",
    [
        [body("chat-1"), reply(chatId="chat-2")],
        b"\xef\xbb\xbf" + json.dumps([body("chat-1"), body("chat-2")]).encode(),
        "\n".join(json.dumps(each) for each in (body("chat-1"), reply(chatId="chat-2"))).encode(),
    ],
    ids=["a list", "a byte order mark", "lines"],
)
def test_many_chats_come_as_a_list_or_one_on_each_line(config: Path, said: object) -> None:
    result = invoke("register", said=said)
    assert (result.exit_code, result.stdout) == (0, "2 registered\n")
    assert [shown(f"chat-{number}")["state"] for number in (1, 2)] == ["live", "live"]


def test_more_chats_than_one_transaction_or_piece_holds_are_registered(config: Path) -> None:
    result = invoke("register", "-", "--json", said=[body(f"chat-{number}") for number in range(1_200)])
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert (answer["taken"], answer["refused"], answer["kept_lines"]) == (1_200, 0, [])


def test_wrong_chats_are_told_with_their_line_and_cost_the_others_nothing(config: Path) -> None:
    result = invoke("register", said=[body("chat-1"), body("chat-2", secure_kye=KEY), 3, reply(statusCode=1)])
    assert result.exit_code == 1
    assert "unknown field secure_kye: did you mean secure_key?" in result.stdout
    assert "statusCode" in result.stdout
    assert "1 registered" in result.stdout
    assert result.stderr == "Error: 3 of 4 were not taken\n"
    assert shown("chat-1")["state"] == "live"


def test_wrong_chats_fail_the_command_for_programs_too(config: Path) -> None:
    result = invoke("register", "--json", said=b'{"secureKey": "' + KEY.encode())
    assert result.exit_code == 1
    assert [each["error"]["code"] for each in json.loads(result.stdout)["errors"]] == ["not_json"]


def test_an_old_key_is_told_to_have_changed_nothing(config: Path) -> None:
    for key in ("first", "newer"):
        invoke("register", said=body(secure_key=key))
    result = invoke("register", said=body(secure_key="first"))
    assert result.exit_code == 0
    assert "1 registered, 1 of them with an old key" in result.stdout
    assert "newer tokens that are known were kept" in result.stdout


def test_one_device_is_not_that_of_two_chats(config: Path) -> None:
    result = invoke("register", "--device-id", "phone", said=[body("chat-1"), body("chat-2")])
    assert result.exit_code == 1
    assert "expected one session" in result.stderr
    assert json.loads(invoke("sessions", "--json").stdout)["sessions"] == []


@pytest.mark.parametrize("said", [b"", b" \n"])
def test_nothing_to_register_is_said(config: Path, said: bytes) -> None:
    result = invoke("register", said=said)
    assert result.exit_code == 1
    assert "nothing to register" in result.stderr


def test_a_file_that_cannot_be_read_is_a_line(config: Path) -> None:
    result = invoke("register", config.parent / "none.json")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "none.json cannot be read: No such file" in result.stderr


def test_json_on_the_command_line_is_refused_and_not_repeated(config: Path) -> None:
    result = invoke("register", json.dumps(reply()))
    assert result.exit_code == 2
    assert "expected the name of a file" in result.stderr


def test_what_is_told_of_the_chats_leaves_no_key_in_the_log(config: Path, events: Events) -> None:
    for said in (reply(), [body()], body(secure_kye=KEY), reply(secureKey=[KEY]), KEY.encode()):
        invoke("register", said=said)
    assert events.all()
    assert KEY not in events.text


# -- end -----------------------------------------------------------------------------------------------


def test_chats_are_looked_after_no_more(config: Path) -> None:
    invoke("register", said=[body("chat-1"), body("chat/2"), body("chat-3")])
    result = invoke("end", "chat-1", "chat/2")
    assert result.exit_code == 0
    assert result.stdout == "2 chats are looked after no more; GMS was told nothing\n"
    states = [shown(chat_id)["state"] for chat_id in ("chat-1", "chat/2", "chat-3")]
    assert states == ["ended", "ended", "live"]


def test_a_chat_nobody_knows_is_told_and_the_others_are_ended(config: Path) -> None:
    invoke("register", said=[body("chat-1"), body("chat-2")])
    result = invoke("end", "chat-1", "nobody", "chat-2", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"ended": ["chat-1", "chat-2"], "unknown": ["nobody"]}
    assert "no such session: nobody" in result.stderr
    assert "asyncchatd logs --chat" in result.stderr


def test_a_chat_that_was_ended_is_looked_after_again_when_it_is_registered(config: Path) -> None:
    invoke("register", said=body())
    invoke("end", "chat-1")
    assert invoke("register", said=body()).exit_code == 0
    assert shown("chat-1")["state"] == "live"


def test_the_help_says_that_gms_is_told_nothing() -> None:
    text = " ".join(invoke("end", "--help").stdout.split())
    assert "Nothing is sent to GMS, and no chat is closed by this." in text
