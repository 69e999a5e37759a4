"""What the plant measures of the daemon."""

from __future__ import annotations

from asyncchatd.standin.plant.measure import SlidingPeak, spread
from asyncchatd.wire.chat_api.calls import refresh
from asyncchatd.wire.chat_api.outcome import Alive, classify

from ..plant_rig import Rig, tokens_of


def test_the_peak_is_found_wherever_its_second_begins() -> None:
    peak = SlidingPeak(1.0)
    for time in (0.1, 0.9, 0.95, 1.0, 1.05, 1.5, 1.89, 3.0):
        peak.add(time)
    assert peak.peak == 6


def test_a_spread_reports_measured_values_only() -> None:
    assert spread([]).max is None
    figures = spread([3.0, 1.0, 2.0])
    assert (figures.p50, figures.p95, figures.max) == (2.0, 3.0, 3.0)


def test_the_timeline_has_a_row_for_every_second(rig: Rig) -> None:
    customer = rig.chat("chat-1")
    customer.refresh()
    rig.plant.servers.kill("chat-1")
    rig.wait(2)
    customer.refresh()
    assert rig.plant.timeline.rows(rig.clock()) == [(0, 1, 0), (1, 0, 0), (2, 1, 1)]


def test_a_reset_report_counts_anew_and_keeps_the_sessions(rig: Rig) -> None:
    customer = rig.chat()
    customer.refresh()
    rig.plant.reset_report()
    report = rig.plant.report()
    assert (report.requests, report.peak_requests_per_second, report.sessions_alive) == (0, 0, 1)
    assert isinstance(
        classify(200, _refreshed(rig, customer.session.chat_id), chat_id=customer.session.chat_id), Alive
    )


def _refreshed(rig: Rig, chat_id: str) -> bytes:
    answer = rig.ask(refresh("customer-support", tokens_of(chat_id, rig), None))
    assert answer is not None
    return answer.body
