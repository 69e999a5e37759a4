"""The replies to chat clients, all in one form, because each client misses another field (protocol section 7).

All of `statusCode chatId userId secureKey alias messages chatEnded nextPosition` are always there; `errors` only with
`statusCode` 1 or 2 and never beside an end, which every client understands as `statusCode` 0 with `chatEnded` alone.
Tokens are those the client came with: some take them from every reply, and others keep their first for ever. Whatever
else comes from GMS is passed on as the bytes that came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import orjson

from asyncchatd.model import Hidden, Value
from asyncchatd.wire import ChatApiError, ClientCall, read_event, reply_object

SUCCESS, RETRY, FAILED = 0, 1, 2
"""`statusCode` (protocol section 2)."""

_OWN = frozenset(
    (
        *(
            "statuscode",
            "chatid",
            "userid",
            "securekey",
            "alias",
            "messages",
            "chatended",
            "nextposition",
            "errors",
        ),
        # Other spellings of tokens, which pushes have.
        *("sessionid", "appdbid"),
    )
)
"""Fields that are never passed on as GMS says them; without regard to case, hyphens and underscores."""


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


def wrong_key_reply(names: Names) -> bytes:
    """The reply to a call or a poll with a key that is none of the chat's: for this client it is over, and nothing is
    said of the chat."""
    return b'{"statusCode":2,%b,"messages":[],"chatEnded":true,"nextPosition":1}' % names.written()


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
    """The reply to any other call: it carries no event of the transcript, and as `next_position` what polls were last
    given, since most clients take over the position of every reply and read events from polls alone.

    `notices` are events without an index, such as the limits of files; `others` are the fields of GMS' reply that are
    `passed_on`. With an end the status code is 0, and the errors are left out.
    """
    failed = status_code != SUCCESS and not ended
    return b'{"statusCode":%d,%b,"messages":%b,"chatEnded":%b,"nextPosition":%d%b%b}' % (
        status_code if failed else SUCCESS,
        names.written(),
        _json(notices),
        b"true" if ended else b"false",
        next_position,
        b',"errors":' + _json(errors) if failed else b"",
        b"".join(b",%b:%b" % (_json(name), _json(value)) for name, value in (others or {}).items()),
    )


_json = msgspec.json.Encoder().encode


# -- what GMS said -------------------------------------------------------------------------------------


def passed_on(body: bytes | None) -> dict[str, object]:
    """The fields of a reply of GMS that are passed on, each as the bytes that came. None of one with `statusCode` 1 or
    2, whose fields must not be trusted, and of what is no reply."""
    fields = _fields(body)
    if not _is_trusted(fields):
        return {}
    return {name: value for name, value in fields.items() if _folded(name) not in _OWN}


def notices_of(body: bytes | None) -> list[object]:
    """The events of a reply of GMS that are none of the transcript, as they have no index; each as the bytes that
    came. They are told here or nowhere."""
    fields = _fields(body)
    return (
        [event for event in _list(fields.get("messages")) if _is_notice(event)] if _is_trusted(fields) else []
    )


def errors_of(body: bytes | None) -> list[object]:
    """What GMS says is wrong, each as the bytes that came."""
    errors = _fields(body).get("errors", _NULL)
    return [*_list(errors)] if bytes(errors).startswith(b"[") else [] if errors == _NULL else [errors]


_NULL = msgspec.Raw(b"null")

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def _fields(body: bytes | None) -> dict[str, msgspec.Raw]:
    """The fields of the object in `body`, not read any further; none where there is no object."""
    if not body:
        return {}
    try:
        body.decode()  # what is passed over is not looked at
        return _OBJECT.decode(body)
    except (ValueError, RecursionError):
        pass
    try:
        return _OBJECT.decode(msgspec.json.encode(reply_object(body)))
    except (ChatApiError, ValueError, TypeError, OverflowError, RecursionError):
        return {}


def _is_trusted(fields: Mapping[str, msgspec.Raw]) -> bool:
    return bytes(fields.get("statusCode", _NULL)).strip(b'"') in (b"0", b"0.0")


def _list(value: msgspec.Raw | None) -> list[msgspec.Raw]:
    return _LIST.decode(value) if value is not None and bytes(value).startswith(b"[") else []


def _is_notice(raw: msgspec.Raw) -> bool:
    try:
        event = read_event(reply_object(bytes(raw)))
    except ChatApiError:
        return False
    return event is not None and event.index is None


def _folded(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
