"""The settings, one frozen and validated tree, and its sections.

Every setting is followed by what it is, its unit, its default and why one would change it. `etc/asyncchatd.toml` says
the same to the person who edits it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, get_args
from urllib.parse import parse_qsl, unquote

from pydantic import (
    BeforeValidator,
    Field,
    StrictBool,
    ValidationInfo,
    field_validator,
)

from asyncchatd.config.sections.consumers import ConsumerSettings, TranscriptSettings
from asyncchatd.config.sections.gateway import GatewaySettings
from asyncchatd.config.sections.gms import GmsSettings, basic_credentials
from asyncchatd.config.sections.listeners import (
    ALIKE,
    AT_START,
    ControlSettings,
    ListenerSettings,
    MetricsSettings,
    ReceiverSettings,
    Section,
)
from asyncchatd.config.sources.files import (
    OutputFile,
    SecretFile,
    expanded,
    read_password,
    read_store_keys,
    store_key,
)
from asyncchatd.config.values.bounds import MOST, at_least
from asyncchatd.config.values.kinds import (
    AppDbid,
    Count,
    Duration,
    HealthUrl,
    LogFormat,
    LogLevel,
    Name,
)
from asyncchatd.model import DAYS, MINUTES, MS, SECONDS, durations

STORE_PLUGINS = "asyncchatd.stores"
"""Entry-point group in which a package announces the URL scheme of its store."""

OUR_STORES = frozenset({"sqlite", "memory"})
"""Schemes for which no installed package has to be asked."""


class StoreSettings(Section):
    """`[store]`: where sessions and what is due are kept."""

    url: Annotated[str, AT_START] = Field(default="sqlite:///asyncchatd.db", repr=False)
    """`sqlite:///file.db` relative to the configuration file, `sqlite:////absolute/file.db`, `memory:`
    (nothing survives; for trials), or the URL of an installed plug-in; default `sqlite:///asyncchatd.db`.
    `${STATE_DIRECTORY}` and other environment variables are put in. May carry a password: use
    `Settings.store_url` to open, `shown` to print."""

    keys_file: Annotated[SecretFile | None, BeforeValidator(read_store_keys), AT_START] = None
    """File with the keys that encrypt secure keys at rest, each of 256 bits in base64 or hexadecimal, one on
    each line, `#` starts a comment; default none, then they stand in the clear. A path or `credential:NAME`.
    The first key encrypts; the others, from before a rotation, only open what is there at the next start."""

    password_file: Annotated[SecretFile | None, BeforeValidator(read_password), AT_START] = None
    """File with the password of the database on its only line; default none. A path or `credential:NAME`. It is read
    with each new connection, so a password that is replaced there needs no restart. The URL holds none beside it."""

    keep_ended: Annotated[Duration, ALIKE] = 7 * DAYS
    """How long an ended session stays, so that the logs can be understood; default 7d."""

    @property
    def scheme(self) -> str:
        """Which store: `sqlite`, `memory`, or the name of a plug-in."""
        return self.url.partition(":")[0].lower()

    @property
    def shown(self) -> str:
        """The URL as it may be printed, without user name, password and parameters."""
        return without_credentials(self.url)

    def file(self, directory: Path) -> Path | None:
        """The SQLite database's file, relative paths under `directory`; `None` for other stores."""
        return directory / self.url.partition(":///")[2] if self.scheme == "sqlite" else None

    @field_validator("url")
    @classmethod
    def _openable(cls, url: str) -> str:
        scheme, colon, rest = (url := expanded(url)).partition(":")
        if not colon or scheme.lower() not in OUR_STORES:
            plugins = importlib.metadata.entry_points(group=STORE_PLUGINS)
            known = sorted({*OUR_STORES, *plugins.names})
            if not colon or scheme.lower() not in known:
                raise ValueError(f"expected the URL of a store, beginning with {': or '.join(known)}:")
        if scheme.lower() == "sqlite" and (not rest.startswith("///") or rest.endswith("/")):
            raise ValueError("expected sqlite:///file.db (beside this file) or sqlite:////absolute/file.db")
        return url


