"""What people write in chats comes out where it is asked for with the right to it, and nowhere else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from .conftest import Start
from .plant import KEY_MARK, Chat, Reply, free_port, payload, push
from .rig import TOKEN, Answer, Rig, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

TEXT = "plantedtext"
"""In whatever a person writes or is called, so that one search finds any that leaks. Behind it stands what it is."""

CARD = "4111 1111 1111 1111"
"""Searched for as it is written, and without its spaces: four digits of it stand in many a time of day."""

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def said(index: int, kind: str = "Message", by: str = "Agent") -> dict[str, object]:
    """An event with something of a person's in each of its places."""
    return {
        "index": index,
        "type": kind,
        "utcTime": 1_700_000_000_000 + index,
        "text": f"{TEXT}-{by} says that his card is {CARD}",
        "messageType": f"{TEXT}-type",
        "from": {"participantId": 1 + (by == "Agent"), "nickname": f"{TEXT}-nickname", "type": by},
        "eventAttributes": {"note": f"{TEXT}-attribute", "GCTI_SYSTEM": {"subject": f"{TEXT}-subject"}},
        "userData": {"lastName": f"{TEXT}-name", f"{TEXT}-key": "x"},
    }


WRITTEN = [
    said(3, by="Client"),
    said(4),
    said(5, "CustomNotice", "Client"),
    said(6, "PushUrl"),
    said(7, "NicknameUpdated", "Client"),
    said(8, "FileUploaded", "Client"),
    said(9, "SomethingNew"),
]
PERSONAL = {"userData": {"phone": f"{TEXT}-phone"}, "nickname": f"{TEXT}-nickname", f"{TEXT}-field": "x"}

HTML = f"<html>{TEXT}</html>"

BAD_REPLIES = (
    *(
        Reply(json.dumps(reply))
        for reply in (
            {"statusCode": 1, "errors": [{"code": 1, "advice": "again"}], "messages": WRITTEN, **PERSONAL},
            {"statusCode": f"{TEXT}-status", "messages": WRITTEN},
            {"statusCode": 0, "messages": f"{TEXT}-messages", **PERSONAL},
            {"statusCode": 0, "messages": [f"{TEXT}-message", {"index": f"{TEXT}-index", "text": TEXT}]},
            {"statusCode": 2, "errors": [{"code": 2, "advice": "no"}], "messages": WRITTEN},
            {"statusCode": 2, "chatEnded": True, "errors": [{"code": f"{TEXT}-code"}], "messages": WRITTEN},
        )
    ),
    Reply(HTML, 500, headers={"Content-Type": "text/html"}),
    Reply(HTML, 200),
    Reply(HTML, 404),
    Reply(HTML, 302, headers={"Location": f"/{TEXT}"}),
    Reply(HTML, 503, headers={"Retry-After": f"{TEXT}-later", "Set-Cookie": TEXT}),
    Reply(json.dumps({"statusCode": 0, "messages": WRITTEN})[:-20]),
)


class Endpoint:
    """A consumer's, which throws in an answer's face what it was told."""

    def __init__(self) -> None:
        self.port = free_port()
        self.bodies: list[str] = []
        self.status = 204
        self._more = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.text()
        self.bodies.append(body)
        self._more.set()
        headers = {"Retry-After": f"{TEXT}-later", "X-Error": f"{TEXT}-header", "Location": f"/{TEXT}"}
        return web.Response(status=self.status, reason=f"{TEXT}-reason", headers=headers, text=body)

    async def told(self, before: int) -> None:
        """Until it has been told more often than that."""
        async with asyncio.timeout(10):
            while len(self.bodies) <= before:
                self._more.clear()
                await self._more.wait()


