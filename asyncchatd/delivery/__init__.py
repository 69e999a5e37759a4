"""Delivery: hands events to those who are told, and keeps what is told within its bounds."""

from asyncchatd.delivery.delivery import Delivery

__all__ = ["Delivery"]
