"""Who may use a listener: networks, proxies that are believed and others."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import aiohttp
import orjson
import pytest
from aiohttp import web
from conftest import Events, FakeClock, listening, settings_of, soon
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from asyncchatd.listening.access import (
    Access,
    Refusals,
    forwarded,
    x_forwarded_for,
)
from asyncchatd.log.events import Event


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


def test_the_log_has_an_address_as_an_operator_writes_it(events: Events) -> None:
    refusals = Refusals("receiver", FakeClock())
    for cause, client in (
        ("network", "::ffff:192.0.2.1"),
        ("silent", "2001:db8::1"),
        ("TLS", "unix"),
        ("method", None),
    ):
        refusals.add(cause, client)
    assert [line["client"] for line in events.of(Event.CLIENT_REFUSED)] == [
        "192.0.2.1",
        "2001:db8::1",
        "unix",
        None,
    ]


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
        ({"X_Forwarded_For": "fe80::1%eth0"}, "fe80::1"),
        ({"Forwarded": "for=192.0.2.1"}, "192.0.2.1"),
        ({"Forwarded": "for= 192.0.2.1 ; proto=https"}, "192.0.2.1"),
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
    ("headers", "cause", "client"),
    [
        ({"X_Forwarded_For": "10.0.0.1, 192.0.2.1"}, "network", "192.0.2.1"),
        ({"X_Forwarded_For": "10.0.0.1, unknown"}, "forwarded header", "127.0.0.1"),
        ({"X_Forwarded_For": ""}, "forwarded header", "127.0.0.1"),
        ({"X_Forwarded_For": "10.0.0.1", "Forwarded": "for=192.0.2.1"}, "forwarded header", "127.0.0.1"),
        ({"X_Forwarded_For": "192.0.2.1", "Forwarded": "for=10.0.0.1"}, "forwarded header", "127.0.0.1"),
        ({"Forwarded": "for=10.0.0.1;for=192.0.2.1"}, "forwarded header", "127.0.0.1"),
        ({"Forwarded": 'for="10.0.0.1, for=192.0.2.1'}, "network", "192.0.2.1"),
        ({}, "network", "127.0.0.1"),
    ],
)
async def test_behind_a_proxy_allow_is_about_the_client(
    headers: dict[str, str], cause: str, client: str, events: Events
) -> None:
    """What cannot be understood is nobody's address, and of two headers one may be the client's own."""
    proxied = {"trusted_proxies": ["127.0.0.1"], "allow": ["10.0.0.0/8"]}
    async with listening(greeting(), receiver=proxied) as base:
        status, body = await asked(base, **headers)
        assert (status, orjson.loads(body)["error"]["code"]) == (403, "forbidden")
        assert await asked(base, X_Forwarded_For="192.0.2.1, 10.0.0.1") == (200, "hello 10.0.0.1")
    refused = events.one(Event.CLIENT_REFUSED)
    assert (refused["cause"], refused["client"]) == (cause, client)


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Forwarded_For": "unknown"},
        {"X_Forwarded_For": "10.0.0.1", "Forwarded": "for=192.0.2.1"},
        {"Forwarded": "for=10.0.0.1;for=192.0.2.1"},
    ],
)
async def test_who_cannot_be_told_is_refused_also_where_everybody_may_come(headers: dict[str, str]) -> None:
    async with listening(greeting(), receiver={"trusted_proxies": ["127.0.0.1"]}) as base:
        assert (await asked(base, **headers))[0] == 403
        assert await asked(base, X_Forwarded_For="192.0.2.1") == (200, "hello 192.0.2.1")


async def test_a_proxy_may_come_over_a_unix_socket(tmp_path: Path) -> None:
    proxied = {"trusted_proxies": ["unix"], "allow": ["10.0.0.0/8"]}
    async with (
        listening(greeting(), f"unix:{tmp_path}/s", receiver=proxied),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "s"))) as http,
    ):
        for client, status in (("10.0.0.1", 200), ("192.0.2.1", 403)):
            async with http.get("http://x/", headers={"X-Forwarded-For": client}) as response:
                assert response.status == status
        async with http.get("http://x/") as response:
            assert response.status == 200, "a request of its own"
            assert "unix" not in await soon(response.text())


def test_headers_on_several_lines_are_one_way() -> None:
    lines = CIMultiDict([("X-Forwarded-For", "192.0.2.1"), ("x-forwarded-for", "192.0.2.2, nonsense")])
    assert [str(address) for address in x_forwarded_for(lines)] == ["192.0.2.1", "192.0.2.2", "None"]
    lines = CIMultiDict([("Forwarded", "for=192.0.2.1"), ("Forwarded", "by=192.0.2.9")])
    assert [str(address) for address in forwarded(lines)] == ["192.0.2.1", "None"]


# -- whatever a stranger writes ----------------------------------------------------------------------------

said = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=80)
hop = st.builds(
    "{}{}{}".format,
    st.sampled_from(["for=", 'For="[', "by=x;for=", "", "host=", "for=;for="]),
    said | st.ip_addresses().map(str),
    st.sampled_from(["", ']:80"', ";proto=http", ",", '"']),
)


@given(st.lists(hop, max_size=4))
def test_no_header_makes_it_stumble(hops: list[str]) -> None:
    headers = CIMultiDict({"Forwarded": ",".join(hops)})
    headers.extend([("X-Forwarded-For", each) for each in hops])
    forwarded(headers)
    x_forwarded_for(headers)


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
