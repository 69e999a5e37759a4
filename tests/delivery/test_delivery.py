"""Consumers as the configuration names them: one that is changed goes on where it was, one that goes is forgotten in
the end."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import Certificates, MakeSettings, settle, soon
from standardwebhooks.webhooks import Webhook as Verifier

from asyncchatd.config.settings import Settings
from asyncchatd.delivery import Delivery
from asyncchatd.delivery.webhook import Webhook
from asyncchatd.stores.errors import ConsumerUnknown

from .rig import OTHER_SECRET, SECRET, ChatApp, Rig, Says, consumer_settings


@pytest.fixture
async def other() -> AsyncIterator[ChatApp]:
    """Where the chat application moves to."""
    running = ChatApp()
    await running.setup()
    yield running
    await running.cleanup()


class Running:
    """The delivery with its root tasks."""

    def __init__(self, rig: Rig, make_settings: MakeSettings) -> None:
        self._rig = rig
        self._make = make_settings
        self.delivery = Delivery(rig.store, self.settings(rig.app.url), rig.clock)
        self._tasks = [asyncio.create_task(life) for life in self.delivery.lives().values()]

    def settings(self, *urls: str, secret: str = SECRET, **more: object) -> Settings:
        return self._make(consumers=[consumer_settings(url, secret, **more) for url in urls])

    async def reload(self, *urls: str, secret: str = SECRET, **more: object) -> None:
        """Reload, and wait until the webhooks are as these settings say."""
        before = self._rig.store.enrolled
        self.delivery.reload(self.settings(*urls, secret=secret, **more))
        await self._rig.until(lambda: self._rig.store.enrolled > before)

    async def failed(self) -> None:
        """Wait until a root task ends, with what it raised."""
        done, _ = await soon(asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED))
        for task in done:
            task.result()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def running(rig: Rig, make_settings: MakeSettings) -> AsyncIterator[Running]:
    started = Running(rig, make_settings)
    await rig.until(lambda: rig.store.enrolled)
    yield started
    await started.end()


async def test_one_with_another_url_and_secret_goes_on_where_it_was(
    rig: Rig, app: ChatApp, other: ChatApp, running: Running
) -> None:
    await rig.chats("chat-1")
    await rig.until(lambda: rig.store.looks)
    await rig.say("chat-1", "one")
    await rig.noted(1)
    never = asyncio.Event()
    app.script.append(Says(when=never))
    await rig.say("chat-1", "two")
    await rig.asked(2)
    await running.reload(other.url, secret=OTHER_SECRET)
    await rig.noted(2)
    assert [got.texts for got in app.got] == [["one"], ["two"]]
    [again] = other.got
    assert (again.number, again.body) == (app.got[1].number, app.got[1].body)
    Verifier(OTHER_SECRET).verify(again.body, dict(again.headers))
    await rig.say("chat-1", "three")
    await rig.noted(3)
    assert other.texts() == ["two", "three"]
    assert len(app.got) == 2


async def test_another_secret_alone_signs_from_the_next_try_on(
    rig: Rig, app: ChatApp, running: Running
) -> None:
    await rig.chats("chat-1")
    await rig.until(lambda: rig.store.looks)
    app.script.append(Says(503))
    await rig.say("chat-1", "one")
    await rig.noted(1)
    await running.reload(app.url, secret=OTHER_SECRET)
    await rig.noted(2)
    Verifier(SECRET).verify(app.got[0].body, dict(app.got[0].headers))
    Verifier(OTHER_SECRET).verify(app.got[1].body, dict(app.got[1].headers))
    assert app.got[0].number == app.got[1].number


async def test_one_that_stays_as_it_is_is_not_begun_anew(rig: Rig, app: ChatApp, running: Running) -> None:
    await rig.chats("chat-1")
    await rig.until(lambda: rig.store.looks)
    hold = asyncio.Event()
    app.script.append(Says(when=hold))
    await rig.say("chat-1", "one")
    await rig.asked(1)
    await running.reload(app.url)
    hold.set()
    await rig.noted(1)
    assert app.texts() == ["one"]


async def test_authorities_that_are_renewed_under_their_name_count_from_the_next_reload_on(
    rig: Rig, tls_app: ChatApp, running: Running, tmp_path: Path, certificates: Certificates
) -> None:
    await rig.chats("chat-1")
    ca_file = tmp_path / "ca.pem"
    shutil.copy(certificates.client, ca_file)
    await running.reload(tls_app.url, ca_file=str(ca_file))
    await rig.say("chat-1", "one")
    await rig.until(lambda: running.delivery.trouble("app"))
    shutil.copy(certificates.ca, ca_file)
    await running.reload(tls_app.url, ca_file=str(ca_file))
    await rig.until(lambda: tls_app.texts() == ["one"])


async def test_one_that_goes_and_comes_back_in_time_goes_on_and_is_told_what_it_missed(
    rig: Rig, app: ChatApp, running: Running
) -> None:
    await rig.chats("chat-1")
    await rig.until(lambda: rig.store.looks)
    app.script.append(Says(503))
    await rig.say("chat-1", "one")
    await rig.noted(1)
    await running.reload()
    await rig.until(lambda: not rig.store.told_kinds)
    await rig.clock.advance(3600)
    assert len(app.got) == 1
    await running.reload(app.url)
    await rig.noted(3)
    assert app.texts() == ["one", "one"]
    assert [got.events[0]["kind"] for got in app.got if got.chat_id == "None"] == ["gap"]


async def test_one_that_is_gone_for_as_long_as_it_keeps_is_forgotten_with_all_there_is_for_it(
    rig: Rig, app: ChatApp, running: Running
) -> None:
    await rig.chats("chat-1")
    await rig.until(lambda: rig.store.looks)
    await running.reload(app.url, keep="2h")
    app.script.append(Says(503))
    await rig.say("chat-1", "one")
    await rig.noted(1)
    await running.reload()
    await rig.until(lambda: not rig.store.told_kinds)
    await rig.clock.advance(3600)
    assert (await rig.store.kept()).events == 1
    await rig.clock.advance(2 * 3600)
    assert (await rig.store.kept()).events == 0
    await running.reload(app.url)
    await rig.until(lambda: rig.store.told_kinds)
    await rig.say("chat-1", "two")
    await rig.noted(2)
    assert app.texts() == ["one", "two"]


async def test_what_no_delivery_should_raise_ends_the_daemon_and_is_not_silence(
    rig: Rig, app: ChatApp, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.chats("chat-1")
    await rig.until(lambda: rig.store.looks)

    async def broken(*_: object) -> None:
        raise AssertionError("a fault of our own")

    monkeypatch.setattr(Webhook, "_post", broken)
    await rig.say("chat-1", "one")
    with pytest.raises(AssertionError, match="a fault of our own"):
        await running.failed()


async def test_a_full_disk_when_it_is_reloaded_is_waited_for(
    rig: Rig, app: ChatApp, other: ChatApp, running: Running
) -> None:
    await rig.chats("chat-1")
    await rig.until(lambda: rig.store.looks)
    await rig.say("chat-1", "one")
    await rig.noted(1)
    rig.store.fill_disk()
    before = rig.store.enrols
    running.delivery.reload(running.settings(other.url))
    await rig.until(lambda: rig.store.enrols > before)
    for _ in range(5):
        await rig.clock.advance(1)
    rig.store.free_disk()
    await rig.clock.advance(1)
    await rig.say("chat-1", "two")
    await rig.noted(2)
    assert other.texts() == ["two"]


async def test_nobody_else_is_told(rig: Rig, running: Running) -> None:
    await rig.until(lambda: rig.store.looks)
    with pytest.raises(ConsumerUnknown):
        await rig.store.fetch("app2", after=None, limit=1, now=rig.clock.now())


async def test_the_webhook_of_a_consumer_is_hurried_by_its_name(
    rig: Rig, app: ChatApp, running: Running
) -> None:
    await rig.chats("chat-1")
    await rig.until(lambda: rig.store.looks)
    app.script.append(Says(503, {"Retry-After": "600"}))
    await rig.say("chat-1", "one")
    await rig.noted(1)
    running.delivery.hurry("nobody")
    await settle()
    await rig.asked(1)
    running.delivery.hurry("app")
    await rig.noted(2)