@pytest_asyncio.fixture(loop_scope="module")
async def endpoint() -> AsyncIterator[Endpoint]:
    told = Endpoint()
    runner = web.ServerRunner(web.Server(told.answer, access_log=None), shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", told.port).start()
    yield told
    await runner.cleanup()


def consumers(endpoint: Endpoint, directory: Path) -> str:
    (directory / "webhook-secret").write_text(f"{SECRET}\n")
    (directory / "webhook-secret").chmod(0o600)
    kinds = '["chat", "ended", "gap", "lost", "restored", "tokens", "notified"]'
    return f"""name = "app"
        url = "http://127.0.0.1:{endpoint.port}/"
        secret_file = "{directory}/webhook-secret"
        send_keys = true
        kinds = {kinds}
        [[consumer]]
        name = "reader"
        kinds = {kinds}"""


async def test_what_is_written_in_a_chat_is_in_no_log_metric_page_or_error(
    start: Start, endpoint: Endpoint, tmp_path: Path
) -> None:
    rig = await start(consumer=consumers(endpoint, tmp_path), rights="read register operate keys events")
    rig.forgiven.add("misfit")  # `check --connect` looks whether a node answers
    [chat, ended] = await rig.registered(2)
    shown = [answer async for answer in everything_that_goes_wrong(rig, chat)]
    chat.said += WRITTEN
    chat.next_position = 10
    await rig.acknowledged(chat, push(chat, json.dumps(payload(chat, *WRITTEN))))
    ended.standing = {"chatEnded": True, "messages": [said(3)], **PERSONAL}
    await rig.acknowledged(ended, push(ended, "dummy message"))
    await eventually("texts at the webhook", lambda: TEXT in "".join(endpoint.bodies))
    for status in (400, 410, 500, 302):
        endpoint.status, before = status, len(endpoint.bodies)
        chat.said.append(said(chat.next_position))
        chat.next_position += 1
        await rig.acknowledged(chat, push(chat, "dummy message"))
        await rig.api("POST", "/v1/consumers/app/resume")
        await rig.api("POST", "/v1/consumers/app/retry")
        await endpoint.told(before)
        shown += [await rig.api("GET", path) for path in PAGES]
    fetched = await rig.api("GET", "/v1/events?consumer=reader")
    assert fetched.body.decode().count(f"{TEXT}-Agent") >= 4, "where it is asked for with the right to it"
    [cursor] = [str(fetched.json["cursor"])]
    for query in (f"consumer={TEXT}", f"consumer=app&after={cursor}", f"consumer=reader&after={cursor}9"):
        shown.append(await rig.api("GET", f"/v1/events?{query}"))
    shown += [await rig.api("GET", path.format(chat=chat.chat_id)) for path in PAGES]
    texts = [f"{answer.body!r} {dict(answer.headers)}" for answer in shown]
    texts += [await live(rig), rig.log_text()]
    texts += [await asyncio.to_thread(command, rig, *words) for words in commands(chat)]
    await rig.stop()
    texts += [await asyncio.to_thread(command, rig, *words) for words in of_the_log(chat)]
    texts.append(rig.log_text())
    assert len(texts) > 60
    for text in texts:
        # A client that asks for a consumer by this name knows it already, and is not told it again.
        for planted in (TEXT, CARD[:9], CARD.replace(" ", "")[:8], KEY_MARK, SECRET):
            at = text.find(planted)
            assert at < 0, f"...{text[max(0, at - 300) : at + 100]}"


PAGES = (
    "/v1/status",
    "/v1/sessions?limit=1000",
    "/v1/sessions/{chat}",
    "/v1/servers",
    "/v1/restorations",
    "/v1/consumers",
    "/metrics",
    "/healthz",
    "/readyz",
    "/",
    "/openapi.json",
)


async def everything_that_goes_wrong(rig: Rig, chat: Chat) -> AsyncIterator[Answer]:
    """With texts in it: bodies that cannot be read, replies that make no sense, calls that are refused."""
    asked: list[Chat] = []
    whole = json.dumps(push(chat, payload(chat, *WRITTEN, **PERSONAL)))
    for body in (whole[:-1], whole[:200], f"{TEXT}", f"[{whole}]", json.dumps({TEXT: whole}), f"\x00{whole}"):
        yield await rig.push(body)
    yield await rig.push(json.dumps(push(chat, f"{TEXT} as the message")))
    yield await rig.push(json.dumps({"deviceId": f"{TEXT}-device" * 100, "message": whole}))
    for bad in await rig.registered(len(BAD_REPLIES)):
        bad.answers.append(BAD_REPLIES[len(asked)])
        asked.append(bad)
        await rig.ask_ping(bad)
    await eventually("every bad reply", lambda: not any(bad.answers for bad in asked))
    await rig.settled()
    reply = {"statusCode": 0, "messages": WRITTEN, **PERSONAL}
    path = f"/v1/sessions/{chat.chat_id}"
    yield await rig.api("PUT", path, chat.body() | reply)
    yield await rig.api("PUT", path, chat.body(next_position=f"{TEXT}-position") | reply)
    yield await rig.api("PUT", path, chat.body(alias=[TEXT]) | reply)
    yield await rig.api("PUT", path, raw=json.dumps(chat.body() | reply)[:-1].encode())
    yield await rig.api("POST", "/v1/sessions", raw=json.dumps(chat.body() | reply).encode())
    yield await rig.api("POST", "/v1/sessions", raw=json.dumps(reply).encode())
    yield await rig.api("POST", "/v1/sessions", raw=json.dumps(chat.body() | reply)[:-1].encode())
    yield await rig.api("POST", f"{path}/take", {"for": f"{TEXT}-for"})
    yield await rig.api("POST", f"{path}/release", {"take_id": f"{TEXT}-take"})


async def live(rig: Rig) -> str:
    """What the status page is told once a second."""
    async with rig.http.get(f"http://127.0.0.1:{rig.control_port}/v1/live") as looking:
        while not (line := await looking.content.readline()).startswith(b"data: {"):
            pass
        return line.decode()


def commands(chat: Chat) -> Iterator[tuple[str, ...]]:
    """What an operator asks the running daemon."""
    yield from (("status",), ("consumers",), ("sessions",), ("sessions", "--chat", chat.chat_id))
    yield from (("servers",), ("restorations",), ("check", "--connect"), ("ping", chat.chat_id))
    yield from (("consumers", "--json"), ("consumers", "retry", "app"), ("status", "--json"))


def of_the_log(chat: Chat) -> Iterator[tuple[str, ...]]:
    """What he reads from its log."""
    yield from (("logs",), ("logs", "--chat", chat.chat_id), ("logs", "--summary"))


def command(rig: Rig, *words: str) -> str:
    """Both outputs of a command; whether it succeeds does not matter here."""
    option = () if words[0] == "logs" else ("--config", str(rig.config))
    file = (str(rig.output),) if words[0] == "logs" else ()
    done = subprocess.run(
        [sys.executable, "-m", "asyncchatd", *words, *option, *file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"ASYNCCHATD_TOKEN": TOKEN, "PATH": "/usr/bin:/bin"},
    )
    assert "Usage" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr
