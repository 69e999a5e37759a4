"""Push notifications of type `customhttp`: what GMS tells us without being asked.

The body is a JSON object with `deviceId` and `message`; how `message` is nested, and where the
tokens of `flex-push-content` stand in it, nobody outside a live installation can tell (protocol
section 3). So it is searched, level by level, JSON inside strings included, as far as GMS and Chat
Server alone write it: whoever may write in a chat could otherwise plant a wrong key, and a wrong key
throws the customer out. The search passes through what is wrapped around the notification and ends

- at a reply: its own properties count, and below it nothing but the events of `messages`;
- at an event: its own properties have the names that Chat Server gives them and may be tokens; what
  they hold, `eventAttributes` first of all, is for participants to fill. In a list of events those
  of participants do not count at all, only those that Chat Server writes;
- at what bears the name of something that participants write, wherever it stands.

Tokens found under another chat's id belong to that chat and are left alone. Of several values for one
token the one nearest to the surface counts; two different ones at the same depth contradict each
other, and then neither counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from asyncchatd.model import Ms, TokenNews, Value
from asyncchatd.wire.chat_api.replies import NO_NEWS, ChatEvent, as_position, event_kind, event_of
from asyncchatd.wire.identifiers import as_token
from asyncchatd.wire.lenient_json import NotJson, as_whole, folded, opened_text, read_json

MAX_DEPTH = 64
"""Levels of objects and lists that are searched; honest bodies have about eight."""

MAX_NAMES = 20_000
"""Properties and list items that are looked at, about 2,000 events: bounds the time at some 20 ms."""

MAX_TEXTS = 200
"""Strings that are tried as JSON text. A failed try costs ten times what a property does."""


class PushError(ValueError):
    """A body that is no push notification.

    `code` is `not_json`, `not_an_object`, `no_identity` (neither device id nor chat id), or
    `too_deep` (no identity within the bounds of the search). `field` is the property that was
    expected, where one was. The text holds nothing from the body.
    """

    def __init__(self, code: str, text: str, field: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.field = field


class Push(Value, frozen=True):
    """One push notification."""

    device_id: str | None
    """The id chosen when the session subscribed."""
    news: TokenNews
    events: tuple[ChatEvent, ...]
    """Nearest to the surface first, then in the order of the body."""
    next_position: int | None
    leaving: bool
    """The Chat Server is about to stop: ping the session now. Never the end of the chat."""
    resend: bool
    """Chat Server resends until a request of the client comes."""
    utc_time: Ms | None
    """The newest event's time."""
    position: int | None
    """The highest event index."""
    text: bool
    """There was no payload, only plain text."""
    conflicts: tuple[str, ...]
    """Fields dropped because of two different values at the same depth, `chat_id` first. Without an
    undisputed chat id no token is taken at all."""
    digest: str
    """Of the body: two equal ones are one notification sent twice."""


def read_push(body: bytes) -> Push:
    """The push notification in `body`. Raises `PushError`."""
    root = _root(body)
    search = _Search()
    search.run(root)
    device_id, news, conflicts = search.settled()
    if device_id is None and news.chat_id is None:
        if search.exhausted:
            raise PushError("too_deep", "no deviceId or chat id within the bounds", "deviceId")
        raise PushError("no_identity", "expected a deviceId or a chat id", "deviceId")
    events = tuple(search.events)
    return Push(
        device_id=device_id,
        news=news,
        events=events,
        next_position=search.next_position,
        leaving=any(map(_announces_stop, events)) if events else False,
        resend=any(event.kind == "pushurl" for event in events) if events else False,
        utc_time=max((e.utc_time for e in events if e.utc_time is not None), default=None)
        if events
        else None,
        position=max((e.index for e in events if e.index is not None), default=None) if events else None,
        text=not search.payload and not events,
        conflicts=conflicts,
        digest=hashlib.blake2b(body, digest_size=8).hexdigest(),
    )


_FIELDS = {
    "sessionid": "chat_id",
    "chatid": "chat_id",
    "chatsessionid": "chat_id",
    "userid": "user_id",
    "securekey": "secure_key",
    "appdbid": "alias",
    "alias": "alias",
    "deviceid": "device_id",
}

