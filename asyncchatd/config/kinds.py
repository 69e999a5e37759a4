"""The kinds of value in the configuration file.

Each parser raises ValueError saying what it expected; what came is added where the problem is put into words
(`problems.py`), because only there it is known whether the value may be shown.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
)

from asyncchatd.model import DAYS, durations

KIB = 1024

LONGEST = 36_500 * DAYS
"""The longest duration. A due time that far away is still a date that everything can write."""

MOST = 1_000_000_000
"""The largest number of anything."""


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        length = value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError('expected a duration with its unit, such as "500ms", "6s", "30m", "1.5h" or "2d"')
    else:
        length = durations.parse(value if isinstance(value, str) else "")
    if length <= timedelta(0):
        raise ValueError("expected a duration above zero")
    if length > LONGEST:
        raise ValueError(f"expected a duration of at most {durations.text(LONGEST)}")
    return length


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""A length of time above zero: a number with `ms`, `s`, `m`, `h` or `d`."""


def _size(value: object) -> int:
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        value = int(match[1]) * _SIZE_UNITS[match[2]]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError('expected a size above zero, in bytes or such as "256KiB" or "1MiB"')
    if value > MOST:
        raise ValueError(f"expected a size of at most {MOST} bytes")
    return value


_SIZE = re.compile(r"([0-9]{1,12}) ?(B|KiB|MiB)")
_SIZE_UNITS = {"B": 1, "KiB": KIB, "MiB": KIB * KIB}

Size = Annotated[int, BeforeValidator(_size)]
"""A number of bytes above zero: a bare number, or with `KiB` or `MiB`."""


LARGEST_PORT = 65535
_TOO_LARGE = f"this port is too large: expected one of at most {LARGEST_PORT}"


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
            raise ValueError(_TOO_LARGE)
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

ListenAddress = Annotated[Listen, BeforeValidator(Listen.parse)]

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(value: object) -> IpNetwork:
    """One address, or a network in CIDR notation; one of IPv4 written as IPv6 is that of IPv4."""
    if isinstance(value, IpNetwork):
        return value
    expected = 'expected a network such as "10.0.0.0/8" or "2001:db8::/32", or one address'
    if not isinstance(value, str):
        raise ValueError(expected)
    try:
        return _unmapped(ipaddress.ip_network(value))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(expected) from None
    raise ValueError(f'expected a network without bits of a host, such as "{meant}"')


def _unmapped(network: IpNetwork) -> IpNetwork:
    """`::ffff:10.0.0.0/104` as `10.0.0.0/8`: clients' addresses are compared in that form, on every socket."""
    mapped = None if network.version == 4 else network.network_address.ipv4_mapped
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96)) if mapped else network


def _proxy(value: object) -> IpNetwork | Literal["unix"]:
    return "unix" if value == "unix" else _network(value)


Network = Annotated[IpNetwork, PlainValidator(_network)]
Proxy = Annotated[IpNetwork | Literal["unix"], PlainValidator(_proxy)]


def _http_url(value: str) -> SplitResult:
    try:
        parts = urlsplit(value)
        http = parts.scheme in {"http", "https"}
        too_large = http and is_too_large(parts.netloc.rpartition(":")[2])
        usable = http and (too_large or (bool(parts.hostname) and parts.port != 0))
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError('expected an address such as "http://host:8080/path"')
    if too_large:
        raise ValueError(_TOO_LARGE)
    if parts.fragment:
        raise ValueError("expected an address without #fragment")
    return parts


def _health_url(value: str) -> str:
    if "@" in _http_url(value).netloc:
        raise ValueError("expected an address without user name and password")
    return value


def node_url(value: str) -> str:
    parts = _http_url(value)
    if "@" in parts.netloc:
        raise ValueError("expected an address without user name and password: see gms.username")
    if "?" in value:
        raise ValueError("expected a base address without ?query: extra headers go to gms.headers")
    return parts._replace(netloc=parts.netloc.lower(), path=parts.path.rstrip("/")).geturl()


HealthUrl = Annotated[str, AfterValidator(_health_url)]
NodeUrl = Annotated[str, AfterValidator(node_url)]


def _segment(value: str) -> str:
    if not value or value in {".", ".."} or re.search(r"[/?#%\s\x00-\x1f\x7f]", value):
        raise ValueError("expected a service name: one segment of a path, without / ? # % and spaces")
    return value


Segment = Annotated[str, AfterValidator(_segment)]


def alias_of(value: object) -> str | None:
    """An `app_dbid` as the Chat API writes it: the page, and an operator, may write it as a number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if value is None or (isinstance(value, str) and value.strip()):
        return value.strip() if value else None
    raise ValueError("expected the DBID of the Chat Server, such as 117")


AppDbid = Annotated[str | None, BeforeValidator(alias_of)]


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("expected some text")
    return value


def _user_name(value: str) -> str:
    if not value or ":" in value:
        raise ValueError("expected a user name without a colon, which HTTP Basic cannot carry")
    return value


UserName = Annotated[str, AfterValidator(_user_name)]
Name = Annotated[str, AfterValidator(_not_empty)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]
