"""`asyncchatd init --with`: what watches the daemon and stands around it, written beside its configuration.

The files are those of the project. In what belongs to Prometheus the address, the directory and the place of the
runbook are those of this host, in what belongs to a proxy the addresses that the configuration listens on. A file that
is there and differs stays, unless it is asked otherwise.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncchatd.config import Listen
from asyncchatd.preflight.installing import CONFIG, METRICS, InitError, shipped, write_all


@dataclass(frozen=True, slots=True)
class Extra:
    """Files that go together, and what for."""

    files: tuple[str, ...]
    purpose: str


ALERTS, RUNBOOK, PROMETHEUS = "alerts.yml", "runbook.md", "prometheus.yml"
LOGROTATE = "asyncchatd.logrotate"
HAPROXY, NGINX, HAPROXY_NODES, NGINX_NODES = (
    *("haproxy.cfg", "nginx.conf"),
    *("haproxy-nodes.cfg", "nginx-nodes.conf"),
)

EXTRAS = {
    "alerts": Extra((ALERTS, RUNBOOK), "alert rules of Prometheus, and what to do about each"),
    "prometheus": Extra((PROMETHEUS,), "how Prometheus scrapes it: parts for your prometheus.yml"),
    "dashboard": Extra(("grafana-dashboard.json",), "a dashboard, to be imported into Grafana"),
    "lnav": Extra(("asyncchatd.lnav.json",), "the log's format, for lnav -i"),
    "logrotate": Extra((LOGROTATE,), "for /etc/logrotate.d, where log.file is set"),
    "nginx": Extra((NGINX,), "an example of nginx with TLS in front"),
    "haproxy": Extra((HAPROXY,), "an example of HAProxy with TLS in front"),
    "nginx-nodes": Extra((NGINX_NODES,), "the same of several nodes on PostgreSQL"),
    "haproxy-nodes": Extra((HAPROXY_NODES,), "the same of several nodes on PostgreSQL"),
}
"""By the names that the command takes."""


def listed() -> Iterator[str]:
    """What there is, a line each."""
    for name, extra in EXTRAS.items():
        yield f"{name:<15}{', '.join(extra.files):<28}{extra.purpose}"


def planned(
    names: Sequence[str], directory: Path, *, config: str | None = None, runbook: str | None = None
) -> dict[Path, str]:
    """The files of these names, and what will stand in them. `config` is the text of the configuration that they belong
    to, by default the one in the directory; `runbook` the address of the runbook, by default of the file written."""
    at = runbook or (directory / RUNBOOK).as_uri()
    listens = _read(directory / CONFIG) if config is None else _listens(config)
    texts: dict[Path, str] = {}
    for name in dict.fromkeys(names):
        for file in EXTRAS[name].files:
            text = shipped(file)
            if file == ALERTS:
                text = text.replace("runbook_url: docs/runbook.md#", f"runbook_url: {at}#")
            if file in (ALERTS, PROMETHEUS):
                text = text.replace(METRICS, listens.metrics).replace("/etc/asyncchatd/", f"{directory}/")
            if file == LOGROTATE and not listens.service:
                text = text.replace(RELOADED, _hung_up(directory / CONFIG))
            if file in (HAPROXY, NGINX):
                text = _in_front(text, listens, "unix@" if file == HAPROXY else "unix:")
            if file in (HAPROXY_NODES, NGINX_NODES):
                text = _in_front_of_nodes(text, listens)
            texts[directory / file] = text
    return texts


def write(texts: dict[Path, str]) -> list[Path]:
    """Write those that are not there as they should be; which were written. Raises `InitError`."""
    write_all(new := {path: text for path, text in texts.items() if not _is_so(path, text)})
    return list(new)


def refuse_others(texts: dict[Path, str]) -> None:
    """Raises `InitError` when a file is there that differs."""
    differ = [str(path) for path, text in texts.items() if path.exists() and not _is_so(path, text)]
    if differ:
        raise InitError(f"{', '.join(differ)}: already there, and differs; --force overwrites")


def _is_so(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


# -- the configuration that they belong to ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Listens:
    """Where a configuration listens; what it does not say is as in the shipped files."""

    metrics: str = METRICS
    """Where Prometheus comes to."""
    receiver: Listen | None = None
    gateway: Listen | None = None
    control: Listen | None = None
    path: str = ""
    """`gateway.path`."""
    service: bool = True
    """Whether it is for a service of systemd."""


RECEIVER_PORT, GATEWAY_PORT, CONTROL_PORT = 8091, 8090, 8092
"""Of the shipped files,"""
PATH = "/genesys"
"""and the path there."""
RELOADED = "if systemctl is-active --quiet asyncchatd; then systemctl reload asyncchatd; fi"
"""What logrotate does then where systemd runs."""
NORTH, SOUTH = "10.0.0.1", "10.0.0.2"
"""The hosts of two nodes in the shipped files. The first one is this one."""


def _read(file: Path) -> _Listens:
    try:
        return _listens(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _Listens()


def _listens(text: str) -> _Listens:
    """What the text of a configuration says, which need not be right in everything else."""
    try:
        found = tomllib.loads(text)
    except ValueError:
        return _Listens()
    path = _said(found, "gateway", "path")
    return _Listens(
        metrics=_metrics(found),
        receiver=_listen(_said(found, "receiver", "listen")),
        gateway=_listen(_said(found, "gateway", "listen")),
        control=_listen(_said(found, "control", "listen")),
        path=path if isinstance(path, str) else "",
        service=str(_said(found, "receiver", "secrets_file")).startswith("credential:"),
    )


def _said(found: Mapping[str, object], section: str, key: str) -> object:
    keys = found.get(section)
    return keys.get(key) if isinstance(keys, dict) else None


def _metrics(found: Mapping[str, object]) -> str:
    for section in ("metrics", "control"):
        listen = _said(found, section, "listen")
        if section == "metrics" and found.get(section) is not None and listen is None:
            return METRICS
        if isinstance(listen, str) and not listen.startswith("unix:"):
            address = _listen(listen)
            return METRICS if address is None else _reached(address, "")
    return METRICS


def _listen(said: object) -> Listen | None:
    try:
        return Listen.parse(said)
    except ValueError:
        return None


def _reached(address: Listen, unix: str) -> str:
    """Where somebody on this host comes to. `unix` stands before the path of a socket."""
    if address.path is not None:
        return f"{unix}{address.path}"
    return f"127.0.0.1:{address.port}" if _is_every(address) else str(address)


def _is_every(address: Listen) -> bool:
    return address.host in (None, "", "0.0.0.0", "::")


def _hung_up(config: Path) -> str:
    """The command that lets the daemon of this configuration, started by hand, open its log anew."""
    return f"pkill -HUP -f -- {shlex.quote(f'run --config {re.escape(str(config))}$')} || true"


# -- proxies ---------------------------------------------------------------------------------------------


def _in_front(text: str, listens: _Listens, unix: str) -> str:
    """The example of a proxy on this host."""
    for port, listen in ((RECEIVER_PORT, listens.receiver), (GATEWAY_PORT, listens.gateway)):
        if listen is not None:
            text = text.replace(f" 127.0.0.1:{port}", f" {_reached(listen, unix)}")
            if listen.path is not None:
                text = text.replace('["127.0.0.1"]', '["unix"]')
    return _with_path(text, listens.path)


def _in_front_of_nodes(text: str, listens: _Listens) -> str:
    """The example of a proxy that may be on another host, where all nodes have the ports of this one."""
    for port, listen in ((RECEIVER_PORT, listens.receiver), (GATEWAY_PORT, listens.gateway)):
        if listen is not None and listen.path is None:
            known = not listen.local and not _is_every(listen)
            text = text.replace(f"{NORTH}:{port}", str(listen) if known else f"{NORTH}:{listen.port}")
            text = text.replace(f"{SOUTH}:{port}", f"{SOUTH}:{listen.port}")
    if listens.control is not None and listens.control.path is None:
        text = text.replace(f" port {CONTROL_PORT}", f" port {listens.control.port}")
    return _with_path(text, listens.path)


def _with_path(text: str, path: str) -> str:
    """What goes by the place of the chat id in a path goes by `path`."""
    if not path:
        return text
    base = path.rstrip("/")
    text = text.replace(f"{PATH}/2/chat/", f"{base}/2/chat/")
    return text.replace("field(6,/)", f"field({5 + base.count('/')},/)")
