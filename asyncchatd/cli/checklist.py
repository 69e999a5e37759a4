"""What a check found out, as a checklist."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asyncchatd.cli.tables import COLOURS
from asyncchatd.model import Finding, Level
from asyncchatd.preflight import AREAS, area
from asyncchatd.visible import visible


def findings(found: Sequence[Finding]) -> RenderableType:
    """What a check found out, as a checklist; headings when it went further than the file."""
    areas = [
        heading for heading in dict.fromkeys(AREAS.values()) if any(area(each) == heading for each in found)
    ]
    parts: list[RenderableType] = []
    for heading in areas:
        if len(areas) > 1:
            parts.append(Text(heading, style="bold"))
        parts.append(lines([each for each in found if area(each) == heading]))
    errors, warnings = (sum(each.level is level for each in found) for level in (Level.ERROR, Level.WARNING))
    summary = Text(f"{_number(errors, 'error')}, {_number(warnings, 'warning')}")
    summary.stylize("red" if errors else "yellow" if warnings else "green")
    return Group(*parts, summary)


def lines(found: Sequence[Finding]) -> Table:
    """The table of some findings, each in a line or two."""
    table = Table.grid(padding=(0, 1))
    table.add_column(min_width=9)
    table.add_column(overflow="fold")
    for each in found:
        mark = Text(f"{MARKS[each.level]} {each.level}", style=COLOURS[each.level])
        table.add_row(mark, _words(each))
        if each.advice:
            table.add_row("", Text(f"-> {visible(each.advice)}", style="dim"))
    return table


MARKS = {Level.OK: "✓", Level.NOTE: "-", Level.WARNING: "!", Level.ERROR: "✗"}


def _words(finding: Finding) -> Text:
    return Text(f"{visible(finding.key)}: " if finding.key else "", style="bold").append(
        visible(finding.message), style="not bold"
    )


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
