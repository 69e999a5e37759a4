"""TLS of a listener: who is served, certificates that change while it serves, files that are no use."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop
from aiohttp import web
from conftest import Certificates, Events, listening, soon
from yarl import URL

from asyncchatd.config.sections.listeners import ReceiverSettings
from asyncchatd.listening import Listener, ListenError
from asyncchatd.listening import listener as listening_module
from asyncchatd.listening.certificates import of_file
from asyncchatd.listening.tls import doubts
from asyncchatd.log import metrics
from asyncchatd.log.events import Event


async def greet(_: web.Request) -> web.Response:
    return web.Response(text="hello")


def greeting() -> web.Application:
    app = web.Application()
    app.router.add_get("/", greet)
    return app


@pytest.fixture
def pair(certificates: Certificates, tmp_path: Path) -> dict[str, object]:
    """Settings with a copy of the server's certificate and key, to be replaced."""
    shutil.copy(certificates.server, tmp_path / "cert.pem")
    shutil.copy(certificates.server_key, tmp_path / "key.pem")
    return {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}


def trusting(certificates: Certificates, *, client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.ca)
    if client:
        context.load_cert_chain(certificates.client, certificates.client_key)
    return context


Talk = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(base: str, tls: ssl.SSLContext | None) -> AsyncIterator[Talk]:
    where = URL(base)
    talk = await soon(asyncio.open_connection(where.host, where.port, ssl=tls))
    try:
        yield talk
    finally:
        talk[1].close()


async def ask(talk: Talk) -> bytes:
    reader, writer = talk
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await soon(reader.readuntil(b"\r\n\r\n"))
    return head + await soon(reader.readexactly(5))


async def served(base: str, tls: ssl.SSLContext) -> bool:
    """Whether a client of this kind gets an answer."""
    try:
        async with connected(base, tls) as talk:
            return (await ask(talk)).endswith(b"hello")
    except (OSError, asyncio.IncompleteReadError):
        return False


async def shown(base: str) -> bytes:
    """The certificate a new connection is shown, whatever it is worth."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with connected(base, context) as (_, writer):
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(found, bytes)
        return found


def der(file: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(file.read_text())


# -- who is served ---------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_requests_are_answered_over_tls(certificates: Certificates, pair: dict[str, object]) -> None:
    async with (
        listening(greeting(), receiver=pair) as base,
        connected(base, trusting(certificates)) as talk,
    ):
        assert (await ask(talk)).endswith(b"hello")
        assert (await ask(talk)).endswith(b"hello")


@pytest.mark.slow
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_client_that_speaks_at_once_is_heard(
    certificates: Certificates, pair: dict[str, object], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Its first words may be there before we are ready for them. The daemon runs on uvloop, which begins to
    read at other moments than asyncio."""

    def asked(port: int) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            trusting(certificates).wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: client.recv(4096), b""))

    async def ask_many() -> None:
        async with listening(greeting(), receiver=pair) as base:
            port = URL(base).port or 0
            for _ in range(10):
                answers = await asyncio.gather(*(asyncio.to_thread(asked, port) for _ in range(10)))
                assert all(answer.endswith(b"hello") for answer in answers)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(ask_many())


@pytest.mark.slow
async def test_plain_http_and_old_versions_are_refused_with_a_word_in_the_log(
    pair: dict[str, object], events: Events
) -> None:
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    async with listening(greeting(), receiver=pair) as base:
        async with connected(base, None) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await soon(reader.readexactly(1_000))
        with pytest.warns(DeprecationWarning, match="TLS"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        assert not await served(base, old)
    causes = [str(line["cause"]) for line in events.of(Event.CLIENT_REFUSED)]
    assert causes[0] == "plain HTTP on a port with tls_certificate"
    assert all(cause.startswith("TLS: ") for cause in causes[1:]), causes


async def test_with_a_client_authority_only_its_clients_are_served(
    certificates: Certificates, pair: dict[str, object], events: Events
) -> None:
    async with listening(greeting(), receiver={**pair, "tls_client_ca": certificates.ca}) as base:
        assert await served(base, trusting(certificates, client=True))
        assert not await served(base, trusting(certificates))
    assert "certificate" in str(events.one(Event.CLIENT_REFUSED)["cause"])


async def test_who_does_not_speak_is_hung_up_on(pair: dict[str, object], events: Events) -> None:
    async with (
        listening(greeting(), header_seconds=0.1, receiver=pair) as base,
        connected(base, None) as (reader, _),
    ):
        assert await soon(reader.read()) == b""
    assert events.one(Event.CLIENT_REFUSED)["cause"] == "TLS: no handshake in time"


async def test_a_stop_does_not_wait_for_handshakes(
    certificates: Certificates, pair: dict[str, object]
) -> None:
    settings = ReceiverSettings.model_validate({"listen": "127.0.0.1:0", "secrets": ["x"], **pair})
    ours = Listener(greeting(), settings, name="receiver")
    await ours.start()
    base = f"http://{ours.addresses[0]}"
    async with connected(base, None) as (reader, _):
        assert await served(base, trusting(certificates))  # who came before was accepted before
        await soon(ours.stop(0))
        assert await soon(reader.read()) == b""


# -- certificates that change ------------------------------------------------------------------------------


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening_module, "TLS_LOOK_SECONDS", 0.01)


