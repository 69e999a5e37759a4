"""The client of the GMS nodes: one ping Refresh in, one outcome out.

Any node serves any session, so a ping goes to the next node when one fails. A node that failed
rests, longer each time, and is then tried with a single ping before it takes its share again. When
all rest, `slots` says so and the worker waits.

What happens to a request decides whether another node may be asked at once. Where the request was
not taken (no connection, 5xx, nonsense) it may. Where it may still be on its way (a time-out) it
must not: its answer may carry a new secure key, and a second request with the old one would throw
the customer out. Such a ping is repeated later.
"""

from __future__ import annotations

import random
import ssl
from dataclasses import dataclass

import aiohttp
from aiohttp import ClientTimeout
from yarl import URL

from asyncchatd.clock import Clock
from asyncchatd.config import GmsSettings
from asyncchatd.log import Event, get_logger
from asyncchatd.model import Ms, Tokens
from asyncchatd.pacing import Pacer
from asyncchatd.wire import chat_api
from asyncchatd.wire.chat_api import Call, Cause, ChatApiError, NodeTrouble, Outcome, Refused, RetryLater

MAX_REPLY = 4 * 1024 * 1024
"""Bytes of a reply that are read. A transcript of several thousand messages is smaller."""

STRIKES = 3
"""A single time-out or HTTP 500 may be about the session or its Chat Server; that many in a row,
with no good answer between, are the node. A node that cannot be reached rests at once."""

KEEPALIVE_SECONDS = 30.0
"""How long an idle connection to a node is kept."""

CONNECT = "connect"
DISCONNECTED = "disconnected"
TIMEOUT = "timeout"
TLS = "tls"
REPLY_TOO_LARGE = "reply_too_large"
PROTOCOL = "http_protocol"
NO_NODE = "no_node"

_STAY = frozenset((TIMEOUT, Cause.REQUEST_TIMEOUT, Cause.GATEWAY_TIMEOUT, Cause.FOREIGN_REPLY))
"""Troubles after which the request may still be worked on, or was: no other node is asked at once."""

_UNREACHABLE = frozenset((CONNECT, DISCONNECTED, TLS))
"""Troubles that are the node's alone."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a ping came to."""

    outcome: Outcome
    node: str | None
    """Base URL of the node that was asked last; none when all were resting."""
    sent_at: Ms
    """When the request that brought the outcome was sent."""
    took: float
    """Seconds from sending to the outcome."""


@dataclass(slots=True, eq=False)
class Node:
    """One GMS node and how it fares."""

    base: str
    failures: int = 0
    """In a row; 0 is a node in good standing."""
    strikes: int = 0
    rests_until: float = 0.0
    trying: bool = False
    """A single ping is finding out whether it is back."""
    cause: str | None = None

    def usable(self, now: float) -> bool:
        return self.failures == 0 or (now >= self.rests_until and not self.trying)


