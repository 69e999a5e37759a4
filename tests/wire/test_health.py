"""Health pages: every plausible format gives the same few facts."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress

import pytest
from conftest import case
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.standin.health_page import HealthFormat, write_health
from asyncchatd.wire.health import IDENTIFIERS, MAX_COUNTERS, MAX_PAGE, HealthError, HealthPage, read_health

STARTED = 1704164645.0
PAGES = {
    "flat JSON": '{"app_dbid": 117, "process_os_pid": 4711}',
    "JSON strings": '{"app_dbid": "117", "process_os_pid": "4711"}',
    "JSON floats": '{"app_dbid": 117.0, "process_os_pid": "4711.0"}',
    "camel case": '{"appDbid": 117, "processOsPid": 4711}',
    "hyphens": '{"app-dbid": 117, "process-os-pid": 4711}',
    "capitals and spaces": '{"App DBID": 117, "Process OS PID": 4711}',
    "prefixed": '{"chat_server.app_dbid": 117, "chat_server.process_os_pid": 4711}',
    "pid for short": '{"app_dbid": 117, "pid": 4711}',
    "nested": '{"a": [{"b": {"app_dbid": 117}}, [[{"process_os_pid": 4711}]]]}',
    "split by kind": '{"app_dbid": {"value": 117}, "process_os_pid": {"value": "4711", "unit": ""}}',
    "listed counters": '[{"name": "app_dbid", "value": 117}, {"Name": "process_os_pid", "Value": 4711}]',
    "listed pairs": '{"counters": [["app_dbid", 117], ["process_os_pid", 4711]]}',
    "JSON in a string": json.dumps({"result": json.dumps({"app_dbid": 117, "process_os_pid": 4711})}),
    "byte order mark": '\ufeff{"app_dbid": 117, "process_os_pid": 4711}',
    "equals lines": "app_dbid=117\nprocess_os_pid=4711\n",
    "spaced equals lines": "  app_dbid = 117\r\n  process_os_pid = 4711\r\n",
    "quoted lines": "\"app_dbid\": \"117\",\n'process_os_pid': '4711',",
    "colon lines": "app_dbid: 117\nprocess_os_pid: 4711",
    "mixed lines": "Chat Server\n\n# a remark\napp_dbid: 117\nprocess_os_pid=4711\n---",
    "names of several words": "App DBID = 117\nProcess OS PID: 4711",
    "below a heading": "[chat-1]\napp_dbid=117\nprocess_os_pid=4711",
    "one line": "app_dbid=117 process_os_pid=4711",
    "one line, separated": "app_dbid=117; process_os_pid='4711'",
    "columns": "app_dbid   117\nprocess_os_pid   4711",
    "XML attributes": '<?xml version="1.0"?><server app_dbid="117" process_os_pid="4711"/>',
    "XML single quotes": "<server app_dbid='117' process_os_pid = '4711'></server>",
    "XML elements": "<h><app_dbid>117</app_dbid><process_os_pid> 4711 </process_os_pid></h>",
    "XML namespaces": (
        '<n:h xmlns:n="u"><n:app_dbid>117</n:app_dbid><n:process_os_pid>4711</n:process_os_pid></n:h>'
    ),
    "XML counters by value": (
        '<c><counter name="app_dbid" value="117"/><counter name="process_os_pid" value="4711"/></c>'
    ),
    "XML counters by text": (
        '<c><counter name="app_dbid">117</counter><counter name="process_os_pid">4711</counter></c>'
    ),
    "XML names and values": (
        "<c><i><name>app_dbid</name><value>117</value></i><i><name>process_os_pid</name><value>4711</value></i></c>"
    ),
    "XML names without values": (
        "<c><name>chat</name><app_dbid>117</app_dbid><key>os</key><process_os_pid>4711</process_os_pid></c>"
    ),
    "XML CDATA": "<h><app_dbid><![CDATA[117]]></app_dbid><process_os_pid>&#52;711</process_os_pid></h>",
    "XML comments between": "<h app_dbid='117'><!-- <app_dbid>1</app_dbid> --><i process_os_pid='4711'/><!-- --></h>",
    "XML comment": "<!-- <app_dbid>1</app_dbid> --><h app_dbid='117' process_os_pid='4711'/>",
    "HTML table": (
        "<!DOCTYPE html><html><head><style>pid: 1</style></head><body><table>"
        "<tr><th>Name</th><th>Value</th></tr>"
        "<tr><td><b>app_dbid</b></td><td>117</td></tr><tr><td>process_os_pid<td>4711</table></body></html>"
    ),
    "HTML table in one row": (
        "<table><tr><td>app_dbid<td>117<td>process_os_pid<td>4711<td>and more</tr><tr><td>v</tr></table>"
    ),
    "HTML pre": "<html><body><pre>\napp_dbid: 117\nprocess_os_pid: 4711\n</pre></body></html>",
    "Prometheus values": (
        "# HELP app_dbid The DBID\n# TYPE app_dbid gauge\napp_dbid 117\n"
        "process_os_pid 4.711e+03 1700000000000\n"
    ),
    "Prometheus labels": '# TYPE i gauge\nchat_server_info{app_dbid="117",process_os_pid="4711",v="9"} 1\n',
    "Prometheus labels on counters": 'sessions_total{app_dbid="117", process_os_pid="4711"} 5',
}


def test_every_format_says_who_answers() -> None:
    for name, page in PAGES.items():
        with case(name):
            health = read_health(page.encode())
            assert (health.app_dbid, health.process_os_pid) == ("117", "4711")


@pytest.mark.parametrize("name", [counter.name for counter in IDENTIFIERS])
def test_what_says_who_answers_is_read_as_a_sample_and_as_a_label(name: str) -> None:
    for page in (f"{name} 4711", f'chat_server_info{{version="9", {name}="4711"}} 1'):
        health = read_health(page.encode())
        assert [each for each in (health.app_dbid, health.process_os_pid) if each] == ["4711"]


@pytest.mark.parametrize("name", [name for counter in IDENTIFIERS for name in counter.fallbacks])
def test_a_name_that_may_mean_something_else_is_read_as_a_sample_only(name: str) -> None:
    assert read_health(f"{name} 4711".encode()) == HealthPage(None, "4711", None, None, {})
    with pytest.raises(HealthError):
        read_health(f'chat_server_info{{{name}="4711"}} 1'.encode())


def test_a_page_may_be_utf_16() -> None:
    assert read_health('<h app_dbid="117"/>'.encode("utf-16")).app_dbid == "117"


def test_a_page_may_say_one_of_the_two_only() -> None:
    assert read_health(b"app_dbid=117") == HealthPage("117", None, None, None, {})
    assert read_health(b"process_os_pid=1") == HealthPage(None, "1", None, None, {})


def test_a_counter_by_its_full_name_goes_before_a_short_one_and_a_peers() -> None:
    page = b'{"pid": 1, "backup_app_dbid": 9, "server": {"process_os_pid": 4711, "app_dbid": 117}}'
    health = read_health(page)
    assert (health.app_dbid, health.process_os_pid) == ("117", "4711")
    with pytest.raises(HealthError):
        read_health(b"backup_app_dbid=9")


@pytest.mark.parametrize("value", ["", "n/a", "-1", "1.5", "true", "NaN", "1e400", "9" * 5000, "[]", "null"])
def test_a_process_id_is_a_number(value: str) -> None:
    assert read_health(f"app_dbid=117\nprocess_os_pid={value}".encode()).process_os_pid is None


@pytest.mark.parametrize(
    "value",
    [
        1704164645,
        1704164645.0,
        "1704164645",
        1704164645000,
        1704164645000000,
        1704164645000000000,
        "2024-01-02T03:04:05Z",
        "2024-01-02 03:04:05",
        "2024-01-02T05:04:05.000+02:00",
        "Tue, 02 Jan 2024 03:04:05 GMT",
    ],
)
def test_a_start_time_is_recognised(value: object) -> None:
    for name in ("started", "start_time", "process_start_time_seconds", "startedAt", "Server Start Time"):
        with case(name):
            assert read_health(json.dumps({name: value}).encode()).started == STARTED


def test_a_start_time_on_a_line_keeps_its_colons() -> None:
    assert read_health(b"started: 2024-01-02T03:04:05Z").started == STARTED
    assert read_health(b"started=2024-01-02T03:04:05Z").started == STARTED
    assert read_health(b"<h><started>2024-01-02T03:04:05Z</started></h>").started == STARTED


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("uptime", 93784, 93784.0),
        ("uptime", "93784.5", 93784.5),
        ("process_uptime_seconds", 0, 0.0),
        ("uptimeMs", 93784000, 93784.0),
        ("uptime_milliseconds", "1500", 1.5),
        ("server-uptime", "1 day, 02:03:04", 93784.0),
        ("uptime", "26:03:04", 93784.0),
        ("uptime", "2:05", 7500.0),
        ("uptime", "1d 2h 3m 4s", 93784.0),
        ("uptime", "1 day 2 hours 3 minutes 4 seconds", 93784.0),
        ("uptime", "P1DT2H3M4S", 93784.0),
    ],
)
def test_an_uptime_is_recognised(name: str, value: object, seconds: float) -> None:
    assert read_health(json.dumps({name: value}).encode()).uptime == seconds


@pytest.mark.parametrize(
    "page",
    [
        {"last_session_start_time": 1704164645},
        {"session_uptime": 5},
        {"start_time": 5},
        {"start_time": "yesterday"},
        {"uptime": -1},
        {"uptime": "long"},
        {"uptime": None},
        {"started": True},
        {"start_time": "0001-01-01T00:00:00"},
        {"start_time": 1e400},
    ],
)
def test_no_start_is_guessed_from_what_is_none(page: dict[str, object]) -> None:
    health = read_health(json.dumps({"pid": 1, **page}).encode())
    assert (health.started, health.uptime) == (None, None)


def test_a_configured_counter_settles_the_guess() -> None:
    page = b"pid=1\nborn=12345\nlived_ms=5000\nstart_time=1704164645\nuptime=7\n"
    health = read_health(page, start_counter="born", uptime_counter="lived_ms")
    assert (health.started, health.uptime) == (12345.0, 5.0)
    health = read_health(page, start_counter="missing", uptime_counter="missing")
    assert (health.started, health.uptime) == (None, None)


def test_monotone_counters_are_those_declared_or_named_so() -> None:
    page = (
        "# TYPE joins counter\njoins 4\n# TYPE leaves_total gauge\nleaves_total 2\n"
        "# TYPE odd counter\nodd_total 1\n"
        'messages_total{kind="in"} 7\nmessages_total{kind="out"} 8\nsessions 3\nbad_total NaN\napp_dbid 117\n'
    )
    assert read_health(page.encode()).counters == {
        "joins": 4.0,
        "odd_total": 1.0,
        'messages_total{kind="in"}': 7.0,
        'messages_total{kind="out"}': 8.0,
    }
    page = '{"pid": 1, "a_total": 1, "b-total": "2", "total": 3, "c": {"value": 4, "type": "counter"}}'
    assert read_health(page.encode()).counters == {"a_total": 1.0, "b-total": 2.0, "c": 4.0}


def test_a_remark_declares_no_counter_and_a_broken_declaration_is_a_remark() -> None:
    page = (
        "# HELP chats counter\nchats 5\n# TYPE\n# TYPE joins\njoins 4\n"
        "# TYPE leaves_total gauge of those who left\nleaves_total 2\napp_dbid 117\n"
    )
    assert read_health(page.encode()).counters == {"leaves_total": 2.0}


def test_each_row_of_a_table_is_read_once() -> None:
    page = b"<table><tr><td>a_total<td>1</tr><tr><td>b_total<td>2</tr><tr><td>pid<td>3</tr></table>"
    assert read_health(page).counters == {"a_total": 1.0, "b_total": 2.0}


def test_no_more_counters_are_kept_than_a_page_may_have() -> None:
    lines = (f"counter_{number}_total {number}" for number in range(MAX_COUNTERS + 3))
    page = "\n".join(("pid 1", *lines))
    assert len(read_health(page.encode()).counters) == MAX_COUNTERS


def test_a_counter_that_stands_there_twice_is_left_out() -> None:
    page = b'{"pid": 1, "queues": [{"a_total": 1, "b_total": 5}, {"a_total": 9}, {"a_total": 3}]}'
    assert read_health(page).counters == {"b_total": 5.0}


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"OK",
        b"{}",
        b'{"app_dbid": "117"',
        b'{"app_dbid": 117, "process_os_pid": 47',
        b"<h><process_os_pid>47",
        b"<html><body><h1>404 Not Found</h1></body></html>",
        b"\x00\xff\xfe",
        b"[" * 100_000,
        b"<" * 100_000,
        b"<!--" * 100_000,
        b" " * MAX_PAGE + b"app_dbid=117",
    ],
)
def test_an_unreadable_page_says_what_was_expected(page: bytes) -> None:
    with pytest.raises(HealthError, match="expected app_dbid or process_os_pid"):
        read_health(page)


def test_a_page_that_is_too_long_is_cut_at_a_boundary() -> None:
    for line, separator in (
        (b"app_dbid=117\n", b"process_os_pid="),
        (b"<h app_dbid='117'>", b"<process_os_pid>"),
    ):
        filler = b" " * (MAX_PAGE - len(line) - len(separator) - 2)
        assert read_health(line + filler + separator + b"4711</process_os_pid>") == HealthPage(
            "117", None, None, None, {}
        )


@pytest.mark.slow
@pytest.mark.parametrize("start", ["", "<h>", "\ufeff", " <h>"])
@pytest.mark.parametrize("coding", ["utf-8", "utf-16"])
def test_a_page_that_is_cut_off_says_the_same_or_less(start: str, coding: str) -> None:
    """Wherever the cut falls: half a number would be another one."""
    line = "<process_os_pid>4711</process_os_pid>" if "<" in start else "\nprocess_os_pid=4711\n"
    for kept in range(len(line) + 1):
        wide = len("a".encode("utf-16-le")) if coding == "utf-16" else 1
        before = len((start + line[:kept]).encode(coding))
        page = start + " " * ((MAX_PAGE - before) // wide) + line + " " * MAX_PAGE
        with suppress(HealthError):
            assert read_health(page.encode(coding)) == HealthPage(None, "4711", None, None, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        b"x{%s} 1" % (b"a" * 100_000),
        b"a" * MAX_PAGE,
        b"<td>" + b"<b>a</b>" * 100_000,
        b"<h " + b'a="" ' * 200_000 + b"/><h>",
    ],
    ids=["one long label", "one long word", "emphasis", "attributes"],
)
def test_a_long_piece_costs_no_more_than_many_short_ones(page: bytes) -> None:
    """Regular expressions have no steps to count; the first of these took minutes. It takes a second, and several where
    each line is counted for coverage."""
    began = time.process_time()
    with suppress(HealthError):
        read_health(page)
    assert time.process_time() - began < 20


def test_entities_are_not_expanded() -> None:
    page = (
        b'<?xml version="1.0"?><!DOCTYPE h [<!ENTITY a "117"><!ENTITY b SYSTEM "file:///etc/passwd">]>'
        b"<h><app_dbid>&a;</app_dbid><process_os_pid>&b;</process_os_pid></h>"
    )
    with pytest.raises(HealthError):
        read_health(page)


numbers = st.floats(0, 1e15, allow_nan=False)
counter_names = st.from_regex(r"[a-z][a-z_]{0,10}_total", fullmatch=True)


@pytest.mark.slow
@given(
    st.sampled_from(HealthFormat),
    st.integers(0, 2**31),
    st.integers(0, 2**31),
    st.none() | numbers,
    st.none() | st.floats(1e9, 1e10),
    st.dictionaries(counter_names, numbers, max_size=4),
)
def test_a_page_is_read_back(
    fmt: HealthFormat,
    app_dbid: int,
    pid: int,
    uptime: float | None,
    started: float | None,
    counters: dict[str, float],
) -> None:
    page = write_health(fmt, app_dbid, str(pid), uptime=uptime, started=started, counters=counters)
    assert read_health(page) == HealthPage(str(app_dbid), str(pid), started, uptime, counters)


def test_a_counter_that_would_break_the_page_is_not_written() -> None:
    with pytest.raises(ValueError, match="not a counter's name"):
        write_health(HealthFormat.XML_ELEMENTS, 117, 1, counters={"a><b": 1})


def check_any_page(page: bytes) -> None:
    try:
        health = read_health(page, uptime_counter="x")
    except HealthError:
        return
    for number in (health.started, health.uptime, *health.counters.values()):
        assert number is None or math.isfinite(number)
    assert all(value is None or value.isdigit() for value in (health.app_dbid, health.process_os_pid))


WORDS = st.sampled_from(
    [
        *(
            "<",
            ">",
            "</",
            "/>",
            '"',
            "'",
            "=",
            ":",
            "{",
            "}",
            "[",
            "]",
            ",",
            " ",
            "\n",
            "#",
            "&",
            "<!--",
            "-->",
        ),
        *("app_dbid", "pid", "uptime", "started", "x", "a_total", "117", "1e400", "NaN", "td", "tr", "name"),
        *("value", "# TYPE a_total counter", "<![CDATA[", "2024-01-02", "script", "&#x110000;", "\ud800"),
    ]
)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_page_or_unreadable(page: bytes) -> None:
    check_any_page(page)


@given(st.lists(WORDS, max_size=40))
def test_any_markup_is_a_page_or_unreadable(words: list[str]) -> None:
    check_any_page("".join(words).encode("utf-8", "surrogatepass"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["app_dbid", "pid", "name", "value", "type", "uptime", "started", "x", "a_total"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@pytest.mark.slow
@given(json_values)
def test_any_json_is_a_page_or_unreadable(value: object) -> None:
    check_any_page(json.dumps(value).encode())


@pytest.mark.parametrize("kind", ["gauge", "Histogram", "summary"])
def test_what_json_declares_no_counter_is_none_whatever_its_name(kind: str) -> None:
    page = {"app_dbid": 117, "kpi": [{"name": "chats_total", "type": kind, "value": 5}]}
    assert not read_health(json.dumps(page).encode()).counters


@pytest.mark.parametrize("name", [5, None, "", ["a"]])
def test_a_name_in_json_that_is_no_name_costs_nothing_else(name: object) -> None:
    page = {"app_dbid": 117, "kpi": [{"name": name, "value": 5, "type": "counter"}]}
    read = read_health(json.dumps(page).encode())
    assert (read.app_dbid, read.counters) == ("117", {})


def test_true_is_no_number() -> None:
    read = read_health(b'{"app_dbid": true, "process_os_pid": 4711}')
    assert (read.app_dbid, read.process_os_pid) == (None, "4711")


@pytest.mark.parametrize(
    ("text", "uptime"), [("1E3", 1000.0), ("1e3", 1000.0), (" , ", None), ("", None), ("P", None)]
)
def test_an_uptime_without_a_number_is_none(text: str, uptime: float | None) -> None:
    assert read_health(json.dumps({"app_dbid": 117, "uptime": text}).encode()).uptime == uptime
