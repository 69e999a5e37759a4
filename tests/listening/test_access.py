"""Who may use a listener: networks, proxies that are believed and others, tokens, foreign pages in a browser."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from conftest import Events, FakeClock, listening, settings_of, soon
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from yarl import URL

from asyncchatd.config.listeners import ControlSettings
from asyncchatd.listening.access import (
    Access,
    Guard,
    Refusals,
    forwarded,
    is_ours,
    knows,
    same_site,
    x_forwarded_for,
)
from asyncchatd.log.events import Event

TOKEN = "a-token-that-nobody-guesses"


async def greet(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.remote}")


def greeting() -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", greet)
    return app


async def asked(base: str, method: str = "GET", path: str = "/", **headers: str) -> tuple[int, str]:
    """Status and body. Header names with `_` for `-`."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, base + path, headers=said) as response,
    ):
        return response.status, await soon(response.text())


# -- networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["127.0.0.1", "127.0.0.0/8", "0.0.0.0/0"])
async def test_a_client_of_an_allowed_network_is_served(network: str) -> None:
    async with listening(greeting(), receiver={"allow": ["10.0.0.0/8", network]}) as base:
        assert await asked(base) == (200, "hello 127.0.0.1")


async def test_others_are_hung_up_on_before_they_are_listened_to(events: Events) -> None:
    async with listening(greeting(), receiver={"allow": ["10.0.0.0/8", "::1"]}) as base:
        for _ in range(3):
            with pytest.raises(aiohttp.ClientConnectionError):
                await asked(base)
    first, rest = events.of(Event.CLIENT_REFUSED)
    for refused in (first, rest):
        assert (refused["listener"], refused["cause"], refused["client"]) == (
            "receiver",
            "network",
            "127.0.0.1",
        )
    assert (first["count"], int(str(rest["count"])) >= 2) == (
        1,
        True,
    )  # the client may have tried again by itself


async def test_the_permissions_of_a_unix_socket_decide_and_not_allow(tmp_path: Path) -> None:
    connector = aiohttp.UnixConnector(str(tmp_path / "s"))
    async with (
        listening(greeting(), f"unix:{tmp_path}/s", receiver={"allow": ["10.0.0.0/8"]}),
        aiohttp.ClientSession(connector=connector) as http,
        http.get("http://localhost/") as response,
    ):
        assert response.status == 200


def test_a_scan_does_not_fill_the_log(events: Events) -> None:
    clock = FakeClock()
    refusals = Refusals("receiver", clock)
    for number in range(1_000):
        refusals.add("network", f"192.0.2.{number % 256}")
        refusals.add("TLS: http request", "192.0.2.1")
    assert [line["count"] for line in events.of(Event.CLIENT_REFUSED)] == [1, 1]
    clock.stall(61)
    refusals.add("network", "192.0.2.7")
    last = events.of(Event.CLIENT_REFUSED)[-1]
    assert (last["cause"], last["client"], last["count"]) == ("network", "192.0.2.7", 1_000)


# -- proxies -------------------------------------------------------------------------------------------