class PingSettings(Section):
    """`[ping]`: keeping silent sessions alive."""

    interval: Annotated[Duration, ALIKE] = 30 * MINUTES
    """Longest silence of a session before it is pinged; default 30m. Must stay far below Chat Server's
    `flex-push-timeout` (protocol section 4). Shorter costs GMS requests: sessions divided by interval."""


class RestorationSettings(Section):
    """`[restoration]`: how hard GMS may be asked, for all reasons together."""

    max_rate: Annotated[float, ALIKE] = Field(default=200.0, gt=0, le=MOST, allow_inf_nan=False, strict=True)
    """Most requests per second; default 200. Never exceeded. Set it to what GMS and Chat Server bear when
    one server's sessions are all restored; lower when they slow down, higher to restore sooner."""

    max_in_flight: Annotated[Count, ALIKE] = 100
    """Most requests waiting for their answers; default 100. The adaptive limit moves below it. It is what
    protects a GMS that has become slow, when a rate no longer does."""

    lease: Annotated[Duration, ALIKE] = 15 * SECONDS
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
        return at_least("restoration.backoff", info.data.get("backoff"), longest)


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

    idle_connection: StrictBool = True
    """Whether an idle connection is kept to each health port, by whose end that of the process is noticed at once;
    default true. Without it only the reads notice it."""

    refused_interval: Duration = 100 * MS
    """Time between two reads of a server that closed the idle connection to its health port and refuses another;
    default 100ms. Its process is gone, as a rule: loss is noticed after about (`fall` - 1) x `refused_interval`
    then. Longer than `fast_interval` it has no effect."""

    @field_validator("fast_interval")
    @classmethod
    def _not_above_interval(cls, fast: timedelta, info: ValidationInfo) -> timedelta:
        interval = info.data.get("interval", fast)
        if fast > interval:
            raise ValueError(f"expected at most watcher.interval, which is {durations.text(interval)}")
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
    """`[log]`: what is written, and where to."""

    level: LogLevel = "info"
    """Least level written: `debug`, `info`, `warning` or `error`; default `info`. `debug` adds a line for
    every ping."""

    format: Annotated[LogFormat, AT_START] = "auto"
    """`json` for a line of JSON per event, `console` for colours, `auto` (the default) for colours on a
    terminal and JSON anywhere else."""

    file: Annotated[OutputFile, AT_START] = None
    """The file to write to; default none, then standard output. `${LOGS_DIRECTORY}` and other environment variables are
    put in. A reload, SIGHUP, opens it anew, also one that is refused: so another program can have moved it away."""


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

    transcript: TranscriptSettings = Field(default_factory=TranscriptSettings)
    """`[transcript]`"""

    metrics: MetricsSettings | None = None
    """`[metrics]`; without it, as by default, the metrics are served by the control API alone."""

    gateway: GatewaySettings | None = None
    """`[gateway]`; without it, as by default, there is no gateway."""

    chat_servers: tuple[ChatServerSettings, ...] = ()
    """`[[chat_server]]`, as often as there are Chat Servers; none is allowed, then nothing is watched."""

    consumers: tuple[ConsumerSettings, ...] = ()
    """`[[consumer]]`, as often as there are programs that are told of events; none is allowed."""

    @property
    def instance(self) -> str:
        """The name of this daemon among those of its host: 12 hex digits, a digest of where the configuration file
        lies."""
        return hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:12]

    @property
    def listeners(self) -> Mapping[str, ListenerSettings]:
        """The sections of the listeners there are, by name."""
        always: dict[str, ListenerSettings] = {"receiver": self.receiver, "control": self.control}
        optional = {"metrics": self.metrics, "gateway": self.gateway}
        return {**always, **{name: its for name, its in optional.items() if its is not None}}

    def listener(self, name: str) -> ListenerSettings:
        """The section of a listener, which is its name. Raises `KeyError` where it is not there."""
        return self.listeners[name]

    def connections_beside(self, name: str) -> list[int]:
        """`max_connections` of the listeners other than the one of this name, and how many idle connections the watcher
        keeps."""
        kept = len(self.chat_servers) if self.watcher.idle_connection else 0
        return [kept, *(its.max_connections for other, its in self.listeners.items() if other != name)]

    @property
    def store_url(self) -> str:
        """The URL to open the store with: a relative SQLite path made absolute. May carry a password."""
        file = self.store.file(self.directory)
        return f"sqlite:///{file}" if file else self.store.url

    @property
    def store_keys(self) -> tuple[bytes, ...]:
        """The keys of `store.keys_file`, the one to encrypt with first."""
        file = self.store.keys_file
        return tuple(store_key(key.get_secret_value()) for key in file.values) if file else ()

    @property
    def store_password_file(self) -> Path | None:
        """The file of `store.password_file`."""
        file = self.store.password_file
        return file.path if file else None

    def secret_values(self) -> Iterator[str]:
        """Every secret of the configuration, for the redaction of logs."""
        for value in self.store.password_file.values if self.store.password_file else ():
            yield value.get_secret_value()
        for key in self.store.keys_file.values if self.store.keys_file else ():
            yield key.get_secret_value()
        for secret in self.receiver.secrets:
            yield secret.get_secret_value()
        yield from self.control.tokens
        if self.gateway is not None:
            for key in self.gateway.key_file.values:
                yield key.get_secret_value()
            yield from self.gateway.apikeys
        for consumer in self.consumers:
            for secret in consumer.secret_file.values if consumer.secret_file else ():
                yield secret.get_secret_value()
        if self.gms.password:
            password = self.gms.password.get_secret_value()
            yield password
            yield basic_credentials(self.gms.username or "", password)
        for value in self.gms.headers.values():
            yield value.get_secret_value()
        for in_url in passwords_in(self.store.url):
            yield in_url
            yield unquote(in_url)


