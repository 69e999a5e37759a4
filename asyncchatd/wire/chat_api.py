"""Chat API version 2: requests out, replies in."""
from __future__ import annotations
# SKELETON of the agreed public face, to be implemented:
#
# class Operation(StrEnum)        every row of protocol.md section 2; value = path after {chatId}/ ("refresh", "send", "startTyping", "pushUrl", "file/limits", ...); REQUEST_CHAT = ""
# @dataclass(frozen, slots) class Call:  path: str ("customer-support/<chatId>/refresh", percent-encoded, relative to {base}/2/chat/), body: bytes, content_type: str
# def refresh(service: str, tokens: Tokens, position: int | None, message: str | None = None) -> Call      the hot path: must be fast (no urllib.parse.urlencode of a dict per call if a hand-made join of quote_plus'ed parts is faster)
# def call(operation, service, tokens: Tokens | None, fields: Sequence[tuple[str, str]] = (), file_id: str | None = None) -> Call
#
# @dataclass Received: service, chat_id | None, operation, file_id | None, fields: dict[str, str], user_data: dict[str, str], news: TokenNews      what a GMS sees
# def read_call(path: str, body: bytes, content_type: str = ...) -> Received, raises ChatApiError      (urlencoded and multipart/form-data; trailing slash on request chat; percent-encoded userData[...] keys)
#
# @dataclass Event: type: str (as sent), kind: str (normalised: lower case, no "-" "_"), index: int | None, utc_time: Ms | None, participant_id: int | None, participant_type: str | None, nickname, text, message_type, quit_reason_code: int | None, quit_reason_advice: str | None
# def read_event(value: object) -> Event | None
#
# @dataclass Reply: status_code: int, news: TokenNews, next_position: int | None, chat_ended: bool, events: tuple[Event, ...], errors: tuple[ReplyFault, ...]
# def read_reply(body: bytes) -> Reply, raises ChatApiError
# def write_reply(...) -> bytes         for the stand-in; read_reply reads it back
#
# the outcome of a ping, one of:
# Alive(reply)                          statusCode 0, status 2xx, chatEnded not true; if the reply's chatId is another than asked for: NodeTrouble(cause="foreign_reply")
# Ended(detail)                         chatEnded true in a statusCode 0 or 2 reply
# RetryLater(cause, retry_after)        statusCode 1; 429 with a retry_after
# Refused(cause, detail)                statusCode 2 without chatEnded; 400 404 405 409 410 413 414 415 422 and any other 4xx without a readable reply
# NodeTrouble(cause, retry_after, detail)     401 403 (credentials or a proxy's rule: says nothing of the session), 408, 3xx, 5xx, body unreadable, truncated, HTML, contradictory (statusCode 0 with non-2xx)
# Outcome = Alive | Ended | RetryLater | Refused | NodeTrouble
# def classify(status: int, body: bytes, *, chat_id: str, retry_after: str | None = None) -> Outcome      never raises
