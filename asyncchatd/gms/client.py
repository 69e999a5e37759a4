"""The client of the GMS nodes: one request in, one outcome out.

Any node serves any session, so a ping goes to the next node when one fails. A node that failed
rests, longer each time, and is then tried with a single ping before it takes its share again. When
all rest, `slots` says so and the worker waits.

A request that may have been taken is sent again at once neither to the same node nor to another: its
answer may carry a new secure key, and a second request with the old one would throw the customer out.
Such a ping is due again later. A chat client's call is not sent a second time at all then: a doubled message is worse
than an error. Another node is asked at once where nothing was sent, or where the answer
says that nobody took it; and the same one where it had closed a kept connection before the request can
have got there.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from collections.abc import Mapping
from functools import partial

from multidict import CIMultiDict
from yarl import URL

from asyncchatd.config import GmsSettings, Settings
from asyncchatd.gms.connections import KEPT_SECONDS, Connections
from asyncchatd.gms.node import MAYBE_THE_CHAT_SERVERS, STRIKES, UNREACHABLE, Node, measure
from asyncchatd.gms.pacing import Pacer
from asyncchatd.gms.reading import NOBODY, NOT_TAKEN, PERHAPS_TAKEN, STALE, Came, Fate, read_answer
from asyncchatd.gms.trouble import ExchangeError, Trouble
from asyncchatd.log import Event, get_logger
from asyncchatd.model import Clock, Hidden, Ms, Tokens, Value
from asyncchatd.names import Names
from asyncchatd.wire import (
    Alive,
    Call,
    ChatApiError,
    Ended,
    NodeTrouble,
    Outcome,
    PingFault,
    Refused,
    RetryLater,
    chat_api,
)

LATELY_SECONDS = 1.0
"""A call goes over a connection that was used within this time, or over a new one: what a node has closed meanwhile
must not make a customer's message a thing that nobody can know."""

_LOST = frozenset(
    (Trouble.DISCONNECTED, PingFault.BAD_GATEWAY, PingFault.GATEWAY_TIMEOUT, PingFault.REQUEST_TIMEOUT)
)
"""Causes that say that nobody waits for the answer any longer, and not that the work on it has ended."""

log = get_logger()


class Answer(Value, frozen=True):
    """What a ping came to."""

    outcome: Outcome
    node: str | None
    """Base URL of the node that was asked last; none when all were resting."""
    sent_at: Ms
    """When the request that brought the outcome was sent."""
    took: float
    """Seconds from sending to the outcome."""
    perhaps_taken: bool = False
    """No answer told what became of it."""
    at_work: float = 0.0
    """Seconds for which GMS may be at work on it still: what is left of `gms.timeout` where the answer was lost, as
    behind a proxy that waits less long."""
    body: Hidden[bytes | None] = None
    """What GMS replied to a call."""


class _Request(Value, frozen=True):
    """What is asked of one node after the other."""

    call: Call
    tokens: Tokens
    once: bool
    """It is never sent a second time where it may have been taken, as a chat client's call."""
    until: float = math.inf
    """Nothing is sent after that, in seconds of the monotonic clock."""


