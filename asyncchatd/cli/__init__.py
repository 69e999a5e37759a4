"""The command line."""

from asyncchatd.cli.commands import main

__all__ = ["main"]
