"""Chat Servers that die, hang, restart or announce their stop: their sessions are pinged, and only theirs."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest

from .conftest import Start
from .plant import (
    Chat,
    ChatServer,
    Plant,
    Reply,
    colon_page,
    equals_page,
    event,
    json_page,
    nested_json_page,
    no_dbid_page,
    payload,
    prometheus_page,
    push,
    start_time_page,
    tokens,
    uptime_page,
    xml_attributes_page,
    xml_elements_page,
)
from .rig import Json, Rig, eventually, never, stalls

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


def _restored(chats: list[Chat]) -> bool:
    return all(chat.hosted for chat in chats)


def _silent(chats: list[Chat], since: float) -> bool:
    return not any(seen.at >= since for chat in chats for seen in chat.refreshes)


# Refused


REFUSAL = {
    "statusCode": 2,
    "errors": [{"code": 34, "advice": "no link to Chat Server", "message": "fail\u001b[2Jing over"}],
}


async def test_a_gms_that_refuses_while_it_fails_over_costs_no_session(start: Start) -> None:
    """statusCode 2 without an end comes quickly, for every session, until GMS has found the other server."""
    rig = await start(servers=2, insist="6s")
    mine = await rig.registered(60, alias="111")
    await rig.watching()
    for chat in mine:
        chat.answers.extend([REFUSAL, REFUSAL])
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("all restored", lambda: _restored(mine), within=6)
    await rig.settled()
    (one,) = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    await rig.eventually("the restoration's end", lambda: _finished(rig, one["id"]))
    (one,) = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    assert (one["state"], one["restored"], one["refused"]) == ("finished", 60, 0)
    assert not rig.log("restoration_incomplete")


async def test_a_restoration_that_left_a_session_says_so(start: Start) -> None:
    rig = await start(servers=2, insist="1s")
    refused, *others = await rig.registered(10, alias="111")
    await rig.watching()
    refused.standing = REFUSAL
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("the others restored", lambda: _restored(others))
    (one,) = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    assert one["state"] == "running"
    await rig.eventually("the restoration's end", lambda: _finished(rig, one["id"]))
    (one,) = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    assert (one["state"], one["restored"], one["refused"], one["waiting"]) == ("incomplete", 9, 1, 0)
    assert 6 <= len(refused.refreshes) <= 7
    session = await rig.session(refused)
    assert (session["state"], session["reason"], session["last_trouble"]) == (
        *("live", "keepalive", "status_code_2"),
    )
    words = "HTTP 200, statusCode 2, error 34: no link to Chat Server: fail [2Jing over"
    assert session["trouble_detail"] == words
    assert rig.log("ping_refused")[0]["detail"] == words
    assert not rig.log("restoration_finished")
    (said,) = rig.log("restoration_incomplete")
    assert (said["level"], said["refused"]) == ("warning", 1)
    metrics = (await rig.api("GET", "/metrics")).body.decode()
    assert "asyncchatd_sessions_left_total 1.0" in metrics


# Killed


async def test_a_killed_servers_sessions_are_all_pinged_within_the_rate(start: Start) -> None:
    rig = await start(servers=3, max_rate=100)
    rig.plant.rotate_on_restore = {"key", "user"}
    mine = await rig.registered(180, alias="111")
    others = [*await rig.registered(40, alias="112"), *await rig.registered(40, alias="113")]
    await rig.watching()
    async with stalls() as stalled:
        killed = time.monotonic()
        await rig.plant.kill(rig.plant.servers[0])
        took = await eventually("all restored", lambda: _restored(mine), within=6)
    late = round(100 * 2 * stalled.longest)
    assert _silent(others, killed), "sessions of living servers were pinged"
    assert all(len(chat.refreshes) == 1 for chat in mine), "more pings than needed"
    first, last = min(c.refreshes[0].at for c in mine), max(c.refreshes[0].at for c in mine)
    assert first - killed < 1.5 + stalled.total, f"noticed after {first - killed:.2f} s"
    peak = rig.plant.peak(1.0, since=killed)
    assert peak <= 102 + late, f"{peak} requests in one second, 100 allowed"
    bunch = rig.plant.peak(0.1, since=killed)
    assert bunch <= 16 + late, f"{bunch} requests in 100 ms, 10 would be even"
    assert last - first <= 1.8 * 1.1 + stalled.total, (
        f"{last - first:.2f} s for what the rate allows in 1.8 s ({took:.2f} s in all)"
    )

    listed = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    (one,) = [each for each in listed if each["server"] == "chat-1"]
    await rig.eventually("the restoration's end", lambda: _finished(rig, one["id"]))
    assert (await rig.servers())["chat-1"]["state"] == "down"
    listed = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    (one,) = [each for each in listed if each["server"] == "chat-1"]
    counts = {name: one[name] for name in ("sessions", "restored", "ended", "refused", "waiting")}
    assert counts == {"sessions": 180, "restored": 180, "ended": 0, "refused": 0, "waiting": 0}
    assert one["cause"]
    assert one["started_at"]


@pytest.mark.parametrize("back", [False, True], ids=["", "and is back at once"])
async def test_a_process_that_ends_is_noticed_before_its_page_is_due(start: Start, back: bool) -> None:
    rig = await start(watch="60s", fast="60s")
    [server, other] = rig.plant.servers
    chats = await rig.registered(5, alias=server.alias)
    await eventually("the open line", lambda: server.listener.connections and other.listener.connections)
    await rig.plant.kill(server)
    if back:
        await rig.plant.revive(server)
    await eventually("all restored", lambda: _restored(chats))
    await eventually("the restoration in the log", lambda: rig.log("restoration_started"))
    assert len(rig.log("restoration_started")) == 1
    assert len(other.polls) == 1


async def test_a_listener_that_closes_idle_connections_is_no_lost_server(start: Start) -> None:
    rig = await start(watch="2s")
    [server, _] = rig.plant.servers
    for closed in range(1, 4):
        await eventually("the open line", lambda: server.listener.connections)
        looks = len(server.polls)
        server.listener.drop_idle()
        await eventually("a look", partial(_more_than, server.polls, looks))
        assert len(server.polls) <= 2 * closed + 1
    assert not rig.log("server_suspect")
    assert not rig.log("restoration_started")


def _more_than(looks: list[float], before: int) -> bool:
    return len(looks) > before


async def _finished(rig: Rig, identity: object) -> bool:
    listed = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    return any(each["id"] == identity and each["finished_at"] for each in listed)


async def test_the_most_recently_active_are_restored_first(start: Start) -> None:
    rig = await start(max_rate=50, max_in_flight=4)
    chats = await rig.registered(60)
    await rig.watching()
    active = [chats[n] for n in (7, 50, 23, 41, 2, 33, 59, 14)]
    for chat in active:
        await rig.acknowledged(chat, push(chat, payload(chat)))
    killed = time.monotonic()
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("all restored", lambda: _restored(chats), within=6)
    order = [seen.chat_id for seen in rig.plant.since(killed)]
    # Four in flight may overtake each other by as many places.
    wanted = {chat.chat_id for chat in active}
    assert wanted <= set(order[: len(active) + 3]), [order.index(chat.chat_id) for chat in active]
    newest_half = {chat.chat_id for chat in active[4:]}
    assert newest_half <= set(order[: len(newest_half) + 3]), [order.index(chat.chat_id) for chat in active]


async def test_acknowledgements_go_before_a_restoration_and_keepalives_after(start: Start) -> None:
    rig = await start(max_rate=40, interval="1500ms")
    mine = await rig.registered(100, alias="111")
    others = await rig.registered(10, alias="112")
    await rig.watching()
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("the restoration's beginning", lambda: any(chat.hosted for chat in mine))
    for chat in others[:3]:
        async with stalls() as stalled:
            begun = time.monotonic()
            await rig.acknowledged(chat, push(chat, payload(chat)))
        assert chat.refreshes[-1].at - begun < 0.4 + stalled.total
        assert not _restored(mine)
    await eventually("all restored", lambda: _restored(mine), within=6)


async def test_a_ping_asked_for_is_not_starved_by_a_restoration_for_ever(start: Start) -> None:
    rig = await start(max_rate=60)
    mine = await rig.registered(100, alias="111")
    (other,) = await rig.registered(1, alias="112")
    await rig.watching()
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("the restoration's beginning", lambda: any(chat.hosted for chat in mine))
    await rig.ask_ping(other)
    await eventually("the ping asked for", lambda: other.refreshes, within=4)


async def test_two_servers_lost_at_once(start: Start) -> None:
    rig = await start(servers=4, max_rate=300)
    rig.plant.rotate_on_restore = {"key"}
    mine = [*await rig.registered(60, alias="111"), *await rig.registered(60, alias="112")]
    others = await rig.registered(30, alias="113")
    await rig.watching()
    killed = time.monotonic()
    for server in rig.plant.servers[:2]:
        await rig.plant.kill(server)
    await eventually("all restored", lambda: _restored(mine))
    assert _silent(others, killed)
    assert max(len(chat.refreshes) for chat in mine) <= 2


async def test_a_server_lost_while_it_takes_over_the_sessions_of_another(start: Start) -> None:
    rig = await start(servers=3, max_rate=100)
    rig.plant.rotate_on_restore = {"key"}
    mine = await rig.registered(120, alias="111")
    await rig.watching()
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("half restored", lambda: sum(chat.hosted for chat in mine) >= 60)
    await rig.plant.kill(rig.plant.servers[1])
    await eventually("all restored", lambda: _restored(mine), within=8)
    assert all(chat.alias == "113" for chat in mine if not chat.ended)


async def test_a_killed_server_that_comes_back_half_way(start: Start) -> None:
    rig = await start(max_rate=60)
    mine = await rig.registered(100, alias="111")
    await rig.watching()
    server = rig.plant.servers[0]
    await rig.plant.kill(server)
    await eventually("half restored", lambda: sum(chat.hosted for chat in mine) >= 40)
    await rig.plant.revive(server)
    await eventually("all restored", lambda: _restored(mine), within=6)
    assert max(len(chat.refreshes) for chat in mine) <= 3


async def test_a_restoration_while_all_of_gms_is_away_goes_on_when_it_is_back(start: Start) -> None:
    rig = await start(servers=3, nodes=2, max_rate=100)
    # An answer that is written when its node dies with all connections is lost, and the alias in it: at most
    # that of the one or two requests that were on their way.
    rig.forgiven.add("stale_alias")
    mine = await rig.registered(80, alias="111")
    others = await rig.registered(20, alias="112")
    await rig.watching()
    begun = time.monotonic()
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("a part restored", lambda: sum(chat.hosted for chat in mine) >= 20)
    for node in rig.plant.nodes:
        await node.listener.close()
    await asyncio.sleep(1)  # the outage
    for node in rig.plant.nodes:
        await node.listener.open()
    await eventually("the rest restored", lambda: _restored(mine), within=6)
    assert _silent(others, begun)
    assert rig.plant.peak(1.0, since=begun) <= 102
    assert max(len(chat.refreshes) for chat in mine) <= 2
    assert rig.plant.breaches.get("stale_alias", 0) <= 2


# Hanging


async def test_a_hanging_servers_sessions_are_tried_until_it_is_back(start: Start) -> None:
    """Its health page accepts and never answers; GMS says statusCode 1 for its sessions. The pid stays."""
    rig = await start()
    mine = await rig.registered(40, alias="111")
    others = await rig.registered(20, alias="112")
    await rig.watching()
    server = rig.plant.servers[0]
    begun = time.monotonic()
    server.mode = "hang"
    await rig.until_state("chat-1", "down")
    await eventually("a try for some", lambda: sum(bool(chat.refreshes) for chat in mine) >= 10)
    server.mode = "ok"
    back = time.monotonic()
    await eventually(
        "each answered after its return",
        lambda: all(any(r.at > back and r.status_code == 0 for r in c.refreshes) for c in mine),
    )
    assert _silent(others, begun)
    for chat in mine:
        assert (await rig.session(chat))["state"] == "live"


async def test_a_server_that_comes_back_with_the_same_pid_is_not_trusted(start: Start) -> None:
    """Its sessions were answered meanwhile, by it or by another; they are pinged again all the same."""
    rig = await start()
    mine = await rig.registered(30, alias="111")
    for chat in mine:
        chat.standing = {"statusCode": 0}
    others = await rig.registered(20, alias="112")
    await rig.watching()
    server = rig.plant.servers[0]
    begun = time.monotonic()
    server.mode = "hang"
    await rig.until_state("chat-1", "down")
    await eventually("a ping for each", lambda: all(chat.refreshes for chat in mine))
    server.mode = "ok"
    back = time.monotonic()
    await eventually("a ping after its return", lambda: all(c.refreshes[-1].at > back for c in mine))
    assert _silent(others, begun)


async def test_requests_that_hang_with_their_server_overlap_nothing(start: Start) -> None:
    rig = await start(gms_timeout="500ms", lease="1200ms")
    mine = await rig.registered(20, alias="111")
    await rig.watching()
    server = rig.plant.servers[0]
    server.mode = "hang"
    for chat in mine:
        chat.standing = Reply(never=True)
    await rig.until_state("chat-1", "down")
    await eventually("a second try for some", lambda: sum(len(chat.refreshes) >= 2 for chat in mine) >= 2)
    for chat in mine:
        chat.standing = None
    server.mode = "ok"
    back = time.monotonic()
    await eventually(
        "answered",
        lambda: all(any(r.at > back and r.status_code == 0 for r in c.refreshes) for c in mine),
        within=6,
    )


async def test_requests_that_hang_do_not_hold_up_the_sessions_of_other_servers(start: Start) -> None:
    rig = await start(gms_timeout="1s", lease="2s", max_in_flight=50)
    mine = await rig.registered(30, alias="111")
    others = await rig.registered(6, alias="112")
    await rig.watching()
    rig.plant.servers[0].mode = "hang"
    for chat in mine:
        chat.standing = Reply(never=True)
    await rig.until_state("chat-1", "down")
    await eventually("a first time-out", lambda: any(seen.given_up for seen in rig.plant.refreshes))
    for chat in others:
        await rig.acknowledged(chat, push(chat, payload(chat)), within=2)
    for chat in mine:
        chat.standing = None
    rig.plant.servers[0].mode = "ok"


# Restarted


async def test_a_changed_pid_without_downtime_is_a_restart(start: Start) -> None:
    rig = await start(servers=3)
    mine = await rig.registered(40, alias="111")
    others = await rig.registered(40, alias="112")
    await rig.watching()
    async with stalls() as stalled:
        begun = time.monotonic()
        rig.plant.lose(rig.plant.servers[0])
        rig.plant.servers[0].restart()
        took = await eventually("all restored", lambda: _restored(mine))
    assert took < 1.5 + stalled.total
    assert _silent(others, begun)
    assert max(len(chat.refreshes) for chat in mine) == 1


async def test_an_unchanged_pid_is_no_restart(start: Start) -> None:
    rig = await start()
    chats = await rig.registered(30)
    await rig.watching()
    polls = len(rig.plant.servers[0].polls)
    await never("a ping", lambda: any(chat.refreshes for chat in chats), during=1.0)
    assert len(rig.plant.servers[0].polls) >= polls + 3


async def test_a_restart_while_the_daemon_was_down_is_found_at_its_start(start: Start) -> None:
    rig = await start(servers=3)
    mine = await rig.registered(40, alias="111")
    others = await rig.registered(40, alias="112")
    await rig.watching()
    await rig.stop()
    rig.plant.lose(rig.plant.servers[0])
    rig.plant.servers[0].restart()
    begun = time.monotonic()
    await rig.start()
    await eventually("all restored", lambda: _restored(mine), within=3)
    assert _silent(others, begun)


async def test_a_server_killed_while_the_daemon_was_down_is_found_at_its_start(start: Start) -> None:
    rig = await start(servers=3)
    mine = await rig.registered(40, alias="111")
    others = await rig.registered(40, alias="112")
    await rig.watching()
    await rig.kill()
    await rig.plant.kill(rig.plant.servers[0])
    begun = time.monotonic()
    await rig.start()
    await eventually("all restored", lambda: _restored(mine), within=4)
    assert _silent(others, begun)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_the_daemons_own_restart_is_no_reason_to_ping(start: Start, how: str) -> None:
    rig = await start()
    chats = await rig.registered(60)
    await rig.watching()
    await (rig.stop() if how == "stop" else rig.kill())
    begun = time.monotonic()
    await rig.start()
    await rig.watching()
    await never("a ping", lambda: not _silent(chats, begun), during=0.8)


# Health pages

PAGES: list[tuple[Callable[[ChatServer], Reply], str]] = [
    (json_page, ""),
    (nested_json_page, ""),
    (equals_page, ""),
    (colon_page, ""),
    (xml_attributes_page, ""),
    (xml_elements_page, ""),
    (prometheus_page, ""),
    (no_dbid_page, "app_dbid = {alias}"),
    (start_time_page, ""),
    (uptime_page, ""),
    (json_page, "app_dbid = {alias}"),
]


def _with_pages(plant: Plant) -> None:
    for server, (page, _) in zip(plant.servers, PAGES, strict=True):
        server.page = page
        server.started -= 5000


async def test_every_form_of_health_page_is_read_and_its_restart_noticed(start: Start) -> None:
    aliases = [str(111 + n) for n in range(len(PAGES))]
    keys = {
        f"chat-{n}": key.format(alias=alias)
        for n, (alias, (_, key)) in enumerate(zip(aliases, PAGES, strict=True), start=1)
    }
    rig = await start(servers=len(PAGES), prepare=_with_pages, server_keys=keys)
    chats = {alias: await rig.registered(3, alias=alias) for alias in aliases}
    await rig.watching()
    await _all_polled(rig, 2)
    listed = await rig.servers()
    assert {str(listed[server.name]["app_dbid"]) for server in rig.plant.servers} == set(aliases)
    for turn in (0, 1):
        turned = rig.plant.servers[turn::2]
        begun = time.monotonic()
        for server in turned:
            rig.plant.lose(server)
            server.restart()
        theirs = [chat for server in turned for chat in chats[server.alias]]
        await eventually("their sessions restored", partial(_restored, theirs), within=3)
        still = [chat for server in rig.plant.servers if server not in turned for chat in chats[server.alias]]
        if turn == 0:
            assert _silent(still, begun)


async def _all_polled(rig: Rig, more: int) -> None:
    goal = {server.name: len(server.polls) + more for server in rig.plant.servers}
    await eventually("polled again", lambda: all(len(s.polls) >= goal[s.name] for s in rig.plant.servers))


UNREADABLE: dict[str, Reply] = {
    "500": Reply("Internal error", 500),
    "401": Reply("", 401),
    "404": Reply("Not found", 404),
    "503": Reply("starting", 503, headers={"Retry-After": "5"}),
    "html": Reply("<html><p>hello</p></html>", headers={"Content-Type": "text/html"}),
    "empty": Reply(""),
    "truncated json": Reply('{"app_dbid": 111, "process_os_p'),
    "binary": Reply(bytes(range(256))),
    "counters are no numbers": Reply({"app_dbid": None, "process_os_pid": "unknown"}),
}


async def test_an_unreadable_page_of_a_live_listener_is_not_a_death(start: Start) -> None:
    rig = await start(servers=len(UNREADABLE))
    aliases = [server.alias for server in rig.plant.servers]
    for alias in aliases:
        await rig.registered(3, alias=alias)
    await rig.watching()
    for server, fault in zip(rig.plant.servers, UNREADABLE.values(), strict=True):
        server.fault = fault
    await _all_polled(rig, 5)
    assert [s["state"] for s in (await rig.servers()).values() if s["state"] == "down"] == []
    for server in rig.plant.servers:
        server.fault = None
    await _all_polled(rig, 3)
    assert not rig.plant.refreshes, "a page that could not be read for a while is no reason to ping"
    half = rig.plant.servers[::2]
    for server in half:
        server.fault = Reply("", 500)
    await _all_polled(rig, 2)
    for server in half:
        rig.plant.lose(server)
        server.restart()
        server.fault = None
    await eventually("the restart behind an unreadable page", lambda: not rig.plant.unrestored(), within=3)


# What looks like a restart


def _by_turns(*pids: int) -> Callable[[ChatServer], Reply]:
    """A balancer's address: these processes answer one after another, again and again."""
    answers = itertools.cycle(pids)
    return lambda server: Reply({"app_dbid": int(server.alias), "process_os_pid": next(answers)})