_CLOSED = frozenset(
    (
        *("userdata", "attacheddata", "text", "messagetype", "nickname", "firstname", "lastname"),
        *("emailaddress", "subject", "from", "url", "pushurl", "errors", "advice", "monitored"),
    )
)
"""Never searched, wherever they stand: customers or agents write them, or (`from`) they describe the
sender. A URL is among them because `PushUrl` events carry one that a participant chose."""

_WRAPPINGS = frozenset(("message", "data", "content", "payload", "body", "notification"))
"""Names under which a string is tried as JSON text. A string under any other may be what somebody said."""

_SERVER_KINDS = frozenset(("participantjoined", "participantleft", "pushurl", "idlealert", "idleclose"))
"""Events that Chat Server itself writes: in a list, tokens on one of these are its own."""

_KNOWN_KINDS = _SERVER_KINDS | frozenset(
    (
        *("message", "typingstarted", "typingstopped", "nicknameupdated", "fileuploaded", "filedeleted"),
        *("customnotice", "notice", "external"),
    )
)

_EVENT_MARKS = frozenset(
    ("index", "utctime", "from", "eventattributes", "gctisystem", "quitreasoncode", "quitreasonadvice")
)
"""Properties that only an event has; the quit reason may come without anything around it."""

_REPLY_MARKS = frozenset(("statuscode", "messages", "chatended", "nextposition", "idletimerexpire"))
"""Properties that only a reply has."""


_SURFACE, _TEXTS, _LISTED, _TRANSCRIPT = 0, 1, 2, 4
"""How an object or list came to be searched. `_TEXTS`: under one of `_WRAPPINGS`; `_LISTED`: in a list;
`_TRANSCRIPT`: in `messages`, where everything is an event. Plain numbers, because these are asked for
with every object of every push."""

_Node = tuple[dict[str, object] | list[object], str | None, int]
"""An object or list to be searched, and the chat id it stands under."""

_Found = tuple[int, str, str | None]
"""A token's depth, its value, and the chat id it stands under."""


class _Search:
    """The level-by-level search of one body; what it found, before contradictions are settled."""

    __slots__ = ("_found", "_names_left", "_texts_left", "events", "exhausted", "next_position", "payload")

    def __init__(self) -> None:
        self._found: dict[str, list[_Found]] = {}
        self._names_left = MAX_NAMES
        self._texts_left = MAX_TEXTS
        self.events: list[ChatEvent] = []
        self.next_position: int | None = None
        self.payload = False
        self.exhausted = False

    def run(self, root: dict[str, object]) -> None:
        level: list[_Node] = [(root, None, _SURFACE)]
        for depth in range(MAX_DEPTH):
            below: list[_Node] = []
            for content, owner, place in level:
                self._names_left -= len(content)
                if self._names_left < 0:
                    self.exhausted = True
                    return
                if isinstance(content, dict):
                    self._read_object(content, depth, owner, place, below)
                else:
                    for item in content:
                        self._descend(item, owner, place | _LISTED, below)
            if not below:
                return
            level = below
        self.exhausted = True

    def _read_object(
        self,
        content: dict[str, object],
        depth: int,
        owner: str | None,
        place: int,
        below: list[_Node],
    ) -> None:
        names: dict[str, object] = {}
        tokens: list[tuple[str, str]] = []
        for key, value in content.items():
            name = folded(key)
            if (field := _FIELDS.get(name)) is None:
                names[name] = value
            elif (token := as_token(value)) is not None:
                tokens.append((field, token))
                if field == "chat_id":
                    owner = token
        trusted = _is_trusted(names)
        event = event_of(names) if trusted and names and _is_event(names) else None
        counts = trusted and _is_ours(event, place)
        for field, token in tokens:
            if counts or (depth == 0 and field == "device_id"):
                self._found.setdefault(field, []).append((depth, token, owner))
        if not trusted or not names:
            return
        if event is not None:
            self.events.append(event)
        elif self.next_position is None and "nextposition" in names:
            self.next_position = as_position(names["nextposition"])
        if depth == 0 or not (event or place & _TRANSCRIPT or isinstance(names.get("type"), str)):
            self._open(names, depth, event, owner, below)

    def _open(
        self,
        names: Mapping[str, object],
        depth: int,
        event: ChatEvent | None,
        owner: str | None,
        below: list[_Node],
    ) -> None:
        closed = event is not None or not _REPLY_MARKS.isdisjoint(names)
        for name, value in names.items():
            if not isinstance(value, (dict, list, str)):
                continue
            if name == "message" and depth == 0:
                # GMS' own property, whatever stands beside it; except that of a flat notice.
                if event is None or not _is_notice(event.kind):
                    self.payload = self._descend(value, owner, _TEXTS, below)
            elif name == "messages" and event is None:
                self._descend(value, owner, _TEXTS | _TRANSCRIPT, below)
            elif not closed and name not in _CLOSED:
                self._descend(value, owner, _TEXTS if name in _WRAPPINGS else _SURFACE, below)

    def _descend(self, value: object, owner: str | None, place: int, below: list[_Node]) -> bool:
        """Puts `value` on the next level if it is an object or a list, or JSON text of one."""
        if isinstance(value, str):
            if not place & _TEXTS or not value.lstrip().startswith(("{", "[", '"')):
                return False
            self._texts_left -= 1
            if self._texts_left < 0:
                self.exhausted = True
                return False
            value = opened_text(value)
        if not isinstance(value, (dict, list)):
            return False
        below.append((value, owner, place))
        return True

    def settled(self) -> tuple[str | None, TokenNews, tuple[str, ...]]:
        """Device id, the tokens of one chat, and the fields that contradict themselves.

        A secure key that stands under another chat's id is never mixed in.
        """
        chosen: dict[str, str] = {}
        conflicts: list[str] = []
        for field in ("chat_id", "user_id", "secure_key", "alias", "device_id"):
            found = self._found.get(field)
            if found is not None and field not in ("chat_id", "device_id"):
                chat_id = chosen.get("chat_id")
                found = [one for one in found if one[2] is None or one[2] == chat_id]
            if not found:
                continue
            if (value := _undisputed(found)) is not None:
                chosen[field] = value
            else:
                conflicts.append(field)
        device_id = chosen.pop("device_id", None)
        news = NO_NEWS if not chosen or "chat_id" in conflicts else TokenNews(**chosen)
        return device_id, news, tuple(conflicts)


