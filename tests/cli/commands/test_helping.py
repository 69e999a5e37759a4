"""`help` and `version`: the commands about the commands."""

from __future__ import annotations

import json
import platform

import click
import pytest
from click.testing import CliRunner, Result

from asyncchatd import __version__
from asyncchatd.cli import commands as cli
from asyncchatd.cli.commands.helping import show_help


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.main, words, prog_name="asyncchatd")


@pytest.mark.parametrize("words", [[], ["logs"], ["store"], ["store", "backup"], ["help"]])
def test_help_says_what_the_option_of_the_command_says(words: list[str]) -> None:
    asked = invoke("help", *words)
    assert asked.exit_code == 0
    assert asked.stdout == invoke(*words, "--help").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lgos"], "Did you mean"),
        (["store", "bakup"], "Did you mean 'backup'?"),
        (["logs", "chat"], "asyncchatd logs has no further commands, and so no chat"),
    ],
)
def test_help_of_what_is_no_command_is_a_wrong_option(words: list[str], said: str) -> None:
    asked = invoke("help", *words)
    assert (asked.exit_code, asked.stdout) == (2, "")
    assert said in asked.stderr


def test_the_names_of_commands_are_completed_behind_help() -> None:
    with click.Context(cli.main, info_name="asyncchatd") as main:
        context = click.Context(show_help, info_name="help", parent=main)
        [argument] = show_help.params
        assert [each.value for each in argument.shell_complete(context, "lo")] == ["logs"]
        context.params["names"] = ("store",)
        assert [each.value for each in argument.shell_complete(context, "ba")] == ["backup"]
        context.params["names"] = ("logs",)
        assert argument.shell_complete(context, "") == []


def test_the_version_is_told_to_people_and_programs() -> None:
    python = platform.python_version()
    assert invoke("version").stdout == f"asyncchatd {__version__}, Python {python}\n"
    assert json.loads(invoke("version", "--json").stdout) == {"version": __version__, "python": python}
