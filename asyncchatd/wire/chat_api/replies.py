"""Replies: the JSON objects in which GMS answers a call, and the events in them.

A reply is read as far as its `statusCode` lets it be trusted (protocol section 2): tokens come from `statusCode` 0
alone, because a session pinged with a wrong secure key loses its customer at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from asyncchatd.model import Hidden, Ms, RawEvent, TokenNews, Value
from asyncchatd.wire.chat_api.calls import ChatApiError
from asyncchatd.wire.identifiers import as_token
from asyncchatd.wire.lenient_json import (
    NotJson,
    as_flag,
    as_json,
    as_object,
    as_text,
    as_whole,
    folded,
    read_json,
)

CUT = "asyncchatd-cut"
"""The field of the short reply that stands for a long one (`long_reply`) where not all of its events were kept. The
first of those it has is then none, but says when the newest of all was."""

NO_NEWS = TokenNews()
"""What a message says that says nothing of tokens."""


class ChatEvent(Value, frozen=True):
    """One event of a transcript. Whatever is missing or of a wrong type is `None`."""

    type: str = ""
    """As sent; empty when the event does not say."""
    kind: str = ""
    """`type` as it is compared: lower case, no hyphens, no underscores (`push-url` is `pushurl`)."""
    index: int | None = None
    utc_time: Ms | None = None
    participant_id: int | None = None
    """1 is the customer in all samples."""
    participant_type: str | None = None
    nickname: Hidden[str | None] = None
    text: Hidden[str | None] = None
    message_type: str | None = None
    quit_reason_code: int | None = None
    quit_reason_advice: str | None = None


class ReplyFault(Value, frozen=True):
    """One entry of a reply's `errors`."""

    code: int | None = None
    advice: str | None = None
    message: str | None = None


class Reply(Value, frozen=True):
    """A well-formed reply object. With `statusCode` 1 and 2 only `chat_ended` (2) and `errors` are read."""

    status_code: int
    """0 success, 1 retry, 2 repeating will not help."""
    news: TokenNews = NO_NEWS
    next_position: int | None = None
    """The `transcriptPosition` of the next request, 1 or more."""
    chat_ended: bool = False
    events: tuple[ChatEvent, ...] = ()
    errors: tuple[ReplyFault, ...] = ()
    messages: Hidden[tuple[dict[str, object], ...]] = ()
    """The events as they came: JSON objects with all their fields, those unknown to us too."""
    cut: bool = False
    """It was too long to keep all of them: these are the last."""


def read_reply(body: bytes) -> Reply:
    """The reply object in `body`, as far as its `statusCode` lets it be trusted.

    Raises `ChatApiError` with one of the codes `empty_body`, `html`, `truncated`, `not_json`,
    `not_an_object`, `no_status_code`, `unknown_status_code`.
    """
    return read_fields(reply_object(body))


def read_event(value: object) -> ChatEvent | None:
    """The event in a raw JSON value; `None` when it is not an object, or one without type and index.

    Field names are compared without case, hyphens and underscores, and the participant may stand
    in `from` or on the event itself. What a customer wrote into a custom notice is never read as
    Chat Server's quit reason.
    """
    if not isinstance(value, dict):
        return None
    fields = {folded(name): content for name, content in value.items()}
    event_type = as_text(fields.get("type")) or ""
    index = as_whole(fields.get("index"))
    if not event_type and index is None:
        return None
    return event_of(fields)


def event_of(fields: Mapping[str, object]) -> ChatEvent:
    """The event in an object whose names are folded already; nothing is demanded of it."""
    event_type = as_text(fields.get("type")) or ""
    kind = event_kind(event_type)
    sender = as_object(fields.get("from"))
    origin = fields if sender is None else {**fields, **_folded_names(sender), "type": sender.get("type")}
    code, advice = _quit_reason(kind, fields)
    return ChatEvent(
        type=event_type,
        kind=kind,
        index=as_whole(fields.get("index")),
        utc_time=as_whole(fields.get("utctime")),
        participant_id=as_whole(origin.get("participantid")),
        participant_type=as_text(origin.get("type")) if sender is not None else None,
        nickname=as_text(origin.get("nickname")),
        text=as_text(fields.get("text")),
        message_type=as_text(fields.get("messagetype")),
        quit_reason_code=code,
        quit_reason_advice=advice,
    )


def event_kind(event_type: str) -> str:
    """An event's type as it is compared (protocol section 2: without regard to case and hyphens)."""
    return folded(event_type.strip())


