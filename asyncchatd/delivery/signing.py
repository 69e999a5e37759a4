"""Signing webhooks as Standard Webhooks has it (https://www.standardwebhooks.com), and what is signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence

import orjson

from asyncchatd.model import Batch, StoredEvent


def signed(keys: Sequence[bytes], number: str, at: int, body: bytes) -> Mapping[str, str]:
    """The headers of one try. `number` names the batch at each try, `at` is now in seconds; each key signs."""
    content = b"%s.%d.%s" % (number.encode(), at, body)
    signatures = (base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": number,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def body_of(batch: Batch, epoch: str, tokens: Mapping[str, str] | None = None) -> bytes:
    """A batch in JSON: the same bytes at each try. `tokens`: those of the chat, for a consumer that has them in its
    `tokens` events."""
    return orjson.dumps(
        {
            "chat_id": batch.events[0].chat_id,
            "events": [shown(event, epoch, tokens) for event in batch.events],
        }
    )


def shown(event: StoredEvent, epoch: str, tokens: Mapping[str, str] | None = None) -> dict[str, object]:
    """An event as consumers get it: `event` is the transcript's own JSON, or null."""
    return {
        "id": f"{epoch}-{event.id}",
        "kind": event.kind,
        "chat_id": event.chat_id,
        "service": event.service,
        "device_id": event.device_id,
        "at": event.at,
        "event": orjson.Fragment(event.body)
        if event.body is not None
        else tokens
        if event.kind == "tokens"
        else None,
    }
