"""Addresses to listen on, which are those where a daemon is reached."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

LARGEST_PORT = 65535
TOO_LARGE = f"this port is too large: expected one of at most {LARGEST_PORT}"


def is_too_large(port: str) -> bool:
    """Whether this is the number of a port that there is not."""
    return re.fullmatch("[0-9]+", port) is not None and (len(port) > 5 or int(port) > LARGEST_PORT)


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen on: `host` and `port`, or the `path` of a Unix socket."""

    host: str | None = None
    """Name or address; `None` for every interface (and for a Unix socket)."""
    port: int | None = None
    """TCP port; 0 lets the kernel choose a free one."""
    path: str | None = None
    """Absolute path of a Unix socket; then there is no host and no port."""

    @classmethod
    def parse(cls, value: object) -> Listen:
        """From `"host:port"`, `"[::1]:port"`, `":port"` or `"unix:/path"`. Raises `ValueError`."""
        if isinstance(value, Listen):
            return value
        if isinstance(value, str) and value.startswith("unix:"):
            return cls._parse_unix(value.removeprefix("unix:"))
        match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError('expected "host:port", "[::1]:port", ":port" (every interface) or "unix:/path"')
        if is_too_large(match["port"]):
            raise ValueError(TOO_LARGE)
        return cls(host=match["v6"] or match["host"] or None, port=int(match["port"]))

    @classmethod
    def _parse_unix(cls, path: str) -> Listen:
        if not path.startswith("/") or path.endswith("/") or "\0" in path:
            raise ValueError('expected the absolute path of a socket after "unix:"')
        if len(os.fsencode(path)) > 107:
            raise ValueError("expected the path of a Unix socket to have at most 107 bytes")
        return cls(path=path)

    @property
    def local(self) -> bool:
        """Whether only this host can reach it."""
        host = self.host or ""
        if self.path is not None or host == "localhost":
            return True
        import ipaddress  # a Unix socket is told apart without

        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


_LISTEN = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[A-Za-z0-9._-]*)):(?P<port>[0-9]+)"
)

USUAL_CONTROL = Listen(host="127.0.0.1", port=8092)
"""Where the control API is when nobody says where."""
