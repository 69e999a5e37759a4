"""The rehearsal of polls: what is measured, what it comes to, and what is said before it begins."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from asyncchatd.cli import commands as cli
from asyncchatd.config import ConfigError
from asyncchatd.listening import sockets
from asyncchatd.rehearsing.pages import Asked, Page, PageOf, Pages
from asyncchatd.rehearsing.pollers import Limit, PollersPlan, Seen, check_room, judge
from asyncchatd.rehearsing.trial import TrialError
from asyncchatd.rehearsing.tuning import of_gateway

WELL = Seen(
    pages=1_000,
    seconds=30.0,
    polls=6_000,
    late_p50=0.002,
    late_p99=0.01,
    messages=100,
    seen=100,
    seen_p50=0.1,
    seen_p95=0.4,
    seen_max=0.9,
    at_gms=3,
    failed=0,
    cut=0,
    ended=0,
    processor=0.3,
    memory=100_000_000,
    grown=10_000_000,
    own_processor=0.1,
    own_lag=0.01,
)


def seen(**more: Any) -> Seen:
    return dataclasses.replace(WELL, **more)


@pytest.mark.parametrize(
    ("more", "limit", "said"),
    [
        ({}, Limit.NONE, "has room for about 2,000"),
        ({"processor": None}, Limit.NONE, "carries 1,000 pages."),
        ({"processor": 0.9}, Limit.PROCESSOR, "about 660 pages"),
        ({"processor": 0.9, "own_processor": 0.95}, Limit.PROCESSOR, "gateway.hold"),
        ({"own_processor": 0.95, "late_p99": 2.0}, Limit.PAGES, "says nothing against the host"),
        ({"cut": 1}, Limit.CONNECTIONS, "gateway.max_connections"),
        ({"failed": 1, "processor": 0.99}, Limit.CONNECTIONS, "LimitNOFILE"),
        ({"ended": 1}, Limit.CONNECTIONS, "--keep"),
        ({"at_gms": 37}, Limit.PUSHES, "gateway.check_interval"),
        ({"at_gms": 36}, Limit.NONE, "carries"),
        ({"late_p99": 0.06}, Limit.MACHINE, "rehearse on a larger one"),
    ],
)
def test_what_held_the_pages_up_is_named(more: dict[str, Any], limit: Limit, said: str) -> None:
    judged = judge(seen(**more))
    assert judged.limit is limit
    assert said in judged.advice


def test_where_pages_do_not_fit_that_is_said_before_they_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(PollersPlan(pages=100))
    with pytest.raises(TrialError, match=r"gateway.max_connections is 20,000: with 20,001 pages"):
        check_room(PollersPlan(pages=20_001))
    monkeypatch.setattr(sockets, "raise_file_limit", lambda: 5_000)
    with pytest.raises(TrialError, match=r"4,000 pages do not fit.* with 5000 open files allowed"):
        check_room(PollersPlan(pages=4_000))
    monkeypatch.setattr(sockets, "raise_file_limit", lambda: 1_000_000)
    monkeypatch.setattr("asyncchatd.rehearsing.pollers._ports", lambda: 3_000)
    with pytest.raises(TrialError, match="need a port each on this host, which has 3,000"):
        check_room(PollersPlan(pages=4_000))


def test_the_settings_of_the_gateway_are_tried_without_its_files(tmp_path: Path) -> None:
    (tmp_path / "asyncchatd.toml").write_text(
        '[gateway]\nkey_file = "credential:none"\nnode_group = "gms"\nhold = "1s"\nmax_connections = 500\n'
    )
    plan = PollersPlan(gateway=of_gateway(tmp_path / "asyncchatd.toml"))
    assert (plan.hold, plan.max_connections) == (1.0, 500)
    assert PollersPlan().hold == 2.0
    (tmp_path / "asyncchatd.toml").write_text('[gateway]\nhold = "soon"\n')
    with pytest.raises(ConfigError, match=r"gateway\.hold"):
        of_gateway(tmp_path / "asyncchatd.toml")


# -- a page ----------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """What a page writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.asked = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))
        self.asked.set()


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@pytest.fixture
def pages() -> Pages:
    return Pages(Asked("127.0.0.1", 8090, "/genesys/2/chat/support", 0.0, 0.0, []))


