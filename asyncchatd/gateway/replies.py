"""The replies to chat clients, all in one form, because each client misses another field (protocol section 7).

All of `statusCode chatId userId secureKey alias messages chatEnded nextPosition` are always there; `errors` only with
`statusCode` 1 or 2 and never beside an end, which every client understands as `statusCode` 0 with `chatEnded` alone.
Tokens are those the client came with: some take them from every reply, and others keep their first for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import orjson
from aiohttp import web

from asyncchatd.model import Hidden, Value
from asyncchatd.wire import ChatApiError, ClientCall, reply_object

SUCCESS, RETRY, FAILED = 0, 1, 2
"""`statusCode` (protocol section 2)."""

_OWN = frozenset(
    (
        "statusCode",
        "chatId",
        "userId",
        "secureKey",
        "alias",
        "messages",
        "chatEnded",
        "nextPosition",
        "errors",
    )
)
"""Fields that are never passed on as GMS says them."""


class Names(Value, frozen=True):
    """What a client calls itself and its chat; it hears the same in every reply."""

    chat_id: str
    user_id: str | None
    secure_key: Hidden[str | None]
    alias: str | None

    @classmethod
    def of(cls, call: ClientCall) -> Names:
        """Those that a call came with."""
        return cls(call.chat_id or "", call.user_id, call.secure_key, call.alias)

    def written(self) -> bytes:
        """The fields of a reply that say them, of which none is missing."""
        return orjson.dumps(
            {
                "chatId": self.chat_id,
                "userId": self.user_id or "",
                "secureKey": self.secure_key or "",
                "alias": self.alias or "",
            }
        )[1:-1]


def poll_reply(names: bytes, events: Iterable[bytes], *, next_position: int, ended: bool = False) -> bytes:
    """The reply to a poll. `names` are written already, `events` are JSON objects as GMS wrote them."""
    return b'{"statusCode":0,%b,"messages":[%b],"chatEnded":%b,"nextPosition":%d}' % (
        names,
        b",".join(events),
        b"true" if ended else b"false",
        next_position,
    )


def call_reply(
    names: Names,
    *,
    status_code: int,
    next_position: int,
    ended: bool = False,
    errors: Sequence[object] = (),
    notices: Sequence[object] = (),
    others: Mapping[str, object] | None = None,
) -> bytes:
    """The reply to any other call. `notices` are events without an index, such as the limits of files; `others` are the
    fields of GMS' reply that are none of ours."""
    fields: dict[str, object] = {
        "statusCode": SUCCESS if ended else status_code,
        "chatId": names.chat_id,
        "userId": names.user_id or "",
        "secureKey": names.secure_key or "",
        "alias": names.alias or "",
        "messages": list(notices),
        "chatEnded": ended,
        "nextPosition": next_position,
    }
    if status_code != SUCCESS and not ended:
        fields["errors"] = list(errors)
    return orjson.dumps({**(others or {}), **fields})


def passed_on(body: bytes | None) -> dict[str, object]:
    """The fields of a reply of GMS that are passed on as they are; nothing of what is no reply."""
    return {name: value for name, value in _fields(body).items() if name not in _OWN}


def errors_of(body: bytes | None) -> list[object]:
    """What GMS says is wrong, as it says it."""
    errors = _fields(body).get("errors")
    return errors if isinstance(errors, list) else [] if errors is None else [errors]


def notices_of(body: bytes | None) -> list[object]:
    """Events that are none of the transcript, as they have no index."""
    messages = _fields(body).get("messages")
    if not isinstance(messages, list):
        return []
    return [each for each in messages if isinstance(each, dict) and "index" not in each]


def _fields(body: bytes | None) -> dict[str, object]:
    try:
        return reply_object(body or b"")
    except ChatApiError:
        return {}


def as_response(body: bytes, status: int = 200) -> web.Response:
    """The answer with this reply. Widgets take it for JSON only when its type says so."""
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")
