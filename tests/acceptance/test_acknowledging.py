"""A chat application that acknowledges pushes itself, with a Refresh of its own, and asyncchatd as the net below it.

The plant keeps the book: a wrong key, or two requests of one chat at once, fails each of these tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Verifier

from .conftest import Start
from .plant import KEY_MARK, push
from .rig import Rig, eventually, never
from .test_delivery import SECRET

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

RIGHTS = "read register operate keys"

TIME = 2.0


class ChatApp:
    """It takes each batch, and then sends the Refreshes that it is asked for, with the tokens it was given."""

    def __init__(self) -> None:
        self.rig: Rig | None = None
        self.http = aiohttp.ClientSession()
        self.refreshes = True
        """Whether it does what it is asked."""
        self.acknowledges = True
        """Whether it says so."""
        self.asked: dict[str, dict[str, Any]] = {}
        """What asked for a Refresh, by event id."""
        self.told: dict[str, bool] = {}
        """All events of this kind, and whether the first telling asked."""
        self.sent = 0
        self.acknowledged: list[int] = []
        """The statuses that its acknowledgements were answered with."""
        self.port = 0
        self._runner: web.ServerRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def has_acknowledged(self, count: int) -> bool:
        return len(self.acknowledged) == count

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def kill(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def close(self) -> None:
        await self.kill()
        await self.idle()
        await self.http.close()

    async def idle(self) -> None:
        """Nothing that it was asked for is under way."""
        await asyncio.gather(*self._tasks)

    async def idle_or_lost(self) -> None:
        """The same, while nobody may be there to hear it."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        Verifier(SECRET).verify(body, dict(request.headers))
        for event in json.loads(body)["events"]:
            if event["id"] in self.told:
                continue
            said = event["event"]
            self.told[event["id"]] = said["refresh"]
            if said["refresh"]:
                self.asked[event["id"]] = event
                if self.refreshes:
                    task = asyncio.create_task(self._act(event))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        return web.Response(status=204)

    async def _act(self, event: dict[str, Any]) -> None:
        assert self.rig is not None
        said, rig = event["event"], self.rig
        url = f"{rig.plant.nodes[0].url}/2/chat/{event['service']}/{event['chat_id']}/refresh"
        form = {
            "userId": said["user_id"],
            "secureKey": said["secure_key"],
            "alias": said["alias"],
            "transcriptPosition": str(said["next_position"] or 1),
        }
        self.sent += 1
        async with asyncio.timeout(said["for_ms"] / 1000), self.http.post(url, data=form) as response:
            reply = await response.json()
        assert reply["statusCode"] == 0, reply
        if self.acknowledges:
            await self.acknowledge(event, reply)

    async def acknowledge(self, event: dict[str, Any], reply: object) -> None:
        assert self.rig is not None
        path = f"/v1/sessions/{event['chat_id']}?acknowledged={event['id']}"
        self.acknowledged.append((await self.rig.api("PUT", path, reply)).status)


@pytest_asyncio.fixture(loop_scope="module")
async def app() -> AsyncIterator[ChatApp]:
    running = ChatApp()
    await running.start()
    yield running
    await running.close()


def consumer(app: ChatApp, directory: Path, acknowledges: str = f"{TIME}s") -> str:
    secret = directory / "webhook-secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    return (
        f'name = "chat-app"\nurl = "http://127.0.0.1:{app.port}/"\nsecret_file = "{secret}"\n'
        f'kinds = ["notified"]\nsend_keys = true\nacknowledges = "{acknowledges}"'
    )


async def counts(rig: Rig) -> tuple[int, int, int]:
    [state] = cast(list[dict[str, int]], (await rig.get("/v1/consumers"))["consumers"])
    return state["asked"], state["acknowledged"], state["ran_out"]


