"""The way to GMS: its client, its connections, and how fast it may be asked."""

from asyncchatd.gms.client import NO_NODE, OWN_FAULT, Answer, GmsClient
from asyncchatd.gms.connections import CONNECT, OWN_LACK, REPLY_TOO_LARGE, TLS
from asyncchatd.gms.pacing import InFlight, Landing, Pacer, RetryBudget

__all__ = [
    "CONNECT",
    "NO_NODE",
    "OWN_FAULT",
    "OWN_LACK",
    "REPLY_TOO_LARGE",
    "TLS",
    "Answer",
    "GmsClient",
    "InFlight",
    "Landing",
    "Pacer",
    "RetryBudget",
]
