"""Secure keys at rest: sealed with AES-256-GCM-SIV (RFC 8452), each bound to the chat it belongs to.

Whoever has a chat's secure key can write in the customer's name, so a stolen disk or backup must not hold
them. A sealed value opens only under its key and for its chat: one that somebody moved to another row does
not. Equal values seal equal, because the store's statements compare secure keys with each other; that is
what the SIV mode is for, where a repeated nonce under plain GCM would be fatal. All an onlooker learns from
it is that a chat has the same secure key as before.

Pure: keys and texts in, texts out. `asyncchatd.stores.sqlite.file.resealing` is what turns a database over from
one key to another, and `asyncchatd.stores.postgres.turning` one that several processes use meanwhile.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final, Protocol

import orjson

from asyncchatd.model import EventKind
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.wire import raw_event

KEY_BYTES = 32
"""A store key has 256 bits."""

_NONCE = bytes(12)
"""Always the same, so that equal values seal equal; GCM-SIV takes what it needs from the text itself."""


class SealError(ValueError):
    """A sealed value does not open: it was damaged, or belongs to another chat. Says nothing of its content."""


class Sealing(Protocol):
    """How secure keys stand in a database."""

    @property
    def key_id(self) -> str | None:
        """Names the key without telling it; `None` where secure keys stand in the clear."""

    def seal(self, secure_key: str | None, chat_id: str | None, device_id: str | None = None) -> str | None:
        """What is written for the secure key of this chat, or while its chat id is not known of this device.
        No key stays none."""

    def open(self, sealed: str | None, chat_id: str | None, device_id: str | None = None) -> str | None:
        """The secure key again. Raises `SealError`."""

    def seal_event(self, body: bytes, chat_id: str) -> bytes:
        """What is written for an event's body, which a customer or an agent may have written."""

    def open_event(self, sealed: bytes, chat_id: str) -> bytes:
        """The body again. Raises `SealError`."""

    def mark(self, likeness: bytes) -> bytes:
        """What is written for an event's likeness: equal ones give equal marks, and nobody can guess a text by one."""

    def marks(self, likeness: bytes) -> Sequence[bytes]:
        """The marks that may stand in the database for it: first the one that is written."""


def event_mark(sealing: Sealing, kind: str, body: bytes) -> bytes | None:
    """The mark of a written event, by its body in the clear. None for one that has no likeness, and for a damaged body:
    one event must not keep the others under a key of before."""
    if kind != EventKind.CHAT:
        return None
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    event = raw_event(message) if isinstance(message, dict) else None
    return None if event is None else sealing.mark(event.likeness)


class Clear:
    """Secure keys as they are: nobody configured a key for the store."""

    key_id: Final = None

    def seal_event(self, body: bytes, chat_id: str) -> bytes:
        return body

    def open_event(self, sealed: bytes, chat_id: str) -> bytes:
        return sealed

    def mark(self, likeness: bytes) -> bytes:
        return likeness

    def marks(self, likeness: bytes) -> Sequence[bytes]:
        return (likeness,)

    def seal(self, secure_key: str | None, chat_id: str | None, device_id: str | None = None) -> str | None:
        return secure_key

    def open(self, sealed: str | None, chat_id: str | None, device_id: str | None = None) -> str | None:
        return sealed


