"""What worker and gateway share of a request for a session: it is held, looked at right before, sent and settled."""

from asyncchatd.sending.confirming import Confirming
from asyncchatd.sending.flight import Departure, Flight
from asyncchatd.sending.judgement import ANSWERED, FAILED, landing
from asyncchatd.sending.sending import Sending
from asyncchatd.sending.settling import IDLE_SECONDS, together_seconds
from asyncchatd.sending.telling import is_usual, log_ping

__all__ = [
    "ANSWERED",
    "FAILED",
    "IDLE_SECONDS",
    "Confirming",
    "Departure",
    "Flight",
    "Sending",
    "is_usual",
    "landing",
    "log_ping",
    "together_seconds",
]
