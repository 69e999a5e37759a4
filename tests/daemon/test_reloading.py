"""A changed configuration is taken over by a running daemon, or refused as a whole."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import Certificates, Events, FakeClock, MakeSettings, settings_of, soon

from asyncchatd import log
from asyncchatd.config.loading import load
from asyncchatd.config.settings import Settings
from asyncchatd.control.shapes import read_time
from asyncchatd.daemon import systemd
from asyncchatd.daemon.reloading import NotTakenOver, differences, fixed, read_anew
from asyncchatd.gms.client import GmsClient
from asyncchatd.gms.pacing import InFlight, Landing, Pacer, RetryBudget
from asyncchatd.listening.certificates import of_file as certificate_end
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model.data import TokenNews, Tokens
from asyncchatd.standin.health_page import HealthFormat, write_health
from asyncchatd.standin.messages import write_push, write_reply
from asyncchatd.stores import StoreError
from asyncchatd.stores.sqlite import SqliteStore
from daemon.test_run import SECRET, Daemon, Gms, Systemd, ready

pytestmark = pytest.mark.usefixtures("events")


# -- what changed ----------------------------------------------------------------------------------------


def test_differences_are_named_by_their_keys(make_settings: MakeSettings) -> None:
    one = [{"name": "chat-1", "health_url": "http://a/"}, {"name": "chat-2", "health_url": "http://b/"}]
    other = [{"name": "chat-2", "health_url": "http://c/"}, {"name": "chat-3", "health_url": "http://d/"}]
    before = make_settings(ping={"interval": "30m"}, chat_servers=one)
    after = make_settings(ping={"interval": "20m"}, restoration={"max_rate": 100.0}, chat_servers=other)
    assert differences(before, before) == []
    assert differences(before, after) == [
        "ping.interval",
        "restoration.max_rate",
        "chat_server[chat-1]",
        "chat_server[chat-2]",
        "chat_server[chat-3]",
    ]


def test_a_secret_of_the_file_is_a_difference_and_never_its_name(make_settings: MakeSettings) -> None:
    before = make_settings(receiver={"secrets": ["push-secret-1"]})
    after = make_settings(receiver={"secrets": ["push-secret-2"]})
    assert differences(before, after) == ["receiver.secrets"]


def test_to_have_a_gateway_or_none_is_a_difference_that_needs_a_restart(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("ab" * 32)
    section = {"key_file": "keys", "node_group": "gms"}
    without, with_one = make_settings(), make_settings(gateway=section)
    other = make_settings(gateway={**section, "origins": ["https://shop.example"]})
    assert differences(without, without) == []
    for before, after in ((without, with_one), (with_one, without)):
        assert differences(before, after) == fixed(differences(before, after)) == ["gateway.listen"]
    assert differences(with_one, other) == ["gateway.origins"]
    assert fixed(["gateway.origins"]) == []


def test_a_database_that_lies_elsewhere_now_is_a_difference(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """The configuration is a link, and the link shows to another directory now."""
    before = make_settings(store={"url": "sqlite:///sessions.db"})
    after = before.model_copy(update={"directory": tmp_path / "other"})
    assert differences(before, after) == ["store.url"]


def test_ports_store_and_limits_of_the_listeners_are_fixed() -> None:
    stuck = [
        "receiver.listen",
        "control.listen",
        "store.url",
        "store.keys_file",
        "log.format",
        "receiver.max_body",
    ]
    assert fixed(stuck) == stuck
    assert fixed(["gms.nodes", "ping.interval", "chat_server[chat-1]", "receiver.secrets", "log.level"]) == []
    # What only the commands go by that talk to the daemon.
    assert fixed(["control.tls_ca", "control.client_certificate", "control.client_key"]) == []


def write(path: Path, node: str, more: str = "", **sections: str) -> Settings:
    """The configuration file, and what it says."""
    path.parent.mkdir(exist_ok=True)
    tables = {
        "receiver": f'listen = "127.0.0.1:0"\nsecrets = ["{SECRET}"]',
        "control": 'listen = "127.0.0.1:0"',
        "gms": f'nodes = ["{node}"]\ntimeout = "5s"\nconnect_timeout = "1s"',
        "store": 'url = "sqlite:///sessions.db"',
    }
    text = "\n".join(f"[{name}]\n{keys}" for name, keys in (tables | sections).items())
    path.write_text(f"{text}\n{more}\n")
    return load(path)


def test_a_wrong_file_is_refused_with_every_problem_in_it(tmp_path: Path) -> None:
    path = tmp_path / "asyncchatd.toml"
    before = write(path, "http://gms-1/genesys")
    path.write_text(path.read_text().replace('"5s"', '"5"') + '[pong]\nx = 1\n[ping]\ninterval = "soon"')
    with pytest.raises(
        NotTakenOver, match=r"gms\.timeout: .*; .*pong: unknown key.*; .*ping\.interval"
    ) as refused:
        read_anew(path, before)
    assert "asyncchatd check" in refused.value.advice


def test_what_needs_a_restart_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "asyncchatd.toml"
    before = write(path, "http://gms-1/genesys")
    write(path, "http://gms-1/genesys", control='listen = "127.0.0.1:8092"', ping='interval = "20m"')
    with pytest.raises(
        NotTakenOver, match=r"^control\.listen cannot be changed while the daemon runs$"
    ) as refused:
        read_anew(path, before)
    assert refused.value.advice.startswith("restart the daemon")


def test_tls_files_that_are_no_use_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "asyncchatd.toml"
    before = write(path, "https://gms-1/genesys")
    (tmp_path / "ca.pem").write_text("no certificate")
    write(path, "https://gms-1/genesys", gms='nodes = ["https://gms-1/genesys"]\nca_file = "ca.pem"')
    with pytest.raises(NotTakenOver, match="TLS files"):
        read_anew(path, before)


# -- the whole daemon ------------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    listening = Systemd(tmp_path / "notify.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify.sock"))
    yield listening
    listening.close()


class Node2(Gms):
    """A GMS node that answers with the key it was asked with."""

    async def refresh(self, request: web.Request) -> web.Response:
        await super().refresh(request)
        return web.Response(
            body=write_reply(0, TokenNews(request.match_info["chat_id"], None, None, "117"), next_position=9)
        )


@asynccontextmanager
async def gms_node() -> AsyncIterator[Node2]:
    node = Node2()
    app = web.Application()
    app.router.add_post("/genesys/2/chat/{service}/{chat_id}/refresh", node.refresh)
    async with TestServer(app) as server:
        node.base = str(server.make_url("/genesys"))
        yield node


@asynccontextmanager
async def chat_server(alias: str = "117", pid: str = "4711") -> AsyncIterator[str]:
    """A Chat Server's health page."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=write_health(HealthFormat.JSON, alias, pid))

    app = web.Application()
    app.router.add_get("/", page)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def reloaded(daemon: Daemon, manager: Systemd) -> None:
    """SIGHUP, and what systemd hears of it until it is over."""
    os.kill(os.getpid(), signal.SIGHUP)
    await manager.hears("RELOADING=1\nMONOTONIC_USEC=")
    await manager.hears("READY=1")


