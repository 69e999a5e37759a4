"""The way of files to and from GMS.

A file goes over aiohttp's client: it streams, and of a file nobody needs to know what decides about a ping, whether
a byte of it went out. Nothing is sent a second time here either.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Mapping

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict

from asyncchatd.gms.client import Answer, GmsClient
from asyncchatd.gms.node import Node
from asyncchatd.gms.trouble import Trouble
from asyncchatd.model import Clock, Tokens
from asyncchatd.wire import Call, NodeTrouble, Outcome, chat_api

LARGEST_REPLY = 1024 * 1024
"""Bytes of a reply that is read: what answers an upload is short."""

TRANSFER_SECONDS = 600.0
"""The longest that one file may take."""


class Streams:
    """The transfers of files, over the nodes of a `GmsClient`. `close` ends it."""

    def __init__(self, gms: GmsClient, clock: Clock) -> None:
        self._gms = gms
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def upload(
        self,
        call: Call,
        content: AsyncIterable[bytes],
        length: int,
        tokens: Tokens,
        *,
        until: float = math.inf,
    ) -> Answer:
        """Send a call whose body, of `length` bytes, comes in pieces, and begins by `until`, as `GmsClient.call` has
        it. Never raises for what GMS does."""
        headers: dict[str, str] = {hdrs.CONTENT_TYPE: call.content_type, hdrs.CONTENT_LENGTH: str(length)}
        opened = await self.open(call, tokens, data=content, headers=headers, until=until)
        return opened if isinstance(opened, Answer) else await opened.answer()

    async def open(
        self,
        call: Call,
        tokens: Tokens,
        *,
        data: AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        until: float = math.inf,
    ) -> Opened | Answer:
        """Send a call, and have the head of what answers it; or what became of it when none came. `data`: its body,
        where it comes in pieces; `until` as for `upload`."""
        node = self._gms.fit_node()
        sent_at = self._clock.now()
        if node is None:
            return Answer(NodeTrouble(Trouble.NO_NODE), None, sent_at, 0.0)
        began = self._clock.monotonic()
        all_headers = CIMultiDict(self._gms.headers)
        as_form = {hdrs.CONTENT_TYPE: call.content_type, hdrs.CONTENT_LENGTH: str(len(call.body))}
        all_headers.update(headers or as_form)
        is_late = is_begun = False

        async def in_time() -> AsyncIterator[bytes]:
            # The head of the request names nobody; with its body it is the session's.
            nonlocal is_late, is_begun
            is_late = self._clock.monotonic() > until
            if is_late:
                raise TimeoutError
            is_begun = True
            if data is None:
                yield call.body
            else:
                async for piece in data:
                    yield piece

        try:
            response = await self._client().post(
                f"{node.base}/2/chat/{call.path}",
                data=in_time(),
                headers=all_headers,
                ssl=self._gms.tls(),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=TRANSFER_SECONDS,
                    sock_connect=self._gms.connect_timeout,
                    sock_read=self._gms.timeout,
                ),
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            took = self._clock.monotonic() - began
            if is_late:
                return Answer(NodeTrouble(Trouble.TOO_LATE), node.base, sent_at, took)
            cause = Trouble.TIMEOUT if isinstance(error, TimeoutError) else Trouble.DISCONNECTED
            outcome = NodeTrouble(cause if is_begun else Trouble.CONNECT, None, type(error).__name__)
            self._gms.judge(node, outcome, tokens)
            return Answer(outcome, node.base, sent_at, took, is_begun)
        return Opened(self, response, node, tokens, sent_at, self._clock.monotonic() - began)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def judged(self, node: Node, outcome: Outcome, tokens: Tokens) -> None:
        """Count an answer of a node."""
        self._gms.judge(node, outcome, tokens)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        return self._session


class Opened:
    """The answer of a node, of which the head has come."""

    def __init__(
        self,
        streams: Streams,
        response: aiohttp.ClientResponse,
        node: Node,
        tokens: Tokens,
        sent_at: int,
        took: float,
    ) -> None:
        self.response = response
        self.node = node.base
        self.sent_at = sent_at
        self.took = took
        self._streams = streams
        self._node = node
        self._tokens = tokens

    @property
    def is_file(self) -> bool:
        """Whether it is a file, and no reply."""
        named = hdrs.CONTENT_DISPOSITION in self.response.headers
        words = self.response.content_type in ("application/json", "text/html", "text/plain")
        return self.response.status == 200 and (named or not words)

    async def answer(self) -> Answer:
        """What it says as a reply. Never raises for what GMS does."""
        try:
            body = await self.response.content.read(LARGEST_REPLY)
            while len(body) < LARGEST_REPLY and (more := await self.response.content.read(LARGEST_REPLY)):
                body += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            lost = NodeTrouble(Trouble.DISCONNECTED, None, type(error).__name__)
            self._streams.judged(self._node, lost, self._tokens)
            return Answer(lost, self.node, self.sent_at, self.took, True)
        finally:
            self.response.release()
        outcome, _ = chat_api.weigh(
            self.response.status,
            body,
            chat_id=self._tokens.chat_id,
            secrets=(self._tokens.secure_key, self._tokens.user_id),
            retry_after=self.response.headers.get(hdrs.RETRY_AFTER),
        )
        self._streams.judged(self._node, outcome, self._tokens)
        unsure = isinstance(outcome, NodeTrouble) and self.response.status >= 500
        return Answer(outcome, self.node, self.sent_at, self.took, unsure, body=body)

    def close(self) -> None:
        """Nobody reads it any more."""
        self.response.close()
