"""Requests per second over time as a picture: in the terminal, and as an SVG that needs nothing else.

Both show the same: what GMS saw in each second, restorations in a colour of their own, bounds as lines
across, and what happened when as marks below.

It is drawn by hand on purpose. The SVG is light on a light page and dark on a dark one, its words are text that can be
searched and read aloud, and it asks for nothing on the network. matplotlib writes fixed colours, and its 25 MB with
numpy and eight more packages would come to hosts that run a daemon, for one option of one command. rich's own export
of a console fetches its font from the network and knows one background. plotext draws in the terminal alone, with
compiled code of its own; there the bars take a dozen lines here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from rich.text import Text

from asyncchatd.rehearsing.bottleneck import Second


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened."""

    at: float
    """Seconds since the kill."""
    name: str


@dataclass(frozen=True, slots=True)
class Line:
    """A bound."""

    level: float
    """Requests per second."""
    name: str


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be seen. `seconds` are consecutive."""

    title: str
    seconds: Sequence[Second]
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()

    @property
    def drawn(self) -> list[Line]:
        """The lines that fit: one far above the busiest second would press everything to the ground."""
        return [line for line in self.lines if line.level <= TALLEST * self._peak]

    @property
    def told(self) -> list[Line]:
        """The others."""
        return [line for line in self.lines if line.level > TALLEST * self._peak]

    @property
    def top(self) -> float:
        """The level of the upper edge."""
        return _round(1.05 * max([self._peak, *(line.level for line in self.drawn)]))

    @property
    def _peak(self) -> float:
        return max([1.0, *(float(each.requests) for each in self.seconds)])


TALLEST = 4.0
"""A line so many times as high as the highest bar is told instead of drawn."""

WIDTH = 72
HEIGHT = 10
MARGIN = 30
"""Columns beside the bars: the scale on the left, the names of the bounds on the right."""
EIGHTHS = " ▁▂▃▄▅▆▇█"


def terminal(picture: Picture, *, width: int = WIDTH, height: int = HEIGHT) -> Text:
    """Bars of block characters; without colours everything but the share of restorations is seen too."""
    columns = _columns(picture.seconds, width)
    step = picture.top / height
    rows: dict[int, list[Line]] = {}
    for drawn in picture.drawn:
        rows.setdefault(min(height - 1, int(drawn.level / step)), []).append(drawn)
    text = Text(f"{picture.title}\n", style="", no_wrap=True)
    for row in reversed(range(height)):
        lines = rows.get(row, [])
        label = lines[0].level if lines else row * step if row in (0, height // 2) else None
        text.append(f"{'' if label is None else f'{label:,.0f}':>8} ", style="dim")
        text.append("┤" if lines else "│", style="dim")
        for column in columns:
            full = (column.requests - row * step) / step
            if full >= 1 / 16:
                block = EIGHTHS[max(1, min(8, round(full * 8)))]
                text.append(block, style="cyan" if column.restored > row * step else "blue")
            else:
                text.append("╌" if lines else " ", style="yellow")
        names = ", ".join(line.name for line in lines)
        text.append(f" {names}\n" if names else "\n", style="yellow")
    text.append(f"{'':>8} └{'─' * len(columns)}\n", style="dim")
    for mark in _apart(picture.marks, columns):
        text.append(f"{'':>9} {mark}\n", style="bold")
    for line in picture.told:
        text.append(f"{'':>10}{line.name} is above the picture\n", style="dim")
    text.right_crop(1)
    return text


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of the terminal: averages over the seconds, or the part of one, that it stands for."""

    at: float
    requests: float
    restored: float


def _columns(seconds: Sequence[Second], width: int) -> list[_Column]:
    """Each column is an equal part of the time."""
    share = len(seconds) / width
    columns = []
    for n in range(width if seconds else 0):
        begin, end = n * share, (n + 1) * share
        parts = [
            (min(end, second + 1) - max(begin, second), seconds[second])
            for second in range(int(begin), min(len(seconds), math.ceil(end)))
        ]
        columns.append(
            _Column(
                seconds[0].at + begin,
                sum(part * each.requests for part, each in parts) / share,
                sum(part * each.restored for part, each in parts) / share,
            )
        )
    return columns


def _apart(marks: Sequence[Mark], columns: Sequence[_Column]) -> list[str]:
    """Lines of marks under the columns, those on the right half with their names to the left; a mark that
    would touch its neighbour gets a line of its own."""
    lines: list[str] = []
    for mark in sorted(marks, key=lambda mark: mark.at):
        place = max(0, sum(column.at <= mark.at for column in columns) - 1)
        label = f"▲ {mark.name}"
        if place > len(columns) / 2 and place >= len(mark.name) + 1:
            label = f"{mark.name} ▲"
            place -= len(mark.name) + 1
        room = (n for n, line in enumerate(lines) if len(line) + 2 <= place)
        if (n := next(room, None)) is None:
            lines.append(" " * place + label)
        else:
            lines[n] = lines[n].ljust(place) + label
    return lines


