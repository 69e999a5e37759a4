"""What is signed, and that the public package takes it."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from asyncchatd.config import webhook_key
from asyncchatd.delivery.signing import body_of, signed
from asyncchatd.model.delivery import Batch
from asyncchatd.model.transcript import EventKind, StoredEvent

from .rig import OTHER_SECRET, SECRET


def stored(number: int, kind: EventKind = EventKind.CHAT, body: bytes | None = b"{}") -> StoredEvent:
    return StoredEvent(number, kind, "chat-1", "support", "device-1", 1_700_000_000_000, body)


def batch(*events: StoredEvent) -> Batch:
    return Batch("app", 1, "0f" * 12, events, 0, None)


def now() -> int:
    return int(datetime.now(UTC).timestamp())


def test_the_public_package_takes_the_signature() -> None:
    body = body_of(batch(stored(1, body='{"text": "Grüße, 你好"}'.encode())), "e")
    headers = dict(signed([webhook_key(SECRET)], "0f" * 12, now(), body))
    assert Verifier(SECRET).verify(body, headers) == orjson.loads(body)


def test_during_a_rotation_who_has_either_secret_takes_it() -> None:
    body = body_of(batch(stored(1)), "e")
    headers = dict(signed([webhook_key(OTHER_SECRET), webhook_key(SECRET)], "0f" * 12, now(), body))
    for secret in (SECRET, OTHER_SECRET):
        assert Verifier(secret).verify(body, headers)


@pytest.mark.parametrize("spoilt", ["webhook-id", "webhook-timestamp", "webhook-signature", "body"])
def test_whatever_was_changed_on_the_way_is_noticed(spoilt: str) -> None:
    body = body_of(batch(stored(1)), "e")
    headers = dict(signed([webhook_key(SECRET)], "0f" * 12, now(), body))
    other = {"webhook-id": "1f" * 12, "webhook-timestamp": str(now() - 1), "webhook-signature": "v1,AAAA"}
    headers |= {name: value for name, value in other.items() if name == spoilt}
    with pytest.raises(WebhookVerificationError):
        Verifier(SECRET).verify(body + b" " if spoilt == "body" else body, headers)


def test_a_foreign_secret_does_not_fit() -> None:
    body = body_of(batch(stored(1)), "e")
    with pytest.raises(WebhookVerificationError):
        Verifier(OTHER_SECRET).verify(body, dict(signed([webhook_key(SECRET)], "1", now(), body)))


def test_an_event_is_shown_with_what_gms_gave_as_it_is() -> None:
    raw = b'{"index":3,"utcTime":1.0,"text":"a","unknown":{"b":[null]}}'
    body = body_of(batch(stored(7, body=raw), stored(9, EventKind.ENDED, None)), "beef")
    assert raw in body
    found = orjson.loads(body)
    assert found["chat_id"] == "chat-1"
    assert [(event["id"], event["kind"]) for event in found["events"]] == [
        ("beef-7", "chat"),
        ("beef-9", "ended"),
    ]
    assert found["events"][1] == {
        "id": "beef-9",
        "kind": "ended",
        "chat_id": "chat-1",
        "service": "support",
        "device_id": "device-1",
        "at": 1_700_000_000_000,
        "event": None,
    }


def test_tokens_are_shown_in_their_own_events_alone() -> None:
    tokens = {"secure_key": "the-key"}
    changed = batch(stored(1, EventKind.TOKENS, None))
    assert orjson.loads(body_of(changed, "e", tokens))["events"][0]["event"] == tokens
    assert orjson.loads(body_of(changed, "e"))["events"][0]["event"] is None
    for kind in set(EventKind) - {EventKind.TOKENS}:
        assert b"the-key" not in body_of(batch(stored(1, kind, None)), "e", tokens)
