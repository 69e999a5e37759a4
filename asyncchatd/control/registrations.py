"""Registrations: a session in our own form, or GMS' reply to "request chat" as it came. Each fault is a `BadRequest`.

    {"chat_id", "user_id", "secure_key", "alias", "service"?, "device_id"?, "next_position"?, "take_id"?,
     "acknowledged"?}
    {"statusCode": 0, "chatId", "userId", "secureKey", "alias", "nextPosition"?, ..., and of the others those
     that a reply lacks; under a take whatever the reply to a request says, which may be no more than its statusCode}

A body with a `statusCode` is GMS' reply, of which only 0 may be believed (protocol section 2). What else a reply
says is passed over, as GMS may say more any day. In our own form an unknown field is a mistake: `secure_kye` would
cost the session its key, and `deviceId` its pushes.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from asyncchatd.control.reading import BadRequest, kind_of, object_of
from asyncchatd.model import Registration, TokenNews, Tokens, Value, replace
from asyncchatd.wire import LARGEST_ID, ChatApiError, Reply, chat_api, is_token, read_event_id

TOKENS = ("chat_id", "user_id", "secure_key", "alias")
TOKENS_OF_REPLY = ("chatId", "userId", "secureKey", "alias")
BESIDE = ("service", "device_id")
"""What GMS' reply lacks. It may stand in the query, too."""
TAKE_ID = "take_id"
"""The take that a registration ends. In the query of one session's registration, as GMS' reply lacks it, too."""
ACKNOWLEDGED = "acknowledged"
"""The event that asked for the Refresh whose reply the tokens are of; where `TAKE_ID` may stand."""
FIELDS = (*TOKENS, *BESIDE, "next_position", TAKE_ID, ACKNOWLEDGED)
STATUS = "statusCode"

_NEAR = 0.6
_PLAIN_NAME = re.compile("[A-Za-z_-]{1,32}")
"""A name that an error may repeat. One with digits may be a key that slipped before its colon."""


class Beside(Value, frozen=True):
    """What a request says of its sessions beside its body."""

    service: str
    """That of a session which names none: from the query, else the configured one."""
    named_service: str | None = None
    """That of the query alone."""
    device_id: str | None = None
    chat_id: str | None = None
    """That of the path."""
    take_id: str | None = None
    acknowledged: str | None = None
    epoch: str = ""
    """That of the store, which ids of events go by."""


def beside_of(query: Mapping[str, str], service: str, epoch: str, chat_id: str | None = None) -> Beside:
    """What stands in the query; `service` is the configured one, `epoch` the store's. Raises `BadRequest`."""
    refuse_strange(query, BESIDE if chat_id is None else (*BESIDE, TAKE_ID, ACKNOWLEDGED))
    named = _optional_text(query, "service")
    return Beside(
        named or service,
        named,
        _optional_text(query, "device_id"),
        chat_id,
        _optional_text(query, TAKE_ID),
        _optional_text(query, ACKNOWLEDGED),
        epoch,
    )


def read_registration(line: bytes, beside: Beside) -> Registration:
    """A session as the custom-chat-app announces it: one JSON object. Raises `BadRequest`."""
    return registration_of(object_of(line), beside)


def registration_of(body: Mapping[str, object], beside: Beside) -> Registration:
    """A registration from a JSON object. Raises `BadRequest`."""
    ended = False
    if STATUS in body:
        reply = _reply(body)
        names, next_position, ended = TOKENS_OF_REPLY, reply.next_position, reply.chat_ended
    else:
        refuse_unknown(body, FIELDS)
        names, next_position = TOKENS, _position(body.get("next_position"))
    if beside.chat_id is not None:
        body = {names[0]: beside.chat_id, **body}
        if body[names[0]] != beside.chat_id:
            raise BadRequest("mismatch", f"expected the {names[0]} of the path, or none", names[0])
    take_id = _optional_text(body, TAKE_ID) or beside.take_id
    acknowledged = _acknowledged(_optional_text(body, ACKNOWLEDGED) or beside.acknowledged, beside.epoch)
    service = _optional_text(body, "service")
    of_request = take_id is not None or acknowledged is not None
    if STATUS in body and (ended or of_request):  # GMS may leave out what has not changed
        chat_id, *others = names
        return Registration(
            tokens=TokenNews(_text(body, chat_id), *(_optional_text(body, name) for name in others)),
            service=service or beside.named_service,
            device_id=_optional_text(body, "device_id") or beside.device_id,
            next_position=next_position,
            take_id=take_id,
            acknowledged=acknowledged,
            ended=ended,
        )
    return Registration(
        tokens=Tokens(*(_text(body, name) for name in names)),
        service=service or beside.service,
        device_id=_optional_text(body, "device_id") or beside.device_id,
        next_position=next_position,
        take_id=take_id,
        acknowledged=acknowledged,
    )


