"""The gateway: between chat clients and GMS."""

from asyncchatd.gateway.app import Gateway, GatewayRequest, Serving
from asyncchatd.gateway.chats import Chats

__all__ = [
    "Chats",
    "Gateway",
    "GatewayRequest",
    "Serving",
]
