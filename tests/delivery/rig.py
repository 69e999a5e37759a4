"""A chat application on loopback that answers as it is told, and a webhook that tells it what a store has."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from conftest import NOON, PATIENCE, FakeClock, PromptStore, settle
from pydantic import SecretStr

from asyncchatd.config.sections.consumers import ConsumerSettings
from asyncchatd.config.sources.files import SecretFile
from asyncchatd.delivery.webhook import Webhook
from asyncchatd.model.data import Ms, Reason, Registration, Settlement, TokenNews, Tokens, Verdict
from asyncchatd.model.delivery import Batch, Consumer
from asyncchatd.model.transcript import EventKind
from asyncchatd.wire import raw_event

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
INTERVAL_MS = 30 * 60_000


@dataclass(frozen=True, slots=True)
class Got:
    """A request as the chat application got it."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def number(self) -> str:
        return self.headers["webhook-id"]

    @property
    def chat_id(self) -> str:
        return str(orjson.loads(self.body)["chat_id"])

    @property
    def events(self) -> list[dict[str, object]]:
        events = orjson.loads(self.body)["events"]
        assert isinstance(events, list)
        return events

    @property
    def texts(self) -> list[str]:
        """What was said, and the kinds of what was not."""
        return [
            str(event["event"]["text"] if isinstance(event["event"], dict) else event["kind"])
            for event in self.events
        ]


@dataclass(frozen=True, slots=True)
class Says:
    """An answer; not before `when`."""

    status: int = 204
    headers: Mapping[str, str] | None = None
    body: bytes = b""
    when: asyncio.Event | None = None


class ChatApp:
    """The chat application. What it is not told to say it answers with 204."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.got: list[Got] = []
        self.script: deque[Says] = deque()
        self.always: dict[str, Says] = {}
        """By chat id."""
        self.most_at_once: Counter[str] = Counter()
        """By chat id, and of all under ""."""
        self._now: Counter[str] = Counter()
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.1)
        self._site: web.TCPSite | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/hook"

    async def setup(self) -> None:
        await self._runner.setup()
        await self.start()

    async def cleanup(self) -> None:
        await self._runner.cleanup()

    async def start(self) -> None:
        """Listen, again on the same port."""
        self._site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self._tls
        )
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Be not there: connections are closed, and new ones are refused."""
        assert self._site is not None
        await self._site.stop()
        assert self._runner.server is not None
        await self._runner.server.shutdown(0)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        got = Got(request.headers.copy(), await request.read())
        self.got.append(got)
        for name in ("", got.chat_id):
            self._now[name] += 1
            self.most_at_once[name] = max(self.most_at_once[name], self._now[name])
        try:
            says = self.always.get(got.chat_id) or (self.script.popleft() if self.script else Says())
            if says.when is not None:
                await says.when.wait()
            return web.Response(status=says.status, headers=says.headers, body=says.body)
        finally:
            for name in ("", got.chat_id):
                self._now[name] -= 1

    @property
    def answering(self) -> int:
        """Requests without an answer yet."""
        return self._now[""]

    def texts(self, chat_id: str = "chat-1") -> list[str]:
        """What it was told of a chat, tries included."""
        return [text for got in self.got if got.chat_id == chat_id for text in got.texts]


