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
from collections.abc import Callable, Mapping
from enum import Enum, auto

from multidict import CIMultiDict
from yarl import URL

from asyncchatd.config import GmsSettings, Settings
from asyncchatd.gms.connections import KEPT_SECONDS, Connections
from asyncchatd.gms.exchange import Exchange
from asyncchatd.gms.node import MAYBE_THE_CHAT_SERVERS, STRIKES, UNREACHABLE, Node, measure
from asyncchatd.gms.pacing import Pacer
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

LARGE_REPLY = 128 * 1024
"""Bytes of an answer from which on it is read in a thread; of a longer one what is needed was taken already, and
hardly ever is so much. That takes 7 ms, of 3.5 MiB 210 ms, in which nothing else would happen; beside the event loop
the longest pause of it is a fifth. A thread's turn is 5 ms, so what is smaller is better read at once."""

LATELY_SECONDS = 1.0
"""A call goes over a connection that was used within this time, or over a new one: what a node has closed meanwhile
must not make a customer's message a thing that nobody can know."""

UNNAMED_SECONDS = 3600.0
"""How long a node that did so is asked over fresh connections only."""

_NOBODY = Tokens("", "", "", "")
"""Those of a chat that is only asked for."""

_PERHAPS_TAKEN = frozenset((408, 409, 425, 499))
"""HTTP statuses that do not prove that nobody took the request, of those between 400 and 499: the wait for it or
for its answer was too long, or it was at odds with another one."""

_LOST = frozenset(
    (Trouble.DISCONNECTED, PingFault.BAD_GATEWAY, PingFault.GATEWAY_TIMEOUT, PingFault.REQUEST_TIMEOUT)
)
"""Causes that say that nobody waits for the answer any longer, and not that the work on it has ended."""

_FAREWELL = 408
"""The HTTP status with which proxies leave connections that were idle for long."""

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


class Fate(Enum):
    """What became of a request that brought no news of its session."""

    PERHAPS_TAKEN = auto()
    """It is not sent again at once."""
    NOT_TAKEN = auto()
    """Another node may be asked."""
    STALE = auto()
    """It went into a connection that the node had given up: the same node may be asked again."""