async def until_shown(base: str, certificate: bytes) -> None:
    async with asyncio.timeout(20):
        while await shown(base) != certificate:
            pass


@pytest.mark.usefixtures("_impatient")
async def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_stay(
    certificates: Certificates, pair: dict[str, object], tmp_path: Path, events: Events
) -> None:
    async with listening(greeting(), receiver=pair) as base, connected(base, trusting(certificates)) as talk:
        assert await shown(base) == der(certificates.server)
        for new, file in ((certificates.client, "cert.pem"), (certificates.client_key, "key.pem")):
            shutil.copy(new, tmp_path / "new")
            (tmp_path / "new").rename(tmp_path / file)
        await until_shown(base, der(certificates.client))
        assert (await ask(talk)).endswith(b"hello")
    assert events.one(Event.TLS_RENEWED)["listener"] == "receiver"


def told_end() -> float | None:
    """When, by the metrics, the certificate in use runs out."""
    name = "asyncchatd_certificate_not_after_timestamp_seconds"
    return metrics.REGISTRY.get_sample_value(name, {"key": "receiver.tls_certificate"})


@pytest.mark.slow
@pytest.mark.usefixtures("_impatient")
async def test_a_pair_that_does_not_fit_is_told_once_and_the_old_one_stays(
    certificates: Certificates, pair: dict[str, object], tmp_path: Path, events: Events
) -> None:
    async with listening(greeting(), receiver=pair) as base:
        shutil.copy(certificates.client, tmp_path / "cert.pem")
        async with asyncio.timeout(20):
            while not events.of(Event.TLS_REFUSED):
                assert await shown(base) == der(certificates.server)
        for _ in range(20):
            assert await shown(base) == der(certificates.server)
        assert told_end() == of_file(certificates.server).timestamp()
        shutil.copy(certificates.client_key, tmp_path / "key.pem")
        await until_shown(base, der(certificates.client))
        assert told_end() == of_file(certificates.client).timestamp()
    assert "does not belong" in str(events.one(Event.TLS_REFUSED)["cause"])
    assert len(events.of(Event.TLS_RENEWED)) == 1


@pytest.mark.usefixtures("_impatient")
async def test_an_authority_that_was_taken_away_lets_nobody_in_any_more(
    certificates: Certificates, pair: dict[str, object], tmp_path: Path
) -> None:
    shutil.copy(certificates.ca, tmp_path / "clients.pem")
    async with listening(greeting(), receiver={**pair, "tls_client_ca": tmp_path / "clients.pem"}) as base:
        assert await served(base, trusting(certificates, client=True))
        shutil.copy(certificates.server, tmp_path / "clients.pem")
        async with asyncio.timeout(20):
            while await served(base, trusting(certificates, client=True)):
                pass


# -- files that are no use -----------------------------------------------------------------------------------


def settings(**tls: object) -> ReceiverSettings:
    return ReceiverSettings.model_validate({"listen": "127.0.0.1:0", "secrets": ["x"], **tls})


async def test_a_pair_that_does_not_fit_is_one_readable_line_at_the_start(certificates: Certificates) -> None:
    wrong = settings(tls_certificate=certificates.server, tls_key=certificates.client_key)
    ours = Listener(greeting(), wrong, name="receiver")
    with pytest.raises(ListenError) as caught:
        await ours.start()
    assert str(caught.value) == (
        "receiver.tls_certificate and tls_key: the key does not belong to the certificate"
    )


def test_files_that_cannot_be_used_are_found(certificates: Certificates, tmp_path: Path) -> None:
    good = {"tls_certificate": certificates.server, "tls_key": certificates.server_key}
    assert list(doubts(settings(), "receiver")) == []
    (tmp_path / "nonsense").write_text("nonsense")
    for tls, key in (
        ({**good, "tls_key": certificates.client_key}, "receiver.tls_certificate"),
        ({"tls_certificate": certificates.server}, "receiver.tls_certificate"),
        ({**good, "tls_client_ca": tmp_path / "nonsense"}, "receiver.tls_client_ca"),
        ({**good, "tls_certificate": tmp_path / "nonsense"}, "receiver.tls_certificate"),
    ):
        found = [(fatal, where) for fatal, where, _ in doubts(settings(**tls), "receiver") if fatal]
        assert found == [(True, key)]


def test_a_certificate_that_is_over_or_soon_will_be_is_found(certificates: Certificates) -> None:
    tls = settings(tls_certificate=certificates.server, tls_key=certificates.server_key)
    now = datetime.now(UTC)
    [(fatal, key, message)] = doubts(tls, "control")
    assert (fatal, key) == (False, "control.tls_certificate")
    assert "CN=server expires on" in message
    for when, words in (
        (now + timedelta(days=3), "expired on"),
        (now - timedelta(days=1), "not valid before"),
    ):
        [(fatal, _, message)] = doubts(tls, "control", when)
        assert fatal
        assert words in message


def test_soon_is_the_same_for_every_certificate(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncchatd.listening.certificates.SOON", timedelta())
    tls = settings(tls_certificate=certificates.server, tls_key=certificates.server_key)
    assert list(doubts(tls, "control")) == []
