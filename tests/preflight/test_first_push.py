"""The wait for the first push: what is refused meanwhile is told, and nothing is kept or lost."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import aiohttp
import pytest
from conftest import FakeClock, MakeSettings, settle, soon

from asyncchatd.control import shapes
from asyncchatd.model import Finding, Level
from asyncchatd.preflight import first_push
from asyncchatd.preflight.first_push import LOOK_SECONDS, follow, steps
from asyncchatd.standin.messages import write_push
from preflight.test_checks import closed_port

AT = "2026-11-28T12:00:{:02}.000Z"


def refusal(client: str, message: str, second: int, cause: str = "secret") -> shapes.PushRefusal:
    at = AT.format(second)
    return shapes.PushRefusal(
        client=client, cause=cause, message=message, advice="mend it", count=1, first_at=at, last_at=at
    )


def pushes(second: int | None = None, *refused: shapes.PushRefusal) -> shapes.Pushes:
    at = None if second is None else AT.format(second)
    senders = [] if at is None else [shapes.PushSender(client="10.0.0.7", count=1, first_at=at, last_at=at)]
    return shapes.Pushes(count=len(senders), last_at=at, senders=senders, refused=list(refused))


async def followed(
    clock: FakeClock, *looks: shapes.Pushes | None, seconds: float = 60, kept: bool = True
) -> list[Finding]:
    """What is found while these are seen one after the other, the last one again and again."""
    left = list(looks)

    async def look() -> shapes.Pushes | None:
        return left.pop(0) if len(left) > 1 else left[0]

    async def all_of_it() -> list[Finding]:
        return [each async for each in follow(await look(), look, seconds, clock, kept=kept)]

    task = asyncio.create_task(all_of_it())
    while not task.done():
        await settle()
        await clock.advance(LOOK_SECONDS)
    return await task


async def test_the_first_push_ends_the_wait(clock: FakeClock) -> None:
    [found] = await followed(clock, pushes(), pushes(), pushes(3))
    assert (found.level, found.message) == (Level.OK, "a push from 10.0.0.7 has come, and was kept")
    assert clock.monotonic() < 3


async def test_what_came_before_is_not_what_is_waited_for(clock: FakeClock) -> None:
    old = refusal("10.0.0.9", "wrong", 1)
    [found] = await followed(clock, pushes(2, old), pushes(2, old), pushes(5, old))
    assert found.level is Level.OK


async def test_each_refusal_is_told_once_with_what_to_do(clock: FakeClock) -> None:
    first, again = refusal("10.0.0.9", "wrong", 1), refusal("10.0.0.9", "wrong", 4)
    other = refusal("10.0.0.8", "not allowed", 2)
    found = await followed(
        clock,
        pushes(),
        pushes(None, other, first),
        pushes(None, other, first),
        pushes(None, again, other),
        pushes(6),
    )
    assert [(each.level, each.message, each.advice) for each in found[:-1]] == [
        (Level.WARNING, "refused from 10.0.0.9: wrong", "mend it"),
        (Level.WARNING, "refused from 10.0.0.8: not allowed", "mend it"),
        (Level.WARNING, "refused from 10.0.0.9: wrong", "mend it"),
    ]
    assert found[-1].level is Level.OK


async def test_a_daemon_that_restarts_meanwhile_is_waited_for(clock: FakeClock) -> None:
    [found] = await followed(clock, pushes(2), None, None, pushes(), pushes(9))
    assert found.level is Level.OK


async def test_the_wait_is_bounded_and_says_where_to_look(clock: FakeClock) -> None:
    [found] = await followed(clock, pushes(), seconds=30)
    assert (found.level, found.message) == (Level.ERROR, "no push has come within 30 s")
    assert "customhttp.url" in found.advice
    assert 30 <= clock.monotonic() < 32
    *_, found = await followed(clock, pushes(), pushes(None, refusal("10.0.0.9", "wrong", 1)), seconds=30)
    assert found.message == "no push has come within 30 s, but what was refused"


async def test_who_was_refused_before_and_is_again_is_why_no_push_came(clock: FakeClock) -> None:
    before, again = refusal("10.0.0.9", "wrong", 1), refusal("10.0.0.9", "wrong", 4)
    told, ended = await followed(clock, pushes(None, before), pushes(None, again), seconds=30)
    assert told.message == "refused from 10.0.0.9: wrong"
    assert (ended.message, ended.advice) == (
        "no push has come within 30 s, but what was refused",
        "see why it was refused",
    )


async def test_a_push_that_is_only_not_kept_ends_the_wait_where_nothing_is_kept(clock: FakeClock) -> None:
    full = pushes(None, refusal("10.0.0.7", "the push could not be kept: full", 1, "not_kept"))
    [found] = await followed(clock, pushes(), full, kept=False)
    assert (found.level, found.message[:25]) == (Level.OK, "a push from 10.0.0.7 has ")
    told, ended = await followed(clock, pushes(), full, pushes(4))
    assert (told.level, ended.level) == (Level.WARNING, Level.OK), "a daemon has to keep it"


@pytest.mark.slow
async def test_without_a_daemon_the_push_address_is_listened_at_and_nothing_is_kept(
    make_settings: MakeSettings,
) -> None:
    port = closed_port()
    settings = make_settings(
        receiver={"secrets": ["push-secret-1"], "listen": f"127.0.0.1:{port}", "allow": ["127.0.0.1"]},
        control={"listen": f"127.0.0.1:{closed_port()}"},
    )
    body = write_push("device-1", {"session-id": "chat-1"})

    async def send(path: str, address: str = "127.0.0.1") -> int | None:
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        async with aiohttp.ClientSession(connector=connector) as http:
            try:
                async with http.post(f"http://127.0.0.1:{port}{path}", data=body) as response:
                    return response.status
            except aiohttp.ClientError:
                return None

    async with aclosing(first_push.wait(settings, 30)) as found:
        assert "no daemon runs: this listens" in (await soon(anext(found))).message
        told = asyncio.ensure_future(anext(found))
        await settle()
        assert await soon(send("/push/push-secret-1", "127.0.0.2")) is None
        assert (await soon(told)).message == "refused from 127.0.0.2: its address is not in receiver.allow"
        assert await soon(send("/push/other")) == 404
        assert "none of the push secrets" in (await soon(anext(found))).message
        assert await soon(send("/push/push-secret-1")) == 503, "Chat Server sends it again"
        last = await soon(anext(found))
        assert (last.level, last.message) == (
            Level.OK,
            "a push from 127.0.0.1 has come, with a push secret and readable",
        )
        with pytest.raises(StopAsyncIteration):
            await soon(anext(found))
    assert await soon(send("/push/push-secret-1")) is None, "nobody listens any more"


async def test_where_nobody_can_listen_it_is_said_how_to_run_it(make_settings: MakeSettings) -> None:
    settings = make_settings(
        receiver={"secrets": ["push-secret-1"], "listen": "192.0.2.1:8091"},
        control={"listen": f"127.0.0.1:{closed_port()}"},
    )
    [found] = [each async for each in first_push.wait(settings, 30)]
    assert (found.level, "start the daemon" in found.advice) == (Level.ERROR, True)


@pytest.mark.parametrize(
    ("receiver", "words"),
    [
        ({"listen": ":8091"}, "http://HOST:8091/push/SECRET"),
        ({"listen": "unix:/run/push.sock"}, "http://HOST/push/SECRET"),
    ],
)
def test_it_says_what_to_set_in_gms_and_not_the_secret(
    receiver: dict[str, object], words: str, make_settings: MakeSettings
) -> None:
    told = steps(make_settings(receiver={"secrets": ["push-secret-1"], **receiver}))
    assert words in told
    assert "push-secret-1" not in told
    for option in (
        "pushEnabled",
        "customhttp.url",
        "flex-push-on-join",
        "GCTI_GMS_PushDeviceType=customhttp",
    ):
        assert option in told