async def test_the_application_acknowledges_each_push_though_each_reply_changes_the_key(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    rig = app.rig = await start(consumer=consumer(app, tmp_path, "20s"), rights=RIGHTS)
    rig.plant.rotate = {"key", "position"}
    chats = await rig.registered(5)
    for each in range(6):
        for chat in chats:
            await rig.pushed(chat)
        await eventually("all acknowledged", partial(app.has_acknowledged, 5 * (each + 1)), within=15)
    assert set(app.acknowledged) == {200}
    assert all(len(chat.refreshes) == 6 for chat in chats), "the application's alone"
    assert await counts(rig) == (30, 30, 0)
    # What the daemon knows now is right.
    for chat in chats:
        await rig.pinged(chat)
    assert KEY_MARK not in rig.log_text()
    story = await rig.told(chats[0])
    assert "acknowledged the push with a Refresh of its own" in story


async def test_a_push_that_comes_while_the_applications_refresh_is_on_its_way_is_pinged_for_with_the_newer_key(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    rig = app.rig = await start(consumer=consumer(app, tmp_path, "20s"), rights=RIGHTS)
    rig.plant.rotate = {"key", "position"}
    rig.plant.delay = 0.5
    chats = await rig.registered(3)
    for chat in chats:
        await rig.pushed(chat)
    await eventually("all asked for", lambda: app.sent == 3)
    for chat in chats:
        await rig.pushed(chat)
    await eventually("all told", lambda: len(app.told) == 6)
    assert list(app.told.values()) == [True] * 3 + [False] * 3
    await eventually("the daemon's pings", lambda: all(len(chat.refreshes) == 2 for chat in chats), within=15)
    await eventually("all acknowledged", lambda: app.acknowledged == [200] * 3)
    assert app.sent == 3


async def test_one_that_never_acknowledges_is_waited_for_and_then_the_daemon_pings(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    rig = app.rig = await start(consumer=consumer(app, tmp_path), rights=RIGHTS)
    app.refreshes = False
    [chat] = await rig.registered()
    await rig.pushed(chat)
    took = await eventually("the daemon's ping", lambda: chat.refreshes, within=TIME + 8)
    assert len(app.asked) == 1
    assert took > TIME - 0.3
    await eventually("the line", lambda: rig.log("acknowledgement_ran_out"), within=8)
    assert await counts(rig) == (1, 0, 1)
    await rig.settled()
    # An acknowledgement that comes now is none.
    [event] = app.asked.values()
    said = {"id": event["id"]}
    answer = await rig.api("POST", f"/v1/sessions/{chat.chat_id}/acknowledged", said)
    assert (answer.status, answer.error["code"]) == (409, "not_asked")


async def test_one_that_refreshes_and_does_not_say_so_is_pinged_for_and_no_request_overlaps(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    rig = app.rig = await start(consumer=consumer(app, tmp_path), rights=RIGHTS)
    app.acknowledges = False
    rig.plant.delay = 0.5
    [chat] = await rig.registered()
    await rig.pushed(chat)
    await eventually("both Refreshes", lambda: len(chat.refreshes) == 2, within=TIME + 8)
    assert app.sent == 1


async def test_a_killed_application_is_not_waited_for(start: Start, app: ChatApp, tmp_path: Path) -> None:
    rig = app.rig = await start(consumer=consumer(app, tmp_path, "60s"), rights=RIGHTS)
    chats = await rig.registered(3)
    await app.kill()
    for chat in chats:
        await rig.acknowledged(chat, push(chat, "dummy message"), within=10)
    assert app.sent == 0
    await app.start()
    await eventually("all told once it is back", lambda: len(app.told) == 3, within=15)
    assert not any(app.told.values())
    [chat] = await rig.registered()
    await rig.pushed(chat)
    await eventually("it acknowledges again", lambda: app.acknowledged == [200], within=10)


async def test_a_killed_daemon_pings_when_the_time_is_over_and_takes_an_acknowledgement_before(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    rig = app.rig = await start(consumer=consumer(app, tmp_path, "12s"), rights=RIGHTS)
    app.refreshes = False
    late, prompt = await rig.registered(2)
    for chat in (late, prompt):
        await rig.pushed(chat)
    await eventually("both asked for", lambda: len(app.asked) == 2)
    await rig.kill()
    await rig.start()
    [event] = [each for each in app.asked.values() if each["chat_id"] == prompt.chat_id]
    app.refreshes = True
    await app._act(event)
    assert app.acknowledged == [200]
    assert late.refreshes == []
    await eventually("the daemon's ping of the other", lambda: late.refreshes, within=20)
    await rig.settled()
    assert len(prompt.refreshes) == 1
    assert await counts(rig) == (2, 1, 1)


async def test_a_lost_server_is_restored_whether_the_application_acknowledges_or_not(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    rig = app.rig = await start(consumer=consumer(app, tmp_path, "4s"), rights=RIGHTS)
    app.refreshes = False
    rig.plant.rotate_on_restore = {"key"}
    asked, quiet = await rig.registered(2, alias="111")
    await rig.watching()
    await rig.pushed(asked)
    await eventually("it is asked", lambda: len(app.asked) == 1)
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("the quiet one's restoration", lambda: quiet.refreshes, within=10)
    await eventually("the other one's", lambda: not rig.plant.unrestored(), within=10)
    await never("anything more", lambda: len(quiet.refreshes) > 1, during=0.3)


async def test_kills_of_both_sides_lose_no_push(start: Start, app: ChatApp, tmp_path: Path) -> None:
    rig = app.rig = await start(consumer=consumer(app, tmp_path, "1s"), rights=RIGHTS, lease="1500ms")
    chats = await rig.registered(10)
    for each in range(3):
        for chat in chats:
            await rig.pushed(chat)
        if each == 1:
            await app.kill()
        await rig.kill()
        await app.idle_or_lost()
        await rig.start()
        if each == 1:
            await app.start()
    before = {chat.chat_id: len(chat.refreshes) for chat in chats}
    for chat in chats:
        await rig.pushed(chat)
    await eventually(
        "a Refresh for each last push",
        lambda: all(len(chat.refreshes) > before[chat.chat_id] for chat in chats),
        within=20,
    )
    await app.idle()
    await rig.settled()
