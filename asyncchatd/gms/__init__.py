"""The way to GMS: its client, its connections, and how fast it may be asked."""

from asyncchatd.gms.client import Answer, GmsClient
from asyncchatd.gms.pacing import InFlight, Landing, Pacer, RetryBudget
from asyncchatd.gms.streams import Opened, Streams
from asyncchatd.gms.trouble import Trouble

__all__ = [
    "Answer",
    "GmsClient",
    "InFlight",
    "Landing",
    "Opened",
    "Pacer",
    "RetryBudget",
    "Streams",
    "Trouble",
]
