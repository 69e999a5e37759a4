"""Delivery: hands events to those who are told, and keeps what is told within its bounds."""

from asyncchatd.delivery.delivery import Delivery
from asyncchatd.delivery.endpoint import Fate, fate_of
from asyncchatd.delivery.posting import try_webhook

__all__ = ["Delivery", "Fate", "fate_of", "try_webhook"]
