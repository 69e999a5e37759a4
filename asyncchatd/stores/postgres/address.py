"""The address of a PostgreSQL store: `postgresql://user@host,host/database?schema=asyncchatd&sslmode=verify-full`.

What is asyncchatd's own in it is taken out; the rest is the driver's, which reads it as libpq does.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from asyncchatd.lacks import system_words
from asyncchatd.model import Ms
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.postgres.named_files import FILES, OF_ENVIRONMENT, WITHOUT_TLS, NamedFiles
from asyncchatd.stores.postgres.wire import Address

HOLD_MS: Ms = 90_000
"""So long is a session that a worker has claimed left to it when nobody knows whether it lives: longer than GMS may
take to answer, and than a process may be paused. Who pings sooner may do so with a key that the answer has replaced."""

OWN = frozenset({"schema", "statement_cache", "hold", "node", "presence"})
"""The parameters of the URL that are asyncchatd's; the others are the driver's."""

_THEIRS = frozenset(
    {
        "host",
        "port",
        "dbname",
        "database",
        "user",
        "password",
        "passfile",
        "service",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslpassword",
        "sslrootcert",
        "sslcrl",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "target_session_attrs",
        "krbsrvname",
        "gsslib",
        "application_name",
        "options",
    }
)
"""What the driver knows. Anything else it gives to the server, as a setting of the session."""

_VALUES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
}
"""What the driver takes, of parameters that few values are right for."""

_NEAR = 0.85
"""How like a known parameter one is that must be that one misspelt; server settings are not so near to any."""

_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:\d*)?")
_MISREAD = (
    "store.url: it cannot be read; in user and password write / as %2F, ? as %3F, # as %23, @ as %40, [ as %5B, ] as"
    " %5D and % as %25"
)
_SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


@dataclass(frozen=True)
class Place:
    """What the URL of a store says."""

    address: Address
    hold_ms: Ms
    node: str
    """How people call this node."""
    presence: bool
    """Off behind a pooler, where a connection says nothing of who uses it."""
    shown: str
    """Without the password, as the log calls it."""


def place_of(url: str, password_file: Path | None = None) -> Place:
    """What a URL says. Raises `StoreError`, which names the parameter. `password_file` is read with each connection:
    whoever changes the password of the database, or hands out one that lasts for minutes, writes it there."""
    parts = _parts(url)
    own: dict[str, str] = {}
    theirs: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in OWN:
            if name in own or not value:
                raise StoreError(f"store.url: {name}: {'it stands twice' if name in own else 'it is empty'}")
            own[name] = value
        else:
            _refuse_misspelt(name)
            if value not in _VALUES.get(name, (value,)):
                raise StoreError(f"store.url: {name}={value}: one of {', '.join(_VALUES[name])}")
            theirs.append((name, value))
    schema = own.get("schema", "asyncchatd")
    if not _SCHEMA.fullmatch(schema):
        raise StoreError(
            f"store.url: schema={schema}: letters, digits and _ alone, at most 63, no digit first"
        )
    if password_file and (":" in parts.netloc.rpartition("@")[0] or "password" in dict(theirs)):
        raise StoreError("store.password_file: store.url holds a password too; remove it there")
    dsn = f"postgresql://{parts.netloc}{parts.path}{'?' if theirs else ''}{urlencode(theirs)}"
    return Place(
        Address(
            dsn,
            schema=schema,
            statement_cache=_switch(own, "statement_cache", default=True),
            password=_reader(password_file),
            files=_files(parts, dict(theirs), bool(password_file)),
        ),
        _hold_ms(own.get("hold")),
        own.get("node") or platform.node() or "node",
        _switch(own, "presence", default=True),
        _shown(url),
    )


def _files(parts: SplitResult, theirs: Mapping[str, str], has_password: bool) -> NamedFiles:
    user, _, hosts = parts.netloc.rpartition("@")
    hosts = hosts or theirs.get("host", "")
    sockets = bool(hosts) and all(unquote(host).startswith("/") for host in hosts.split(","))
    has_password = has_password or ":" in user or "password" in theirs or "PGPASSWORD" in os.environ
    files = FILES - {"passfile"} if has_password else FILES
    named = {name: theirs[name] for name in files & theirs.keys() if theirs[name]}
    if not has_password and "passfile" not in named and (file := os.environ.get(OF_ENVIRONMENT)):
        named[OF_ENVIRONMENT] = file
    return NamedFiles(
        named,
        theirs.get("sslmode") or os.environ.get("PGSSLMODE") or (WITHOUT_TLS if sockets else "prefer"),
        theirs.get("sslpassword", ""),
    )


def _parts(url: str) -> SplitResult:
    """The parts of a URL. One whose password is not written as in a URL falls apart elsewhere, and would be shown."""
    if not url.partition(":")[2].startswith("//"):
        raise StoreError("store.url: two slashes are missing: postgresql://USER@HOST/DATABASE")
    try:
        parts = urlsplit(url)
    except ValueError:  # whose text may hold the password
        raise StoreError(_MISREAD) from None
    user, at, hosts = parts.netloc.rpartition("@")
    # Of two @ the driver goes by the first one.
    falls_apart = "@" in user or (not at and "@" in parts.path + parts.query.partition("=")[0])
    if falls_apart or parts.fragment or not all(map(_HOST.fullmatch, hosts.split(","))):
        raise StoreError(_MISREAD)
    return parts


def _refuse_misspelt(name: str) -> None:
    known = OWN | _THEIRS
    if name not in known and (near := get_close_matches(name.lower(), sorted(known), n=1, cutoff=_NEAR)):
        raise StoreError(f"store.url: {name}: unknown parameter; did you mean {near[0]}?")
    if name == "servicefile":
        raise StoreError("store.url: servicefile: the environment variable PGSERVICEFILE names it")
    if name == "search_path":
        raise StoreError("store.url: search_path: schema=NAME says in which schema the tables are")


def _reader(file: Path | None) -> Callable[[], Awaitable[str]] | None:
    if file is None:
        return None

    def read() -> str:
        try:
            password = file.read_text(encoding="utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise StoreUnwritable(f"store.password_file: {file} is not UTF-8 text") from None
        except OSError as error:
            raise StoreUnwritable(
                f"store.password_file: {file} cannot be read: {system_words(error)}"
            ) from error
        if not password or "\n" in password:
            raise StoreUnwritable(f"store.password_file: {file} does not hold the password on its only line")
        return password

    return partial(asyncio.to_thread, read)


def _switch(own: dict[str, str], name: str, *, default: bool) -> bool:
    if name not in own:
        return default
    try:
        return _SWITCH[own[name].lower()]
    except KeyError:
        raise StoreError(f"store.url: {name}={own[name]}: on or off") from None


def _hold_ms(said: str | None) -> Ms:
    if said is None:
        return HOLD_MS
    found = re.fullmatch(r"(\d{1,6})(ms|s|m)?", said)
    if found is None:
        raise StoreError(f"store.url: hold={said}: a time such as 90s")
    return int(found[1]) * {"ms": 1, "m": 60_000}.get(found[2] or "s", 1_000)


def _shown(url: str) -> str:
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    return f"postgresql://{user.partition(':')[0]}{at}{hosts}{parts.path}"