async def test_nobody_is_believed_who_is_no_trusted_proxy() -> None:
    """Else everybody could choose his address."""
    for proxies in ((), ("10.9.9.9",)):
        async with listening(greeting(), receiver={"trusted_proxies": proxies}) as base:
            claim = await asked(base, X_Forwarded_For="10.0.0.1", Forwarded="for=10.0.0.1")
            assert claim == (200, "hello 127.0.0.1")


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ({"X_Forwarded_For": "192.0.2.1"}, "192.0.2.1"),
        ({"X_Forwarded_For": "10.0.0.1, 192.0.2.1"}, "192.0.2.1"),
        ({"X_Forwarded_For": "10.0.0.1, 192.0.2.1, 127.0.0.2"}, "192.0.2.1"),
        ({"X_Forwarded_For": "what ever,192.0.2.1:4711"}, "192.0.2.1"),
        ({"X_Forwarded_For": "2001:db8::1"}, "2001:db8::1"),
        ({"X_Forwarded_For": "::ffff:192.0.2.1"}, "192.0.2.1"),
        ({"Forwarded": "for=192.0.2.1"}, "192.0.2.1"),
        ({"Forwarded": 'for=unknown, by=x; For="[2001:db8::1]:80" ;proto=https'}, "2001:db8::1"),
        ({"Forwarded": "for=192.0.2.1", "X_Forwarded_For": "10.0.0.1, 192.0.2.1"}, "192.0.2.1"),
        ({"X_Forwarded_For": "127.0.0.3, 127.0.0.2"}, "127.0.0.3"),
        ({}, "127.0.0.1"),
    ],
)
async def test_a_trusted_proxy_tells_the_last_address_that_is_not_a_proxys(
    headers: dict[str, str], client: str
) -> None:
    async with listening(greeting(), receiver={"trusted_proxies": ["127.0.0.0/8"]}) as base:
        assert await asked(base, **headers) == (200, f"hello {client}")


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Forwarded_For": "10.0.0.1, 192.0.2.1"},
        {"X_Forwarded_For": "10.0.0.1, unknown"},
        {"X_Forwarded_For": ""},
        {"X_Forwarded_For": "10.0.0.1", "Forwarded": "for=192.0.2.1"},
        {"X_Forwarded_For": "192.0.2.1", "Forwarded": "for=10.0.0.1"},
        {"Forwarded": "for=10.0.0.1;for=192.0.2.1"},
        {"Forwarded": 'for="10.0.0.1, for=192.0.2.1'},
        {},
    ],
)
async def test_behind_a_proxy_allow_is_about_the_client(headers: dict[str, str], events: Events) -> None:
    """What cannot be understood is nobody's address, and of two headers one may be the client's own."""
    proxied = {"trusted_proxies": ["127.0.0.1"], "allow": ["10.0.0.0/8"]}
    async with listening(greeting(), receiver=proxied) as base:
        assert (await asked(base, **headers))[0] == 403
        assert await asked(base, X_Forwarded_For="192.0.2.1, 10.0.0.1") == (200, "hello 10.0.0.1")
    assert events.one(Event.CLIENT_REFUSED)["cause"] in {"network", "forwarded header"}


async def test_a_proxy_may_come_over_a_unix_socket(tmp_path: Path) -> None:
    proxied = {"trusted_proxies": ["unix"], "allow": ["10.0.0.0/8"]}
    async with (
        listening(greeting(), f"unix:{tmp_path}/s", receiver=proxied),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "s"))) as http,
    ):
        for client, status in (("10.0.0.1", 200), ("192.0.2.1", 403)):
            async with http.get("http://x/", headers={"X-Forwarded-For": client}) as response:
                assert response.status == status


def test_headers_on_several_lines_are_one_way() -> None:
    lines = CIMultiDict([("X-Forwarded-For", "192.0.2.1"), ("x-forwarded-for", "192.0.2.2, nonsense")])
    assert [str(address) for address in x_forwarded_for(lines)] == ["192.0.2.1", "192.0.2.2", "None"]
    lines = CIMultiDict([("Forwarded", "for=192.0.2.1"), ("Forwarded", "by=192.0.2.9")])
    assert [str(address) for address in forwarded(lines)] == ["192.0.2.1", "None"]


# -- tokens --------------------------------------------------------------------------------------------


@asynccontextmanager
async def controlled(**control: object) -> AsyncIterator[str]:
    settings = ControlSettings.model_validate({"listen": "127.0.0.1:0", **control})
    async with listening(Guard(settings).before(greeting())) as base:
        yield base


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


