"""The subscription to pushes that the gateway puts into every "request chat".

A client that subscribed by itself would have the pushes of its chat go elsewhere, or none at all. So whatever it says
of pushes is left out, in "request chat" and in every other call (protocol section 3).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence

from asyncchatd.config import GatewaySettings
from asyncchatd.model import replace
from asyncchatd.wire import ClientCall, Pair, plain_name, user_data_key

DEVICE_BYTES = 16
"""Of a device id: nobody guesses it, and no two chats have the same."""

SUBSCRIBE = "GCTI_Chat_PushSubscribe"

_OF_PUSHES = re.compile(r"(?:USERDATA\W*|^\W*)(?:GCTI_GMS_|GCTI_CHAT_PUSHSUBSCRIBE\W*$)")
"""In capitals a name that speaks of pushes, as a key of userData or alone: how GMS reads one that is written in a way
that nobody documents, such as with one bracket, nobody can tell."""


def new_device_id() -> str:
    """The device id of a new chat, by which its pushes are known."""
    return secrets.token_hex(DEVICE_BYTES)


def without_subscription(pairs: Sequence[Pair], besides: Iterable[str] = ()) -> list[Pair]:
    """The parameters without what they say of pushes, and without the user data of the names in `besides`; both in any
    case, in quotes or not, and encoded or not. All others stay in their order."""
    dropped = {name.upper() for name in besides}

    def stays(name: str) -> bool:
        if name.isalpha():  # as nearly all
            return True
        key = user_data_key(name)
        return (key is None or key.upper() not in dropped) and not _OF_PUSHES.search(plain_name(name).upper())

    return [(name, value) for name, value in pairs if stays(name)]


def subscribed(pairs: Sequence[Pair], settings: GatewaySettings, device_id: str) -> list[Pair]:
    """The parameters of a "request chat" with our subscription behind what the client says."""
    ours = {
        SUBSCRIBE: "true",
        "GCTI_GMS_NodeGroup": settings.node_group,
        "GCTI_GMS_PushDeviceId": device_id,
        "GCTI_GMS_PushDeviceType": "customhttp",
        "GCTI_GMS_PushResend": "true" if settings.push_resend else None,
        "GCTI_GMS_PushIncludePayload": "true" if settings.push_payload else None,
        "GCTI_Chat_AsyncMode": "true" if settings.async_mode else None,
        **settings.user_data,
    }
    said = [(f"userData[{key}]", value) for key, value in ours.items() if value is not None]
    return [*without_subscription(pairs, ours), *said]


def unsubscribed(call: ClientCall) -> ClientCall:
    """The call without user data that speaks of pushes."""
    has_data = any(user_data_key(name) is not None for name, _ in call.pairs)
    return replace(call, pairs=tuple(without_subscription(call.pairs))) if has_data else call
