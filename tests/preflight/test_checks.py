"""What `asyncchatd check` finds in a file, and `check --connect` in the world, on real sockets."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import Certificates, listening
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from asyncchatd.config.loading import load
from asyncchatd.config.settings import Settings
from asyncchatd.listening import INSTANCE, sockets
from asyncchatd.model.findings import Finding, Level
from asyncchatd.preflight.checks import check
from asyncchatd.preflight.connecting import connect
from asyncchatd.preflight.wording import area
from asyncchatd.stores import make_store
from asyncchatd.stores.sqlite import back_up

GOOD_SECRET = "a-secret-of-some-length"


def write(directory: Path, more: str = "", **sections: str) -> Path:
    tables = {
        "receiver": f'secrets = ["{GOOD_SECRET}"]\nlisten = "127.0.0.1:0"',
        "control": 'listen = "127.0.0.1:0"',
        "gms": 'nodes = ["http://127.0.0.1:9/genesys"]\nservice = "support"',
    } | sections
    path = directory / "asyncchatd.toml"
    path.write_text("\n".join(f"[{name}]\n{keys}" for name, keys in tables.items()) + f"\n{more}\n")
    path.chmod(0o600)
    return path


SERVER = '[[chat_server]]\nname = "chat-1"\nhealth_url = "http://127.0.0.1:9/"\n'


def doubts(path: Path) -> dict[str, str]:
    """The warnings and errors, by key; each must say what to do."""
    findings = [finding for finding in check(path) if finding.level is not Level.OK]
    assert all(finding.advice for finding in findings)
    return {finding.key: finding.message for finding in findings}


def test_a_file_without_doubts_is_just_valid(tmp_path: Path) -> None:
    path = write(tmp_path, SERVER)
    assert check(path) == [Finding(Level.OK, "", f"{path} is valid")]


def test_every_problem_of_a_file_is_an_error_with_the_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path, watcher='intervall = "5s"\nfall = 0')
    findings = check(path)
    assert [(finding.level, finding.key) for finding in findings] == [
        (Level.ERROR, "watcher.intervall"),
        (Level.ERROR, "watcher.fall"),
    ]
    assert findings[0].advice == "did you mean watcher.interval?"
    assert "line 10" in findings[0].message


def test_metrics_that_other_hosts_reach_are_for_those_of_prometheus(tmp_path: Path) -> None:
    for section, doubtful in (
        ('listen = ":8095"', True),
        ('listen = ":8095"\nallow = ["192.0.2.9"]', False),
        ("", False),
        (f'listen = "unix:{tmp_path}/metrics.sock"', False),
    ):
        found = doubts(write(tmp_path, SERVER, metrics=section))
        assert ("metrics.listen" in found) is doubtful, section


def test_the_shipped_file_is_valid_and_its_secret_doubtful() -> None:
    shipped = Path(__file__).parents[2] / "etc" / "asyncchatd.toml"
    assert check(shipped)[0].level is Level.OK
    assert "easy to guess" in doubts(shipped)["receiver.secrets"]


@pytest.mark.parametrize(
    ("sections", "key", "words"),
    [
        ({"receiver": 'secrets = ["short"]'}, "receiver.secrets", "easy to guess"),
        (
            {"gms": 'nodes = ["http://a/"]\ntimeout = "20s"\nservice = "s"'},
            "restoration.lease",
            "before gms.timeout",
        ),
        ({"gms": 'nodes = ["http://a/"]'}, "gms.service", "customer-support"),
        ({"gms": 'nodes = ["http://a/"]\nservice = "s"\nusername = "u"'}, "gms.nodes", "in the clear"),
        ({"ping": 'interval = "20h"'}, "ping.interval", "flex-push-timeout"),
        ({"store": 'url = "memory:"'}, "store.url", "lost at every stop"),
        (
            {"control": 'listen = ":8092"\ntoken = "long-enough-to-be-no-guess"'},
            "control.listen",
            "token goes there in the clear",
        ),
        ({"control": 'token = "short"'}, "control.token", "easy to guess"),
        (
            {"control": 'listen = "unix:/run/c.sock"\ntrust_socket = true'},
            "control.trust_socket",
            "whoever may open unix:/run/c.sock",
        ),
        (
            {"control": 'listen = "unix:/c"\ntrust_socket = true\ntoken = "long-enough-to-be-no-guess"'},
            "control.trust_socket",
            "trusted with nothing",
        ),
        (
            {"receiver": 'secrets = ["x9PbqvT2mVn4Rz7K"]\nlisten = "unix:/r"\nallow = ["10.0.0.0/8"]'},
            "receiver.allow",
            "Unix",
        ),
    ],
)
def test_what_is_valid_but_hardly_meant(
    tmp_path: Path, sections: dict[str, str], key: str, words: str
) -> None:
    found = doubts(write(tmp_path, SERVER, **sections))
    assert set(found) == {key}
    assert words in found[key]


@pytest.mark.parametrize(
    ("rights", "words"),
    [
        ("", "token goes there in the clear"),
        ("read", "token goes there in the clear"),
        ("keys", "in the clear, and so do secure keys"),
        ("events", "in the clear, and so do texts of the chats"),
    ],
)
def test_what_goes_to_other_hosts_in_the_clear_is_named(tmp_path: Path, rights: str, words: str) -> None:
    (tmp_path / "tokens").touch(0o600)
    (tmp_path / "tokens").write_text(f"long-enough-to-be-no-guess {rights}")
    control = 'listen = ":8092"\ntoken_file = "tokens"'
    found = doubts(write(tmp_path, SERVER, control=control))
    assert set(found) == {"control.listen"}
    assert found["control.listen"].endswith(words)


def test_tls_files_that_are_no_use_are_errors(certificates: Certificates, tmp_path: Path) -> None:
    pair = f'tls_certificate = "{certificates.server}"\ntls_key = "{certificates.client_key}"'
    path = write(tmp_path, SERVER, control=pair)
    [finding] = [finding for finding in check(path) if finding.level is Level.ERROR]
    assert finding.key == "control.tls_certificate"
    assert "does not belong" in finding.message
    assert "replace the file" in finding.advice


def test_watching_nothing_or_one_page_twice_is_doubtful(tmp_path: Path) -> None:
    assert set(doubts(write(tmp_path))) == {"chat_server"}
    twice = SERVER + SERVER.replace("chat-1", "chat-2")
    assert "that of chat-1" in doubts(write(tmp_path, twice))["chat_server[1].health_url"]


def test_secrets_that_others_can_read_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, SERVER)
    path.chmod(0o644)
    assert "can be read by others" in doubts(path)[""]
    secrets = tmp_path / "push-secrets"
    secrets.write_text(f"{GOOD_SECRET}\n")
    secrets.chmod(0o640)
    path = write(tmp_path, SERVER, receiver='secrets_file = "push-secrets"')
    path.chmod(0o644)
    assert set(doubts(path)) == {"receiver.secrets_file"}
    secrets.chmod(0o600)
    assert doubts(path) == {}


def test_store_keys_that_others_can_read_are_told(tmp_path: Path) -> None:
    keys = tmp_path / "store-keys"
    keys.write_text("ab" * 32)
    keys.chmod(0o640)
    assert set(doubts(write(tmp_path, SERVER, store='keys_file = "store-keys"'))) == {"store.keys_file"}


def test_files_for_tls_are_tried(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    tls = 'nodes = ["https://gms/"]\nservice = "s"\nca_file = "ca.pem"'
    assert "cannot be used" in doubts(write(tmp_path, SERVER, gms=tls))["gms.ca_file"]


# With --connect.

Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


def text(body: str, status: int = 200) -> Page:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, status=status)

    return answer


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Page], Awaitable[str]]]:
    """Starts a server that answers everything so; returns its address."""
    servers: list[TestServer] = []

    async def start(page: Page) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", page)
        servers.append(TestServer(app))
        await servers[-1].start_server()
        return str(servers[-1].make_url("/")).rstrip("/")

    yield start
    for server in servers:
        await server.close()


Serve = Callable[[Page], Awaitable[str]]


async def found(settings: Settings, level: Level | None = None) -> dict[str, str]:
    findings = await connect(settings)
    assert all(finding.advice for finding in findings if finding.level not in {Level.OK, Level.NOTE})
    return {finding.key: finding.message for finding in findings if level in {None, finding.level}}


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def chat_server(url: str, more: str = "", name: str = "chat-1") -> str:
    return f'[[chat_server]]\nname = "{name}"\nhealth_url = "{url}/health"\n{more}\n'


async def test_all_is_well(tmp_path: Path, serve: Serve) -> None:
    node = await serve(text("ONLINE"))
    server = await serve(text('{"app_dbid": 117, "process_os_pid": 4242}'))
    settings = load(write(tmp_path, chat_server(server), gms=f'nodes = ["{node}/genesys"]'))
    findings = await found(settings)
    untried = await found(settings, Level.NOTE)
    assert list(untried) == ["gms.service"]
    assert await found(settings, Level.OK) | untried == findings
    assert findings["chat_server[0]"] == "chat-1: app_dbid 117, process_os_pid 4242"
    assert findings["gms.nodes[0]"] == f"{node}/genesys is GMS and says ONLINE"
    assert "will be made at the next start, empty: expected at the first start only" in findings["store.url"]
    assert findings["receiver.listen"] == "127.0.0.1:0 is free"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "more", "key", "words"),
    [
        (
            "app_dbid=117\nprocess_os_pid=1",
            "app_dbid = 118",
            "chat_server[0].app_dbid",
            "118 is configured, but",
        ),
        ("process_os_pid=1", "", "chat_server[0].app_dbid", "does not say its app_dbid"),
        ("app_dbid=117", "", "chat_server[0].health_url", "does not say its process_os_pid"),
        ("<html>Welcome</html>", "", "chat_server[0].health_url", "cannot be read"),
        (
            "app_dbid=1\nprocess_os_pid=1",
            'uptime_counter = "up"',
            "chat_server[0].uptime_counter",
            "named up",
        ),
    ],
)
async def test_a_health_page_that_falls_short(
    page: str, more: str, key: str, words: str, tmp_path: Path, serve: Serve
) -> None:
    settings = load(write(tmp_path, chat_server(await serve(text(page)), more)))
    assert words in (await found(settings))[key]


async def test_a_configured_dbid_makes_up_for_a_silent_page(tmp_path: Path, serve: Serve) -> None:
    server = await serve(text("process_os_pid=1"))
    findings = await found(load(write(tmp_path, chat_server(server, "app_dbid = 117"))), Level.OK)
    assert findings["chat_server[0]"] == "chat-1: app_dbid 117, process_os_pid 1"


async def test_two_entries_that_are_one_server(tmp_path: Path, serve: Serve) -> None:
    page = text("app_dbid=117\nprocess_os_pid=1")
    both = chat_server(await serve(page)) + chat_server(await serve(page), name="chat-2")
    findings = await found(load(write(tmp_path, both)), Level.ERROR)
    assert findings["chat_server[1]"] == "chat-2 has the app_dbid 117, as chat-1 has"


@pytest.mark.slow
async def test_a_server_that_is_not_there_and_one_that_does_not_answer(tmp_path: Path, serve: Serve) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        both = chat_server(f"http://127.0.0.1:{closed_port()}") + chat_server(
            f"http://127.0.0.1:{silent.getsockname()[1]}", name="chat-2"
        )
        settings = load(write(tmp_path, both, watcher='timeout = "700ms"'))
        findings = await found(settings, Level.ERROR)
    assert "cannot be reached: Connection refused" in findings["chat_server[0].health_url"]
    assert "cannot be reached: no answer within 700ms" in findings["chat_server[1].health_url"]


async def test_an_error_of_a_live_listener_is_a_warning(tmp_path: Path, serve: Serve) -> None:
    settings = load(write(tmp_path, chat_server(await serve(text("no", status=500)))))
    assert "answers with status 500" in (await found(settings, Level.WARNING))["chat_server[0].health_url"]


async def test_a_name_without_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    settings = load(write(tmp_path, chat_server("http://chat.invalid:4001")))
    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    findings = await found(settings, Level.ERROR)
    assert (
        findings["chat_server[0].health_url"] == "chat.invalid cannot be resolved: Name or service not known"
    )


async def test_a_name_that_nobody_can_ask_for(tmp_path: Path) -> None:
    settings = load(write(tmp_path, chat_server("http://chat..example:4001")))
    message = (await found(settings, Level.ERROR))["chat_server[0].health_url"]
    assert message.startswith("chat..example cannot be resolved")


async def test_a_health_page_is_read_as_the_watcher_reads_it(tmp_path: Path) -> None:
    """By https with the authorities of `gms.ca_file`, and where a redirect leads."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="app_dbid=117\nprocess_os_pid=1")

    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("/page")

    app = web.Application()
    app.router.add_get("/health", elsewhere)
    app.router.add_get("/page", page)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=make_certificate(tmp_path))
    try:
        gms = 'nodes = ["http://127.0.0.1:9/genesys"]\nca_file = "cert.pem"'
        settings = load(write(tmp_path, chat_server(f"https://127.0.0.1:{server.port}"), gms=gms))
        assert (await found(settings, Level.OK))["chat_server[0]"].startswith("chat-1: app_dbid 117")
    finally:
        await server.close()


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_balancers_address_is_no_servers_own(tmp_path: Path, times: int) -> None:
    answers = itertools.cycle([pid for pid in (1001, 1002) for _ in range(times)])

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=f"app_dbid=117\nprocess_os_pid={next(answers)}")

    app = web.Application()
    app.router.add_get("/health", page)
    async with TestServer(app) as server:
        settings = load(write(tmp_path, chat_server(f"http://127.0.0.1:{server.port}")))
        message = (await found(settings, Level.ERROR))["chat_server[0].health_url"]
    assert message == "several processes answer as chat-1, process_os_pid 1001 and 1002"


