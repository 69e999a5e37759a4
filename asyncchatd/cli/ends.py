"""How every command ends: an exit status and at most a line or two on standard error, never a traceback.

The group of commands is here too, with what each is announced by. The help, the completion and a misspelled name
need no more than that, so a command's module is imported when the command is asked for and not before.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import IO, Any, Literal, NoReturn, overload

import click
from click.shell_completion import CompletionItem

from asyncchatd.lean import importing
from asyncchatd.terminal import OutputError, writing
from asyncchatd.visible import visible


class Announced(click.Command):
    """A command that is not imported yet: its name, its line in the help, and `module:attribute`, where it is."""

    def __init__(self, name: str, short_help: str, place: str) -> None:
        super().__init__(name, short_help=short_help)
        self.place = place

    def load(self) -> click.Command:
        """The command, with this one's line for the help."""
        module, _, attribute = self.place.partition(":")
        with importing():
            command: click.Command = getattr(import_module(module), attribute)
        gc.freeze()  # modules stay, and need not be looked at again
        command.short_help = self.short_help
        return command


class Commands(click.Group):
    """Commands that end as `commands.py` promises, whatever happens."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported now."""
        command = super().get_command(ctx, cmd_name)
        if isinstance(command, Announced):
            command = self.commands[cmd_name] = command.load()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in the help, from what announces them."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].short_help or "") for name in self.list_commands(ctx)]
            )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names of commands, from what announces them, and the group's own options."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=self.commands[name].short_help) for name in names]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    @overload
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: Literal[True] = True,
        **extra: Any,
    ) -> NoReturn: ...

    @overload
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = ...,
        **extra: Any,
    ) -> Any: ...

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command that the arguments name; ends the process."""

        def run() -> Any:
            return super(Commands, self).main(args, prog_name, complete_var, False, **extra)

        if not standalone_mode:
            return run()
        _open_what_is_closed()
        status = 1
        try:
            status = _status(run)
            with writing():
                sys.stdout.flush()
        except click.ClickException as error:
            status = error.exit_code
            _complain(error)
        except BrokenPipeError:
            pass  # the reader has seen enough, and said so in its own way
        except OSError as error:
            _complain(
                OutputError(error)
                if error.errno in _OF_A_DISK
                else click.ClickException(_with_its_file(error))
            )
        except (KeyboardInterrupt, click.Abort):
            status = 130
        except RecursionError:
            _complain(click.ClickException("this is nested too deeply"))
        except MemoryError:
            _complain(click.ClickException("this takes more memory than there is"))
        except Exception as error:
            _complain(click.ClickException(_fault(error)))
        _let_go(sys.stdout)
        _let_go(sys.stderr)
        sys.exit(status)


def _status(run: Callable[[], object]) -> int:
    if sys.stdout is None:
        raise click.ClickException("standard output is closed, so nothing can be shown")
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        raise click.ClickException(str(end.code)) from None
    return 0


def _open_what_is_closed() -> None:
    """A standard stream that was closed is /dev/null. Else the next file that is opened takes its number: the
    database as standard error, to which even Python's own last words go."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a check mark still shows the rest


def _complain(error: click.ClickException) -> None:
    said = io.StringIO()
    error.show(said)
    with suppress(OSError):  # then nobody is told, and the exit status has to do
        sys.stderr.write(visible(said.getvalue(), keep="\n"))
        sys.stderr.flush()


_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What goes wrong where a help is printed: all else that is written says where."""


def _with_its_file(error: OSError) -> str:
    said = error.strerror or str(error)
    return said if error.filename is None else f"{error.filename}: {said}"


def _fault(error: Exception) -> str:
    """What a fault of our own is told with: where it is, for the one who mends it."""
    import traceback

    from asyncchatd.log import scrub  # the secrets to leave out are known to it, once it is imported

    frames = [each for each in traceback.extract_tb(error.__traceback__) if "asyncchatd" in each.filename]
    where = ", ".join(f"{os.path.basename(each.filename)}:{each.lineno}" for each in frames[-3:])
    return f"asyncchatd itself failed, a fault to report: {scrub(repr(error))[:200]} ({where})"


def _let_go(stream: IO[str] | None) -> None:
    """Python writes out what is left when it ends, and would complain a second time, in its own words."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError, io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
