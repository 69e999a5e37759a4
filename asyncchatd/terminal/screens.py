"""Screens: where a command's tables and stories are printed, as something to read (`visible.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from asyncchatd.terminal.lines import writing
from asyncchatd.visible import visible


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
        with writing():
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
