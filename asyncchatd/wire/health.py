"""Chat Server's health page: who answers there, and since when.

Chat Server serves KPI counters over REST, `app_dbid` and `process_os_pid` among them (protocol
section 5); path, format and the other counters are unknown. So every plausible format is reduced to
one list of names and values, and the few that matter are picked from it. A process id can repeat
(in a container it is always 1), therefore the page's start time, uptime, and counters that may not
run backwards in one process's life are read as well, where it has them.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import NamedTuple

from asyncchatd.wire.lenient_json import NotJson, opened_text, read_json

MAX_PAGE = 1024 * 1024
"""Bytes of a page that are looked at."""

MAX_PAIRS = 50_000
"""Names with values that are looked at."""

MAX_TAGS = 4 * MAX_PAIRS
"""Tags that are looked at, most of which may say nothing."""

MAX_SAMPLE = 8 * 1024
"""Characters of a line that may be one sample; a longer one can only be many assignments."""

MAX_COUNTERS = 1_000
"""Monotone counters that are kept."""


class HealthError(Exception):
    """An unreadable page: the listener is alive, but says nothing of its process."""


@dataclass(frozen=True, slots=True)
class HealthPage:
    """A health page, read: what it says of its Chat Server; `None` where it does not."""

    app_dbid: str | None
    """The server's DBID, which is the `alias` of the Chat API; decimal digits."""
    process_os_pid: str | None
    started: float | None
    """Epoch seconds. Text without a time zone is taken as UTC: good for comparison with itself."""
    uptime: float | None
    """Seconds."""
    counters: Mapping[str, float]
    """Counters that never run backwards in one process's life: declared so by the page, or named
    `..._total`. Names that stand on the page more than once are left out."""


def read_health(
    body: bytes, *, start_counter: str | None = None, uptime_counter: str | None = None
) -> HealthPage:
    """The health page in `body`: JSON, `name=value` or `name: value` lines, XML, simple HTML tables,
    Prometheus text. Names are compared without case, hyphens and underscores.

    `start_counter` and `uptime_counter` name the counters where the guess would be wrong or find
    nothing. Raises `HealthError` when the page says neither who answers nor since when.
    """
    pairs = _pairs(_text(body))
    values: dict[str, object] = {}
    for pair in pairs:
        values.setdefault(_plain(pair.name), pair.value)
    app_dbid = _identifier(values, _APP_DBID)
    pid = _identifier(values, _PROCESS_OS_PID)
    started = _started(values, start_counter)
    uptime = _uptime(values, uptime_counter)
    if app_dbid is None and pid is None and started is None and uptime is None:
        raise HealthError(
            "expected app_dbid or process_os_pid (or a start time or uptime) as JSON, name=value or"
            f" name: value lines, XML or Prometheus text; other values found: {len(pairs)}"
        )
    return HealthPage(app_dbid, pid, started, uptime, _counters(pairs))


# --- picking what matters ---------------------------------------------------------------------


class _Identifier(NamedTuple):
    """A counter that says who answers."""

    name: str
    """As it is compared; a page may put one of its own words before it."""
    fallbacks: tuple[str, ...] = ()
    """Taken only when nothing bears the name: they may mean something else."""


_APP_DBID = _Identifier("appdbid")
_PROCESS_OS_PID = _Identifier("processospid", ("pid", "ospid", "processid"))
IDENTIFIERS = (_APP_DBID, _PROCESS_OS_PID)
"""Those that are read wherever they stand: as a sample, or as a label of any sample."""

_WHOSE = "(?:process|server|chatserver|app|application|service|system)?"
_UNIT = "(?:utc|s|secs?|seconds|(?P<ms>ms|msecs?|millis|milliseconds))?"
# Whole names only: a page may well have the start time of its last session, too.
_START_NAME = re.compile(
    f"{_WHOSE}(?:start|started|startedat|startedon|starttime|startdate|starttimestamp"
    f"|startup|startuptime|launchtime|boottime){_UNIT}"
)
_UPTIME_NAME = re.compile(f"{_WHOSE}uptime(?:in)?{_UNIT}")
_MILLISECONDS = re.compile("ms|msecs?|millis|milliseconds")

