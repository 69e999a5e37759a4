"""The gateway: between chat clients and GMS. A daemon without one imports none of it."""

from asyncchatd.gateway.app import Gateway, GatewayRequest, Serving
from asyncchatd.gateway.chats import KEY_ADVICE, Chats

__all__ = [
    "KEY_ADVICE",
    "Chats",
    "Gateway",
    "GatewayRequest",
    "Serving",
]
