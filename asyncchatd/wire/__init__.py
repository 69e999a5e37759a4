"""Bytes to model and back: pure functions, no I/O.

`chat_api` is GMS' Chat API version 2, `push` its push notifications, `health` the Chat Servers'
health pages. Nobody outside a live installation knows every form, so each reader takes every
plausible one and raises nothing but its own documented error.
"""

from asyncchatd.wire import chat_api
from asyncchatd.wire.chat_api import (
    FORM,
    NO_NEWS,
    Alive,
    Call,
    ChatApiError,
    ChatEvent,
    Ended,
    MultipartReader,
    NodeTrouble,
    Operation,
    Outcome,
    PartHead,
    PingFault,
    Refused,
    Reply,
    ReplyFault,
    RetryLater,
    event_kind,
    raw_event,
    read_retry_after,
)
from asyncchatd.wire.errors import error_body
from asyncchatd.wire.health import MAX_PAGE, HealthError, HealthPage, read_health
from asyncchatd.wire.identifiers import LARGEST_ID, is_token
from asyncchatd.wire.long_reply import MAX_VALUE, LongReply
from asyncchatd.wire.packed import WINDOWS, NotPacked, Packed, TooMuch
from asyncchatd.wire.push import Push, PushError, read_push
from asyncchatd.wire.told_event import ToldEvent, event_id, read_event_id, told_event, transcript_index

__all__ = [
    "FORM",
    "LARGEST_ID",
    "MAX_PAGE",
    "MAX_VALUE",
    "NO_NEWS",
    "WINDOWS",
    "Alive",
    "Call",
    "ChatApiError",
    "ChatEvent",
    "Ended",
    "HealthError",
    "HealthPage",
    "LongReply",
    "MultipartReader",
    "NodeTrouble",
    "NotPacked",
    "Operation",
    "Outcome",
    "Packed",
    "PartHead",
    "PingFault",
    "Push",
    "PushError",
    "Refused",
    "Reply",
    "ReplyFault",
    "RetryLater",
    "ToldEvent",
    "TooMuch",
    "chat_api",
    "error_body",
    "event_id",
    "event_kind",
    "is_token",
    "raw_event",
    "read_event_id",
    "read_health",
    "read_push",
    "read_retry_after",
    "told_event",
    "transcript_index",
]
