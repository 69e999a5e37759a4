"""A store under load, as a process that can be frozen: what `test_power_loss` copies the files of.

    python -m tests.stores.storm DIRECTORY

It says on standard output, a line for each, what it was told is durable: `push CHAT`, a stranger's push that
carries all its tokens, `key CHAT NUMBER`, a new secure key that a reply brought, `event CHAT`, an event of a reply, and
`told CHAT NUMBER`, one that a webhook or one who fetches is about to be told. In front of it stands how far
the write-ahead log was synced by then: its two salts and its number of frames.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

from asyncchatd.log.lines import configure
from asyncchatd.model.data import Claim, Reason, Registration, Settlement, TokenNews, Tokens, Verdict
from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind
from asyncchatd.stores.rules import EVERY_REASON
from asyncchatd.stores.sqlite import SqliteStore, log_file
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file import connections, writer
from asyncchatd.wire import raw_event
from asyncchatd.wire.push import Push

KEY = bytes(range(32))
"""The store encrypts, as it should in production."""

HOOK = Consumer("hook", frozenset((EventKind.CHAT,)), pushes=True)
FETCHES = Consumer("fetches", frozenset((EventKind.CHAT,)))

CHATS = 40
PUSHERS = 8
SPREAD_MS = 60_000


def chat_tokens(chat_id: str, number: int = 0) -> Tokens:
    return Tokens(chat_id, f"user-of-{chat_id}", f"key-of-{chat_id}-{number}", "117")


def stranger(chat_id: str) -> Push:
    """A push that alone makes its session live."""
    told = chat_tokens(chat_id)
    return Push(
        device_id=f"device-of-{chat_id}",
        news=TokenNews(chat_id, told.user_id, told.secure_key, told.alias),
        events=(),
        next_position=None,
        leaving=False,
        resend=False,
        utc_time=None,
        position=None,
        text=False,
        conflicts=(),
        digest=f"body-of-{chat_id}",
    )


class Storm:
    """What goes on in the store, and what is said of it."""

    def __init__(self, directory: Path) -> None:
        self._index = directory / "chats.db-shm"
        self._store = SqliteStore("sqlite:///chats.db", directory=directory, keys=[KEY])
        self._synced = "0 0 0"
        self._now = count(1_700_000_000_000)

    async def rage(self) -> None:
        """For ever."""
        self._note_what_is_synced()
        await self._store.open()
        chats = [chat_tokens(f"known-{number}") for number in range(CHATS)]
        await self._store.register(
            [Registration(each, "support") for each in chats], now=next(self._now), spread_ms=0
        )
        for each in chats:
            self._say("key", each.chat_id, "0")
        await self._store.enrol([HOOK, FETCHES], now=next(self._now))
        async with asyncio.TaskGroup() as forces:
            forces.create_task(self._tell())
            forces.create_task(self._fetch())
            for number in range(PUSHERS):
                forces.create_task(self._push(f"stranger-{number}"))
            forces.create_task(self._ping())

    async def _push(self, name: str) -> None:
        for number in count():
            chat_id = f"{name}-{number}"
            await self._store.take_push(stranger(chat_id), now=next(self._now))
            self._say("push", chat_id)
            if number % 5 == 0:
                await asyncio.sleep(0.05)  # so that other work has transactions of its own

    async def _ping(self) -> None:
        """As the worker does it: every answer brings an event, every other one a new key."""
        for number, reasons in enumerate(cycle(((Reason.KEEPALIVE,), EVERY_REASON))):
            for _ in range(4):  # not synced by itself
                await self._store.absorb(5)
            now = next(self._now)
            claims = await self._store.claim(now=now, limit=20, lease_ms=15_000, reasons=reasons)
            answers = list(self._answers(claims, now, keyed=number % 4 < 2))
            await self._store.settle(answers)
            for each in answers:
                self._say("event", each.claim.chat_id)
                if each.news.secure_key is None:
                    continue
                self._say("key", each.claim.chat_id, each.news.secure_key.rpartition("-")[2])

    async def _tell(self) -> None:
        """As a webhook does it: what it is given it posts, and says so."""
        while True:
            batches = await self._store.batches(
                HOOK.name, now=next(self._now), limit=5, busy=(), most_events=50, most_bytes=1 << 18
            )
            for batch in batches:
                for event in batch.events:
                    self._say("told", event.chat_id or "", str(event.id))
            await self._store.delivered(batches, now=next(self._now))
            await asyncio.sleep(0.01)

    async def _fetch(self) -> None:
        """As a consumer does it that fetches: it says what it was given, and acknowledges that."""
        cursor: int | None = None
        while True:
            portion = await self._store.fetch(FETCHES.name, after=cursor, limit=20, now=next(self._now))
            for event in portion.events:
                self._say("told", event.chat_id or "", str(event.id))
            cursor = portion.cursor
            await asyncio.sleep(0.01)

    def _answers(self, claims: list[Claim], now: int, *, keyed: bool) -> Iterator[Settlement]:
        for claim in claims:
            stem, _, number = claim.tokens.secure_key.rpartition("-")
            # The known ones are due again at once, so that many keys follow each other.
            due = now if claim.chat_id.startswith("known") else now + SPREAD_MS
            news = TokenNews(secure_key=f"{stem}-{int(number) + 1}" if keyed else None)
            index = claim.next_position or 1
            event = raw_event({"index": index, "type": "Message", "utcTime": now, "text": f"text {index}"})
            assert event is not None
            yield Settlement(
                claim,
                Verdict.ANSWERED,
                due,
                sent_at=now,
                settled_at=now,
                news=news,
                next_position=index + 1,
                events=(event,),
            )

    def _say(self, *words: str) -> None:
        os.write(1, f"{self._synced} {' '.join(words)}\n".encode())

    def _note_what_is_synced(self) -> None:
        """With each transaction that SQLite syncs before COMMIT returns, from the log's index."""
        transaction = writer._transaction

        def noted(connection: Db, group: object, durable: bool, looks: bool) -> list[object]:
            results = transaction(connection, group, durable, looks)  # type: ignore[arg-type]
            [[level]] = connection.execute("PRAGMA synchronous")
            if level == FULL:
                head = self._index.read_bytes()[:40]
                frames, salts = struct.unpack_from("=I", head, 16)[0], struct.unpack_from(">II", head, 32)
                self._synced = f"{salts[0]} {salts[1]} {frames}"
            return results

        writer._transaction = noted


FULL = 2

if __name__ == "__main__":
    configure(output=sys.stderr.buffer, level="error")
    # So that the log is moved into the file, and begun anew, many times in a few seconds.
    connections.CHECKPOINT_SECONDS, log_file.LARGE_LOG = 0.02, 400_000
    asyncio.run(Storm(Path(sys.argv[1])).rage())
