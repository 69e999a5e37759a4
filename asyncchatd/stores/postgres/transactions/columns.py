"""Rows as one value for each of their columns: how a statement is given many at once.

The driver looks four times at each value of a list, lest it is a list itself: of the processor time of a settlement a
third. So numbers go as the text of an array, and a column in which nothing stands goes without values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asyncchatd.stores.errors import StoreError

BIGINT = 1 << 63
"""The first number that is too large for a bigint."""


class Columns:
    """Columns by their names, each with its type of SQL."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        """Of the first one each row has a value, and so it says how many there are."""
        self._kinds = kinds
        self.names = ", ".join(kinds)
        self.unnest = (
            f"unnest({', '.join(_place(number, kind) for number, kind in enumerate(kinds.values(), 1))})"
        )
        """The rows in SQL, from the first values of the statement."""

    def values(self, rows: Iterable[Sequence[object]]) -> list[object]:
        """The values of the statement. Raises `StoreError` for a number that its column does not
        take: the server would say of which type it is, and not of what."""
        columns = list(zip(*rows, strict=True)) or [()] * len(self._kinds)
        return [
            _of_text(column) if kind == "text" else _listed(name, kind, column)
            for (name, kind), column in zip(self._kinds.items(), columns, strict=True)
        ]


def _place(number: int, kind: str) -> str:
    return f"${number}::text[]" if kind == "text" else f"${number}::text::{kind}[]"


def _of_text(column: Sequence[object]) -> Sequence[object]:
    """`unnest` fills a shorter one up with NULL."""
    return () if column.count(None) == len(column) else column


def _listed(name: str, kind: str, column: Sequence[Any]) -> str:
    """Numbers, or truth values, as the text of an array."""
    if kind == "bigint":
        numbers = [value for value in column if value is not None]
        if numbers and not -BIGINT <= min(numbers) <= max(numbers) < BIGINT:
            raise StoreError(f"PostgreSQL: {name} is not what its column takes (not sent)")
    return "{" + ",".join(["NULL" if value is None else str(value) for value in column]) + "}"
