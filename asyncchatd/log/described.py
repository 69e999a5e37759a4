"""`docs/metrics.md`, written from the metrics."""

from __future__ import annotations

from asyncchatd.log.metrics import OURS

_SUFFIXES = {"counter": "_total", "info": "_info"}
"""What the name under which it is found ends in."""

_INFO = {"asyncchatd_build": ("version", "python")}


def described() -> str:
    """The document: every metric of our own, for people."""
    lines = [
        "# Metrics",
        "",
        "Written by `python -m asyncchatd.log metrics > docs/metrics.md` from `asyncchatd/log/metrics.py`; a test",
        "keeps it true. `GET /metrics` of `[metrics]` and of the control API serves them, with the usual `process_...`",
        "ones. `etc/alerts.yml` and `etc/grafana-dashboard.json` are made of them.",
        "",
        "| Metric | Type | Labels | Meaning |",
        "|---|---|---|---|",
    ]
    rows = []
    for metric in OURS:
        [family] = metric.describe()
        name = family.name + _SUFFIXES.get(family.type, "")
        labels = " ".join(f"`{label}`" for label in metric._labelnames or _INFO.get(family.name, ()))
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines + sorted(rows))