TABLES = {"chat_server": "chat_servers", "consumer": "consumers"}
"""The tables that repeat in the file, and the field of `Settings` that holds all of a kind."""

SECTIONS = tuple(
    name for name in Settings.model_fields if name not in {"path", "directory", *TABLES.values()}
)
"""The tables that stand once in the file, or may."""

OPTIONAL = ("metrics", "gateway")
"""Those of them that are nothing where they are not there, and not a section of defaults."""


def known_keys() -> list[str]:
    """Every key the file may hold, as `section.key`."""
    return [
        f"{table}.{info.alias or key}"
        for table, section in section_models().items()
        for key, info in section.model_fields.items()
    ]


def keys_at_start() -> frozenset[str]:
    """The keys, as `section.key`, that a reload cannot take over."""
    return frozenset(
        f"{table}.{field_info.alias or key}"
        for table, section in section_models().items()
        for key, field_info in section.model_fields.items()
        if AT_START in field_info.metadata
    )


def section_models() -> dict[str, type[Section]]:
    models: dict[str, type[Section]] = {"chat_server": ChatServerSettings, "consumer": ConsumerSettings}
    for name in SECTIONS:
        annotation = Settings.model_fields[name].annotation
        for kind in (annotation, *get_args(annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                models[name] = kind
    return models


def without_credentials(text: str) -> str:
    """A URL without what may be secret in it: user name, password, query. A password that is not written as in a URL,
    with `/` or `#` or `?` in it, goes too."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    rest = re.sub(r"^[^/].*@", "[redacted]@", rest, flags=re.DOTALL)
    return scheme + separator + re.sub(r"\?.*", "?[redacted]", rest, flags=re.DOTALL)


def passwords_in(url: str) -> Iterator[str]:
    """What may be the password in a URL, as it stands there: behind the user, up to the host, or a parameter."""
    _, _, rest = url.partition("://")
    for text in (rest, rest.partition("?")[0]):
        if match := re.match(r"[^/:@][^:@]*:(.+)@", text, re.DOTALL):
            yield match[1]
    for name, value in parse_qsl(url.partition("?")[2]):
        if "password" in name.lower():
            yield value
