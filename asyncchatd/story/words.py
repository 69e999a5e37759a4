"""The words that sentences are made of: causes, numbers, and the fields of a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asyncchatd.model import durations

MOST = 10**12
"""As milliseconds, 31 years."""

THE_PAGE = "the customer's page"
"""Who is told of events through the gateway."""


def number(count: float, what: str, plural: str | None = None) -> str:
    """`1 chat`, `1,240 chats`, `no chats`."""
    return f"{f'{count:,}' if count else 'no'} {what if count == 1 else plural or what + 's'}"


def in_words(cause: str) -> str:
    """A cause as logs write it, for people."""
    return CAUSES.get(cause, cause)


def counted(count: int, cause: str) -> str:
    """`3 times GMS did not answer in time`."""
    return f"{'once' if count == 1 else f'{count:,} times'} {in_words(cause)}"


CAUSES = {
    # what became of a ping
    "status_code_1": "GMS could not serve it at the moment (statusCode 1), as when its Chat Server is gone",
    "status_code_2": "GMS refused it (statusCode 2)",
    "timeout": "GMS did not answer in time",
    "connect": "the GMS node could not be reached",
    "disconnected": "the GMS node closed the connection",
    "own_lack": "this host had no descriptor, port or memory left for a connection to GMS",
    "tls": "no trusted TLS connection to the GMS node",
    "too_late": "asyncchatd stood still, and did not send it",
    "no_node": "no GMS node was usable",
    "own_fault": "a fault of asyncchatd itself",
    "too_many_requests": "GMS asked for fewer requests (HTTP 429)",
    "unauthorized": "GMS or its proxy wants credentials (HTTP 401)",
    "forbidden": "GMS or its proxy forbids it (HTTP 403)",
    "not_found": "GMS does not know the address (HTTP 404)",
    "server_error": "GMS answered with an error of its own (HTTP 5xx)",
    "bad_gateway": "a proxy does not reach GMS (HTTP 502)",
    "unavailable": "GMS is not available (HTTP 503)",
    "gateway_timeout": "a proxy had no answer from GMS in time (HTTP 504)",
    "bad_request": "GMS called it a bad request (HTTP 400)",
    "method_not_allowed": "GMS does not take this method (HTTP 405)",
    "conflict": "GMS answered with a conflict (HTTP 409)",
    "gone": "GMS says that the address is gone (HTTP 410)",
    "body_too_large": "GMS or its proxy found it too large (HTTP 413)",
    "uri_too_long": "GMS or its proxy found the address too long (HTTP 414)",
    "unsupported_media_type": "GMS does not take this kind of body (HTTP 415)",
    "unprocessable": "GMS could not process it (HTTP 422)",
    "client_error": "GMS or its proxy does not take it (HTTP 4xx)",
    "proxy_authentication": "a proxy wants credentials (HTTP 407)",
    "request_timeout": "GMS or its proxy waited too long for it (HTTP 408)",
    "redirect": "GMS or its proxy sent it elsewhere (HTTP 3xx)",
    "odd_status": "the answer had an HTTP status that does not exist",
    "contradictory": "the answer said success under an HTTP error",
    "foreign_reply": "the answer spoke of another chat",
    "unnamed_reply": "the answer did not say which chat it was for",
    "empty_body": "the answer was empty",
    "not_json": "the answer was no JSON",
    "not_an_object": "the answer was no JSON object",
    "no_status_code": "the answer had no statusCode",
    "unknown_status_code": "the answer had a statusCode nobody knows",
    "cut_short": "the GMS node broke off in the middle of its answer",
    "reply_too_large": "the answer was too large",
    "http_protocol": "the answer was no HTTP",
    "html": "a page for people came instead of an answer",
    "truncated": "the answer broke off",
    # why a restoration began
    "unreachable": "its health page could not be reached",
    "restarted": "it was restarted",
    "returned": "it came back as if it had never been away, so its chats are uncertain",
    "replaced": "its address now shows another server",
    "announced": "it announced its stop",
    "operator": "an operator asked for it",
}


def as_words(value: object) -> str:
    """The value of a field as people write it: `chat-1, chat-2`, `refused 3, ended 1`, `yes`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {as_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(as_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Said:
    """The fields of a line, as words; a missing one never breaks a sentence."""

    fields: Mapping[str, object]
    servers: Mapping[str, str]

    def text(self, name: str, otherwise: str = "?") -> str:
        return as_words(self.fields.get(name)) or otherwise

    def has(self, name: str) -> bool:
        return self.fields.get(name) not in (None, "", [], False)

    def number(self, name: str) -> float:
        """Never beyond what is counted and measured here: a line may hold anything, infinity too."""
        value = self.fields.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
            return 0
        return max(-MOST, min(value, MOST))

    def count(self, name: str, what: str, plural: str | None = None) -> str:
        return number(self.number(name), what, plural)

    def length(self, name: str) -> str:
        """Of a field in milliseconds."""
        return durations.in_words(abs(self.number(name)) / 1000) if self.has(name) else "0 s"

    def cause(self, name: str = "cause") -> str:
        return in_words(self.text(name))

    def server(self, alias: str = "alias") -> str:
        """The Chat Server by its name, or what is known of it."""
        known = self.text(alias, "")
        name = self.text("server", "") if alias == "alias" else ""
        name = name or self.servers.get(known, "")
        if name and known:
            return f"{name} (alias {known})"
        return name or (f"the Chat Server with alias {known}" if known else "a Chat Server")

    def taker(self) -> str:
        """Who was told of events."""
        return self.text("consumer", THE_PAGE)

    def places(self) -> str:
        """Events by their places in the transcript: `event 7`, `events 7 to 9`; empty where there are none."""
        if not (self.has("first_index") and self.has("last_index")):
            return ""
        first, last = self.number("first_index"), self.number("last_index")
        return f"event {first:.0f}" if first == last else f"events {first:.0f} to {last:.0f}"

    def end(self, before: str, name: str, after: str = "") -> str:
        """A part of a sentence that is there only when the field is."""
        return f"{before}{self.text(name)}{after}" if self.has(name) else ""