@pytest.mark.parametrize("path", ["/v1/status", "/metrics", "/", "/nowhere", "/healthz/", "//healthz"])
async def test_with_a_token_every_path_asks_for_it(path: str) -> None:
    async with controlled(token=TOKEN) as base:
        for said in (
            "",
            "Bearer",
            "Bearer wrong",
            f"Bearer {TOKEN}x",
            f"Token {TOKEN}",
            TOKEN,
            "Basic ?",
            "Basic",
        ):
            status, text = await asked(base, path=path, Authorization=said)
            assert status == 401
            assert TOKEN not in text
        for said in (f"Bearer {TOKEN}", f"bearer  {TOKEN}", basic("anybody", TOKEN), basic("", TOKEN)):
            assert (await asked(base, path=path, Authorization=said))[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_supervisor_needs_no_token(path: str) -> None:
    async with controlled(token=TOKEN) as base:
        assert (await asked(base, path=path))[0] == 200


async def test_who_has_no_token_keeps_no_connection_and_who_has_one_does_whatever_he_asks() -> None:
    async with controlled(token=TOKEN) as base:
        where = URL(base)
        for target in ("GET /v1/status", "GET /healthz", "OPTIONS *", "OPTIONS /", "CONNECT x:1", "TRACE /"):
            reader, writer = await asyncio.open_connection(where.host, where.port)
            writer.write(f"{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await soon(reader.read())
            assert answer.split()[1] in (b"401", b"404", b"200"), target
            assert b"Connection: close" in answer
            writer.close()
        reader, writer = await asyncio.open_connection(where.host, where.port)
        head = f"GET /nowhere HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        for _ in range(2):
            writer.write(head)
            assert b"Connection: close" not in await soon(reader.readuntil(b"\r\n\r\n"))
            await soon(reader.readexactly(len("hello 127.0.0.1")))
        writer.close()


async def test_who_has_no_token_is_not_asked_for_the_body_he_waits_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncchatd.listening.listener.LINGER_SECONDS", 600.0)
    async with controlled(token=TOKEN) as base:
        where = URL(base)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(
            b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b"HTTP/1.1 401 " in await soon(reader.read())
        writer.close()


async def test_a_browser_is_made_to_ask_for_the_token_and_a_stranger_keeps_no_connection() -> None:
    async with controlled(token=TOKEN) as base, aiohttp.ClientSession() as http, http.get(base) as response:
        challenges = response.headers.getall("WWW-Authenticate")
        assert [challenge.split()[0] for challenge in challenges] == ["Basic", "Bearer"]
        assert response.headers["Connection"] == "close"
        assert (await response.json())["error"]["code"] == "unauthorized"


async def test_any_token_of_the_file_will_do(tmp_path: Path) -> None:
    """Two while it is being changed."""
    (tmp_path / "tokens").write_text("# since May\nold-token\n\nnew-token\n")
    async with controlled(token_file=tmp_path / "tokens", token=TOKEN) as base:
        for token in ("old-token", "new-token", TOKEN):
            assert (await asked(base, Authorization=f"Bearer {token}"))[0] == 200
        assert (await asked(base, Authorization="Bearer since"))[0] == 401


async def test_tokens_can_be_changed_while_it_serves() -> None:
    guard = Guard(ControlSettings.model_validate({"token": "old-token"}))
    async with listening(guard.before(greeting())) as base:
        assert (await asked(base, Authorization="Bearer old-token"))[0] == 200
        guard.reload(settings_of(control={"token": "new-token"}))
        assert (await asked(base, Authorization="Bearer old-token"))[0] == 401
        assert (await asked(base, Authorization="Bearer new-token"))[0] == 200


async def test_a_wrong_token_is_told_once_with_the_rest_at_the_end_and_not_repeated(events: Events) -> None:
    async with controlled(token=TOKEN) as base:
        for _ in range(5):
            await asked(base, Authorization="Bearer guess-work")
    told = [(line["cause"], line["count"]) for line in events.of(Event.CLIENT_REFUSED)]
    assert told == [("token", 1), ("token", 4)]
    assert "guess-work" not in events.text


def test_what_is_no_ascii_is_just_wrong() -> None:
    assert not knows("Bearer \udcff\xe9", (TOKEN.encode(),))
    assert not knows("Basic \xe9", (TOKEN.encode(),))


# -- browsers with foreign pages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1:8092"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://127.0.0.1:8093"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8092"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://status.example"}, True),
    ],
)
def test_a_page_of_another_site_is_known_by_what_the_browser_says(
    headers: dict[str, str], ours: bool
) -> None:
    assert same_site(CIMultiDict({"Host": "127.0.0.1:8092", **headers})) is ours


async def test_a_foreign_page_takes_no_place_of_those_who_look() -> None:
    """It could not read what comes, but hold it open."""
    async with controlled() as base:
        for said in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
            assert (await asked(base, path="/v1/live", **said))[0] == 403
            assert (await asked(base, path="/", **said))[0] == 200  # somebody may follow a link to the page
        assert (await asked(base, path="/v1/live", Origin=base))[0] == 200
        assert (await asked(base, path="/v1/live", Sec_Fetch_Site="same-origin"))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_a_foreign_page_changes_nothing(method: str, events: Events) -> None:
    """Not even with the token, which the browser sends along once it knows it."""
    async with controlled(token=TOKEN) as base:
        known = {"Authorization": basic("", TOKEN)}
        assert (await asked(base, method, Origin="http://evil.example", **known))[0] == 403
        assert (await asked(base, method, Sec_Fetch_Site="cross-site", **known))[0] == 403
        assert (await asked(base, method, **known))[0] == 200
        assert (await asked(base, method, Origin=base, **known))[0] == 200
        assert (await asked(base, "GET", Origin="http://evil.example", **known))[0] == 200
    assert {line["cause"] for line in events.of(Event.CLIENT_REFUSED)} == {"origin"}


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost", True),
        ("LOCALHOST:8092", True),
        ("asyncchatd.localhost:8092", True),
        ("127.0.0.1:8092", True),
        ("10.0.0.7", True),
        ("[::1]:8092", True),
        ("evil.example:8092", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("[", False),
        ("", False),
        (None, False),
    ],
)
def test_a_name_that_somebody_may_own_is_not_ours(host: str | None, ours: bool) -> None:
    assert is_ours(host) is ours


