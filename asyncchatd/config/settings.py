"""The configuration file, `etc/asyncchatd.toml`, as one frozen and validated tree of settings.

`load` either returns a `Settings` on which the daemon can run, or raises one `ConfigError` that lists
everything wrong with the file at once: which key, on which line, what was expected, what came, and the
nearest known key for a misspelt one. A value that may be a secret is never repeated.

Every setting is followed by what it is, its unit, its default and why one would change it.
`etc/asyncchatd.toml` says the same to the person who edits it.
"""

from __future__ import annotations

import base64
import difflib
import errno
import importlib.metadata
import ipaddress
import json
import os
import re
import ssl
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from asyncchatd.config.credentials import credential
from asyncchatd.config.trust import tls_context

MS = timedelta(milliseconds=1)
SECONDS = timedelta(seconds=1)
MINUTES = timedelta(minutes=1)
HOURS = timedelta(hours=1)
DAYS = timedelta(days=1)
KIB = 1024

LONGEST = 36_500 * DAYS
"""The longest duration. A due time that far away is still a date that everything can write."""

MOST = 1_000_000_000
"""The largest number of anything."""

LARGEST_FILE = 16 * KIB * KIB
"""Bytes of a configuration, or of a file of secrets: one that is longer, or endless as /dev/zero, is none."""

STORE_PLUGINS = "asyncchatd.stores"
"""Entry-point group in which a package announces the URL scheme of its store."""


def load(path: Path) -> Settings:
    """Read the configuration file; the directory it lies in is the base of every relative path.

    Raises `ConfigError` with all problems at once.
    """
    data, text = _read_toml(path)
    return _validated(path, data, text)


def load_control(path: Path) -> ControlSettings:
    """Read only what is said of the control API, which is all a command needs that talks to a daemon.

    An operator at a shell has neither the daemon's credentials nor its state directory, so the rest of
    the file, which may refer to them, is not looked at, and files of the daemon's that cannot be read are
    taken for given: there are no `tokens` then. Raises `ConfigError`.
    """
    data, text = _read_toml(path)
    context = {"directory": path.resolve().parent, "as_client": True}
    try:
        return ControlSettings.model_validate(data.get("control", {}), context=context)
    except ValidationError as error:
        problems = [_problem(details, ("control",), _lines(text)) for details in error.errors()]
        raise ConfigError(path, problems) from None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration file."""

    key: str
    """Dotted path, `chat_server[1].health_url`; empty for the file as a whole. Indexes start at 0."""
    line: int | None
    """Line in the file, from 1; `None` when nothing stands there, such as for a missing file."""
    message: str
    """What was expected and what came. Never the value of a secret."""
    nearest: str | None = None
    """For an unknown key: the known one that was probably meant."""


class ConfigError(Exception):
    """The configuration file cannot be used; its text is what a person reads, a line for each problem."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        super().__init__("\n".join(map(self._sentence, self.problems)))

    def _sentence(self, problem: Problem) -> str:
        place = f"{self.path}:{problem.line}" if problem.line else f"{self.path}"
        subject = f"{place}: {problem.key}: " if problem.key else f"{place}: "
        hint = f"; did you mean {problem.nearest}?" if problem.nearest else ""
        return f"{subject}{problem.message}{hint}"


# The kinds of value. Each parser raises ValueError saying what it expected; what came is added where
# the problem is put into words, because only there it is known whether the value may be shown.


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        length = value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError('expected a duration with its unit, such as "500ms", "6s", "30m", "1.5h" or "2d"')
    else:
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError('expected a duration such as "500ms", "6s", "30m", "1.5h" or "2d"')
        try:
            length = float(match[1]) * _DURATION_UNITS[match[2]]
        except OverflowError:
            length = timedelta.max
    if length <= timedelta(0):
        raise ValueError("expected a duration above zero")
    if length > LONGEST:
        raise ValueError(f"expected a duration of at most {duration_text(LONGEST)}")
    return length


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": MS, "s": SECONDS, "m": MINUTES, "h": HOURS, "d": DAYS}

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
        if match is None or int(match["port"]) > 65535:
            raise ValueError('expected "host:port", "[::1]:port", ":port" (every interface) or "unix:/path"')
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
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[A-Za-z0-9._-]*)):(?P<port>[0-9]{1,5})"
)

ListenAddress = Annotated[Listen, BeforeValidator(Listen.parse)]


def _expanded(value: str) -> str:
    """Put the environment in for each `${NAME}`, the whole value with its colons. Only where systemd lists
    directories, in `${STATE_DIRECTORY}` and the others of that kind, it is the first one. Nothing else begins
    with `${`: what a shell makes of `${NAME:-word}` is an error here, not a file of that name."""

    def put_in(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            raise ValueError(
                f"expected ${{NAME}}, with nothing but a name in the braces, in place of {match[0]}"
            )
        found = os.environ.get(name, "")
        if name in _LISTS_OF_DIRECTORIES:
            found = found.split(":")[0]
        if not found:
            raise ValueError(
                f"expected ${name} in the environment, where it is not set (systemd sets it for a unit; "
                "when started by hand, set it yourself)"
            )
        return found

    return re.sub(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\}|[^}]{0,20}\}?)", put_in, value)


_LISTS_OF_DIRECTORIES = {
    f"{kind}_DIRECTORY" for kind in ("STATE", "RUNTIME", "CACHE", "LOGS", "CONFIGURATION")
}
"""systemd.exec(5): a colon stands between two directories of one unit."""


