"""Metrics: what a running daemon shows, and that alerts, dashboard and documentation speak of nothing else."""

from __future__ import annotations

import ast
import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import Events, MakeSettings, settle
from prometheus_client import Counter, Gauge, Histogram, Info
from prometheus_client.parser import text_string_to_metric_families

from asyncchatd.log import metrics, watch_lag
from asyncchatd.log.described import described
from asyncchatd.model.data import Cause, ChatServer, Restoration, ServerState
from daemon.test_run import Daemon, Gms, Systemd, ready

ROOT = Path(__file__).parents[2]
ALERTS = yaml.safe_load((ROOT / "etc/alerts.yml").read_text())
ALERT_TESTS = [
    test
    for name in ("alerts_test.yml", "alerts_days_test.yml")
    for test in yaml.safe_load((ROOT / "etc" / name).read_text())["tests"]
]
DASHBOARD = orjson.loads((ROOT / "etc/grafana-dashboard.json").read_text())

Labels = Mapping[str, str]


def sample(name: str, **labels: str) -> float:
    """What is counted now; 0 when nothing was."""
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def name_of(family: Counter | Gauge | Histogram | Info) -> str:
    """Without the suffixes of its samples."""
    [described] = family.describe()
    return described.name


# -- a running daemon --------------------------------------------------------------------------------------


@pytest.fixture
async def daemon(
    make_settings: MakeSettings, events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Daemon]:
    """One with a Chat Server that nobody reaches and a GMS node that answers."""
    service_manager = Systemd(tmp_path / "notify.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify.sock"))
    gms, app = Gms(), web.Application()
    app.router.add_post("/genesys/2/chat/{service}/{chat_id}/refresh", gms.refresh)
    async with AsyncExitStack() as stack:
        stack.callback(service_manager.close)
        server = await stack.enter_async_context(TestServer(app))
        gms.base = str(server.make_url("/genesys"))
        settings = make_settings(
            gms={"nodes": [gms.base]},
            store={"url": "sqlite:///sessions.db"},
            restoration={"max_rate": 50},
            chat_servers=[{"name": "chat-1", "health_url": "http://127.0.0.1:9/", "app_dbid": "117"}],
        )
        async with ready(settings, events, service_manager) as running:
            yield running


async def scrape(daemon: Daemon) -> str:
    async with daemon.http.get(daemon.control + "/metrics") as response:
        assert response.status == 200
        return await response.text()


@pytest.mark.slow
async def test_a_life_of_a_daemon_is_counted(daemon: Daemon) -> None:
    node = str(daemon.settings.gms.nodes[0])
    names = {
        "pushes": ("asyncchatd_pushes_total", {"outcome": "known"}),
        "acknowledged": ("asyncchatd_pings_total", {"reason": "acknowledge", "outcome": "answered"}),
        "refreshes": ("asyncchatd_refreshes_total", {"node": node, "outcome": "success"}),
        "push latency": ("asyncchatd_push_seconds_count", {}),
        "ping latency": ("asyncchatd_ping_seconds_count", {}),
        "commits": ("asyncchatd_store_commit_seconds_count", {}),
        "restorations": ("asyncchatd_restorations_total", {"cause": "operator"}),
        "restored": ("asyncchatd_restoration_seconds_count", {}),
    }
    before = {what: sample(name, **labels) for what, (name, labels) in names.items()}
    await daemon.register("chat-1")
    assert await daemon.push("chat-1") == 200
    await daemon.until(lambda session: session["alias"] == "118", "/v1/sessions/chat-1")
    await daemon.register("chat-2")
    await daemon.call("POST", "/v1/servers/chat-1/restore")
    await daemon.until(
        lambda _: sample("asyncchatd_restoration_seconds_count") > before["restored"], "/healthz"
    )
    text = await scrape(daemon)
    gained = {what: sample(name, **labels) - before[what] for what, (name, labels) in names.items()}
    assert {what for what, count in gained.items() if count < 1} == set()
    assert gained["refreshes"] == 2
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert [each.value for each in families["asyncchatd_pings_per_second_limit"].samples] == [50]
    assert [each.value for each in families["asyncchatd_gms_up"].samples] == [1]
    assert [each.value for each in families["asyncchatd_store_queue_depth"].samples] == [0]
    [build] = families["asyncchatd_build_info"].samples
    assert build.labels["version"]
    assert {"process_resident_memory_bytes", "process_start_time_seconds"} <= set(families)


@pytest.mark.slow
async def test_no_label_names_a_session_and_nothing_secret_is_in_it(daemon: Daemon) -> None:
    await daemon.register("a-chat-of-somebody")
    assert await daemon.push("a-chat-of-somebody") == 200
    text = await scrape(daemon)
    for hidden in ("a-chat-of-somebody", "user-1", "4ee15d7e1c343c8e", "push-secret-1", "device-1"):
        assert hidden not in text


# -- alerts and dashboard ------------------------------------------------------------------------------------


def queries() -> Iterator[tuple[str, str]]:
    """Where a query stands, and the query."""
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]
    for test in ALERT_TESTS:
        for series in test["input_series"]:
            yield test["name"], series["series"]


SELECTOR = re.compile(r"\b((?:asyncchatd|process)_\w+)(?:\{([^}]*)\})?")
ANYWHERE = {"job", "instance", "le"}