# The SVG.

SVG_WIDTH, SVG_HEIGHT = 860, 414
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 56, 92

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .paper { fill: #ffffff; } .title { font-size: 16px; font-weight: 600; } .small { fill: #59636e; }
  .grid { stroke: #d1d9e0; } .requests { fill: #8c959f; } .restored { fill: #0969da; }
  .bound { stroke: #bc4c00; stroke-dasharray: 6 4; stroke-width: 1.5; } .bound-name { fill: #bc4c00; }
  .mark { stroke: #cf222e; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .paper { fill: #0d1117; } .small { fill: #9198a1; } .grid { stroke: #3d444d; }
    .requests { fill: #656c76; } .restored { fill: #4493f8; }
    .bound { stroke: #f0883e; } .bound-name { fill: #f0883e; } .mark { stroke: #ff7b72; }
  }
"""


def svg(picture: Picture) -> str:
    """A document of its own, readable on light and on dark."""
    begin = picture.seconds[0].at if picture.seconds else 0.0
    end = picture.seconds[-1].at + 1 if picture.seconds else 1.0
    wide, high = SVG_WIDTH - LEFT - RIGHT, SVG_HEIGHT - TOP - BOTTOM

    def x(at: float) -> float:
        return LEFT + wide * (min(max(at, begin), end) - begin) / (end - begin)

    def y(level: float) -> float:
        return TOP + high * (1 - level / picture.top)

    title = escape(picture.title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" role="img"'
        f' aria-labelledby="title">',
        f'<title id="title">{title}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{SVG_WIDTH}" height="{SVG_HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="28">{title}</text>',
    ]
    for level in _ticks(picture.top, 5):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{LEFT + wide}" y1="{y(level):.1f}" y2="{y(level):.1f}"/>'
        )
        parts.append(_text(LEFT - 8, y(level) + 4, f"{level:,g}", "small", "end"))
    parts += [_text(x(at), TOP + high + 18, f"{at:g} s", "small", "middle") for at in _ticks(end, 8, begin)]
    for name in ("requests", "restored"):
        levels = [(each.at, float(getattr(each, name))) for each in picture.seconds]
        steps = " ".join(
            f"L{x(at):.1f} {y(level):.1f} L{x(at + 1):.1f} {y(level):.1f}" for at, level in levels
        )
        parts.append(f'<path class="{name}" d="M{LEFT} {y(0):.1f} {steps} L{x(end):.1f} {y(0):.1f} Z"/>')
    for line, place in zip(picture.drawn, _spread([y(line.level) for line in picture.drawn]), strict=True):
        height = f"{y(line.level):.1f}"
        parts.append(f'<line class="bound" x1="{LEFT}" x2="{LEFT + wide}" y1="{height}" y2="{height}"/>')
        parts.append(_text(LEFT + wide + 8, place + 4, line.name, "bound-name"))
    marks = sorted(picture.marks, key=lambda mark: mark.at)
    for n, mark in enumerate(marks):
        foot = TOP + high + 36 + 16 * (n % 2)
        left = f"{x(mark.at):.1f}"
        parts.append(f'<line class="mark" x1="{left}" x2="{left}" y1="{TOP}" y2="{foot - 10}"/>')
        side = "end" if x(mark.at) > LEFT + wide / 2 else "start"
        parts.append(_text(x(mark.at), foot + 3, mark.name, "", side))
    parts += _legend(picture)
    return "\n".join([*parts, "</svg>\n"])


def _legend(picture: Picture) -> Iterator[str]:
    foot = SVG_HEIGHT - 10
    yield f'<rect class="restored" x="{LEFT}" y="{foot - 10}" width="12" height="12"/>'
    yield _text(LEFT + 18, foot, "restorations", "small")
    yield f'<rect class="requests" x="{LEFT + 112}" y="{foot - 10}" width="12" height="12"/>'
    above = "".join(f"; {line.name} is above the picture" for line in picture.told)
    yield _text(LEFT + 130, foot, f"other requests, per second; time since the kill{above}", "small")


def _text(x: float, y: float, words: str, name: str, anchor: str = "start") -> str:
    look = f' class="{name}"' if name else ""
    return f'<text{look} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _spread(places: Sequence[float]) -> list[float]:
    """The same heights, moved apart where two texts would lie on each other."""
    moved = dict(enumerate(places))
    for lower, upper in pairwise(sorted(moved, key=lambda n: -moved[n])):
        moved[upper] = min(moved[upper], moved[lower] - 16)
    return [moved[n] for n in range(len(places))]


def _ticks(top: float, about: int, bottom: float = 0.0) -> list[float]:
    """Round numbers from `bottom` to `top`, 0 among them where it lies between."""
    step = _round((top - bottom) / about, (1, 2, 5))
    return [n * step for n in range(math.ceil(bottom / step), math.floor(top / step) + 1)]


def _round(
    value: float, steps: Sequence[float] = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
) -> float:
    """The next larger of these times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in steps if step * power >= value), 10 * power)
