"""The plant's control port: JSON over HTTP. Every call is described in docs/standin.md."""

from asyncchatd.standin.control.api import control_app
from asyncchatd.standin.control.shown import session_line

__all__ = ["control_app", "session_line"]
