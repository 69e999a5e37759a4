"""Bars that show how far something is, apart from the screens they are on: few commands have one."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)


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