async def test_a_foreign_name_that_was_made_to_point_here_shows_nothing() -> None:
    """DNS rebinding: for the browser the page of evil.example and this API are one site."""
    async with controlled() as base:
        for method in ("GET", "POST"):
            status, text = await asked(base, method, "/v1/sessions", Host="evil.example:8092")
            assert status == 403
            assert "control.token_file" in text
        assert (await asked(base, path="/healthz", Host="evil.example"))[0] == 200
        assert (await asked(base, path="/v1/sessions", Host="localhost:8092"))[0] == 200
    async with controlled(token=TOKEN) as base:  # the browser has no token for that name
        authorized = {"Authorization": f"Bearer {TOKEN}"}
        assert (await asked(base, Host="asyncchatd.our-company.example", **authorized))[0] == 200


async def test_over_a_unix_socket_any_name_will_do(tmp_path: Path) -> None:
    settings = ControlSettings.model_validate({"listen": f"unix:{tmp_path}/s"})
    async with (
        listening(Guard(settings).before(greeting()), f"unix:{tmp_path}/s"),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "s"))) as http,
        http.post("http://asyncchatd/v1/sessions") as response,
    ):
        assert response.status == 200


# -- whatever a stranger writes ----------------------------------------------------------------------------

said = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=80)
hop = st.builds(
    "{}{}{}".format,
    st.sampled_from(["for=", 'For="[', "by=x;for=", "", "host=", "for=;for="]),
    said | st.ip_addresses().map(str),
    st.sampled_from(["", ']:80"', ";proto=http", ",", '"']),
)


@given(st.lists(hop, max_size=4), said, said, said)
def test_no_header_makes_it_stumble(hops: list[str], host: str, origin: str, authorization: str) -> None:
    headers = CIMultiDict({"Host": host, "Origin": origin, "Forwarded": ",".join(hops)})
    headers.extend([("X-Forwarded-For", each) for each in hops])
    forwarded(headers)
    x_forwarded_for(headers)
    is_ours(host)
    same_site(headers)
    for scheme in ("Basic", "Bearer", "basic "):
        assert not knows(f"{scheme} {authorization}", (TOKEN.encode(),)) or TOKEN in authorization


@given(st.lists(hop, max_size=4), st.ip_addresses())
def test_what_a_client_writes_does_not_change_what_the_proxy_adds(
    hops: list[str], client: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    """A quotation mark left open, for instance."""
    mapped = getattr(client, "ipv4_mapped", None) or client
    added = f"[{client}]" if client.version == 6 else str(client)
    for last in (f'for="{added}"', f"for={client}" if client.version == 4 else f'for="{added}:80"'):
        assert forwarded(CIMultiDict({"Forwarded": ", ".join([*hops, last])}))[-1] == mapped
    assert x_forwarded_for(CIMultiDict({"X-Forwarded-For": ", ".join([*hops, str(client)])}))[-1] == mapped


def test_an_address_that_was_let_in_is_judged_anew_after_a_reload() -> None:
    before, after = (
        settings_of(control={"allow": [network]}).control for network in ("10.0.0.0/8", "11.0.0.0/8")
    )
    access = Access(before, Refusals("control", FakeClock()))
    once, now = ipaddress.ip_address("10.1.2.3"), ipaddress.ip_address("11.1.2.3")
    assert (access.admits(once), access.admits(now)) == (True, False)
    access.reload(after)
    assert (access.admits(once), access.admits(now)) == (False, True)