async def push(daemon: Daemon, secret: str, body: bytes = b"{}") -> int:
    async with daemon.http.post(f"{daemon.receiver}/push/{secret}", data=body) as response:
        return response.status


@pytest.mark.slow
async def test_another_file_is_taken_over_while_the_daemon_runs(
    tmp_path: Path, events: Events, manager: Systemd
) -> None:
    path = tmp_path / "etc" / "asyncchatd.toml"
    async with AsyncExitStack() as around:
        old, new = [await around.enter_async_context(gms_node()) for _ in range(2)]
        page = await around.enter_async_context(chat_server())
        async with ready(write(path, old.base), events, manager) as daemon:
            await daemon.register()
            assert await push(daemon, "push-secret-2") == 404
            write(
                path,
                new.base,
                f'[[chat_server]]\nname = "chat-1"\nhealth_url = "{page}"',
                receiver='listen = "127.0.0.1:0"\nsecrets = ["push-secret-2"]',
                control='listen = "127.0.0.1:0"\ntoken = "control-token-number-2"',
                restoration="max_rate = 50.0",
                log='level = "warning"',
            )
            await reloaded(daemon, manager)
            # pushes by the new secret, and by no other
            assert await push(daemon, "push-secret-2") == 400
            assert await push(daemon, SECRET) == 404
            said = write_push("device-1", {"session-id": "chat-1"})
            assert await push(daemon, "push-secret-2", said) == 200
            assert not events.of(Event.PUSH_RECEIVED)
            # the control API with the new token
            assert (await daemon.call("GET", "/v1/status"))[0] == 401
            daemon.http.headers["Authorization"] = "Bearer control-token-number-2"
            # pings to the new node
            await daemon.call("POST", "/v1/sessions/chat-1/ping")
            await soon(new.arrived.wait())
            assert old.keys == []
            # the new Chat Server is watched, and the new rate shown
            await daemon.until(lambda said: "'state': 'up'" in str(said["servers"]), "/v1/servers")
            _, status = await daemon.call("GET", "/v1/status")
            assert isinstance(status["pings"], dict)
            assert (status["pings"]["max_rate"], status["pings"]["nodes"][0]["node"]) == (50.0, new.base)
    assert events.one(Event.DAEMON_READY)
    # The level is the new one: the reload itself is told below it, and so is the stop.
    assert not events.of(Event.CONFIG_RELOADED)
    assert not events.of(Event.DAEMON_STOPPED)
    assert "push-secret-2" not in events.text


