"""The answer to a request: which of all that comes over its connection it is, and what it says of the request."""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import NamedTuple

from asyncchatd.gms.exchange import Exchange
from asyncchatd.gms.node import Node
from asyncchatd.gms.trouble import ExchangeError, Trouble
from asyncchatd.log import Event, get_logger
from asyncchatd.model import Clock, Tokens
from asyncchatd.wire import Alive, Ended, NodeTrouble, Outcome, PingFault, RetryLater, chat_api

LARGE_REPLY = 128 * 1024
"""Bytes of an answer from which on it is read in a thread; of a longer one what is needed was taken already, and
hardly ever is so much. That takes 7 ms, of 3.5 MiB 210 ms, in which nothing else would happen; beside the event loop
the longest pause of it is a fifth. A thread's turn is 5 ms, so what is smaller is better read at once."""

UNNAMED_SECONDS = 3600.0
"""How long a node is asked over fresh connections only whose answers name no chat."""

NOBODY = Tokens("", "", "", "")
"""Those of a chat that is only asked for."""

_PERHAPS_TAKEN = frozenset((408, 409, 425, 499))
"""HTTP statuses that do not prove that nobody took the request, of those between 400 and 499: the wait for it or
for its answer was too long, or it was at odds with another one."""

_FAREWELL = 408
"""The HTTP status with which proxies leave connections that were idle for long."""

_WITH_REPLY = frozenset((PingFault.STATUS_CODE_1, PingFault.CONTRADICTORY, PingFault.FOREIGN_REPLY))
"""Causes that a reply of the Chat API has given."""

log = get_logger()


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


class Came(NamedTuple):
    """What came of a request."""

    outcome: Outcome
    fate: Fate
    body: bytes | None = None
    """Of the answer."""


async def read_answer(node: Node, exchange: Exchange, tokens: Tokens, clock: Clock, patience: float) -> Came:
    """What is the answer to this request; others that come before it are passed over. An answer may take `patience`
    seconds. Raises `ExchangeError`.

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
                node.unnamed_until = clock.monotonic() + UNNAMED_SECONDS
                return Came(held[0][0], PERHAPS_TAKEN, held[0][1])
            if passed.cause == Trouble.UNNAMED_REPLY:
                node.unnamed_until = clock.monotonic() + UNNAMED_SECONDS
            return Came(passed, PERHAPS_TAKEN)
        outcome, named = (
            _weighed(tokens, status, body, retry_after)
            if len(body) < LARGE_REPLY
            else await asyncio.to_thread(_weighed, tokens, status, body, retry_after)
        )
        exchange.reusable = named is True
        if named and passed is None and isinstance(outcome, Alive):  # as nearly always
            exchange.note_keys(tokens.secure_key, outcome.reply.news.secure_key)
            return Came(outcome, PERHAPS_TAKEN, body)
        certain = named or not (exchange.kept or passed) or _repeats_the_key(outcome, tokens)
        if named is None and isinstance(outcome, (Alive, Ended)):
            # So are the next ones. In doubt the time until it is known will do, and they are not lost meanwhile.
            seconds = UNNAMED_SECONDS if certain else patience
            node.unnamed_until = max(node.unnamed_until, clock.monotonic() + seconds)
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
            return Came(outcome, NOT_TAKEN if not_taken else PERHAPS_TAKEN, body)


def _refused(status: int, outcome: Outcome) -> bool:
    """Whether an answer that carries no Chat API reply says that nobody took the request: that of a proxy without its
    route, or of a servlet container without its application. What reads 5xx may have been taken and failed."""
    without_reply = isinstance(outcome, (NodeTrouble, RetryLater)) and outcome.cause not in _WITH_REPLY
    return without_reply and 400 <= status < 500 and status not in _PERHAPS_TAKEN


def _weighed(
    tokens: Tokens, status: int, body: bytes, retry_after: str | None
) -> tuple[Outcome, bool | None]:
    """What an answer says of the session with these tokens, and whether it names its chat."""
    if tokens is NOBODY:
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
