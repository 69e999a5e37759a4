"""Doubts: what is valid in a configuration but probably not meant."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterator
from pathlib import Path

from asyncchatd.config import (
    ControlSettings,
    ListenerSettings,
    MetricsSettings,
    Right,
    Settings,
    tls_context,
)
from asyncchatd.listening import certificates
from asyncchatd.model import HOURS, Finding, Level, durations, findings
from asyncchatd.preflight import base_addresses, gateway
from asyncchatd.preflight.wording import cause_of, good_until

SECRETS = {Right.KEYS: "secure keys", Right.EVENTS: "texts of the chats"}
"""What clients with these rights are told."""


def doubts(settings: Settings) -> Iterator[Finding]:
    yield from _doubts_of_secrets(settings)
    yield from _doubts_of_gms(settings)
    lease, timeout = settings.restoration.lease, settings.gms.timeout
    if lease <= timeout:
        yield findings.warning(
            "restoration.lease",
            f"{durations.text(lease)} is over before gms.timeout, {durations.text(timeout)}",
            "make it longer than gms.timeout, else a session may be claimed again while its ping waits",
        )
    if settings.ping.interval > 12 * HOURS:
        yield findings.warning(
            "ping.interval",
            f"{durations.text(settings.ping.interval)} is near Chat Server's flex-push-timeout of, often, 24h",
            "make it far shorter than flex-push-timeout, such as 30m",
        )
    if settings.store.scheme == "memory":
        yield findings.warning(
            "store.url",
            "sessions are kept in memory only and are lost at every stop",
            "use sqlite:///asyncchatd.db for anything but trials",
        )
    yield from _doubts_of_listeners(settings)
    yield from _doubts_of_consumers(settings)
    if not settings.chat_servers:
        yield findings.warning(
            "chat_server",
            "no Chat Server is watched, so a lost one is only noticed by what GMS answers",
            "add a [[chat_server]] table for each instance",
        )
    addresses = [server.health_url for server in settings.chat_servers]
    for index, address in enumerate(addresses):
        if address in addresses[:index]:
            yield findings.warning(
                f"chat_server[{index}].health_url",
                f"the same page as that of {settings.chat_servers[addresses.index(address)].name}",
                "give each Chat Server the address of its own health page",
            )


def _doubts_of_secrets(settings: Settings) -> Iterator[Finding]:
    for index, secret in enumerate(settings.receiver.secrets):
        if secret.get_secret_value() == "change-me" or len(secret.get_secret_value()) < 16:
            yield findings.warning(
                "receiver.secrets",
                f"number {index + 1} of the push secrets is easy to guess",
                "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'",
            )
    file = settings.receiver.secrets_file
    own = len(settings.receiver.secrets) > len(file.values if file else ())
    gms_file = settings.gms.password_file
    inline = own or settings.control.token or settings.gms.headers or (settings.gms.password and not gms_file)
    token_file, keys_file = settings.control.token_file, settings.store.keys_file
    private: list[tuple[str, Path | None]] = [
        ("", settings.path if inline else None),
        ("receiver.secrets_file", file.path if file else None),
        ("receiver.tls_key", settings.receiver.tls_key),
        ("control.token_file", token_file.path if token_file else None),
        ("control.tls_key", settings.control.tls_key),
        ("metrics.tls_key", settings.metrics.tls_key if settings.metrics else None),
        ("gms.password_file", gms_file.path if gms_file else None),
        ("gms.client_key", settings.gms.client_key),
        ("store.keys_file", keys_file.path if keys_file else None),
        ("store.password_file", settings.store_password_file),
        *(
            (f"consumer[{index}].secret_file", each.secret_file.path if each.secret_file else None)
            for index, each in enumerate(settings.consumers)
        ),
    ]
    if settings.gateway is not None:
        private += gateway.private(settings.gateway)
    for key, path in private:
        if path and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            yield findings.warning(
                key,
                f"{path} holds secrets and can be read by others than its owner",
                f"chmod go= {path}, or let systemd hand it over as a credential (credential:NAME)",
            )


def _doubts_of_listeners(settings: Settings) -> Iterator[Finding]:
    for name, listener in settings.listeners.items():
        if listener.tls_certificate is not None:
            yield from _doubts_of_tls(listener, name)
        if listener.listen.path is not None and listener.allow and not listener.trusted_proxies:
            message = f"{listener.listen} is a Unix socket, and allow says nothing of those"
            yield findings.warning(f"{name}.allow", message, "its permissions decide who may use it")
    yield from _doubts_of_control(settings.control)
    if settings.metrics is not None:
        yield from _doubts_of_metrics(settings.metrics)
    if settings.gateway is not None:
        yield from gateway.doubts(settings, settings.gateway)


def _doubts_of_tls(listener: ListenerSettings, name: str) -> Iterator[Finding]:
    from asyncchatd.listening import tls  # its log and metrics are for one that serves

    for fatal, key, message in tls.doubts(listener, name):
        yield (findings.error if fatal else findings.warning)(
            key, message, "replace the file; a running daemon takes a new one over by itself"
        )


def _doubts_of_metrics(metrics: MetricsSettings) -> Iterator[Finding]:
    if not (metrics.listen.local or metrics.allow or metrics.tls_client_ca):
        yield findings.warning(
            "metrics.listen",
            f"{metrics.listen} can be reached from other hosts, and whoever comes is told the names of Chat Servers and"
            " GMS nodes, and how busy they are",
            "name the hosts of Prometheus in metrics.allow, or listen on 127.0.0.1",
        )


def _doubts_of_control(control: ControlSettings) -> Iterator[Finding]:
    if not (control.listen.local or control.tls_certificate):
        told = [
            words
            for right, words in SECRETS.items()
            if any(grant.rights.allow(right) for grant in control.grants)
        ]
        yield findings.warning(
            "control.listen",
            f"{control.listen} can be reached from other hosts, and the token goes there in the clear"
            + "".join(f", and so do {words}" for words in told),
            "set control.tls_certificate, or listen on 127.0.0.1 behind a proxy that speaks TLS",
        )
    if control.trust_socket and control.grants:
        yield findings.warning(
            "control.trust_socket",
            "there are tokens, which say who may, so the socket itself is trusted with nothing",
            "take it out, and give a token the rights keys and events where they are needed",
        )
    elif control.trust_socket:
        yield findings.warning(
            "control.trust_socket",
            f"whoever may open {control.listen} is told secure keys and what is written in the chats, without a token",
            "let nobody into its group but the chat application; where others are, give a token the rights keys and"
            " events instead",
        )
    if any(len(token) < 16 for token in control.tokens):
        yield findings.warning(
            "control.token_file" if control.token_file else "control.token",
            "a token is easy to guess",
            "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'",
        )


def _doubts_of_consumers(settings: Settings) -> Iterator[Finding]:
    control = settings.control
    names = [each.name for each in settings.consumers]
    key = "control.token_file" if control.token_file else "control.token"
    entitled = {name for grant in control.grants for name in grant.rights.consumers or ()}
    for name in sorted(entitled - {*names}):
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        listed = f"it is one of {', '.join(names)}" if names else "there is none"
        yield findings.warning(
            key,
            f"a token has the right events:{name}, and no [[consumer]] has this name",
            f"did you mean events:{nearest[0]}?" if nearest else f"correct the name: {listed}",
        )
    for index, each in enumerate(settings.consumers):
        fetches = each.url is None
        if (
            fetches
            and not control.trust_socket
            and not any(grant.rights.allow(Right.EVENTS, [each.name]) for grant in control.grants)
        ):
            yield findings.warning(
                f"consumer[{index}]",
                f"{each.name} has no url, so it fetches its events, and no token has the right to",
                f"give one the right events:{each.name} in control.token_file, or set url for webhooks",
            )
        if each.ca_file is None:
            continue
        if fetches or not str(each.url).startswith("https:"):
            yield findings.warning(
                f"consumer[{index}].ca_file",
                "url is no https:// address, so this is not used",
                "take it out, or use https:// in url",
            )
            continue
        try:
            tls_context(authorities=each.ca_file)
        except OSError as error:
            yield findings.error(
                f"consumer[{index}].ca_file",
                f"it cannot be used: {cause_of(error)}",
                "it must be a PEM file with the authority that signed the certificate of url",
            )


def _doubts_of_gms(settings: Settings) -> Iterator[Finding]:
    gms = settings.gms
    secure = [node.startswith("https:") for node in gms.nodes]
    yield from base_addresses.doubts(gms)
    if "service" not in gms.model_fields_set:
        yield findings.warning(
            "gms.service",
            f"not set: sessions that come without a service are pinged as {gms.service}",
            "set it to the name of your chat service in GMS",
        )
    if (gms.username or gms.headers) and not all(secure):
        yield findings.warning(
            "gms.nodes",
            "the password or the extra headers go over the network in the clear",
            "use https:// addresses where GMS offers them",
        )
    if (gms.ca_file or gms.client_cert) and not any(secure):
        yield findings.warning(
            "gms.ca_file" if gms.ca_file else "gms.client_cert",
            "no node is addressed with https, so this is not used",
            "use https:// addresses in gms.nodes",
        )
    try:
        if gms.ca_file or gms.client_cert:
            gms.tls()
        if gms.client_cert:
            until = certificates.of_file(gms.client_cert)
            finding = good_until(
                "gms.client_cert", str(gms.client_cert), until, "renew it, and reload asyncchatd"
            )
            if finding.level is not Level.OK:
                yield finding
    except (OSError, ValueError) as error:
        yield findings.error(
            "gms.client_cert" if gms.client_cert else "gms.ca_file",
            f"the TLS files cannot be used: {cause_of(error)}",
            "they must be PEM files, the key without a password and belonging to the certificate",
        )
