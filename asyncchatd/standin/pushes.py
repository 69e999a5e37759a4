"""The bodies of push notifications, in every form a plant may send them.

How `message` is nested and where `flex-push-content` puts its tokens is unknown (protocol section
3), so a form is a value: the plant uses the configured ones in turn, by default all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from itertools import product

import orjson

from asyncchatd.model import Hidden, TokenNews, Value, replace
from asyncchatd.standin.messages import TokenSpelling, write_event, write_push, write_tokens
from asyncchatd.wire import ChatEvent

CONTENT = ("session-id", "user-id", "secure-key", "app-dbid")
"""What `flex-push-content` may put into a notification."""


class MessageForm(StrEnum):
    """The forms of a notification's property `message`."""

    OBJECT = "object"
    TEXT = "text"
    """The object as JSON text in a string."""
    NESTED = "nested"
    """That text as JSON text once more."""
    PLAIN = "plain"
    """The configured text; only the device id says whose it is."""


class TokenPlace(StrEnum):
    """The places where a notification's tokens may stand."""

    MESSAGE = "message"
    """In the message object."""
    BESIDE = "beside"
    """Next to `deviceId`."""
    EVENT = "event"
    """In the event's `eventAttributes.GCTI_SYSTEM`, where no client may believe them."""


class PushForm(Value, frozen=True):
    """One form of a notification's body."""

    message: MessageForm = MessageForm.OBJECT
    payload: bool = True
    """Whether it holds the event, as a reply would (`GCTI_GMS_PushIncludePayload`)."""
    content: tuple[str, ...] = CONTENT
    """`flex-push-content`."""
    spelling: TokenSpelling = TokenSpelling.HYPHEN
    place: TokenPlace = TokenPlace.MESSAGE

    @property
    def carries_secure_key(self) -> bool:
        """Whether a client may learn a new secure key from it. Not from an event's attributes: participants
        fill those, too."""
        readable = self.message is not MessageForm.PLAIN or self.place is TokenPlace.BESIDE
        return readable and self.place is not TokenPlace.EVENT and "secure-key" in self.content

    def shown(self) -> dict[str, object]:
        """The form as `POST /settings` takes it."""
        return {
            "message": self.message.value,
            "payload": self.payload,
            "content": list(self.content),
            "spelling": self.spelling.value,
            "place": self.place.value,
        }


ALL_FORMS = (
    *(
        PushForm(message, payload, content, spelling, place)
        for place, payload, content, spelling, message in product(
            TokenPlace,
            (True, False),
            (CONTENT, CONTENT[:2]),
            TokenSpelling,
            (MessageForm.OBJECT, MessageForm.TEXT, MessageForm.NESTED),
        )
    ),
    PushForm(MessageForm.PLAIN, payload=False, content=()),
    PushForm(MessageForm.PLAIN, payload=False, place=TokenPlace.BESIDE),
)


class SentPush(Value, frozen=True):
    """A notification on its way to the push URL."""

    chat_id: str
    body: Hidden[bytes]
    announced: Hidden[str | None] = None
    """A secure key that it tells and that nothing has told before."""


def push_body(
    form: PushForm,
    device_id: str,
    tokens: TokenNews,
    kind: str,
    event: ChatEvent | None,
    next_position: int,
    planted: TokenNews | None = None,
) -> bytes:
    """The body of one notification of type `kind`, in one form. `planted` are tokens of another chat that a
    participant wrote into the event's attributes."""
    named = write_tokens(_chosen(form.content, tokens), form.spelling)
    beside = named if form.place is TokenPlace.BESIDE else None
    if form.message is MessageForm.PLAIN:
        return write_push(device_id, "dummy message", beside=beside)
    written = write_event(event if form.payload and event is not None else ChatEvent(type=kind))
    if planted is not None:
        # As text in every other form: both are read as JSON by who looks for tokens at any depth.
        attributes: object = write_tokens(planted, form.spelling)
        written["eventAttributes"] = (
            attributes if form.message is MessageForm.OBJECT else planted_text(planted)
        )
    if form.place is TokenPlace.EVENT:
        attributes = written.get("eventAttributes", {})
        if not isinstance(attributes, dict):
            attributes = {}
        system = attributes.get("GCTI_SYSTEM")
        written["eventAttributes"] = attributes | {
            "GCTI_SYSTEM": {**(system if isinstance(system, dict) else {}), **named}
        }
    message: dict[str, object] = dict(written)
    if form.payload:
        message = {"statusCode": 0, "messages": [written], "nextPosition": next_position, "chatEnded": False}
    if form.place is TokenPlace.MESSAGE:
        message.update(named)
    quoting = {MessageForm.OBJECT: 0, MessageForm.TEXT: 1, MessageForm.NESTED: 2}[form.message]
    return write_push(device_id, message, quoting=quoting, beside=beside)


def planted_text(tokens: TokenNews) -> str:
    """Tokens as a participant would write them, who knows how messages look."""
    return orjson.dumps(write_tokens(tokens, TokenSpelling.CHAT_API)).decode()


def readable(form: PushForm) -> PushForm:
    """The form, or the nearest one that can carry an event."""
    message = MessageForm.OBJECT if form.message is MessageForm.PLAIN else form.message
    return replace(form, message=message, payload=True)


def read_forms(value: object) -> tuple[PushForm, ...]:
    """Forms as JSON values: `"all"`, or a list of objects. Raises `ValueError`."""
    if value == "all":
        return ALL_FORMS
    if not isinstance(value, list) or not value:
        raise ValueError('expected "all" or a list of forms')
    return tuple(_read_form(entry) for entry in value)


def _read_form(value: object) -> PushForm:
    if not isinstance(value, dict):
        raise ValueError("expected each form to be an object")
    if unknown := value.keys() - _FORM_READERS.keys():
        raise ValueError(f"unknown property {sorted(map(str, unknown))[0]}")
    read = {name: _FORM_READERS[name](content) for name, content in value.items()}
    return PushForm(**read)  # type: ignore[arg-type]  # each reader returns its property's type


def _read_payload(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("payload: expected true or false")
    return value


def _read_content(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or any(name not in CONTENT for name in value):
        raise ValueError(f"content: expected a list of {', '.join(CONTENT)}")
    return tuple(name for name in CONTENT if name in value)


def _choice(kind: type[StrEnum]) -> Callable[[object], StrEnum]:
    words = [member.value for member in kind]

    def read(value: object) -> StrEnum:
        if value not in words:
            raise ValueError(f"expected one of {', '.join(words)}, got {value!r}")
        return kind(str(value))

    return read


_FORM_READERS: dict[str, Callable[[object], object]] = {
    "message": _choice(MessageForm),
    "payload": _read_payload,
    "content": _read_content,
    "spelling": _choice(TokenSpelling),
    "place": _choice(TokenPlace),
}


def _chosen(content: tuple[str, ...], tokens: TokenNews) -> TokenNews:
    return TokenNews(
        tokens.chat_id if "session-id" in content else None,
        tokens.user_id if "user-id" in content else None,
        tokens.secure_key if "secure-key" in content else None,
        tokens.alias if "app-dbid" in content else None,
    )
