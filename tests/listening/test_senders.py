"""Who sends pushes: told apart by address, within bounds, and apart from those who were refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import NOON, FakeClock

from asyncchatd.listening.door import MARKS
from asyncchatd.listening.senders import NODES, REFUSED, SILENT_MS, Senders
from asyncchatd.log import metrics
from asyncchatd.model import Failing


@pytest.fixture(autouse=True)
def _counted_from_zero() -> Iterator[None]:
    metrics.PUSHES_BY_SENDER.clear()
    yield
    metrics.PUSHES_BY_SENDER.clear()


def by_sender() -> dict[str, float]:
    [family] = metrics.PUSHES_BY_SENDER.collect()
    return {
        sample.labels["sender"]: sample.value for sample in family.samples if sample.name.endswith("_total")
    }


async def test_pushes_are_told_apart_by_the_node_that_sent_them(clock: FakeClock) -> None:
    senders = Senders(clock)
    assert (senders.count, senders.last_at, senders.senders()) == (0, None, [])
    senders.kept("10.0.0.7")
    await clock.advance(5)
    senders.kept("10.0.0.8")
    await clock.advance(5)
    senders.kept("10.0.0.7")
    assert (senders.count, senders.last_at) == (3, NOON + 10_000)
    assert [(each.client, each.count, each.first_at, each.last_at) for each in senders.senders()] == [
        ("10.0.0.7", 2, NOON, NOON + 10_000),
        ("10.0.0.8", 1, NOON + 5_000, NOON + 5_000),
    ]
    assert by_sender() == {"10.0.0.7": 2, "10.0.0.8": 1}
    assert metrics.REGISTRY.get_sample_value("asyncchatd_push_last_timestamp_seconds") == NOON / 1000 + 10


@pytest.mark.parametrize(
    ("remote", "shown"),
    [("::ffff:10.0.0.7", "10.0.0.7"), ("fe80::1%eth0", "fe80::1"), (None, "unix"), ("", "unix")],
)
def test_an_address_is_shown_as_an_operator_writes_it(
    clock: FakeClock, remote: str | None, shown: str
) -> None:
    senders = Senders(clock)
    senders.kept(remote)
    senders.kept(shown)
    senders.refused(remote, Failing.BODY, "its body was refused: unreadable")
    assert [(each.client, each.count) for each in senders.senders()] == [(shown, 2)]
    assert [each.client for each in senders.refusals()] == [shown]


async def test_only_so_many_addresses_are_told_apart_and_a_silent_one_makes_room(clock: FakeClock) -> None:
    senders = Senders(clock)
    for number in range(NODES):
        senders.kept(f"10.0.0.{number}")
        await clock.advance(1)
    senders.kept("10.0.1.1")
    senders.kept("10.0.1.2")
    assert len(by_sender()) == NODES + 1
    assert by_sender()["other"] == 2
    await clock.advance(SILENT_MS / 1000 - NODES)
    senders.kept("10.0.1.1")
    assert len(by_sender()) == NODES + 1
    assert by_sender()["10.0.1.1"] == 1
    assert "10.0.0.0" not in by_sender()
    assert "10.0.0.0" not in [each.client for each in senders.senders()]
    assert senders.count == NODES + 3


async def test_who_is_refused_is_told_with_what_to_do_about_it(clock: FakeClock) -> None:
    senders = Senders(clock)
    senders.at_the_door("network", "10.0.0.9")
    await clock.advance(1)
    senders.refused("10.0.0.7", Failing.SECRET, "no secret")
    await clock.advance(1)
    senders.at_the_door("network", "10.0.0.9")
    first, second = senders.refusals()
    assert (first.client, first.failing, first.count) == ("10.0.0.9", Failing.NETWORK, 2)
    assert (first.first_at, first.last_at) == (NOON, NOON + 2_000)
    assert "receiver.allow" in first.message
    assert "receiver.allow" in first.advice
    assert (second.client, second.message) == ("10.0.0.7", "no secret")
    assert senders.last_at is None


@pytest.mark.parametrize(
    ("cause", "failing"),
    [
        ("network", Failing.NETWORK),
        ("forwarded header", Failing.FORWARDED),
        ("all busy", Failing.BUSY),
        ("plain HTTP on a port with tls_certificate", Failing.TLS),
        ("TLS: no handshake in time", Failing.TLS),
        ("PROXY protocol, which is not spoken here: have the proxy send X-Forwarded-For", Failing.PROXY),
    ],
)
def test_what_the_listener_refuses_has_a_word(clock: FakeClock, cause: str, failing: Failing) -> None:
    senders = Senders(clock)
    senders.at_the_door(cause, "10.0.0.9")
    assert [each.failing for each in senders.refusals()] == [failing]


@pytest.mark.parametrize("cause", sorted(set(MARKS.values())))
def test_whatever_the_door_hears_that_is_no_http_has_a_word(clock: FakeClock, cause: str) -> None:
    senders = Senders(clock)
    senders.at_the_door(cause, "10.0.0.9")
    assert [each.failing in {Failing.TLS, Failing.PROXY} for each in senders.refusals()] == [True]


def test_a_scan_pushes_no_node_out_and_is_kept_within_bounds(clock: FakeClock) -> None:
    senders = Senders(clock)
    senders.kept("10.0.0.7")
    for number in range(1_000):
        senders.refused(f"192.0.2.{number % 250}", Failing.PATH, f"path {number}")
    senders.at_the_door("silent", "192.0.2.1")  # makes room for others: nobody refused it anything
    assert len(senders.refusals()) == REFUSED
    assert senders.refusals()[0].message == "path 999"
    assert [each.client for each in senders.senders()] == ["10.0.0.7"]


def test_each_way_to_fail_has_an_advice_and_is_counted_from_the_start(clock: FakeClock) -> None:
    senders = Senders(clock)
    [family] = metrics.PUSH_REFUSALS.describe()
    for failing in Failing:
        assert f"`{failing}`" in family.documentation
        assert (
            metrics.REGISTRY.get_sample_value("asyncchatd_push_refusals_total", {"cause": failing})
            is not None
        )
        senders.refused("10.0.0.7", failing, failing)
    assert all(each.advice for each in senders.refusals())
