"""`[receiver]`, `[control]` and `[metrics]`: where asyncchatd listens, and for whom; and what every section is.

Every setting is followed by what it is, its unit, its default and why one would change it. `etc/asyncchatd.toml` says
the same to the person who edits it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from asyncchatd.config.sources.files import (
    InputFile,
    PushSecret,
    SecretFile,
    Token,
    TokenFile,
    read_secrets,
    read_tokens,
)
from asyncchatd.config.values.addresses import USUAL_CONTROL, Listen
from asyncchatd.config.values.bounds import KIB, MOST
from asyncchatd.config.values.kinds import Count, Duration, ListenAddress, Network, Proxy, Size
from asyncchatd.config.values.rights import ORDINARY_RIGHTS, Grant
from asyncchatd.model import SECONDS


@dataclass(frozen=True, slots=True)
class _AtStart:
    """The mark of a setting that a start takes over and a reload does not: the running daemon would have to let go of a
    port or of the store. A setting without it is taken over by a reload."""


AT_START = _AtStart()


class _Alike:
    """The mark of a setting that must be the same for all processes that share a store: each acts for all of them."""


ALIKE = _Alike()


class Section(BaseModel):
    """A part of the tree: does not change once loaded, and knows every key it may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ListenerSettings(Section):
    """What `[receiver]`, `[control]`, `[metrics]` and `[gateway]` have in common: where to listen, for whom, and how
    patiently."""

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

    secrets_file: Annotated[SecretFile | None, BeforeValidator(read_secrets)] = None
    """File with more secrets, one on each line, `#` starts a comment; default none. A path, or
    `credential:NAME` for a systemd credential. In production prefer it to `secrets`, which everybody
    reads who reads the configuration."""

    secrets: tuple[PushSecret, ...] = Field(default=(), validate_default=True)
    """The secrets that are accepted as last part of the push URL, `POST /push/<secret>`; after loading,
    those of `secrets_file` too. No default: at least one is needed, because GMS does not authenticate
    (protocol section 3). Give two while the secret is being changed."""

    body_timeout: Annotated[Duration, AT_START] = 5 * SECONDS
    """How long a push may take to arrive once its header has; default 5s. GMS itself gives up after 2 to
    10 s (protocol section 3)."""

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

    listen: Annotated[ListenAddress, AT_START] = USUAL_CONTROL
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

    token_file: Annotated[TokenFile | None, BeforeValidator(read_tokens)] = None
    """File with tokens, one on each line, `#` starts a comment; default none. A path or
    `credential:NAME`. When there is a token, a client must show one, as `Authorization: Bearer`, or in a
    browser as the password; only `/healthz` and `/readyz` answer without. Give two while it is changed.
    Behind a token may stand its rights, separated by blanks, of `read`, `register`, `operate`, `keys`, `events`
    and `events:NAME`; where none do, it has the first three."""

    token: Token | None = Field(default=None, validate_default=True)
    """One more token, with the rights `read`, `register` and `operate`, written here; default none. In
    production prefer `token_file`."""

    trust_socket: Annotated[bool, Field(strict=True)] = False
    """Whether, without tokens, whoever may open the Unix socket in `listen` is also told secure keys and reads
    what is written in the chats; default false. Give it when the chat application runs on this host as a user
    of the socket's group and nobody else is in it. Refused where `listen` is no Unix socket."""

    tls_ca: InputFile = None
    """For the commands that talk to this listener over TLS: PEM file of the authority they trust. Default:
    the very certificate in `tls_certificate` where they may read it, else the system's authorities."""

    client_certificate: InputFile = None
    """For the same commands: PEM file of the certificate they show when `tls_client_ca` asks for one;
    default none."""

    client_key: InputFile = Field(default=None, validate_default=True)
    """PEM file of the key of `client_certificate`; default none, then the key is in that file itself."""

    @property
    def grants(self) -> tuple[Grant, ...]:
        """The tokens with their rights, each once; none when no token is asked for."""
        together = self.token_file.grants if self.token_file else ()
        if self.token and self.token not in [grant.token for grant in together]:
            together = (*together, Grant(self.token, ORDINARY_RIGHTS))
        return together

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(grant.token.get_secret_value() for grant in self.grants)

    def objection(self, listen: Listen) -> str | None:
        if self.trust_socket and (objection := _no_socket(listen)):
            return objection
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

    @field_validator("token")
    @classmethod
    def _with_its_only_rights(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        file = info.data.get("token_file")
        if file and any(grant.token == token and grant.rights != ORDINARY_RIGHTS for grant in file.grants):
            raise ValueError("expected another token than one that has other rights in control.token_file")
        return token

    @field_validator("trust_socket")
    @classmethod
    def _of_a_socket_alone(cls, trust: bool, info: ValidationInfo) -> bool:
        if not trust or not {"listen", "trusted_proxies"} <= info.data.keys():
            return trust
        if objection := _no_socket(info.data["listen"]):
            raise ValueError(objection)
        if "unix" in info.data["trusted_proxies"]:
            raise ValueError(
                'expected no "unix" in control.trusted_proxies with it, because whoever comes through that proxy'
                " would be told keys and texts"
            )
        return trust

    @field_validator("client_key")
    @classmethod
    def _with_its_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key and "client_certificate" in info.data and not info.data["client_certificate"]:
            raise ValueError("expected control.client_certificate together with a key")
        return key


class MetricsSettings(ListenerSettings):
    """`[metrics]`: an address of its own for Prometheus, which reads `/metrics` there and nothing else. Where there is
    no such section, only the control API serves them."""

    listen: Annotated[ListenAddress, AT_START] = Listen(host="127.0.0.1", port=8095)
    """Where to listen; default `127.0.0.1:8095`. No token is asked for: the metrics hold no secrets, but the names
    of Chat Servers, GMS nodes and consumers. Where other hosts reach it, say in `allow` from where Prometheus comes.
    A systemd socket named `metrics` takes its place."""

    max_connections: Annotated[int, Field(strict=True, ge=8, le=MOST)] = 20
    """Most connections at once, as in `[receiver]`; default 20. A Prometheus server keeps one."""


def _no_socket(listen: Listen) -> str | None:
    """Why those who come there cannot be trusted with keys and texts; `None` where permissions of a file decide."""
    if listen.path is not None:
        return None
    return (
        f"expected a Unix socket with control.trust_socket, because anybody on this host can come to {listen}: set"
        ' control.listen to such as "unix:/run/asyncchatd/control.sock", or give a token the rights keys and events'
    )


def _unprotected(listen: Listen) -> str | None:
    """Why nobody listens there who serves whoever comes; `None` where only this host can come from."""
    if listen.local:
        return None
    return (
        f"expected a token, because other hosts can reach {listen} and would control every session: make a"
        " file with one and name it in control.token_file, or listen on 127.0.0.1 or a Unix socket"
    )
