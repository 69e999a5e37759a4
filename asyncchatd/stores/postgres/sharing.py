"""The calls of the contract by which those who share the database agree, and the life of one of them: a node.

A node says each second that it is there, and sees who else is. One whose presence, an advisory lock of its connection,
has ended and of which nobody heard for a while is dead: what it claimed is left to it no longer than a lease. Whoever
is merely silent may be stopped, and may have answers to its requests that nobody has read, perhaps with other keys:
what it claimed is left to it for `hold`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from typing import Any

import orjson
from msgspec.structs import astuple

from asyncchatd import __version__
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Claim, Clock, Ms, Node, Process, SystemClock, View, Views
from asyncchatd.stores.errors import StoreError, StoreMoved, StoreUnwritable
from asyncchatd.stores.held import HeldClaims
from asyncchatd.stores.postgres.address import Place
from asyncchatd.stores.postgres.clock import SharedClock
from asyncchatd.stores.postgres.floors import Floors
from asyncchatd.stores.postgres.opening import OpenDatabase
from asyncchatd.stores.postgres.shared import nodes, schema, settings
from asyncchatd.stores.postgres.shared.nodes import Beat, Seen
from asyncchatd.stores.postgres.transactions import work
from asyncchatd.stores.postgres.wire import Connection, Tx
from asyncchatd.stores.trouble import tell_failure

BEAT_SECONDS = 1.0

CALM_SECONDS = 3.0
"""So long nothing is claimed once another database server has taken over, for all to say first what they hold."""

MEASURE_EVERY = 3
"""The database's clock is measured with each such beat."""

SNAPSHOT_EVERY = 30
"""Old snapshots are looked for with each such beat."""

STRETCH = 1.018
"""As the pacer of one process has it: no second of anybody's clock may hold more than the rate."""

UNHEARD_SECONDS = 15.0
"""So long may a statement go on that nobody waits for: the server ends it after 10 s."""

FIRST_LEASE_MS: Ms = 15_000
"""Until a claim says otherwise."""

log = get_logger()


