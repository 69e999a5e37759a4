"""`asyncchatd check --connect --wait-for-push`: waits for a push while somebody sets the options in GMS.

A daemon that runs is asked what reached it. Without one, this listens at the push address itself, by the very checks
of the receiver, and keeps nothing: a push is answered with 503, as good as no receiver at all. Chat Server sends it
again where `GCTI_GMS_PushResend` is set, until a Refresh acknowledges it. So nothing is lost that would not have been.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from asyncchatd.config import Settings
from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import ClientError, NoDaemon, read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.control.status.picture import pushes_of
from asyncchatd.listening import Listener, ListenError, Senders
from asyncchatd.model import Clock, Failing, Finding, Ms, SystemClock, durations, findings
from asyncchatd.preflight.pointing import in_gms
from asyncchatd.receiver import Receiver
from asyncchatd.stores import StoreFull, Taken
from asyncchatd.wire import Push

KEY = "push"
LOOK_SECONDS = 0.5
DRAIN_SECONDS = 1.0
"""For the answer to the push that was waited for."""

NOTHING_CAME = (
    "look at pushEnabled, customhttp.url and enable_notification_mode in GMS, which has to be restarted, at"
    " flex-push-on-join in Chat Server, at the userData of the chat, and at the firewall between the GMS nodes and this"
    " host: docs/gms.md"
)

Look = Callable[[], Awaitable[shapes.Pushes | None]]
"""Tells who has sent pushes so far; nothing while the daemon is away."""


def steps(settings: Settings) -> str:
    """What to set, for this configuration."""
    its = settings.receiver
    scheme = "https" if its.tls_certificate else "http"
    port = "" if its.listen.port is None else f":{its.listen.port}"
    lies = f"a line of {its.secrets_file.path}" if its.secrets_file else "one of receiver.secrets"
    where = (
        "in the chat application" if settings.gateway is None else "where a chat begins without the gateway"
    )
    return in_gms(f"{scheme}://HOST{port}/push/SECRET", lies, where)


async def wait(
    settings: Settings, seconds: float, clock: Clock | None = None
) -> AsyncGenerator[Finding, None]:
    """What reaches the push address, as it comes. It ends with the first push, which is fine, or with an error."""
    clock = clock or SystemClock()
    try:
        async with _watching(settings, clock) as (look, how, kept):
            before = await look()  # what comes as soon as this is told is news
            yield findings.note(KEY, how)
            async for finding in follow(before, look, seconds, clock, kept=kept):
                yield finding
    except (ClientError, ListenError) as error:
        yield findings.error(KEY, f"nothing can be waited for: {error}", HOW_TO_RUN)


HOW_TO_RUN = "start the daemon and do it again: then it is asked; or stop what holds the push address"


@asynccontextmanager
async def _watching(settings: Settings, clock: Clock) -> AsyncIterator[tuple[Look, str, bool]]:
    """How to look, that in words, and whether a push is kept. Raises `ClientError` and `ListenError`."""
    try:
        async with ControlClient.of(settings.control) as control:
            if await _asked(control) is None:
                raise ClientError("the daemon that runs is older than this program; restart it")
            yield (lambda: _asked_again(control)), "the daemon that runs is asked what reaches it", True
            return
    except NoDaemon:
        pass
    async with _listening(settings, clock) as look:
        address = settings.receiver.listen
        yield (
            look,
            f"no daemon runs: this listens at {address} itself, keeps no push, and answers each with 503, so that it is"
            " sent again",
            False,
        )


async def _asked(control: ControlClient) -> shapes.Pushes | None:
    return read(shapes.Status, await control.status()).pushes


async def _asked_again(control: ControlClient) -> shapes.Pushes | None:
    try:
        return await _asked(control)
    except NoDaemon:
        return None  # it may be restarting


@asynccontextmanager
async def _listening(settings: Settings, clock: Clock) -> AsyncIterator[Look]:
    senders = Senders(clock)
    receiver = Receiver(_KeepsNothing(), settings.receiver, clock, asyncio.Event(), senders)
    listener = Listener(receiver.app(), settings.receiver, name="receiver", heard=senders.at_the_door)
    await listener.start()

    async def look() -> shapes.Pushes:
        return pushes_of(senders)

    try:
        yield look
    finally:
        await listener.stop(DRAIN_SECONDS)


class _KeepsNothing:
    """In the place of a store: each push could be taken, and is not."""

    async def take_push(self, push: Push, *, now: Ms) -> Taken:
        raise StoreFull("this only looks whether pushes come")


async def follow(
    before: shapes.Pushes | None, look: Look, seconds: float, clock: Clock, *, kept: bool = True
) -> AsyncGenerator[Finding, None]:
    """What is new since `before`: those who were refused, and at last the push or that none came. `kept`: whether a
    push that is as it should be is kept; else it counts as well."""
    told, refused = _told(before), False
    last_at = before and before.last_at
    ends = clock.monotonic() + seconds
    while clock.monotonic() < ends:
        await clock.sleep(LOOK_SECONDS)
        its = await look()
        if its is None:
            continue
        for each in reversed(its.refused):
            if told.get((each.client, each.message)) == each.last_at:
                continue
            told[each.client, each.message] = each.last_at
            if each.cause == Failing.NOT_KEPT and not kept:
                yield findings.ok(KEY, f"a push from {each.client} has come, with a push secret and readable")
                return
            refused = True
            yield findings.warning(KEY, f"refused from {each.client}: {each.message}", each.advice)
        if its.last_at is not None and its.last_at != last_at:
            yield findings.ok(KEY, f"a push from {its.senders[0].client} has come, and was kept")
            return
    within = durations.in_words(seconds)
    message = f"no push has come within {within}" + ", but what was refused" * refused
    yield findings.error(KEY, message, "see why it was refused" if refused else NOTHING_CAME)


def _told(its: shapes.Pushes | None) -> dict[tuple[str, str], str]:
    return {(each.client, each.message): each.last_at for each in its.refused} if its else {}
