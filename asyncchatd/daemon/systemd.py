"""What systemd and the daemon say to each other: readiness, watchdog, sockets.

The whole protocol is a few environment variables and one datagram socket, so it needs nothing but
the standard library. Without systemd every function here does nothing and says so by its result,
so the daemon calls them unconditionally. References: sd_notify(3), sd_listen_fds(3) and
sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

LISTEN_FDS_START = 3
"""Number of the first socket handed over: 0, 1 and 2 are the standard streams."""

UNNAMED = "unknown"
"""Name systemd itself gives to a socket without `FileDescriptorName=`."""


def notify(state: str) -> bool:
    """Tell systemd one thing or several lines of it: `READY=1`, `STOPPING=1`, `WATCHDOG=1`, `STATUS=...`.

    Returns whether it was sent. A notification is never worth more than the work it reports on: when
    nobody listens, or the socket is gone, this is `False` and not an exception.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A full queue must not stop the event loop: losing one notification is the smaller harm.
            sender.setblocking(False)
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError:
        return False
    return True


def watchdog_interval() -> timedelta | None:
    """How long systemd waits for `WATCHDOG=1` before it kills the daemon; `None` when it does not.

    Notify about twice in that time, as sd_watchdog_enabled(3) advises.
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return timedelta(microseconds=microseconds) if microseconds > 0 else None


def listen_fds() -> dict[str, list[socket.socket]]:
    """The listening sockets systemd opened for us, by `FileDescriptorName=`; empty without a socket unit.

    Takes them: the environment variables are cleared, so a child process does not believe they were
    meant for it, and a second call finds nothing. The sockets are non-blocking and not inherited.
    """
    process, count, names = (
        os.environ.pop(variable, "") for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if process != str(os.getpid()) or not count.isdecimal():
        return {}
    labels = names.split(":") if names else []
    taken: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        listener = socket.socket(fileno=LISTEN_FDS_START + index)
        listener.setblocking(False)
        listener.set_inheritable(False)
        label = labels[index] if index < len(labels) and labels[index] else UNNAMED
        taken.setdefault(label, []).append(listener)
    return taken
