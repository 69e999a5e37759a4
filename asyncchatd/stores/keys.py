"""The keys of a store, and what the operator is told of them."""

from __future__ import annotations

from collections.abc import Sequence

from asyncchatd.log import Event, get_logger
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.sealing import SealError, Sealing, sealings

log = get_logger()


def sealings_of(keys: Sequence[bytes]) -> Sequence[Sealing]:
    """The sealings of `store.keys_file`, the one to write with first. Raises `StoreError`."""
    try:
        return sealings(keys)
    except SealError as error:
        raise StoreError(f"store.keys_file: {error}") from error


def opened(
    sealing: Sealing, sealed: str | None, chat_id: str | None, device_id: str | None = None
) -> str | None:
    """A secure key that was read, in the clear. None when it does not open: then it is told to the operator,
    and the session goes on like one whose key was never known. A wrong key would end the chat."""
    try:
        return sealing.open(sealed, chat_id, device_id)
    except SealError:
        log.error(Event.SECURE_KEY_DAMAGED, chat_id=chat_id, device_id=device_id)
        return None


def tell_unsealed(sealing: Sealing, store: str) -> None:
    """Tell the operator of a store in which secure keys stand in the clear."""
    if sealing.key_id is None:
        advice = "give it a key with store.keys_file: docs/encryption.md"
        log.warning(Event.STORE_UNENCRYPTED, store=store, advice=advice)
