"""Chat API version 2, the language between a client and a GMS node (protocol section 2)."""

from asyncchatd.wire.chat_api.calls import FORM, Call, ChatApiError, Operation, call, refresh
from asyncchatd.wire.chat_api.multipart import MultipartReader, PartHead
from asyncchatd.wire.chat_api.outcome import (
    Alive,
    Ended,
    NodeTrouble,
    Outcome,
    PingFault,
    Refused,
    RetryLater,
    classify,
    read_retry_after,
    weigh,
    weigh_first,
)
from asyncchatd.wire.chat_api.replies import (
    NO_NEWS,
    ChatEvent,
    Reply,
    ReplyFault,
    event_kind,
    raw_event,
    read_fields,
    read_reply,
)

__all__ = [
    "FORM",
    "NO_NEWS",
    "Alive",
    "Call",
    "ChatApiError",
    "ChatEvent",
    "Ended",
    "MultipartReader",
    "NodeTrouble",
    "Operation",
    "Outcome",
    "PartHead",
    "PingFault",
    "Refused",
    "Reply",
    "ReplyFault",
    "RetryLater",
    "call",
    "classify",
    "event_kind",
    "raw_event",
    "read_fields",
    "read_reply",
    "read_retry_after",
    "refresh",
    "weigh",
    "weigh_first",
]
