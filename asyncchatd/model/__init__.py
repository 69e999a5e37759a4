"""The model: what everything else thinks in. It knows nobody."""

from asyncchatd.model import data, tokens
from asyncchatd.model.clock import Clock, SystemClock
from asyncchatd.model.data import (
    Cause,
    ChatServer,
    Claim,
    EndCause,
    Loss,
    Ms,
    Process,
    Reason,
    Registration,
    Restoration,
    RestorationState,
    ServerState,
    Session,
    SessionState,
    Settled,
    Settlement,
    TokenNews,
    Tokens,
    Verdict,
    key_digest,
)
from asyncchatd.model.tokens import TokenRecord, is_unlike
from asyncchatd.model.values import plain

__all__ = [
    "Cause",
    "ChatServer",
    "Claim",
    "Clock",
    "EndCause",
    "Loss",
    "Ms",
    "Process",
    "Reason",
    "Registration",
    "Restoration",
    "RestorationState",
    "ServerState",
    "Session",
    "SessionState",
    "Settled",
    "Settlement",
    "SystemClock",
    "TokenNews",
    "TokenRecord",
    "Tokens",
    "Verdict",
    "data",
    "is_unlike",
    "key_digest",
    "plain",
    "tokens",
]
