"""The clients of a control API that asks for a token, speaks TLS, or is none: the one within an event loop, and that of
the commands. Both say the same."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from conftest import Certificates, soon

from asyncchatd.config.sections.listeners import ControlSettings
from asyncchatd.config.values.addresses import Listen
from asyncchatd.control.clients import calls
from asyncchatd.control.clients.blocking import PIECE, BlockingClient
from asyncchatd.control.clients.calls import ClientError, DaemonError, Json, NoDaemon
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.listening.guard import Guard, Need
from asyncchatd.listening.listener import Listener

pytestmark = pytest.mark.usefixtures("events", "each_client")

TOKEN = "a-token-that-nobody-guesses"


async def status(_: web.Request) -> web.Response:
    return web.json_response({"ready": True})


@asynccontextmanager
async def served(**control: object) -> AsyncIterator[ControlSettings]:
    """A control API with these settings; gives them as a command reads them."""
    app = web.Application()
    app.router.add_get("/v1/status", status)
    settings = ControlSettings.model_validate({"listen": "127.0.0.1:0", **control})
    listener = Listener(
        Guard(settings).before(app, {("GET", "/v1/status"): Need()}), settings, name="control"
    )
    await listener.start()
    try:
        yield ControlSettings.model_validate({**control, "listen": listener.addresses[0]})
    finally:
        await listener.stop(0)


@pytest.fixture(params=[ControlClient, BlockingClient])
def each_client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client that `ask` asks by."""
    monkeypatch.setattr(f"{__name__}.asked_by", request.param)


asked_by: type[ControlClient | BlockingClient] = ControlClient


async def ask(settings: ControlSettings, environ: Mapping[str, str] | None = None) -> object:
    client = asked_by.of(settings, environ or {})
    return (await soon(status_from(client)))["ready"]


async def status_from(client: ControlClient | BlockingClient) -> Json:
    if isinstance(client, BlockingClient):
        return await asyncio.to_thread(client.status)
    async with client:
        return await client.status()


def at(listen: str) -> ControlClient | BlockingClient:
    return asked_by(Listen.parse(listen))


# -- tokens ------------------------------------------------------------------------------------------------


async def test_the_token_of_the_configuration_is_sent() -> None:
    async with served(token=TOKEN) as settings:
        assert await ask(settings) is True


async def test_the_token_of_the_environment_goes_before(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"# mine\n{TOKEN}\nanother\n")
    async with served(token=TOKEN) as settings:
        stale = settings.model_copy(update={"token": None})
        assert await ask(stale, {"ASYNCCHATD_TOKEN": TOKEN, "ASYNCCHATD_TOKEN_FILE": "/nowhere"}) is True
        assert await ask(stale, {"ASYNCCHATD_TOKEN_FILE": str(tmp_path / "token")}) is True
        with pytest.raises(DaemonError):
            await ask(settings, {"ASYNCCHATD_TOKEN": "another"})


async def test_a_file_of_the_daemons_may_be_named_with_the_rights_in_it(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN} read operate\nanother\n")
    async with served(token_file=file) as settings:
        stale = settings.model_copy(update={"token_file": None})
        assert await ask(stale, {"ASYNCCHATD_TOKEN_FILE": str(file)}) is True
        assert await ask(settings) is True


async def test_without_a_token_or_with_a_wrong_one_it_says_what_to_do() -> None:
    async with served(token=TOKEN) as settings:
        for environ, words in (
            ({}, "$ASYNCCHATD_TOKEN_FILE"),
            ({"ASYNCCHATD_TOKEN": "wrong-token"}, "does not know the token"),
        ):
            with pytest.raises(DaemonError) as caught:
                await ask(settings.model_copy(update={"token": None}), environ)
            assert (caught.value.status, caught.value.code) == (401, "unauthorized")
            assert words in str(caught.value)
            assert "wrong-token" not in str(caught.value)


async def test_a_token_file_that_is_no_use_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    settings = ControlSettings()
    for name, words in (("none", "cannot be read"), ("empty", "holds no token")):
        with pytest.raises(ClientError, match=words):
            asked_by.of(settings, {"ASYNCCHATD_TOKEN_FILE": str(tmp_path / name)})


# -- TLS ---------------------------------------------------------------------------------------------------


def pair(certificates: Certificates) -> dict[str, object]:
    return {"tls_certificate": certificates.server, "tls_key": certificates.server_key}


async def test_the_daemon_is_known_by_the_certificate_that_is_configured(certificates: Certificates) -> None:
    """Or, with `tls_ca`, by who signed it."""
    async with served(token=TOKEN, **pair(certificates)) as settings:
        assert await ask(settings) is True
        assert await ask(settings.model_copy(update={"tls_ca": certificates.ca})) is True


async def test_a_token_is_not_sent_to_somebody_else(certificates: Certificates, tmp_path: Path) -> None:
    """Neither to one with another certificate, nor to one whose certificate is of no known authority."""
    unreadable = tmp_path / "not-ours-to-read"
    async with served(token=TOKEN, **pair(certificates)) as settings:
        for changes, words in (
            ({"tls_certificate": certificates.client}, "another certificate"),
            ({"tls_certificate": unreadable}, "set control.tls_ca"),
            ({"tls_ca": certificates.server}, "set control.tls_ca"),
        ):
            with pytest.raises(NoDaemon, match=words):
                await ask(settings.model_copy(update=changes))


