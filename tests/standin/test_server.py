"""The plant on real loopback sockets: nodes, health pages, pushes and the control port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from asyncchatd.model.data import Tokens
from asyncchatd.standin import (
    ChatServerSettings,
    PlantSettings,
    Ports,
    Rotation,
    SettingError,
    SickPage,
    StandIn,
    serve,
)
from asyncchatd.standin.gms_node import GARBAGE
from asyncchatd.standin.health_page import HealthFormat
from asyncchatd.standin.port import LoopbackPort
from asyncchatd.wire.chat_api.calls import Call, Operation, call, refresh
from asyncchatd.wire.chat_api.outcome import Alive, Ended, NodeTrouble, Outcome, RetryLater, classify
from asyncchatd.wire.health import HealthError, read_health
from asyncchatd.wire.push import Push, read_push


class Site:
    """A running plant and somebody who talks to it."""

    def __init__(self, standin: StandIn, http: aiohttp.ClientSession) -> None:
        self.standin = standin
        self.http = http

    async def control(self, path: str, **body: object) -> dict[str, object]:
        async with self.http.post(self.standin.control_url + path, json=body) as response:
            answer: dict[str, object] = await response.json()
            assert response.status == 200, answer
            return answer

    async def report(self) -> dict[str, Any]:
        async with self.http.get(f"{self.standin.control_url}/report") as response:
            report: dict[str, object] = await response.json()
            return report

    async def until(self, name: str, value: int) -> None:
        """Asks for the report until it says so."""
        async with asyncio.timeout(10):
            while (await self.report())[name] != value:
                pass

    async def chats(self, **body: object) -> list[dict[str, object]]:
        async with self.http.post(f"{self.standin.control_url}/chats", json=body) as response:
            assert response.status == 200, await response.text()
            return [json.loads(line) async for line in response.content]

    async def send(self, made: Call, *, node: int = 0) -> tuple[int, bytes]:
        url = f"{self.standin.gms_urls[node]}/2/chat/{made.path}"
        headers = {"Content-Type": made.content_type}
        async with self.http.post(url, data=made.body, headers=headers) as response:
            return response.status, await response.read()

    async def ping(self, line: dict[str, object], *, node: int = 0) -> Outcome:
        status, body = await self.send(refresh_of(line), node=node)
        return classify(status, body, chat_id=str(line["chat_id"]))

    async def health(self, name: str) -> bytes:
        async with self.http.get(self.standin.health_urls[name]) as response:
            assert response.status == 200
            return await response.read()


def refresh_of(line: dict[str, object]) -> Call:
    tokens = Tokens(*(str(line[name]) for name in ("chat_id", "user_id", "secure_key", "alias")))
    position = line["next_position"]
    assert isinstance(position, int)
    return refresh(str(line["service"]), tokens, position)


@asynccontextmanager
async def running(settings: PlantSettings | None = None) -> AsyncIterator[Site]:
    async with StandIn(settings) as standin, aiohttp.ClientSession() as http:
        yield Site(standin, http)


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[str, asyncio.Queue[Push]]]:
    """A push endpoint; its URL and what came."""
    came: asyncio.Queue[Push] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        came.put_nowait(read_push(await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/push/secret", take)
    async with TestServer(app) as server:
        yield str(server.make_url("/push/secret")), came


async def test_sessions_started_on_the_control_port_are_served_by_every_node() -> None:
    async with running() as site:
        lines = await site.chats(count=7, service="support")
        assert {line["alias"] for line in lines} == {"117", "118", "119"}
        assert set(lines[0]) == {
            "service",
            "chat_id",
            "user_id",
            "secure_key",
            "alias",
            "device_id",
            "next_position",
        }
        for n, line in enumerate(lines):
            assert isinstance(await site.ping(line, node=n % 2), Alive)
        async with site.http.get(f"{site.standin.control_url}/sessions?alias=118") as response:
            listed = [json.loads(line) async for line in response.content]
        assert listed == [line for line in lines if line["alias"] == "118"]
        report = await site.report()
        assert report["requests_by_operation"] == {"refresh": 7}
        assert report["sessions_alive"] == 7


async def test_a_killed_server_refuses_connections_and_its_sessions_are_restored_elsewhere() -> None:
    async with running() as site:
        (line,) = await site.chats(count=1, spread=["chat-1"])
        before = read_health(await site.health("chat-1"))
        await site.control("/servers/chat-1/kill")
        with pytest.raises(aiohttp.ClientConnectorError):
            await site.health("chat-1")
        outcome = await site.ping(line)
        assert isinstance(outcome, Alive)
        assert outcome.reply.news.alias in ("118", "119")
        await site.control("/servers/chat-1/start")
        after = read_health(await site.health("chat-1"))
        assert (after.app_dbid, before.app_dbid) == ("117", "117")
        assert after.process_os_pid != before.process_os_pid
        assert (await site.report())["restored"] == 1


async def test_a_restart_drops_connections_and_changes_the_pid_on_the_same_port() -> None:
    async with running() as site:
        url, before = site.standin.health_urls["chat-2"], read_health(await site.health("chat-2"))
        await site.control("/servers/chat-2/restart")
        assert site.standin.health_urls["chat-2"] == url
        # The kept-alive connection died with the process; aiohttp repeats a GET on a new one.
        assert read_health(await site.health("chat-2")).process_os_pid != before.process_os_pid
        same = await site.control("/servers/chat-2/restart", same_pid=True)
        assert str(same["process_os_pid"]) == read_health(await site.health("chat-2")).process_os_pid


async def test_a_hung_server_accepts_and_answers_only_when_it_goes_on() -> None:
    async with running(PlantSettings(gms_hang_timeout=None)) as site:
        (line,) = await site.chats(count=1, spread=["chat-1"])
        await site.control("/servers/chat-1/hang")
        health = asyncio.create_task(site.health("chat-1"))
        ping = asyncio.create_task(site.ping(line))
        await site.until("requests", 1)
        assert await site.health("chat-2")
        assert not health.done()
        assert not ping.done()
        await site.control("/servers/chat-1/resume")
        assert read_health(await health).app_dbid == "117"
        outcome = await ping
        assert isinstance(outcome, Alive)
        assert outcome.reply.news.alias == "117"


async def test_gms_answers_for_a_hung_server_when_it_has_waited_enough() -> None:
    async with running(PlantSettings(gms_hang_timeout=0.05)) as site:
        (line,) = await site.chats(count=1, spread=["chat-1"])
        await site.control("/servers/chat-1/hang")
        assert isinstance(await site.ping(line), RetryLater)


async def test_a_plant_with_hanging_requests_closes_cleanly() -> None:
    async with running(PlantSettings(gms_hang_timeout=None)) as site:
        (line,) = await site.chats(count=1, spread=["chat-1"])
        await site.control("/servers/chat-1/hang")
        await site.control("/gms/2/hang")
        pings = [asyncio.create_task(site.ping(line, node=n)) for n in (0, 1)]
        await site.until("requests", 2)
        await site.standin.__aexit__(None, None, None)
        for outcome in await asyncio.gather(*pings, return_exceptions=True):
            assert isinstance(outcome, aiohttp.ClientError)


@pytest.mark.parametrize("form", list(HealthFormat))
async def test_health_pages_come_in_every_format(form: HealthFormat) -> None:
    server = ChatServerSettings("chat-1", "117", pid=42, health=form)
    async with running(PlantSettings(servers=(server,))) as site:
        page = read_health(await site.health("chat-1"))
        assert (page.app_dbid, page.process_os_pid) == ("117", "42")


async def test_a_health_page_can_be_alive_and_unreadable() -> None:
    async with running() as site:
        await site.control("/servers/chat-1/health", format=SickPage.HTML.value)
        with pytest.raises(HealthError):
            read_health(await site.health("chat-1"))
        await site.control("/servers/chat-1/health", format=SickPage.HTTP_500.value)
        async with site.http.get(site.standin.health_urls["chat-1"]) as response:
            assert response.status == 500


async def test_a_push_arrives_and_a_refresh_acknowledges_it() -> None:
    async with receiving() as (url, came), running(PlantSettings(push_url=url)) as site:
        (line,) = await site.chats(count=1)
        said = await site.control("/say", chat_id=line["chat_id"], text="hello")
        assert said == {"said": 1, "undeliverable": 0}
        assert (await came.get()).device_id == line["device_id"]
        assert (await site.report())["pushes_unacknowledged"] == 1
        outcome = await site.ping(line)
        assert isinstance(outcome, Alive)
        assert [event.text for event in outcome.reply.events] == ["hello"]
        report = await site.report()
        assert (report["pushes_unacknowledged"], report["acknowledged"], report["pushes_failed"]) == (0, 1, 0)


async def test_a_push_nobody_takes_is_counted_and_sent_again() -> None:
    settings = PlantSettings(push_url="http://127.0.0.1:9/push/secret", resend_delay=0.01, resend_attempts=2)
    async with running(settings) as site:
        await site.chats(count=1)
        await site.control("/say", count=1)
        await site.until("pushes_failed", 3)
        assert (await site.report())["pushes_resent"] == 2


async def test_a_planned_stop_is_announced_and_carried_out() -> None:
    async with receiving() as (url, came), running(PlantSettings(push_url=url)) as site:
        lines = await site.chats(count=2, spread=["chat-1"])
        await site.control("/servers/chat-1/stop", seconds=0)
        notices = [await came.get(), await came.get()]
        assert all(notice.leaving for notice in notices)
        assert {notice.device_id for notice in notices} == {line["device_id"] for line in lines}
        await site.until("sessions_without_server", 2)
        await site.standin.settled()
        with pytest.raises(aiohttp.ClientConnectorError):
            await site.health("chat-1")


async def test_a_node_can_be_killed_and_started_on_its_port() -> None:
    async with running() as site:
        (line,) = await site.chats(count=1)
        assert isinstance(await site.ping(line), Alive)
        await site.control("/gms/1/kill")
        with pytest.raises(aiohttp.ClientConnectionError):
            await site.ping(line)
        assert isinstance(await site.ping(line, node=1), Alive)
        await site.control("/gms/1/start")
        assert isinstance(await site.ping(line), Alive)


async def test_what_a_node_answered_just_before_it_died_the_client_may_not_have_read() -> None:
    async with running(PlantSettings(rotate=Rotation.ALWAYS, rotate_every=1, previous_key_grace=0.0)) as site:
        first, other = await site.chats(count=2)
        for line in (first, other):
            assert isinstance(await site.ping(line), Alive), "and has another key now"
        await site.control("/gms/1/kill")
        assert isinstance(await site.ping(first, node=1), Alive), "with the key before"
        report = await site.report()
        assert (report["forgiven_key_requests"], report["wrong_key_requests"]) == (1, 0)


async def test_what_a_node_answered_while_it_was_dying_the_client_may_not_have_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(PlantSettings(rotate=Rotation.ALWAYS, rotate_every=1, previous_key_grace=0.0)) as site:
        (line,) = await site.chats(count=1)
        close = LoopbackPort.close

        async def answered_and_closed(port: LoopbackPort) -> None:
            assert isinstance(await site.ping(line), Alive), "and has another key now"
            await close(port)

        with monkeypatch.context() as dying:
            dying.setattr(LoopbackPort, "close", answered_and_closed)
            await site.control("/gms/1/kill")
        assert isinstance(await site.ping(line, node=1), Alive), "with the key before"
        report = await site.report()
        assert (report["forgiven_key_requests"], report["wrong_key_requests"]) == (1, 0)


async def test_what_another_node_answered_the_client_has_read() -> None:
    async with running(PlantSettings(rotate=Rotation.ALWAYS, rotate_every=1, previous_key_grace=0.0)) as site:
        (line,) = await site.chats(count=1)
        assert isinstance(await site.ping(line), Alive)
        await site.control("/gms/2/kill")
        await site.ping(line)
        assert (await site.report())["wrong_key_requests"] == 1


async def test_a_node_can_fail_with_any_status() -> None:
    async with running() as site:
        (line,) = await site.chats(count=1)
        await site.control("/gms/1/fail", status=503, retry_after=7)
        outcome = await site.ping(line)
        assert isinstance(outcome, NodeTrouble)
        async with site.http.post(site.standin.gms_urls[0]) as response:
            assert response.headers["Retry-After"] == "7"
        await site.control("/gms/1/fail", rate=0)
        assert isinstance(await site.ping(line), Alive)
        assert (await site.report())["requests_faulted"] == 2


async def test_garbage_neither_ends_a_session_nor_teaches_it_tokens() -> None:
    async with running() as site:
        (line,) = await site.chats(count=1)
        await site.control("/gms/1/garbage")
        for _ in GARBAGE:
            assert not isinstance(await site.ping(line), (Alive, Ended))
        await site.control("/gms/1/start")
        assert isinstance(await site.ping(line), Alive)


async def test_a_hung_node_forgets_requests_whose_client_gave_up() -> None:
    async with running() as site:
        (line,) = await site.chats(count=1)
        await site.control("/gms/1/hang")
        given_up = asyncio.create_task(site.ping(line))
        await site.until("requests", 1)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert isinstance(await site.ping(line, node=1), Alive)
        await site.control("/gms/1/start")
        assert isinstance(await site.ping(line), Alive)
        report = await site.report()
        assert (report["overlapping_requests"], report["requests_faulted"]) == (0, 1)


async def test_two_refreshes_of_one_session_at_once_are_seen() -> None:
    async with running() as site:
        (line,) = await site.chats(count=1)
        await asyncio.gather(site.ping(line, node=0), site.ping(line, node=1))
        assert (await site.report())["overlapping_requests"] == 1


async def test_an_overloaded_plant_turns_requests_away() -> None:
    async with running(PlantSettings(gms_capacity=50, gms_queue=3)) as site:
        lines = await site.chats(count=10)
        outcomes = await asyncio.gather(*(site.ping(line) for line in lines))
        assert sum(isinstance(outcome, Alive) for outcome in outcomes) == 3
        assert (await site.report())["requests_turned_away"] == 7


async def test_a_request_without_the_required_headers_is_not_let_in() -> None:
    async with running(PlantSettings(required_headers={"apikey": "open sesame"})) as site:
        (line,) = await site.chats(count=1)
        assert isinstance(await site.ping(line), NodeTrouble)
        site.http.headers["apikey"] = "open sesame"
        assert isinstance(await site.ping(line), Alive)
        assert (await site.report())["unauthorised_requests"] == 1


async def test_what_is_no_chat_api_request_is_counted() -> None:
    async with running() as site:
        base = site.standin.gms_urls[0]
        async with site.http.post(f"{base}/2/chat/support/1/dance") as response:
            assert response.status == 404
        async with site.http.get(f"{base}/2/chat/support/1/refresh") as response:
            assert response.status == 405
        async with site.http.get(f"{base}/3/chat/support/1/refresh") as response:
            assert response.status == 404
        assert (await site.report())["unreadable_requests"] == 3


async def test_who_only_looks_whether_a_node_answers_breaks_no_rule() -> None:
    async with running() as site:
        base = site.standin.gms_urls[0]
        for address in (base, f"{base}/", f"{base}/1/1/admin/node/status"):
            async with site.http.get(address) as response:
                assert response.status == 404
        async with site.http.get(f"{base}/1/admin/node/status") as response:
            assert (response.status, response.content_type, await response.text()) == (
                200,
                "text/plain",
                "ONLINE",
            )
        async with site.http.options(f"{base}/2/chat/support") as response:
            assert (response.status, response.headers["Allow"]) == (200, "POST, OPTIONS")
        assert (await site.report())["unreadable_requests"] == 0


async def test_a_chat_can_be_requested_as_genesys_widget_does() -> None:
    async with running() as site:
        made = call(Operation.REQUEST_CHAT, "support", None, [("nickname", "Ann"), ("userId", "")])
        status, body = await site.send(Call(made.path + "/", made.body, made.content_type))
        outcome = classify(status, body, chat_id=str(json.loads(body)["chatId"]))
        assert isinstance(outcome, Alive)
        assert outcome.reply.events[0].nickname == "Ann"


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/chats", {"count": "many"}, 400, "count"),
        ("/chats", {"spread": ["chat-9"]}, 409, None),
        ("/chats", {"number": 5}, 400, "number"),
        ("/say", {"chat_id": "nobody"}, 409, None),
        ("/servers/chat-1/dance", {}, 400, "verb"),
        ("/servers/chat-1/resume", {}, 409, None),
        ("/servers/chat-1/health", {"format": "haiku"}, 400, "format"),
        ("/gms/3/kill", {}, 409, None),
        ("/gms/1/fail", {"status": 200}, 400, "status"),
        ("/settings", {"rotate": "daily"}, 400, "rotate"),
        ("/nowhere", {}, 404, None),
    ],
)
async def test_a_wrong_command_says_what_was_expected(
    path: str, body: dict[str, object], status: int, field: str | None
) -> None:
    async with running() as site, site.http.post(site.standin.control_url + path, json=body) as response:
        assert response.status == status
        error = (await response.json())["error"]
        assert error["field"] == field
        assert error["message"]


async def test_settings_change_while_the_plant_runs() -> None:
    async with running() as site:
        shown = await site.control("/settings", rotate="refresh", rotate_every=1)
        assert (shown["rotate"], shown["rotate_every"]) == ("refresh", 1)
        (line,) = await site.chats(count=1)
        outcome = await site.ping(line)
        assert isinstance(outcome, Alive)
        assert outcome.reply.news.secure_key != line["secure_key"]
        assert isinstance(await site.ping(line), Ended), "the old key is a wrong key"


async def test_everything_else_on_the_control_port_answers() -> None:
    async with receiving() as (url, _), running(PlantSettings(push_url=url)) as site:
        lines = await site.chats(count=3)
        assert await site.control("/rotate", count=2) == {"rotated": 2}
        assert await site.control("/rotate", chat_id=lines[2]["chat_id"], announce=True) == {"rotated": 1}
        assert await site.control("/push_late", chat_id=lines[2]["chat_id"]) == {"pushed": 1}
        assert await site.control("/move", count=1) == {"moved": 1}
        assert await site.control("/end", count=1) == {"ended": 1}
        assert (await site.control("/gms/1/slow", seconds=0.001))["slow"] == 0.001
        assert (await site.control("/servers/chat-1/slow", seconds=0.001))["slow"] == 0.001
        assert await site.control("/reset_report") == {}
        async with site.http.get(f"{site.standin.control_url}/timeline") as response:
            assert (await response.json())["columns"] == ["second", "requests", "restored"]
        async with site.http.get(f"{site.standin.control_url}/plant") as response:
            plant = await response.json()
        assert [server["phase"] for server in plant["servers"]] == ["up", "up", "up"]
        assert [node["number"] for node in plant["gms"]] == [1, 2]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
async def test_a_plant_answers_only_on_loopback(host: str) -> None:
    with pytest.raises(SettingError, match="loopback"):
        async with StandIn(ports=Ports(host=host)):
            pytest.fail("it listens")


async def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    async with StandIn() as standin:
        taken = int(standin.control_url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            async with StandIn(ports=Ports(control=taken)):
                pytest.fail("it listens")


async def test_serve_runs_until_it_is_cancelled() -> None:
    ready: asyncio.Queue[StandIn] = asyncio.Queue()
    serving = asyncio.create_task(serve(ready=ready.put_nowait))
    standin = await ready.get()
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{standin.control_url}/report") as response:
            assert response.status == 200
        serving.cancel()
        await asyncio.wait([serving])
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(f"{standin.control_url}/report")
