"""Chat API version 2: requests out, replies in.

The language between us and a GMS node (protocol section 2), both ways: the daemon writes calls and
reads replies, the stand-in plant reads calls and writes replies. Pure functions of bytes.

The question that matters is answered by `classify`: what does this answer, whatever it is, mean for
the session that was pinged? Its rules are careful in one direction: nothing but a readable reply
that says `chatEnded` ends a session, and tokens come from `statusCode` 0 replies only, because a
session pinged with a wrong secure key loses its customer at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import lru_cache
from urllib.parse import parse_qsl, quote, quote_plus, unquote

import orjson

from asyncchatd.model import Hidden, Ms, TokenNews, Tokens, Value
from asyncchatd.wire.identifiers import as_token
from asyncchatd.wire.lenient_json import (
    NotJson,
    as_flag,
    as_object,
    as_text,
    as_whole,
    folded,
    read_json,
)

FORM = "application/x-www-form-urlencoded"

MAX_RETRY_AFTER = 3600.0
"""Seconds; a node asking for more is not believed: a session must not wait past its deadlines."""

MAX_DETAIL = 200
"""Characters of free text that a reply may contribute to a log line."""

NO_NEWS = TokenNews()
"""What a message says that says nothing of tokens."""

_MAX_FIELDS = 1000

_MAX_WORDS = 4000
"""Characters of a node's free text that are looked through for tokens."""


