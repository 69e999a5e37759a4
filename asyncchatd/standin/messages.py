"""Messages: replies and push notifications, as GMS writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

import orjson

from asyncchatd.model import Hidden, TokenNews
from asyncchatd.wire import NO_NEWS, ChatEvent, ReplyFault


def write_reply(
    status_code: int,
    news: TokenNews = NO_NEWS,
    *,
    next_position: int | None = None,
    chat_ended: bool | None = None,
    events: Sequence[ChatEvent] = (),
    errors: Sequence[ReplyFault] = (),
    extra: Mapping[str, object] | None = None,
) -> bytes:
    """A reply object, for the stand-in. `None` leaves a field out; `extra` adds raw fields."""
    reply = _without_none(
        statusCode=status_code,
        chatId=news.chat_id,
        userId=news.user_id,
        secureKey=news.secure_key,
        alias=news.alias,
        nextPosition=next_position,
        chatEnded=chat_ended,
    )
    reply["messages"] = [write_event(event) for event in events]
    if errors:
        reply["errors"] = [_without_none(code=e.code, advice=e.advice, message=e.message) for e in errors]
    return orjson.dumps({**reply, **(extra or {})})


class PlantEvent(ChatEvent, frozen=True):
    """An event of a plant's transcript: all that Chat Server sends of it."""

    user_data: Hidden[dict[str, str] | None] = None
    attributes: Hidden[object] = None
    """What its sender wrote into `eventAttributes`: an object, or a text where it was no JSON."""


def write_event(event: ChatEvent) -> dict[str, object]:
    """An event as the raw JSON object Chat Server would send. `kind` follows from `type`."""
    ours = event if isinstance(event, PlantEvent) else None
    sender = _without_none(
        nickname=event.nickname, participantId=event.participant_id, type=event.participant_type
    )
    reason = _without_none(
        **{"quit-reason-code": event.quit_reason_code, "quit-reason-advice": event.quit_reason_advice}
    )
    attributes = ours.attributes if ours is not None else None
    if reason:
        attributes = {**(attributes if isinstance(attributes, dict) else {}), "GCTI_SYSTEM": reason}
    return _without_none(
        **{"from": sender or None},
        index=event.index,
        type=event.type,
        utcTime=event.utc_time,
        text=event.text,
        messageType=event.message_type,
        userData=ours.user_data if ours is not None else None,
        eventAttributes=attributes,
    )


class TokenSpelling(StrEnum):
    """The ways a plant may name the tokens in a push."""

    HYPHEN = "hyphen"
    """`session-id`, `user-id`, `secure-key`, `app-dbid`: as `flex-push-content` names them."""
    UNDERSCORE = "underscore"
    CAMEL = "camel"
    """`sessionId`, `userId`, `secureKey`, `appDbid`"""
    CHAT_API = "chat_api"
    """`chatId`, `userId`, `secureKey`, `alias`: as a reply names them."""


def write_tokens(news: TokenNews, spelling: TokenSpelling = TokenSpelling.HYPHEN) -> dict[str, str]:
    """The tokens that are said, as properties of a JSON object."""
    values = (news.chat_id, news.user_id, news.secure_key, news.alias)
    return {
        name: value for name, value in zip(_SPELLINGS[spelling], values, strict=True) if value is not None
    }


def write_push(
    device_id: str | None,
    message: object,
    *,
    quoting: int = 0,
    beside: Mapping[str, object] | None = None,
) -> bytes:
    """A push body, for the stand-in.

    `message` is an object, a list of events, a plain text, or `None` to leave it out. `quoting`
    says how often it is turned into JSON text: 1 for an object inside a string, 2 for a string
    inside a string. `beside` adds properties next to `deviceId` and `message`.
    """
    for _ in range(quoting):
        message = orjson.dumps(message).decode()
    body: dict[str, object] = dict(beside or {})
    if device_id is not None:
        body["deviceId"] = device_id
    if message is not None:
        body["message"] = message
    return orjson.dumps(body)


_SPELLINGS = {
    TokenSpelling.HYPHEN: ("session-id", "user-id", "secure-key", "app-dbid"),
    TokenSpelling.UNDERSCORE: ("session_id", "user_id", "secure_key", "app_dbid"),
    TokenSpelling.CAMEL: ("sessionId", "userId", "secureKey", "appDbid"),
    TokenSpelling.CHAT_API: ("chatId", "userId", "secureKey", "alias"),
}


def _without_none(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
