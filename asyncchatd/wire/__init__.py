"""Bytes to model and back: pure functions, no I/O.

`chat_api` is GMS' Chat API version 2, `push` its push notifications, `health` the Chat Servers'
health pages. Nobody outside a live installation knows every form, so each reader takes every
plausible one and raises nothing but its own documented error.
"""