class ChatApiError(ValueError):
    """A call or a reply that cannot be read, or a call that cannot be written.

    `code` is a short constant; neither it nor the text holds anything from the tokens.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


# --- requests ---------------------------------------------------------------------------------


class Operation(StrEnum):
    """The operations of protocol section 2; the value is the path after `{chatId}/`."""

    REQUEST_CHAT = ""
    SEND = "send"
    REFRESH = "refresh"
    START_TYPING = "startTyping"
    STOP_TYPING = "stopTyping"
    DISCONNECT = "disconnect"
    PUSH_URL = "pushUrl"
    UPDATE_NICKNAME = "updateNickname"
    CUSTOM_NOTICE = "customNotice"
    UPDATE_DATA = "updateData"
    READ_RECEIPT = "readReceipt"
    FILE_LIMITS = "file/limits"
    FILE_UPLOAD = "file"
    FILE_DOWNLOAD = "file/{fileId}/download"
    FILE_DELETE = "file/{fileId}/delete"


class Call(Value, frozen=True):
    """One request, ready to be sent as `POST {base}/2/chat/{path}`."""

    path: str
    """Percent-encoded, relative to `{base}/2/chat/`: `customer-support/<chatId>/refresh`."""
    body: Hidden[bytes]
    content_type: str = FORM


def refresh(service: str, tokens: Tokens, position: int | None, message: str | None = None) -> Call:
    """The ping Refresh.

    `position` is the `transcriptPosition` to ask from, normally the session's `nextPosition`;
    `None` leaves it out, which asks for all events. `message` is the typing preview. Raises
    `ChatApiError` when an id cannot be written into a request at all.
    """
    body = _triple(tokens)
    if position is not None:
        body += f"&transcriptPosition={position}"
    if message is not None:
        body += f"&message={_quoted(message)}"
    return Call(f"{_service(service)}/{_segment(tokens.chat_id)}/refresh", body.encode("ascii"))


def call(
    operation: Operation,
    service: str,
    tokens: Tokens | None,
    fields: Sequence[tuple[str, str]] = (),
    file_id: str | None = None,
    *,
    file: tuple[str, bytes] | None = None,
) -> Call:
    """Any operation. `fields` are the further parameters, `userData[key]` among them, in order.

    `file` is name and content of an upload. Every operation but "request chat" needs `tokens`,
    download and delete need `file_id`; raises `ChatApiError` where they are missing.
    """
    path = _service(service)
    if operation is not Operation.REQUEST_CHAT:
        if tokens is None:
            raise ChatApiError("no_tokens", f"{operation.name} needs the session's tokens")
        path += f"/{_segment(tokens.chat_id)}/{_operation_path(operation, file_id)}"
    identity = tokens if operation is not Operation.REQUEST_CHAT else None
    if operation is Operation.FILE_UPLOAD:
        if file is None:
            raise ChatApiError("no_file", "an upload needs a file")
        triple = [] if identity is None else _triple_fields(identity)
        body, content_type = _write_multipart([*triple, *fields], file)
        return Call(path, body, content_type)
    parts = [] if identity is None else [_triple(identity)]
    parts += [f"{_quoted(name)}={_quoted(value)}" for name, value in fields]
    return Call(path, "&".join(parts).encode("ascii"))


class Received(Value, frozen=True):
    """A call as a GMS node sees it."""

    service: str
    chat_id: str | None
    """`None` for "request chat" only."""
    operation: Operation
    file_id: str | None
    fields: Hidden[dict[str, str]]
    """The parameters but the identity triple and `userData[...]`. Of a repeated one the first."""
    user_data: Hidden[dict[str, str]]
    """`userData[key]` parameters by key."""
    news: TokenNews
    """`chatId` from the path and the identity triple, each `None` when missing or empty."""
    files: Hidden[dict[str, tuple[str, bytes]]]
    """Uploaded files by part name: file name and content."""


def read_call(path: str, body: bytes, content_type: str = FORM) -> Received:
    """The call that `path` (still percent-encoded, relative to `{base}/2/chat/`) and `body` make.

    Takes urlencoded and multipart bodies, a trailing slash, and percent-encoded `userData[...]`
    names, as Genesys' own widget sends them (protocol section 2). Raises `ChatApiError`.
    """
    service, chat_id, operation, file_id = _read_path(path)
    if content_type.strip().lower().startswith("multipart/"):
        pairs, files = _read_multipart(body, content_type)
    else:
        pairs, files = _read_form(body), {}
    fields: dict[str, str] = {}
    user_data: dict[str, str] = {}
    for name, value in pairs:
        if name[:11].lower() == "userdata%5b":
            name = unquote(name)
        if name.startswith("userData[") and name.endswith("]"):
            user_data.setdefault(name[9:-1], value)
        else:
            fields.setdefault(name, value)
    triple = {name: fields.pop(name, None) or None for name in ("userId", "secureKey", "alias")}
    news = TokenNews(chat_id, triple["userId"], triple["secureKey"], triple["alias"])
    return Received(service, chat_id, operation, file_id, fields, user_data, news, files)


# --- replies ----------------------------------------------------------------------------------


class Event(Value, frozen=True):
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
    events: tuple[Event, ...] = ()
    errors: tuple[ReplyFault, ...] = ()


def read_reply(body: bytes) -> Reply:
    """The reply object in `body`, as far as its `statusCode` lets it be trusted.

    Raises `ChatApiError` with one of the codes `empty_body`, `html`, `truncated`, `not_json`,
    `not_an_object`, `no_status_code`, `unknown_status_code`.
    """
    return _reply(_reply_object(body))


def read_event(value: object) -> Event | None:
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


def event_of(fields: Mapping[str, object]) -> Event:
    """The event in an object whose names are folded already; nothing is demanded of it."""
    event_type = as_text(fields.get("type")) or ""
    kind = event_kind(event_type)
    sender = as_object(fields.get("from"))
    origin = fields if sender is None else {**fields, **_folded_names(sender), "type": sender.get("type")}
    code, advice = _quit_reason(kind, fields)
    return Event(
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


def write_reply(
    status_code: int,
    news: TokenNews = NO_NEWS,
    *,
    next_position: int | None = None,
    chat_ended: bool | None = None,
    events: Sequence[Event] = (),
    errors: Sequence[ReplyFault] = (),
    extra: Mapping[str, object] | None = None,
) -> bytes:
    """A reply object, for the stand-in. `None` leaves a field out; `extra` adds raw fields."""
    reply = _said(
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
        reply["errors"] = [_said(code=e.code, advice=e.advice, message=e.message) for e in errors]
    return orjson.dumps({**reply, **(extra or {})})


def write_event(event: Event) -> dict[str, object]:
    """An event as the raw JSON object Chat Server would send. `kind` follows from `type`."""
    sender = _said(nickname=event.nickname, participantId=event.participant_id, type=event.participant_type)
    reason = _said(
        **{"quit-reason-code": event.quit_reason_code, "quit-reason-advice": event.quit_reason_advice}
    )
    return _said(
        **{"from": sender or None},
        index=event.index,
        type=event.type,
        utcTime=event.utc_time,
        text=event.text,
        messageType=event.message_type,
        eventAttributes={"GCTI_SYSTEM": reason} if reason else None,
    )


# --- what an answer means ---------------------------------------------------------------------


class Cause(StrEnum):
    """Why a ping did not succeed, as `classify` words it. Metric labels: a small, closed set.

    An outcome's `cause` is a plain `str`, because the GMS client adds its own words for what
    happens before there is an answer.
    """

    STATUS_CODE_1 = "status_code_1"
    """Reply with `statusCode` 1: retry later."""
    TOO_MANY_REQUESTS = "too_many_requests"
    """HTTP 429."""

    STATUS_CODE_2 = "status_code_2"
    """Reply with `statusCode` 2 that does not say `chatEnded`: the one refusal there is."""

    BAD_REQUEST = "bad_request"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    GONE = "gone"
    BODY_TOO_LARGE = "body_too_large"
    URI_TOO_LONG = "uri_too_long"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    UNPROCESSABLE = "unprocessable"
    CLIENT_ERROR = "client_error"
    """Any other 4xx without a readable reply."""

    UNAUTHORIZED = "unauthorized"
    """HTTP 401: our credentials, not the session."""
    FORBIDDEN = "forbidden"
    """HTTP 403: credentials or a proxy's rule."""
    PROXY_AUTHENTICATION = "proxy_authentication"
    REQUEST_TIMEOUT = "request_timeout"
    REDIRECT = "redirect"
    SERVER_ERROR = "server_error"
    """HTTP 500 and any 5xx without a word of its own."""
    BAD_GATEWAY = "bad_gateway"
    UNAVAILABLE = "unavailable"
    GATEWAY_TIMEOUT = "gateway_timeout"
    ODD_STATUS = "odd_status"
    """An HTTP status outside 200 to 599."""
    CONTRADICTORY = "contradictory"
    """`statusCode` 0 in an answer whose HTTP status is not 2xx."""
    FOREIGN_REPLY = "foreign_reply"
    """The reply is for another chat than was asked for."""
    EMPTY_BODY = "empty_body"
    HTML = "html"
    TRUNCATED = "truncated"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    NO_STATUS_CODE = "no_status_code"
    UNKNOWN_STATUS_CODE = "unknown_status_code"