_EARLIEST = 1e8
"""Epoch seconds (1973): a smaller number is no start time of anything that still runs."""

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)
_CLOCK = re.compile(r"(?:(\d+)\s*(?:d|days?)?[\s,.]\s*)?(\d+):(\d\d)(?::(\d\d(?:\.\d+)?))?", re.ASCII)
_UNITS = re.compile(
    r"(?:(\d+)\s*d(?:ays?)?)?[\s,]*(?:(\d+)\s*h(?:ours?|rs?)?)?[\s,]*"
    r"(?:(\d+)\s*m(?:in(?:ute)?s?)?)?[\s,]*(?:(\d+(?:\.\d+)?)\s*s(?:ec(?:ond)?s?)?)?",
    re.ASCII | re.IGNORECASE,
)
_MAX_SCALAR = 64


@dataclass(frozen=True, slots=True)
class _Pair:
    """One name with its value, whatever the format was."""

    name: str
    value: object
    series: str = ""
    """What tells several values of one name apart: Prometheus labels."""
    counter: bool | None = None
    """Whether the page itself declares a counter; `None` when it declares nothing."""


def _plain(name: str) -> str:
    """A name as it is compared: `App DBID`, `app-dbid` and `appDbid` are all `appdbid`."""
    return re.sub(r"[^a-z0-9]", "", name[:200].lower())


def _identifier(values: Mapping[str, object], counter: _Identifier) -> str | None:
    """The whole number under the counter's name, else under that behind a prefix, else under a fallback."""
    name = counter.name
    candidates = [values.get(name)]
    candidates += [
        value
        for longer, value in values.items()
        if longer.endswith(name) and _OWN_PREFIX.fullmatch(longer.removesuffix(name))
    ]
    candidates += [values.get(fallback) for fallback in counter.fallbacks]
    for value in candidates:
        number = _number(value)
        if number is not None and number.is_integer() and 0 <= number < 2**53:
            return str(int(number))
    return None


# Not any prefix: a page may name the backup's or a peer's app_dbid as well.
_OWN_PREFIX = re.compile("(?:genesys|chat|server|process|app|service|health|info|kpi)*")


def _started(values: Mapping[str, object], configured: str | None) -> float | None:
    """Epoch seconds from ISO or mail-style text, or from a number in s, ms, µs or ns by its size."""
    for value, in_ms in _candidates(values, configured, _START_NAME):
        number = _number(value)
        if number is None:
            moment = _moment(value)
        else:
            unit = 1e3 if in_ms else next((u for limit, u in _EPOCH_UNITS if number > limit), 1.0)
            moment = number / unit
        if moment is not None and (moment >= _EARLIEST or (configured is not None and moment >= 0)):
            return moment
    return None


_EPOCH_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


def _uptime(values: Mapping[str, object], configured: str | None) -> float | None:
    """Seconds from a number, `1 day, 02:03:04`, `1d 2h 3m 4s` or `P1DT2H3M4S`."""
    for value, in_ms in _candidates(values, configured, _UPTIME_NAME):
        number = _number(value)
        duration = _duration(value) if number is None else number / (1e3 if in_ms else 1.0)
        if duration is not None and duration >= 0:
            return duration
    return None


def _candidates(
    values: Mapping[str, object], configured: str | None, guess: re.Pattern[str]
) -> Iterator[tuple[object, bool]]:
    """Values under the configured name, or else under the likely ones, and whether the name says ms."""
    if configured is not None:
        name = _plain(configured)
        last_word = re.split(r"[^a-z]+", re.sub(r"([A-Z])", r"_\1", configured).lower())[-1]
        yield values.get(name), _MILLISECONDS.fullmatch(last_word) is not None
        return
    for name, value in values.items():
        if match := guess.fullmatch(name):
            yield value, match["ms"] is not None


