"""The one place where a command speaks. Screens are in `screens`: what prints a line alone starts without rich."""

from asyncchatd.terminal.lines import OutputError, say, say_all, say_json, writing

__all__ = ["OutputError", "say", "say_all", "say_json", "writing"]