class Alive(Value, frozen=True):
    """The session lives; `reply.news` are its tokens from now on."""

    reply: Reply


class Ended(Value, frozen=True):
    """GMS says the chat is over."""

    detail: str = ""


class RetryLater(Value, frozen=True):
    """The session could not be served now. Never an end."""

    cause: str
    retry_after: float | None = None
    """Seconds the node asks to wait, 0 to `MAX_RETRY_AFTER`."""
    detail: str = ""


class Refused(Value, frozen=True):
    """GMS says in a readable reply that this request will not do. Not an end either."""

    cause: str
    detail: str = ""


class NodeTrouble(Value, frozen=True):
    """The answer says something of the node, or of what stands before it, and nothing of the session."""

    cause: str
    retry_after: float | None = None
    """Seconds the node asks to wait, 0 to `MAX_RETRY_AFTER`."""
    detail: str = ""


Outcome = Alive | Ended | RetryLater | Refused | NodeTrouble


def classify(
    status: int, body: bytes, *, chat_id: str, secrets: Sequence[str] = (), retry_after: str | None = None
) -> Outcome:
    """What the answer to a ping Refresh of `chat_id` means. Never raises.

    A well-formed reply counts whatever the HTTP status is, with two exceptions: a redirect is not
    an answer, and success under an error status contradicts itself. Without one the answer says
    something of the node, or of what stands before it, and nothing of the session: a servlet container
    that is still without its application answers 404 for every session there is. `retry_after` is the
    header's value. `detail` is made of status, error codes and the words that go with them; should
    they quote one of `secrets`, what the request carried, that is left out.
    """
    return weigh(status, body, chat_id=chat_id, secrets=secrets, retry_after=retry_after)[0]