async def test_a_client_certificate_is_shown_where_it_is_asked_for(certificates: Certificates) -> None:
    async with served(**pair(certificates), tls_client_ca=certificates.ca) as settings:
        ours = {
            "tls_ca": certificates.ca,
            "client_certificate": certificates.client,
            "client_key": certificates.client_key,
        }
        assert await ask(settings.model_copy(update=ours)) is True
        with pytest.raises(ClientError, match=r"set control\.client_certificate"):
            await ask(settings)


async def test_client_files_that_are_no_use_are_told(certificates: Certificates) -> None:
    settings = ControlSettings.model_validate(
        {
            **pair(certificates),
            "client_certificate": certificates.client,
            "client_key": certificates.server_key,
        }
    )
    with pytest.raises(ClientError, match=r"control\.tls_ca, client_certificate or client_key"):
        asked_by.of(settings, {})


# -- what is not the daemon --------------------------------------------------------------------------------


@asynccontextmanager
async def strange(path: Path, *pieces: bytes, hold: bool = False) -> AsyncIterator[str]:
    """Somebody at a Unix socket who says this to whoever asks, and then closes the connection, or holds it."""
    enough = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if hold:
            await enough.wait()
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        yield f"unix:{path}"
        enough.set()


async def test_what_is_not_the_daemon_is_not_taken_for_it(tmp_path: Path) -> None:
    async with strange(
        tmp_path / "s", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    ) as listen:
        with pytest.raises(ClientError, match="is not asyncchatd's control API"):
            await soon(status_from(at(listen)))


async def test_half_an_answer_is_none(tmp_path: Path) -> None:
    half = b'HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n{"ready": true}'
    async with strange(tmp_path / "s", half) as listen:
        with pytest.raises(NoDaemon, match="no daemon answers at unix:"):
            await soon(status_from(at(listen)))


async def test_an_answer_in_chunks_is_put_together(tmp_path: Path) -> None:
    pieces = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        *(b'5\r\n{"rea\r\n', b'9\r\ndy":true}\r\n', b"0\r\n\r\n"),
    )
    async with strange(tmp_path / "s", *pieces) as listen:
        assert await soon(status_from(at(listen))) == {"ready": True}


async def test_a_daemon_that_accepts_and_says_nothing_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("blocking", "client"):
        monkeypatch.setattr(f"asyncchatd.control.clients.{module}.TIMEOUT_SECONDS", 0.05)
    async with strange(tmp_path / "s", hold=True) as listen:
        with pytest.raises(NoDaemon, match="accepts connections but does not answer"):
            await soon(status_from(at(listen)))


async def test_a_socket_this_user_may_not_use_is_told_apart_from_a_daemon_that_is_gone(
    tmp_path: Path,
) -> None:
    with pytest.raises(NoDaemon, match="it is not running"):
        await soon(status_from(at(f"unix:{tmp_path / 'none'}")))
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(path))
        path.chmod(0)
        why = "is not running" if os.geteuid() == 0 else "may not use the socket"
        with pytest.raises(NoDaemon, match=why):
            await soon(status_from(at(f"unix:{path}")))


@pytest.mark.parametrize("systemd", [True, False])
async def test_systemctl_is_advised_where_systemd_runs(
    systemd: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "SYSTEMD_RUNS", str(tmp_path if systemd else tmp_path / "none"))
    with pytest.raises(NoDaemon, match="start it with asyncchatd run") as refused:
        await soon(status_from(at(f"unix:{tmp_path / 'none'}")))
    assert ("see systemctl" in str(refused.value)) == systemd


async def test_a_port_that_the_system_chooses_cannot_be_asked() -> None:
    with pytest.raises(NoDaemon, match="a port the system chooses"):
        await soon(status_from(at("127.0.0.1:0")))


# -- what is sent ------------------------------------------------------------------------------------------


async def test_a_refusal_before_all_was_sent_is_understood(tmp_path: Path) -> None:
    """As of a token that may not register, while megabytes are under way."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        said = b'{"error": {"code": "forbidden", "message": "this token may not register"}}'
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
        await writer.drain()
        while await reader.read(PIECE):  # a daemon drains, so that its answer is not lost with the connection
            pass
        writer.close()

    path = tmp_path / "s"
    async with await asyncio.start_unix_server(refuse, path):
        client = BlockingClient(Listen(path=str(path)))
        with pytest.raises(DaemonError, match="may not register"):
            await soon(asyncio.to_thread(client.register, b"{}\n" * PIECE))


async def test_a_page_follows_the_other_until_there_are_enough(tmp_path: Path) -> None:
    asked: list[str] = []

    async def page(request: web.Request) -> web.Response:
        asked.append(request.query_string)
        after = int(request.query.get("after", "0"))
        sessions = [{"chat_id": str(number)} for number in range(after, after + int(request.query["limit"]))]
        return web.json_response({"sessions": sessions, "next": str(after + len(sessions))})

    app = web.Application()
    app.router.add_get("/v1/sessions", page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    try:
        client = at(f"unix:{tmp_path / 's'}")
        if isinstance(client, BlockingClient):
            found = await asyncio.to_thread(client.sessions, limit=1_500, alias="117")
        else:
            async with client:
                found = await client.sessions(limit=1_500, alias="117")
    finally:
        await runner.cleanup()
    assert found == {"sessions": [{"chat_id": str(number)} for number in range(1_500)], "next": "1500"}
    assert asked == ["alias=117&limit=1000", "alias=117&limit=500&after=1000"]
