"""The log is one for the process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from asyncchatd.log import redaction


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The log is one for the process: what a test sets up must not reach the next one."""
    secrets, needles = dict(redaction._secrets), set(redaction._needles)
    handlers = logging.getLogger().handlers[:]
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    for registry, before in ((redaction._secrets, secrets), (redaction._needles, needles)):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]
