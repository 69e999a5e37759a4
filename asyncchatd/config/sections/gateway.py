"""`[gateway]`: what stands between chat clients and GMS, where there is such a section.

Every setting is followed by what it is, its unit, its default and why one would change it. `etc/asyncchatd.toml` says
the same to the person who edits it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictStr, field_validator

from asyncchatd.config.sections.listeners import ALIKE, AT_START, ListenerSettings
from asyncchatd.config.sources.files import SecretFile, read_apikeys, read_store_keys, store_key
from asyncchatd.config.values.addresses import Listen
from asyncchatd.config.values.bounds import KIB, MOST
from asyncchatd.config.values.kinds import Count, Duration, ListenAddress, Name, Segment, Size
from asyncchatd.model import MINUTES, SECONDS


def _base_path(value: str) -> str:
    path = value.rstrip("/")
    if not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)*", path) or re.search(r"/\.\.?(?:/|$)", path):
        raise ValueError('expected the path of a base address, such as "/genesys", or "/" for none')
    return path


def _origin(value: str) -> str:
    """As a browser writes it, letter for letter: it is compared, not understood."""
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(_AN_ORIGIN) from None
    if "*" in value or not parts.scheme or not host or port == 0:
        raise ValueError(_AN_ORIGIN)
    try:
        named = f"[{host}]" if ":" in host else host.encode("idna").decode()
    except UnicodeError:
        raise ValueError(_AN_ORIGIN) from None
    if not re.fullmatch(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", named):
        raise ValueError(_AN_ORIGIN)
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    meant = f"{parts.scheme}://{named}" + (f":{port}" if port not in (None, usual) else "")
    if value != meant:
        raise ValueError(f'expected "{meant}", as a browser writes it: no path, no usual port, lower case')
    return value


_AN_ORIGIN = (
    'expected the origin of a page, such as "https://www.example.com"; neither "*" nor "null", which are those of'
    " any page"
)


def _user_data(data: Mapping[str, str]) -> Mapping[str, str]:
    for key in data:
        if not re.fullmatch(r"[^\[\]\"'\s\x00-\x1f\x7f]{1,200}", key):
            raise ValueError("expected keys of userData: without brackets, quotes and spaces")
        if key.lower().startswith("gcti_gms_") or key.lower() in _OWN_KEYS:
            raise ValueError(f"expected no {key}: the gateway sets it itself")
    return data


_OWN_KEYS = frozenset(["gcti_chat_pushsubscribe", "gcti_chat_asyncmode"])

Origin = Annotated[str, AfterValidator(_origin)]
BasePath = Annotated[str, AfterValidator(_base_path)]
UserData = Annotated[Mapping[StrictStr, StrictStr], AfterValidator(_user_data)]
Rate = Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False, strict=True)]


class GatewaySettings(ListenerSettings):
    """`[gateway]`: chat clients come here instead of to GMS. Where there is no such section there is no gateway."""

    listen: Annotated[ListenAddress, AT_START] = Listen(host="127.0.0.1", port=8090)
    """Where to listen; default `127.0.0.1:8090`. Change it to the address that clients reach, or the proxy in front
    of it. A systemd socket named `gateway` takes its place."""

    path: BasePath = "/genesys"
    """Base path: clients that were given `https://host/genesys` call `/genesys/2/chat/...`; default `/genesys`. Set
    it to the one they have today, `/` for none."""

    max_connections: Annotated[int, Field(strict=True, ge=8, le=MOST)] = 20_000
    """Most connections at once, as in `[receiver]`; default 20000. One that is being answered stays."""

    header_timeout: Annotated[Duration, AT_START] = 10 * SECONDS
    """As in `[receiver]`; default 10s."""

    body_timeout: Annotated[Duration, AT_START] = 10 * SECONDS
    """How long a form may take to arrive once its header has, and the longest pause within a file; default 10s."""

    keepalive_timeout: Annotated[Duration, AT_START] = 120 * SECONDS
    """How long an idle connection stays open; default 2m. Keep it well above the longest pause between two polls
    of a client, which is 30s for Genesys' widgets: else connections are closed just when the next poll comes."""

    origins: tuple[Origin, ...] = ()
    """Origins whose pages are served, such as `https://www.example.com`, that of the gateway itself too; default
    none. What a page of another origin sends is refused with 403, before it is read. Programs that are no
    browsers send no origin and need none."""

    services: tuple[Segment, ...] = ()
    """Names of the chat services of which chats may be begun; default any. Chats that live are served in any case."""

    key_file: Annotated[SecretFile, BeforeValidator(read_store_keys), ALIKE]
    """File with the keys that clients' secure keys are made with, each of 256 bits in base64 or hexadecimal, one on
    each line, `#` starts a comment; no default. A path or `credential:NAME`. The first makes those of new chats.
    Keep an old one below it as long as the longest chat: without it the clients of its chats are refused."""

    apikeys_file: Annotated[SecretFile | None, BeforeValidator(read_apikeys)] = None
    """File with the values of the header `apikey` of which clients must show one, one on each line, `#` starts a
    comment; default none, then none is asked for. A path or `credential:NAME`. Give two while it is changed."""

    node_group: Name
    """Name of the GMS cluster, for `GCTI_GMS_NodeGroup` of new chats; no default. Without it GMS pushes nothing."""

    user_data: UserData = Field(default_factory=dict)
    """What is put into the userData of every new chat besides, names with texts; default nothing. It takes the
    place of what a client says under these names."""

    async_mode: StrictBool = True
    """Whether new chats are asynchronous, `GCTI_Chat_AsyncMode`; default true."""

    push_payload: StrictBool = False
    """Whether pushes of new chats carry what they tell of, `GCTI_GMS_PushIncludePayload`; default false. Nothing
    here needs it, as the Refresh that follows brings the same."""

    push_resend: StrictBool = True
    """Whether Chat Server repeats pushes of new chats until they are acknowledged, `GCTI_GMS_PushResend`; default
    true."""

    passthrough: StrictBool = False
    """Whether new chats get the secure key of GMS instead of one of the gateway's; default false. Give it when the
    gateway is to be taken out again: it has to stay until the last chat that it began has ended, these
    too, as GMS may change a key that their clients keep."""

    adopt: StrictBool = False
    """Whether a chat that is not known here, and begun without the gateway, is taken over with the first request of
    its client; default false. A stranger's guess then reaches Chat Server, so rather register such chats."""

    max_adoptions: Count = 1
    """Most chats per second that are tried to be taken over for one address; default 1. Only with `adopt`."""

    hold: Duration = 2 * SECONDS
    """How long a poll waits for news before it is answered with none; default 2s. Longer lets clients see a message
    sooner. Keep it below what they give a request, 3s for Genesys' widgets."""

    patience: Duration = 2.5 * SECONDS
    """How long a client waits for what came of its call; default 2.5s. Then it is told to try again. Keep it below
    what clients give a request, 3s for Genesys' widgets."""

    check_interval: Duration = 10 * MINUTES
    """How often GMS is asked about a chat whose page is open, in case its pushes have stopped; default 10m."""

    fallback_interval: Duration = 5 * SECONDS
    """How often GMS is asked about such a chat while its pushes do not come; default 5s."""

    max_new_chats: Count = 20
    """Most chats per second that are begun; default 20. Further ones are answered with 429. A Chat Server opens
    about 10 sessions a second."""

    max_rate: Rate | None = None
    """Most calls of clients per second that GMS gets, of those that `restoration.max_rate` allows; default half of
    them."""

    max_waiting: Count = 10
    """Most calls of one chat that wait for their turn; default 10. One more is answered with 429."""

    max_upload: Size = 20 * KIB * KIB
    """Largest file that a client may send, in bytes; default 20MiB."""

    def rate(self, all_requests: float) -> float:
        """Most calls per second, where GMS may be asked `all_requests` times for all reasons together."""
        return min(all_requests, self.max_rate or all_requests / 2)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Those of `key_file`, the one for new chats first."""
        return tuple(store_key(key.get_secret_value()) for key in self.key_file.values)

    @property
    def apikeys(self) -> tuple[str, ...]:
        """Of which a client has to show one; none when none is asked for."""
        return tuple(key.get_secret_value() for key in self.apikeys_file.values) if self.apikeys_file else ()

    @field_validator("origins")
    @classmethod
    def _each_once(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(origins))
