"""Those who are told what happens in chats: a chat application with a webhook, and a reader that fetches. Both go
wrong in every way they can, and each keeps account of what it was told."""

from __future__ import annotations

import asyncio
import base64
import random
import secrets
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from asyncchatd.model import Ms
from asyncchatd.standin.plant.parts import ChatSession

from .account import Account, Event

APP, READER = "chat-app", "reader"

TIMEOUT_SECONDS = 1.0
"""Of the webhook, as the daemon is told."""

SECTION = """
[[consumer]]
name = "{app}"
url = "http://127.0.0.1:{port}/events"
secret_file = "{secret}"
kinds = ["chat", "ended", "gap", "lost", "restored"]
timeout = "{timeout}s"
{more}
[[consumer]]
name = "{reader}"
kinds = ["chat", "ended", "gap"]
"""


class Mood(StrEnum):
    """How the chat application fares."""

    WELL = "well"
    KILLED = "killed"
    HANGS = "hangs"
    FAILS = "answers 500"
    SLOW = "slow"
    REFUSES = "answers 400 to some"
    FORGETS = "takes events and hangs up"


TROUBLES = tuple(mood for mood in Mood if mood is not Mood.WELL)


class ChatApp:
    """A chat application with a webhook. Its root task is `go_on`; `start` first, and `stop` at the end."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.account = Account(APP)
        self.quiet = True
        """Nothing goes wrong with it any more."""
        self.ill_clock = False
        """The daemon's clock is off, and so are its timestamps."""
        self.refused: set[str] = set()
        """Chats whose batches are always answered 400."""
        self.mood = Mood.WELL
        self.well_since = time.monotonic()
        self.moods: Counter[str] = Counter()
        self._chance = chance
        self._port = 0
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        self._verifier = Webhook(secret)
        self._secret_file = directory / "webhook-secret"
        self._secret_file.touch(mode=0o600)
        self._secret_file.write_text(f"{secret}\n")
        self._runner: web.ServerRunner | None = None
        self._bytes: dict[str, bytes] = {}
        """A digest of the bytes of each batch, by its id."""
        self._latest: dict[str, str] = {}
        """The batch each chat was told last."""
        self._under_way: dict[str, web.BaseRequest] = {}

    def section(self, *more: str) -> str:
        """The tables of both consumers in the daemon's configuration, once it has started; `more` lines of its own."""
        return SECTION.format(
            app=APP,
            reader=READER,
            port=self._port,
            secret=self._secret_file,
            timeout=TIMEOUT_SECONDS,
            more="\n".join(more),
        )

    async def start(self) -> None:
        """Listen."""
        if self._runner is None:
            runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.01)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self._port, reuse_address=True).start()
            self._port = runner.addresses[0][1]  # the first time the system chooses one
            self._runner = runner

    async def stop(self) -> None:
        """Break all connections off, wherever they are, and listen no more."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def go_on(self, well: tuple[float, float], ill: tuple[float, float]) -> None:
        """Until cancelled: fare well for so many seconds, then ill for so many."""
        while True:
            await self._be(Mood.WELL)
            await asyncio.sleep(self._chance.uniform(*well))
            if not self.quiet:
                await self._be(self._chance.choice(TROUBLES))
                await asyncio.sleep(self._chance.uniform(*ill))

    async def _be(self, mood: Mood) -> None:
        if mood is Mood.WELL and self.mood is not Mood.WELL:
            self.well_since = time.monotonic()
        self.mood = mood
        self.moods[mood] += 1
        await (self.stop() if mood is Mood.KILLED else self.start())

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await request.read()
        except (ConnectionError, web.RequestPayloadError):
            return web.Response(status=400)  # nobody hears it
        number = request.headers.get("webhook-id", "")
        if not self._signed(body, request.headers):
            self.account.wrong.append(f"{APP}: {number} is not signed")
            return web.Response(status=401)
        batch = orjson.loads(body)
        self._look(request, batch["chat_id"], number, body)
        try:
            return await self._respond(request, batch)
        finally:
            if self._under_way.get(batch["chat_id"]) is request:
                del self._under_way[batch["chat_id"]]

    async def _respond(self, request: web.BaseRequest, batch: dict[str, Any]) -> web.StreamResponse:
        mood, chance = self.mood, self._chance
        if batch["chat_id"] in self.refused or (mood is Mood.REFUSES and chance.random() < 0.3):
            return web.Response(status=400)
        if mood is Mood.FAILS:
            return web.Response(status=chance.choice((500, 503, 429)))
        if mood is Mood.HANGS:
            await asyncio.sleep(2 * TIMEOUT_SECONDS)
            return web.Response(status=500)
        if mood is Mood.SLOW:
            await asyncio.sleep(chance.uniform(0.05, 1.5 * TIMEOUT_SECONDS))
        self.account.take(batch["events"])
        if mood is Mood.FORGETS and chance.random() < 0.3:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=204)

    def _look(self, request: web.BaseRequest, chat_id: str, number: str, body: bytes) -> None:
        """Each try of a batch has the same bytes, and one batch of a chat is on its way: the one behind the last."""
        digest = blake2b(body, digest_size=8).digest()
        is_known = number in self._bytes
        if self._bytes.setdefault(number, digest) != digest:
            self.account.wrong.append(f"{APP}: {number} has other bytes than before")
        other = self._under_way.get(chat_id)
        if other is not None and other.transport is not None and not other.transport.is_closing():
            self.account.counts["beside another of its chat"] += 1
        self._under_way[chat_id] = request
        latest = self._latest.get(chat_id)
        if is_known and number != latest:
            self.account.wrong.append(f"{APP}: {number} comes again behind {latest}")
        self.account.counts["tried again"] += is_known
        self._latest[chat_id] = number

    def _signed(self, body: bytes, headers: Mapping[str, str]) -> bool:
        """By the public package's word."""
        try:
            self._verifier.verify(body, dict(headers), json_parse=False)
        except WebhookVerificationError:
            return self.ill_clock and self._signed_at_another_time(body, headers)
        return True

    def _signed_at_another_time(self, body: bytes, headers: Mapping[str, str]) -> bool:
        at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), tz=UTC)
        expected = self._verifier.sign(headers["webhook-id"], at, body.decode())
        return expected in headers["webhook-signature"].split()


