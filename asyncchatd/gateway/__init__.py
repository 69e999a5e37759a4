"""The gateway: between chat clients and GMS."""

from asyncchatd.gateway.app import Gateway, GatewayRequest, Serving
from asyncchatd.gateway.chats import KEY_ADVICE, Chats

__all__ = [
    "KEY_ADVICE",
    "Chats",
    "Gateway",
    "GatewayRequest",
    "Serving",
]
