"""The push endpoint on real sockets: durable before 200, and silent towards whoever does not know the secret."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import orjson
import pytest
import uvloop
from aiohttp import web
from conftest import Events, FakeClock, MakeSettings, PromptStore, listening, register, settle, soon
from yarl import URL

from asyncchatd.listening.senders import Senders
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model import Failing
from asyncchatd.model.data import Ms, Reason, SessionState
from asyncchatd.receiver import Receiver
from asyncchatd.standin.messages import write_push
from asyncchatd.stores import StoreError, StoreFull
from asyncchatd.stores.answers import Taken
from asyncchatd.wire.push import Push

pytestmark = pytest.mark.usefixtures("events")

SECRET = "push-secret-1"
PUSH = write_push("device-of-chat-1", {"session-id": "chat-1", "secure-key": "key-of-chat-1"})


@dataclass
class Endpoint:
    """A receiver on loopback and a client of it."""

    base: str
    http: aiohttp.ClientSession
    wakeup: asyncio.Event
    senders: Senders

    async def post(self, secret: str, body: object = PUSH, **headers: str) -> tuple[int, bytes]:
        response = await self.answer(f"/push/{secret}", body, **headers)
        return response.status, await response.read()

    async def answer(
        self, path: str, body: object = PUSH, method: str = "POST", **headers: str
    ) -> aiohttp.ClientResponse:
        url = URL(self.base + path, encoded=True)
        response = await soon(self.http.request(method, url, data=body, headers=headers))
        await response.read()
        return response

    async def raw(self, request: bytes) -> bytes:
        """What comes back for these bytes until the connection is closed."""
        where = URL(self.base)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(request)
        try:
            return await soon(reader.read())
        finally:
            writer.close()


@asynccontextmanager
async def receiving(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, **receiver: object
) -> AsyncIterator[Endpoint]:
    settings = make_settings(receiver={"secrets": [SECRET], **receiver})
    wakeup = asyncio.Event()
    senders = Senders(clock)
    app = Receiver(store, settings.receiver, clock, wakeup, senders).app()
    async with listening(app) as base, aiohttp.ClientSession() as http:
        yield Endpoint(base, http, wakeup, senders)


# -- taken -----------------------------------------------------------------------------------------


async def test_a_push_makes_its_session_due(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", now=clock.now())
    async with receiving(store, clock, make_settings) as endpoint:
        assert await endpoint.post(SECRET) == (200, b"")
        assert endpoint.wakeup.is_set()
    await store.absorb(10)
    session = await store.get("chat-1")
    assert session is not None
    assert (session.reason, session.due_at) == (Reason.ACKNOWLEDGE, clock.now())
    received = events.one(Event.PUSH_RECEIVED)
    assert (received["chat_id"], received["known"], received["reason"]) == ("chat-1", "known", "acknowledge")
    assert received["bytes"] == len(PUSH)


async def test_200_comes_after_the_commit_and_not_before(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GMS does not send a notification again by itself."""
    committing, go_on = asyncio.Event(), asyncio.Event()
    take_push = store.take_push

    async def slow(push: Push, *, now: Ms) -> Taken:
        committing.set()
        await go_on.wait()
        return await take_push(push, now=now)

    monkeypatch.setattr(store, "take_push", slow)
    async with receiving(store, clock, make_settings) as endpoint:
        answered = asyncio.create_task(endpoint.post(SECRET))
        await soon(committing.wait())
        await settle()
        assert not answered.done()
        assert not endpoint.wakeup.is_set()
        go_on.set()
        assert await answered == (200, b"")
    assert len(await store.absorb(10)) == 1