class Reader:
    """A program that fetches, by polls and by streams, and dies with a portion in its hands. Its root task is
    `go_on`."""

    def __init__(self, socket: str, chance: random.Random) -> None:
        self.account = Account(READER)
        self.quiet = True
        self._socket = socket
        self._chance = chance
        self._cursor: str | None = None
        """What it has written down: everything up to here is its own."""

    async def go_on(self) -> None:
        """Until cancelled."""
        timeout = aiohttp.ClientTimeout(total=20)
        while True:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                connector = aiohttp.UnixConnector(self._socket)
                async with aiohttp.ClientSession(
                    "http://daemon", connector=connector, timeout=timeout
                ) as http:
                    await self._live(http)
            await asyncio.sleep(0.1)

    async def _live(self, http: aiohttp.ClientSession) -> None:
        """Until it dies."""
        while True:
            await (self._stream(http) if self._strikes(0.2) else self._poll(http))
            if self._strikes(0.05):
                self.account.counts["deaths"] += 1
                return
            if self._strikes(0.03):
                await asyncio.sleep(self._chance.uniform(0.5, 3.0))

    async def _poll(self, http: aiohttp.ClientSession) -> None:
        query = {"consumer": READER, "wait": "2s", "limit": "500"}
        if self._cursor is not None:
            query["after"] = self._cursor
        async with http.get("/v1/events", params=query) as response:
            answer = orjson.loads(await response.read())
            if response.status == 200:
                self.account.take(answer["events"])
                if not self._strikes(0.1):  # else it dies before it has written that down
                    self._cursor = answer["cursor"]
            else:
                await self._refused(response.status, answer)

    async def _refused(self, status: int, answer: dict[str, Any]) -> None:
        if status == 410:
            self.account.counts["other histories"] += 1
            self._cursor = None
        elif status != 503:
            self.account.wrong.append(f"{READER}: HTTP {status}: {answer}")
            self._cursor = None
        await asyncio.sleep(0.2)

    async def _stream(self, http: aiohttp.ClientSession) -> None:
        headers = {"Accept": "text/event-stream"}
        if self._cursor is not None:
            headers["Last-Event-ID"] = self._cursor
        until = time.monotonic() + self._chance.uniform(0.2, 3.0)
        async with http.get("/v1/events", params={"consumer": READER}, headers=headers) as response:
            if response.status != 200:
                await self._refused(response.status, orjson.loads(await response.read()))
                return
            with suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(until - time.monotonic()):
                        line = await response.content.readline()
                    if not line:
                        return
                    if line.startswith(b"data: "):
                        self._take(orjson.loads(line[6:]))

    def _take(self, event: Event) -> None:
        if event["chat_id"] is not None:  # else the gap before another history
            self.account.take([event])
        self._cursor = event["id"]

    def _strikes(self, share: float) -> bool:
        return not self.quiet and self._chance.random() < share