async def test_a_name_with_several_addresses_may_be_several_servers(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def two(host: object, port: Any, *more: Any, **named: Any) -> list[object]:
        found = look_up("127.0.0.1", port, *more, **named)
        return [
            (*each[:4], (address, each[4][1])) for each in found for address in ("127.0.0.1", "127.0.0.2")
        ]

    address = (await serve(text("app_dbid=117\nprocess_os_pid=1"))).replace("127.0.0.1", "chat.example")
    settings = load(write(tmp_path, chat_server(address), gms='nodes = ["http://127.0.0.1:9/genesys"]'))
    monkeypatch.setattr(socket, "getaddrinfo", two)
    message = (await found(settings, Level.WARNING))["chat_server[0].health_url"]
    assert message == "chat.example has the addresses 127.0.0.1 and 127.0.0.2: each may be another process"


async def test_a_health_page_that_sends_us_to_another_host_is_not_read_there(tmp_path: Path) -> None:
    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://chat.invalid/health")

    app = web.Application()
    app.router.add_get("/health", elsewhere)
    async with TestServer(app) as server:
        settings = load(write(tmp_path, chat_server(f"http://127.0.0.1:{server.port}")))
        message = (await found(settings, Level.WARNING))["chat_server[0].health_url"]
    assert message == "chat-1 redirects (status 302) to where the watcher does not follow"


async def test_a_node_that_is_not_there(tmp_path: Path) -> None:
    settings = load(write(tmp_path, gms=f'nodes = ["http://127.0.0.1:{closed_port()}/genesys"]'))
    assert "does not answer: Connection refused" in (await found(settings, Level.ERROR))["gms.nodes[0]"]


def make_certificate(
    directory: Path, *, days: float = 365, address: str = "127.0.0.1", name: str = "cert"
) -> ssl.SSLContext:
    """`cert.pem` and `key.pem`, signed by themselves; the context of a server that shows them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    key_file = directory / f"{name.replace('cert', 'key')}.pem"
    key_file.touch(0o600)
    key_file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / f"{name}.pem", key_file)
    return context


@asynccontextmanager
async def secured(context: ssl.SSLContext) -> AsyncIterator[str]:
    """The address of an https server."""
    app = web.Application()
    app.router.add_get("/1/admin/node/status", text("ONLINE"))
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=context)
    try:
        yield f"https://127.0.0.1:{server.port}"
    finally:
        await server.close()


async def test_a_node_with_a_certificate_nobody_knows(tmp_path: Path) -> None:
    async with secured(make_certificate(tmp_path)) as node:
        gms = f'nodes = ["{node}"]'
        findings = await connect(load(write(tmp_path, gms=gms)))
        [refused] = [finding for finding in findings if finding.key == "gms.nodes[0]"]
        assert "certificate is not trusted" in refused.message
        assert "gms.ca_file" in refused.advice
        trusted = await connect(load(write(tmp_path, gms=f'{gms}\nca_file = "cert.pem"')))
        answered, good = [finding for finding in trusted if finding.key == "gms.nodes[0]"]
    assert answered.message == f"{node} is GMS and says ONLINE"
    assert "is good until 20" in good.message


@pytest.mark.parametrize(
    ("days", "address", "level", "message", "advice"),
    [
        (12.5, "127.0.0.1", Level.WARNING, "in 12 days", "renewed"),
        (-3, "127.0.0.1", Level.ERROR, "certificate has expired", "renewed"),
        (
            365,
            "127.0.0.2",
            Level.ERROR,
            "certificate is not valid for '127.0.0.1'",
            "name the certificate was made for",
        ),
    ],
    ids=["soon", "expired", "another's"],
)
async def test_a_certificate_that_runs_out_or_is_anothers(
    tmp_path: Path, days: float, address: str, level: Level, message: str, advice: str
) -> None:
    async with secured(make_certificate(tmp_path, days=days, address=address)) as node:
        settings = load(write(tmp_path, gms=f'nodes = ["{node}"]\nca_file = "cert.pem"'))
        findings = [finding for finding in await connect(settings) if finding.level is level]
    [about] = [finding for finding in findings if finding.key == "gms.nodes[0]"]
    assert message in about.message
    assert advice in about.advice


async def test_a_node_that_speaks_no_tls(tmp_path: Path, serve: Serve) -> None:
    node = (await serve(text("plain"))).replace("http:", "https:")
    problems = await found(load(write(tmp_path, gms=f'nodes = ["{node}"]')), Level.ERROR)
    assert "wrong version number" in problems["gms.nodes[0]"]


def test_a_client_certificate_that_runs_out_or_does_not_fit_its_key(tmp_path: Path) -> None:
    make_certificate(tmp_path, days=3.5)
    make_certificate(tmp_path, name="other-cert")
    gms = 'nodes = ["https://gms/"]\nservice = "s"\nclient_cert = "cert.pem"\nclient_key = '
    assert "in 3 days" in doubts(write(tmp_path, SERVER, gms=f'{gms}"key.pem"'))["gms.client_cert"]
    problems = doubts(write(tmp_path, SERVER, gms=f'{gms}"other-key.pem"'))
    assert problems == {"gms.client_cert": "the TLS files cannot be used: key values mismatch"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("free", "level", "message"),
    [
        (10_000_000, Level.ERROR, "10 MB free"),
        (400_000_000, Level.WARNING, "400 MB free"),
        (5_000_000_000, Level.OK, "5.0 GB free"),
    ],
)
async def test_a_disk_that_fills_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level, message: str
) -> None:
    monkeypatch.setattr(
        "asyncchatd.stores.sqlite.file.checking.shutil.disk_usage", lambda _: SimpleNamespace(free=free)
    )
    assert message in (await found(load(write(tmp_path)), level))["store"]


def test_findings_stand_under_their_headings() -> None:
    areas = {
        key: area(Finding(Level.OK, key, ""))
        for key in ("", "gms.nodes[0]", "chat_server[1]", "ping.interval")
    }
    assert areas == {
        "": "Configuration",
        "gms.nodes[0]": "GMS",
        "chat_server[1]": "Chat Servers",
        "ping.interval": "Configuration",
    }


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("schema=a-b", "letters, digits and _ alone"),
        ("hold=soon", "a time such as 90s"),
        ("presence=perhaps", "on or off"),
    ],
)
def test_a_wrong_parameter_of_the_store_is_told_without_connecting(
    parameter: str, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path, SERVER, store=f'url = "postgresql://chats:s3cret@db-1/chats?{parameter}"')
    [finding] = [each for each in check(path) if each.level is Level.ERROR]
    assert finding.key == "store.url"
    assert finding.message.startswith(parameter)
    assert words in finding.message
    assert "s3cret" not in str(finding)


async def test_a_store_in_a_directory_that_is_not_there(tmp_path: Path) -> None:
    settings = load(write(tmp_path, store='url = "sqlite:///absent/chats.db"'))
    assert "its directory will be made" in (await found(settings, Level.OK))["store.url"]


async def test_a_store_that_is_a_directory_and_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "chats.db").mkdir()
    settings = load(write(tmp_path, store='url = "sqlite:///chats.db"'))
    assert "cannot be read and written" in (await found(settings, Level.ERROR))["store.url"]
    (tmp_path / "chats.db").rmdir()
    (tmp_path / "chats.db").touch()
    assert "will be made at the next start, empty" in (await found(settings, Level.OK))["store.url"]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_a_database_in_the_place_of_the_one_of_before_is_told_before_the_start(tmp_path: Path) -> None:
    settings = load(write(tmp_path, store='url = "sqlite:///chats.db"'))
    file = tmp_path / "chats.db"

    async def life() -> None:
        store = make_store("sqlite:///chats.db", directory=tmp_path)
        await store.open()
        await store.close()

    async def told() -> str | None:
        files = contents(tmp_path)
        told = (await found(settings, Level.WARNING)).get("store.url")
        assert contents(tmp_path) == files, "looking changes nothing"
        return told

    assert await told() is None
    await life()
    older = file.read_bytes()
    back_up("sqlite:///chats.db", tmp_path, tmp_path / "backup", 1_700_000_000_000)
    await life()
    assert await told() is None
    file.write_bytes(older)
    assert await told() == f"{file} is an older copy of the database of the last start"
    file.write_bytes((tmp_path / "backup").read_bytes())
    assert await told() == f"{file} is a backup of 2023-11-14T22:13:20.000+00:00"
    file.write_bytes(b"")
    assert await told() == f"{file} is empty, and a database was used there before"
    file.unlink()
    assert await told() == f"{file} is not there, and a database was used there before"
    await life()
    assert "a database was used there before" in str(await told()), "nobody has accepted it"
    store = make_store("sqlite:///chats.db", directory=tmp_path)
    await store.open()
    await store.accept()
    await store.close()
    assert await told() is None


async def test_too_few_open_files_for_the_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GMS opens up to 20 connections, and a shell's limit may leave 8."""
    settings = load(write(tmp_path))
    assert "receiver.max_connections" not in await found(settings)
    monkeypatch.setattr(sockets, "raise_file_limit", lambda: 256)
    [warning] = [each for each in await connect(settings) if each.key == "receiver.max_connections"]
    assert (warning.level, "it can only be 8" in warning.message) == (Level.WARNING, True)
    wanted = [settings.receiver.max_connections, *settings.connections_beside("receiver")]
    needed = sum(wanted) + sockets.FILES_KEPT
    assert f"to {needed}," in warning.advice


async def test_a_database_that_another_process_holds(tmp_path: Path) -> None:
    settings = load(write(tmp_path, store='url = "sqlite:///chats.db"'))
    store = make_store("sqlite:///chats.db", directory=tmp_path)
    await store.open()
    try:
        assert "is held by another process" in (await found(settings, Level.WARNING))["store.url"]
    finally:
        await store.close()
    assert "can be written to" in (await found(settings, Level.OK))["store.url"]


async def test_a_database_under_a_key_that_is_not_given(tmp_path: Path) -> None:
    store = make_store("sqlite:///chats.db", directory=tmp_path, keys=(b"k" * 32,))
    await store.open()
    await store.close()
    before = set(os.listdir(tmp_path))
    (tmp_path / "keys").write_text(f"{'ab' * 32}\n")
    (tmp_path / "keys").chmod(0o600)
    url = 'url = "sqlite:///chats.db"'
    for keys in ("", 'keys_file = "keys"'):
        problems = await found(load(write(tmp_path, store=f"{url}\n{keys}")), Level.ERROR)
        assert "which is not given" in problems["store.keys_file"]
    (tmp_path / "keys").write_text(f"{'ab' * 32}\n{(b'k' * 32).hex()}\n")
    settings = load(write(tmp_path, store=f'{url}\nkeys_file = "keys"'))
    assert "can be written to" in (await found(settings, Level.OK))["store.url"]
    assert set(os.listdir(tmp_path)) - before == {"asyncchatd.toml", "keys"}, "looking changes nothing"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
async def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    settings = load(write(tmp_path, store='url = "sqlite:///locked/chats.db"'))
    assert "cannot be written to" in (await found(settings, Level.ERROR))["store.url"]


@pytest.mark.slow
async def test_an_address_somebody_else_uses(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        settings = load(write(tmp_path, receiver=f'secrets = ["{GOOD_SECRET}"]\nlisten = "{listen}"'))
        findings = await found(settings, Level.ERROR)
    assert findings["receiver.listen"] == f"{listen} is in use by something else"


async def test_a_file_where_a_socket_is_to_be(tmp_path: Path) -> None:
    (tmp_path / "control.sock").write_text("a file")
    settings = load(write(tmp_path, control=f'listen = "unix:{tmp_path}/control.sock"'))
    findings = await found(settings, Level.ERROR)
    assert findings["control.listen"] == f"what is at unix:{tmp_path}/control.sock is no socket"


def daemon_says(instance: str | None, body: object = None) -> Page:
    """What a daemon answers a probe."""

    async def answer(_: web.Request) -> web.StreamResponse:
        headers = {} if instance is None else {INSTANCE: instance}
        return web.json_response({"alive": True} if body is None else body, headers=headers)

    return answer


@pytest.mark.parametrize(
    ("page", "level", "words"),
    [
        (daemon_says(None), Level.OK, "is in use, and a daemon runs"),
        (
            daemon_says("0123456789ab"),
            Level.ERROR,
            "is in use by another asyncchatd, which has another configuration",
        ),
        (daemon_says(None, ["alive"]), Level.ERROR, "is in use by something else"),
        (text("It works!"), Level.ERROR, "is in use by something else"),
        (text("no", 404), Level.ERROR, "is in use by something else"),
    ],
)
async def test_who_holds_an_address_is_told_from_a_daemon_of_this_configuration(
    page: Page, level: Level, words: str, tmp_path: Path, serve: Serve
) -> None:
    held = (await serve(page)).removeprefix("http://")
    settings = load(write(tmp_path, control=f'listen = "{held}"'))
    [about] = [each for each in await connect(settings) if each.key == "control.listen"]
    assert (about.level, about.message[: len(held) + len(words) + 1]) == (level, f"{held} {words}")


@pytest.mark.parametrize(
    ("instance", "words"),
    [
        ("ours", "is in use, and a daemon runs"),
        ("0123456789ab", "is in use by another asyncchatd, which has another configuration"),
        (None, "is in use by something else"),
    ],
)
async def test_the_address_of_the_metrics_has_no_page_for_probes_and_is_known_all_the_same(
    instance: str | None, words: str, tmp_path: Path, serve: Serve
) -> None:
    named = load(write(tmp_path)).instance if instance == "ours" else instance

    async def not_found(_: web.Request) -> web.StreamResponse:
        return web.Response(status=404, headers={} if named is None else {INSTANCE: named})

    held = (await serve(not_found)).removeprefix("http://")
    settings = load(write(tmp_path, metrics=f'listen = "{held}"'))
    assert (await found(settings))["metrics.listen"].startswith(f"{held} {words}")


async def test_the_push_address_may_be_held_by_another_one_while_ours_runs(
    tmp_path: Path, serve: Serve
) -> None:
    """As after a change of `receiver.listen` that a restart has yet to take over."""
    settings = load(write(tmp_path))
    ours = (await serve(daemon_says(settings.instance))).removeprefix("http://")
    other = (await serve(daemon_says("0123456789ab"))).removeprefix("http://")
    receiving = f'secrets = ["{GOOD_SECRET}"]\nlisten = "{other}"'
    settings = load(write(tmp_path, receiver=receiving, control=f'listen = "{ours}"'))
    findings = await found(settings)
    assert findings["control.listen"] == f"{ours} is in use, and a daemon runs"
    assert "another asyncchatd" in findings["receiver.listen"]


async def test_a_daemon_that_runs_and_holds_another_store_is_to_be_restarted(
    tmp_path: Path, serve: Serve
) -> None:
    settings = load(write(tmp_path))
    ours = (await serve(daemon_says(settings.instance))).removeprefix("http://")
    settings = load(write(tmp_path, control=f'listen = "{ours}"', store='url = "sqlite:///chats.db"'))
    assert "does not hold" in (await found(settings, Level.WARNING))["store.url"]
    store = make_store("sqlite:///chats.db", directory=tmp_path)
    await store.open()
    try:
        assert "is held by the daemon that runs" in (await found(settings))["store.url"]
    finally:
        await store.close()


@pytest.mark.slow
async def test_addresses_a_running_daemon_uses(tmp_path: Path, serve: Serve) -> None:
    daemon = (await serve(text('{"alive": true}'))).removeprefix("http://")
    with closing(socket.create_server(("127.0.0.1", 0))) as receiver:
        listen = f"127.0.0.1:{receiver.getsockname()[1]}"
        receiving = f'secrets = ["{GOOD_SECRET}"]\nlisten = "{listen}"'
        settings = load(write(tmp_path, receiver=receiving, control=f'listen = "{daemon}"'))
        findings = await found(settings, Level.OK)
    assert findings["receiver.listen"] == f"{listen} is in use, and a daemon runs"
    assert findings["control.listen"] == f"{daemon} is in use, and a daemon runs"


async def test_a_running_daemon_is_recognised_over_tls(certificates: Certificates, tmp_path: Path) -> None:
    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    pair = {"tls_certificate": certificates.server, "tls_key": certificates.server_key}
    for client_ca in ({}, {"tls_client_ca": certificates.ca}):
        app = web.Application()
        app.router.add_get("/healthz", healthz)
        async with listening(app, receiver={**pair, **client_ca}) as base:
            daemon = base.removeprefix("https://")
            keys = "".join(f'{key} = "{value}"\n' for key, value in {**pair, **client_ca}.items())
            settings = load(write(tmp_path, control=f'listen = "{daemon}"\n{keys}'))
            findings = await found(settings, Level.OK)
        assert findings["control.listen"] == f"{daemon} is in use, and a daemon runs"


async def test_addresses_that_cannot_be_had(tmp_path: Path) -> None:
    receiving = f'secrets = ["{GOOD_SECRET}"]\nlisten = "192.0.2.1:8091"'
    settings = load(write(tmp_path, receiver=receiving, control='listen = "unix:/nowhere/at/all.sock"'))
    findings = await found(settings, Level.ERROR)
    assert findings["receiver.listen"] == "192.0.2.1:8091 is not an address of this host"
    assert "No such file or directory" in findings["control.listen"]


async def test_a_unix_socket_is_free_left_over_or_in_use(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    settings = load(write(tmp_path, control=f'listen = "unix:{path}"'))
    assert (await found(settings, Level.OK))["control.listen"] == f"unix:{path} is free"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        assert (await found(settings, Level.OK))["control.listen"] == f"unix:{path} is free"
        runner = web.AppRunner(web.Application())
        await runner.setup()
        path.unlink()
        site = web.UnixSite(runner, str(path))
        await site.start()
        assert "in use by something else" in (await found(settings, Level.ERROR))["control.listen"]
        await runner.cleanup()
