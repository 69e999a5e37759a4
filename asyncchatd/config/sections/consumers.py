"""Who is told of what happens in chats, and how much of it is kept: `[[consumer]]` and `[transcript]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from asyncchatd.config.sections.listeners import Section
from asyncchatd.config.sources.files import InputFile, SecretFile, read_webhook_secrets
from asyncchatd.config.values.addresses import Listen
from asyncchatd.config.values.bounds import KIB
from asyncchatd.config.values.kinds import Count, Duration, Segment, Size
from asyncchatd.model import DAYS, HOURS, MINUTES, SECONDS, EventKind, durations

LONGEST_ACKNOWLEDGING = 1 * MINUTES
"""No session is left to anybody for longer."""


def _consumer_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError("expected a name of letters, digits and - _ . , 64 at most")
    return value


def _webhook_url(value: str) -> str:
    """Texts go there: by TLS, or not beyond this host."""
    try:
        parts = urlsplit(value)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        port, parts = 0, urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("expected an address such as https://chat.example.com/asyncchatd")
    if "@" in parts.netloc:
        raise ValueError("expected an address without user name and password: the signature says who sends")
    if parts.scheme == "http" and not Listen(host=parts.hostname).local:
        raise ValueError("expected https://, as texts of customers go there, or an address of this host")
    return value


class ConsumerSettings(Section):
    """`[[consumer]]`: one who is told of the events of chats; repeat the table for each."""

    name: Annotated[str, AfterValidator(_consumer_name)]
    """What logs, the API and commands call it, and by what its progress is remembered; unique, no default."""

    url: Annotated[str | None, AfterValidator(lambda url: url and _webhook_url(url))] = Field(
        default=None, repr=False
    )
    """Where its events are posted to, as signed webhooks; default none: then it fetches them from
    `GET /v1/events`. By TLS, or on this host."""

    secret_file: Annotated[SecretFile | None, BeforeValidator(read_webhook_secrets)] = None
    """File with the secrets that sign its webhooks, one on each line, `whsec_` and base64 as Standard Webhooks has
    them; needed with `url`. Of two, both sign: so a secret is replaced without a pause. A path or `credential:NAME`."""

    ca_file: InputFile = None
    """PEM file of the authorities that its certificate may be of; default those of the system."""

    kinds: frozenset[EventKind] = frozenset((EventKind.CHAT, EventKind.ENDED, EventKind.GAP))
    """Of which events it is told: `chat`, `ended`, `lost`, `restored`, `tokens`, `notified`, `gap`; default `chat`,
    `ended` and `gap`."""

    services: tuple[Segment, ...] = ()
    """Of the chats of which services alone; default of all. A chat of which only a push told has no service until it is
    registered, and counts as of each."""

    begin: Literal["now", "oldest"] = Field(default="now", alias="from")
    """Where one that was never named before begins: with what happens from `now` on, or with the `oldest` event
    that is kept; default `now`."""

    timeout: Duration = 5 * SECONDS
    """How long a webhook may take to answer; default 5s."""

    max_in_flight: Count = 20
    """To so many chats' webhooks an answer may be waited for at once; default 20. To one chat's it is always one."""

    park_after: Duration = 1 * HOURS
    """How long a batch that is refused, while others are taken, is tried again before it is put aside; default
    1h. Its chat goes on without it."""

    keep: Duration = 3 * DAYS
    """How long events are kept that it does not take, and how long it is remembered once it is not named any more;
    default 3d."""

    max_backlog: Count = 1_000_000
    """How many events are kept at most that it does not take; of more the oldest go, and it is told a `gap`; default
    1000000. About so many: beyond a thousand they are counted by samples."""

    send_keys: bool = False
    """Whether its `tokens` events, and the `notified` events that ask for a Refresh, carry the tokens, secure key
    included; default false. Webhooks alone."""

    acknowledges: Duration | None = None
    """How long it has for a Refresh of its own that acknowledges a push, of which a `notified` event tells it at once,
    before asyncchatd pings; default none: asyncchatd acknowledges all pushes. At most 1m; sensibly well below the time
    after which Chat Server sends a push again. One consumer for the chats of a service."""

    @field_validator("acknowledges")
    @classmethod
    def _short(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value > LONGEST_ACKNOWLEDGING:
            raise ValueError(f"expected at most {durations.text(LONGEST_ACKNOWLEDGING)}")
        return value

    @field_validator("kinds", mode="before")
    @classmethod
    def _known_kinds(cls, value: object) -> object:
        if not isinstance(value, (Sequence, frozenset)) or isinstance(value, str) or not value:
            raise ValueError(f"expected a list of some of {', '.join(EventKind)}")
        unknown = [each for each in value if each not in set(EventKind)]
        if unknown:
            number = next(place for place, each in enumerate(value, 1) if each in unknown)
            raise ValueError(f"expected some of {', '.join(EventKind)}; number {number} is none of them")
        return frozenset(EventKind(each) for each in value)

    @model_validator(mode="after")
    def _fits_together(self) -> ConsumerSettings:
        if self.url is not None and self.secret_file is None:
            raise ValueError("expected secret_file, with the secret that signs the webhooks to url")
        if self.send_keys and self.url is None:
            raise ValueError("expected url with send_keys: who fetches takes tokens with POST .../take")
        if self.acknowledges is not None and EventKind.NOTIFIED not in self.kinds:
            raise ValueError(
                'expected "notified" among kinds with acknowledges: such an event asks for the Refresh'
            )
        return self


class TranscriptSettings(Section):
    """`[transcript]`: how much is kept of what was said in chats. Nothing is while there is neither a `[[consumer]]`
    nor a `[gateway]`."""

    max_events: Count = 1000
    """Events of one chat; the oldest go first; default 1000."""

    max_bytes: Size = 256 * KIB
    """Bytes of one chat's events; default 256KiB."""

    max_total: Size = 512 * KIB * KIB
    """Bytes of all events; the oldest go first; default 512MiB."""

    keep: Duration = 1 * HOURS
    """How long after its end a chat's events stay that every consumer has; default 1h."""


def asked_twice(consumers: Sequence[ConsumerSettings]) -> tuple[str, str] | None:
    """Two consumers that would both be asked to acknowledge the pushes of one chat, if there are any."""
    asked = [each for each in consumers if each.acknowledges is not None]
    for place, one in enumerate(asked):
        for other in asked[place + 1 :]:
            if not one.services or not other.services or set(one.services) & set(other.services):
                return one.name, other.name
    return None