def with_its_key(registration: Registration, digest: Callable[[str, str], str] | None) -> Registration:
    """The registration with what the gateway needs to know the client's key again; as it is without a gateway."""
    said = registration.tokens
    if digest is None or said.chat_id is None or said.secure_key is None:
        return registration
    return replace(registration, came_with=digest(said.chat_id, said.secure_key))


def _acknowledged(text: str | None, epoch: str) -> int | None:
    return None if text is None else event_of(text, epoch, ACKNOWLEDGED)


def event_of(text: str, epoch: str, field: str) -> int:
    """The number of the event that asked for a Refresh. One of another epoch has none, and asked for nothing. Raises
    `BadRequest`."""
    found = read_event_id(text)
    if found is None:
        raise BadRequest("bad_value", f"expected the id of an event of kind notified for {field}", field)
    return found[1] if found[0] == epoch else 0


def _reply(body: Mapping[str, object]) -> Reply:
    """A reply that may be believed: its tokens, or that the chat is over."""
    try:
        reply = chat_api.read_fields(body)
    except ChatApiError:
        raise BadRequest(
            "bad_value", "expected the statusCode of a reply of GMS, which is 0", STATUS
        ) from None
    if reply.status_code and not reply.chat_ended:
        raise BadRequest(
            "not_a_success",
            f"expected a reply of GMS with statusCode 0: the tokens of one with {reply.status_code} must not be"
            " trusted",
            STATUS,
        )
    return reply


def refuse_unknown(said: Mapping[str, object], known: tuple[str, ...]) -> None:
    """Raises `BadRequest` for the first name that is not known, with the one that was probably meant."""
    unknown = next((name for name in said if name not in known), None)
    if unknown is None:
        return
    shown = unknown if _PLAIN_NAME.fullmatch(unknown) else None
    what = "unknown field" if shown is None else f"unknown field {shown}"
    meant = _nearest(unknown, (*known, STATUS) if known is FIELDS else known)
    hint = f"did you mean {meant}?" if meant else f"expected {', '.join(known)}"
    if known is FIELDS and unknown in TOKENS_OF_REPLY:
        hint += " GMS' own reply is taken as it is, with its statusCode"
    raise BadRequest("unknown_field", f"{what}: {hint}", shown)


def refuse_strange(query: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Raises `BadRequest` for the first name in a query that is not known, or that stands there twice."""
    refuse_unknown(query, known)
    for name, count in Counter(name for name, _ in query.items()).items():
        if count > 1:
            raise BadRequest("bad_value", f"expected {name} once", name)


def _nearest(name: str, known: Iterable[str]) -> str | None:
    spelt = {_letters(each): each for each in known}
    close = difflib.get_close_matches(_letters(name[:64]), spelt, n=1, cutoff=_NEAR)
    return spelt[close[0]] if close else None


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _text(body: Mapping[str, object], field: str) -> str:
    value = _optional_text(body, field)
    if value is None:
        raise BadRequest("missing", f"expected {field}, a text that is not empty", field)
    return value


def _optional_text(body: Mapping[str, object], field: str) -> str | None:
    value = body.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # an alias is a number in disguise
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadRequest("bad_type", f"expected a text for {field}, got {kind_of(value)}", field)
    if len(value) > LARGEST_ID or not value.isprintable():
        raise BadRequest(
            "bad_value", f"expected at most {LARGEST_ID} printable characters for {field}", field
        )
    if not is_token(value):
        # The value is not repeated: a masked key still shows some of it.
        raise BadRequest(
            "placeholder",
            f"expected {field} itself, got a placeholder (such as null, undefined or ****)",
            field,
        )
    return value


def _position(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise BadRequest(
            "bad_value", "expected a whole number, 0 or more, for next_position", "next_position"
        )
    return value
