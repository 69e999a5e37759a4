"""The troubles with which a request to a GMS node ends without an answer, and their words."""

from __future__ import annotations

import socket
import ssl
from enum import StrEnum

from asyncchatd.gms.http_reply import HttpReplyError, HttpReplyTooLarge
from asyncchatd.lacks import resolver_words, system_words


class Trouble(StrEnum):
    """The reasons why there is no answer, as log, metrics and pages name them. What a node answers with is
    `wire.PingFault`."""

    CONNECT = "connect"
    """No connection: the request was never sent."""
    OWN_LACK = "own_lack"
    """The same, because this host had no descriptor, port or memory left for one: the node has no part in it."""
    TLS = "tls"
    """The two ends do not agree on TLS, or do not trust each other."""
    DISCONNECTED = "disconnected"
    """Hung up before an answer: so ends also a kept connection that the node had given up."""
    TIMEOUT = "timeout"
    """No answer in time: the request may still be worked on."""
    CUT_SHORT = "cut_short"
    """Hung up in the middle of an answer: what it told is lost."""
    PROTOCOL = "http_protocol"
    """What came is no HTTP answer."""
    REPLY_TOO_LARGE = "reply_too_large"
    """The answer is longer than `http_reply.MAX_REPLY`."""
    UNNAMED_REPLY = "unnamed_reply"
    """Success, or an end, without a chat id, over a connection that had served other chats before."""
    TOO_LATE = "too_late"
    """The daemon stood still, and did not send it: its session may be another node's by now, or no connection was made
    in time."""
    NO_NODE = "no_node"
    """Every node rests: the request was never sent."""
    OWN_FAULT = "own_fault"
    """Not GMS' doing: the daemon failed at it."""


class ExchangeError(Exception):
    """A request ended without an answer. `detail` says more, without secrets."""

    def __init__(self, cause: Trouble, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail
        self.sent = False
        """Whether the request may have been taken: it was written, if only in part, to a node that did not refuse
        the Trouble.TLS handshake."""
        self.kept = False
        """Whether that was over a connection that had served another request before."""
        self.begun = False
        """Whether a byte of an answer had come."""
        self.stale = False
        """Whether the node had closed the connection before the request can have reached it: a kept one, not a
        byte of an answer, and the end came within one round trip of the write."""


def cause_of(error: HttpReplyError) -> Trouble:
    """The trouble with an answer that cannot be read."""
    return Trouble.REPLY_TOO_LARGE if isinstance(error, HttpReplyTooLarge) else Trouble.PROTOCOL


def in_connecting(error: OSError | RuntimeError | UnicodeError) -> str:
    """The words for a connection that could not be made."""
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved: {resolver_words(error) or 'it has no address'}"
    words = system_words(error)  # none where a name has several addresses and all failed
    return words.lower() if words else type(error).__name__


def in_tls(error: ssl.SSLError) -> str:
    """The words of OpenSSL, which are made of certificates and states, for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or type(error).__name__).lower().replace("_", " ")


def is_refusal(error: ssl.SSLError) -> bool:
    """Whether the node says that it does not take our certificate, or our lack of one. With TLS 1.3 it says so
    when for us the handshake is over, and has read no request by then."""
    reason = error.reason or ""
    return "ALERT" in reason and any(word in reason for word in _REFUSALS)


_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")
