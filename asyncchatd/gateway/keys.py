"""The keys that the gateway gives to chat clients in place of those of GMS.

A client's `secureKey` is made of its chat alone: no look-up is needed to refuse garbage, it outlives the loss of the
store, and every node gives the same. The key that GMS knows may change at any time, and never leaves.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

KEY_BYTES = 20
"""Of a client's key, 40 hexadecimal digits. GMS' own have 16 to 20, and clients keep theirs in columns made for them.
160 bits cannot be guessed, and the key fits wherever a UUID or an SHA-1 does."""

REMEMBERED = 100_000
"""Chats whose right keys are remembered: a client polls every few seconds, and to make them takes as long as all else
that its key is asked for."""

_CLIENT, _CAME_WITH, _TICKET = (
    b"asyncchatd gateway client key 1",
    b"asyncchatd gateway key it came with 1",
    b"asyncchatd gateway ticket 1",
)
"""What a key of the gateway is used for: what is made for the one purpose fits nowhere else."""


class Keys:
    """The gateway's own keys: the first makes those of clients, and all are believed. Nothing shows them."""

    __slots__ = ("_came_with", "_right", "_secrets", "ids")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """As in `gateway.key_file`, the newest first."""
        if not secrets:
            raise ValueError("expected a key of the gateway")
        self._secrets = tuple(dict.fromkeys(secrets))
        self._right: OrderedDict[tuple[str, str], list[bytes]] = OrderedDict()
        self._came_with: OrderedDict[tuple[str, str], str] = OrderedDict()
        """By digest and chat the key that was right."""
        self.ids: tuple[str, ...] = tuple(map(_id_of, self._secrets))
        """Names each key without telling it, for the store: the gateway does not start without the key in use."""

    def __repr__(self) -> str:
        return f"Keys({len(self._secrets)})"

    def __reduce__(self) -> str:
        raise TypeError("the gateway's keys are not written anywhere")

    def of(self, service: str, chat_id: str) -> str:
        """The key of a chat's client. Service and chat id are decoded."""
        return _made(self._secrets[0], _CLIENT, service, chat_id)[: 2 * KEY_BYTES]

    def which(self, service: str, chat_id: str, told: str | None) -> int | None:
        """With which of the keys the one that a client tells was made, 0 for the newest; `None` for none of them. A
        wrong one takes as long, whatever is wrong with it."""
        if told is None:
            return None
        given = told.lower().encode("utf-8", "surrogatepass")
        found = None
        rights = self._right.get((service, chat_id)) or [
            _made(secret, _CLIENT, service, chat_id)[: 2 * KEY_BYTES].encode() for secret in self._secrets
        ]
        for number, right in enumerate(rights):
            if hmac.compare_digest(given, right):
                found = number
        if found is not None:  # what anybody may name is not kept
            _remember(self._right, (service, chat_id), rights)
        return found

    def digest(self, chat_id: str, secure_key: str) -> str:
        """What is kept of the key that a session came with, of GMS or of a chat app, to know it again: of full length,
        bound to the chat, and made with a key of the gateway, so that no key can be found by it. The id of that one
        stands before it."""
        return f"{self.ids[0]}:{_made(self._secrets[0], _CAME_WITH, chat_id, secure_key)}"

    def came_with(self, digest: str, chat_id: str, told: str | None) -> bool:
        """Whether a client tells the key that the session came with. Never, once the key is gone that made the
        digest."""
        if told is None:
            return False
        given = told.encode("utf-8", "surrogatepass")
        known = self._came_with.get((digest, chat_id))
        if known is not None:
            return hmac.compare_digest(given, known.encode("utf-8", "surrogatepass"))
        key_id, _, made = digest.partition(":")
        if key_id not in self.ids:
            return False
        right = _made(self._secrets[self.ids.index(key_id)], _CAME_WITH, chat_id, told)
        if not hmac.compare_digest(right.encode(), made.encode("utf-8", "surrogatepass")):
            return False
        _remember(self._came_with, (digest, chat_id), told)
        return True

    def signature(self, *parts: str) -> str:
        """What shows that a ticket with these parts was given here."""
        return _made(self._secrets[0], _TICKET, *parts)

    def signed(self, signature: str, *parts: str) -> bool:
        """Whether a ticket with these parts was given here, by any of the keys. A wrong one takes as long, whatever is
        wrong with it."""
        told = signature.encode("utf-8", "surrogatepass")
        right = False
        for secret in self._secrets:
            right |= hmac.compare_digest(told, _made(secret, _TICKET, *parts).encode())
        return right


def _remember(known: OrderedDict[tuple[str, str], T], which: tuple[str, str], what: T) -> None:
    known[which] = what
    known.move_to_end(which)
    if len(known) > REMEMBERED:
        known.popitem(last=False)


def _id_of(secret: bytes) -> str:
    return hashlib.blake2b(secret, digest_size=8, person=b"asyncchatd-gwkey").hexdigest()


def _made(secret: bytes, *parts: bytes | str) -> str:
    """Each part stands behind its length, so that no two rows of parts are written alike."""
    written = [part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass") for part in parts]
    told = b"".join(len(part).to_bytes(4, "big") + part for part in written)
    return hmac.digest(secret, told, "sha256").hex()