async def test_a_balancers_health_address_makes_no_storm(start: Start) -> None:
    def behind_a_balancer(plant: Plant) -> None:
        plant.servers[0].page = _by_turns(1001, 1001, 1002, 1002)

    rig = await start(servers=2, prepare=behind_a_balancer)
    chats = await rig.registered(20)
    await eventually("it is told", lambda: rig.log("server_identity_disputed"))
    await _all_polled(rig, 20)
    assert len(rig.log("restoration_started")) <= 1
    await rig.kill()
    await rig.start()
    await rig.watching()
    await _all_polled(rig, 10)
    told, begun = rig.log("server_identity_disputed"), len(rig.log("restoration_started"))
    assert len(told) == 1
    assert begun <= 1
    assert all(len(chat.refreshes) <= 1 for chat in chats)
    # One of the two is restarted.
    rig.plant.servers[0].page = _by_turns(1001, 1003)
    await eventually("the restart", lambda: len(rig.log("restoration_started")) == begun + 1)
    await _all_polled(rig, 10)
    assert len(rig.log("restoration_started")) == begun + 1


@pytest.mark.parametrize("pid", [1, 4711])
async def test_counters_that_an_option_zeroes_on_every_server_are_no_restart(start: Start, pid: int) -> None:
    offset = [0.0]

    def counting(server: ChatServer) -> Reply:
        total = round(time.monotonic() - offset[0], 3)
        return Reply({"app_dbid": int(server.alias), "process_os_pid": pid, "messages_total": total})

    def with_counters(plant: Plant) -> None:
        for server in plant.servers:
            server.page = counting

    rig = await start(servers=3, prepare=with_counters)
    await rig.registered(20)
    await rig.watching()
    await _all_polled(rig, 3)
    offset[0] = time.monotonic()
    await eventually("it is told of all", lambda: len(rig.log("server_counters_reset")) == 3)
    await _all_polled(rig, 5)
    assert not rig.plant.refreshes
    # While one of them alone is a restart, where nothing else can tell it.
    zero = time.monotonic()
    rig.plant.servers[0].page = lambda server: Reply(
        {
            "app_dbid": int(server.alias),
            "process_os_pid": pid,
            "messages_total": round(time.monotonic() - zero, 3),
        }
    )
    if pid == 1:
        await eventually("the restart", lambda: rig.log("server_restarted"))
    await _all_polled(rig, 5)
    assert len(rig.log("restoration_started")) == (pid == 1)