def weigh(
    status: int, body: bytes, *, chat_id: str, secrets: Sequence[str] = (), retry_after: str | None = None
) -> tuple[Outcome, bool | None]:
    """What `classify` says, and whether the answer names that chat: `False` when it names another one, `None` when
    it names none."""
    if 300 <= status < 400:
        return NodeTrouble(Cause.REDIRECT, None, f"HTTP {status}"), None
    fields: dict[str, object] = {}
    try:
        fields = _reply_object(body)
        reply = _reply(fields)
    except ChatApiError as fault:
        detail = _unreadable(status, fault.code, fields, secrets)
        return _without_reply(status, detail, fault.code, retry_after), None
    named = _names(fields.get("chatId"), chat_id)
    success = reply.status_code == 0 and 200 <= status < 300
    if success and named is not False and not reply.chat_ended:
        return Alive(reply), named
    detail = _detail(status, fields, reply, secrets)
    if named is False:  # neither another chat's tokens nor its end nor its refusal may reach this session
        return NodeTrouble(Cause.FOREIGN_REPLY, None, detail), named
    if reply.status_code == 1:
        return RetryLater(Cause.STATUS_CODE_1, read_retry_after(retry_after), detail), named
    if reply.status_code == 2 and not reply.chat_ended:
        return Refused(Cause.STATUS_CODE_2, detail), named
    if reply.status_code == 0 and not success:
        return NodeTrouble(Cause.CONTRADICTORY, read_retry_after(retry_after), detail), named
    return Ended(detail), named


def _names(value: object, chat_id: str) -> bool | None:
    if value == chat_id:
        return True
    chat = as_token(value)
    return None if chat is None else chat == chat_id


def read_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """A Retry-After header, seconds or an HTTP date, as seconds between 0 and `MAX_RETRY_AFTER`.

    `None` when there is none or it is unreadable. `now` is for tests; aware.
    """
    if value is None or len(value) > 64:
        return None
    if re.fullmatch(r"\s*\d+(\.\d*)?\s*", value, re.ASCII):
        return min(float(value), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        wait = (moment - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(wait, 0.0), MAX_RETRY_AFTER)


# --- reading replies, in detail ---------------------------------------------------------------


def _reply_object(body: bytes) -> dict[str, object]:
    try:
        value = read_json(body)
    except NotJson:
        code = _looks_like(body)
        raise ChatApiError(code, f"expected a reply object, got {code}") from None
    if not isinstance(value, dict):
        raise ChatApiError("not_an_object", f"expected a reply object, got {type(value).__name__}")
    return value


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


def _reply(fields: dict[str, object]) -> Reply:
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
    )


def _events(messages: object) -> tuple[Event, ...]:
    if not isinstance(messages, list):
        return ()
    return tuple(event for event in map(read_event, messages) if event is not None)


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


