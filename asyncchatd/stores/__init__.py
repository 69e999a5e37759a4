"""Stores: the one copy of the truth about sessions, Chat Servers and restorations.

`make_store` finds the class by the scheme of the store's URL among the entry points of the group
`asyncchatd.stores`, so another package can add a store without touching this one. The entry point names a
callable `(url: str, *, directory: Path, queue: int) -> Store`, as a rule a subclass of `Store`; one that can encrypt
secure keys takes `keys: Sequence[bytes]` too, and one that asks for a password `password_file: Path`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoints, PackageNotFoundError, distribution, entry_points
from inspect import signature
from pathlib import Path

from asyncchatd.stores.answers import (
    LASTING,
    Absorbed,
    Bounds,
    Counts,
    Effect,
    Kept,
    NotTaken,
    RanOut,
    Registered,
    Take,
    Taken,
    Trimmed,
    Why,
)
from asyncchatd.stores.asked import tell_asked
from asyncchatd.stores.base import Store
from asyncchatd.stores.errors import (
    ConsumerPushed,
    ConsumerUnknown,
    CursorAhead,
    StoreDamaged,
    StoreError,
    StoreFull,
    in_full,
)
from asyncchatd.stores.moving import Copied, copy_rows
from asyncchatd.stores.rules import (
    DEVICE_CHATS,
    EVERY_REASON,
    LONGEST_BACKOFF_MS,
    LONGEST_TAKE_MS,
    is_repeatable,
    keepalive_ms,
)
from asyncchatd.stores.sealing import KEY_BYTES, sealings
from asyncchatd.stores.trouble import STORE_PAUSE_SECONDS, pause_left, tell_failure

__all__ = [
    "DEVICE_CHATS",
    "ENTRY_POINT_GROUP",
    "EVERY_REASON",
    "KEY_BYTES",
    "LASTING",
    "LONGEST_BACKOFF_MS",
    "LONGEST_TAKE_MS",
    "STORE_PAUSE_SECONDS",
    "Absorbed",
    "Bounds",
    "ConsumerPushed",
    "ConsumerUnknown",
    "Copied",
    "Counts",
    "CursorAhead",
    "Effect",
    "Kept",
    "NotTaken",
    "RanOut",
    "Registered",
    "Store",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "Take",
    "Taken",
    "Trimmed",
    "Why",
    "copy_rows",
    "in_full",
    "is_repeatable",
    "keepalive_ms",
    "make_store",
    "pause_left",
    "sealings",
    "store_schemes",
    "tell_asked",
    "tell_failure",
]

ENTRY_POINT_GROUP = "asyncchatd.stores"

INSTALLED_BY = {"asyncpg": "asyncpg"}
"""What must be installed for the modules that only some stores need, by the modules' names."""


def make_store(
    url: str,
    *,
    directory: Path,
    queue: int = 10_000,
    keys: Sequence[bytes] = (),
    password_file: Path | None = None,
) -> Store:
    """The store for `url`, not yet open.

    `directory` is where a relative path in the URL starts (the configuration file's), `queue` how
    many pushes may wait for the disk, `keys` encrypt secure keys: the first one is written with, all open
    what is there. `password_file` holds the password of the database. Raises `StoreError` for a scheme nobody
    provides, for a store that is installed but cannot be imported, for one that is given keys and cannot encrypt, and
    for one that is given a password and asks for none.
    """
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    found = _of_our_own(scheme) or entry_points(group=ENTRY_POINT_GROUP, name=scheme)
    if not found:
        raise StoreError(
            f"no store for {scheme or url!r}; installed are: {', '.join(store_schemes())}"
            " (a store is a package with an entry point in the group asyncchatd.stores)"
        )
    entry = next(iter(found))
    try:
        factory = entry.load()
    except (ImportError, AttributeError) as error:
        lacks = INSTALLED_BY.get(getattr(error, "name", None) or "")
        remedy = f"; in asyncchatd's environment: pip install {lacks} (docs/installing.md)" if lacks else ""
        raise StoreError(
            f"the store for {scheme} ({entry.value}) cannot be loaded: {error}{remedy}"
        ) from error
    further = {"keys": keys} if keys else {}, {"password_file": password_file} if password_file else {}
    takes = signature(factory).parameters
    if keys and "keys" not in takes:
        raise StoreError(f"the store for {scheme} ({entry.value}) does not encrypt: remove store.keys_file")
    if password_file and "password_file" not in takes:
        raise StoreError(
            f"store.password_file: the store for {scheme} ({entry.value}) has no password; remove this key"
        )
    store: Store = factory(url, directory=directory, queue=queue, **further[0], **further[1])
    return store


def _of_our_own(scheme: str) -> EntryPoints | None:
    """What this package has for a scheme; it is asked first, because to ask all that are installed takes the longer the
    more they are."""
    try:
        return distribution("asyncchatd").entry_points.select(group=ENTRY_POINT_GROUP, name=scheme)
    except PackageNotFoundError:
        return None


def store_schemes() -> list[str]:
    """URL schemes of the installed stores."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)})