async def test_a_health_page_that_redirects_elsewhere_is_not_a_death(start: Start) -> None:
    rig = await start(servers=2)
    await rig.registered(5)
    await rig.watching()
    other = rig.plant.servers[1].health_url
    rig.plant.servers[0].fault = Reply("", 302, headers={"Location": other})
    await _all_polled(rig, 5)
    assert (await rig.servers())["chat-1"]["state"] == "up"
    assert (await rig.servers())["chat-1"]["process_os_pid"] != (await rig.servers())["chat-2"][
        "process_os_pid"
    ]
    assert not rig.plant.refreshes


# Announced


ADVICE = {"quit-reason-code": 5, "quit-reason-advice": "reconnect"}

NOTICES: dict[str, Callable[[Chat], object]] = {
    "in eventAttributes": lambda c: payload(c, _leave(eventAttributes={"GCTI_SYSTEM": ADVICE})),
    "in a text": lambda c: json.dumps(payload(c, _leave(eventAttributes={"GCTI_SYSTEM": ADVICE}))),
    "attributes as text": lambda c: payload(c, _leave(eventAttributes=json.dumps({"GCTI_SYSTEM": ADVICE}))),
    "system as text": lambda c: payload(c, _leave(eventAttributes={"GCTI_SYSTEM": json.dumps(ADVICE)})),
    "beside the event": lambda c: payload(c, _leave(**ADVICE)),
    "beside the notification": lambda c: {"type": "ParticipantLeft", "participantId": 1} | ADVICE | tokens(c),
    "in attributes": lambda c: payload(c, _leave(eventAttributes=ADVICE)),
    "underscores": lambda c: payload(
        c, _leave(eventAttributes={"GCTI_SYSTEM": {"quit_reason_advice": "reconnect"}})
    ),
    "camel case": lambda c: payload(
        c, _leave(eventAttributes={"GCTI_SYSTEM": {"quitReasonAdvice": "Reconnect"}})
    ),
    "with hyphens in the type": lambda c: payload(
        c, event("participant-left", eventAttributes={"GCTI_SYSTEM": ADVICE}) | {"from": {"participantId": 1}}
    ),
    "that says the chat has ended": lambda c: payload(
        c, _leave(eventAttributes={"GCTI_SYSTEM": ADVICE}), chatEnded=True
    ),
    "among other events": lambda c: payload(
        c, event(), _leave(eventAttributes={"GCTI_SYSTEM": ADVICE}), event("Notice")
    ),
}


