"""Numbers in options, within what clocks and counters bear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from asyncchatd.config import MOST


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
