"""What goes wrong between here and PostgreSQL, in the project's words.

The server's own words are kept, as its documentation and its log have them. Those of the driver and of asyncio tell
their states and not the operator's: each is told as what has happened.
"""

from __future__ import annotations

import os
import re
import socket
import ssl

import asyncpg

from asyncchatd.lacks import resolver_words, system_words
from asyncchatd.stores.errors import StoreError, StoreUnwritable

DRIVERS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The driver's errors. The last one is also that no server of the address is what `target_session_attrs` wants, as
during a failover."""

UNREACHED = "PostgreSQL cannot be reached"

_RACES = ("40001", "40P01", "23505")
_DATA = "22"
"""A value cannot be what it has to be. The driver says so too, before anything is sent."""
_DEAD = ("08", "57", "25006")
"""Of the connection, of a server that stops, and of one that has become a standby: it goes on answering reads."""
_ROOM = ("53", "25", "55", "58", "XX", "28", "3D")
"""Not the fault of a statement: no room or no memory, read-only, locked, the disk, damage, who may come."""
_TAKEN_AWAY = ("42501", "42P01", "42703", "3F")
"""Nor are rights, tables and columns that somebody has taken away."""
_HELD = "55P03"
_POOLED = ("26000", "42P05")
"""A prepared statement is not known, or known already: another connection knows it."""


class LostRace(StoreUnwritable):
    """Two transactions were in each other's way, and this one was undone."""


class StillHeld(StoreUnwritable):
    """Somebody held what a statement waits for until its time was over."""


def in_our_words(error: Exception, *, connecting: bool = False) -> StoreError:
    """The driver's errors become the contract's. What goes away by itself, or when somebody mends it, is a
    `StoreUnwritable`. `connecting`: there is no connection yet that could be made anew."""
    code = str(getattr(error, "sqlstate", "") or "")
    if code.startswith(_DATA) or _is_of_a_value(error):
        # Not its words, which show values.
        place = re.search(r"argument \$(\d+)", str(error))
        named = f"value {place[1]} of a statement" if place else "a value"
        return StoreError(f"PostgreSQL: {named} is not what its column takes ({code or 'not sent'})")
    if not code:
        return StoreUnwritable(_without_a_code(error, connecting=connecting))
    if not getattr(error, "message", None):  # the server has said nothing
        return StoreUnwritable(f"PostgreSQL, or who is between, has ended the connection ({code})")
    # Not its DETAIL, which may show a row with its key.
    text = " ".join(str(error.args[0] if error.args else error).split()) or type(error).__name__
    if code in _RACES:
        return LostRace(f"PostgreSQL: {text} ({code})")
    if code == _HELD:
        return StillHeld(f"PostgreSQL: {text} ({code})")
    if code in _POOLED:
        return StoreError(
            "a pooler gives each transaction another connection: add &presence=off&statement_cache=off to the URL"
            f" ({code})"
        )
    if code.startswith((*_DEAD, *_ROOM, *_TAKEN_AWAY)):
        return StoreUnwritable(f"PostgreSQL: {text} ({code})")
    return StoreError(f"PostgreSQL: {text} ({code})")


def own_words(error: BaseException) -> dict[str, str | None]:
    """What the server or the driver said of an error, for the log: its kind, its SQLSTATE, and its words. These are
    left away where they may show a value, or the address."""
    code = str(getattr(error, "sqlstate", "") or "") or None
    text = " ".join(str(error.args[0] if error.args else "").split())
    shows = (code or "").startswith(_DATA) or "://" in text or _is_of_a_value(error)
    return {"cause": type(error).__name__, "code": code, "detail": None if shows else text or None}


def ends(error: Exception) -> bool:
    """Whether nothing more can be done on the connection."""
    code = str(getattr(error, "sqlstate", "") or "")
    return not code or code.startswith(_DEAD)


def _without_a_code(error: Exception, *, connecting: bool) -> str:
    """An error that is none of the server's."""
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return f"{UNREACHED}: no server of the address is what target_session_attrs asks for"
    if isinstance(error, DRIVERS) and not isinstance(error, asyncpg.ClientConfigurationError):
        return f"the connection to PostgreSQL broke off{'' if connecting else ', and is made anew'}"
    return f"{UNREACHED}: {_network_words(error)}"


def _network_words(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name of its host cannot be resolved: {resolver_words(error)}"
    if isinstance(error, ssl.SSLError):
        if verified := getattr(error, "verify_message", None):
            return f"its certificate is not accepted: {verified}"
        reason = str(getattr(error, "reason", None) or "the connection broke off")
        return f"TLS: {reason.replace('_', ' ').lower()}"
    if (words := system_words(error)) is not None:
        file = getattr(error, "filename", None)
        return f"{words}: {file}" if file else words
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConnectionError):
        if "rejected SSL" in text:
            return "it speaks no TLS, which sslmode asks for"
        return "it ended the connection at once; its log may say why"
    if numbers := sorted(
        {int(each) for each in re.findall(r"\[Errno (\d+)\]", text)}
    ):  # of several addresses
        return ", ".join(map(os.strerror, numbers))
    return text


def _is_of_a_value(error: BaseException) -> bool:
    """Whether the driver could not send a value. What is wrong with the parameters of a URL is a `ValueError` too."""
    of_a_url = isinstance(error, asyncpg.ClientConfigurationError)
    return isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError) and not of_a_url