def _leave(**other: object) -> dict[str, object]:
    client = {"nickname": "Customer", "participantId": 1, "type": "Client"}
    return event("ParticipantLeft") | {"from": client} | other


async def test_a_shutdown_notice_pings_its_session_at_once_and_ends_none(start: Start) -> None:
    rig = await start(servers=2)
    others = await rig.registered(5)
    chats = dict(zip(NOTICES, await rig.registered(len(NOTICES)), strict=True))
    await rig.watching()
    rig.plant.lose(rig.plant.servers[0])
    for chat in others:
        chat.hosted = True
    for name, chat in chats.items():
        await rig.pushed(chat, NOTICES[name](chat))
    await eventually("each restored", lambda: _restored(list(chats.values())), within=1)
    assert not any(chat.refreshes for chat in others)
    await rig.settled()
    for chat in chats.values():
        assert (await rig.session(chat))["state"] == "live"
    lines = [json.loads(line) for line in rig.log_text().splitlines()]
    reasons = {line["chat_id"]: line["reason"] for line in lines if line["event"] == "ping_ok"}
    assert {name: reasons[chat.chat_id] for name, chat in chats.items()} == dict.fromkeys(chats, "restore")


@pytest.mark.parametrize("code", [0, 3, 4, 5, 6, 7, 8])
async def test_no_leave_in_a_push_ends_a_session(rig: Rig, code: int) -> None:
    (chat,) = await rig.registered()
    leave = _leave(eventAttributes={"GCTI_SYSTEM": {"quit-reason-code": code}})
    await rig.acknowledged(chat, push(chat, payload(chat, leave)))
    assert (await rig.session(chat))["state"] == "live"
    await rig.pinged(chat)