def _file(value: object, info: ValidationInfo) -> Path | None:
    """An existing readable file: a path, relative to the configuration file, or `credential:NAME`."""
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError('expected the path of a file, or "credential:NAME"')
    context = info.context or {}
    try:
        text = _expanded(str(value))
        name = text.removeprefix("credential:")
        path = credential(name) if name != text else Path(context.get("directory", "."), text)
        if path.exists() and not path.is_file():  # looked at before it is opened: a pipe may wait for ever
            raise OSError(errno.EINVAL, "it is a directory, a device or a pipe")
        with path.open("rb"):
            return path
    except (LookupError, OSError, ValueError) as error:
        if context.get("as_client"):
            return Path(str(value))
        raise _no_input(error) from None


def _no_input(error: Exception) -> ValueError:
    """Why a file cannot be read, in words."""
    match error:
        case LookupError():
            return ValueError(f"this credential cannot be found: {error.args[0]}")
        case OSError():
            return ValueError(f"this file cannot be read: {error.strerror}")
    return ValueError(f"this file cannot be read: {error}")


InputFile = Annotated[Path | None, BeforeValidator(_file)]
"""A file that is there and can be read: a path, relative to the configuration file, or `credential:NAME`."""


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file of secrets, and what it held when the configuration was read."""

    path: Path
    values: tuple[SecretStr, ...] = field(repr=False)


def _secret_lines(value: object, info: ValidationInfo) -> SecretFile | None:
    """A file with one push secret on each line; empty lines and `#` comments do not count."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    return _lines_of(path, _push_secret, "secret")


def _token_lines(value: object, info: ValidationInfo) -> SecretFile | None:
    """The same with tokens. For a command that may not read the daemon's file it holds none."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    if (info.context or {}).get("as_client") and not os.access(path, os.R_OK):
        return SecretFile(path, ())
    return _lines_of(path, _token, "token")


def _lines_of(path: Path, checked: Callable[[SecretStr], SecretStr], what: str) -> SecretFile:
    secrets = []
    for number, line in enumerate(_text_of(path).splitlines(), start=1):
        if (secret := line.strip()) and not secret.startswith("#"):
            try:
                secrets.append(checked(SecretStr(secret)))
            except ValueError as error:
                raise ValueError(f"line {number} of this file: {error}") from None
    if not secrets:
        raise ValueError(f"expected at least one {what} in this file, one on each line")
    return SecretFile(path, tuple(secrets))


def _password_file(value: object, info: ValidationInfo) -> SecretFile | None:
    """A file whose only line is a password; its line end does not belong to it."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    password = _text_of(path).rstrip("\r\n")
    if not password or "\n" in password:
        raise ValueError("expected this file to hold the password on its only line")
    return SecretFile(path, (SecretStr(password),))


def _store_key_lines(value: object, info: ValidationInfo) -> SecretFile | None:
    """A file with one store key on each line; empty lines and `#` comments do not count."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    keys = []
    for number, line in enumerate(_text_of(path).splitlines(), start=1):
        if (key := line.strip()) and not key.startswith("#"):
            try:
                _store_key(key)
            except ValueError as error:
                raise ValueError(f"line {number} of this file: {error}") from None
            keys.append(SecretStr(key))
    if not keys:
        raise ValueError("expected at least one key in this file, one on each line")
    return SecretFile(path, tuple(keys))


def _store_key(text: str) -> bytes:
    """32 bytes, in base64 or as hexadecimal digits."""
    try:
        if len(text) == 64:
            return bytes.fromhex(text)
        key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError("expected a key of 256 bits, such as `openssl rand -base64 32` makes")
    return key


def _text_of(path: Path) -> str:
    try:
        return content_of(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("expected this file to be UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"this file cannot be read: {error.strerror}") from None


def content_of(path: Path) -> bytes:
    """What a small file holds. Raises `OSError`, also for one that has no end."""
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"it is longer than {LARGEST_FILE // KIB // KIB} MiB", str(path))
    return content


def _push_secret(value: SecretStr) -> SecretStr:
    secret = value.get_secret_value()
    # "." and ".." are safe characters too, but every HTTP client removes such path segments.
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", secret) or secret in {".", ".."}:
        raise ValueError("expected a secret of letters, digits and - . _ ~, as it is part of an address")
    return value


PushSecret = Annotated[SecretStr, AfterValidator(_push_secret)]


def _token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", value.get_secret_value()):
        raise ValueError("expected a token of letters, digits and - . _ ~ + /, as it is sent in a header")
    return value


Token = Annotated[SecretStr, AfterValidator(_token)]

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
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError('expected an address such as "http://host:8080/path"')
    if parts.fragment:
        raise ValueError("expected an address without #fragment")
    return parts


def _health_url(value: str) -> str:
    if "@" in _http_url(value).netloc:
        raise ValueError("expected an address without user name and password")
    return value


def _node(value: str) -> str:
    parts = _http_url(value)
    if "@" in parts.netloc:
        raise ValueError("expected an address without user name and password: see gms.username")
    if "?" in value:
        raise ValueError("expected a base address without ?query: extra headers go to gms.headers")
    return parts._replace(netloc=parts.netloc.lower(), path=parts.path.rstrip("/")).geturl()


HealthUrl = Annotated[str, AfterValidator(_health_url)]
NodeUrl = Annotated[str, AfterValidator(_node)]


def _segment(value: str) -> str:
    if not value or value in {".", ".."} or re.search(r"[/?#%\s\x00-\x1f\x7f]", value):
        raise ValueError("expected a service name: one segment of a path, without / ? # % and spaces")
    return value


Segment = Annotated[str, AfterValidator(_segment)]


def _alias(value: object) -> str | None:
    """An `app_dbid` as the Chat API writes it: the page, and an operator, may write it as a number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if value is None or (isinstance(value, str) and value.strip()):
        return value.strip() if value else None
    raise ValueError("expected the DBID of the Chat Server, such as 117")


