"""A session's columns: the schema has every one that the code writes and reads by a field's name."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from asyncchatd.model.data import Session
from asyncchatd.model.tokens import TokenRecord
from asyncchatd.stores.sqlite.transactions import schema, session_rows, work

ELSEWHERE = {"leased_until"}
"""Fields of a session that stand in another table."""


def test_every_field_of_a_session_has_a_column_and_every_column_has_a_reader() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(db, "memory")
    columns = {row[1] for row in db.execute("PRAGMA table_info(session)")}
    db.close()
    read = {*session_rows.SESSION_COLUMNS, *TokenRecord.__struct_fields__, *work._Due._fields}
    assert set(Session.__struct_fields__) == set(session_rows.SESSION_COLUMNS)
    assert read - ELSEWHERE <= columns
    assert columns - read == {
        "pinged_until",
        "push_digest",
        "numbering",
        "numbered_at",
    }  # of the statements alone


_NUMBERED = re.compile(
    r"\b(state|reason) *(=|<>|<|>|<=|>=) *\d|\b(min|max)\((state|reason), *\d|\bSELECT \d, count"
)
_STATEMENTS = [path for path in Path(schema.__file__).parent.glob("*.py") if path.stem != "schema"]
"""The modules with statements. The schema is the form of files that exist already; its indices keep their numbers,
and a statement that names an index by which it cannot search is refused by SQLite."""


@pytest.mark.parametrize("module", _STATEMENTS, ids=lambda path: str(path.stem))
def test_states_and_reasons_stand_in_statements_by_their_names(module: Path) -> None:
    assert [line for line in module.read_text().splitlines() if _NUMBERED.search(line)] == []
