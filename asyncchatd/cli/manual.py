"""The manual page, written from the commands: `python -m asyncchatd.cli.manual > etc/asyncchatd.1`.

One page for all commands, so that `man asyncchatd` answers and a search in it finds. A generator of our own:
click-man makes a page for each command, dated by the day it ran, and lets a line that begins with a dot through
as a roff request.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from asyncchatd import __version__
from asyncchatd.cli.commands import main
from asyncchatd.cli.options import USUAL_FILES


def page(command: click.Group = main) -> str:
    """The page, as roff for man(7)."""
    context = click.Context(command, info_name="asyncchatd", help_option_names=["-h", "--help"])
    return "\n".join(_lines(command, context)) + "\n"


def _lines(group: click.Group, context: click.Context) -> Iterator[str]:
    yield '.\\" Written by `python -m asyncchatd.cli.manual > etc/asyncchatd.1`; a test keeps it true.'
    yield f'.TH ASYNCCHATD 1 "" "asyncchatd {__version__}" "User Commands"'
    yield from (".nh", ".ad l")  # options and paths stay whole
    yield ".SH NAME"
    yield f"asyncchatd \\- {_text('keep Genesys asynchronous chats alive')}"
    yield ".SH SYNOPSIS"
    yield ".B asyncchatd"
    yield ".I COMMAND"
    yield _text("[OPTIONS] [ARGUMENTS]")
    yield ".SH DESCRIPTION"
    yield from _prose(group)
    yield ".SH COMMANDS"
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if not command.hidden:
            yield from _command(command, click.Context(command, info_name=name, parent=context))
    yield from _rest()


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    name = context.command_path.removeprefix("asyncchatd ")
    yield f".SS {_text(name)}"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"\\fBasyncchatd {_text(name)}\\fR {_text(usage)}"
    yield ".PP"
    yield from _prose(command)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            yield ".TP"
            yield f"\\fB{_text(record[0])}\\fR"
            yield _text(record[1])
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            below = command.get_command(context, part)
            assert below is not None
            yield from _command(below, click.Context(below, info_name=part, parent=context))


def _prose(command: click.Command) -> Iterator[str]:
    r"""The help's paragraphs; one that begins with \b is an example and keeps its lines."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(command.help or ""))
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            title, *lines = paragraph.removeprefix("\b").strip("\n").splitlines()
            yield from (_text(title), ".PP", ".nf", ".RS 4")
            yield from (_text(line.strip()) for line in lines)
            yield from (".RE", ".fi")
        else:
            yield _text(" ".join(paragraph.split()))


def _rest() -> Iterator[str]:
    yield ".SH FILES"
    for path in USUAL_FILES:
        yield from (".TP", f"\\fI{_text(str(path))}\\fR")
        yield _text("The configuration, when neither --config nor $ASYNCCHATD_CONFIG names one.")
    yield ".SH ENVIRONMENT"
    for name, meaning in (
        ("ASYNCCHATD_CONFIG", "The configuration, when --config does not name one."),
        (
            "CREDENTIALS_DIRECTORY",
            'Where files named "credential:NAME" in the configuration are; set by systemd for the service.',
        ),
    ):
        yield from (".TP", f"\\fB{name}\\fR", _text(meaning))
    yield ".SH EXIT STATUS"
    for status, meaning in (
        ("0", "It went well."),
        ("1", "It did not; a line on standard error says why."),
        ("2", "Wrong options or arguments."),
        ("130, 143", "Stopped by Ctrl-C or SIGTERM."),
    ):
        yield from (".TP", f"\\fB{status}\\fR", _text(meaning))
    yield ".SH SEE ALSO"
    yield "\\fBjournalctl\\fR(1), \\fBsystemctl\\fR(1), \\fBlnav\\fR(1)"


def _text(words: str) -> str:
    """Words as roff reads them: a hyphen that can be copied, and no request by accident."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


if __name__ == "__main__":
    print(page(), end="")