async def test_the_last_token_stays_while_systemd_holds_an_address_that_others_reach(
    tmp_path: Path, events: Events, manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the file alone only this host could come; without a token everybody would control every session."""
    path = tmp_path / "etc" / "asyncchatd.toml"
    listener = socket.create_server(("0.0.0.0", 0))
    listener.setblocking(False)
    monkeypatch.setattr(systemd, "listen_fds", lambda: {"control": [listener]})
    async with gms_node() as gms:
        guarded = 'listen = "127.0.0.1:0"\ntoken = "control-token-number-1"'
        async with ready(write(path, gms.base, control=guarded), events, manager) as daemon:
            write(path, gms.base)
            await reloaded(daemon, manager)
            assert (await daemon.call("GET", "/v1/status"))[0] == 401
    assert "the socket from systemd: expected a token" in str(events.one(Event.CONFIG_REFUSED)["cause"])


@pytest.mark.slow
async def test_who_looked_on_with_a_token_that_counts_no_more_is_let_go(
    tmp_path: Path, events: Events, manager: Systemd
) -> None:
    path = tmp_path / "etc" / "asyncchatd.toml"

    def guarded(token: str, most: int) -> Settings:
        control = f'listen = "127.0.0.1:0"\ntoken = "{token}"'
        return write(path, gms.base, control=control, restoration=f"max_rate = {most}.0")

    async with gms_node() as gms, ready(guarded("control-token-number-1", 50), events, manager) as daemon:
        headers = {"Authorization": "Bearer control-token-number-1"}
        async with daemon.http.get(f"{daemon.control}/v1/live", headers=headers) as looking:
            guarded("control-token-number-1", 60)
            await reloaded(daemon, manager)
            while b'"max_rate":60.0' not in await soon(looking.content.readline()):
                pass  # another change is none of its business
            guarded("control-token-number-2", 60)
            await reloaded(daemon, manager)
            await soon(looking.content.read())
        assert (await daemon.call("GET", "/v1/status"))[0] == 401


@pytest.mark.slow
async def test_a_right_that_was_taken_away_is_gone_at_once(
    tmp_path: Path, events: Events, manager: Systemd
) -> None:
    path, tokens = tmp_path / "etc" / "asyncchatd.toml", tmp_path / "etc" / "tokens"
    path.parent.mkdir()

    def guarded(rights: str) -> Settings:
        tokens.write_text(f"control-token-number-1 {rights}\n")
        return write(path, gms.base, control='listen = "127.0.0.1:0"\ntoken_file = "tokens"')

    async with gms_node() as gms, ready(guarded("read operate"), events, manager) as daemon:
        daemon.http.headers["Authorization"] = "Bearer control-token-number-1"
        async with daemon.http.get(f"{daemon.control}/v1/live") as looking:
            assert (await daemon.call("POST", "/v1/sessions/nobody/ping"))[0] == 404
            guarded("operate")
            await reloaded(daemon, manager)
            await soon(looking.content.read())  # it ends
        assert (await daemon.call("GET", "/v1/status"))[0] == 403
        guarded("read")
        await reloaded(daemon, manager)
        assert (await daemon.call("GET", "/v1/status"))[0] == 200
        assert (await daemon.call("POST", "/v1/sessions/nobody/ping"))[0] == 403
        tokens.write_text("control-token-number-1 reed\n")
        await reloaded(daemon, manager)
    assert [each["changed"] for each in events.of(Event.CONFIG_RELOADED)] == [["control.token_file"]] * 2
    assert "line 1 of this file" in str(events.one(Event.CONFIG_REFUSED)["cause"])
    assert "control-token-number-1" not in events.text


@pytest.mark.slow
async def test_what_was_taken_over_is_told(tmp_path: Path, events: Events, manager: Systemd) -> None:
    path = tmp_path / "etc" / "asyncchatd.toml"
    async with gms_node() as gms, ready(write(path, gms.base), events, manager) as daemon:
        await reloaded(daemon, manager)
        write(
            path, gms.base, ping='interval = "20m"', store='url = "sqlite:///sessions.db"\nkeep_ended = "1d"'
        )
        await reloaded(daemon, manager)
    assert [each["changed"] for each in events.of(Event.CONFIG_RELOADED)] == [
        [],
        ["store.keep_ended", "ping.interval"],
    ]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (
            {"receiver": f'listen = "127.0.0.1:1"\nsecrets = ["{SECRET}"]'},
            "receiver.listen cannot be changed",
        ),
        ({"receiver": 'listen = "127.0.0.1:0"\nsecrets = ["no/secret"]'}, "receiver.secrets"),
    ],
)
async def test_a_refused_file_changes_nothing_and_the_log_says_why(
    tmp_path: Path, events: Events, manager: Systemd, wrong: dict[str, str], why: str
) -> None:
    path = tmp_path / "etc" / "asyncchatd.toml"
    async with gms_node() as gms, ready(write(path, gms.base), events, manager) as daemon:
        text = path.read_text()
        path.write_text(
            text.replace(text.split("[receiver]\n")[1].split("\n[control]")[0], wrong["receiver"])
            + "[restoration]\nmax_rate = 5.0\n"
        )
        await reloaded(daemon, manager)
        assert why in str(events.one(Event.CONFIG_REFUSED)["cause"])
        assert await push(daemon, SECRET) == 400
        _, status = await daemon.call("GET", "/v1/status")
        assert isinstance(status["pings"], dict)
        assert status["pings"]["max_rate"] == 200.0
        configuration = status["configuration"]
        assert isinstance(configuration, dict)
        refused = configuration["refused"]
        assert why in refused["cause"]
        assert refused["advice"]
        assert "no/secret" not in str(status)
        assert _sample("asyncchatd_config_last_reload_successful") == 0
        taken_over_at = _sample("asyncchatd_config_last_reload_success_timestamp_seconds")
        assert taken_over_at == read_time(configuration["taken_over_at"]).timestamp()
        # A file that is right again is taken over.
        path.write_text(text + "[restoration]\nmax_rate = 7.0\n")
        await reloaded(daemon, manager)
        _, status = await daemon.call("GET", "/v1/status")
        assert isinstance(status["pings"], dict)
        assert status["pings"]["max_rate"] == 7.0
        assert isinstance(status["configuration"], dict)
        assert status["configuration"]["refused"] is None
        assert read_time(status["configuration"]["taken_over_at"]) > read_time(refused["at"])
        assert _sample("asyncchatd_config_last_reload_successful") == 1
        assert _sample("asyncchatd_config_last_reload_success_timestamp_seconds") > taken_over_at
    assert "no/secret" not in events.text


def _sample(name: str, **labels: str) -> float:
    value = metrics.REGISTRY.get_sample_value(name, labels)
    assert value is not None
    return value


@pytest.mark.slow
async def test_a_renewed_client_certificate_is_the_one_whose_end_is_told(
    tmp_path: Path, events: Events, manager: Systemd, certificates: Certificates
) -> None:
    pair = certificates.client.read_bytes() + certificates.client_key.read_bytes()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "client.pem").write_bytes(pair)
    keys = 'nodes = ["https://127.0.0.1:9/genesys"]\nclient_cert = "client.pem"'
    path, key = tmp_path / "etc" / "asyncchatd.toml", "gms.client_cert"
    name = "asyncchatd_certificate_not_after_timestamp_seconds"
    async with ready(write(path, "", gms=keys), events, manager) as daemon:
        assert _sample(name, key=key) == certificate_end(certificates.client).timestamp()
        pair = certificates.server.read_bytes() + certificates.server_key.read_bytes()
        (tmp_path / "etc" / "client.pem").write_bytes(pair)
        await reloaded(daemon, manager)
        assert _sample(name, key=key) == certificate_end(certificates.server).timestamp()
        write(path, "", gms='nodes = ["https://127.0.0.1:9/genesys"]')
        await reloaded(daemon, manager)
        assert metrics.REGISTRY.get_sample_value(name, {"key": key}) is None


@pytest.mark.slow
async def test_a_shorter_interval_brings_silent_sessions_forward(
    tmp_path: Path, events: Events, manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the disk is full for a while."""
    path = tmp_path / "etc" / "asyncchatd.toml"
    async with gms_node() as gms:
        before = write(path, gms.base, ping='interval = "10000d"')
        async with ready(before, events, manager) as daemon:
            await daemon.register()
            write(path, gms.base, ping='interval = "100ms"')
            pull_in, tries = SqliteStore.pull_in, [0]

            async def full_at_first(store: SqliteStore, **when: float) -> int:
                tries[0] += 1
                if tries[0] == 1:
                    raise StoreError("the disk is full")
                return await pull_in(store, **when)  # type: ignore[arg-type]

            monkeypatch.setattr(SqliteStore, "pull_in", full_at_first)
            await reloaded(daemon, manager)
            await soon(gms.arrived.wait())
    assert tries == [2]
    assert events.one(Event.STORE_FAILED)["cause"] == "the disk is full"


async def test_a_ping_in_flight_is_not_cut_off_by_a_reload(
    tmp_path: Path, events: Events, manager: Systemd
) -> None:
    path = tmp_path / "etc" / "asyncchatd.toml"
    async with gms_node() as old, gms_node() as new:
        old.go_on.clear()
        async with ready(write(path, old.base), events, manager) as daemon:
            await daemon.register()
            await daemon.call("POST", "/v1/sessions/chat-1/ping")
            await soon(old.arrived.wait())
            write(path, new.base)
            await reloaded(daemon, manager)
            old.go_on.set()
            await daemon.until(lambda session: session["answered_at"] is not None, "/v1/sessions/chat-1")
    assert len(old.keys) == 1
    assert new.keys == []


@pytest.mark.slow
async def test_chat_servers_come_and_go_and_change(tmp_path: Path, events: Events, manager: Systemd) -> None:
    path = tmp_path / "etc" / "asyncchatd.toml"

    def servers(**urls: str) -> str:
        return "\n".join(
            f'[[chat_server]]\nname = "{name}"\nhealth_url = "{url}"' for name, url in urls.items()
        )

    async with gms_node() as gms, chat_server("117") as one, chat_server("118") as two:
        settings = write(path, gms.base, servers(chat1=one, chat2=two))
        async with ready(settings, events, manager) as daemon:
            await daemon.until(lambda said: str(said).count("'state': 'up'") == 2, "/v1/servers")
            async with chat_server("118", pid="4712") as restarted, chat_server("119") as three:
                # chat1 goes, chat2 has another page, which is of another process, chat3 is new
                write(path, gms.base, servers(chat3=three, chat2=restarted))
                await reloaded(daemon, manager)
                await daemon.until(lambda said: str(said).count("'state': 'up'") == 2, "/v1/servers")
                _, answer = await daemon.call("GET", "/v1/servers")
                assert isinstance(answer["servers"], list)
                assert [each["name"] for each in answer["servers"]] == ["chat3", "chat2"]
                restarts = events.one(Event.SERVER_RESTARTED)
                assert (restarts["server"], restarts["previous_pid"]) == ("chat2", "4711")
                _, metrics = await daemon_metrics(daemon)
                assert 'chat_server_up{server="chat1"}' not in metrics
                assert 'chat_server_up{server="chat3"} 1.0' in metrics
                # chat1 comes back, and is the same process as before
                write(path, gms.base, servers(chat1=one, chat3=three, chat2=restarted))
                await reloaded(daemon, manager)
                await daemon.until(lambda said: str(said).count("'state': 'up'") == 3, "/v1/servers")
    assert len(events.of(Event.SERVER_RESTARTED)) == 1


async def daemon_metrics(daemon: Daemon) -> tuple[int, str]:
    async with daemon.http.get(f"{daemon.control}/metrics") as response:
        return response.status, await response.text()


# -- the parts -------------------------------------------------------------------------------------------


async def test_nodes_that_stay_keep_their_standing(make_settings: MakeSettings, clock: FakeClock) -> None:
    first = make_settings(gms={"nodes": ["http://gms-1/genesys", "http://gms-2/genesys"]}).gms
    second = make_settings(gms={"nodes": ["http://gms-2/genesys", "http://gms-3/genesys"]}).gms
    async with GmsClient(first, Pacer(1e6, clock), clock) as gms:
        resting = gms.nodes[1]
        resting.failures, resting.rests_until = 2, 100.0
        gms.reload(settings_of().model_copy(update={"gms": second}))
        assert [node.base for node in gms.nodes] == ["http://gms-2/genesys", "http://gms-3/genesys"]
        assert gms.nodes[0] is resting
        assert gms.nodes[1].failures == 0


@pytest.mark.slow
async def test_a_new_node_makes_gms_available_and_losing_it_unavailable(
    make_settings: MakeSettings, clock: FakeClock, events: Events
) -> None:
    lone = make_settings(gms={"nodes": ["http://gms-1/genesys"]}).gms
    both = make_settings(gms={"nodes": ["http://gms-1/genesys", "http://gms-2/genesys"]}).gms
    async with GmsClient(lone, Pacer(1e6, clock), clock) as gms:
        [node] = gms.nodes
        node.failures, node.rests_until, node.cause = 1, 100.0, "connect"
        gms.reload(settings_of().model_copy(update={"gms": lone}))
        assert not gms.available
        gms.reload(settings_of().model_copy(update={"gms": both}))
        assert gms.available
        assert gms.slots() is None
    assert events.one(Event.GMS_UNAVAILABLE)["cause"] == "connect"
    assert events.one(Event.GMS_AVAILABLE)["node"] == "http://gms-2/genesys"


async def test_requests_after_a_reload_show_the_new_certificate_and_headers(
    make_settings: MakeSettings, clock: FakeClock, certificates: Certificates
) -> None:
    """Connections made with the old one are not used for them."""
    seen: list[tuple[bool, str]] = []

    async def refresh(request: web.Request) -> web.Response:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peercert")
        seen.append((bool(peer), request.headers["apikey"]))
        return web.Response(body=write_reply(0, TokenNews("chat-1", None, None, "117"), next_position=9))

    app = web.Application()
    app.router.add_post("/genesys/2/chat/{service}/{chat_id}/refresh", refresh)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
    tls.load_cert_chain(certificates.server, certificates.server_key)
    tls.verify_mode = ssl.CERT_OPTIONAL
    server = TestServer(app, scheme="https", host="127.0.0.1")
    await server.start_server(ssl=tls)
    trust = {"nodes": [str(server.make_url("/genesys"))], "ca_file": str(certificates.ca)}
    shown = {"client_cert": str(certificates.client), "client_key": str(certificates.client_key)}
    plain = make_settings(gms={**trust, "headers": {"apikey": "apikey-one"}}).gms
    mutual = make_settings(gms={**trust, **shown, "headers": {"apikey": "apikey-two"}}).gms
    try:
        tokens = Tokens("chat-1", "user-1", "key-1", "117")
        async with GmsClient(plain, Pacer(1e6, clock), clock) as gms:
            await soon(gms.refresh("support", tokens, 3))
            gms.reload(settings_of().model_copy(update={"gms": mutual}))
            await soon(gms.refresh("support", tokens, 3))
    finally:
        await server.close()
    assert seen == [(False, "apikey-one"), (True, "apikey-two")]


async def sent(pacer: Pacer, clock: FakeClock, seconds: float) -> int:
    """Requests that may leave within this time."""
    count, end = 0, clock.monotonic() + seconds
    while clock.monotonic() < end:
        count += pacer.try_turn()
        await clock.advance(0.001)
    return count


async def test_a_lower_rate_holds_at_once(clock: FakeClock) -> None:
    pacer = Pacer(200, clock)
    assert await sent(pacer, clock, 0.9) > 170
    pacer.reload(50)
    # What left in the last second counts: more than the new rate did already.
    assert await sent(pacer, clock, 0.7) == 0
    assert await sent(pacer, clock, 1.0) <= 50


@pytest.mark.slow
async def test_a_higher_rate_is_never_passed(clock: FakeClock) -> None:
    pacer = Pacer(10, clock)
    await sent(pacer, clock, 1.0)
    pacer.reload(100)
    assert 90 <= await sent(pacer, clock, 1.0) <= 100
    assert 95 <= await sent(pacer, clock, 1.0) <= 100


async def test_who_waits_for_a_turn_waits_by_the_new_rate(clock: FakeClock) -> None:
    pacer = Pacer(0.01, clock)
    assert pacer.try_turn()
    waiting = asyncio.ensure_future(pacer.turn())
    await clock.advance(0.5)
    pacer.reload(100)
    await clock.advance(1.0)
    assert waiting.done()


def test_the_in_flight_limit_follows_its_ceiling(clock: FakeClock) -> None:
    in_flight = InFlight(100, 1.0, clock)
    in_flight.reload(4, 1.0)
    assert in_flight.limit == 4
    in_flight.reload(50, 1.0)

    def answered() -> None:
        while in_flight.free:
            at = in_flight.sent()
        in_flight.landed(at, Landing.ANSWERED)

    for _ in range(20):
        answered()
    # No setback so far: it grows by one for each answer, beyond the low ceiling too.
    assert in_flight.limit == 24


def test_the_retry_budget_follows_the_rate(clock: FakeClock) -> None:
    budget = RetryBudget(50, clock)
    budget.reload(3)
    assert [budget.spend() for _ in range(5)] == [True, True, True, False, False]


def test_loggers_already_in_use_take_the_new_level(events: Events) -> None:
    used = log.get_logger()
    used.debug(Event.PING_OK)
    log.set_level("error")
    used.debug(Event.PING_OK)
    used.warning(Event.PING_RETRY)
    log.set_level("info")
    used.info(Event.SERVER_UP)
    assert events.names() == ["ping_ok", "server_up"]