AppDbid = Annotated[str | None, BeforeValidator(_alias)]


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


@dataclass(frozen=True, slots=True)
class _AtStart:
    """The mark of a setting that a start takes over and a reload does not: the running daemon would have to let go of a
    port or of the store. A setting without it is taken over by a reload."""


AT_START = _AtStart()


class Section(BaseModel):
    """A part of the tree: does not change once loaded, and knows every key it may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ListenerSettings(Section):
    """What `[receiver]` and `[control]` have in common: where to listen, for whom, and how patiently."""

    listen: Annotated[ListenAddress, AT_START]
    """Where to listen."""

    tls_certificate: Annotated[InputFile, AT_START] = None
    """PEM file of the certificate shown to clients, with those that lead to its authority; default none,
    then there is no TLS. A path or `credential:NAME`. Read anew when it changes, as are the next two."""

    tls_key: Annotated[InputFile, AT_START] = Field(default=None, validate_default=True)
    """PEM file of its key, without a password; default none, then the key is in `tls_certificate`."""

    tls_client_ca: Annotated[InputFile, AT_START] = Field(default=None, validate_default=True)
    """PEM file of the authorities that sign clients' certificates; default none. When given, only clients
    that show such a certificate are served."""

    allow: tuple[Network, ...] = ()
    """Networks whose clients are served, such as `10.0.0.0/8`; default all. Others are disconnected. Does
    not concern Unix sockets, whose permissions decide."""

    trusted_proxies: Annotated[tuple[Proxy, ...], AT_START] = ()
    """Addresses of reverse proxies, `unix` for one on a Unix socket; default none. Only from these a
    client's address is taken from `X-Forwarded-For` or `Forwarded`, and `allow` applies to it."""

    max_connections: Annotated[int, Field(strict=True, ge=8, le=MOST)] = 2_000
    """Most connections at once; default 2000. When one more comes, the one that has been silent longest
    is closed, strangers first. Each takes a file descriptor: see `LimitNOFILE=` of the unit."""

    header_timeout: Annotated[Duration, AT_START] = 5 * SECONDS
    """How long a connection may take to send a request's header, and before it to agree on TLS; default
    5s. Bounds what the slow hold."""

    body_timeout: Annotated[Duration, AT_START] = 5 * SECONDS
    """How long a push may take to arrive once its header has; default 5s. GMS itself gives up after 2 to
    10 s (protocol section 3)."""

    keepalive_timeout: Annotated[Duration, AT_START] = 75 * SECONDS
    """How long an idle connection stays open; default 75s. Keep it above the idle time of GMS, or of the
    load balancer between, so that they are the ones to close."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """What clients may show to be served, in the clear; none when they need not."""
        return ()

    def objection(self, _: Listen) -> str | None:
        """Why it may not listen there, when it may not."""
        return None

    @field_validator("tls_key", "tls_client_ca")
    @classmethod
    def _with_a_certificate(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file and "tls_certificate" in info.data and not info.data["tls_certificate"]:
            raise ValueError("expected tls_certificate together with it")
        return file


class ReceiverSettings(ListenerSettings):
    """`[receiver]`: the endpoint that GMS pushes notifications to."""

    listen: Annotated[ListenAddress, AT_START] = Listen(host="127.0.0.1", port=8091)
    """Where to listen; default `127.0.0.1:8091`. Change it to the address GMS reaches. A systemd socket
    named `receiver` takes its place."""

    secrets_file: Annotated[SecretFile | None, BeforeValidator(_secret_lines)] = None
    """File with more secrets, one on each line, `#` starts a comment; default none. A path, or
    `credential:NAME` for a systemd credential. In production prefer it to `secrets`, which everybody
    reads who reads the configuration."""

    secrets: tuple[PushSecret, ...] = Field(default=(), validate_default=True)
    """The secrets that are accepted as last part of the push URL, `POST /push/<secret>`; after loading,
    those of `secrets_file` too. No default: at least one is needed, because GMS does not authenticate
    (protocol section 3). Give two while the secret is being changed."""

    max_body: Annotated[Size, AT_START] = 256 * KIB
    """Largest push that is read, in bytes; default 256KiB. A larger one is answered with 413. Raise it
    when payloads are on (`GCTI_GMS_PushIncludePayload`) and longer than that."""

    queue: Annotated[Count, AT_START] = 10_000
    """How many pushes may wait for the disk before more are answered with 503 and Retry-After; default
    10000. Each costs about its own size of memory."""

    @field_validator("secrets")
    @classmethod
    def _with_those_of_the_file(
        cls, secrets: tuple[SecretStr, ...], info: ValidationInfo
    ) -> tuple[SecretStr, ...]:
        if "secrets_file" not in info.data:
            return secrets  # the file has its own problem, which is reported
        more = info.data["secrets_file"]
        together = tuple(dict.fromkeys(secrets + (more.values if more else ())))
        if not together:
            raise ValueError("expected at least one secret, here or in receiver.secrets_file")
        return together


class ControlSettings(ListenerSettings):
    """`[control]`: the control API and metrics, for operators, monitoring and the custom-chat-app."""

    listen: Annotated[ListenAddress, AT_START] = Listen(host="127.0.0.1", port=8092)
    """Where to listen; default `127.0.0.1:8092`. Whoever may use it controls every session: on an address
    that other hosts reach, `token_file` or `tls_client_ca` is needed. A systemd socket named `control`
    takes its place."""

    max_connections: Annotated[int, Field(strict=True, ge=32, le=MOST)] = 200
    """Most connections at once, as in `[receiver]`; default 200, at least 32: 16 may be taken for as long as
    somebody looks at the status page."""

    header_timeout: Annotated[Duration, AT_START] = 10 * SECONDS
    """As in `[receiver]`; default 10s."""

    body_timeout: Annotated[Duration, AT_START] = 10 * SECONDS
    """Longest pause within a body, which may be of any length; default 10s."""

    token_file: Annotated[SecretFile | None, BeforeValidator(_token_lines)] = None
    """File with tokens, one on each line, `#` starts a comment; default none. A path or
    `credential:NAME`. When there is a token, a client must show one, as `Authorization: Bearer`, or in a
    browser as the password; only `/healthz` and `/readyz` answer without. Give two while it is changed."""

    token: Token | None = Field(default=None, validate_default=True)
    """One more token, written here; default none. In production prefer `token_file`."""

    tls_ca: InputFile = None
    """For the commands that talk to this listener over TLS: PEM file of the authority they trust. Default:
    the very certificate in `tls_certificate` where they may read it, else the system's authorities."""

    client_certificate: InputFile = None
    """For the same commands: PEM file of the certificate they show when `tls_client_ca` asks for one;
    default none."""

    client_key: InputFile = Field(default=None, validate_default=True)
    """PEM file of the key of `client_certificate`; default none, then the key is in that file itself."""

    @property
    def tokens(self) -> tuple[str, ...]:
        together = (self.token_file.values if self.token_file else ()) + ((self.token,) if self.token else ())
        return tuple(dict.fromkeys(token.get_secret_value() for token in together))

    def objection(self, listen: Listen) -> str | None:
        known = bool(self.token or self.token_file or self.tls_client_ca)
        return None if known else _unprotected(listen)

    @field_validator("token")
    @classmethod
    def _needed_where_others_reach_it(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        found = info.data
        if not {"listen", "token_file", "tls_client_ca"} <= found.keys():
            return token  # one of them has its own problem, which is reported
        protected = token or found["token_file"] or found["tls_client_ca"]
        if not protected and (objection := _unprotected(found["listen"])):
            raise ValueError(objection)
        return token

    @field_validator("client_key")
    @classmethod
    def _with_its_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key and "client_certificate" in info.data and not info.data["client_certificate"]:
            raise ValueError("expected control.client_certificate together with a key")
        return key


def _unprotected(listen: Listen) -> str | None:
    """Why nobody listens there who serves whoever comes; `None` where only this host can come from."""
    if listen.local:
        return None
    return (
        f"expected a token, because other hosts can reach {listen} and would control every session: make a"
        " file with one and name it in control.token_file, or listen on 127.0.0.1 or a Unix socket"
    )


class GmsSettings(Section):
    """`[gms]`: the GMS nodes that ping Refreshes are sent to."""

    nodes: tuple[NodeUrl, ...] = Field(min_length=1)
    """Base addresses of the nodes, `http://host:8080/genesys`; no default. Any node serves any session;
    with several, a ping goes to the next one when one fails."""

    service: Segment = "customer-support"
    """Name of the chat service in GMS for sessions that come without one, such as those learned from a
    push; default `customer-support`. Set it to the name of yours."""

    timeout: Duration = 10 * SECONDS
    """How long to wait for the answer to a Refresh; default 10s. Rather too long than too short: an answer
    given up on may have carried a new secure key. Where an answer was lost on its way (a hang-up, 502, 504, 408),
    Chat Server may have taken the request, so the session is left alone until `timeout` is over. A site whose Chat
    Servers give up a session of a lost one (its restoration window) in less than about `timeout` + 2s lowers it.
    Answers that take over a tenth of it are slow: fewer requests are then kept in flight, as long as that makes the
    answers faster."""

    connect_timeout: Duration = 2 * SECONDS
    """How long to wait for a connection to a node, its name and TLS included; default 2s. Nothing is lost by
    giving up here, so it is short and the next node gets its turn."""

    username: UserName | None = None
    """User name for HTTP Basic; default none. Set it when GMS, or the proxy in front, asks for it."""

    password_file: Annotated[SecretFile | None, BeforeValidator(_password_file)] = None
    """File whose only line is the password; default none. A path or `credential:NAME`."""

    password: SecretStr | None = Field(default=None, validate_default=True)
    """Password for HTTP Basic; after loading, also when it came from `password_file`. Default none."""

    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Extra headers sent with every request, such as `apikey`; default none. Values are kept secret."""

    ca_file: InputFile = None
    """PEM file of the authorities trusted for `https` nodes and health pages; default those of the system.
    Set it when their certificates come from a private CA."""

    client_cert: InputFile = None
    """PEM file of the certificate shown to nodes that ask for one; default none."""

    client_key: InputFile = Field(default=None, validate_default=True)
    """PEM file of the key of `client_cert`; default none, then the key is in `client_cert` itself."""

    rest: Duration = 1 * SECONDS
    """How long a node that failed is left alone the first time; default 1s. Doubles with each failure."""

    rest_max: Duration = Field(default=30 * SECONDS, validate_default=True)
    """The longest a failing node is left alone, also when it asks for more time (Retry-After); default
    30s. Bounds how late its recovery is noticed."""

    @property
    def slow_after(self) -> timedelta:
        """A tenth of `timeout`. Answers that take longer show GMS to be slow; fewer requests are then kept in
        flight, as long as that makes the answers faster."""
        return self.timeout / 10

    _tls: ssl.SSLContext | None = PrivateAttr(default=None)
    """What `tls` has read."""

    def tls(self) -> ssl.SSLContext:
        """How to talk to `https` nodes, as the files were when it was asked first. Raises `OSError` (`ssl.SSLError` is
        one) when a file is no use."""
        if self._tls is None:
            self._tls = self._read_tls()
        return self._tls

    def _read_tls(self) -> ssl.SSLContext:
        context = tls_context(authorities=self.ca_file)
        if self.client_cert:
            # Without a callback OpenSSL would ask the terminal for the password of an encrypted key.
            context.load_cert_chain(self.client_cert, self.client_key, password=lambda: "")
        return context

    def request_headers(self) -> dict[str, str]:
        """The headers every request carries, in the clear: `headers`, and `Authorization` for HTTP Basic."""
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        if self.username is not None:
            password = self.password.get_secret_value() if self.password else ""
            headers["Authorization"] = f"Basic {_basic(self.username, password)}"
        return headers

    @field_validator("password")
    @classmethod
    def _from_its_file(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        file = info.data.get("password_file")
        if file and password:
            raise ValueError("expected either gms.password or gms.password_file, not both")
        password = file.values[0] if file else password
        if password and not info.data.get("username"):
            raise ValueError("expected gms.username together with a password")
        return password

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: Mapping[str, SecretStr], info: ValidationInfo) -> Mapping[str, SecretStr]:
        for name, value in headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError("expected names of HTTP headers: letters, digits and dashes")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"expected no {name} header: the client sets it itself")
            if name.lower() == "authorization" and info.data.get("username"):
                raise ValueError("expected either an Authorization header or gms.username, not both")
            if not re.fullmatch(r"[\x20-\x7e]+", value.get_secret_value()):
                raise ValueError(f"expected the value of {name} to be one line of ASCII text")
        return headers

    @field_validator("client_key")
    @classmethod
    def _with_its_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key and "client_cert" in info.data and not info.data["client_cert"]:
            raise ValueError("expected gms.client_cert together with a key")
        return key

    @field_validator("rest_max")
    @classmethod
    def _not_below_rest(cls, longest: timedelta, info: ValidationInfo) -> timedelta:
        return _at_least("gms.rest", info.data.get("rest"), longest)


_OWN_HEADERS = frozenset(
    ["host", "connection", "expect", "accept-encoding", "content-length", "content-type", "transfer-encoding"]
)


class StoreSettings(Section):
    """`[store]`: where sessions and what is due are kept."""

    url: Annotated[str, AT_START] = Field(default="sqlite:///asyncchatd.db", repr=False)
    """`sqlite:///file.db` relative to the configuration file, `sqlite:////absolute/file.db`, `memory:`
    (nothing survives; for trials), or the URL of an installed plug-in; default `sqlite:///asyncchatd.db`.
    `${STATE_DIRECTORY}` and other environment variables are put in. May carry a password: use
    `Settings.store_url` to open, `shown` to print."""

    keys_file: Annotated[SecretFile | None, BeforeValidator(_store_key_lines), AT_START] = None
    """File with the keys that encrypt secure keys at rest, each of 256 bits in base64 or hexadecimal, one on
    each line, `#` starts a comment; default none, then they stand in the clear. A path or `credential:NAME`.
    The first key encrypts; the others, from before a rotation, only open what is there at the next start."""

    keep_ended: Duration = 7 * DAYS
    """How long an ended session stays, so that the logs can be understood; default 7d."""

    @property
    def scheme(self) -> str:
        """Which store: `sqlite`, `memory`, or the name of a plug-in."""
        return self.url.partition(":")[0].lower()

    @property
    def shown(self) -> str:
        """The URL as it may be printed, without user name, password and parameters."""
        return _without_credentials(self.url)

    def file(self, directory: Path) -> Path | None:
        """The SQLite database's file, relative paths under `directory`; `None` for other stores."""
        return directory / self.url.partition(":///")[2] if self.scheme == "sqlite" else None

    @field_validator("url")
    @classmethod
    def _openable(cls, url: str) -> str:
        scheme, colon, rest = (url := _expanded(url)).partition(":")
        plugins = importlib.metadata.entry_points(group=STORE_PLUGINS)
        known = sorted({"sqlite", "memory", *plugins.names})
        if not colon or scheme.lower() not in known:
            raise ValueError(f"expected the URL of a store, beginning with {': or '.join(known)}:")
        if scheme.lower() == "sqlite" and (not rest.startswith("///") or rest.endswith("/")):
            raise ValueError("expected sqlite:///file.db (beside this file) or sqlite:////absolute/file.db")
        return url


class PingSettings(Section):
    """`[ping]`: keeping silent sessions alive."""

    interval: Duration = 30 * MINUTES
    """Longest silence of a session before it is pinged; default 30m. Must stay far below Chat Server's
    `flex-push-timeout` (protocol section 4). Shorter costs GMS requests: sessions divided by interval."""


class RestorationSettings(Section):
    """`[restoration]`: how hard GMS may be asked, for all reasons together."""

    max_rate: float = Field(default=200.0, gt=0, le=MOST, allow_inf_nan=False, strict=True)
    """Most requests per second; default 200. Never exceeded. Set it to what GMS and Chat Server bear when
    one server's sessions are all restored; lower when they slow down, higher to restore sooner."""

    max_in_flight: Count = 100
    """Most requests waiting for their answers; default 100. The adaptive limit moves below it. It is what
    protects a GMS that has become slow, when a rate no longer does."""

    lease: Duration = 15 * SECONDS
    """How long a session is ours while it is being pinged; default 15s. After a crash its work resumes
    when this has passed. Keep it above `gms.timeout`."""

    backoff: Duration = 1 * SECONDS
    """First pause of a session after an answer that says to try again; default 1s. Doubles, with jitter."""

    backoff_max: Duration = Field(default=30 * SECONDS, validate_default=True)
    """Longest such pause; default 30s. Bounds how late a session notices that GMS serves again."""

    insist: Duration = 120 * SECONDS
    """How long a session that GMS refuses (statusCode 2) is tried again, at least five times, while it is to
    be restored; default 2m. Then it waits for its keepalive. Set it to what GMS may need to find a Chat
    Server that has taken over."""

    @field_validator("backoff_max")
    @classmethod
    def _not_below_backoff(cls, longest: timedelta, info: ValidationInfo) -> timedelta:
        return _at_least("restoration.backoff", info.data.get("backoff"), longest)


class WatcherSettings(Section):
    """`[watcher]`: reading the Chat Servers' health pages."""

    interval: Duration = 5 * SECONDS
    """Time between two reads of one server's page; default 5s. Shorter notices a loss sooner."""

    timeout: Duration = 2 * SECONDS
    """How long to wait for a page; default 2s. A server slower than this counts as not reached."""

    fall: Count = 3
    """How many reads must fail in a row before a server is down; default 3. More forgives short hiccups."""

    rise: Count = 2
    """How many reads must succeed in a row before a server that was down is up; default 2."""

    fast_interval: Duration = Field(default_factory=lambda data: data["interval"] / 4)
    """Time between two reads while a server is suspect; default a quarter of `interval`. Loss is noticed
    after about `interval` + (`fall` - 1) x `fast_interval`, with time-outs added."""

    @field_validator("fast_interval")
    @classmethod
    def _not_above_interval(cls, fast: timedelta, info: ValidationInfo) -> timedelta:
        interval = info.data.get("interval", fast)
        if fast > interval:
            raise ValueError(f"expected at most watcher.interval, which is {duration_text(interval)}")
        return fast


class ChatServerSettings(Section):
    """`[[chat_server]]`: one Chat Server instance; repeat the table for each."""

    name: Name
    """What logs, the API and commands call it; unique, no default."""

    health_url: HealthUrl
    """Address of its health page, path included; no default (protocol section 5)."""

    app_dbid: AppDbid = None
    """Its DBID, which is the `alias` of its sessions; default: what the page says. Set it only when the
    page does not."""

    start_counter: Name | None = None
    """Name of the counter that holds its start time; default: the likely ones are recognised. Set it
    where process ids repeat, as in containers."""

    uptime_counter: Name | None = None
    """Name of the counter that holds its uptime; default and use as with `start_counter`."""


class LogSettings(Section):
    """`[log]`: what is written to standard output."""

    level: LogLevel = "info"
    """Least level written: `debug`, `info`, `warning` or `error`; default `info`. `debug` adds a line for
    every ping."""

    format: Annotated[LogFormat, AT_START] = "auto"
    """`json` for a line of JSON per event, `console` for colours, `auto` (the default) for colours on a
    terminal and JSON anywhere else."""


class Settings(Section):
    """The whole configuration, as `load` returns it."""

    path: Path
    """The file it was read from."""

    directory: Path
    """Absolute directory of that file: the base of relative paths."""

    receiver: ReceiverSettings
    """`[receiver]`"""

    control: ControlSettings = Field(default_factory=ControlSettings)
    """`[control]`"""

    gms: GmsSettings
    """`[gms]`"""

    store: StoreSettings = Field(default_factory=StoreSettings)
    """`[store]`"""

    ping: PingSettings = Field(default_factory=PingSettings)
    """`[ping]`"""

    restoration: RestorationSettings = Field(default_factory=RestorationSettings)
    """`[restoration]`"""

    watcher: WatcherSettings = Field(default_factory=WatcherSettings)
    """`[watcher]`"""

    log: LogSettings = Field(default_factory=LogSettings)
    """`[log]`"""

    chat_servers: tuple[ChatServerSettings, ...] = ()
    """`[[chat_server]]`, as often as there are Chat Servers; none is allowed, then nothing is watched."""

    def listener(self, name: str) -> ListenerSettings:
        """The section of a listener, `receiver` or `control`. Raises `KeyError` for any other."""
        return {"receiver": self.receiver, "control": self.control}[name]

    @property
    def store_url(self) -> str:
        """The URL to open the store with: a relative SQLite path made absolute. May carry a password."""
        file = self.store.file(self.directory)
        return f"sqlite:///{file}" if file else self.store.url

    @property
    def store_keys(self) -> tuple[bytes, ...]:
        """The keys of `store.keys_file`, the one to encrypt with first."""
        file = self.store.keys_file
        return tuple(_store_key(key.get_secret_value()) for key in file.values) if file else ()

    def secret_values(self) -> Iterator[str]:
        """Every secret of the configuration, for the redaction of logs."""
        for key in self.store.keys_file.values if self.store.keys_file else ():
            yield key.get_secret_value()
        for secret in self.receiver.secrets:
            yield secret.get_secret_value()
        yield from self.control.tokens
        if self.gms.password:
            password = self.gms.password.get_secret_value()
            yield password
            yield _basic(self.gms.username or "", password)
        for value in self.gms.headers.values():
            yield value.get_secret_value()
        if in_url := _password_of(self.store.url):
            yield in_url
            yield unquote(in_url)


SECTIONS = tuple(name for name in Settings.model_fields if name not in {"path", "directory", "chat_servers"})
"""The tables that stand once in the file; `[[chat_server]]` is the one that repeats."""


def duration_text(length: timedelta) -> str:
    """A duration as the file writes it: `30m`, `1.25s`, `500ms`."""
    for unit in ("d", "h", "m", "s"):
        if length >= (size := _DURATION_UNITS[unit]) and not length % (size / 100):
            return f"{length / size:.15g}{unit}"
    return f"{length / MS:.15g}ms"


def known_keys() -> list[str]:
    """Every key the file may hold, as `section.key`."""
    return [f"{table}.{key}" for table, section in _section_models().items() for key in section.model_fields]


def keys_at_start() -> frozenset[str]:
    """The keys, as `section.key`, that a reload cannot take over."""
    return frozenset(
        f"{table}.{key}"
        for table, section in _section_models().items()
        for key, field_info in section.model_fields.items()
        if AT_START in field_info.metadata
    )


def _section_models() -> dict[str, type[Section]]:
    models: dict[str, type[Section]] = {"chat_server": ChatServerSettings}
    for name in SECTIONS:
        annotation = Settings.model_fields[name].annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            models[name] = annotation
    return models


def _basic(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def _at_least(key: str, least: timedelta | None, value: timedelta) -> timedelta:
    if least is not None and value < least:
        raise ValueError(f"expected at least {key}, which is {duration_text(least)}")
    return value


# From the file to the tree, and from pydantic's errors to problems in words.

KeyPath = tuple[str | int, ...]
"""A key as a path: `("chat_server", 1, "health_url")`."""


def _read_toml(path: Path) -> tuple[dict[str, object], str]:
    try:
        text = content_of(path).decode("utf-8-sig")
        return tomllib.loads(text), text
    except OSError as error:
        advice = "; try with sudo, or as the daemon's user" if isinstance(error, PermissionError) else ""
        problem = Problem("", None, f"cannot be read: {error.strerror}{advice}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = Problem("", line, "expected UTF-8 text")
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r" \(at line (\d+), column \d+\)$", message)
        line = int(found[1]) if found else max(1, len(text.splitlines()))
        problem = Problem("", line, f"not valid TOML: {re.sub(r' [(]at .*[)]$', '', message)}")
    except RecursionError:
        problem = Problem("", None, "not valid TOML: nested too deeply")
    raise ConfigError(path, [problem]) from None


def _validated(path: Path, data: dict[str, object], text: str) -> Settings:
    lines = _lines(text)
    problems = [_unknown((key,), lines) for key in data if key not in (*SECTIONS, "chat_server")]
    problems += _duplicates(data, lines)
    directory = path.resolve().parent
    tree = {name: data.get(name, {}) for name in SECTIONS}
    tree |= {"chat_servers": data.get("chat_server", []), "path": path, "directory": directory}
    try:
        settings = Settings.model_validate(tree, context={"directory": directory})
    except ValidationError as error:
        # While interval is wrong no default of fast_interval is made: pydantic counts that as an error too.
        wrong = [details for details in error.errors() if details["type"] != "default_factory_not_called"]
        raise ConfigError(path, problems + [_problem(details, (), lines) for details in wrong]) from None
    if settings.control.listen == settings.receiver.listen and settings.receiver.listen.port != 0:
        line = _line_of(("control", "listen"), lines)
        problems.append(Problem("control.listen", line, "expected another address than receiver.listen"))
    if problems:
        raise ConfigError(path, problems)
    return settings


def _duplicates(data: dict[str, object], lines: dict[KeyPath, int]) -> Iterator[Problem]:
    """What must be unique and is not; looked for in the raw file, so that other problems do not hide it."""
    servers = data.get("chat_server")
    gms = data.get("gms")
    nodes = gms.get("nodes") if isinstance(gms, dict) else None
    lists: list[tuple[KeyPath, str | None, object, Callable[[object], object]]] = [
        (("chat_server",), "name", servers, lambda name: name),
        (("chat_server",), "app_dbid", servers, _alias),
        (("gms", "nodes"), None, nodes, lambda node: _node(node) if isinstance(node, str) else None),
    ]
    for start, leaf, items, identity in lists:
        seen: dict[str, KeyPath] = {}
        for index, item in enumerate(items if isinstance(items, list) else ()):
            value = item.get(leaf) if leaf and isinstance(item, dict) else item
            try:
                same = identity(value)
            except ValueError:
                continue  # wrong in itself, and reported as that
            where = (*start, index, leaf) if leaf else (*start, index)
            if isinstance(same, str) and (first := seen.setdefault(same, where)) != where:
                message = f"expected each only once, but {json.dumps(same)} is {_dotted(first)} already"
                yield Problem(_dotted(where), _line_of(where, lines), message)


def _problem(details: ErrorDetails, start: KeyPath, lines: dict[KeyPath, int]) -> Problem:
    where = (*start, *details["loc"])
    if where[:1] == ("chat_servers",):
        where = ("chat_server", *where[1:])
    if where[-1:] == ("[key]",):
        where = where[:-1]
    if details["type"] == "extra_forbidden":
        return _unknown(where, lines)
    line = _line_of(where, lines)
    if details["type"] == "missing":
        return Problem(_dotted(where), line, "required, but missing")
    context = details.get("ctx", {})
    match details["type"]:
        case "value_error":
            message = str(context["error"])
        case "literal_error":
            message = f"expected {context['expected']}"
        case kind:
            message = _EXPECTED.get(kind, details["msg"]).format(**context)
    value = details["input"]
    if value is not None and value != ():
        message += f"; got {_kind(value) if _is_secret(where) else _shown(value)}"
    return Problem(_dotted(where), line, message)


_EXPECTED = {
    "string_type": "expected text in quotes",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a number",
    "greater_than": "expected a number above {gt:g}",
    "greater_than_equal": "expected a number of at least {ge:g}",
    "less_than_equal": "expected a number of at most {le:g}",
    "int_parsing_size": "expected a number of at most a thousand million",
    "too_short": "expected at least one",
    "tuple_type": 'expected a list, such as ["..."]',
    "mapping_type": "expected a table",
    "dict_type": "expected a table",
    "model_type": "expected a table",
}


def _unknown(where: KeyPath, lines: dict[KeyPath, int]) -> Problem:
    return Problem(_dotted(where), _line_of(where, lines), "unknown key", _nearest(where))


def _nearest(where: KeyPath) -> str | None:
    """The known key that was probably meant: of the same table first, then the same name in another one."""
    *table, name = where
    models = _section_models()
    siblings = models[str(table[0])].model_fields if table else models
    if close := difflib.get_close_matches(str(name).replace("-", "_"), list(siblings), n=1, cutoff=0.6):
        return _dotted((*table, close[0]))
    elsewhere = [key for key in known_keys() if key.endswith(f".{name}")]
    return elsewhere[0] if elsewhere else None


_SECRET_KEYS: tuple[KeyPath, ...] = (
    ("receiver", "secrets"),
    ("control", "token"),
    ("gms", "password"),
    ("gms", "headers"),
)


def _is_secret(where: KeyPath) -> bool:
    return any(where[: len(key)] == key for key in _SECRET_KEYS)


def _shown(value: object) -> str:
    """What came, as the file writes it, shortened."""
    if isinstance(value, str | Path):
        text = json.dumps(_without_credentials(str(value)), ensure_ascii=False)
        return text if len(text) <= 80 else f'{text[:76]}..."'
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return _kind(value)


def _kind(value: object) -> str:
    """What sort of value came, for when it may not be shown."""
    for types, words in _KINDS:
        if isinstance(value, types):
            return words
    return "a date or time"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((str, SecretStr), "text (not shown, it may be a secret)"),
    (bool, "true or false"),
    ((int, float), "a number (not shown, it may be a secret)"),
    ((list, tuple), "a list"),
    (dict, "a table"),
)


def _without_credentials(text: str) -> str:
    """A URL without what may be secret in it: user name, password, query."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    rest = re.sub(r"^[^/?#]*@", "[redacted]@", rest)
    return scheme + separator + re.sub(r"\?.*", "?[redacted]", rest, flags=re.DOTALL)


def _password_of(url: str) -> str | None:
    match = re.match(r"[^/]*://[^/@]*?:([^/]*)@", url)
    return match[1] if match else None


def _dotted(where: KeyPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")


def _line_of(where: KeyPath, lines: dict[KeyPath, int]) -> int | None:
    """The line of a key, or of the nearest table around it that is written down."""
    for length in range(len(where), 0, -1):
        if (line := lines.get(where[:length])) is not None:
            return line
    return None


def _lines(text: str) -> dict[KeyPath, int]:
    """On which line each table header and key stands. The text is valid TOML, so a plain scan will do."""
    lines: dict[KeyPath, int] = {}
    arrays: dict[KeyPath, int] = {}
    table: KeyPath = ()
    closing: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if closing:
            closing = None if closing in line else closing
        elif header := _HEADER.match(line):
            table = _parts(header[2])
            if header[1] == "[[":
                arrays[table] = arrays.get(table, -1) + 1
                lines.setdefault(table, number)
            if table in arrays:
                table = (*table, arrays[table])
            elif table[:1] in arrays:
                table = (*table[:1], arrays[table[:1]], *table[1:])
            lines.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            lines.setdefault((*table, *_parts(entry[1])), number)
            closing = next((quote for quote in ('"""', "'''") if line.count(quote) == 1), None)
    return lines


_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_KEY})\s*\]")
_ENTRY = re.compile(rf"\s*({_KEY})\s*=")


def _parts(key: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_NAME, key))
