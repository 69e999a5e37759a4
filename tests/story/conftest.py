"""What the tests of stories share."""

from __future__ import annotations

import pytest

from .rig import Log


@pytest.fixture
def log() -> Log:
    """A daemon that runs, with one Chat Server, and a chat registered on it."""
    started = Log()(0, "daemon_starting", version="1.0", pid=7)(0.5, "daemon_ready", sessions=0, servers=1)
    started(0.6, "server_up", server="chat-1", alias="117", process_os_pid="1")
    started(0.7, "server_up", server="chat-2", alias="118", process_os_pid="2")
    return started.chat(1, "session_registered", alias="117", service="s", outcome="created")
