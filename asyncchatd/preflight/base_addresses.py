"""Base addresses of GMS nodes that lead further than to the node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from asyncchatd.config import GmsSettings
from asyncchatd.model import Finding, findings

_CALL = re.compile(r"/[12]/(?:chat|chat-ntf|service|admin|notification)(?:/|$)|/cometd(?:/|$)")
"""Where the base address ends and that of one of GMS' interfaces begins."""
_CHAT_SERVICE = re.compile(r"/2/chat/([^/]+)")


def doubts(gms: GmsSettings) -> Iterator[Finding]:
    """Base addresses that already lead to one of GMS' interfaces: widgets are configured with such."""
    for index, node in enumerate(gms.nodes):
        path = urlsplit(node).path
        if (found := _CALL.search(path)) is None:
            continue
        base = node[: len(node) - len(path) + found.start()]
        service = _CHAT_SERVICE.search(path)
        other = service is not None and service[1] != gms.service
        yield findings.error(
            f"gms.nodes[{index}]",
            f"{node} is not the base address of GMS: {path[found.start() :]} is put behind that",
            f'set it to "{base}"' + (f', and gms.service to "{service[1]}"' if service and other else ""),
        )
