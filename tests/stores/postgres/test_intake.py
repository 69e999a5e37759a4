"""Pushes on their way into the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from asyncchatd.model import Ms
from asyncchatd.stores import StoreError, StoreFull
from asyncchatd.stores.answers import Taken
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.stores.postgres.intake import GROUP, Intake
from asyncchatd.wire import Push

from ..desk import NOON, push


class Journal:
    """A journal that writes when it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.groups: list[list[str]] = []
        self.refuses: dict[str, StoreError] = {}

    async def write(self, group: Sequence[tuple[Push, Ms]]) -> list[Taken]:
        await self.may.wait()
        digests = [each.digest for each, _ in group]
        self.groups.append(digests)
        for digest in digests:
            if digest in self.refuses:
                raise self.refuses[digest]
        return [Taken.KNOWN] * len(group)


def intake(journal: Journal, *, queue: int = 10_000) -> Intake:
    return Intake(journal.write, queue=queue, begin=asyncio.ensure_future)


def named(digest: str) -> Push:
    return push(digest=digest)


async def test_whatever_came_while_one_was_written_is_written_together() -> None:
    journal = Journal()
    pushes = intake(journal)
    taken = [pushes.take(named("a"), NOON)]
    await asyncio.sleep(0)
    taken += [pushes.take(named(each), NOON) for each in "bcd"]
    assert [each.digest for each in pushes.pushes()] == ["a", "b", "c", "d"]
    assert pushes.depth == 3
    journal.may.set()
    assert await asyncio.gather(*taken) == [Taken.KNOWN] * 4
    assert journal.groups == [["a"], ["b", "c", "d"]]
    assert list(pushes.pushes()) == []


async def test_no_more_are_written_together_than_make_a_short_commit() -> None:
    journal = Journal()
    journal.may.set()
    pushes = intake(journal)
    await asyncio.gather(*(pushes.take(named(str(each)), NOON) for each in range(GROUP + 1)))
    assert [len(group) for group in journal.groups] == [GROUP, 1]


async def test_one_more_than_the_queue_holds_is_refused() -> None:
    journal = Journal()
    pushes = intake(journal, queue=2)
    taken = [pushes.take(named(each), NOON) for each in "ab"]
    with pytest.raises(StoreFull):
        pushes.take(named("c"), NOON)
    journal.may.set()
    await asyncio.gather(*taken)
    assert await pushes.take(named("c"), NOON) is Taken.KNOWN


async def test_a_push_that_cannot_be_kept_takes_no_other_with_it() -> None:
    journal = Journal()
    journal.may.set()
    journal.refuses["b"] = StoreError("beyond what a column holds")
    pushes = intake(journal)
    taken = [pushes.take(named(each), NOON) for each in "abc"]
    done = await asyncio.gather(*taken, return_exceptions=True)
    assert done == [Taken.KNOWN, journal.refuses["b"], Taken.KNOWN]


async def test_when_nothing_can_be_written_all_are_told_at_once() -> None:
    journal = Journal()
    journal.may.set()
    journal.refuses["b"] = StoreUnwritable("no room")
    pushes = intake(journal)
    taken = [pushes.take(named(each), NOON) for each in "abc"]
    done = await asyncio.gather(*taken, return_exceptions=True)
    assert done == [journal.refuses["b"]] * 3
    assert journal.groups == [["a", "b", "c"]]


async def test_a_push_is_written_when_nobody_waits_for_it_any_more() -> None:
    journal = Journal()
    pushes = intake(journal)
    given_up, waited_for = pushes.take(named("a"), NOON), pushes.take(named("b"), NOON)
    given_up.cancel()
    journal.may.set()
    assert await waited_for is Taken.KNOWN
    assert journal.groups == [["a", "b"]]