# Looked up in its class a member costs ten times as much, and that several times a ping.
PERHAPS_TAKEN, NOT_TAKEN, STALE = Fate


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
        return await self._ask_around(call, tokens, once=False, until=until)

    async def call(self, call: Call, tokens: Tokens, *, until: float = math.inf) -> Answer:
        """Send a chat client's call for the session with these tokens, in a form. The caller has waited for its turn at
        the pacer; further tries, where it is proven that nobody took it, wait here. `until` as for `refresh`. Never
        raises for what GMS does."""
        return await self._ask_around(call, tokens, once=True, until=until)

    async def begin(self, call: Call) -> Answer:
        """Send a "request chat". The reply may be any chat's, and the tokens in it are the first. Else as `call`."""
        return await self._ask_around(call, _NOBODY, once=True)

    async def _ask_around(self, call: Call, tokens: Tokens, *, once: bool, until: float = math.inf) -> Answer:
        def is_late() -> bool:
            return self._clock.monotonic() > until

        tried: tuple[Node, ...] = ()
        answer: Answer | None = None
        while (node := self._choose(tried)) is not None:
            if tried:
                await self._pacer.turn()
            tried += (node,)
            answer, fate = await self._ask(node, call, tokens, once, is_late)
            if self.closing or fate is not NOT_TAKEN or is_late():
                break
        return answer or Answer(NodeTrouble(Trouble.NO_NODE), None, self._clock.now(), 0.0)

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

    async def _ask(
        self, node: Node, call: Call, tokens: Tokens, once: bool, is_late: Callable[[], bool]
    ) -> tuple[Answer, Fate]:
        trial = node.failures > 0
        node.trying = trial
        node.in_flight += 1
        try:
            sent_at, started = self._clock.now(), self._clock.monotonic()
            fresh = (
                tokens is _NOBODY
            )  # nothing in an answer to an earlier request could tell that it is none to this
            outcome, fate, body = await self._send(node, call, tokens, is_late, fresh=fresh, lately=once)
            if fate is STALE and once:
                fate = PERHAPS_TAKEN
            if fate is STALE and not self.closing:
                # After a node's restart all its kept connections are. The second try must not take another one.
                await self._pacer.turn()
                sent_at, started = self._clock.now(), self._clock.monotonic()
                outcome, fate, body = await self._send(node, call, tokens, is_late, fresh=True)
        finally:
            node.in_flight -= 1
            if trial:
                node.trying = False
        self._judge(node, outcome, tokens)
        took = self._clock.monotonic() - started
        if fate is not PERHAPS_TAKEN or not isinstance(outcome, NodeTrouble):
            return Answer(outcome, node.base, sent_at, took, body=body if once else None), fate
        left = max(0.0, self._settings.timeout.total_seconds() - took) if outcome.cause in _LOST else 0.0
        return Answer(outcome, node.base, sent_at, took, True, left), fate

    async def _send(
        self,
        node: Node,
        call: Call,
        tokens: Tokens,
        is_late: Callable[[], bool],
        *,
        fresh: bool = False,
        lately: bool = False,
    ) -> tuple[Outcome, Fate, bytes | None]:
        outcome: Outcome
        body: bytes | None = None
        alone = self._clock.monotonic() < node.unnamed_until
        try:
            idle = LATELY_SECONDS if lately else KEPT_SECONDS
            with await node.connections.post(
                call.path, call.body, fresh=fresh or alone, most_idle=idle, is_late=is_late
            ) as exchange:
                outcome, fate, body = await self._read(node, exchange, tokens)
                exchange.reusable &= not alone
        except ExchangeError as error:
            outcome, fate = NodeTrouble(error.cause, None, error.detail), _fate_of(error)
        node.count(_word(outcome))
        return outcome, fate, body

    async def _read(
        self, node: Node, exchange: Exchange, tokens: Tokens
    ) -> tuple[Outcome, Fate, bytes | None]:
        """The outcome of what is the answer to this request; others that come before it are passed over.

        HTTP cannot tell a late or a second answer to an earlier request from the one to this. The chat id in it
        can, since no connection carries two requests for one chat. An answer that names no chat is believed where
        it cannot be an earlier request's: on a fresh connection, or with the very key that this request carried. The
        connection then serves no other request; so a GMS that never names the chat has one for each, and whatever
        came over a kept one before did name its chat. The first that names none may come over a kept one all the
        same. It may be a second answer to an earlier request; that has that one's key, and so nothing is lost with it.
        One with a key that went over this connection neither way is held, and believed when no other answer came as
        long as one may. Nor is a 408 over a kept connection the last word: so a proxy takes leave of an idle one, and
        it says nothing of what was sent meanwhile.
        """
        passed: NodeTrouble | None = None
        held: list[tuple[Alive, bytes]] = []
        while True:
            try:
                reply = await exchange.reply()
                status, body, retry_after, packed = reply
                if packed is not None:
                    body = await exchange.unpacked(reply)
            except ExchangeError:
                if passed is None:
                    raise
                if len({each.reply.news.secure_key for each, _ in held}) == 1:
                    node.unnamed_until = self._clock.monotonic() + UNNAMED_SECONDS
                    return held[0][0], PERHAPS_TAKEN, held[0][1]
                if passed.cause == Trouble.UNNAMED_REPLY:
                    node.unnamed_until = self._clock.monotonic() + UNNAMED_SECONDS
                return passed, PERHAPS_TAKEN, None
            outcome, named = (
                _weighed(tokens, status, body, retry_after)
                if len(body) < LARGE_REPLY
                else await asyncio.to_thread(_weighed, tokens, status, body, retry_after)
            )
            exchange.reusable = named is True
            if named and passed is None and isinstance(outcome, Alive):  # as nearly always
                exchange.note_keys(tokens.secure_key, outcome.reply.news.secure_key)
                return outcome, PERHAPS_TAKEN, body
            certain = named or not (exchange.kept or passed) or _repeats_the_key(outcome, tokens)
            if named is None and isinstance(outcome, (Alive, Ended)):
                # So are the next ones. In doubt the time until it is known will do, and they are not lost meanwhile.
                seconds = UNNAMED_SECONDS if certain else self._settings.timeout.total_seconds()
                node.unnamed_until = max(node.unnamed_until, self._clock.monotonic() + seconds)
            if named is False and isinstance(outcome, NodeTrouble):
                passed = outcome
            elif not certain and isinstance(outcome, (Alive, Ended)):
                if isinstance(outcome, Alive) and _has_new_key(outcome, exchange, passed):
                    held.append((outcome, body))
                passed = NodeTrouble(Trouble.UNNAMED_REPLY, None, f"HTTP {status}")
            elif status == _FAREWELL and not certain and isinstance(outcome, NodeTrouble):
                passed = outcome
            else:
                if passed is not None and passed.cause == PingFault.FOREIGN_REPLY:
                    names = {"chat_id": tokens.chat_id, "alias": tokens.alias, "node": node.base}
                    log.error(Event.PING_FOREIGN_REPLY, **names)
                if exchange.reusable:
                    exchange.note_keys(tokens.secure_key, _key_in(outcome))
                not_taken = certain and _refused(status, outcome)
                return outcome, NOT_TAKEN if not_taken else PERHAPS_TAKEN, body

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


def _refused(status: int, outcome: Outcome) -> bool:
    """Whether an answer that carries no Chat API reply says that nobody took the request: that of a proxy without its
    route, or of a servlet container without its application. What reads 5xx may have been taken and failed."""
    without_reply = isinstance(outcome, (NodeTrouble, RetryLater)) and outcome.cause not in _WITH_REPLY
    return without_reply and 400 <= status < 500 and status not in _PERHAPS_TAKEN


def _weighed(
    tokens: Tokens, status: int, body: bytes, retry_after: str | None
) -> tuple[Outcome, bool | None]:
    """What an answer says of the session with these tokens, and whether it names its chat."""
    if tokens is _NOBODY:
        return chat_api.weigh_first(status, body, retry_after=retry_after)
    secrets = (tokens.secure_key, tokens.user_id)
    return chat_api.weigh(status, body, chat_id=tokens.chat_id, secrets=secrets, retry_after=retry_after)


def _repeats_the_key(outcome: Outcome, tokens: Tokens) -> bool:
    """No other chat has it."""
    return _key_in(outcome) == tokens.secure_key


def _key_in(outcome: Outcome) -> str | None:
    return outcome.reply.news.secure_key if isinstance(outcome, Alive) else None


def _has_new_key(outcome: Alive, exchange: Exchange, passed: NodeTrouble | None) -> bool:
    """Whether it has a key that no answer to an earlier request can have. Behind another chat's nobody can tell."""
    foreign = passed is not None and passed.cause == PingFault.FOREIGN_REPLY
    key = outcome.reply.news.secure_key
    return key is not None and not foreign and not exchange.knows_key(key)


_WITH_REPLY = frozenset((PingFault.STATUS_CODE_1, PingFault.CONTRADICTORY, PingFault.FOREIGN_REPLY))


def _word(outcome: Outcome) -> str:
    """The outcome as metrics write it: one of a small, closed set."""
    match outcome:
        case Alive():
            return "success"
        case Ended():
            return "ended"
        case RetryLater(cause) | Refused(cause) | NodeTrouble(cause):
            return str(cause)
