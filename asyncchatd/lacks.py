"""A network error in words, and what this host or the daemon itself lacks for a connection: never evidence about
whom it was for."""

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


def system_words(error: BaseException) -> str | None:
    """A network error in the system's words, such as "Connection refused"; `None` for an error that has no number of
    the system. OpenSSL's numbers are not the system's, and those of name resolution are below zero.
    The words are never `error.strerror`: asyncio puts the address into it."""
    import ssl  # nobody else needs it who speaks no TLS

    number = getattr(error, "errno", None)
    if isinstance(error, ssl.SSLError) or not number or number < 0:
        return None
    return os.strerror(number)


def resolver_words(error: BaseException) -> str:
    """Why a name could not be resolved, in small letters; empty where nobody says so."""
    return str(getattr(error, "strerror", None) or "").lower()