async def polled(pages: Pages, *received: bytes) -> list[bytes]:
    """What a page asks that receives this."""
    wire, page = Wire(), Page(pages, PageOf("chat-1", "user", "key", "117", 5))
    page.connection_made(wire)
    for data in received:
        await wire.asked.wait()
        wire.asked.clear()
        page.data_received(data)
        if pages.polled.answered or pages.polled.failed:
            await wire.asked.wait()
        else:
            wire.asked.set()  # the rest comes by itself
    return wire.written


EMPTY = b'{"statusCode":0,"messages":[],"chatEnded":false,"nextPosition":5}'


async def test_a_page_asks_again_from_the_position_that_it_was_told(pages: Pages) -> None:
    said = b'{"statusCode":0,"messages":[{"text":"written at 0.5"}],"chatEnded":false,"nextPosition":9}'
    first, second = await polled(pages, answer(said))
    assert b"POST /genesys/2/chat/support/chat-1/refresh HTTP/1.1\r\n" in first
    assert first.endswith(b"userId=user&secureKey=key&alias=117&message=&transcriptPosition=5")
    assert second.endswith(b"&transcriptPosition=9")
    told = pages.told()
    assert (told.open, told.answered, told.failed, len(told.seen), told.late) == (1, 1, 0, 1, [])


async def test_an_answer_may_come_in_pieces(pages: Pages) -> None:
    whole = answer(EMPTY)
    assert len(await polled(pages, whole[:10], whole[10:60], whole[60:])) == 2
    assert len(pages.told().late) == 1
    assert pages.told().answered == 0, "it is counted anew"


@pytest.mark.parametrize(
    "received",
    [answer(EMPTY, b"503 Busy"), answer(b'{"statusCode":2,"nextPosition":1}'), answer(b"<html>no</html>")],
)
async def test_what_is_no_answer_to_a_poll_is_counted(pages: Pages, received: bytes) -> None:
    await polled(pages, received)
    told = pages.told()
    assert (told.answered, told.failed) == (0, 1)


# -- all of it -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_rehearsal_of_pages(tmp_path: Path) -> None:
    words = ["rehearse", "--pollers", "40", "--seconds", "4", "--poll-interval", "0.3"]
    outcome = CliRunner().invoke(
        cli.main, [*words, "--messages-per-second", "5", "--json"], catch_exceptions=False
    )
    told = json.loads(outcome.stdout)
    what = told["seen"]
    assert what["polls"] >= 40, what
    assert what["seen"] == what["messages"] >= 10, what
    assert (what["failed"], what["cut"], what["ended"]) == (0, 0, 0)
    assert told["report"]["wrong_key_requests"] == 0
    assert told["report"]["sessions_lost"] == 0
    assert told["report"]["restored"] >= 1
    assert told["exit_status"] == 0
    assert told["well"] is (told["verdict"]["limit"] == "none")


def test_pages_that_do_not_fit_are_an_error_in_a_line() -> None:
    outcome = CliRunner().invoke(cli.main, ["rehearse", "--pollers", "30000"])
    assert outcome.exit_code == 1
    assert "Error: gateway.max_connections is 20,000" in outcome.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pollers", "10", "--kill", "1"], "--kill has no effect with --pollers"),
        (["--pollers", "10", "--svg", "load.svg"], "--svg has no effect with --pollers"),
        (["--poll-interval", "1"], "--poll-interval has no effect without --pollers"),
    ],
)
def test_an_option_of_the_other_rehearsal_is_an_error(words: list[str], said: str) -> None:
    outcome = CliRunner().invoke(cli.main, ["rehearse", *words])
    assert outcome.exit_code == 2
    assert said in outcome.output
