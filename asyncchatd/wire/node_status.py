"""GMS' page of a node's status, `GET {base}/1/admin/node/status`: what balancers ask it, and `asyncchatd check`.

GMS documents plain text, `ONLINE` or `OFFLINE` (protocol section 8). Proxies and other versions may wrap the word into
JSON or XML, so the word alone is looked for.
"""

from __future__ import annotations

import re
from enum import StrEnum

NODE_STATUS = "/1/admin/node/status"
"""Behind the base address of a node."""

LARGEST_STATUS = 4_096
"""Bytes of the page that are looked at."""


class NodeStatus(StrEnum):
    """What a GMS node says of itself."""

    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"
    """It was taken out of service, or stops within seconds."""


def read_node_status(body: bytes) -> NodeStatus | None:
    """What the page says; `None` when it says neither word, or both, or is a page for people."""
    text = body[:LARGEST_STATUS].decode("utf-8-sig", "replace")
    if is_web_page(body):
        return None
    words = {
        word.upper() for word in re.findall(r"(?<![^\W_])(online|offline)(?![^\W_])", text, re.IGNORECASE)
    }
    return NodeStatus(words.pop()) if len(words) == 1 else None


def is_web_page(body: bytes) -> bool:
    """Whether this is HTML: somebody's portal, or an error that says it is none."""
    return _HTML.match(body) is not None


_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s{0,4096}+(?:<\?xml[^>]{0,200}+>\s{0,4096}+)?(?:<!--.{0,4096}?-->\s{0,4096}+)?<(?:!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)
