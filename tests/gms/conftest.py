"""What the tests of a connection and those of the client have: HTTP and HTTPS, and two nodes."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import pytest
from conftest import Certificates, ScriptedNode, server_tls

from .rig import Wire


@pytest.fixture(params=["http", "https"])
def wire(request: pytest.FixtureRequest, certificates: Certificates) -> Wire:
    trusting = ssl.create_default_context(cafile=certificates.ca)
    return Wire(server_tls(certificates) if request.param == "https" else None, trusting)


@pytest.fixture
async def a() -> AsyncIterator[ScriptedNode]:
    """The node that is asked first."""
    async with ScriptedNode() as node:
        yield node


@pytest.fixture
async def b() -> AsyncIterator[ScriptedNode]:
    """The one that is asked next."""
    async with ScriptedNode() as node:
        yield node
