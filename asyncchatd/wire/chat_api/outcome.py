"""Outcomes: what an answer, whatever it is, means for the session that was pinged.

`classify` is careful in one direction: nothing but a readable reply that says `chatEnded` ends a session. Pure
functions of bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from urllib.parse import quote_plus

from asyncchatd.model import Hidden, Value
from asyncchatd.wire.chat_api.calls import ChatApiError
from asyncchatd.wire.chat_api.replies import Reply, read_fields, reply_object
from asyncchatd.wire.identifiers import as_token
from asyncchatd.wire.lenient_json import as_text

MAX_RETRY_AFTER = 3600.0
"""Seconds; a node asking for more is not believed: a session must not wait past its deadlines."""

MAX_DETAIL = 200
"""Characters of free text that a reply may contribute to a log line."""

_MAX_WORDS = 4000
"""Characters of a node's free text that are looked through for tokens."""


class PingFault(StrEnum):
    """The fault because of which a ping did not succeed, as `classify` words it. Metric labels: a small, closed set.

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
    """The outcome for a session that lives; `reply.news` are its tokens from now on."""

    reply: Reply


class Ended(Value, frozen=True):
    """The outcome for a chat that is over: GMS says so."""

    detail: str = ""
    messages: Hidden[tuple[dict[str, object], ...]] = ()
    """The last events, as in `Reply`, of an end that is told with statusCode 0."""


class RetryLater(Value, frozen=True):
    """The outcome for a session that could not be served now. Never an end."""

    cause: str
    retry_after: float | None = None
    """Seconds the node asks to wait, 0 to `MAX_RETRY_AFTER`."""
    detail: str = ""
    said: str = ""
    """Of the detail, what the node itself said of its error."""


class Refused(Value, frozen=True):
    """The outcome of a request that will not do, as GMS says in a readable reply. Not an end either."""

    cause: str
    detail: str = ""
    said: str = ""
    """Of the detail, what GMS itself said of its error."""


class NodeTrouble(Value, frozen=True):
    """The outcome of an answer that speaks of the node, or of what stands before it, and not of the session."""

    cause: str
    retry_after: float | None = None
    """Seconds the node asks to wait, 0 to `MAX_RETRY_AFTER`."""
    detail: str = ""
    said: str = ""
    """Of the detail, what the node itself said of its error."""


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
        return NodeTrouble(PingFault.REDIRECT, None, f"HTTP {status}"), None
    fields: dict[str, object] = {}
    try:
        fields = reply_object(body)
        reply = read_fields(fields)
    except ChatApiError as fault:
        said = _unreadable(fields, secrets)
        detail = _joined(": ", f"HTTP {status}, {fault.code}", said)
        return _without_reply(status, detail, said, fault.code, retry_after), None
    named = _names(fields.get("chatId"), chat_id)
    success = reply.status_code == 0 and 200 <= status < 300
    if success and named is not False and not reply.chat_ended:
        return Alive(reply), named
    said = _said(fields, reply, secrets)
    ended = "chatEnded" if reply.chat_ended else ""
    detail = _joined(", ", f"HTTP {status}", f"statusCode {reply.status_code}", ended, said)
    if named is False:  # neither another chat's tokens nor its end nor its refusal may reach this session
        return NodeTrouble(PingFault.FOREIGN_REPLY, None, detail, said), named
    if reply.status_code == 1:
        return RetryLater(PingFault.STATUS_CODE_1, read_retry_after(retry_after), detail, said), named
    if reply.status_code == 2 and not reply.chat_ended:
        return Refused(PingFault.STATUS_CODE_2, detail, said), named
    if reply.status_code == 0 and not success:
        return NodeTrouble(PingFault.CONTRADICTORY, read_retry_after(retry_after), detail), named
    return Ended(detail, reply.messages if success else ()), named


def weigh_first(status: int, body: bytes, *, retry_after: str | None = None) -> tuple[Outcome, bool | None]:
    """What `weigh` says of the answer to a "request chat", which names a chat that nobody knew: `None` when it names
    none, and then it tells of no chat."""
    try:
        chat_id = as_token(reply_object(body).get("chatId"))
    except ChatApiError:
        chat_id = None
    return weigh(status, body, chat_id=chat_id or "", retry_after=retry_after)


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


def _without_reply(status: int, detail: str, said: str, fault: str, retry_after: str | None) -> Outcome:
    """The meaning of an answer that carries no readable reply."""
    if status == 429:
        return RetryLater(PingFault.TOO_MANY_REQUESTS, read_retry_after(retry_after), detail, said)
    of_status = _CAUSES.get(status) or _FAMILIES.get(status // 100, PingFault.ODD_STATUS)
    cause = fault if 200 <= status < 300 else of_status
    return NodeTrouble(cause, read_retry_after(retry_after), detail, said)


_CAUSES = {
    400: PingFault.BAD_REQUEST,
    401: PingFault.UNAUTHORIZED,
    403: PingFault.FORBIDDEN,
    404: PingFault.NOT_FOUND,
    405: PingFault.METHOD_NOT_ALLOWED,
    407: PingFault.PROXY_AUTHENTICATION,
    408: PingFault.REQUEST_TIMEOUT,
    409: PingFault.CONFLICT,
    410: PingFault.GONE,
    413: PingFault.BODY_TOO_LARGE,
    414: PingFault.URI_TOO_LONG,
    415: PingFault.UNSUPPORTED_MEDIA_TYPE,
    422: PingFault.UNPROCESSABLE,
    502: PingFault.BAD_GATEWAY,
    503: PingFault.UNAVAILABLE,
    504: PingFault.GATEWAY_TIMEOUT,
}


_FAMILIES = {4: PingFault.CLIENT_ERROR, 5: PingFault.SERVER_ERROR}


def _joined(between: str, *parts: str) -> str:
    return between.join(part for part in parts if part)[:MAX_DETAIL]


def _said(fields: Mapping[str, object], reply: Reply, secrets: Sequence[str]) -> str:
    """GMS' own errors: code, advice and message of each."""
    hidden = _hidden(fields, secrets)
    errors = (
        ("error" if fault.code is None else f"error {fault.code}", fault.advice, fault.message)
        for fault in reply.errors[:4]
    )
    return _joined(
        ", ",
        *(": ".join(_harmless(each, hidden) for each in dict.fromkeys(words) if each) for words in errors),
    )


def _unreadable(fields: Mapping[str, object], secrets: Sequence[str]) -> str:
    """What came instead of a reply. A servlet container words its own errors as
    `{"exception": ..., "message": ...}` or `{"error": ..., "message": ...}`."""
    words = [as_text(fields.get(name)) for name in ("exception", "error", "message")]
    hidden = _hidden(fields, secrets)
    return _joined(": ", *(_harmless(each, hidden) for each in words if each))


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
