"""The manual page and what shells need for completion, both written from the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from asyncchatd.cli import commands as cli
from asyncchatd.cli.manual import page
from asyncchatd.log.events import Event
from asyncchatd.log.fields import FIELDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "etc" / "asyncchatd.1").read_text()

REQUESTS = {".TH", ".SH", ".SS", ".PP", ".TP", ".B", ".I", ".nf", ".fi", ".RS", ".RE", ".nh", ".ad", '.\\"'}


@pytest.mark.slow
def test_the_manual_page_is_that_of_the_commands() -> None:
    command = [sys.executable, "-m", "asyncchatd.cli.manual"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed == PAGE, "run python -m asyncchatd.cli.manual > etc/asyncchatd.1"


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_the_manual_page_has_every_command_and_option(name: str) -> None:
    part = PAGE.split(f"\n.SS {name}\n")[1].split("\n.SS ")[0].replace("\\-", "-")
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert all(option in part for option in parameter.opts)
            assert (parameter.help or "?").split()[-1] in part
    assert "Example:" in part


def test_no_line_of_the_manual_page_is_taken_for_a_request() -> None:
    begins = {line.split(" ")[0] for line in PAGE.splitlines() if line.startswith((".", "'"))}
    assert begins <= REQUESTS


def test_words_that_look_like_requests_are_words() -> None:
    @click.group()
    def odd() -> None:
        """.SH it's not a \\heading"""

    assert "\\&.SH it\\(aqs not a \\eheading" in page(odd)


# Completion.


def completed(*words: str) -> list[str]:
    *before, begun = words
    found = BashComplete(cli.main, {}, "asyncchatd", "_ASYNCCHATD_COMPLETE").get_completions(before, begun)
    return [each.value for each in found]


@pytest.mark.parametrize(
    ("shell", "begins"), [("bash", "_asyncchatd"), ("zsh", "#compdef"), ("fish", "function")]
)
def test_each_shell_gets_its_script(shell: str, begins: str) -> None:
    result = CliRunner().invoke(cli.main, ["completion", shell])
    assert result.exit_code == 0
    assert result.stdout.startswith(begins)
    assert "_ASYNCCHATD_COMPLETE" in result.stdout


def test_commands_and_options_are_completed() -> None:
    assert completed("re") == ["register", "rehearse", "restorations", "restore"]
    assert "--summary" in completed("logs", "--s")


def test_names_of_chat_servers_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "asyncchatd.toml"
    config.write_text('[[chat_server]]\nname = "chat-1"\n[[chat_server]]\nname = "other"\n')
    assert completed("restore", "--config", str(config), "ch") == ["chat-1"]
    monkeypatch.setenv("ASYNCCHATD_CONFIG", str(config))
    assert completed("restore", "") == ["chat-1", "other"]
    assert completed("logs", "--server", "o") == ["other"]


def test_a_configuration_that_cannot_be_read_completes_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[[chat_server]")
    for name in ("bad.toml", "none.toml"):
        assert completed("restore", "--config", str(tmp_path / name), "") == []


# The lnav format.


SHIPPED = (ROOT / "etc" / "asyncchatd.lnav.json").read_text()


@pytest.mark.slow
def test_the_lnav_format_is_that_of_the_catalogue() -> None:
    command = [sys.executable, "-m", "asyncchatd.story.lnav"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed == SHIPPED, "run python -m asyncchatd.story.lnav > etc/asyncchatd.lnav.json"


def test_the_lnav_format_knows_every_field_and_level() -> None:
    shipped = json.loads(SHIPPED)["asyncchatd_log"]
    values = shipped["value"]
    assert set(values) == {"time", "level", "event", "exception", *FIELDS}
    assert shipped["json"] is True
    assert (shipped["timestamp-field"], shipped["level-field"], shipped["body-field"]) == (
        "time",
        "level",
        "event",
    )
    assert shipped["level"] == {event.level: f"^{event.level}$" for event in Event}
    shown = {part["field"] for part in shipped["line-format"] if isinstance(part, dict)} - {"__timestamp__"}
    assert shown <= set(values)
    numbers = {name for name, value in values.items() if value["kind"] in {"integer", "float"}}
    assert numbers >= {name for name in FIELDS if name.endswith(("_ms", "_s"))}
    assert not numbers & {"chat_id", "alias", "cause", "node", "process_os_pid"}
