"""Who sends pushes, and what those who tried to failed at."""

from __future__ import annotations

from enum import StrEnum

from asyncchatd.model.data import Ms
from asyncchatd.model.values import Value


class Failing(StrEnum):
    """What somebody who tried to send a push failed at."""

    NETWORK = "network"
    FORWARDED = "forwarded"
    TLS = "tls"
    PROXY = "proxy"
    BUSY = "busy"
    PATH = "path"
    SECRET = "secret"
    METHOD = "method"
    BODY = "body"
    NOT_KEPT = "not_kept"


ADVICE = {
    Failing.NETWORK: "where this is a GMS node, or the address under which one comes, add it to receiver.allow and"
    " reload",
    Failing.FORWARDED: "have the proxy set one of X-Forwarded-For and Forwarded, and the other one not at all",
    Failing.TLS: "make the scheme of customhttp.url in GMS what this port speaks: https:// where"
    " receiver.tls_certificate is set, else http://",
    Failing.PROXY: "switch the PROXY protocol off in the proxy, have it send X-Forwarded-For, and name it in"
    " receiver.trusted_proxies",
    Failing.BUSY: "raise receiver.max_connections, or look who holds so many connections",
    Failing.PATH: "set customhttp.url in GMS to .../push/ and one of the push secrets, with nothing before or behind",
    Failing.SECRET: "put a line of receiver.secrets_file, or one of receiver.secrets, behind /push/ in"
    " customhttp.url of GMS",
    Failing.METHOD: "GMS sends POST: this was probably somebody's try by hand",
    Failing.BODY: "see push_refused in the log: if GMS sent it, its form is not known yet and worth a report",
    Failing.NOT_KEPT: "see the daemon's log for why the store takes nothing; Chat Server sends the push again where"
    " GCTI_GMS_PushResend is set",
}
"""What to do about it, in the words of the configuration and of GMS' options."""


class Sender(Value, frozen=True):
    """An address that pushes came from, since the daemon began."""

    client: str
    count: int
    first_at: Ms
    last_at: Ms


class Refusal(Value, frozen=True):
    """An address that something came from which was refused, since the daemon began."""

    client: str
    failing: Failing
    message: str
    count: int
    first_at: Ms
    last_at: Ms

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.failing]
