"""Events as consumers are told of them, in JSON: the same by a webhook, fetched, and streamed."""

from __future__ import annotations

import msgspec

from asyncchatd.model import Asked, EventKind, StoredEvent
from asyncchatd.wire.chat_api.replies import read_event
from asyncchatd.wire.lenient_json import NotJson, read_json
from asyncchatd.wire.told_shape import ToldEvent, event_id


def told_event(
    event: StoredEvent, epoch: str, asked: Asked | None = None, *, keys: bool = False
) -> ToldEvent:
    """An event as consumers are told of it; `event` in it is passed through as it was kept. `asked`: the Refresh that
    it asks for, with the tokens where `keys` says so."""
    body = _notified(asked, keys) if event.kind is EventKind.NOTIFIED else event.body
    return ToldEvent(
        id=event_id(epoch, event.id),
        kind=event.kind.value,
        chat_id=event.chat_id,
        service=event.service,
        device_id=event.device_id,
        at=event.at,
        event=msgspec.Raw(body or b"null"),
    )


def _notified(asked: Asked | None, keys: bool) -> bytes:
    if asked is None:
        return b'{"refresh":false}'
    said: dict[str, object] = {"refresh": True, "for_ms": asked.left_ms}
    if keys:
        tokens = asked.tokens
        said |= {"user_id": tokens.user_id, "secure_key": tokens.secure_key, "alias": tokens.alias}
        said |= {"next_position": asked.next_position}
    return msgspec.json.encode(said)


class _Placed(msgspec.Struct):
    index: int


_PLACED = msgspec.json.Decoder(_Placed)


def transcript_index(event: StoredEvent) -> int | None:
    """The place in the transcript of an event of it; `None` of all others, and where it has none."""
    if event.kind is not EventKind.CHAT or event.body is None:
        return None
    try:
        return _PLACED.decode(event.body).index
    except msgspec.MsgspecError:  # written another way, as a text for instance
        pass
    try:
        read = read_event(read_json(event.body))
    except NotJson:
        return None
    return None if read is None else read.index
