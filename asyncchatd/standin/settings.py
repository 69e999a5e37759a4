"""What a plant is made of and how it behaves. Everything but its parts can be changed while it runs."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from urllib.parse import urlsplit

from asyncchatd.standin.health_page import HealthFormat
from asyncchatd.standin.pushes import ALL_FORMS, PushForm, read_forms

MINUTE = 60.0
HOUR = 60 * MINUTE
MIB = 1024 * 1024


class SettingError(ValueError):
    """A setting cannot be used. The text names it."""

    def __init__(self, field: str, trouble: str) -> None:
        super().__init__(f"{field}: {trouble}")
        self.field = field
        """The setting's name, or the address that is none of a plant's."""


class Rotation(StrEnum):
    """The occasions of new user ids and secure keys. Unknown in the field (protocol section 2), so rehearse all."""

    NEVER = "never"
    RESTORE = "restore"
    """At every restoration."""
    REFRESH = "refresh"
    """At every `rotate_every`-th refresh of a session."""
    ALWAYS = "always"
    """At both."""


class Rebinding(StrEnum):
    """The occasions at which Chat Server finds another GMS node for a session's pushes, where theirs is gone. Each
    request of the client is one, and each restoration."""

    EVENT = "event"
    """An agent's event, or a push that is sent again, is one too: it is lost, and the next one arrives."""
    REQUEST = "request"
    """Nothing else is one: the pushes stop until the client asks for something."""


class SickPage(StrEnum):
    """Health pages of a live server that no reader can use: alive, unreadable (protocol section 5)."""

    HTTP_500 = "http_500"
    HTML = "html"


@dataclass(frozen=True, slots=True)
class ChatServerSettings:
    """One Chat Server instance of the plant."""

    name: str
    app_dbid: str
    """Its DBID in the configuration, which the Chat API calls `alias`."""
    pid: int = 1000
    """`process_os_pid` of its first process."""
    health: HealthFormat | SickPage = HealthFormat.JSON
    """How its health page looks."""


def chat_servers(count: int, *, first_dbid: int = 117) -> tuple[ChatServerSettings, ...]:
    """`chat-1`, `chat-2`, ... with consecutive DBIDs from `first_dbid`."""
    return tuple(
        ChatServerSettings(name=f"chat-{n + 1}", app_dbid=str(first_dbid + n), pid=1000 * (n + 1))
        for n in range(count)
    )