async def test_a_shutdown_notice_makes_its_session_due_for_restoration(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    leave = {
        "type": "ParticipantLeft",
        "index": 9,
        "from": {"participantId": 1},
        "eventAttributes": {"GCTI_SYSTEM": {"quit-reason-advice": "reconnect"}},
    }
    await register(store, "chat-1", now=clock.now())
    async with receiving(store, clock, make_settings) as endpoint:
        body = write_push("device-of-chat-1", {"chatId": "chat-1", "messages": [leave]})
        assert (await endpoint.post(SECRET, body))[0] == 200
    await store.absorb(10)
    session = await store.get("chat-1")
    assert session is not None
    assert (session.state, session.reason) == (SessionState.LIVE, Reason.RESTORE)
    received = events.one(Event.PUSH_RECEIVED)
    assert (received["reason"], received["type"]) == ("restore", "ParticipantLeft")


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain; charset=latin-1", "multipart/form-data", "nonsense", ""]
)
async def test_any_content_type_is_taken(
    content_type: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """Which one GMS sends is unknown (protocol section 3)."""
    async with receiving(store, clock, make_settings) as endpoint:
        status, _ = await endpoint.post(SECRET, PUSH, **{"Content-Type": content_type})
    assert status == 200


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(PUSH)),
        ("X-GZip", gzip.compress(PUSH)),
        ("gzip", gzip.compress(PUSH[:20]) + gzip.compress(PUSH[20:])),
        ("deflate", zlib.compress(PUSH)),
        ("deflate", zlib.compress(PUSH)[2:-4]),
        ("identity", PUSH),
        ("", PUSH),
    ],
    ids=["gzip", "x-gzip", "two members", "deflate", "deflate without its header", "identity", "nothing"],
)
async def test_a_compressed_push_is_taken(
    encoding: str, body: bytes, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        assert (await endpoint.post(SECRET, body, **{"Content-Encoding": encoding}))[0] == 200


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "x" * 500])
async def test_an_unknown_content_encoding_is_a_415_that_says_what_is_taken(
    encoding: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        packed = b"\x0b\x00" + PUSH
        status, answer = await endpoint.post(SECRET, packed, **{"Content-Encoding": encoding})
        error = orjson.loads(answer)["error"]
        assert (status, error["code"]) == (415, "unsupported_encoding")
        assert "expected gzip or deflate" in error["message"]
        assert (await endpoint.post("wrong", packed, **{"Content-Encoding": encoding}))[0] == 404


@pytest.mark.parametrize("encoding", ["utf-8", "8bit", "none", "br"])
async def test_a_push_that_is_not_packed_is_taken_whatever_coding_it_says(
    encoding: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        assert (await endpoint.post(SECRET, PUSH, **{"Content-Encoding": encoding}))[0] == 200


@pytest.mark.slow
async def test_nothing_is_unpacked_for_who_does_not_know_the_secret(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 KB unpack to 250 MB: four of them at once made every push wait for two seconds. Their number does not
    matter, if they are looked at no more than any other body is."""
    once = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    bomb = b"".join(once.compress(bytes(1 << 20)) for _ in range(200)) + once.flush()
    assert len(bomb) < 256 * 1024
    async with receiving(store, clock, make_settings) as endpoint:
        used = time.process_time()
        for path in ("/push/wrong", "/push", "/", "/healthz"):
            for _ in range(2):
                answer = await endpoint.answer(path, bomb, **{"Content-Encoding": "gzip"})
                assert answer.status == 404
        assert time.process_time() - used < 0.5  # unpacking one of them takes as long
        status, _ = await endpoint.post(SECRET, bomb, **{"Content-Encoding": "gzip"})
        assert status == 413


UMLAUTS = {"deviceId": "device-of-chat-1", "message": {"session-id": "chät-1", "secure-key": "key-of-chat-1"}}


@pytest.mark.parametrize(
    ("charset", "python"),
    [
        ("iso-8859-1", "latin-1"),
        ("ISO-8859-15", "iso8859-15"),
        ("windows-1252", "cp1252"),
        ('"UTF-16"', "utf-16"),
        ("utf-16le", "utf-16-le"),
        ("UTF-16BE", "utf-16-be"),
        ("utf-8", "utf-8"),
    ],
)
async def test_a_body_is_read_in_the_charset_it_says(
    charset: str,
    python: str,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
) -> None:
    body = json.dumps(UMLAUTS, ensure_ascii=False).encode(python)
    async with receiving(store, clock, make_settings) as endpoint:
        said = {"Content-Type": f"application/json; charset={charset}"}
        assert (await endpoint.post(SECRET, body, **said))[0] == 200
        packed = {**said, "Content-Encoding": "gzip"}
        assert (await endpoint.post(SECRET, gzip.compress(body), **packed))[0] == 200
    assert [line["chat_id"] for line in events.of(Event.PUSH_RECEIVED)] == ["chät-1"] * 2


@pytest.mark.parametrize(
    "charset",
    [
        *("klingon", "zip", "punycode", "idna", "unicode_escape", "rot13", "utf-7", "x" * 500, "\xe9"),
        *("utf-16", "utf-32-le", "ascii", "latin-1", "cp037", "shift_jis"),
    ],
)
async def test_a_push_in_utf8_is_taken_as_that_whatever_charset_it_says(
    charset: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    body = json.dumps(UMLAUTS, ensure_ascii=False).encode()
    async with receiving(store, clock, make_settings) as endpoint:
        said = {"Content-Type": f"application/json; charset={charset}"}
        assert (await endpoint.post(SECRET, body, **said))[0] == 200
    assert events.one(Event.PUSH_RECEIVED)["chat_id"] == "chät-1"


@pytest.mark.parametrize(("charset", "body"), [("utf-16", PUSH[:-1] + b"\xd8"), ("utf-16-le", PUSH[:-1])])
async def test_a_body_that_is_not_in_its_charset_is_a_400(
    charset: str, body: bytes, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        status, _ = await endpoint.post(SECRET, body, **{"Content-Type": f"text/plain; charset={charset}"})
    assert status == 400


@pytest.mark.parametrize(
    "path", [f"/push/{SECRET}/", f"//push/{SECRET}", f"/push//{SECRET}", f"//push///{SECRET}//"]
)
async def test_slashes_that_are_too_many_do_not_matter(
    path: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """They come from a base address with a slash at its end."""
    async with receiving(store, clock, make_settings) as endpoint:
        where = URL(endpoint.base)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        for _ in range(2):  # and the connection is kept
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PUSH)}\r\n\r\n"
            writer.write(head.encode() + PUSH)
            assert (await soon(reader.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert events.of(Event.PUSH_SECRET_WRONG) == []


async def test_a_load_balancer_has_a_page_of_its_own(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        for method, body in (("GET", b'{"alive": true}'), ("HEAD", b"")):
            answer = await endpoint.answer("/healthz", None, method)
            assert (answer.status, await answer.read()) == (200, body)
            assert answer.headers["Connection"] == "close"  # whoever asks has shown nothing
    assert events.all() == []


@pytest.mark.parametrize(
    ("method", "target", "word"),
    [
        ("GET", "/", "a probe of /; the page for probes is /healthz"),
        ("HEAD", "/", "a probe of /; the page for probes is /healthz"),
        ("OPTIONS", "/", "a probe of /; the page for probes is /healthz"),
        ("OPTIONS", "*", None),
        ("POST", "/", "no such path"),
        ("GET", "/favicon.ico", "no such path"),
        ("DELETE", "/healthz", "no such path"),
        ("TRACE", f"/push/{SECRET}", None),
        ("CONNECT", "192.0.2.1:80", None),
        ("BREW", "/", None),
    ],
)
async def test_what_is_no_push_is_no_alarm_and_keeps_no_connection(
    method: str,
    target: str,
    word: str | None,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
) -> None:
    before = metrics.PUSHES.labels("wrong_secret")._value.get()
    async with receiving(store, clock, make_settings) as endpoint:
        for _ in range(3):
            answer = await endpoint.raw(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = answer.partition(b"\r\n\r\n")[0]
            assert head[:13] in (b"HTTP/1.1 404 ", b"HTTP/1.0 400 ", b"HTTP/1.1 405 ")
            assert head.startswith(b"HTTP/1.0 ") or b"Connection: close" in head
    assert events.of(Event.PUSH_SECRET_WRONG) == []
    assert metrics.PUSHES.labels("wrong_secret")._value.get() == before
    if word is not None:
        first, rest = events.of(Event.CLIENT_REFUSED)
        assert (first["cause"], first["client"], first["count"]) == (word, "127.0.0.1", 1)
        assert (rest["cause"], rest["count"]) == (word, 2)


async def test_a_probe_is_told_once_an_hour(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        for _ in range(3):
            await endpoint.answer("/", None, "GET")
            await clock.advance(1_799)
        await endpoint.answer("/", None, "GET")
    assert [line["count"] for line in events.of(Event.CLIENT_REFUSED)] == [1, 3]


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
async def test_a_stranger_who_wants_another_protocol_keeps_no_connection(
    upgrade: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        for path in ("/", "/push/wrong", "/healthz"):
            answer = await endpoint.raw(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n".encode()
            )
            assert answer[9:12] in (b"404", b"200")


async def test_strangers_cannot_take_every_place(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with (
        receiving(store, clock, make_settings, max_connections=8) as endpoint,
        AsyncExitStack() as many,
    ):
        where = URL(endpoint.base)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        head = f"POST /push/{SECRET} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PUSH)}\r\n\r\n"
        for target in ("OPTIONS *", "CONNECT x:1", "TRACE /", "GET /", "POST /push/wrong", "PRI *"):
            for _ in range(4):
                strange, asking = await asyncio.open_connection(where.host, where.port)
                many.callback(asking.close)
                asking.write(f"{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await soon(strange.read())
        writer.write((head.encode() + PUSH) * 2)
        for _ in range(2):
            assert (await soon(reader.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_that_half_closes_gets_its_answer(
    loop: str, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """`shutdown(SHUT_WR)` says that there is nothing more to come, not that the answer is of no interest."""

    async def run() -> None:
        store = PromptStore()
        await store.open()
        async with receiving(store, clock, make_settings) as endpoint:
            where = URL(endpoint.base)
            head = f"POST /push/{SECRET} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PUSH)}\r\n\r\n".encode()
            for request, answers in (
                (head + PUSH, 1),
                ((head + PUSH) * 3, 3),
                (head + PUSH[:-1], 0),
                (head[:9], 0),
            ):
                reader, writer = await asyncio.open_connection(where.host, where.port)
                writer.write(request)
                writer.write_eof()
                answer = await soon(reader.read())  # and then the connection is closed
                assert answer.count(b"HTTP/1.1 200 ") == answers
                writer.close()
        await store.close()

    factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[loop]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


async def test_a_push_sent_twice_is_told_as_sent_twice(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", now=clock.now())
    body = write_push("device-of-chat-1", {"chatId": "chat-1", "messages": [{"type": "Message", "index": 4}]})
    async with receiving(store, clock, make_settings) as endpoint:
        for _ in range(2):
            assert (await endpoint.post(SECRET, body))[0] == 200
            await store.absorb(10)
        assert (await endpoint.post(SECRET, write_push("stranger", None)))[0] == 200
    assert [line["known"] for line in events.of(Event.PUSH_RECEIVED)] == ["known", "resent", "unknown"]


async def test_a_session_pushed_with_all_its_tokens_is_adopted(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    body = write_push(
        "device-1", {"session-id": "chat-1", "user-id": "u", "secure-key": "k", "app-dbid": 117}
    )
    async with receiving(store, clock, make_settings) as endpoint:
        assert (await endpoint.post(SECRET, body))[0] == 200
    await store.absorb(10)
    session = await store.get("chat-1")
    assert session is not None
    assert session.state is SessionState.LIVE


# -- who does not know the secret --------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/push/wrong",
        "/push/push-secret-",
        "/push/push-secret-11",
        "/push/PUSH-SECRET-1",
        "/push/push-secret-1/more",
        "/push//",
        "//push-secret-1/push",
        "/push/",
        "/push",
        "/",
        "/push-secret-1",
        "/v1/sessions",
        "/push/%C3%A9",
        "/push/%FF%FE",
        "/push/%00",
        "/push/push-secret-1%00",
        "/push/" + "x" * 4000,
        "/push/wrong?secret=push-secret-1",
    ],
)
async def test_a_wrong_secret_is_a_404_without_words(
    path: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        response = await endpoint.answer(path)
        assert (response.status, await response.read()) == (404, b"")
        assert not endpoint.wakeup.is_set()
    assert await store.absorb(10) == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_even_with_the_secret_there_is_only_post(
    method: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A 405 would tell that the secret is right."""
    async with receiving(store, clock, make_settings) as endpoint:
        response = await endpoint.answer(f"/push/{SECRET}", None, method)
        assert (response.status, await response.read()) == (404, b"")
        assert "Allow" not in response.headers


async def test_bytes_in_the_path_that_are_no_text_are_not_a_server_error(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        answer = await endpoint.raw(
            b"POST /push/\xff\xfe\xe9 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    assert answer.split(b" ")[1] in (b"400", b"404")


async def test_a_wrong_secret_is_answered_before_the_body_has_come(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        answer = await endpoint.raw(
            b"POST /push/wrong HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("path", ["/push/wrong", "/push//wrong", "/elsewhere"])
@pytest.mark.parametrize("length", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_stranger_who_waits_to_be_asked_for_a_body_is_not_asked_and_goes(
    path: str,
    length: str,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncchatd.listening.listener.LINGER_SECONDS", 600.0)
    async with receiving(store, clock, make_settings) as endpoint:
        answer = await endpoint.raw(
            f"POST {path} HTTP/1.1\r\nHost: x\r\n{length}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
    assert answer.startswith(b"HTTP/1.1 404 ")


async def test_who_knows_the_secret_is_asked_for_the_body_he_waits_with(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        body, where = PUSH, URL(endpoint.base)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        head = (
            f"POST /push/{SECRET} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode())
        assert await soon(reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await soon(reader.read())).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_several_secrets_are_valid_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings, secrets=["old-secret", "new-secret"]) as endpoint:
        statuses = [(await endpoint.post(secret))[0] for secret in ("old-secret", "new-secret", SECRET)]
    assert statuses == [200, 200, 404]


async def test_a_secret_of_percent_encoded_letters_is_the_same_secret(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        assert (await endpoint.answer("/push/push%2Dsecret%2D1")).status == 200


async def test_wrong_secrets_are_logged_once_a_minute_with_their_number(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        for _ in range(5):
            await endpoint.post("wrong")
        await clock.advance(61)
        await endpoint.post("wrong")
    assert [line["count"] for line in events.of(Event.PUSH_SECRET_WRONG)] == [1, 5]


async def test_who_has_a_wrong_secret_is_named_as_in_the_status_also_behind_a_socket_for_both_kinds_of_addresses(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """As a socket unit of systemd opens one: there 127.0.0.1 is `::ffff:127.0.0.1`."""
    senders = Senders(clock)
    app = Receiver(
        store, make_settings(receiver={"secrets": [SECRET]}).receiver, clock, asyncio.Event(), senders
    ).app()
    both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.SockSite(runner, both).start()
    url = f"http://127.0.0.1:{both.getsockname()[1]}/push/wrong"
    async with aiohttp.ClientSession() as http, http.post(url) as answer:
        assert answer.status == 404
    await runner.cleanup()
    [refused] = senders.refusals()
    assert events.one(Event.PUSH_SECRET_WRONG)["client"] == refused.client == "127.0.0.1"


# -- what cannot be taken ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "not_json", None),
        (b"dummy message", "not_json", None),
        (b"[]", "not_an_object", None),
        (b"7", "not_an_object", None),
        (b"{}", "no_identity", "deviceId"),
        (b'{"message": "hello"}', "no_identity", "deviceId"),
        (b'{"deviceId": ' + b"[" * 5000, "not_json", None),
        (b"\x00\xff", "not_json", None),
    ],
)
async def test_a_body_that_is_no_push_is_a_400_that_says_why(
    body: bytes,
    code: str,
    field: str | None,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        status, answer = await endpoint.post(SECRET, body)
    error = orjson.loads(answer)["error"]
    assert (status, error["code"], error["field"]) == (400, code, field)
    assert error["message"]
    refused = events.one(Event.PUSH_REFUSED)
    assert (refused["code"], refused["field"]) == (code, field)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", PUSH),
        ("deflate", PUSH),
        ("gzip", gzip.compress(PUSH)[:30]),
        ("gzip", b"\x1f\x8b" + PUSH),
        ("gzip", b""),
        ("gzip", gzip.compress(PUSH) + PUSH),
        ("gzip", gzip.compress(PUSH) + gzip.compress(b"") * 100),
        ("deflate", zlib.compress(PUSH) + b"more"),
    ],
    ids=[
        "not gzip",
        "not deflate",
        "cut short",
        "damaged",
        "empty",
        "more behind",
        "many members",
        "more deflate",
    ],
)
async def test_a_false_content_encoding_is_a_400(
    encoding: str, body: bytes, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        status, answer = await endpoint.post(SECRET, body, **{"Content-Encoding": encoding})
        assert status == 400
        assert orjson.loads(answer)["error"]["code"] in ("unreadable", "not_json")
        assert (await endpoint.post(SECRET))[0] == 200


async def chunks(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


@pytest.mark.parametrize("announced", [True, False])
async def test_a_push_above_the_limit_is_a_413(
    announced: bool, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings, max_body="4KiB") as endpoint:
        body = b" " * 4097 if announced else chunks(5, 1024)
        response = await endpoint.answer(f"/push/{SECRET}", body)
        error = orjson.loads(await response.read())["error"]
        assert (response.status, error["code"]) == (413, "too_large")
        assert "4096 bytes" in error["message"]
        assert response.headers["Connection"] == "close"


async def test_a_small_body_that_unpacks_to_a_large_one_is_a_413(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        body = gzip.compress(b" " * 30_000_000)
        assert len(body) < 64 * 1024
        status, _ = await endpoint.post(SECRET, body, **{"Content-Encoding": "gzip"})
    assert status == 413


async def test_a_push_of_exactly_the_limit_is_taken(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings, max_body="1KiB") as endpoint:
        assert (await endpoint.post(SECRET, PUSH.ljust(1024)))[0] == 200
        assert (await endpoint.post(SECRET, PUSH.ljust(1025)))[0] == 413


@pytest.mark.slow
async def test_a_body_that_does_not_come_in_time_is_a_408(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings, body_timeout="50ms") as endpoint:
        where = URL(endpoint.base)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(
            b"POST /push/push-secret-1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + PUSH[:20]
        )
        head = await soon(reader.readuntil(b"\r\n\r\n"))
        body = await soon(reader.readuntil(b"}}"))
        async with asyncio.timeout(5):  # whoever stalls does not keep the connection
            assert await reader.read() == b""
        writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in head
    assert orjson.loads(body)["error"]["code"] == "too_slow"


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        where = URL(endpoint.base)
        _, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(b"POST /push/push-secret-1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await endpoint.post(SECRET))[0] == 200
    assert len(await store.absorb(10)) == 1


async def test_a_full_queue_is_a_503_with_retry_after_and_one_line_in_the_log(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    async def full(push: Push, *, now: Ms) -> Taken:
        raise StoreFull("10 pushes are waiting for the disk")

    async with receiving(store, clock, make_settings) as endpoint:
        for _ in range(2):
            with monkeypatch.context() as patched:
                patched.setattr(store, "take_push", full)
                for _ in range(3):
                    response = await endpoint.answer(f"/push/{SECRET}")
                    assert (response.status, response.headers["Retry-After"]) == (503, "1")
                    assert orjson.loads(await response.read())["error"]["code"] == "full"
                assert not endpoint.wakeup.is_set()
            assert (await endpoint.post(SECRET))[0] == 200
            endpoint.wakeup.clear()
    assert len(events.of(Event.STORE_FULL)) == 2


async def test_a_store_that_fails_is_a_503_and_the_next_push_is_taken(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        store.fill_disk()
        response = await endpoint.answer(f"/push/{SECRET}")
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert orjson.loads(await response.read())["error"]["code"] == "store_failed"
        store.free_disk()
        assert (await endpoint.post(SECRET))[0] == 200
    assert "SQLITE_FULL" in str(events.one(Event.STORE_UNWRITABLE)["cause"])
    assert not events.of(Event.STORE_FAILED)
    assert len(await store.absorb(10)) == 1


async def test_a_store_that_is_closed_is_a_503(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closed(push: Push, *, now: Ms) -> Taken:
        raise StoreError("the store is closed")

    monkeypatch.setattr(store, "take_push", closed)
    async with receiving(store, clock, make_settings) as endpoint:
        assert (await endpoint.post(SECRET))[0] == 503


# -- what must not be seen ---------------------------------------------------------------------------


async def test_no_secret_gets_into_the_log_whatever_comes(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    key = "4ee15d7e1c343c8e"
    almost = "push-secret-2"
    bodies = [
        write_push("d", {"session-id": "c", "secure-key": key, "user-id": "u", "app-dbid": "1"}),
        write_push("d", {"chatId": "c", "secureKey": key}, quoting=2),
        write_push(None, {"secureKey": key}),
        b'{"secureKey": "4ee15d7e1c343c8e", ',
        b'"secureKey=4ee15d7e1c343c8e"',
    ]
    async with receiving(store, clock, make_settings) as endpoint:
        for body in bodies:
            for secret in (SECRET, almost):
                _, answer = await endpoint.post(secret, body)
                assert key.encode() not in answer
            _, answer = await endpoint.post(SECRET, body, **{"Content-Encoding": "gzip"})
            assert key.encode() not in answer
        store.fill_disk()
        await endpoint.post(SECRET, bodies[0])
    await clock.advance(0)
    assert events.all()
    for secret in (key, SECRET, almost):
        assert secret not in events.text


# -- who sent it -------------------------------------------------------------------------------------


async def test_it_is_known_from_where_pushes_come(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        await endpoint.post(SECRET)
        await clock.advance(7)
        await endpoint.post(SECRET)
        [sender] = endpoint.senders.senders()
    assert (sender.client, sender.count, sender.last_at) == ("127.0.0.1", 2, clock.now())
    assert endpoint.senders.refusals() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "failing", "message"),
    [
        ("POST", "/push/not-it", PUSH, Failing.SECRET, "what stands behind /push/ is none of the push secrets"),
        ("POST", "/push", PUSH, Failing.SECRET, "no secret stands behind /push/"),
        ("POST", f"/push/{SECRET}/gms", PUSH, Failing.SECRET, "something stands behind the push secret"),
        ("POST", f"/{SECRET}", PUSH, Failing.PATH, "a push secret is in its path, but not right behind /push/"),
        ("POST", f"/genesys/push/{SECRET}", PUSH, Failing.PATH, "a push secret is in its path, but not right behind"),
        ("POST", "/notify", PUSH, Failing.PATH, "its path does not begin with /push/"),
        ("GET", f"/push/{SECRET}", b"", Failing.METHOD, "it was GET instead of POST"),
        ("POST", f"/push/{SECRET}", b"{", Failing.BODY, "its body was refused: not_json"),
    ],
)  # fmt: skip
async def test_it_is_known_what_a_push_failed_at(
    method: str,
    path: str,
    body: bytes,
    failing: Failing,
    message: str,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        await endpoint.answer(path, body, method)
        [refusal] = endpoint.senders.refusals()
    assert (refusal.client, refusal.failing, refusal.message[: len(message)]) == (
        "127.0.0.1",
        failing,
        message,
    )
    assert SECRET not in refusal.message + refusal.advice
    assert endpoint.senders.last_at is None


async def test_a_probe_and_a_scan_by_get_are_nobody_who_tried_to_push(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with receiving(store, clock, make_settings) as endpoint:
        for path in ("/", "/healthz", "/wp-login.php"):
            await endpoint.answer(path, b"", "GET")
    assert endpoint.senders.refusals() == []


async def test_a_push_that_cannot_be_kept_has_reached_us_all_the_same(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(push: Push, *, now: Ms) -> Taken:
        raise StoreFull("full")

    monkeypatch.setattr(store, "take_push", full)
    async with receiving(store, clock, make_settings) as endpoint:
        assert (await endpoint.post(SECRET))[0] == 503
        [refusal] = endpoint.senders.refusals()
    assert (refusal.failing, refusal.message) == (Failing.NOT_KEPT, "the push could not be kept: full")