async def test_every_metric_and_label_they_name_is_in_the_metrics_of_a_running_daemon(daemon: Daemon) -> None:
    families = {family.name: family for family in text_string_to_metric_families(await scrape(daemon))}
    labels = {name_of(family): set(family._labelnames) | ANYWHERE for family in metrics.OURS}
    found = 0
    for where, query in queries():
        for name, matchers in SELECTOR.findall(query):
            family = families.get(name) or families.get(re.sub(r"_(total|bucket|sum|count|info)$", "", name))
            assert family is not None, f"{where}: {name}"
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert used <= labels.get(family.name, ANYWHERE), f"{where}: {name} {used}"
            found += 1
    assert found > 100


def test_every_metric_of_ours_is_watched_by_somebody() -> None:
    named = {name for _, query in queries() for name, _ in SELECTOR.findall(query)}
    families = {re.sub(r"_(total|bucket|sum|count|info)$", "", name) for name in named} | named
    unwatched = {name_of(family) for family in metrics.OURS} - families
    assert unwatched == {"asyncchatd_chat_server_up"}  # `asyncchatd_chat_server_state` says the same and more


@pytest.mark.slow
def test_every_metric_of_ours_is_counted_or_set_by_somebody() -> None:
    names = {name for name, each in vars(metrics).items() if any(each is one for one in metrics.OURS)}
    used = set()
    for path in (ROOT / "asyncchatd").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        known = names if path == Path(metrics.__file__) else _read_from_metrics(nodes)
        for node in nodes:
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "metrics":
                used.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in known:
                used.add(node.id)
    assert names - used == set()


def _read_from_metrics(nodes: list[ast.AST]) -> set[str]:
    """The names that a module imports from the metrics: another one's may be called the same."""
    return {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "asyncchatd.log.metrics"
        for alias in node.names
    }


def test_every_alert_says_what_to_do_and_is_seen_to_fire() -> None:
    fired = {
        name
        for test in ALERT_TESTS
        for expected in test["promql_expr_test"]
        for each in expected["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', each["labels"])
    }
    alerts = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert {rule["alert"] for rule in alerts} == fired
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


def test_alerts_and_the_runbook_know_each_other() -> None:
    """Each alert links to its entry, each entry is an alert's, in one order, and has all its parts."""
    alerts = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    entries = re.split(r"^### ", (ROOT / "docs/runbook.md").read_text(), flags=re.MULTILINE)[1:]
    names = [entry.splitlines()[0] for entry in entries]
    assert names == list(dict.fromkeys(rule["alert"] for rule in alerts))
    for rule in alerts:
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    for entry in entries:
        parts = re.findall(r"^- \*\*(.+):\*\* \S", entry, flags=re.MULTILINE)
        assert parts == ["Customers notice", "Look at", "Do", "Goes away"], entry


def test_events_that_alerts_count_are_in_the_catalogue() -> None:
    counted = {
        name
        for _, query in queries()
        for _, matchers in SELECTOR.findall(query)
        for names in re.findall(r'event=~?"([^"]*)"', matchers)
        for name in names.split("|")
    }
    assert len(counted) > 2
    for name in counted:
        level = metrics.REGISTRY.get_sample_value(
            "asyncchatd_log_events_total", {"event": name, "level": "error"}
        )
        assert level is not None, name


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


# -- what is counted where ---------------------------------------------------------------------------------------


def test_the_documentation_is_written_from_the_code() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == described() + "\n"


async def test_a_loop_that_stood_still_is_seen() -> None:
    watching = asyncio.create_task(watch_lag())
    await settle()
    assert sample("asyncchatd_loop_lag_max_seconds") == 0
    over_25_ms = sample("asyncchatd_loop_lag_seconds_count") - sample(
        "asyncchatd_loop_lag_seconds_bucket", le="0.025"
    )
    time.sleep(0.05)  # noqa: ASYNC251 - this is what is measured
    await asyncio.sleep(0)  # its timer is over, so now is its turn
    await settle()
    watching.cancel()
    # It began to wait right before: 20 of the 50 ms were its own.
    assert sample("asyncchatd_loop_lag_max_seconds") >= 0.029
    assert (
        sample("asyncchatd_loop_lag_seconds_count") - sample("asyncchatd_loop_lag_seconds_bucket", le="0.025")
        == over_25_ms + 1
    )


def test_chat_servers_and_restorations_are_shown_as_they_stand() -> None:
    def refresh(state: ServerState, *running: Restoration) -> None:
        metrics.refresh(
            servers=[ChatServer("chat-1", "117", state=state), ChatServer("chat-2")],
            by_alias={"117": 5, "118": 2, "": 1},
            running=running,
            now=100_000,
        )

    def states() -> dict[str, float]:
        return {
            state.value: sample("asyncchatd_chat_server_state", server="chat-1", state=state.value)
            for state in ServerState
        }

    old = Restoration(1, "117", "chat-1", Cause.UNREACHABLE, 40_000, False, 10, 4, 1, 0, 0, None)
    new = Restoration(2, "118", None, Cause.ANNOUNCED, 90_000, True, 3, 0, 0, 0, 0, None)
    idle = Restoration(3, "119", None, Cause.ANNOUNCED, 1_000, True, 3, 3, 0, 0, 0, None)
    refresh(ServerState.DOWN, new, old, idle)
    assert states() == {"unknown": 0, "up": 0, "suspect": 0, "down": 1}
    assert sample("asyncchatd_chat_server_sessions", server="chat-1") == 5
    assert sample("asyncchatd_sessions_unwatched") == 2
    assert sample("asyncchatd_restorations_running") == 2
    assert sample("asyncchatd_restorations_waiting_sessions") == 8
    assert sample("asyncchatd_restorations_oldest_seconds") == 60
    refresh(ServerState.UP)
    assert states() == {"unknown": 0, "up": 1, "suspect": 0, "down": 0}
    assert sample("asyncchatd_restorations_oldest_seconds") == 0