async def test_a_shutdown_notice_makes_the_watcher_look_at_once(start: Start) -> None:
    rig = await start(watch="10s", fast="50ms")
    (chat,) = await rig.registered()
    await rig.watching()
    polls = len(rig.plant.servers[0].polls)
    await rig.pushed(chat, NOTICES["in eventAttributes"](chat))
    await eventually("a look at the server", lambda: len(rig.plant.servers[0].polls) > polls, within=1.5)


async def test_status_code_1_piling_up_for_an_alias_makes_the_watcher_look_at_once(start: Start) -> None:
    rig = await start(watch="10s", fast="50ms", backoff="1s", backoff_max="2s")
    chats = await rig.registered(20)
    await rig.watching()
    polls = len(rig.plant.servers[0].polls)
    for chat in chats:
        chat.answers.extend({"statusCode": 1} for _ in range(3))
        await rig.ask_ping(chat)
    await eventually("a look at the server", lambda: len(rig.plant.servers[0].polls) > polls, within=1.5)


# Ourselves


async def test_everything_gone_at_once_is_no_storm_by_itself(start: Start) -> None:
    """All servers and GMS vanish together: more likely our own network. When it is back nothing was restarted."""
    rig = await start(servers=3, max_rate=200)
    chats = [chat for alias in ("111", "112", "113") for chat in await rig.registered(30, alias=alias)]
    await rig.watching()
    for listener in rig.plant.listeners:
        await listener.close()
    await asyncio.sleep(1.5)  # the outage
    begun = time.monotonic()
    for listener in rig.plant.listeners:
        await listener.open()
    await rig.watching()
    await rig.eventually("quiet", lambda: _quiet(rig))
    assert rig.plant.peak(1.0, since=begun) <= 204
    for chat in chats:
        assert (await rig.session(chat))["state"] == "live"
        assert len(chat.refreshes) <= 2


async def _quiet(rig: Rig) -> bool:
    due = cast(dict[str, int], (await rig.get("/v1/status"))["due"])
    return not any(due.values())