class GmsClient:
    """The client of all configured GMS nodes, an asynchronous context manager; `refresh` may be called many times at
    once."""

    def __init__(self, settings: GmsSettings, pacer: Pacer, clock: Clock) -> None:
        self._pacer = pacer
        self._clock = clock
        self._turn = 0
        self._unavailable_since: float | None = None
        self._names = Names()
        """The nodes' addresses outlive a reload."""
        self.closing = False
        """The daemon stops: what is on its way is waited for, and no other node is asked any more."""
        self.nodes: tuple[Node, ...] = ()
        self._connections: list[Connections] = []
        """Those of the nodes, and those from before a reload that may still be in use."""
        self._take(settings)

    def reload(self, settings: Settings) -> None:
        """Ask these nodes, in this way, from now on. What is in flight goes on as it began; nodes that
        stay keep their standing, and those that are new have a good one. No ping that begins after it goes over
        a connection that was made with other certificates."""
        self._take(settings.gms)

    def _take(self, settings: GmsSettings) -> None:
        for connections in self._connections:
            connections.retire()
        self._connections = [connections for connections in self._connections if connections.in_use]
        known = {node.base: node for node in self.nodes}
        self.nodes = tuple(self._node(base, settings, known) for base in settings.nodes)
        measure(self.nodes, known.values())
        self._settings = settings
        if good := [node for node in self.nodes if node.failures == 0]:
            self._note_available(good[0])
        elif self._unavailable_since is None:
            self._note_unavailable(self.nodes[0].cause)

    def _node(self, base: str, settings: GmsSettings, known: Mapping[str, Node]) -> Node:
        url = URL(base.rstrip("/"))
        connections = Connections(
            url / "2/chat",
            _headers(settings),
            settings.tls_for(base),
            connect_timeout=settings.connect_timeout.total_seconds(),
            timeout=settings.timeout.total_seconds(),
            names=self._names,
        )
        self._connections.append(connections)
        node = known.get(str(url)) or Node(str(url), connections)
        node.connections = connections
        return node

    async def __aenter__(self) -> GmsClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closing = True
        await asyncio.gather(*(connections.close() for connections in self._connections))

    # -- for what is streamed, and goes another way ------------------------------------------------------

    @property
    def headers(self) -> dict[str, str]:
        """Those that every request carries, in the clear."""
        return {"User-Agent": "asyncchatd", **self._settings.request_headers()}

    @property
    def connect_timeout(self) -> float:
        """Seconds for a connection."""
        return self._settings.connect_timeout.total_seconds()

    @property
    def timeout(self) -> float:
        """Seconds for an answer."""
        return self._settings.timeout.total_seconds()

    def tls(self) -> ssl.SSLContext:
        """How `https` nodes are talked to."""
        return self._settings.tls()

    def fit_node(self) -> Node | None:
        """The node to ask next; none while all rest."""
        return self._choose(())

    def judge(self, node: Node, outcome: Outcome, tokens: Tokens) -> None:
        """Count what a node answered to a request that went another way."""
        self._judge(node, outcome, tokens)

    # -- requests ----------------------------------------------------------------------------------------

    def slots(self) -> int | None:
        """How many pings may be on their way now: `None` for any number; while all nodes rest, one
        for each whose rest is over. 0 means wait, `retry_in` how long."""
        for node in self.nodes:
            if node.failures == 0:
                return None
        now = self._clock.monotonic()
        return sum(now >= node.rests_until for node in self.nodes)

    def retry_in(self) -> float:
        """Seconds until the next resting node may be tried; those being tried do not count."""
        resting = [node.rests_until for node in self.nodes if not node.trying]
        return max(0.0, min(resting, default=float("inf")) - self._clock.monotonic())

    async def refresh(
        self, service: str, tokens: Tokens, position: int | None, *, until: float = math.inf
    ) -> Answer:
        """Send one ping Refresh. The caller has waited for its turn at the pacer; further tries wait here. Nothing is
        sent after `until`, in seconds of the monotonic clock, whatever it had to wait for.

        `position` is the session's `nextPosition`: what a Refresh with another one does is unknown
        (protocol section 2). Never raises for what GMS does.
        """
        try:
            call = chat_api.refresh(service, tokens, position)
        except ChatApiError as error:
            # Ids that no request can carry; they came with a registration or a push.
            return Answer(Refused(error.code, str(error)), None, self._clock.now(), 0.0)
        return await self._ask_around(_Request(call, tokens, once=False, until=until))

    async def call(self, call: Call, tokens: Tokens, *, until: float = math.inf) -> Answer:
        """Send a chat client's call for the session with these tokens, in a form. The caller has waited for its turn at
        the pacer; further tries, where it is proven that nobody took it, wait here. `until` as for `refresh`. Never
        raises for what GMS does."""
        return await self._ask_around(_Request(call, tokens, once=True, until=until))

    async def begin(self, call: Call) -> Answer:
        """Send a "request chat". The reply may be any chat's, and the tokens in it are the first. Else as `call`."""
        return await self._ask_around(_Request(call, NOBODY, once=True))

    async def _ask_around(self, request: _Request) -> Answer:
        tried: tuple[Node, ...] = ()
        answer: Answer | None = None
        while (node := self._choose(tried)) is not None:
            if tried and not await self._pacer.turn(request.until):
                break
            tried += (node,)
            answer, fate = await self._ask(node, request)
            if self.closing or fate is not NOT_TAKEN or self._is_late(request):
                break
        return answer or Answer(NodeTrouble(Trouble.NO_NODE), None, self._clock.now(), 0.0)

    def _is_late(self, request: _Request) -> bool:
        return self._clock.monotonic() > request.until

    def _choose(self, tried: tuple[Node, ...]) -> Node | None:
        """The fit node with the fewest pings on their way, in turn where several have: one that hangs
        keeps a ping or two, and the others get the rest. One in doubt comes last, and one that must prove
        itself only when its rest is over."""
        now = self._clock.monotonic()
        if len(self.nodes) == 1:
            only = self.nodes[0]
            return only if not tried and only.usable(now) else None
        fit = [
            (now < node.doubted_until, node.in_flight, (index - self._turn) % len(self.nodes), index)
            for index, node in enumerate(self.nodes)
            if node not in tried and node.usable(now)
        ]
        if not fit:
            return None
        *_, chosen = min(fit)
        self._turn = (chosen + 1) % len(self.nodes)
        return self.nodes[chosen]

    async def _ask(self, node: Node, request: _Request) -> tuple[Answer, Fate]:
        trial = node.failures > 0
        node.trying = trial
        node.in_flight += 1
        try:
            sent_at, started = self._clock.now(), self._clock.monotonic()
            outcome, fate, body = await self._send(node, request)
            if fate is STALE and request.once:
                fate = PERHAPS_TAKEN
            if fate is STALE and not self.closing:
                # After a node's restart all its kept connections are. The second try must not take another one.
                await self._pacer.turn(request.until)
                sent_at, started = self._clock.now(), self._clock.monotonic()
                outcome, fate, body = await self._send(node, request, fresh=True)
        finally:
            node.in_flight -= 1
            if trial:
                node.trying = False
        self._judge(node, outcome, request.tokens)
        took = self._clock.monotonic() - started
        if fate is not PERHAPS_TAKEN or not isinstance(outcome, NodeTrouble):
            return Answer(outcome, node.base, sent_at, took, body=body if request.once else None), fate
        left = max(0.0, self.timeout - took) if outcome.cause in _LOST else 0.0
        return Answer(outcome, node.base, sent_at, took, True, left), fate

    async def _send(self, node: Node, request: _Request, *, fresh: bool = False) -> Came:
        alone = self._clock.monotonic() < node.unnamed_until
        # To a chat's first request an earlier one's answer looks like its own: nothing in it says whose it is.
        fresh = fresh or alone or request.tokens is NOBODY
        idle = LATELY_SECONDS if request.once else KEPT_SECONDS
        try:
            with await node.connections.post(
                request.call.path,
                request.call.body,
                fresh=fresh,
                most_idle=idle,
                is_late=partial(self._is_late, request),
            ) as exchange:
                came = await read_answer(node, exchange, request.tokens, self._clock, self.timeout)
                exchange.reusable &= not alone
        except ExchangeError as error:
            came = Came(NodeTrouble(error.cause, None, error.detail), _fate_of(error))
        node.count(_word(came.outcome))
        return came

    def _judge(self, node: Node, outcome: Outcome, tokens: Tokens) -> None:
        """A node that answered for a session is well, whatever it answered. One that did not is not
        necessarily ill: a hanging Chat Server makes GMS hang for its sessions."""
        if node not in self.nodes:
            return  # no node of ours any more
        match outcome:
            case Alive():
                self._well(node)
            case RetryLater(PingFault.TOO_MANY_REQUESTS, retry_after) if retry_after:
                self._rest(node, outcome)
                return
            case NodeTrouble(Trouble.OWN_LACK | Trouble.TOO_LATE):
                return  # it was not asked
            case NodeTrouble(Trouble.REPLY_TOO_LARGE):
                self._well(node)  # it has served a session that has much to tell
            case NodeTrouble(cause, retry_after):
                node.strike(tokens)
                node.doubted_until = self._clock.monotonic() + self._settings.rest.total_seconds()
                asks_for_it = retry_after is not None and cause not in MAYBE_THE_CHAT_SERVERS
                its_own = asks_for_it or node.is_its_own(cause)
                enough = asks_for_it or cause in UNREACHABLE or node.strikes >= STRIKES
                if node.failures or (enough and its_own):
                    self._rest(node, outcome)
            case _:
                self._well(node)

    def _well(self, node: Node) -> None:
        node.clear_strikes()
        node.doubted_until = 0.0
        if node.failures == 0:
            return
        node.failures, node.cause = 0, None
        log.info(Event.GMS_NODE_BACK, node=node.base)
        self._note_available(node)

    def _rest(self, node: Node, trouble: NodeTrouble | RetryLater) -> None:
        now = self._clock.monotonic()
        if node.failures and now < node.rests_until:
            return  # a request sent before the node was sent to rest
        node.failures += 1
        node.clear_strikes()
        node.cause = trouble.cause
        longest = self._settings.rest_max.total_seconds()
        rest = min(longest, self._settings.rest.total_seconds() * 2 ** min(node.failures - 1, 16))
        rest *= random.uniform(0.8, 1.0)
        if trouble.retry_after is not None:
            # Sessions cannot wait for as long as a proxy may say.
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
            self._note_unavailable(trouble.cause)

    def _note_available(self, node: Node) -> None:
        if self._unavailable_since is not None:
            outage = self._clock.monotonic() - self._unavailable_since
            self._unavailable_since = None
            log.info(Event.GMS_AVAILABLE, node=node.base, outage_ms=round(outage * 1000))

    def _note_unavailable(self, cause: str | None) -> None:
        self._unavailable_since = self._clock.monotonic()
        log.error(Event.GMS_UNAVAILABLE, cause=cause)

    @property
    def available(self) -> bool:
        """Whether any node is in good standing."""
        return self._unavailable_since is None


def _headers(settings: GmsSettings) -> CIMultiDict[str]:
    headers = CIMultiDict(
        {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "asyncchatd",
            "Content-Type": chat_api.FORM,
        }
    )
    headers.update(settings.request_headers())
    return headers


def _fate_of(error: ExchangeError) -> Fate:
    if not error.sent:
        return NOT_TAKEN
    return STALE if error.stale else PERHAPS_TAKEN


def _word(outcome: Outcome) -> str:
    """The outcome as metrics write it: one of a small, closed set."""
    match outcome:
        case Alive():
            return "success"
        case Ended():
            return "ended"
        case RetryLater(cause) | Refused(cause) | NodeTrouble(cause):
            return str(cause)