def _without_reply(status: int, detail: str, fault: str, retry_after: str | None) -> Outcome:
    """The meaning of an answer that carries no readable reply."""
    if status == 429:
        return RetryLater(Cause.TOO_MANY_REQUESTS, read_retry_after(retry_after), detail)
    of_status = _CAUSES.get(status) or _FAMILIES.get(status // 100, Cause.ODD_STATUS)
    cause = fault if 200 <= status < 300 else of_status
    return NodeTrouble(cause, read_retry_after(retry_after), detail)


_CAUSES = {
    400: Cause.BAD_REQUEST,
    401: Cause.UNAUTHORIZED,
    403: Cause.FORBIDDEN,
    404: Cause.NOT_FOUND,
    405: Cause.METHOD_NOT_ALLOWED,
    407: Cause.PROXY_AUTHENTICATION,
    408: Cause.REQUEST_TIMEOUT,
    409: Cause.CONFLICT,
    410: Cause.GONE,
    413: Cause.BODY_TOO_LARGE,
    414: Cause.URI_TOO_LONG,
    415: Cause.UNSUPPORTED_MEDIA_TYPE,
    422: Cause.UNPROCESSABLE,
    502: Cause.BAD_GATEWAY,
    503: Cause.UNAVAILABLE,
    504: Cause.GATEWAY_TIMEOUT,
}
_FAMILIES = {4: Cause.CLIENT_ERROR, 5: Cause.SERVER_ERROR}


def _detail(status: int, fields: Mapping[str, object], reply: Reply, secrets: Sequence[str]) -> str:
    """Status, and GMS' own errors: code, advice and message of each."""
    parts = [f"HTTP {status}", f"statusCode {reply.status_code}"]
    if reply.chat_ended:
        parts.append("chatEnded")
    hidden = _hidden(fields, secrets)
    for fault in reply.errors[:4]:
        words = ["error" if fault.code is None else f"error {fault.code}", fault.advice, fault.message]
        parts.append(": ".join(_harmless(each, hidden) for each in dict.fromkeys(words) if each))
    return ", ".join(parts)[:MAX_DETAIL]


def _unreadable(status: int, fault: str, fields: Mapping[str, object], secrets: Sequence[str]) -> str:
    """Status, and what came instead of a reply. A servlet container words its own errors as
    `{"exception": ..., "message": ...}` or `{"error": ..., "message": ...}`."""
    words = [as_text(fields.get(name)) for name in ("exception", "error", "message")]
    hidden = _hidden(fields, secrets)
    parts = [f"HTTP {status}, {fault}", *(_harmless(each, hidden) for each in words if each)]
    return ": ".join(parts)[:MAX_DETAIL]


def _hidden(fields: Mapping[str, object], secrets: Sequence[str]) -> Sequence[str]:
    """What must not show: the tokens that were sent, and those that came, also as a form writes them. The
    longest first, so that of one that begins like another nothing is left over."""
    came = (as_token(fields.get("secureKey")), as_token(fields.get("userId")))
    known = [each for each in (*secrets, *came) if each and len(each) > 3]
    forms = {*known, *(quote_plus(each, errors="replace") for each in known)}
    return sorted(forms, key=len, reverse=True)


def _harmless(words: str, hidden: Sequence[str]) -> str:
    """Free text of a node on one line, without control characters. Should it quote tokens, they stop here,
    before anything is cut: half a key is a secret too."""
    text = words[:_MAX_WORDS]
    for each in hidden:
        text = re.sub(re.escape(each), "***", text, flags=re.IGNORECASE)
    if hidden and len(words) > _MAX_WORDS:
        text = text[: -len(hidden[0])]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_DETAIL]


# --- writing and reading requests, in detail --------------------------------------------------


def _triple_fields(tokens: Tokens) -> list[tuple[str, str]]:
    return [("userId", tokens.user_id), ("secureKey", tokens.secure_key), ("alias", tokens.alias)]


def _triple(tokens: Tokens) -> str:
    user_id, secure_key, alias = _quoted(tokens.user_id), _quoted(tokens.secure_key), _quoted(tokens.alias)
    return f"userId={user_id}&secureKey={secure_key}&alias={alias}"


def _quoted(value: str) -> str:
    if value.isalnum() and value.isascii():
        return value  # as good as always; quoting costs more than all the rest of a Refresh
    try:
        return quote_plus(value)
    except UnicodeEncodeError:
        # `from None`: the chained error would carry the value, which may be a secure key.
        raise ChatApiError("unencodable", "a value holds a lone surrogate") from None


def _segment(value: str) -> str:
    """One path segment. An empty one, `.` or `..` would address something else entirely."""
    if value in ("", ".", ".."):
        raise ChatApiError("bad_path", "an id that cannot stand in a path")
    if value.isalnum() and value.isascii():
        return value
    try:
        return quote(value, safe="")
    except UnicodeEncodeError:
        raise ChatApiError("unencodable", "an id holds a lone surrogate") from None


