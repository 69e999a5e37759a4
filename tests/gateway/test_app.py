"""The door of the gateway: which pages and clients get in, and what browsers are told."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from conftest import Events, settings_of, soon
from yarl import URL

from asyncchatd.config.sections.gateway import GatewaySettings
from asyncchatd.config.settings import Settings
from asyncchatd.gateway import Gateway, GatewayRequest
from asyncchatd.gateway.app import LARGEST_FORM, MOST_HEADERS
from asyncchatd.listening import Listener
from asyncchatd.log.events import Event

pytestmark = pytest.mark.usefixtures("events")

SHOP = "https://shop.example"
FOREIGN = "https://foreign.example"
CHAT = "/genesys/2/chat/support"
POLL = f"{CHAT}/chat-1/refresh"


class Chats:
    """Whoever serves the chats: it keeps what it was asked, and says that it was."""

    def __init__(self) -> None:
        self.asked: list[GatewayRequest] = []
        self.uploaded = b""

    async def serve(self, request: GatewayRequest) -> web.StreamResponse:
        self.asked.append(request)
        if request.is_upload:
            self.uploaded = await request.http.content.read()
            return web.json_response({"statusCode": 2}, status=400)
        if request.tail.endswith("/events"):
            response = web.StreamResponse()
            await response.prepare(request.http)
            await response.write(b"a line\n")
            return response
        return web.json_response({"statusCode": 0})


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        return cast("dict[str, object]", json.loads(self.body))

    @property
    def cors(self) -> dict[str, str]:
        """What a browser goes by."""
        named = "access-control-"
        return {
            name.lower().removeprefix(named): value
            for name, value in self.headers.items()
            if name.lower().startswith(named)
        }


@dataclass
class Client:
    """A client of the gateway."""

    http: aiohttp.ClientSession
    base: str
    chats: Chats
    gateway: Gateway
    listener: Listener
    more: dict[str, object] = field(default_factory=dict)

    async def call(
        self,
        method: str = "POST",
        path: str = CHAT,
        *,
        origin: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] | None = b"nickname=Ann",
    ) -> Answer:
        its = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        its |= {} if origin is None else {"Origin": origin}
        url = URL(f"{self.base}{path}", encoded=True)
        async with self.http.request(
            method, url, data=body if method == "POST" else None, headers=its, allow_redirects=False
        ) as answer:
            return Answer(answer.status, answer.headers, await soon(answer.read()))

    async def preflight(self, origin: str, *names: str, path: str = CHAT) -> Answer:
        headers = {"Access-Control-Request-Method": "POST"}
        headers |= {"Access-Control-Request-Headers": ", ".join(names)} if names else {}
        return await self.call("OPTIONS", path, origin=origin, headers=headers)


def settings(directory: Path, **more: object) -> Settings:
    (directory / "gateway-keys").write_text("ab" * 32)
    section = {"listen": "127.0.0.1:0", "key_file": "gateway-keys", "node_group": "gms", "origins": [SHOP]}
    return settings_of(directory, gateway={**section, **more})


def gateway_of(directory: Path, **more: object) -> GatewaySettings:
    found = settings(directory, **more).gateway
    assert found is not None
    return found


@asynccontextmanager
async def serving(directory: Path, chats: Chats | None = None, **more: object) -> AsyncIterator[Client]:
    its = gateway_of(directory, **more)
    served = chats or Chats()
    gateway = Gateway(its, served)
    listener = Listener(gateway.app(), its, name="gateway")
    await listener.start()
    try:
        async with aiohttp.ClientSession() as http:
            yield Client(http, f"http://{listener.addresses[0]}", served, gateway, listener)
    finally:
        await listener.stop(0)


# -- origins -----------------------------------------------------------------------------------------------


async def test_a_page_that_is_served_is_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await client.call(origin=SHOP)
    assert (answer.status, answer.json) == (200, {"statusCode": 0})
    assert answer.cors == {
        "allow-origin": SHOP,
        "allow-credentials": "true",
        "expose-headers": "Content-Disposition, Retry-After",
    }
    assert answer.headers["Vary"] == "Origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        FOREIGN,
        "null",
        "*",
        "",
        "https://shop.example.evil",
        "https://SHOP.example",
        f"{SHOP}:443",
        f"{SHOP}/",
    ],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "GET"])
async def test_a_page_of_any_other_origin_is_refused(tmp_path: Path, method: str, origin: str) -> None:
    async with serving(tmp_path) as client:
        answer = await client.call(method, origin=origin, headers={"Access-Control-Request-Method": "POST"})
    assert answer.status == 403
    assert answer.cors == {}
    assert answer.headers["Vary"] == "Origin"
    assert answer.headers["Connection"] == "close"
    assert client.chats.asked == []


async def test_a_foreign_page_is_refused_before_its_body_has_come(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"nickname="
        await never.wait()

    async with serving(tmp_path) as client:
        assert (await client.call(origin=FOREIGN, body=body())).status == 403
        asked_first = {"Expect": "100-continue", "Content-Length": "5"}
        answer = await client.call(origin=FOREIGN, headers=asked_first, body=b"a=bcd")
        assert answer.status == 403


async def test_two_origins_are_none(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        where = URL(client.base)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\nOrigin: {SHOP}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        assert (await soon(reader.readline())).startswith(b"HTTP/1.1 403")
        writer.close()


async def test_without_origins_only_programs_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path, origins=[]) as client:
        answer = await client.call()
        assert (answer.status, answer.cors, answer.headers["Vary"]) == (200, {}, "Origin")
        assert (await client.call(origin=SHOP)).status == 403
        assert (await client.call(origin=client.base)).status == 403


async def test_whoever_is_refused_for_its_origin_is_told_of_with_it_in_one_line(
    tmp_path: Path, events: Events
) -> None:
    async with serving(tmp_path) as client:
        for number in range(5):
            await client.call(origin=f"https://foreign-{number}.example")
        await client.call(origin="https://" + "x" * 300)
    first, rest = events.of(Event.CLIENT_REFUSED)
    assert (first["listener"], first["count"], first["client"]) == ("gateway", 1, "127.0.0.1")
    assert first["cause"] == "the origin 'https://foreign-0.example', which gateway.origins does not name"
    assert rest["count"] == 5
    assert len(str(rest["cause"])) < 200


async def test_a_preflight_is_answered_here(tmp_path: Path) -> None:
    async with serving(tmp_path, apikeys_file=None) as client:
        names = ("content-type", "apikey", "x-requested-with", "X-Custom.1")
        answer = await client.preflight(SHOP, *names)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.cors == {
        "allow-origin": SHOP,
        "allow-credentials": "true",
        "allow-methods": "POST",
        "allow-headers": ", ".join(names),
        "max-age": "7200",
        "expose-headers": "Content-Disposition, Retry-After",
    }
    assert answer.headers["Vary"] == "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
    assert client.chats.asked == []


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ((), None),
        (("",), None),
        (("a b", "*/*", "x(y)", "x:y", "x" * 65, "Fine-1"), "Fine-1"),
        (tuple(f"x-{number}" for number in range(99)), ", ".join(f"x-{n}" for n in range(MOST_HEADERS))),
    ],
)
async def test_a_preflight_allows_what_can_be_the_name_of_a_header(
    tmp_path: Path, asked: tuple[str, ...], allowed: str | None
) -> None:
    async with serving(tmp_path) as client:
        answer = await client.preflight(SHOP, *asked)
    assert (answer.status, answer.cors.get("allow-headers")) == (204, allowed)


async def test_an_options_of_a_program_says_what_there_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await client.call("OPTIONS")
    assert (answer.status, answer.headers["Allow"], answer.cors) == (204, "POST, OPTIONS", {})


async def test_an_answer_in_pieces_is_for_browsers_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await client.call(path=f"{CHAT}/chat-1/events", origin=SHOP)
    assert (answer.body, answer.cors["allow-origin"]) == (b"a line\n", SHOP)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_refusal_can_be_read_by_a_page_that_is_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await client.call(path="/other", origin=SHOP)
    assert (answer.status, answer.cors["allow-origin"]) == (404, SHOP)


# -- paths and methods -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "path", "tail"),
    [
        ("/genesys", "/genesys/2/chat/support", "support"),
        ("/genesys", "/genesys/2/chat/support/", "support/"),
        ("/genesys", "/genesys/2/chat//support//chat-1/send", "support//chat-1/send"),
        ("/genesys", "//genesys//2/chat/support", "support"),
        ("/genesys", "/genesys/2/chat/a%20b%2Fc/00%2f8/send?x=1", "a%20b%2Fc/00%2f8/send"),
        ("/genesys", "/genesys/2/chat/refresh/refresh/refresh", "refresh/refresh/refresh"),
        ("/", "/2/chat/support", "support"),
        ("/a.b/c", "/a.b/c/2/chat/support", "support"),
        ("/genesys", "/genesys/2/chat/a/b%0Ac/refresh", "a/b%0Ac/refresh"),
    ],
)
async def test_the_path_behind_the_base_goes_on_as_it_was_sent(
    tmp_path: Path, base: str, path: str, tail: str
) -> None:
    async with serving(tmp_path, path=base) as client:
        assert (await client.call(path=path)).status == 200
    [asked] = client.chats.asked
    assert asked.tail == tail
    assert (asked.form, asked.client, asked.stranger) == (b"nickname=Ann", "127.0.0.1", False)
    assert asked.content_type == "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    "path",
    ["/", "/genesys", "/genesys/2/chat", "/genesys/2/chat/", "/genesys/2/chat//", "/2/chat/support",
     "/genesys/1/chat/support", "/genesys/2/chat-ntf", "/genesysx/2/chat/support", "/aXb/2/chat/support"],
)  # fmt: skip
async def test_what_is_no_call_of_the_chat_api_is_not_there(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, path="/genesys" if "X" not in path else "/a.b") as client:
        answer = await client.call(path=path)
    assert answer.status == 404
    assert cast("dict[str, object]", answer.json["error"])["code"] == "not_found"
    assert client.chats.asked == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
async def test_calls_are_posted(tmp_path: Path, method: str) -> None:
    async with serving(tmp_path) as client:
        answer = await client.call(method, POLL, origin=SHOP)
    assert (answer.status, answer.headers["Allow"]) == (405, "POST, OPTIONS")
    assert client.chats.asked == []


async def test_a_stream_may_be_fetched_and_its_ticket_stands_for_the_apikey(tmp_path: Path) -> None:
    (tmp_path / "apikeys").write_text("an-apikey")
    async with serving(tmp_path, origins=[SHOP], apikeys_file="apikeys") as client:
        stream = f"{CHAT}/chat-1/events"
        asked = {"Access-Control-Request-Method": "GET"}
        preflight = await client.call("OPTIONS", stream, origin=SHOP, headers=asked)
        assert preflight.cors["allow-methods"] == "GET, POST"
        answer = await client.call("GET", stream, origin=SHOP)
        assert (answer.status, answer.body, answer.cors["allow-origin"]) == (200, b"a line\n", SHOP)
        assert (await client.call("POST", stream, origin=SHOP)).status == 403
        assert (await client.call("GET", stream, origin=FOREIGN)).status == 403


async def test_a_balancer_can_ask_whether_it_is_served(tmp_path: Path) -> None:
    (tmp_path / "apikeys").write_text("an-apikey")
    async with serving(tmp_path, apikeys_file="apikeys") as client:
        answer = await client.call("GET", "/healthz")
    assert (answer.status, answer.json) == (200, {"alive": True})


async def test_where_nobody_serves_chats_a_call_is_not_there(tmp_path: Path) -> None:
    its = gateway_of(tmp_path)
    listener = Listener(Gateway(its).app(), its, name="gateway")
    await listener.start()
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"http://{listener.addresses[0]}{POLL}") as answer,
    ):
        assert answer.status == 404
        assert (await answer.json())["statusCode"] == 2
    await listener.stop(0)


# -- apikeys and services ----------------------------------------------------------------------------------


async def test_a_client_shows_an_apikey_where_one_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "apikeys").write_text("apikey-of-the-shop\napikey-of-the-app\n")
    async with serving(tmp_path, apikeys_file="apikeys") as client:
        for apikey in ("apikey-of-the-shop", "apikey-of-the-app"):
            assert (await client.call(headers={"ApiKey": apikey})).status == 200
        for headers in ({}, {"apikey": ""}, {"apikey": "apikey-of-the-shop2"}, {"apikey": "ä"}):
            answer = await client.call(headers=headers, origin=SHOP)
            assert answer.status == 403
            assert "WWW-Authenticate" not in answer.headers
            assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
            assert (answer.json["statusCode"], answer.json["chatEnded"]) == (2, False)
            assert answer.cors["allow-origin"] == SHOP
        assert len(client.chats.asked) == 2


async def test_a_poll_without_an_apikey_is_told_as_a_strangers(tmp_path: Path, events: Events) -> None:
    """Some clients stop for good at an HTTP error: one whose apikey was taken back too early must live on."""
    (tmp_path / "apikeys").write_text("an-apikey")
    async with serving(tmp_path, apikeys_file="apikeys") as client:
        assert (await client.call(path=POLL, body=b"secureKey=k")).status == 200
        assert (await client.call(path=POLL, headers={"apikey": "an-apikey"})).status == 200
        assert (await client.call(path=f"{CHAT}/chat-1/send")).status == 403
        assert (await client.call(path="/genesys/2/chat/refresh")).status == 403
    assert [(asked.stranger, asked.form) for asked in client.chats.asked] == [
        (True, b"secureKey=k"),
        (False, b"nickname=Ann"),
    ]
    assert events.of(Event.CLIENT_REFUSED)[0]["cause"] == "apikey"


async def test_a_preflight_needs_no_apikey(tmp_path: Path) -> None:
    """Browsers send none with it."""
    (tmp_path / "apikeys").write_text("an-apikey")
    async with serving(tmp_path, apikeys_file="apikeys") as client:
        assert (await client.preflight(SHOP, "apikey")).status == 204


async def test_chats_of_other_services_are_not_begun_and_those_that_live_go_on(tmp_path: Path) -> None:
    async with serving(tmp_path, services=["support", "sales"]) as client:
        for path in ("support", "support/", "sales"):
            assert (await client.call(path=f"/genesys/2/chat/{path}")).status == 200
        answer = await client.call(path="/genesys/2/chat/billing")
        assert answer.status == 404
        assert "services" in json.dumps(answer.json["errors"])
        assert (await client.call(path="/genesys/2/chat/billing/chat-1/refresh")).status == 200
    assert [asked.begins_chat for asked in client.chats.asked] == [True, True, True, False]


async def test_a_reload_changes_who_is_served(tmp_path: Path) -> None:
    (tmp_path / "apikeys").write_text("an-apikey")
    async with serving(tmp_path) as client:
        assert (await client.call(origin=SHOP)).status == 200
        changed = settings(
            tmp_path, origins=[FOREIGN], apikeys_file="apikeys", services=["sales"], path="/other"
        )
        client.gateway.reload(changed)
        known = {"apikey": "an-apikey"}
        assert (await client.call(origin=SHOP)).status == 403
        assert (await client.call(origin=FOREIGN, headers=known)).status == 404
        assert (await client.call(path="/other/2/chat/support", headers=known)).status == 404
        assert (await client.call(path="/other/2/chat/sales", headers=known, origin=FOREIGN)).status == 200
        assert (await client.call(path="/other/2/chat/sales", origin=FOREIGN)).status == 403


# -- bodies ------------------------------------------------------------------------------------------------


async def test_a_form_is_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        assert (await client.call(body=b"a" * LARGEST_FORM)).status == 200
        for body in (b"a" * (LARGEST_FORM + 1), gzip.compress(b"a" * (LARGEST_FORM + 1))):
            headers = {"Content-Encoding": "gzip"} if body[:1] != b"a" else {}
            answer = await client.call(body=body, headers=headers)
            assert (answer.status, answer.headers["Connection"]) == (413, "close")
            assert answer.json["statusCode"] == 2
    assert len(client.chats.asked) == 1


async def test_a_packed_form_is_unpacked(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        headers = {"Content-Encoding": "gzip"}
        assert (await client.call(body=gzip.compress(b"message=hi"), headers=headers)).status == 200
        assert (await client.call(body=b"message=hi", headers=headers)).status == 400
        assert (await client.call(body=b"x", headers={"Content-Encoding": "br"})).status == 415
        odd = {"Content-Type": "application/x-www-form-urlencoded; charset=iso-8859-1"}
        assert (await client.call(body=b"message=%E4\xe4", headers=odd)).status == 200
    assert [asked.form for asked in client.chats.asked] == [b"message=hi", b"message=%E4\xe4"]


async def test_a_form_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"message="
        await never.wait()

    async with serving(tmp_path, body_timeout="10ms") as client:
        assert (await client.call(body=body())).status == 408


async def test_a_client_that_asks_whether_to_send_its_form_is_told_to(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        where = URL(client.base)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        writer.write(head.encode())
        assert (await soon(reader.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 100")
        writer.write(b"a=b")
        assert (await soon(reader.readline())).startswith(b"HTTP/1.1 200")
        writer.close()
    assert client.chats.asked[0].form == b"a=b"


async def test_a_file_is_left_to_whoever_takes_it(tmp_path: Path) -> None:
    file = bytes(3 * LARGEST_FORM)
    async with serving(tmp_path) as client:
        answer = await client.call(path=f"{CHAT}/chat-1/file", body=file)
        assert answer.status == 400
        assert answer.headers.get("Connection") != "close", "whoever is served may stay, whatever he is told"
        for path in (f"{CHAT}/chat-1/file/limits", "/genesys/2/chat/file", "/genesys/2/chat/file/file"):
            await client.call(path=path, body=b"form")
    assert client.chats.uploaded == file
    assert [(asked.is_upload, asked.form) for asked in client.chats.asked] == [
        (True, b""),
        (False, b"form"),
        (False, b"form"),
        (False, b"form"),
    ]


# -- behind a proxy ----------------------------------------------------------------------------------------


async def test_behind_a_proxy_the_client_is_the_one_that_it_tells(tmp_path: Path) -> None:
    async with serving(tmp_path, trusted_proxies=["127.0.0.1"], allow=["10.0.0.0/8"]) as client:
        assert (await client.call(headers={"X-Forwarded-For": "1.2.3.4, 10.1.1.1"})).status == 200
        assert (await client.call(headers={"X-Forwarded-For": "192.0.2.1"})).status == 403
    assert [asked.client for asked in client.chats.asked] == ["10.1.1.1"]


async def test_on_a_unix_socket_a_client_has_no_address(tmp_path: Path) -> None:
    its = gateway_of(tmp_path, listen=f"unix:{tmp_path}/gateway.sock")
    chats = Chats()
    listener = Listener(Gateway(its, chats).app(), its, name="gateway")
    await listener.start()
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(f"{tmp_path}/gateway.sock")) as http,
        http.post(f"http://gateway{CHAT}") as answer,
    ):
        assert answer.status == 200
    await listener.stop(0)
    assert chats.asked[0].client is None