class SharingStore(OpenDatabase):
    """The part of the PostgreSQL store that shares it with other nodes."""

    _held: HeldClaims

    def __init__(self, place: Place, keys: Sequence[bytes], queue: int) -> None:
        super().__init__(place, keys, queue)
        self._versions: dict[tuple[int, str], int] = {}
        """Of the sessions of held claims, when they were claimed."""
        self._node = 0
        self._former_numbers: set[int] = set()
        """Under which it was known before it came back, until what it held stands under its own one."""
        self._lease_ms = FIRST_LEASE_MS
        self._present: Connection | None = None
        self._returns = False
        """What it holds stands under its number of before, or may be another's: nothing is claimed or sent."""
        self._unheard: dict[int, float] = {}
        """The numbers of claims that failed, and when: the database may have made them all the same, for nobody."""
        self._incarnation = ""
        self._run = ""
        """The run of the database server in which its newest connection is."""
        self._calm_until = float("-inf")
        self._shared = SharedClock(SystemClock())
        self._away = False
        """Its last beat failed."""
        self._alike: Mapping[str, str] = {}
        self._rate: float | None = None
        self._rate_of_others = math.inf
        self._guarded = False
        """The times that are passed in are those of the shared clock, which passes as time does."""
        self._floors = Floors()

    # -- the contract ----------------------------------------------------------------------------

    def clock(self, local: Clock) -> Clock:
        self._shared = self._shared.read_by(local)
        self._guarded = isinstance(local, SystemClock)
        return self._shared

    async def turns(self, count: int, *, rate: float) -> Sequence[float] | None:
        if self._returns:
            return ()
        self._rate = rate
        spacing = STRETCH / min(rate, self._rate_of_others)
        count = min(count, nodes.most_turns(spacing))
        away = self._shared.round_trip
        first = await self._looking(lambda tx: nodes.turns(tx, count, spacing, away=away))
        if first is None:
            return ()
        return [self._shared.at(first + place * spacing) for place in range(count)]

    async def confirm(self, claims: Sequence[Claim]) -> Set[tuple[int, str]]:
        return await self._looking(lambda tx: nodes.outdated(tx, claims, self._versions))

    async def duty(self, what: str, *, seconds: float) -> bool:
        return await self._looking(lambda tx: nodes.duty(tx, what, self._node, seconds))

    def declare(self, alike: Mapping[str, str]) -> None:
        self._alike = alike

    async def nodes(self) -> Sequence[Node] | None:
        return await self._reading(lambda tx: nodes.there(tx, self._node))

    async def views(self, own: Views) -> Sequence[Views] | None:
        said = orjson.dumps([own.gms, own.servers], default=astuple).decode()
        heard = await self._looking(lambda tx: nodes.views(tx, self._node, said))
        return [_views(peer, orjson.loads(text), silent) for peer, text, silent in heard]

    async def watch(self) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(super().watch())
            both.create_task(self._live())

    def _is_calm(self) -> bool:
        """Whether nothing may be claimed yet."""
        return self._returns or time.monotonic() < self._calm_until

    async def _connect(self, parameters: Mapping[str, str] | None = None) -> Connection:
        """A connection to another run of the database server may be the first to know of it. While a node was away
        all may have been copied elsewhere: then it writes nothing any more."""
        connection = await super()._connect(parameters)
        try:
            run = await nodes.run(connection)
            if self._node:
                await settings.refuse_moved(connection, self._place.shown)
                await settings.refuse_outgrown(connection, self._place.address.schema)
        except BaseException:
            connection.terminate()
            raise
        if self._trouble.moved is not None:  # until somebody unmoved it
            self._trouble.back()
        if self._run not in ("", run):
            self._be_calm()
        self._run = run
        return connection

    def _be_calm(self) -> None:
        """Claim nothing until all have said what they hold."""
        self._calm_until = time.monotonic() + CALM_SECONDS
        self._returns = self._present is not None

    # -- life ------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        await super()._begin()
        await self._arrive()
        if (why := await self._looking(lambda tx: settings.disagreement(tx, self._sealing))) is not None:
            raise StoreError(f"store.keys_file: {why}")  # another key came into force in this moment
        await self._measure()
        log.info(Event.NODE_JOINED, peer=self._place.node, number=self._node)

    async def close(self) -> None:
        if self._closed:
            return
        if self._present is not None and not self._present.is_closed:
            if self._under_way:  # a claim that nobody waits for any more
                await asyncio.wait(self._under_way)
            with suppress(StoreError):
                if self._unheard:
                    await work.free(self._present, await work.made(self._present, list(self._unheard)))
                if len(self._held):
                    await self._present.transaction(self._cut_off)
                await nodes.leave(self._present, self._node)
            await self._present.close()
        self._present = None
        await super().close()

    async def _cut_off(self, tx: Tx) -> None:
        """What it claimed and could not settle is left to it no longer than if it had died."""
        await nodes.reap(tx, self._node, self._lease_ms, [claim.row for claim in self._held.claims()])

    async def _live(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            beats += 1
            try:
                if self._present is None or self._present.is_closed:
                    await self._come_back()
                elif self._returns:
                    await self._hold_again()
                await self._beat()
                if self._unheard:
                    await self._free_unheard()
                if self._away or beats % MEASURE_EVERY == 0:
                    await self._measure()
                if self._away or beats % SNAPSHOT_EVERY == 0:
                    await self._look_for_snapshots()
                self._away = False
            except StoreError as error:
                for measured in (
                    metrics.DATABASE_ROUND_TRIP,
                    metrics.DATABASE_CLOCK,
                    metrics.DATABASE_SNAPSHOT,
                ):
                    measured.set(math.nan)
                if isinstance(error, StoreUnwritable):
                    self._trouble.heard(error)
                elif not self._away:
                    tell_failure(error)
                self._away = True

    async def _beat(self) -> None:
        assert self._present is not None
        seen = await self._say()
        if seen is None:  # the others took it for dead
            await self._come_back()
            return
        await self._refuse_outgrown(self._present)
        self._incarnation = self._incarnation or seen.incarnation
        await self._follow_keys()
        others = [other for other in seen.nodes if other.id != self._node]
        silent = [other for other in others if seen.now - other.seen_at > nodes.SILENT_SECONDS]
        for other in silent:
            if other.departed:
                await self._reap(other, seen.now)
        if silent:  # it may stand still in the middle of something
            await nodes.end_stuck(self._present)

    async def _refuse_outgrown(self, present: Connection) -> None:
        """Stop work once a newer asyncchatd has taken away what this one needs: each connection is refused then, and
        what it claimed is left to it no longer than if it had died."""
        try:
            await settings.refuse_outgrown(present, self._place.address.schema)
        except StoreMoved:
            await present.close()
            await self._reconnect()
            raise

    async def _say(self) -> Beat | None:
        """Say that this node is there, and see who else is. The smallest rate of all that are heard of is kept."""
        assert self._present is not None
        said = orjson.dumps(dict(self._alike)).decode()
        seen = await nodes.beat(self._present, self._node, self._lease_ms, rate=self._rate, settings=said)
        if seen is not None:
            self._rate_of_others = min(
                (
                    other.rate
                    for other in seen.nodes
                    if other.id != self._node
                    and other.rate is not None
                    and seen.now - other.seen_at <= nodes.SILENT_SECONDS
                ),
                default=math.inf,
            )
        return seen

    async def _reap(self, other: Seen, now: float) -> None:
        # Among all sessions, and so apart from what is in a hurry: a call may have claimed one that is not due.
        held = [session for session, _ in await self._reading(lambda tx: nodes.held_by(tx, other.id))]
        self._floors.hurry(self._shared.now() + 2 * other.lease_ms)
        sessions = await self._writing(lambda tx: nodes.reap(tx, other.id, other.lease_ms, held))
        if sessions is not None:
            log.warning(
                Event.NODE_GONE,
                peer=other.name,
                number=other.id,
                sessions=sessions,
                silent_ms=round((now - other.seen_at) * 1000),
            )

    async def _arrive(self) -> None:
        if self._present is not None:
            self._present.terminate()
        self._present = await self._connect()
        self._node = await nodes.arrive(
            *(self._present, self._place.node, __version__, self._lease_ms),
            [key or "" for key in self._sealing.own],
            len(schema.MIGRATIONS),
            present=self._place.presence,
        )
        try:
            await self._follow_keys()
            seen = await self._say()
            if seen is None:
                raise StoreUnwritable("the node has not become known")
            # Whoever copies the store waits for nodes that are known, and lets none become known meanwhile.
            await settings.refuse_moved(self._present, self._place.shown)
        except StoreError:  # it has not arrived: the next beat is no beat of one that is there
            with suppress(StoreError):
                await nodes.leave(self._present, self._node)
            await self._present.close()
            await self._reconnect()
            raise
        if self._incarnation not in ("", seen.incarnation):
            self._be_calm()
        self._incarnation = seen.incarnation

    async def _follow_keys(self) -> None:
        """Write under the key that is in force."""
        assert self._present is not None
        self._sealing.follow(*await settings.keys(self._present))

    async def _come_back(self) -> None:
        """The presence of before is gone, and with it the number that stood for it: what is held is held under another
        one, before anything is claimed or sent."""
        self._returns = True
        self._former_numbers.add(self._node)
        await self._arrive()
        await self._hold_again()

    async def _hold_again(self) -> None:
        held = self._held.claims()
        until = self._shared.now() + self._hold_ms(self._lease_ms)
        kept = await self._writing(lambda tx: nodes.hold_again(tx, self._node, held, until))
        if former := self._former_numbers - {self._node}:
            # What is under a number of before, and not held, was settled: a database that crashed has forgotten it.
            found = await self._reading(lambda tx: nodes.held_by(tx, *former))
            # Held now: a claim that was being made may have ended since.
            held_now = {(claim.row, claim.claim_id) for claim in self._held.claims()}
            left = [each for each in found if each not in held_now]
            if left and not self._held.is_claiming:
                await self._writing(lambda tx: work.free(tx, left))
                self._floors.forget()
            await self._writing(lambda tx: nodes.forget_numbers(tx, self._node, former))
        self._former_numbers.clear()
        self._returns = False
        log.warning(
            Event.NODE_RETURNED,
            peer=self._place.node,
            number=self._node,
            sessions=kept,
            lost=len(held) - kept,
        )

    @contextmanager
    def _heard_of(self, claim_id: int) -> Iterator[None]:
        """Around a claim that is made."""
        try:
            yield
        except BaseException:  # whoever waited for it may have been told to end
            self._unheard[claim_id] = time.monotonic()
            raise

    async def _free_unheard(self) -> None:
        """Claims of which the answer was lost, as when the database died just then, are nobody's; else what they are of
        would wait for as long as one waits for a node that is stopped."""
        failed = dict(self._unheard)
        found = await self._reading(lambda tx: work.made(tx, list(failed)))
        if found:
            await self._writing(lambda tx: work.free(tx, found))
            self._floors.forget()
        done = {claim_id for _, claim_id in found}
        for claim_id, since in failed.items():
            if claim_id in done or time.monotonic() - since > UNHEARD_SECONDS:
                del self._unheard[claim_id]

    def _hold_ms(self, lease_ms: Ms) -> Ms:
        """So long is a session left to whoever claims it."""
        return max(lease_ms, self._place.hold_ms)

    async def _measure(self) -> None:
        present = self._present
        assert present is not None
        await self._shared.measure(lambda: nodes.clock(present))
        metrics.DATABASE_ROUND_TRIP.set(self._shared.round_trip)
        metrics.DATABASE_CLOCK.set(self._shared.ahead_of_host)

    async def _look_for_snapshots(self) -> None:
        """A user that may not look at the server's activity can do all else: what fails here alone is no trouble."""
        seconds = math.nan
        with suppress(StoreError):
            oldest = await self._to_its_end(self._readers[0].use(nodes.oldest_snapshot))
            seconds = 0.0 if oldest is None else oldest.seconds
        metrics.DATABASE_SNAPSHOT.set(seconds)


def _views(peer: str, said: list[Any], silent: bool) -> Views:
    # A newer asyncchatd may say more, behind what is known here.
    gms, servers, *_ = said
    return Views(peer, {name: _view(*view) for name, view in servers.items()}, gms, silent)


def _view(
    looked_at: Ms,
    failures: int,
    lost: bool,
    read: list[Any] | None = None,
    by_turns: bool = False,
    *_: object,
) -> View:
    known = len(Process.__struct_fields__)
    return View(looked_at, failures, lost, None if read is None else Process(*read[:known]), by_turns)
