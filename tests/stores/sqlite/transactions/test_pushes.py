"""A push changes its session in the same way, whichever of the statements it takes effect by."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pytest

from asyncchatd.model.data import Ms
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import pushes, schema, sessions
from asyncchatd.wire.push import Push

from ...desk import NOON, SECOND, push, registration

KEY = "key-of-chat-1"
TOLD_APART = {"marks", "told_position"}
"""Columns that pushes in a portion need not change as often as one by one: `marks` has to change, and a position is
noted for a key that no reply has confirmed, which is not the usual case."""

Row = dict[str, object]


@dataclass
class Desk:
    """The session of one chat, in a database of its own."""

    db: Db

    def absorb(self, *portion: tuple[Push, Ms]) -> Row:
        """The session's row once these pushes have taken effect."""
        pushes.take_pushes(self.db, portion)
        assert pushes.absorb(self.db, 1000)[1]
        return self.row()

    def row(self) -> Row:
        cursor = self.db.execute("SELECT * FROM session")
        [values] = cursor.fetchall()
        return dict(zip((column[0] for column in cursor.description), values, strict=True))


MakeDesk = Callable[[], Desk]


@pytest.fixture
def desk() -> Iterator[MakeDesk]:
    """Makes desks, whose databases are closed with the test."""
    with ExitStack() as stack:

        def made() -> Desk:
            db = stack.enter_context(closing(sqlite3.connect(":memory:", isolation_level=None, factory=Db)))
            schema.migrate(db, "memory")
            sessions.register(db, [registration("chat-1")], NOON, 60_000)
            return Desk(db)

        yield made


def usual(chance: random.Random) -> list[tuple[Push, Ms]]:
    """Pushes that say nothing new, a few seconds apart."""
    moments = sorted(NOON + chance.randrange(1, 60) * SECOND for _ in range(chance.randrange(1, 6)))
    return [
        (
            push(
                "chat-1" if chance.random() < 0.8 else None,
                device_id="device-of-chat-1",
                key=KEY if chance.random() < 0.5 else None,
                utc_time=at if chance.random() < 0.7 else None,
                position=chance.choice([None, 3, 4, 5]),
                resend=chance.random() < 0.3,
                digest=chance.choice(["one", "two"]),
            ),
            at,
        )
        for at in moments
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_usual_way_and_the_plain_one_leave_the_same_session(
    seed: int, desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    portion = usual(random.Random(seed))
    by_portions, one_by_one = desk(), desk()
    start = by_portions.row()
    one_by_one.db.execute("UPDATE session SET due_at=?", (start["due_at"],))
    quick = by_portions.absorb(*portion)
    assert quick["marks"] != start["marks"]
    monkeypatch.setattr(pushes, "_USUAL", "0")
    plain = one_by_one.absorb(*portion)
    assert {name: value for name, value in quick.items() if name not in TOLD_APART} == {
        name: value for name, value in plain.items() if name not in TOLD_APART
    }


def test_a_key_that_a_push_told_is_the_newest_up_to_the_last_push_that_repeats_it(desk: MakeDesk) -> None:
    """A reply that was on its way meanwhile is judged by it, and by then the key is a usual one."""
    chat = desk()
    told = push("chat-1", key="newer", utc_time=NOON + SECOND, position=5)
    again = push("chat-1", key="newer", utc_time=NOON + 2 * SECOND, position=7)
    assert chat.absorb((told, NOON + SECOND))["told_position"] == 5
    assert chat.absorb((again, NOON + 2 * SECOND))["told_position"] == 7


def test_a_session_that_a_push_makes_known_is_as_one_that_it_completes(desk: MakeDesk) -> None:
    """Whether the push is the first of its chat, or the first that tells everything."""
    known, unknown = desk(), desk()
    first = push(
        "chat-1", user_id="user-of-chat-1", key=KEY, alias="117", utc_time=NOON, position=4, digest="one"
    )
    for each in (known, unknown):
        each.db.execute("DELETE FROM session")
    known.absorb((push("chat-1", digest="zero"), NOON))
    told, made = known.absorb((first, NOON)), unknown.absorb((first, NOON))
    for row in (told, made):
        del row["marks"]
    assert told == made
