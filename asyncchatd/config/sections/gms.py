"""`[gms]`: the GMS nodes, and how they are asked.

Every setting is followed by what it is, its unit, its default and why one would change it. `etc/asyncchatd.toml` says
the same to the person who edits it.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from asyncchatd.config.sections.listeners import (
    Section,
)
from asyncchatd.config.sources.files import (
    InputFile,
    SecretFile,
    read_password,
)
from asyncchatd.config.values.bounds import at_least
from asyncchatd.config.values.kinds import (
    Duration,
    NodeUrl,
    Segment,
    UserName,
)
from asyncchatd.config.values.trust import tls_context
from asyncchatd.model import SECONDS


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

    password_file: Annotated[SecretFile | None, BeforeValidator(read_password)] = None
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

    def tls_for(self, address: str) -> ssl.SSLContext | None:
        """How to talk to this address; `None` for one without `https`, for which the authorities of the system are not
        read: that takes a tenth of the daemon's start. Raises `OSError` as `tls` does."""
        return self.tls() if address.lower().startswith("https:") else None

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
            headers["Authorization"] = f"Basic {basic_credentials(self.username, password)}"
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
        return at_least("gms.rest", info.data.get("rest"), longest)


_OWN_HEADERS = frozenset(
    ["host", "connection", "expect", "accept-encoding", "content-length", "content-type", "transfer-encoding"]
)


def basic_credentials(username: str, password: str) -> str:
    """What HTTP Basic authentication sends for a user name and a password."""
    return base64.b64encode(f"{username}:{password}".encode()).decode()