def _root(body: bytes) -> dict[str, object]:
    try:
        value = read_json(body)
    except NotJson:
        raise PushError("not_json", "expected a JSON object, got something that is not JSON") from None
    if isinstance(value, str):
        value = opened_text(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise PushError("not_an_object", f"expected a JSON object, got {type(value).__name__}")
    return value


def _is_trusted(names: Mapping[str, object]) -> bool:
    """Other fields of a reply must not be trusted unless its `statusCode` is 0 (protocol section 2)."""
    status_code = names.get("statuscode")
    return status_code is None or as_whole(status_code) == 0


def _is_event(names: Mapping[str, object]) -> bool:
    if not _EVENT_MARKS.isdisjoint(names):
        return True
    event_type = names.get("type")
    return isinstance(event_type, str) and event_kind(event_type) in _KNOWN_KINDS


def _is_ours(event: ChatEvent | None, place: int) -> bool:
    """Whether Chat Server itself wrote the object, so that its own properties may be tokens."""
    if (place & _LISTED and event is not None) or place & _TRANSCRIPT:
        return event is not None and event.kind in _SERVER_KINDS
    return True


def _is_notice(kind: str) -> bool:
    """A customer's client chooses what a custom notice says, whole."""
    return "notice" in kind or kind == "external"


def _undisputed(found: Sequence[_Found]) -> str | None:
    """The value nearest to the surface, unless another one stands at the same depth."""
    depth, value, _ = found[0]
    if len(found) == 1:
        return value
    return value if all(other == value for at, other, _ in found if at == depth) else None


def _announces_stop(event: ChatEvent) -> bool:
    """Protocol section 3: `ParticipantLeft` of participant 1 with this advice; where it stands is
    unknown, so type and participant may be missing, but another participant's or another event's does
    not count."""
    advice = event.quit_reason_advice
    return (
        advice is not None
        and advice.strip().lower() == "reconnect"
        and event.participant_id in (None, 1)
        and event.kind in ("participantleft", "pushurl", "")
    )
