"""The commands' client at a control API that asks for a token, or speaks TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from conftest import Certificates, soon

from asyncchatd.config.listeners import ControlSettings
from asyncchatd.control.client import ClientError, ControlClient, DaemonError, NoDaemon
from asyncchatd.listening.guard import Guard, Need
from asyncchatd.listening.listener import Listener

pytestmark = pytest.mark.usefixtures("events")

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


async def ask(settings: ControlSettings, environ: Mapping[str, str] | None = None) -> object:
    async with ControlClient.of(settings, environ or {}) as control:
        return (await soon(control.status()))["ready"]


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
            ControlClient.of(settings, {"ASYNCCHATD_TOKEN_FILE": str(tmp_path / name)})


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
        ControlClient.of(settings, {})
