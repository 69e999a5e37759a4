"""What is taken down beside the nodes of a soak, to be judged by: each request that the plant got, each push that was
answered 200, and what triggers in the database saw of claims and of the journal.

Times are seconds of the machine's clock, which is the database's as well. The nodes' own clocks are never asked.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, NamedTuple

from asyncchatd.rehearsing.together.database import Server
from asyncchatd.rehearsing.together.node import Node
from asyncchatd.standin import Plant
from asyncchatd.standin.plant.parts import Ticket
from asyncchatd.standin.pushes import SentPush
from asyncchatd.stores.postgres import connect, place_of
from asyncchatd.wire import Operation

DIGEST_BYTES = 8
"""Of the body of a push, as the journal has it."""


class AnsweredPush(NamedTuple):
    """A push that was answered 200."""

    chat_id: str
    sent_at: float
    answered_at: float
    digest: str


class PlantWitness:
    """What the plant saw; use `watching`."""

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._ahead = time.time() - plant.now()
        self.requests: list[float] = []
        """The times of all Refreshes."""
        self.requests_of: defaultdict[str, list[float]] = defaultdict(list)
        """By chat."""
        self.restored: dict[str, float] = {}
        """Chats whose Chat Server was dead, and when the last request for one of them came that found it so."""
        self.pushes: list[AnsweredPush] = []
        self.pushed_at: defaultdict[str, list[float]] = defaultdict(list)
        """When a push of a chat was sent, whatever became of it."""
        self.unanswered = 0
        """Pushes that are on their way."""
        self.unasked: set[str] = set()
        """Chats of which no request came since the last push."""
        self._under_way: dict[SentPush, float] = {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[PlantWitness]:
        """It takes down meanwhile."""
        plant = self._plant
        send, arrival, done = plant.send_push, plant.on_arrival, plant.on_push_done

        def note_sent(push: SentPush) -> None:
            self._sent(push)
            send(push)

        plant.send_push, plant.on_arrival, plant.on_push_done = note_sent, self._arrived, self._done
        try:
            yield self
        finally:
            plant.send_push, plant.on_arrival, plant.on_push_done = send, arrival, done

    def first_after(self, chat_id: str, moment: float) -> float:
        """When the first request of a chat came that did not come before; infinite without one."""
        requests = self.requests_of[chat_id]
        place = bisect_left(requests, moment)
        return requests[place] if place < len(requests) else float("inf")

    def count(self, begin: float, end: float) -> int:
        """How many Refreshes came in this time, both ends included."""
        return bisect_right(self.requests, end) - bisect_left(self.requests, begin)

    def _now(self) -> float:
        return self._plant.now() + self._ahead

    def _arrived(self, ticket: Ticket) -> None:
        if ticket.session is None or ticket.received.operation is not Operation.REFRESH:
            return
        now = self._now()
        self.requests.append(now)
        self.requests_of[ticket.session.chat_id].append(now)
        self.unasked.discard(ticket.session.chat_id)
        if ticket.session.process.dead:
            self.restored[ticket.session.chat_id] = now

    def _sent(self, push: SentPush) -> None:
        self._under_way[push] = now = self._now()
        self.pushed_at[push.chat_id].append(now)
        self.unanswered += 1
        self.unasked.add(push.chat_id)

    def _done(self, push: SentPush, delivered: bool) -> None:
        sent_at = self._under_way.pop(push, None)
        self.unanswered -= sent_at is not None
        if delivered and sent_at is not None:
            digest = blake2b(push.body, digest_size=DIGEST_BYTES).hexdigest()
            self.pushes.append(AnsweredPush(push.chat_id, sent_at, self._now(), digest))


# -- the database ----------------------------------------------------------------------------------------

_NOW = "extract(epoch FROM clock_timestamp())::float8"

_BEGIN = f"""
CREATE SCHEMA judge;
CREATE TABLE judge.claim (session bigint, reason smallint, due_at float8, at float8);
CREATE TABLE judge.came (id bigint, digest text, at float8);
CREATE TABLE judge.went (id bigint, at float8);
CREATE FUNCTION judge.claimed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO judge.claim VALUES (NEW.session, NEW.reason, OLD.due_at / 1000, {_NOW});
    RETURN NULL;
END $$;
CREATE FUNCTION judge.journalled() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'INSERT' THEN INSERT INTO judge.came VALUES (NEW.id, NEW.digest, {_NOW});
    ELSE INSERT INTO judge.went VALUES (OLD.id, {_NOW});
    END IF;
    RETURN NULL;
END $$;
"""

_TRIGGERS = (
    "CREATE TRIGGER judge AFTER UPDATE OF claim ON work FOR EACH ROW"
    " WHEN (NEW.claim > 0 AND NEW.claim <> OLD.claim) EXECUTE FUNCTION judge.claimed()",
    "CREATE TRIGGER judge AFTER INSERT OR DELETE ON journal FOR EACH ROW EXECUTE FUNCTION judge.journalled()",
)
_END = (
    "DROP TRIGGER judge ON work",
    "DROP TRIGGER judge ON journal",
    "DROP SCHEMA judge CASCADE",
)
"""Each is a transaction: whoever had both tables locked would be in a deadlock with the nodes."""


class ClaimOf(NamedTuple):
    """A claim, as a trigger saw it made."""

    at: float
    due_at: float


class DatabaseWitness:
    """What triggers in the database saw."""

    def __init__(self, postgres: Server) -> None:
        self._address = place_of(postgres.url("asyncchatd")).address

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[DatabaseWitness]:
        """They take down meanwhile."""
        await self._script(_BEGIN, *_TRIGGERS)
        try:
            yield self
        finally:
            await self._script(*_END)

    async def held_by(self, node: Node) -> dict[str, float]:
        """The chats that a node holds now, and when it claimed or renewed each."""
        rows = await self._rows(
            "SELECT chat_id, claimed_at / 1000.0::float8 FROM work JOIN session ON session.id=work.session"
            f" WHERE work.claim>0 AND work.held_until>{_NOW}*1000"
            " AND work.node=(SELECT max(id) FROM node WHERE name=$1)",
            node.name,
        )
        return dict(rows)

    async def claims(self) -> dict[str, list[ClaimOf]]:
        """All that were made, by chat, in order."""
        rows = await self._rows(
            "SELECT chat_id, claim.at, claim.due_at FROM judge.claim JOIN session ON session.id=claim.session"
            " ORDER BY claim.at"
        )
        found = defaultdict(list)
        for chat_id, at, due_at in rows:
            found[chat_id].append(ClaimOf(at, due_at))
        return found

    async def journalled(self) -> Counter[str]:
        """How many pushes with each digest came into the journal."""
        return Counter(dict(await self._rows("SELECT digest, count(*) FROM judge.came GROUP BY digest")))

    async def absorbed_after(self, moment: float) -> tuple[int, float]:
        """How many pushes waited in the journal then, and the seconds until the last of them had taken effect."""
        [(count, last)] = await self._rows(
            "SELECT count(*), coalesce(max(coalesce(went.at, 'infinity')), $1)"
            " FROM judge.came LEFT JOIN judge.went USING (id)"
            " WHERE came.at<=$1 AND coalesce(went.at, 'infinity')>$1",
            moment,
        )
        return count, last - moment

    async def _script(self, *scripts: str) -> None:
        connection = await connect(self._address, for_copies=True)
        try:
            for each in scripts:
                await connection.script(each)
        finally:
            await connection.close()

    async def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        connection = await connect(self._address, for_copies=True)
        try:
            return [tuple(row) for row in await connection.rows(sql, *values)]
        finally:
            await connection.close()