class GmsClient:
    """Use as `async with`; `refresh` may be called many times at once."""

    def __init__(self, settings: GmsSettings, pacer: Pacer, clock: Clock) -> None:
        self._settings = settings
        self._pacer = pacer
        self._clock = clock
        self._turn = 0
        self._unavailable_since: float | None = None
        self.nodes = tuple(Node(base) for base in settings.nodes)

    async def __aenter__(self) -> GmsClient:
        tls = self._settings.tls()
        self._session = self._connect(tls, force_close=False)
        # A stale keep-alive connection is noticed only when a request fails on it, and after a
        # node's restart all of them are stale. The second try must not take another one.
        self._fresh = self._connect(tls, force_close=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._fresh.close()

    def slots(self) -> int | None:
        """How many pings may be on their way now: `None` for any number; while all nodes rest, one
        for each whose rest is over. 0 means wait, `retry_in` how long."""
        if any(node.failures == 0 for node in self.nodes):
            return None
        now = self._clock.monotonic()
        return sum(now >= node.rests_until for node in self.nodes)

    def retry_in(self) -> float:
        """Seconds until the next resting node may be tried; those being tried do not count."""
        resting = [node.rests_until for node in self.nodes if not node.trying]
        return max(0.0, min(resting, default=float("inf")) - self._clock.monotonic())

    async def refresh(self, service: str, tokens: Tokens, position: int | None) -> Answer:
        """One ping Refresh. The caller has waited for its turn at the pacer; further tries wait here.

        `position` is the session's `nextPosition`: what a Refresh with another one does is unknown
        (protocol section 2). Never raises for what GMS does.
        """
        try:
            call = chat_api.refresh(service, tokens, position)
        except ChatApiError as error:
            # Ids that no request can carry; they came with a registration or a push.
            return Answer(Refused(error.code, str(error)), None, self._clock.now(), 0.0)
        tried: set[Node] = set()
        answer = Answer(NodeTrouble(NO_NODE), None, self._clock.now(), 0.0)
        while (node := self._choose(tried)) is not None:
            if tried:
                await self._pacer.turn()
            tried.add(node)
            answer = await self._ask(node, call, tokens.chat_id)
            if not isinstance(answer.outcome, NodeTrouble) or answer.outcome.cause in _STAY:
                break
        return answer

    def _choose(self, tried: set[Node]) -> Node | None:
        """The next node in turn that is fit; one that must prove itself only when its rest is over."""
        now = self._clock.monotonic()
        for offset in range(len(self.nodes)):
            node = self.nodes[(self._turn + offset) % len(self.nodes)]
            if node not in tried and node.usable(now):
                self._turn = (self._turn + offset + 1) % len(self.nodes)
                return node
        return None

    async def _ask(self, node: Node, call: Call, chat_id: str) -> Answer:
        trial = node.failures > 0
        node.trying = trial
        try:
            answer = await self._send(self._session, node, call, chat_id)
            if isinstance(answer.outcome, NodeTrouble) and answer.outcome.cause == DISCONNECTED:
                await self._pacer.turn()
                answer = await self._send(self._fresh, node, call, chat_id)
        finally:
            if trial:
                node.trying = False
        self._judge(node, answer.outcome)
        return answer

    async def _send(self, session: aiohttp.ClientSession, node: Node, call: Call, chat_id: str) -> Answer:
        sent_at, started = self._clock.now(), self._clock.monotonic()
        outcome: Outcome
        try:
            async with session.post(
                URL(f"{node.base}/2/chat/{call.path}", encoded=True),
                data=call.body,
                headers={"Content-Type": call.content_type},
                allow_redirects=False,
            ) as response:
                body = await _read(response)
                outcome = (
                    NodeTrouble(REPLY_TOO_LARGE, None, f"HTTP {response.status}, more than {MAX_REPLY} bytes")
                    if body is None
                    else chat_api.classify(
                        response.status,
                        body,
                        chat_id=chat_id,
                        retry_after=response.headers.get("Retry-After"),
                    )
                )
        except (TimeoutError, aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            outcome = _trouble(error)
        return Answer(outcome, node.base, sent_at, self._clock.monotonic() - started)

    def _judge(self, node: Node, outcome: Outcome) -> None:
        """A node that answered for a session is well, whatever it answered."""
        if (
            isinstance(outcome, RetryLater)
            and outcome.cause == Cause.TOO_MANY_REQUESTS
            and outcome.retry_after
        ):
            self._rest(node, outcome)
            return
        if not isinstance(outcome, NodeTrouble):
            self._well(node)
            return
        node.strikes += 1
        told_to_wait = outcome.retry_after is not None
        if outcome.cause in _UNREACHABLE or told_to_wait or node.failures or node.strikes >= STRIKES:
            self._rest(node, outcome)

    def _well(self, node: Node) -> None:
        node.strikes = 0
        if node.failures == 0:
            return
        node.failures, node.cause = 0, None
        log.info(Event.GMS_NODE_BACK, node=node.base)
        if self._unavailable_since is not None:
            outage = self._clock.monotonic() - self._unavailable_since
            self._unavailable_since = None
            log.info(Event.GMS_AVAILABLE, node=node.base, outage_ms=round(outage * 1000))

    def _rest(self, node: Node, trouble: NodeTrouble | RetryLater) -> None:
        now = self._clock.monotonic()
        if node.failures and now < node.rests_until:
            return  # a request sent before the node was sent to rest
        node.failures += 1
        node.strikes = 0
        node.cause = trouble.cause
        longest = self._settings.rest_max.total_seconds()
        rest = min(longest, self._settings.rest.total_seconds() * 2 ** min(node.failures - 1, 16))
        rest *= random.uniform(0.8, 1.0)
        if trouble.retry_after is not None:
            rest = max(rest, min(trouble.retry_after, longest))
        node.rests_until = now + rest
        log.warning(
            Event.GMS_NODE_RESTING,
            node=node.base,
            cause=trouble.cause,
            detail=trouble.detail,
            rest_ms=round(rest * 1000),
        )
        if self._unavailable_since is None and all(each.failures for each in self.nodes):
            self._unavailable_since = now
            log.error(Event.GMS_UNAVAILABLE, cause=trouble.cause)

    @property
    def available(self) -> bool:
        """Whether any node is in good standing."""
        return self._unavailable_since is None

    def _connect(self, tls: ssl.SSLContext, *, force_close: bool) -> aiohttp.ClientSession:
        settings = self._settings
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # the worker's in-flight limit is the bound
                ssl=tls,
                force_close=force_close,
                keepalive_timeout=None if force_close else KEEPALIVE_SECONDS,
                ttl_dns_cache=60,
            ),
            headers={"Accept": "application/json", "User-Agent": "asyncchatd", **settings.request_headers()},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=ClientTimeout(
                total=settings.timeout.total_seconds() + settings.connect_timeout.total_seconds(),
                sock_connect=settings.connect_timeout.total_seconds(),
                sock_read=settings.timeout.total_seconds(),
            ),
        )


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """The body, or `None` when it is larger than any reply should be."""
    if response.content_length is not None:
        return await response.read() if response.content_length <= MAX_REPLY else None
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_REPLY:
            return None
    return bytes(body)


def _trouble(error: Exception) -> NodeTrouble:
    """In the order of the class tree: the more exact class first."""
    detail = type(error).__name__
    match error:
        case aiohttp.ConnectionTimeoutError() | aiohttp.ClientConnectorDNSError():
            return NodeTrouble(CONNECT, None, detail)
        case TimeoutError():
            return NodeTrouble(TIMEOUT, None, detail)
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return NodeTrouble(TLS, None, detail)
        case aiohttp.ClientConnectorError():
            return NodeTrouble(CONNECT, None, f"{detail} {error.os_error.strerror or ''}".strip())
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            return NodeTrouble(DISCONNECTED, None, detail)
        case _:
            return NodeTrouble(PROTOCOL, None, detail)
