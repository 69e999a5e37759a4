"""The rights of the control API's clients: what a token may be used for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import SecretStr


class Right(StrEnum):
    """What somebody may do at the control API."""

    READ = "read"
    """To look: status, sessions, Chat Servers, restorations, metrics, the page; neither keys nor texts."""

    REGISTER = "register"
    """To register sessions, tell their newest tokens, and end them."""

    OPERATE = "operate"
    """To make sessions due, and restore those of a Chat Server."""

    KEYS = "keys"
    """To be told the secure keys of sessions: who has one speaks for the customer."""

    EVENTS = "events"
    """To read what is written in the chats, of all consumers or of some."""


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights of one client."""

    held: tuple[Right, ...]
    """In the order in which `Right` has them."""
    consumers: tuple[str, ...] | None = None
    """The consumers whose events may be read; `None` for all. Of no account without the right to events."""

    @classmethod
    def parse(cls, words: Sequence[str]) -> Rights:
        """From words such as `read` and `events:app,archive`. Raises `ValueError`, which repeats no word: one may be a
        token that was written into another's line."""
        held: set[Right] = set()
        consumers: set[str] = set()
        of_all = False
        for number, word in enumerate(words, start=1):
            name, colon, of = word.partition(":")
            if name not in list(Right) or (colon and name != Right.EVENTS):
                raise ValueError(_no_right(number, word))
            held.add(Right(name))
            if not colon:
                of_all |= name == Right.EVENTS
            elif _CONSUMERS.fullmatch(of):
                consumers |= set(of.split(","))
            else:
                raise ValueError(
                    f"expected names of consumers in word {number} behind the token, such as events:app or"
                    " events:app,archive, without blanks"
                )
        return cls(
            tuple(right for right in Right if right in held),
            tuple(sorted(consumers)) if consumers and not of_all else None,
        )

    def allow(self, right: Right, consumers: Sequence[str] = ()) -> bool:
        """Whether the right is among them; that to events for each of these consumers."""
        if right not in self.held:
            return False
        return right is not Right.EVENTS or self.consumers is None or set(consumers) <= set(self.consumers)

    def __str__(self) -> str:
        return ", ".join(self.held)


ORDINARY_RIGHTS = Rights((Right.READ, Right.REGISTER, Right.OPERATE))
"""Of a token beside which none are written, and of whoever comes where no token is asked for."""

ALL_RIGHTS = Rights(tuple(Right))


@dataclass(frozen=True, slots=True)
class Grant:
    """One token, and the rights of whoever shows it."""

    token: SecretStr
    rights: Rights


_CONSUMERS = re.compile(r"[A-Za-z0-9._-]+(?:,[A-Za-z0-9._-]+)*")


def _no_right(number: int, word: str) -> str:
    known = f"{', '.join(Right)} or {Right.EVENTS}:NAME"
    message = f"expected {known} as word {number} behind the token"
    if word.startswith("#"):
        return f"{message}; a comment needs a line of its own"
    close = difflib.get_close_matches(word.partition(":")[0].lower(), list(Right), n=1, cutoff=0.6)
    return f"{message}; did you mean {close[0]}?" if close else message
