"""The schemas of the OpenAPI document: what clients send is described here, what is answered by `shapes`.

All objects of asyncchatd's own are closed, so that a field nobody described does not go unnoticed. GMS' reply is not.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from asyncchatd.control import shapes
from asyncchatd.stores import Registered
from asyncchatd.wire import LARGEST_ID

Json = dict[str, object]

_NOTE = "With `kept`: the key is an old one, and which tokens count now"


class RegisteredSession(shapes.Session, frozen=True, kw_only=True):
    """A session, and what registering it came to."""

    outcome: Annotated[str, shapes.one_of(Registered)]
    note: Annotated[str | None, Meta(description=_NOTE)] = None


def schemas() -> Json:
    """The schemas of the document by name: of what is sent, and of what is answered."""
    # An id, a number as text or as number: a DBID is either.
    identifier: Json = {
        "type": ["string", "integer"],
        "minLength": 1,
        "maxLength": LARGEST_ID,
        "description": "Printable characters, at least one letter or digit; no placeholder such as `null`,"
        " `undefined` or `****`",
    }
    chat_id: Json = {"type": "string", "description": "That of the path, where it is in the path"}
    secret: Json = {**identifier, "writeOnly": True}
    beside: Json = {
        "service": {**identifier, "type": ["string", "null"], "minLength": 0},
        "device_id": {**identifier, "type": ["string", "integer", "null"], "minLength": 0},
    }
    take_id: Json = {"type": ["string", "null"], "description": "The take that it ends"}
    event: Json = {"type": "string", "pattern": "^[0-9a-zA-Z]{1,64}-[0-9]{1,18}$"}
    acknowledged: Json = {
        **event,
        "type": ["string", "null"],
        "description": "The event that asked for the Refresh whose reply this is",
    }
    registration: Json = {
        "type": "object",
        "required": ["user_id", "secure_key", "alias"],
        "properties": {
            "chat_id": chat_id,
            "user_id": identifier,
            "secure_key": secret,
            "alias": identifier,
            **beside,
            "take_id": take_id,
            "acknowledged": acknowledged,
            "next_position": {"type": ["integer", "null"], "minimum": 0, "maximum": (1 << 53) - 1},
        },
        "additionalProperties": False,
    }
    reply: Json = {
        "type": "object",
        "description": 'GMS\' reply to "request chat" as it came. What else it says is passed over; `service` and'
        " `device_id`, which it lacks, may stand in it or in the query",
        "required": ["statusCode", "userId", "secureKey", "alias"],
        "properties": {
            "statusCode": {"const": 0, "description": "Nothing of a reply with another one may be believed"},
            "chatId": chat_id,
            "userId": identifier,
            "secureKey": secret,
            "alias": identifier,
            "nextPosition": {"description": "A whole number of 1 or more; anything else counts as not said"},
            "chatEnded": {
                "const": False,
                "description": "Of a chat that is over there is nothing to look after",
            },
            **beside,
            "take_id": take_id,
            "acknowledged": acknowledged,
        },
    }
    duration: Json = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|m)$"}
    want: Json = {
        "type": "object",
        "required": ["for"],
        "properties": {
            "for": {**duration, "description": "1 s to 60 s; longer than the time-out of the request to GMS"},
            "wait": {
                **duration,
                "default": "2s",
                "description": "Up to 10 s: how long to wait for a request in flight, and for pushes",
            },
            "notified": {**acknowledged, "description": "The event that asked for the Refresh it is for"},
        },
        "additionalProperties": False,
    }
    name: Json = {
        "type": "object",
        "required": ["take_id"],
        "properties": {"take_id": {"type": "string", "minLength": 1}},
        "additionalProperties": False,
    }
    return {
        "Registration": registration,
        "Reply": reply,
        "TakeWanted": want,
        "TakeNamed": name,
        "Acknowledged": {
            "type": "object",
            "required": ["id"],
            "properties": {"id": event},
            "additionalProperties": False,
        },
        **_answered(),
    }


ANSWERED: tuple[type[shapes.Shape], ...] = (
    shapes.Accepted, shapes.Error, shapes.SessionPage, shapes.Take, shapes.Registered, shapes.Servers,
    shapes.Restorations, shapes.Consumers, shapes.Steered, shapes.Events, shapes.OtherEpoch, shapes.Status,
    shapes.Picture, shapes.Moment, shapes.Alive, shapes.Ready, RegisteredSession,
)  # fmt: skip
"""The shapes that are an answer of their own; their parts come with them."""


def _answered() -> Json:
    """The JSON schemas of all shapes, by name, as an OpenAPI document has them. All objects are closed."""
    _, found = msgspec.json.schema_components(ANSWERED, ref_template="#/components/schemas/{name}")
    return {name: _plain(each) for name, each in found.items()}


def _plain(schema: shapes.Json) -> shapes.Json:
    """Without a title, which would be the name again, and without the defaults: they are for an older daemon's answers,
    and this one says every field."""
    fields = {name: _closing(each) for name, each in schema["properties"].items()}
    rest = {key: value for key, value in schema.items() if key != "title"}
    return {**rest, "properties": fields, "required": list(fields), "additionalProperties": False}


def _closing(field: shapes.Json) -> shapes.Json:
    kept = {key: value for key, value in field.items() if key != "default"}
    return {**kept, "additionalProperties": False} if "properties" in field else kept
