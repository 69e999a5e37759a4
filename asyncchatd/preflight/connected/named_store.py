"""The store that a configuration names, before anybody opens it."""

from __future__ import annotations

from asyncchatd.config import Settings
from asyncchatd.model import Finding, findings
from asyncchatd.stores import Store, StoreError, make_store


def unopened(settings: Settings) -> Store:
    """The store that the configuration names. Raises `StoreError` for one that is not there, or cannot be."""
    return make_store(
        settings.store_url,
        directory=settings.directory,
        keys=settings.store_keys,
        password_file=settings.store_password_file,
    )


def impossible(trouble: StoreError) -> Finding:
    """What is said of a store that is not there, or cannot be as its URL says."""
    words = str(trouble)
    key, named, rest = words.partition(": ")
    if named and key in ("store.url", "store.password_file"):
        return findings.error(key, rest, "correct it and check again")
    return findings.error("store.url", words, "install it, or name another store")
