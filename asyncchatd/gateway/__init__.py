"""The gateway: between chat clients and GMS."""

from asyncchatd.gateway.app import Gateway, GatewayRequest, Serving

__all__ = [
    "Gateway",
    "GatewayRequest",
    "Serving",
]
