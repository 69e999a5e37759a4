"""What `asyncchatd check` says of consumers: their secrets, their rights, and their webhooks on real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import Certificates
from standardwebhooks.webhooks import Webhook as Verifier

from asyncchatd.config.loading import load
from asyncchatd.model.findings import Finding, Level
from asyncchatd.preflight.checks import check
from asyncchatd.preflight.connecting import connect
from asyncchatd.preflight.wording import area

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOKEN = "long-enough-to-be-no-guess"


def write(directory: Path, *consumers: str, tokens: str = "") -> Path:
    """A configuration with these consumers; `webhook-secret` and `control-tokens` lie beside it."""
    for name, text in (("webhook-secret", SECRET), ("control-tokens", tokens or TOKEN)):
        if not (file := directory / name).exists():
            file.touch(0o600)
            file.write_text(f"{text}\n")
    path = directory / "asyncchatd.toml"
    path.write_text(
        '[receiver]\nsecrets = ["a-secret-of-some-length"]\nlisten = "127.0.0.1:0"\n'
        '[control]\nlisten = "127.0.0.1:0"\ntoken_file = "control-tokens"\n'
        '[gms]\nnodes = ["http://127.0.0.1:9/genesys"]\nservice = "support"\n'
        '[[chat_server]]\nname = "chat-1"\nhealth_url = "http://127.0.0.1:9/"\n'
        + "".join(f"[[consumer]]\n{each}\n" for each in consumers)
    )
    path.chmod(0o600)
    return path


def webhook(url: str = "http://127.0.0.1:9/", more: str = "", name: str = "app") -> str:
    return f'name = "{name}"\nurl = "{url}"\nsecret_file = "webhook-secret"\n{more}'


def doubts(path: Path) -> dict[str, Finding]:
    found = [each for each in check(path) if each.level is not Level.OK]
    assert all(each.advice for each in found)
    return {each.key: each for each in found}


# -- the file ------------------------------------------------------------------------------------------


def test_a_consumer_whose_files_are_in_order_is_not_doubted(tmp_path: Path) -> None:
    path = write(tmp_path, webhook(), 'name = "archive"', tokens=f"{TOKEN} read events:archive")
    assert doubts(path) == {}


def test_a_secret_that_others_can_read_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, webhook())
    (tmp_path / "webhook-secret").chmod(0o640)
    assert "can be read by others" in doubts(path)["consumer[0].secret_file"].message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("whsec_c2hvcnQ=\n", "line 1 of this file: expected"),
        (f"{SECRET}\nMfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", "line 2 of this file: expected"),
        ("# none yet\n", "expected at least one secret"),
    ],
)
def test_a_secret_that_is_none_is_an_error_that_does_not_show_it(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = write(tmp_path, webhook())
    (tmp_path / "webhook-secret").unlink()
    if content is not None:
        (tmp_path / "webhook-secret").write_text(content)
    finding = doubts(path)["consumer[0].secret_file"]
    assert finding.level is Level.ERROR
    assert words in finding.message
    assert "c2hvcnQ" not in finding.message
    assert "MfKQ" not in finding.message


def test_a_right_to_a_consumer_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "chat-app"', 'name = "archive"', tokens=f"{TOKEN} events:chatapp,archive")
    found = doubts(path)
    assert set(found) == {"control.token_file", "consumer[0]"}
    assert "events:chatapp, and no [[consumer]] has this name" in found["control.token_file"].message
    assert found["control.token_file"].advice == "did you mean events:chat-app?"
    assert found["consumer[0]"].advice.startswith("give one the right events:chat-app")
    path = write(tmp_path, webhook(name="billing"))
    assert {each.advice for each in check(path)} >= {"correct the name: it is one of billing"}


def test_whom_nobody_may_fetch_for_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "archive"')
    assert "fetches its events, and no token has the right" in doubts(path)["consumer[0]"].message
    (tmp_path / "control-tokens").write_text(f"{TOKEN} events\n")
    assert doubts(path) == {}


def test_authorities_that_are_no_use_are_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    path = write(tmp_path, webhook("https://chat.example.com/", 'ca_file = "ca.pem"'))
    assert doubts(path)["consumer[0].ca_file"].level is Level.ERROR
    path = write(tmp_path, webhook("http://127.0.0.1:9/", 'ca_file = "ca.pem"'))
    assert "is not used" in doubts(path)["consumer[0].ca_file"].message


# -- the webhook ---------------------------------------------------------------------------------------

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def application(answer: Answer, certificates: Certificates | None = None) -> AsyncIterator[str]:
    """A chat application; its address."""
    app = web.Application()
    app.router.add_post("/hook", answer)
    tls = None
    if certificates is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificates.server, certificates.server_key)
    server = TestServer(app, scheme="https" if tls else "http", host="127.0.0.1")
    await server.start_server(ssl=tls)
    try:
        yield str(server.make_url("/hook"))
    finally:
        await server.close()


async def of_consumers(path: Path) -> list[Finding]:
    found = [each for each in await connect(load(path)) if area(each) == "Consumers"]
    assert all(each.advice for each in found if each.level is not Level.OK)
    return found


def says(status: int, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers=headers)

    return answer


async def test_a_webhook_is_tried_with_a_signed_batch_without_events(tmp_path: Path) -> None:
    got: list[object] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        Verifier(SECRET).verify(body, dict(request.headers))
        got.append((json.loads(body), request.content_type))
        return web.Response(status=204)

    async with application(answer) as url:
        [finding] = await of_consumers(write(tmp_path, webhook(url)))
    assert (finding.level, finding.key) == (Level.OK, "consumer[0].url")
    assert finding.message == "the webhook of app took a signed batch of type test (status 204)"
    assert got == [({"type": "test", "chat_id": None, "events": []}, "application/json")]


@pytest.mark.parametrize(
    ("status", "key", "level", "words"),
    [
        (302, "url", Level.ERROR, "set url to where it leads"),
        (400, "url", Level.WARNING, "answer 2xx to a batch of type test"),
        (401, "secret_file", Level.ERROR, "give the application the secret of this file"),
        (403, "secret_file", Level.ERROR, "verify the bytes as they came"),
        (404, "url", Level.ERROR, "correct the path"),
        (405, "url", Level.ERROR, "nothing takes a POST there"),
        (410, "url", Level.ERROR, "would be paused"),
        (429, "url", Level.ERROR, "its events wait"),
        (500, "url", Level.ERROR, "look into the application's log"),
        (503, "url", Level.ERROR, "its events wait"),
    ],
)
async def test_what_a_webhook_answers_is_told_with_what_to_change(
    tmp_path: Path, status: int, key: str, level: Level, words: str
) -> None:
    async with application(says(status, Location="/elsewhere")) as url:
        [finding] = await of_consumers(write(tmp_path, webhook(url)))
    assert (finding.level, finding.key) == (level, f"consumer[0].{key}")
    assert f"answers with status {status}" in finding.message
    assert words in finding.advice


async def test_a_webhook_that_is_not_there_and_one_that_does_not_answer(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        nobody = listener.getsockname()[1]

    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with application(never) as url:
        path = write(
            tmp_path,
            webhook(f"http://127.0.0.1:{nobody}/"),
            webhook(url, 'timeout = "200ms"', name="slow"),
        )
        refused, slow = await of_consumers(path)
    assert refused.message == "the webhook of app cannot be reached: Connection refused"
    assert "that the application runs" in refused.advice
    assert slow.message == "the webhook of slow does not answer within 200ms"
    assert "raise consumer[1].timeout" in slow.advice
    assert {refused.level, slow.level} == {Level.ERROR}


async def test_a_certificate_that_nobody_signed_is_told_with_the_key_to_set(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with application(says(204), certificates) as url:
        [untrusted] = await of_consumers(write(tmp_path, webhook(url)))
        path = write(tmp_path, webhook(url, f'ca_file = "{certificates.ca}"'))
        taken, good = await of_consumers(path)
    assert untrusted.level is Level.ERROR
    assert "set consumer[0].ca_file" in untrusted.advice
    assert taken.level is Level.OK
    assert good.level is Level.WARNING, "it is good for two days"
    assert good.message.startswith("the certificate of the webhook of app expires on")


async def test_an_address_that_carries_a_secret_is_never_shown(tmp_path: Path) -> None:
    for path in ("/hook", "/nothing-here"):
        async with application(says(204)) as url:
            found = await of_consumers(write(tmp_path, webhook(url.replace("/hook", f"{path}?key=hidden"))))
        assert "hidden" not in str(found)


async def test_one_that_fetches_is_not_looked_for(tmp_path: Path) -> None:
    [finding] = await of_consumers(write(tmp_path, 'name = "archive"', tokens=f"{TOKEN} events"))
    assert finding.level is Level.OK
    assert "GET /v1/events?consumer=archive" in finding.message
