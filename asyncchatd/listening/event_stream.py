"""Server-sent events, as every listener writes them (HTML Living Standard, section 9.2).

What stands between a stream and its reader holds it back or ends it when it is silent: nginx does after 60 s, others
sooner. So a comment goes out where there is nothing to say, and the headers ask for no buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",  # a proxy in front must not collect them
        "X-Content-Type-Options": "nosniff",
    }
)
"""Those of an answer that is a stream."""

HEARTBEAT_SECONDS = 15.0
"""A stream is not silent for longer."""

ALIVE = b": alive\n\n"
"""A comment, which readers pass over."""


def retry(milliseconds: int) -> bytes:
    """How long a browser waits before it comes back."""
    return b"retry: %d\n\n" % milliseconds


def event(data: bytes, *, name: str | None = None, event_id: str | None = None) -> bytes:
    """One event. `data` may hold the end of a line, `name` and `event_id` must not. Without one it is a `message`."""
    head = b"" if event_id is None else b"id: %b\n" % event_id.encode()
    head += b"" if name is None else b"event: %b\n" % name.encode()
    return head + b"".join(b"data: %b\n" % line for line in data.splitlines() or (b"",)) + b"\n"


def place(event_id: str) -> bytes:
    """No event, but where a reader is: a browser that comes back says it as `Last-Event-ID`."""
    return b"id: %b\n\n" % event_id.encode()