@dataclass(frozen=True, slots=True)
class PlantSettings:
    """The plant's settings. Durations are seconds; `None` where a duration may be absent means "never"."""

    servers: tuple[ChatServerSettings, ...] = field(default_factory=lambda: chat_servers(3))
    gms_nodes: int = 2
    service: str = "customer-support"
    """Service name of chats started without one."""
    required_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers a Chat API request must carry, such as `Authorization` or `apikey`; 401 without."""
    origins: tuple[str, ...] = ()
    """Pages whose browsers may ask (CORS), such as `https://www.example.com`."""

    push_url: str | None = field(default=None, repr=False)
    """Where notifications go, on loopback only. Ends in a secret, so it never shows in a `repr`."""
    push_forms: tuple[PushForm, ...] = ALL_FORMS
    """Forms of the push body, used in turn: nobody outside a live installation knows which is right."""
    push_timeout: float = 5.0
    push_connections: int = 20
    resend: bool = True
    """Whether chats started here ask for `GCTI_GMS_PushResend`."""
    resend_delay: float = 15.0
    """Chat Server's `flex-push-resend-delay`."""
    resend_attempts: int = 10
    """Chat Server's `flex-push-resend-attempts`."""
    notify_requestor: bool = False
    """Whether chats started here ask for `GCTI_GMS_NotifyRequestor`: their own leaving is pushed."""
    push_typing: bool = False
    """Whether an agent's typing is pushed (unknown in the field)."""
    push_end: bool = True
    """Whether it is pushed that an agent closed the chat."""
    rebind: Rebinding = Rebinding.EVENT
    """When a session's pushes find another GMS node, where theirs is gone."""
    swallow_rate: float = 0.0
    """Share of the pushes that get lost within GMS."""
    flex_push_timeout: float = 24 * HOUR
    """A push client silent for longer is removed."""
    flex_disconnect_timeout: float = 45.0
    """The same for a client without push."""

    restoration_window: float = 10 * MINUTE
    """A session is lost when no client request restores it within this time of its server's loss."""
    restoration_refused_for: float = 0.0
    """For so long after its server's loss a session's restoration is refused with statusCode 2, without
    `chatEnded`: its transcript cannot be loaded yet."""
    renumber: bool = False
    """Whether a restored transcript has other indexes, without gaps (unknown in the field)."""
    placeholder_rate: float = 0.0
    """Share of pushes and replies in which tokens are `null`, `undefined`, blank or masked, where they tell
    nothing new."""
    planted_rate: float = 0.0
    """Share of agents' messages that carry another chat's tokens in text and `eventAttributes`."""
    rotate: Rotation = Rotation.NEVER
    rotate_every: int = 10
    rotate_user_id: bool = True
    """Whether the user id changes together with the secure key."""
    previous_key_grace: float = 0.0
    """For this long after a rotation the replaced key and user id are still taken. 0 is the
    hardest and the safest to rehearse with."""
    shutdown_notify: bool = True
    """Chat Server's `shutdown-notify-flex-push`."""
    stop_delay: float = 5.0
    """From the notice of a planned stop to the stop."""
    hang_detected_after: float | None = None
    """When GMS gives a hung Chat Server up and lets another one restore its sessions."""
    health_tells_start: bool = True
    """Whether health pages have start time, uptime and a counter besides `app_dbid` and
    `process_os_pid`: without them a restart under the same pid does not show."""
    position_zero_counts: bool = True
    """Whether a Refresh with `transcriptPosition` 0 acknowledges pushes and restores (unknown in the
    field). When not, it is answered without either."""
    misleading_errors: bool = True
    """Whether replies with statusCode 1 and 2 carry wrong tokens and positions: such fields must not
    be trusted, and a client that does so is caught by its next wrong key."""

    upload_max_files: int = 10
    """What Chat Server's `client-file-transfer` allows a customer in one chat; one upload more is refused."""
    upload_max_file_size: int = 10 * MIB
    upload_max_total_size: int = 50 * MIB
    upload_file_types: str = "bin:csv:doc:docx:gif:jpeg:jpg:pdf:png:txt:xls:xlsx:zip"
    """Endings of file names, separated by colons; with none every file is taken."""
    upload_need_agent: bool = False
    """Whether a customer may upload only when an agent has come."""
    download_attempts: int = 100

    latency: float = 0.002
    """Time GMS takes for any request. Not 0, or two requests of one session could never overlap."""
    gms_hang_timeout: float | None = 10.0
    """When GMS answers statusCode 1 for a hung Chat Server."""
    gms_capacity: float | None = None
    """Requests per second the GMS cluster can serve; `None` is without limit."""
    gms_queue: int = 1000
    """Requests that may wait in front of GMS; one more is answered 503."""
    restore_cost: float = 5.0
    """Capacity one restoration takes, in plain requests."""

    def __post_init__(self) -> None:
        names = [server.name for server in self.servers]
        dbids = [server.app_dbid for server in self.servers]
        if not names or len(set(names)) < len(names) or len(set(dbids)) < len(dbids):
            raise SettingError(
                "servers", "expected at least one, each with a name and an app_dbid of its own"
            )
        if self.gms_nodes < 1:
            raise SettingError("gms_nodes", f"expected at least 1, got {self.gms_nodes}")
        if not self.push_forms:
            raise SettingError("push_forms", "expected at least one")
        if self.push_url is not None:
            _check_push_url(self.push_url)
        for name in ("rotate_every", "push_connections", "push_timeout", "resend_delay"):
            if getattr(self, name) <= 0:
                raise SettingError(name, "expected a value above 0")
        for name in ("gms_capacity", "gms_hang_timeout", "hang_detected_after"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingError(name, "expected a value above 0, or none")

    def changed(self, values: Mapping[str, object]) -> PlantSettings:
        """These settings with some changed, as `POST /settings` gives them. Raises `SettingError`."""
        read: dict[str, object] = {}
        for name, value in values.items():
            if name not in _READERS:
                raise SettingError(name, f"no such setting; there are {', '.join(sorted(_READERS))}")
            try:
                read[name] = _READERS[name](value)
            except (TypeError, ValueError) as error:
                raise SettingError(name, str(error)) from None
        return replace(self, **read)  # type: ignore[arg-type]  # each reader returns its field's type

    def shown(self) -> dict[str, object]:
        """The changeable settings as JSON values, secrets left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _READERS}
        values["push_url"] = None if self.push_url is None else "set"
        values["push_forms"] = [form.shown() for form in self.push_forms]
        del values["required_headers"]
        return values


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _check_push_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and is_loopback(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, a port beyond 65535
        usable = False
    if not usable or not url.isascii() or not url.isprintable():
        raise SettingError("push_url", "expected an http URL on a loopback address")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError("expected a number, 0 or more")
    return float(value)


def _share(value: object) -> float:
    if not (share := _number(value)) <= 1:
        raise ValueError("expected a share from 0 to 1")
    return share


def _number_or_none(value: object) -> float | None:
    return None if value is None else _number(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**9:
        raise ValueError("expected a whole number, 0 or more")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected a text")
    return value


def _url(value: object) -> str | None:
    return None if value is None else _text(value)


def _word_of(kind: type[StrEnum]) -> Callable[[object], StrEnum]:
    words = [member.value for member in kind]

    def read(value: object) -> StrEnum:
        if value not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return kind(str(value))

    return read


def _file_types(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected endings, separated by colons")
    return value.lower()


def _origins(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(origin, str) for origin in value):
        raise ValueError("expected a list of texts")
    return tuple(value)


def _headers(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("expected an object of texts")
    return value


_READERS: Mapping[str, Callable[[object], object]] = {
    "service": _text,
    "required_headers": _headers,
    "origins": _origins,
    "push_url": _url,
    "push_forms": read_forms,
    "push_timeout": _number,
    "resend": _flag,
    "resend_delay": _number,
    "resend_attempts": _whole,
    "notify_requestor": _flag,
    "push_typing": _flag,
    "push_end": _flag,
    "rebind": _word_of(Rebinding),
    "swallow_rate": _share,
    "flex_push_timeout": _number,
    "flex_disconnect_timeout": _number,
    "restoration_window": _number,
    "restoration_refused_for": _number,
    "renumber": _flag,
    "placeholder_rate": _share,
    "planted_rate": _share,
    "rotate": _word_of(Rotation),
    "rotate_every": _whole,
    "rotate_user_id": _flag,
    "previous_key_grace": _number,
    "shutdown_notify": _flag,
    "stop_delay": _number,
    "hang_detected_after": _number_or_none,
    "health_tells_start": _flag,
    "position_zero_counts": _flag,
    "misleading_errors": _flag,
    "upload_max_files": _whole,
    "upload_max_file_size": _whole,
    "upload_max_total_size": _whole,
    "upload_file_types": _file_types,
    "upload_need_agent": _flag,
    "download_attempts": _whole,
    "latency": _number,
    "gms_hang_timeout": _number_or_none,
    "gms_capacity": _number_or_none,
    "gms_queue": _whole,
    "restore_cost": _number,
}
