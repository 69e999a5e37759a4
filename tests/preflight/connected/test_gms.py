"""GMS nodes as `check` and `check --connect` find them: the likeliest mistakes are named, and no chat is touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import MakeSettings

from asyncchatd.config import Settings
from asyncchatd.model import Finding, Level
from asyncchatd.preflight.checks import check
from asyncchatd.preflight.connecting import connect
from asyncchatd.standin import PlantSettings, StandIn
from preflight.test_checks import SERVER, write

STATUS = "/1/admin/node/status"


@dataclass
class Node:
    """A server whose answers are written down; everything else is 404."""

    answers: dict[tuple[str, str], web.Response] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    origin: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path))
        self.headers.append(dict(request.headers))
        found = self.answers.get((request.method, request.path)) or self.answers.get((request.method, "*"))
        if found is None:
            return web.Response(status=404, text="no")
        return web.Response(
            status=found.status,
            body=found.body,
            content_type=found.content_type,
            headers={name: found.headers[name] for name in ("Location",) if name in found.headers},
        )


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    scripted = Node()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", scripted.answer)
    async with TestServer(app) as server:
        scripted.origin = str(server.make_url("/")).rstrip("/")
        yield scripted
    for method, path in scripted.asked:  # whatever was found, nothing may have touched a chat
        assert (method, path.endswith(STATUS)) == ("GET", True) or method == "OPTIONS"


def says(text: str = "ONLINE", status: int = 200, content_type: str = "text/plain") -> web.Response:
    return web.Response(text=text, status=status, content_type=content_type)


def with_base(make_settings: MakeSettings, base: str, **gms: object) -> Settings:
    return make_settings(gms={"nodes": [base], "service": "support", **gms})


async def about(settings: Settings, key: str = "gms.nodes[0]") -> Finding:
    [finding] = [each for each in await connect(settings) if each.key == key]
    assert finding.advice or finding.level in {Level.OK, Level.NOTE}
    return finding


# -- the base path ---------------------------------------------------------------------------------


async def test_a_base_path_is_right_where_gms_says_how_it_is(node: Node, make_settings: MakeSettings) -> None:
    node.answers["GET", f"/genesys{STATUS}"] = says()
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert (finding.level, finding.message) == (Level.OK, f"{node.origin}/genesys is GMS and says ONLINE")
    assert node.asked == [("GET", f"/genesys{STATUS}")]


@pytest.mark.parametrize("path", ["", "/", "/gms", "/genesys/gms", "/a/b"])
async def test_a_wrong_base_path_is_an_error_that_names_the_right_one(
    path: str, node: Node, make_settings: MakeSettings
) -> None:
    node.answers["GET", f"/genesys{STATUS}"] = says()
    finding = await about(with_base(make_settings, f"{node.origin}{path}"))
    assert (finding.level, finding.advice) == (Level.ERROR, f'set it to "{node.origin}/genesys"')
    assert (
        finding.message
        == f"GMS is not at {node.origin}{path.rstrip('/')} (status 404), but at {node.origin}/genesys"
    )


async def test_a_base_path_that_lacks_its_end_is_found(node: Node, make_settings: MakeSettings) -> None:
    node.answers["GET", f"/chat/eu/genesys{STATUS}"] = says()
    finding = await about(with_base(make_settings, f"{node.origin}/chat/eu"))
    assert finding.advice == f'set it to "{node.origin}/chat/eu/genesys"'


async def test_where_neither_gms_page_nor_chat_api_is_the_path_is_to_be_corrected(
    node: Node, make_settings: MakeSettings
) -> None:
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert finding.level is Level.ERROR
    assert "neither GMS' status page nor its Chat API is there (status 404)" in finding.message
    assert f"HOST/PATH{STATUS}" in finding.advice


@pytest.mark.parametrize("status", [200, 204, 405])
async def test_a_proxy_may_pass_nothing_but_the_chat_api(
    status: int, node: Node, make_settings: MakeSettings
) -> None:
    node.answers["OPTIONS", "/chat/2/chat/support"] = says("", status)
    finding = await about(with_base(make_settings, f"{node.origin}/chat"))
    assert finding.level is Level.OK
    assert f"the Chat API does (status {status} to OPTIONS)" in finding.message


@pytest.mark.parametrize(
    ("path", "base", "service"),
    [
        ("/genesys/2/chat/customer-support", "/genesys", "customer-support"),
        ("/genesys/2/chat/customer-support/", "/genesys", "customer-support"),
        ("/2/chat/support", "", None),
        ("/eu/genesys/2/chat", "/eu/genesys", None),
        ("/genesys/2/chat-ntf", "/genesys", None),
        ("/genesys/1/admin/node/status", "/genesys", None),
        ("/genesys/1/service/callback", "/genesys", None),
        ("/genesys/cometd", "/genesys", None),
    ],
)
def test_the_address_that_widgets_are_configured_with_is_no_base_address(
    path: str, base: str, service: str | None, tmp_path: Path
) -> None:
    gms = f'nodes = ["http://gms-1:8080{path}"]\nservice = "support"'
    [error] = [each for each in check(write(tmp_path, SERVER, gms=gms)) if each.level is Level.ERROR]
    assert error.key == "gms.nodes[0]"
    advice = f'set it to "http://gms-1:8080{base}"'
    assert error.advice == (advice if service is None else f'{advice}, and gms.service to "{service}"')


def test_a_path_of_ones_own_is_a_base_address(tmp_path: Path) -> None:
    for path in ("/genesys", "/chat", "/v2/chat-gms", "/1/gms", ""):
        gms = f'nodes = ["http://gms-1:8080{path}"]\nservice = "support"'
        assert all(each.level is Level.OK for each in check(write(tmp_path, SERVER, gms=gms)))


# -- what GMS says ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "level", "words"),
    [
        ("ONLINE", Level.OK, "is GMS and says ONLINE"),
        ("online\r\n", Level.OK, "is GMS and says ONLINE"),
        ('"ONLINE"', Level.OK, "is GMS and says ONLINE"),
        ('{"status": "ONLINE", "onlineSince": 12}', Level.OK, "is GMS and says ONLINE"),
        ("<?xml version='1.0'?><node><status>ONLINE</status></node>", Level.OK, "says ONLINE"),
        ("OFFLINE", Level.WARNING, "says OFFLINE"),
        ('{"status":"OFFLINE"}', Level.WARNING, "says OFFLINE"),
        ("", Level.WARNING, "says neither"),
        ("OK", Level.WARNING, "says neither"),
        ('{"app_dbid": 117, "process_os_pid": 1000}', Level.WARNING, "says neither"),
        ("ONLINE or OFFLINE", Level.WARNING, "says neither"),
        ("<!-- login -->\n<HTML>You are ONLINE</HTML>", Level.WARNING, "is a web page"),
        ('<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x"><html>ONLINE', Level.WARNING, "is a web page"),
        ("<!DOCTYPE html><html><body>You are ONLINE</body></html>", Level.WARNING, "is a web page"),
        ("\n<html>Sign in</html>", Level.WARNING, "is a web page"),
    ],
)
async def test_every_form_of_the_status_page_is_read(
    body: str, level: Level, words: str, node: Node, make_settings: MakeSettings
) -> None:
    node.answers["GET", f"/genesys{STATUS}"] = says(body)
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert (finding.level, words in finding.message) == (level, True), finding


async def test_a_status_page_that_comes_in_pieces_is_read_whole(make_settings: MakeSettings) -> None:
    async def piecemeal(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for piece in (b"ON", b"LI", b"NE\n"):
            await answer.write(piece)
            await asyncio.sleep(0.05)  # such that each is a segment of its own
        return answer

    app = web.Application()
    app.router.add_get(f"/genesys{STATUS}", piecemeal)
    async with TestServer(app) as server:
        finding = await about(with_base(make_settings, str(server.make_url("/genesys"))))
    assert (finding.level, "says ONLINE" in finding.message) == (Level.OK, True)


@pytest.mark.parametrize("status", [204, 206])
async def test_an_answer_that_says_nothing_is_not_that_of_gms(
    status: int, node: Node, make_settings: MakeSettings
) -> None:
    node.answers["GET", "*"] = node.answers["OPTIONS", "*"] = says("", status)
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert (finding.level, "says neither" in finding.message) == (Level.WARNING, True)


@pytest.mark.parametrize("status", [304, 400, 418, 429])
async def test_a_refusal_of_whatever_is_asked_does_not_tell_that_gms_is_there(
    status: int, node: Node, make_settings: MakeSettings
) -> None:
    node.answers["GET", "*"] = node.answers["OPTIONS", "*"] = says("", status)
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert (finding.level, "cannot be told" in finding.message) == (Level.WARNING, True)


async def test_a_chat_api_that_is_down_behind_its_proxy(node: Node, make_settings: MakeSettings) -> None:
    node.answers["OPTIONS", "*"] = says("bad gateway", 502)
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert (finding.level, "status 502" in finding.message) == (Level.WARNING, True)
    assert "behind the proxy" in finding.advice


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "what answers there does not speak HTTP"),
        (b"", "it hangs up without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nON", "its answer is damaged or cut short"),
    ],
)
async def test_what_is_no_http_server_is_told_in_words(
    answer: bytes, words: str, make_settings: MakeSettings
) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(answers, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        finding = await about(with_base(make_settings, f"http://127.0.0.1:{port}/genesys"))
    assert (finding.level, finding.message.endswith(f"does not answer: {words}")) == (Level.ERROR, True), (
        finding
    )


async def test_a_status_page_for_users_of_gms_alone_is_no_trouble(
    node: Node, make_settings: MakeSettings
) -> None:
    """GMS asks for a user there since 8.5.1, and not for the Chat API."""
    node.answers["GET", f"/genesys{STATUS}"] = says("", 401)
    node.answers["OPTIONS", "/genesys/2/chat/support"] = says("")
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert (finding.level, "asks for a user of GMS (status 401)" in finding.message) == (Level.OK, True)


async def test_a_node_that_wants_to_know_who_asks_is_asked_with_the_credentials(
    node: Node, make_settings: MakeSettings
) -> None:
    node.answers["GET", f"/genesys{STATUS}"] = says("", 401)
    node.answers["OPTIONS", "/genesys/2/chat/support"] = says("", 403)
    more = {"username": "u", "password": "p", "headers": {"apikey": "k"}}
    finding = await about(with_base(make_settings, f"{node.origin}/genesys", **more))
    assert (finding.level, "status 403" in finding.message) == (Level.WARNING, True)
    assert "gms.username" in finding.advice
    assert {(each["apikey"], each["Authorization"]) for each in node.headers} == {("k", "Basic dTpw")}


async def test_a_node_that_does_not_run_behind_its_proxy(node: Node, make_settings: MakeSettings) -> None:
    node.answers["GET", "*"] = says("bad gateway", 502)
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert (finding.level, "status 502" in finding.message) == (Level.WARNING, True)


@pytest.mark.parametrize(
    ("location", "level", "advice"),
    [
        (
            f"https://gms.example/genesys{STATUS}?a=b",
            Level.ERROR,
            'set it to "https://gms.example/genesys", which is',
        ),
        ("/login", Level.WARNING, "set it to where that leads"),
        (f"https://u:secret@gms.example/genesys{STATUS}", Level.WARNING, "set it to where that leads"),
    ],
)
async def test_a_redirect_is_not_followed_and_says_where_to(
    location: str, level: Level, advice: str, node: Node, make_settings: MakeSettings
) -> None:
    node.answers["GET", "*"] = web.Response(status=302, headers={"Location": location})
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert (finding.level, finding.advice[: len(advice)]) == (level, advice)
    assert "secret" not in finding.message + finding.advice


async def test_where_a_redirect_leads_is_said(node: Node, make_settings: MakeSettings) -> None:
    node.answers["GET", "*"] = web.Response(status=302, headers={"Location": "/login?ticket=secret#secret"})
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert f"/genesys redirects to {node.origin}/login (status 302)" in finding.message
    assert "secret" not in finding.message


async def test_a_redirect_to_the_same_page_with_a_slash_is_no_reason_to_change_the_address(
    node: Node, make_settings: MakeSettings
) -> None:
    slash = {"Location": f"/genesys{STATUS}/"}
    node.answers["GET", f"/genesys{STATUS}"] = web.Response(status=301, headers=slash)
    node.answers["OPTIONS", "*"] = says("")
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"))
    assert (finding.level, "the Chat API does" in finding.message) == (Level.OK, True), finding


async def test_that_the_service_was_not_tried_is_said(node: Node, make_settings: MakeSettings) -> None:
    finding = await about(with_base(make_settings, f"{node.origin}/genesys"), "gms.service")
    assert (finding.level, "support was not tried" in finding.message) == (Level.NOTE, True)


# -- the stand-in ----------------------------------------------------------------------------------


async def test_a_plant_answers_as_gms_does_and_no_chat_of_it_is_touched(make_settings: MakeSettings) -> None:
    async with StandIn(PlantSettings(gms_nodes=1)) as standin:
        [base] = standin.gms_urls
        assert (await about(with_base(make_settings, base))).message == f"{base} is GMS and says ONLINE"
        wrong = await about(with_base(make_settings, base.removesuffix("/genesys")))
        assert (wrong.level, wrong.advice) == (Level.ERROR, f'set it to "{base}"')
        proxied = await about(with_base(make_settings, base, headers={"apikey": "k"}))
        assert proxied.level is Level.OK
        report = standin.plant.report()
        assert (report.sessions_alive, report.requests_by_operation) == (0, {})
