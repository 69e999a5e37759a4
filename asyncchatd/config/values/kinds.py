"""The kinds of value in the configuration file.

Each parser raises ValueError saying what it expected; what came is added where the problem is put into words
(`problems.py`), because only there it is known whether the value may be shown.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
)

from asyncchatd.config.values.addresses import TOO_LARGE, Listen, is_too_large
from asyncchatd.config.values.bounds import KIB, MOST, duration

Duration = Annotated[timedelta, BeforeValidator(duration)]
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
        raise ValueError(TOO_LARGE)
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