def _number(value: object) -> float | None:
    """A finite number from a JSON number or from text."""
    if isinstance(value, str) and len(value) <= _MAX_SCALAR and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _moment(value: object) -> float | None:
    if not isinstance(value, str) or len(value) > _MAX_SCALAR:
        return None
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = read(value.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None


def _duration(value: object) -> float | None:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_SCALAR:
        return None
    text = value.strip()
    if text[:1] == "P":
        text = text[1:].replace("T", " ").strip()
    match = _CLOCK.fullmatch(text) or _UNITS.fullmatch(text)
    if match is None or not any(match.groups()):
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def _counters(pairs: list[_Pair]) -> dict[str, float]:
    counters: dict[str, float] = {}
    seen: set[str] = set()
    for pair in pairs:
        monotone = (
            pair.counter if pair.counter is not None else pair.name.lower().endswith(("_total", "-total"))
        )
        if not monotone or (number := _number(pair.value)) is None:
            continue
        name = pair.name + pair.series
        # Which of two values is which may change from page to page, and look like running backwards.
        if name in seen:
            counters.pop(name, None)
        elif len(counters) < MAX_COUNTERS:
            counters[name] = number
        seen.add(name)
    return counters


# --- every format to one list -----------------------------------------------------------------


def _text(body: bytes) -> str:
    utf_16 = body.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = body[:MAX_PAGE].decode("utf-16" if utf_16 else "utf-8-sig", "replace")
    return text if len(body) <= MAX_PAGE else _whole_part(text)


def _whole_part(text: str) -> str:
    """A page that was cut off, back to its last whole line or element: half a process id would be another
    process, and half a counter one that ran backwards. JSON that was cut off is none, and found out as such."""
    end = "<" if text.lstrip().startswith("<") else "\n"
    return text[: max(text.rfind(end), 0)]


def _pairs(text: str) -> list[_Pair]:
    """The names and values of a page, those nearest to its surface first."""
    text = text.strip()
    if text.startswith("<"):
        pairs = _markup(text)
    elif text.startswith(("{", "[", '"')) and not _LINES_AFTER_ALL.match(text):
        try:
            pairs = _json(read_json(text))
        except NotJson:
            # Never as lines: what looks like JSON is truncated, and its last number with it.
            return []
    else:
        pairs = _lines(text)
    return list(islice(pairs, MAX_PAIRS))


_LINES_AFTER_ALL = re.compile(r"""\[[^\[\]{}",]*\]\s*\n|"[^"]*"\s*[=:]""")
"""A `[section]` heading, or a quoted name."""


def _json(root: object) -> Iterator[_Pair]:
    level: list[tuple[str, object]] = [("", root)]
    while level:
        below: list[tuple[str, object]] = []
        for name, value in level:
            if isinstance(value, str):
                value = opened_text(value) or value
            if isinstance(value, dict):
                if (named := _named_value(name, value)) is not None:
                    yield named
                below += value.items()
            elif isinstance(value, list):
                if len(value) == 2 and isinstance(value[0], str):
                    below.append((value[0], value[1]))
                else:
                    below += ((name, item) for item in value)
            else:
                yield _Pair(name, value)
        level = below


def _named_value(parent: str, fields: dict[str, object]) -> _Pair | None:
    """`{"name": "app_dbid", "value": 117}` and `"app_dbid": {"value": 117}` as the pair they mean."""
    lower = {key.lower(): value for key, value in fields.items()}
    name = next((lower[key] for key in ("name", "key", "counter", "metric", "id") if key in lower), parent)
    if not isinstance(name, str) or not name or "value" not in lower:
        return None
    return _Pair(name, lower["value"], counter=_DECLARED.get(str(lower.get("type")).lower()))


_DECLARED = {"counter": True, "gauge": False, "histogram": False, "summary": False}

_SAMPLE = re.compile(r"([A-Za-z_](?:[\w:.\-]*\w)?)(?:\s*\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?", re.ASCII)
# Not from within a word: a long one would be tried from each of its letters.
_LABEL = re.compile(r'(?<!\w)([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"', re.ASCII)
_LABELS = tuple(counter.name for counter in IDENTIFIERS)
_ASSIGNMENT = re.compile(r"""(?<![\w.\-])([\w.\-]+)\s*=\s*("[^"]*"|'[^']*'|[^\s;,&"']+)""")
_QUOTES = " \t\"'"


def _lines(text: str) -> Iterator[_Pair]:
    """Prometheus samples, `name=value`, `name: value` and `name value`, one or more on a line."""
    declared: dict[str, bool] = {}
    for line in map(str.strip, text.splitlines()):
        if line.startswith("#"):
            words = line.split(maxsplit=4)
            if words[:2] == ["#", "TYPE"] and len(words) == 4:
                declared[words[2]] = words[3].lower() == "counter"
        elif (sample := _sample(line)) and _number(sample[3]) is not None:
            name, labels = sample[1], sample[2] or ""
            for label in _LABEL.finditer(labels):
                if _plain(label[1]).endswith(_LABELS):
                    yield _Pair(label[1], label[2])
            counter = declared.get(name, declared.get(name.removesuffix("_total")))
            yield _Pair(name, sample[3], f"{{{labels}}}" if labels else "", counter)
        elif line.count("=") > 1:
            for assignment in _ASSIGNMENT.finditer(line):
                yield _Pair(assignment[1], assignment[2].strip(_QUOTES))
        else:
            name, separator, value = _split(line)
            if separator and name:
                yield _Pair(name.strip(_QUOTES), value.strip(_QUOTES + ",;"))


def _sample(line: str) -> re.Match[str] | None:
    return _SAMPLE.fullmatch(line) if len(line) <= MAX_SAMPLE else None


def _split(line: str) -> tuple[str, str, str]:
    """At the first `=` or `:`; values such as times hold further colons."""
    equals, colon = line.find("="), line.find(":")
    return line.partition("=" if equals >= 0 and (colon < 0 or equals < colon) else ":")


# Text counts only when a tag follows it: at the end of a truncated page it may be half a number.
_TAG = re.compile(r"<([^<>]*)>(?:([^<>]*)(?=<))?")
_ATTRIBUTE = re.compile(r"""(?<![\w:.\-])([\w:.\-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


def _markup(text: str) -> Iterator[_Pair]:
    """XML attributes and elements, and simple HTML tables.

    Tags are scanned, not parsed: no entity but the predefined ones is ever expanded, no external
    one fetched, and the time is linear in the page.
    """
    for start, end in _UNREAD:
        text = _cut_out(text, start, end)
    text = text.replace("<![CDATA[", "").replace("]]>", "")
    heading = ""
    cells: list[list[str]] = []
    for found in islice(_TAG.finditer(text), MAX_TAGS):
        tag, content = found[1], html.unescape(found[2] or "").strip()
        if not tag or tag[0] in "!?":
            continue
        name = (tag.split(maxsplit=1) or [""])[0].strip("/").rpartition(":")[2]
        if name.lower() == "tr":
            yield from _row(cells)
            cells = []
        elif name.lower() in ("td", "th"):
            if tag[0] != "/":
                cells.append([content])
        elif tag[0] == "/":
            pass
        elif cells:
            # Emphasis within a cell.
            cells[-1].append(content)
        else:
            yield from _element(name, tag, content, heading)
            heading = content if name.lower() in ("name", "key") else ""
        if any(sign in content for sign in "=:\n"):
            yield from _lines(content)
    yield from _row(cells)


def _element(name: str, tag: str, content: str, heading: str) -> Iterator[_Pair]:
    """What one element says by its attributes and its text, below the name that stood before it."""
    found = islice(_ATTRIBUTE.finditer(tag), MAX_PAIRS) if "=" in tag else ()
    attributes = {each[1]: html.unescape(each[2] or each[3] or "") for each in found}
    if not attributes and not content:
        return
    named = _named_value("", {"value": content, **attributes})
    if named is not None and named.value != "":
        yield named
    for key, value in attributes.items():
        yield _Pair(key.rpartition(":")[2], value)
    if name.lower() == "value" and heading:
        yield _Pair(heading, content)
    elif content:
        yield _Pair(name, content)


def _row(cells: Sequence[Sequence[str]]) -> Iterator[_Pair]:
    texts = ["".join(cell) for cell in cells]
    for name, value in zip(texts[::2], texts[1::2], strict=False):
        yield _Pair(name, value)


_UNREAD = tuple(
    (re.compile(start, re.IGNORECASE), re.compile(end, re.IGNORECASE))
    for start, end in (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"))
)
"""Where what is no text of a page begins and ends."""


def _cut_out(text: str, start: re.Pattern[str], end: re.Pattern[str]) -> str:
    """`text` without what stands between the markers; an open one reaches to the end."""
    kept: list[str] = []
    at = 0
    while begin := start.search(text, at):
        kept.append(text[at : begin.start()])
        close = end.search(text, begin.start())
        if close is None:
            return "".join(kept)
        at = close.end()
    return "".join([*kept, text[at:]])