class NotedStore(PromptStore):
    """A store that counts the answers that were written down, and how often it was told the consumers."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = self.looks = self.enrols = self.enrolled = 0
        self.busy: list[Collection[int]] = []
        """The sessions that each look was to leave out, while there were any."""

    async def enrol(self, consumers: Sequence[Consumer], **how: Any) -> None:
        self.enrols += 1
        await super().enrol(consumers, **how)
        self.enrolled += 1

    async def batches(self, consumer: str, **how: Any) -> list[Batch]:
        self.looks += 1
        if how["busy"]:
            self.busy.append(how["busy"])
        return await super().batches(consumer, **how)

    async def delivered(self, batches: Sequence[Batch], *, now: Ms) -> None:
        await super().delivered(batches, now=now)
        self.noted += 1

    async def undelivered(
        self, batch: Batch, *, due_at: Ms, failing_since: Ms | None, parked: bool = False
    ) -> None:
        await super().undelivered(batch, due_at=due_at, failing_since=failing_since, parked=parked)
        self.noted += 1


def consumer_settings(url: str, *secrets: str, **more: object) -> ConsumerSettings:
    """A consumer with a webhook there."""
    values = tuple(SecretStr(each) for each in secrets or (SECRET,))
    return ConsumerSettings.model_validate(
        {"name": "app", "url": url, "secret_file": SecretFile(Path("secrets"), values), **more}
    )


class Rig:
    """The store, the chat application, and time, which passes when the test says so."""

    def __init__(self, store: NotedStore, app: ChatApp, clock: FakeClock) -> None:
        self.store = store
        self.app = app
        self.clock = clock
        self._indexes: Counter[str] = Counter()

    async def chats(self, *chat_ids: str) -> None:
        await self.store.register(
            [
                Registration(
                    Tokens(each, f"user-of-{each}", f"key-of-{each}", "117"),
                    "support",
                    f"device-of-{each}",
                    1,
                )
                for each in chat_ids
            ],
            now=self.clock.now(),
            spread_ms=1e12,
        )

    async def say(
        self,
        chat_id: str,
        *texts: str,
        verdict: Verdict = Verdict.ANSWERED,
        news: TokenNews | None = None,
    ) -> None:
        """A Refresh whose reply shows these messages of an agent."""
        now = self.clock.now()
        await self.store.make_due(chat_id, Reason.REQUEST, now=now)
        [claim] = await self.store.claim(now=now, limit=1, lease_ms=60_000)
        events = []
        for text in texts:
            self._indexes[chat_id] += 1
            event = raw_event(
                {"index": self._indexes[chat_id], "type": "Message", "utcTime": now, "text": text, "from": {}}
            )
            assert event is not None
            events.append(event)
        await self.store.settle(
            [
                Settlement(
                    claim,
                    verdict,
                    now + INTERVAL_MS,
                    sent_at=now,
                    settled_at=now,
                    news=news or TokenNews(),
                    next_position=self._indexes[chat_id] + 1,
                    events=tuple(events),
                )
            ]
        )

    @asynccontextmanager
    async def webhook(self, *secrets: str, url: str | None = None, **more: object) -> AsyncIterator[Webhook]:
        """Deliver, as long as the block lasts."""
        webhook = Webhook(self.store, consumer_settings(url or self.app.url, *secrets, **more), self.clock)
        task = asyncio.create_task(webhook.run())
        try:
            yield webhook
            assert not task.done(), "it delivers for ever"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, true: Callable[[], object]) -> None:
        """Wait for what sockets bring."""
        async with asyncio.timeout(PATIENCE):
            while not true():  # noqa: ASYNC110 - each turn of the loop looks at the sockets
                await asyncio.sleep(0)
        await settle()

    async def noted(self, count: int) -> None:
        """Wait until so many answers are written down."""
        await self.until(lambda: self.store.noted >= count)
        assert self.store.noted == count

    async def asked(self, count: int) -> None:
        """Wait until the chat application was asked so often."""
        await self.until(lambda: len(self.app.got) >= count)
        assert len(self.app.got) == count

    @property
    def at_rest(self) -> bool:
        """Every request was answered, and its answer is written down."""
        return self.store.noted == len(self.app.got)

    async def states(self) -> tuple[int, int]:
        """Chats with something undelivered, and batches that are parked."""
        [state] = await self.store.consumers()
        return state.chats, state.parked


EVERYTHING = Consumer("app", frozenset(EventKind), pushes=True)


def real_time() -> FakeClock:
    """A clock that stands still at the true time of day: who verifies a signature looks at it."""
    clock = FakeClock()
    clock.set_wall(time.time_ns() // 1_000_000 - NOON)
    return clock
