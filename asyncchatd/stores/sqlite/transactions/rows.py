"""Many rows in one statement.

Python's `sqlite3` lets go of the interpreter and fetches it back with every row it steps over, and on
a busy event loop each time costs more than the row. So rows go in as one table of bound values, which
SQLite reads in a fifth of the time that the same rows take as JSON.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

LARGEST = 256
"""Rows in one statement, a power of two. SQLite allows 32,766 values."""


def run(
    db: sqlite3.Connection,
    sql: str,
    columns: str,
    rows: Sequence[tuple[object, ...]],
    *parameters: object,
) -> list[Any]:
    """Run `sql` with a table named `row` of these columns, once for every `LARGEST` rows, and return
    what it selects. `parameters` are those of `sql` itself.

    A portion is filled up with rows of NULLs, so that few different statements are prepared: `sql` must
    leave them out.
    """
    found: list[Any] = []
    for start in range(0, len(rows), LARGEST):
        portion = rows[start : start + LARGEST]
        size = 1 << (len(portion) - 1).bit_length()
        padding = (None,) * (len(portion[0]) * (size - len(portion)))
        statement = _statement(sql, columns, size)
        found += db.execute(statement, (*chain.from_iterable(portion), *padding, *parameters))
    return found


@lru_cache(maxsize=256)
def _statement(sql: str, columns: str, size: int) -> str:
    one = f"({', '.join('?' * (columns.count(',') + 1))})"
    return f"WITH row({columns}) AS (VALUES {', '.join([one] * size)}) {sql}"