_service = lru_cache(maxsize=64)(_segment)


def _operation_path(operation: Operation, file_id: str | None) -> str:
    if "{fileId}" not in operation.value:
        return operation.value
    if file_id is None:
        raise ChatApiError("no_file_id", f"{operation.name} needs a file id")
    return operation.value.replace("{fileId}", _segment(file_id))


def _read_path(path: str) -> tuple[str, str | None, Operation, str | None]:
    segments = [unquote(part, errors="replace") for part in path.split("?")[0].strip("/").split("/")]
    match segments:
        case [service] if service:
            return service, None, Operation.REQUEST_CHAT, None
        case [service, chat_id, "file", file_id, ("download" | "delete") as action] if service and chat_id:
            return service, chat_id, Operation(f"file/{{fileId}}/{action}"), file_id
        case [service, chat_id, *rest] if service and chat_id and "/".join(rest) in _PLAIN_OPERATIONS:
            return service, chat_id, Operation("/".join(rest)), None
    raise ChatApiError("unknown_operation", "no operation of the Chat API has this path")


_PLAIN_OPERATIONS = frozenset(
    operation.value for operation in Operation if operation.value and "{" not in operation.value
)


def _read_form(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            body.decode("utf-8", "replace"),
            keep_blank_values=True,
            errors="replace",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        raise ChatApiError("bad_form", "the form cannot be read") from None


def _write_multipart(fields: Sequence[tuple[str, str]], file: tuple[str, bytes]) -> tuple[bytes, str]:
    try:
        parts = [(f'name="{_part_name(name)}"', value.encode()) for name, value in fields]
        parts.append((f'name="file"; filename="{_part_name(file[0])}"', file[1]))
        # Derived from the content, so that the content cannot hold it and equal calls are equal.
        boundary = hashlib.blake2b(b"\0".join(content for _, content in parts), digest_size=16).hexdigest()
        blocks = [
            b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n"
            % (boundary.encode(), disposition.encode(), content)
            for disposition, content in parts
        ]
    except UnicodeEncodeError:
        raise ChatApiError("unencodable", "a value holds a lone surrogate") from None
    return b"".join(blocks) + b"--%s--\r\n" % boundary.encode(), f"multipart/form-data; boundary={boundary}"


def _part_name(name: str) -> str:
    """A name inside quotes, escaped as browsers do it."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _plain_name(name: str) -> str:
    return name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


_DISPOSITION_NAME = re.compile(r';\s*name="?([^";]*)"?', re.IGNORECASE)
_DISPOSITION_FILENAME = re.compile(r';\s*filename="?([^"]*)"?', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:(.*)$", re.IGNORECASE | re.MULTILINE)


def _read_multipart(
    body: bytes, content_type: str
) -> tuple[list[tuple[str, str]], dict[str, tuple[str, bytes]]]:
    header = Message()
    header["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise ChatApiError("no_boundary", "a multipart body without a boundary")
    delimiter = b"\r\n--" + boundary.encode("utf-8", "replace")
    blocks = (b"\r\n" + body).split(delimiter, _MAX_FIELDS + 1)
    if len(blocks) < 2 or len(blocks) > _MAX_FIELDS + 1 or not blocks[-1].startswith(b"--"):
        raise ChatApiError("bad_multipart", "the multipart body cannot be read")
    fields: list[tuple[str, str]] = []
    files: dict[str, tuple[str, bytes]] = {}
    for block in blocks[1:-1]:
        head, separator, content = block.partition(b"\r\n\r\n")
        disposition = _DISPOSITION.search(head)
        words = disposition[1].decode("utf-8", "replace").strip() if disposition else ""
        name = _DISPOSITION_NAME.search(words)
        if not separator or name is None:
            raise ChatApiError("bad_multipart", "a part of the multipart body has no name")
        if filename := _DISPOSITION_FILENAME.search(words):
            files.setdefault(_plain_name(name[1]), (_plain_name(filename[1]), content))
        else:
            fields.append((_plain_name(name[1]), content.decode("utf-8", "replace")))
    return fields, files


def _said(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
