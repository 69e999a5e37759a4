"""Doubts of the gateway: what is valid in `[gateway]` but probably not meant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from asyncchatd.config import GatewaySettings, Listen, Settings
from asyncchatd.model import SECONDS, Finding, durations, findings

PATIENCE = 3 * SECONDS
"""What Genesys' widgets give a request (protocol section 7)."""

LONGEST_POLL = 30 * SECONDS
"""The longest pause between two polls of theirs."""


def private(gateway: GatewaySettings) -> list[tuple[str, Path | None]]:
    """The files that nobody else should read, by their keys."""
    return [
        ("gateway.key_file", gateway.key_file.path),
        ("gateway.apikeys_file", gateway.apikeys_file.path if gateway.apikeys_file else None),
        ("gateway.tls_key", gateway.tls_key),
    ]


def doubts(settings: Settings, gateway: GatewaySettings) -> Iterator[Finding]:
    """All of them, but those that every listener may have."""
    yield from _of_its_clients(gateway)
    yield from _of_its_times(gateway)
    if set(gateway.keys) & set(settings.store_keys):
        yield findings.warning(
            "gateway.key_file",
            "a key in it is one of store.keys_file too",
            "give each a key of its own: `openssl rand -base64 32` makes one",
        )
    most = settings.restoration.max_rate
    if gateway.max_rate is not None and gateway.max_rate > most:
        yield findings.warning(
            "gateway.max_rate",
            f"{gateway.max_rate:g} is above restoration.max_rate, {most:g}, which is never passed",
            "set it lower, so that pings have their part",
        )
    for index, node in enumerate(settings.gms.nodes):
        if _is_at(node, gateway.listen):
            yield findings.error(
                f"gms.nodes[{index}]",
                f"{node} is where the gateway itself listens",
                "name the base address of GMS, which the gateway stands in front of",
            )


def _of_its_clients(gateway: GatewaySettings) -> Iterator[Finding]:
    if not gateway.origins:
        yield findings.warning(
            "gateway.origins",
            "no page of a browser is served, only programs",
            'name the origins of the pages with a chat in them, such as "https://www.example.com"',
        )
    if not (gateway.listen.local or gateway.tls_certificate):
        yield findings.warning(
            "gateway.listen",
            f"{gateway.listen} can be reached from other hosts, and keys and texts go there in the clear",
            "set gateway.tls_certificate, or listen on 127.0.0.1 behind a proxy that speaks TLS",
        )
    if gateway.adopt:
        yield findings.warning(
            "gateway.adopt",
            "a stranger's guess for a chat that is not known here reaches Chat Server",
            "register such chats at the control API; or set it to false once those from before the gateway have ended",
        )


def _of_its_times(gateway: GatewaySettings) -> Iterator[Finding]:
    for key, value in (("hold", gateway.hold), ("patience", gateway.patience)):
        if value >= PATIENCE:
            yield findings.warning(
                f"gateway.{key}",
                f"{durations.text(value)} is not below the {durations.text(PATIENCE)} that widgets give a request",
                "make it shorter, where clients are Genesys' widgets",
            )
    if gateway.keepalive_timeout < 2 * LONGEST_POLL:
        yield findings.warning(
            "gateway.keepalive_timeout",
            f"{durations.text(gateway.keepalive_timeout)} is near the longest pause between two polls of Genesys'"
            f" widgets, {durations.text(LONGEST_POLL)}",
            "make it far longer, such as 2m: else connections are closed just when the next poll comes",
        )


def _is_at(node: str, listen: Listen) -> bool:
    """Whether this is an address of the gateway: by its words alone, as nobody is asked here."""
    parts = urlsplit(node)
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    if listen.path is not None or port != listen.port:
        return False
    return host == (listen.host or "") or (Listen(host=host).local and (listen.local or not listen.host))
