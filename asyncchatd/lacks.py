"""What this host or the daemon itself lacks for a connection: never evidence about whom it was for."""

from __future__ import annotations

import errno
import os
import socket

_LACKS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)
)  # the last one: all local ports are in use
_RESOLVER_LACKS = frozenset((socket.EAI_MEMORY, socket.EAI_SYSTEM))


def own_lack(error: BaseException) -> str | None:
    """What is lacking here, in words, such as "too many open files"; `None` when an error says nothing of that."""
    number = getattr(error, "errno", None)
    if isinstance(error, socket.gaierror):
        return str(error.strerror).lower() if number in _RESOLVER_LACKS else None
    return os.strerror(number).lower() if number in _LACKS else None
