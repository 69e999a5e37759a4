"""docs/chat-app.md: its code for verifying webhooks takes what the daemon signs, and nothing else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import pytest

from asyncchatd.config import webhook_key
from asyncchatd.delivery.signing import body_of, signed
from asyncchatd.model import Batch, EventKind, StoredEvent

DOCUMENT = Path(__file__).parents[2] / "docs" / "chat-app.md"
OLD, NEW = "whsec_" + "b2xk" * 8, "whsec_" + "bmV3" * 8

EVENT = StoredEvent(
    42, EventKind.CHAT, "chat-1", "support", "phone-1", 1_795_867_200_123, '{"text":"Grüße"}'.encode()
)
BODY = body_of(Batch("app", 1, "batch-1", (EVENT,), 0, None), "e0")

Verified = Callable[[str, bytes, Mapping[str, str]], dict[str, object] | None]


@pytest.fixture(scope="module")
def verified() -> Verified:
    """The function of the document."""
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    return cast(Verified, names["verified"])


def headers(*secrets: str, at: float = 0.0) -> Mapping[str, str]:
    """Of a webhook that these secrets sign, so many seconds from now."""
    return signed([webhook_key(each) for each in secrets], "batch-1", int(time.time() + at), BODY)


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_while_a_secret_is_replaced_either_verifies(verified: Verified, secret: str) -> None:
    batch = verified(secret, BODY, headers(OLD, NEW))
    assert batch is not None
    assert batch["chat_id"] == "chat-1"
    assert batch["events"] == [
        {
            "id": "e0-42",
            "kind": "chat",
            "chat_id": "chat-1",
            "service": "support",
            "device_id": "phone-1",
            "at": 1_795_867_200_123,
            "event": {"text": "Grüße"},
        }
    ]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(headers(OLD), id="another secret"),
        pytest.param(headers(NEW, at=-86_400), id="too old"),
        pytest.param(headers(NEW, at=86_400), id="from the future"),
        pytest.param({**headers(NEW), "webhook-id": "batch-2"}, id="of another batch"),
        pytest.param({**headers(NEW), "webhook-signature": "nonsense"}, id="nonsense"),
        pytest.param({**headers(NEW), "webhook-signature": "v1,é"}, id="no base64"),
        pytest.param({}, id="not signed"),
    ],
)
def test_nothing_else_verifies(verified: Verified, said: Mapping[str, str]) -> None:
    assert verified(NEW, BODY, said) is None


def test_a_body_that_was_changed_does_not_verify(verified: Verified) -> None:
    assert verified(NEW, BODY.replace(b"chat-1", b"chat-2"), headers(NEW)) is None
    assert verified(NEW, b"\xff", headers(NEW)) is None
