"""`asyncchatd init --with`: what watches the daemon and stands around it, written beside its configuration.

The files are those of the project. In what belongs to Prometheus the address, the directory and the place of the
runbook are those of this host. A file that is there and differs stays, unless it is asked otherwise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
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

EXTRAS = {
    "alerts": Extra((ALERTS, RUNBOOK), "alert rules of Prometheus, and what to do about each"),
    "prometheus": Extra((PROMETHEUS,), "how Prometheus scrapes it: parts for your prometheus.yml"),
    "dashboard": Extra(("grafana-dashboard.json",), "a dashboard, to be imported into Grafana"),
    "lnav": Extra(("asyncchatd.lnav.json",), "the log's format, for lnav -i"),
    "logrotate": Extra(("asyncchatd.logrotate",), "for /etc/logrotate.d, where log.file is set"),
    "nginx": Extra(("nginx.conf",), "an example of nginx with TLS in front"),
    "haproxy": Extra(("haproxy.cfg",), "an example of HAProxy with TLS in front"),
}
"""By the names that the command takes."""


def listed() -> Iterator[str]:
    """What there is, a line each."""
    for name, extra in EXTRAS.items():
        yield f"{name:<12}{', '.join(extra.files):<28}{extra.purpose}"


def planned(
    names: Sequence[str], directory: Path, *, metrics: str | None = None, runbook: str | None = None
) -> dict[Path, str]:
    """The files of these names, and what will stand in them. `metrics` is where Prometheus comes to, by default what
    the configuration in the directory says; `runbook` the address of the runbook, by default of the file written."""
    at = runbook or (directory / RUNBOOK).as_uri()
    target = _target(metrics) if metrics else _configured(directory / CONFIG)
    texts: dict[Path, str] = {}
    for name in dict.fromkeys(names):
        for file in EXTRAS[name].files:
            text = shipped(file)
            if file == ALERTS:
                text = text.replace("runbook_url: docs/runbook.md#", f"runbook_url: {at}#")
            if file in (ALERTS, PROMETHEUS):
                text = text.replace(METRICS, target).replace("/etc/asyncchatd/", f"{directory}/")
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


def _configured(config: Path) -> str:
    """Where Prometheus comes to by the file, which need not be right in everything else."""
    try:
        found = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return METRICS
    for section in ("metrics", "control"):
        keys = found.get(section)
        listen = keys.get("listen") if isinstance(keys, dict) else None
        if section == "metrics" and keys is not None and listen is None:
            return METRICS
        if isinstance(listen, str) and not listen.startswith("unix:"):
            return _target(listen)
    return METRICS


def _target(listen: str) -> str:
    try:
        address = Listen.parse(listen)
    except ValueError:
        return METRICS
    if address.path is not None:
        return METRICS
    return str(address) if address.host not in (None, "", "0.0.0.0", "::") else f"127.0.0.1:{address.port}"
