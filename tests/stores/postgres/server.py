"""A PostgreSQL server of one's own for tests: the one that the demo has."""

from __future__ import annotations

from asyncchatd.rehearsing.together.database import Server, server

__all__ = ["Server", "server"]