class Consumers:
    """Both, and what of the plant's transcripts they were not told."""

    def __init__(self, directory: Path, socket: str, chance: random.Random) -> None:
        self.app = ChatApp(directory, chance)
        self.reader = Reader(socket, chance)
        self.accounts = (self.app.account, self.reader.account)
        self._over: set[str] = set()
        """Chats that ended and were judged."""

    def lives(
        self, *, well: tuple[float, float] = (0.5, 4.0), ill: tuple[float, float] = (0.5, 4.0)
    ) -> list[Coroutine[Any, Any, None]]:
        """Their root tasks. The chat application fares well for so many seconds, then ill for so many."""
        return [self.app.go_on(well, ill), self.reader.go_on()]

    def be_quiet(self, quiet: bool) -> None:
        """Whether nothing goes wrong with them any more."""
        self.app.quiet = self.reader.quiet = quiet

    def untold(self, sessions: Iterable[ChatSession], begins: Mapping[str, int | None]) -> int:
        """How many events of live chats somebody was not told. `begins` has the position with which each was
        registered; those that are not among them need not be told."""
        return sum(
            account.untold(session, begins[session.chat_id])
            for session in sessions
            if session.ended is None and session.chat_id in begins
            for account in self.accounts
        )

    def oldest(self, sessions: Iterable[ChatSession], begins: Mapping[str, int | None]) -> Ms | None:
        """When the oldest event was written that the chat application was not told."""
        account = self.app.account
        return min(
            (
                at
                for session in sessions
                if session.chat_id in begins
                and (at := account.oldest(session, begins[session.chat_id])) is not None
            ),
            default=None,
        )

    def last_words(self, sessions: Iterable[ChatSession], begins: Mapping[str, int | None]) -> int:
        """How many chats that ended since the last time had something that somebody was not told. Of those that the
        plant lost nobody can be told all."""
        missing = 0
        for session in sessions:
            chat_id = session.chat_id
            if session.ended is None or session.last_words or chat_id in self._over:
                continue
            self._over.add(chat_id)
            untold = [
                account.untold(session, begins[chat_id]) for account in self.accounts if chat_id in begins
            ]
            missing += session.ended == "closed_by_agent" and any(untold)
        return missing

    def forgotten(self, sessions: Iterable[ChatSession], begins: Mapping[str, int | None]) -> None:
        """The daemon has lost its store: what was not told by then is not told any more."""
        for session in sessions:
            for account in self.accounts:
                account.untold(session, begins.get(session.chat_id))
                account.excuse(session)
            if session.ended is not None:
                self._over.add(session.chat_id)

    def counts(self) -> dict[str, float]:
        """What happened since the last time, for the figures."""
        counts = {
            f"{account.name}: {name}": float(count)
            for account in self.accounts
            for name, count in sorted(account.counts.items())
        }
        for account in self.accounts:
            account.counts.clear()
            account.lags.clear()
        return counts

    def wrong(self) -> list[str]:
        """What should not have happened since the last time."""
        found = [text for account in self.accounts for text in account.wrong]
        for account in self.accounts:
            account.wrong.clear()
        return found