def as_position(value: object) -> int | None:
    """A raw `nextPosition`. Positions start at 1: 0 and -1 would ask for no events or only the last
    one, so as a "next" position they are an accident, and whether such a refresh acknowledges or
    restores anything is unknown."""
    position = as_whole(value)
    return position if position is not None and position >= 1 else None


def reply_object(body: bytes) -> dict[str, object]:
    """The JSON object in `body`, whatever it holds. Raises `ChatApiError`."""
    try:
        value = read_json(body)
    except NotJson:
        code = _looks_like(body)
        raise ChatApiError(code, f"expected a reply object, got {code}") from None
    if not isinstance(value, dict):
        raise ChatApiError("not_an_object", f"expected a reply object, got {type(value).__name__}")
    return value


def read_fields(fields: Mapping[str, object]) -> Reply:
    """The reply whose JSON object is read already. Raises `ChatApiError` for its `statusCode`."""
    raw = fields.get("statusCode")
    status_code = as_whole(raw)
    if status_code is None or not 0 <= status_code <= 2:
        if raw is None:
            raise ChatApiError("no_status_code", "the reply has no statusCode")
        raise ChatApiError("unknown_status_code", "the reply's statusCode is not 0, 1 or 2")
    faults = fields.get("errors")
    errors = () if faults is None else _faults(faults)
    if status_code == 1:
        return Reply(1, errors=errors)
    chat_ended = as_flag(fields.get("chatEnded")) is True
    if status_code == 2:
        return Reply(2, chat_ended=chat_ended, errors=errors)
    messages = fields.get("messages")
    cut = fields.get(CUT) is True
    return Reply(
        0,
        TokenNews(
            as_token(fields.get("chatId")),
            as_token(fields.get("userId")),
            as_token(fields.get("secureKey")),
            as_token(fields.get("alias")),
        ),
        as_position(fields.get("nextPosition")),
        chat_ended,
        _events(messages) if messages else (),
        errors,
        _objects(messages)[cut:] if messages else (),
        cut,
    )


def _looks_like(body: bytes) -> str:
    """What a body that is not JSON is, for the log."""
    text = body.strip()
    if not text:
        return "empty_body"
    if text.startswith(b"<"):
        return "html"
    if text.startswith((b"{", b"[")) and not text.endswith((b"}", b"]")):
        return "truncated"
    return "not_json"


def _events(messages: object) -> tuple[ChatEvent, ...]:
    if not isinstance(messages, list):
        return ()
    return tuple(event for event in map(read_event, messages) if event is not None)


def _objects(messages: object) -> tuple[dict[str, object], ...]:
    if not isinstance(messages, list):
        return ()
    return tuple(message for message in messages if isinstance(message, dict))


def raw_event(message: dict[str, object]) -> RawEvent | None:
    """An event of `Reply.messages` for the transcript; None for what is no event of it, as it has no index, and for
    one that cannot be written again."""
    event = read_event(message)
    if event is None or event.index is None or (body := as_json(message)) is None:
        return None
    like = "\0".join(map(str, (event.utc_time, event.participant_id, event.kind, event.text)))
    return RawEvent(
        event.index,
        body,
        hashlib.blake2b(like.encode("utf-8", "surrogatepass"), digest_size=16).digest(),
    )


def _faults(value: object) -> tuple[ReplyFault, ...]:
    entries = value if isinstance(value, list) else [value]
    return tuple(
        ReplyFault(as_whole(entry.get("code")), as_text(entry.get("advice")), as_text(entry.get("message")))
        for entry in entries
        if isinstance(entry, dict)
    )


def _quit_reason(kind: str, fields: Mapping[str, object]) -> tuple[int | None, str | None]:
    """Code and advice from the first place that has either: where Chat Server puts them exactly is
    unknown, `eventAttributes.GCTI_SYSTEM` is likely (protocol section 3). A participant chooses the
    attributes of what he sends, so they are read of a leave alone, or where the type is missing."""
    if kind == "customnotice":
        return None, None
    places = [fields]
    if kind in ("participantleft", ""):
        attributes = _folded_names(as_object(fields.get("eventattributes")))
        system = _folded_names(as_object(attributes.get("gctisystem")))
        places = [system, _folded_names(as_object(fields.get("gctisystem"))), attributes, fields]
    for place in places:
        code = as_whole(place.get("quitreasoncode"))
        advice = as_text(place.get("quitreasonadvice"))
        if code is not None or advice is not None:
            return code, advice
    return None, None


def _folded_names(value: dict[str, object] | None) -> dict[str, object]:
    return {folded(name): content for name, content in value.items()} if value else {}
