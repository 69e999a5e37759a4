"""The health page of a Chat Server, as it writes one, in every format that is plausible."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from xml.sax.saxutils import escape, quoteattr


class HealthFormat(StrEnum):
    """The formats a health page may have."""

    JSON = "json"
    NESTED_JSON = "nested_json"
    LINES_EQUALS = "lines_equals"
    LINES_COLON = "lines_colon"
    XML_ATTRIBUTES = "xml_attributes"
    XML_ELEMENTS = "xml_elements"
    PROMETHEUS = "prometheus"


def write_health(
    fmt: HealthFormat,
    app_dbid: str | int | None,
    pid: str | int | None,
    *,
    uptime: float | None = None,
    started: float | None = None,
    counters: Mapping[str, float] | None = None,
) -> bytes:
    """A health page, for the stand-in; `None` leaves a value out. `uptime` in seconds, `started` in
    epoch seconds. Raises `ValueError` for a counter whose name is no identifier."""
    counters = counters or {}
    for name in counters:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(f"not a counter's name: {name!r}")
    identity = _stated({"app_dbid": app_dbid, "process_os_pid": pid})
    since = _stated({"start_time": started, "uptime": uptime})
    everything = {**identity, **since, **counters}
    match fmt:
        case HealthFormat.JSON:
            page = json.dumps(everything)
        case HealthFormat.NESTED_JSON:
            listed = [{"name": name, "value": value} for name, value in {**since, **counters}.items()]
            page = json.dumps({"health": {"server": identity, "counters": listed}})
        case HealthFormat.LINES_EQUALS:
            page = "".join(f"{name}={value}\n" for name, value in everything.items())
        case HealthFormat.LINES_COLON:
            page = "".join(f"{name}: {value}\n" for name, value in everything.items())
        case HealthFormat.XML_ATTRIBUTES:
            attributes = " ".join(f"{name}={quoteattr(str(value))}" for name, value in everything.items())
            page = f'<?xml version="1.0" encoding="UTF-8"?>\n<health {attributes}/>\n'
        case HealthFormat.XML_ELEMENTS:
            elements = "".join(
                f"  <{name}>{escape(str(value))}</{name}>\n" for name, value in everything.items()
            )
            page = f'<?xml version="1.0" encoding="UTF-8"?>\n<health>\n{elements}</health>\n'
        case HealthFormat.PROMETHEUS:
            page = _prometheus_page(identity, started, uptime, counters)
    return page.encode()


def _stated(values: Mapping[str, str | int | float | None]) -> dict[str, str | int | float]:
    return {name: value for name, value in values.items() if value is not None}


def _prometheus_page(
    identity: Mapping[str, object], started: float | None, uptime: float | None, counters: Mapping[str, float]
) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in identity.items())
    lines = ["# TYPE chat_server_info gauge", f"chat_server_info{{{labels}}} 1"]
    if started is not None:
        lines += ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {started!r}"]
    if uptime is not None:
        lines += ["# TYPE process_uptime_seconds gauge", f"process_uptime_seconds {uptime!r}"]
    for name, value in counters.items():
        lines += [f"# TYPE {name} counter", f"{name} {value!r}"]
    return "\n".join(lines) + "\n"
