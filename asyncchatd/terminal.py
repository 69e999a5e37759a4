"""The one place where a command speaks: what it prints, and how it ends.

Everything a command shows goes through `Screen`, `say` and `say_json`, so that whatever an id, a name or a
message holds arrives as something to read (`visible.py`), and an output that cannot be written is one line on
standard error. `Commands` sees to the ends: every command leaves with an exit status and at most a line or
two on standard error, never with a traceback.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, Literal, NoReturn, TypeVar, overload

import click
import orjson
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.text import Text

from asyncchatd.config import MOST
from asyncchatd.log import events as log
from asyncchatd.visible import visible, visible_json


class OutputError(click.ClickException):
    """What was to be printed could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {error.strerror or error}")


class Screen(Console):
    """Where tables and stories are printed. No text is ever read as markup or as an emoji's name."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, highlight=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """A text in a table; it is measured as it will be seen."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All there is to print, whatever it came from."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text, keep="\n"), style, control)

    def print(self, *objects: Any, **how: Any) -> None:
        """Raises `OutputError`."""
        with _writing():
            super().print(*objects, **how)

    def as_it_is(self, lines: str) -> None:
        """Print lines that are laid out already. Raises `OutputError`."""
        self.print(Text(lines), soft_wrap=True)


PLAIN_WIDTH = 240
"""Columns where there is no terminal to fit into: nothing is wrapped that `grep` should find."""


def screen(*, stderr: bool = False, quiet: bool = False) -> Screen:
    """The screen that is printed to: a terminal, or a file as wide as nothing needs to be wrapped."""
    made = Screen(stderr=stderr, quiet=quiet)
    if not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


def show(console: Screen, shown: RenderableType) -> None:
    """Print; where there is no terminal, without the spaces that fill up columns."""
    if console.is_terminal or console.quiet:
        console.print(shown)
        return
    with console.capture() as captured:
        console.print(shown)
    console.as_it_is("\n".join(line.rstrip() for line in captured.get().splitlines()))


def progress(console: Console, unit: str, *columns: ProgressColumn) -> Progress:
    """A progress bar that is seen on terminals only and leaves nothing behind."""
    shown = columns or (
        MofNCompleteColumn(),
        TextColumn(unit, style="dim", markup=False),
        TimeElapsedColumn(),
    )
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        *shown,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def say(line: str = "", *, error: bool = False) -> None:
    """Print a line. Raises `OutputError`."""
    _write(sys.stderr if error else sys.stdout, visible(line) + "\n")


def say_all(lines: str) -> None:
    """Print a text of several lines. Raises `OutputError`."""
    _write(sys.stdout, visible(lines, keep="\n") + "\n")


def say_json(value: object, *, line: bool = False) -> None:
    """Print a value for programs, on one line or indented: as it is, with every character that a terminal
    obeys or does not show as an escape of JSON's. Raises `OutputError`."""
    option = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z | (0 if line else orjson.OPT_INDENT_2)
    try:
        text = orjson.dumps(value, option=option).decode()
    except TypeError:  # half a surrogate pair, a number beyond 64 bits
        text = json.dumps(_plain(value), indent=None if line else 2, default=str, allow_nan=False)
    _write(sys.stdout, visible_json(text) + "\n")


def _plain(value: object) -> object:
    """The value without what JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(stream: IO[str], text: str) -> None:
    with _writing():
        stream.write(text)
        stream.flush()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error) from None


class Number(click.FloatRange):
    """A number in an option: neither infinite nor none, and not beyond what clocks and counters bear."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        return _borne(super().convert(value, parameter, context), parameter, context)

    def _describe_range(self) -> str:
        return _range(self, super()._describe_range)


class Whole(click.IntRange):
    """A whole number in an option, not beyond what clocks and counters bear."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        return _borne(super().convert(value, parameter, context), parameter, context)

    def _describe_range(self) -> str:
        return _range(self, super()._describe_range)


N = TypeVar("N", int, float)


def _borne(number: N, parameter: click.Parameter | None, context: click.Context | None) -> N:
    if not abs(number) <= MOST:
        raise click.BadParameter(f"{number!r} is no number up to {MOST}", ctx=context, param=parameter)
    return number


def _range(kind: click.FloatRange | click.IntRange, described: Callable[[], str]) -> str:
    """The bounds as the help tells them; click would say `x<=None` where there are none."""
    return described() if (kind.min, kind.max) != (None, None) else f"x<={MOST}"


class Commands(click.Group):
    """Commands that end as `cli.py` promises, whatever happens."""

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
            with _writing():
                sys.stdout.flush()
        except click.ClickException as error:
            status = error.exit_code
            _complain(error)
        except BrokenPipeError:
            pass  # the reader has seen enough, and said so in its own way
        except OSError as error:
            _complain(OutputError(error) if error.errno in _OF_A_DISK else click.ClickException(_said(error)))
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


def _said(error: OSError) -> str:
    said = error.strerror or str(error)
    return said if error.filename is None else f"{error.filename}: {said}"


def _fault(error: Exception) -> str:
    """What a fault of our own is told with: where it is, for the one who mends it."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "asyncchatd" in each.filename]
    where = ", ".join(f"{os.path.basename(each.filename)}:{each.lineno}" for each in frames[-3:])
    return f"asyncchatd itself failed, a fault to report: {log.scrub(repr(error))[:200]} ({where})"


def _let_go(stream: IO[str] | None) -> None:
    """Python writes out what is left when it ends, and would complain a second time, in its own words."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError, io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
