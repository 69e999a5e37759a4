"""Who may do what at the control API: tokens, their rights, and foreign pages in a browser."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest
from aiohttp import web
from conftest import Certificates, Events, listening, settings_of, soon
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from yarl import URL

from asyncchatd.config.sections.listeners import ControlSettings
from asyncchatd.config.values.rights import ORDINARY_RIGHTS, Right
from asyncchatd.listening.access import go_on_later
from asyncchatd.listening.guard import Guard, Need, Needs, is_ours, rights_of, same_site
from asyncchatd.log.events import Event
from listening.test_access import asked, greet, greeting

TOKEN = "a-token-that-nobody-guesses"

NEEDS: Needs = {
    ("*", "/{path}"): Need(),
    ("GET", "/healthz"): Need(token=False),
    ("GET", "/readyz"): Need(token=False),
}
"""Of an application with one handler for all paths."""


# -- tokens --------------------------------------------------------------------------------------------


@asynccontextmanager
async def controlled(**control: object) -> AsyncIterator[str]:
    settings = ControlSettings.model_validate({"listen": "127.0.0.1:0", **control})
    async with listening(Guard(settings).before(greeting(), NEEDS)) as base:
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
    async with listening(guard.before(greeting(), NEEDS)) as base:
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
    grants = ((TOKEN.encode(), ORDINARY_RIGHTS),)
    assert rights_of("Bearer \udcff\xe9", grants) is None
    assert rights_of("Basic \xe9", grants) is None


# -- rights ----------------------------------------------------------------------------------------------

CALLS: dict[str, Need] = {
    **{f"/{right}": Need(right) for right in Right},
    "/live": Need(Right.READ, same_site=True),
    "/any": Need(),
}


@asynccontextmanager
async def calls(
    listen: str = "127.0.0.1:0",
    guard: Guard | None = None,
    receiver: Mapping[str, object] | None = None,
    **control: object,
) -> AsyncIterator[str]:
    """An application with one call for each right, `/keys` for instance, by GET and by POST."""
    app = web.Application()
    for path in CALLS:
        app.router.add_get(path, greet)
        app.router.add_post(path, greet, expect_handler=go_on_later)
    needs = {(method, path): need for path, need in CALLS.items() for method in ("GET", "POST")}
    guard = guard or Guard(ControlSettings.model_validate({"listen": listen, **control}))
    async with listening(guard.before(app, needs), listen, receiver=receiver) as base:
        yield base


async def allowed(base: str, token: str | None = None, **headers: str) -> set[str]:
    """The rights of whoever comes so; each is asked for with both methods."""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    found = set()
    for right in Right:
        statuses = {
            (await asked(base, method, f"/{right}", **headers))[0] for method in ("GET", "HEAD", "POST")
        }
        assert statuses in ({200}, {403})
        if statuses == {200}:
            found.add(right.value)
    return found


@asynccontextmanager
async def tokens(tmp_path: Path, *lines: str) -> AsyncIterator[str]:
    (tmp_path / "tokens").write_text("\n".join(lines))
    async with calls(token_file=tmp_path / "tokens", token=TOKEN) as base:
        yield base


async def test_a_token_may_what_stands_behind_it_and_nothing_else(tmp_path: Path) -> None:
    lines = ["# the dashboard", "dashboard read", "chat-app\tregister  keys events", "operator", "alone keys"]
    async with tokens(tmp_path, *lines) as base:
        assert await allowed(base, "dashboard") == {"read"}
        assert await allowed(base, "chat-app") == {"register", "keys", "events"}
        assert await allowed(base, "alone") == {"keys"}
        for token in ("operator", TOKEN):
            assert await allowed(base, token) == {"read", "register", "operate"}
        for token in ("dashboard", "chat-app", "alone"):
            for path in ("/any", "/nowhere"):  # what needs no right; what is not there is no secret
                status, _ = await asked(base, path=path, Authorization=f"Bearer {token}")
                assert status == (200 if path == "/any" else 404)
        assert (await asked(base, path="/any", Authorization="Bearer read"))[0] == 401


async def test_a_missing_right_is_named_and_the_token_is_not(tmp_path: Path, events: Events) -> None:
    async with tokens(tmp_path, "dashboard-4711 read") as base:
        for _ in range(3):
            status, text = await asked(base, "POST", "/operate", Authorization="Bearer dashboard-4711")
    error = orjson.loads(text)["error"]
    assert (status, error["code"], error["field"]) == (403, "missing_right", None)
    assert error["message"] == 'expected a token with the right "operate"; this one has read'
    told = [(line["cause"], line["count"]) for line in events.of(Event.CLIENT_REFUSED)]
    assert told == [("right operate", 1), ("right operate", 2)]
    assert "dashboard-4711" not in events.text + text


async def test_a_token_without_any_events_is_told_which_right_would_do(tmp_path: Path) -> None:
    async with tokens(tmp_path, "dashboard read") as base:
        _, text = await asked(base, path="/events?consumer=app%0A", Authorization="Bearer dashboard")
    message = orjson.loads(text)["error"]["message"]
    assert message == 'expected a token with the right "events", or "events:app\\n"; this one has read'


async def test_events_are_of_the_consumers_that_a_token_names(tmp_path: Path) -> None:
    lines = [
        "one events:app",
        "two events:app,archive",
        "both events:app events:archive read",
        "all events:app events",
    ]
    async with tokens(tmp_path, *lines) as base:

        async def status(token: str, query: str) -> int:
            return (await asked(base, path=f"/events{query}", Authorization=f"Bearer {token}"))[0]

        for token, names in (
            ("one", {"app"}),
            ("two", {"app", "archive"}),
            ("both", {"app", "archive"}),
            ("all", {"app", "archive", "other"}),
        ):
            reached = {
                name
                for name in ("app", "archive", "other")
                if await status(token, f"?consumer={name}") == 200
            }
            assert reached == names
        # Whichever of two the handler takes.
        for query in (
            "?consumer=app&consumer=other",
            "?consumer=other&consumer=app",
            "?consumer=",
            "?consumer=APP",
        ):
            assert await status("one", query) == 403
        assert await status("one", "") == 200  # the handler asks for a name
        _, text = await asked(base, path="/events?consumer=other", Authorization="Bearer one")
        error = orjson.loads(text)["error"]
        assert (error["code"], error["field"]) == ("missing_right", "consumer")
        assert error["message"].endswith("to this consumer: events, or events:NAME with its name")


async def test_who_lacks_a_right_keeps_his_connection_and_is_asked_for_no_body(tmp_path: Path) -> None:
    async with tokens(tmp_path, "dashboard read") as base:
        where = URL(base)
        head = "Host: x\r\nAuthorization: Bearer dashboard\r\n"
        reader, writer = await asyncio.open_connection(where.host, where.port)
        for _ in range(2):
            writer.write(f"POST /operate HTTP/1.1\r\n{head}Content-Length: 0\r\n\r\n".encode())
            answer = await soon(reader.readuntil(b"\r\n\r\n"))
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"Connection: close" not in answer
            await soon(reader.readuntil(b"}}\n"))
        body = "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n"
        writer.write(f"POST /register HTTP/1.1\r\n{head}{body}\r\n".encode())
        answer = await soon(reader.read())
        assert answer.startswith(b"HTTP/1.1 403 ")
        writer.close()


async def test_behind_a_proxy_the_rights_are_those_of_the_token(tmp_path: Path) -> None:
    """What it tells of the client is put into another request, which has to lead to the same call."""
    file = tmp_path / "tokens"
    file.write_text("dashboard read")
    guard = Guard(settings_of(control={"token_file": file}).control)
    async with calls(guard=guard, receiver={"trusted_proxies": ["127.0.0.1"]}) as base:
        assert await allowed(base, "dashboard", X_Forwarded_For="192.0.2.1") == {"read"}
        assert (await asked(base, path="/read", X_Forwarded_For="192.0.2.1"))[0] == 401


async def test_without_tokens_neither_keys_nor_texts_are_told(tmp_path: Path) -> None:
    async with calls() as base:
        assert await allowed(base) == {"read", "register", "operate"}
        for path in ("/keys", "/events"):
            status, text = await asked(base, path=path)
            assert status == 403
            assert "control.trust_socket" in orjson.loads(text)["error"]["message"]
    assert await over_socket(tmp_path) == {"read", "register", "operate"}


async def test_a_certificate_stands_for_no_right_to_keys(certificates: Certificates) -> None:
    """Any that the authority has signed would do."""
    settings = ControlSettings.model_validate(
        {
            "listen": "127.0.0.1:0",
            "tls_certificate": certificates.server,
            "tls_key": certificates.server_key,
            "tls_client_ca": certificates.ca,
        }
    )
    async with calls(guard=Guard(settings)) as base:
        assert await allowed(base) == {"read", "register", "operate"}


async def over_socket(
    tmp_path: Path, headers: dict[str, str] | None = None, **control: bool | str
) -> set[str]:
    """The rights of one who comes over the Unix socket without a token."""
    path = tmp_path / "s"
    found = set()
    async with (
        calls(f"unix:{path}", None, None, **control),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), headers=headers) as http,
    ):
        for right in Right:
            async with http.get(f"http://asyncchatd/{right}") as response:
                if response.status == 200:
                    found.add(right.value)
                else:
                    assert response.status in (401, 403)
    return found


async def test_a_socket_that_is_trusted_gives_every_right_to_whoever_opens_it(tmp_path: Path) -> None:
    assert await over_socket(tmp_path, trust_socket=True) == set(Right)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
async def test_a_proxy_at_a_trusted_socket_does_not_give_its_clients_its_own_rights(
    tmp_path: Path, header: str
) -> None:
    came = {header: "for=192.0.2.1" if header == "Forwarded" else "192.0.2.1"}
    assert await over_socket(tmp_path, came, trust_socket=True) == {"read", "register", "operate"}


async def test_where_there_are_tokens_a_trusted_socket_asks_for_one(tmp_path: Path) -> None:
    assert await over_socket(tmp_path, trust_socket=True, token=TOKEN) == set()


async def test_a_trusted_socket_that_is_none_is_not_trusted() -> None:
    """systemd may have handed over another one than the configuration says."""
    settings = ControlSettings.model_validate({"listen": "unix:/run/c.sock", "trust_socket": True})
    async with calls(guard=Guard(settings)) as base:
        assert await allowed(base) == {"read", "register", "operate"}


async def test_rights_can_be_changed_while_it_serves(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("dashboard read operate")
    guard = Guard(settings_of(control={"token_file": file}).control)
    async with calls(guard=guard) as base:
        assert await allowed(base, "dashboard") == {"read", "operate"}
        file.write_text("dashboard read")
        guard.reload(settings_of(control={"token_file": file}))
        assert await allowed(base, "dashboard") == {"read"}


def test_an_application_with_a_route_of_which_nobody_knows_who_may_use_it_is_not_served() -> None:
    app = web.Application()
    app.router.add_get("/known", greet)
    app.router.add_get("/unknown", greet)
    app.router.add_post("/known", greet)
    guard = Guard(ControlSettings())
    with pytest.raises(ValueError, match="expected what a client needs for") as caught:
        guard.before(app, {("GET", "/known"): Need(Right.READ)})
    assert {"GET /unknown", "POST /known"} <= set(str(caught.value).partition(" for ")[2].split(", "))


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
    async with calls() as base:
        for said in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
            assert (await asked(base, path="/live", **said))[0] == 403
            assert (await asked(base, path="/read", **said))[
                0
            ] == 200  # somebody may follow a link to the page
        assert (await asked(base, path="/live", Origin=base))[0] == 200
        assert (await asked(base, path="/live", Sec_Fetch_Site="same-origin"))[0] == 200


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
        listening(Guard(settings).before(greeting(), NEEDS), f"unix:{tmp_path}/s"),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "s"))) as http,
        http.post("http://asyncchatd/v1/sessions") as response,
    ):
        assert response.status == 200


# -- whatever a stranger writes ----------------------------------------------------------------------------

said = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=80)


@given(said, said, said)
def test_no_header_makes_it_stumble(host: str, origin: str, authorization: str) -> None:
    headers = CIMultiDict({"Host": host, "Origin": origin})
    is_ours(host)
    same_site(headers)
    for scheme in ("Basic", "Bearer", "basic "):
        rights = rights_of(f"{scheme} {authorization}", ((TOKEN.encode(), ORDINARY_RIGHTS),))
        assert rights is None or TOKEN in authorization
