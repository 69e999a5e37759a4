"""The body of an error that asyncchatd answers, and the stand-in plant's control port with it."""

from __future__ import annotations

from collections.abc import Mapping


def error_body(code: str, message: str, field: str | None = None) -> Mapping[str, Mapping[str, str | None]]:
    """`{"error": {"code", "message", "field"}}`: a word for programs, a sentence for people, and the part of the
    request that is wrong. Clients are built on it."""
    return {"error": {"code": code, "message": message, "field": field}}
