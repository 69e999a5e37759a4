"""An event as consumers read it, and its id.

The id is text, `<epoch>-<number>`: one of a store that was begun anew is never taken for one of before.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from asyncchatd.model import EventKind

_ID = re.compile(r"([0-9a-zA-Z]{1,64})-([0-9]{1,18})")


class ToldEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as a consumer is told of it."""

    id: Annotated[str, Meta(description="Its place in the order of all events, as text")]
    kind: Annotated[str, Meta(extra_json_schema={"enum": [str(kind) for kind in EventKind]})]
    chat_id: str | None
    service: str | None
    device_id: str | None
    at: Annotated[int, Meta(ge=0, description="When asyncchatd got it, in milliseconds since the epoch")]
    event: Annotated[
        msgspec.Raw,
        Meta(
            description="Of `chat` the transcript's event as GMS gave it; of `notified` whether a Refresh is asked for"
            " (`refresh`), and if so for how long (`for_ms`); null where there is nothing to say",
            extra_json_schema={"type": ["object", "null"]},
        ),
    ]


def event_id(epoch: str, number: int) -> str:
    """An event's id as consumers know it."""
    return f"{epoch}-{number}"


def read_event_id(text: str) -> tuple[str, int] | None:
    """The epoch and the number of an id that a consumer says; `None` when it is no id."""
    found = _ID.fullmatch(text) if text.isascii() else None
    return None if found is None else (found[1], int(found[2]))
