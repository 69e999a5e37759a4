"""Lines and JSON that a command prints, as something to read whatever they hold (`visible.py`).

An output that cannot be written is one line on standard error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import click

from asyncchatd.visible import visible, visible_json


class OutputError(click.ClickException):
    """What was to be printed could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {error.strerror or error}")


def say(line: str = "", *, error: bool = False) -> None:
    """Print a line. Raises `OutputError`."""
    _write(sys.stderr if error else sys.stdout, visible(line) + "\n")


def say_all(lines: str) -> None:
    """Print a text of several lines. Raises `OutputError`."""
    _write(sys.stdout, visible(lines, keep="\n") + "\n")


def say_json(value: object, *, line: bool = False) -> None:
    """Print a value for programs, on one line or indented: as it is, with every character that a terminal
    obeys or does not show as an escape of JSON's. Raises `OutputError`."""
    import orjson

    option = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z | (0 if line else orjson.OPT_INDENT_2)
    try:
        text = orjson.dumps(value, option=option).decode()
    except TypeError:  # half a surrogate pair, a number beyond 64 bits
        import json

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
    with writing():
        stream.write(text)
        stream.flush()


@contextmanager
def writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error) from None