class Sealed:
    """Secure keys sealed under one key of 32 bytes. Safe to use from several threads."""

    def __init__(self, key: bytes) -> None:
        # Dear to import, and a store in the clear needs none of it.
        from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

        if len(key) != KEY_BYTES:
            raise ValueError(f"a store key has {KEY_BYTES} bytes, not {len(key)}")
        self._not_ours: tuple[type[Exception], ...] = (InvalidTag, ValueError)
        """What the cipher raises for what it did not seal."""
        self._marking_key = hashlib.blake2b(key, digest_size=32, person=b"asyncchatd-marks").digest()
        self.key_id: str = hashlib.blake2b(key, digest_size=8, person=b"asyncchatd-keyid").hexdigest()
        try:
            self._cipher = AESGCMSIV(key)
        except UnsupportedAlgorithm as error:
            raise SealError(
                "the OpenSSL of this installation has no AES-GCM-SIV, which came with 3.2;"
                " install the package cryptography as a wheel, which brings its own"
            ) from error

    def seal(self, secure_key: str | None, chat_id: str | None, device_id: str | None = None) -> str | None:
        if secure_key is None:
            return None
        plain = secure_key.encode("utf-8", "surrogatepass")
        sealed = self._cipher.encrypt(_NONCE, plain, _bound_to(chat_id, device_id))
        return binascii.b2a_base64(sealed, newline=False).decode()

    def open(self, sealed: str | None, chat_id: str | None, device_id: str | None = None) -> str | None:
        if sealed is None:
            return None
        try:
            content = binascii.a2b_base64(sealed, strict_mode=True)
            plain = self._cipher.decrypt(_NONCE, content, _bound_to(chat_id, device_id))
        except self._not_ours:
            raise SealError("a sealed secure key does not open") from None
        return plain.decode("utf-8", "surrogatepass")

    def seal_event(self, body: bytes, chat_id: str) -> bytes:
        return self._cipher.encrypt(_NONCE, body, b"event " + _bound_to(chat_id, None))

    def open_event(self, sealed: bytes, chat_id: str) -> bytes:
        try:
            return self._cipher.decrypt(_NONCE, sealed, b"event " + _bound_to(chat_id, None))
        except self._not_ours:
            raise SealError("a sealed event does not open") from None

    def mark(self, likeness: bytes) -> bytes:
        return hashlib.blake2b(likeness, key=self._marking_key, digest_size=16).digest()

    def marks(self, likeness: bytes) -> Sequence[bytes]:
        return (self.mark(likeness),)


class Turning:
    """Secure keys of a database that is turned over from one key to another while it is used: written under the key
    that is in force, opened under any of them."""

    def __init__(self, own: Sequence[Sealing]) -> None:
        """`own`: those of which this process has the key. The first one is in force until `follow` says otherwise."""
        self._own = own
        self._in_force = own[0]
        self._opening = tuple(own)
        self._lacks: str | None = None

    @property
    def key_id(self) -> str | None:
        """Of the key that is in force."""
        return self._in_force.key_id

    @property
    def own(self) -> list[str | None]:
        """The keys that this process has, the one that it would write with first."""
        return [each.key_id for each in self._own]

    def lacks(self, key_id: str | None, former: Collection[str | None]) -> list[str]:
        """Those of the keys under which the database is, or parts of it still are, that this process has not got."""
        return sorted({key for key in (key_id, *former) if key is not None} - set(self.own))

    def follow(self, key_id: str | None, former: Collection[str | None]) -> None:
        """What the database says: the key in force, and those under which parts of it may still be."""
        self._lacks = ", ".join(self.lacks(key_id, former)) or None
        if self._lacks is None:
            by_id: dict[str | None, Sealing] = {None: Clear()}
            by_id.update({each.key_id: each for each in self._own})
            self._in_force = by_id[key_id]
            others = [each for each in self._own if each.key_id not in (key_id, None)]
            # In the clear anything opens, so that it is tried last.
            in_the_clear = [by_id[None]] if None in former and key_id is not None else []
            self._opening = (self._in_force, *others, *in_the_clear)

    def seal(self, secure_key: str | None, chat_id: str | None, device_id: str | None = None) -> str | None:
        return self._writing().seal(secure_key, chat_id, device_id)

    def open(self, sealed: str | None, chat_id: str | None, device_id: str | None = None) -> str | None:
        for each in self._opening[:-1]:
            with suppress(SealError):
                return each.open(sealed, chat_id, device_id)
        return self._opening[-1].open(sealed, chat_id, device_id)

    def seal_event(self, body: bytes, chat_id: str) -> bytes:
        return self._writing().seal_event(body, chat_id)

    def open_event(self, sealed: bytes, chat_id: str) -> bytes:
        for each in self._opening[:-1]:
            with suppress(SealError):
                return each.open_event(sealed, chat_id)
        return self._opening[-1].open_event(sealed, chat_id)

    def mark(self, likeness: bytes) -> bytes:
        return self._in_force.mark(likeness)

    def marks(self, likeness: bytes) -> Sequence[bytes]:
        return [each.mark(likeness) for each in self._opening]

    def _writing(self) -> Sealing:
        if self._lacks is not None:
            raise StoreUnwritable(f"store.keys_file: the keys {self._lacks} are in use and not in it")
        return self._in_force


def _bound_to(chat_id: str | None, device_id: str | None) -> bytes:
    said = f"device {device_id}" if chat_id is None else f"chat {chat_id}"
    return said.encode("utf-8", "surrogatepass")


def sealings(keys: Sequence[bytes]) -> tuple[Sealing, ...]:
    """For each key its sealing, the one to write with first; without keys that in the clear."""
    return tuple(map(Sealed, keys)) or (Clear(),)
