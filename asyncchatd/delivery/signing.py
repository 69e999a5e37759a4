"""Signing webhooks as Standard Webhooks has it (https://www.standardwebhooks.com), and what is signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence

import msgspec

from asyncchatd.model import Asked, Batch, EventKind
from asyncchatd.wire import told_event


def signed(keys: Sequence[bytes], number: str, at: int, body: bytes) -> Mapping[str, str]:
    """The headers of one try. `number` is the batch's `id_of`, `at` is now in seconds; each key signs."""
    content = b"%s.%d.%s" % (number.encode(), at, body)
    signatures = (base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": number,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def id_of(batch: Batch, body: bytes) -> str:
    """The `webhook-id` of a batch that has these bytes: the same at each try, and never that of other bytes. A batch
    that is frozen may still come to others: its events have other ids in another epoch, its chat got to be known by
    another service or device, the consumer asks for other kinds."""
    return hashlib.blake2b(body, digest_size=12, key=batch.number.encode()).hexdigest()


def body_of(
    batch: Batch,
    epoch: str,
    tokens: Mapping[str, str] | None = None,
    asked: Mapping[int, Asked] | None = None,
    *,
    keys: bool = False,
) -> bytes:
    """A batch in JSON: the same bytes at each try, but for what changes from try to try. `tokens`: those of the chat,
    for a consumer that has them in its `tokens` events; `asked`: the Refreshes that its `notified` events ask for, by
    their ids, with the tokens where `keys` says so."""
    told = [told_event(event, epoch, (asked or {}).get(event.id), keys=keys) for event in batch.events]
    if tokens is not None:
        carried = msgspec.Raw(msgspec.json.encode(tokens))
        told = [
            msgspec.structs.replace(each, event=carried) if each.kind == EventKind.TOKENS else each
            for each in told
        ]
    return msgspec.json.encode({"chat_id": batch.events[0].chat_id, "events": told})
