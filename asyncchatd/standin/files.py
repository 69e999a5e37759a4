"""The files of a plant's chats: what a customer uploaded, and what an agent has, made up as it is read.

A plant shares its machine with what is tried against it. So a large upload lies on disk and not in memory, and an
agent's file of any size is nothing but a seed: the same seed gives the same bytes, so that both ends can tell whether
all of them came.
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import weakref
from collections.abc import Iterator

from asyncchatd.model import Hidden, Value

CHUNK = 64 * 1024
"""Bytes of a file that are in memory at a time."""

IN_MEMORY = 1024 * 1024
"""Bytes of an upload that need no file."""


class OnDisk:
    """The content of an upload in a file that has no name: it is gone when nobody holds this any more."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(buffering=0) as unnamed:
            self._fd = os.dup(unnamed.fileno())
        weakref.finalize(self, os.close, self._fd)

    def write(self, data: bytes) -> None:
        """Adds to its end."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def read(self, at: int) -> bytes:
        """So much as is in memory at a time; nothing at the end."""
        return os.pread(self._fd, CHUNK, at)


class Generated(Value, frozen=True):
    """Content that is made up as it is read: `CHUNK` bytes that the seed says, again and again, and at the beginning
    of each the number of the repetition, so that none can be missing or come twice unseen."""

    seed: int


class PlantFile(Value, frozen=True):
    """A file of a chat."""

    name: Hidden[str]
    size: int
    """In bytes; that of an upload also where it was too large to be kept."""
    content: Hidden[bytes | OnDisk | Generated]

    def chunks(self) -> Iterator[bytes]:
        """Its content, piece by piece."""
        match self.content:
            case bytes():
                for at in range(0, self.size, CHUNK):
                    yield self.content[at : at + CHUNK]
            case OnDisk():
                at = 0
                while piece := self.content.read(at):
                    at += len(piece)
                    yield piece
            case Generated(seed=seed):
                block = random.Random(seed).randbytes(CHUNK)  # reproducible, not secret
                for at in range(0, self.size, CHUNK):
                    yield ((at // CHUNK).to_bytes(8, "big") + block[8:])[: self.size - at]

    def sha256(self) -> str:
        """The digest of its content, in hexadecimal digits."""
        digest = hashlib.sha256()
        for piece in self.chunks():
            digest.update(piece)
        return digest.hexdigest()


class Incoming:
    """An upload while it comes: in memory at first, then on disk, and beyond `most` bytes only counted."""

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self._most = most
        self._size = 0
        self._begun = bytearray()
        self._on_disk: OnDisk | None = None

    def write(self, data: bytes) -> None:
        """The next bytes of it."""
        self._size += len(data)
        if self._size > self._most:
            self._begun, self._on_disk = bytearray(), None
        elif self._on_disk is not None:
            self._on_disk.write(data)
        elif self._size <= IN_MEMORY:
            self._begun += data
        else:
            self._on_disk = OnDisk()
            self._on_disk.write(bytes(self._begun) + data)
            self._begun = bytearray()

    def whole(self) -> PlantFile:
        """All of it has come."""
        return PlantFile(self.name, self._size, self._on_disk or bytes(self._begun))
