"""The daemon: what runs, in what order it starts and stops.

Every part is a root task that never ends by itself; when one does, all go and the service manager
starts the daemon anew. Starting and stopping lose nothing: the work list is in the store.
"""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from asyncchatd import __version__
from asyncchatd.config import Settings, alike
from asyncchatd.control import shapes
from asyncchatd.control.api import Control
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.daemon import systemd
from asyncchatd.daemon.reloading import Parts, Reloading, shown
from asyncchatd.daemon.sharing import watch_nodes
from asyncchatd.daemon.starting import Start
from asyncchatd.daemon.vitals import Reporting, StopTime
from asyncchatd.delivery import Delivery
from asyncchatd.gms import GmsClient, InFlight, Pacer
from asyncchatd.listening import Guard, Listener, Senders, by_listener
from asyncchatd.log import LAST_LINES_SECONDS, Event, flush, get_logger, metrics, redact, watch_lag
from asyncchatd.model import Clock, Ms, SessionState, SystemClock
from asyncchatd.receiver import Receiver
from asyncchatd.sending import Sending
from asyncchatd.stores import Store, StoreError, make_store
from asyncchatd.watcher import Watcher
from asyncchatd.worker import Worker

if TYPE_CHECKING:
    from asyncchatd.gateway import Chats, Gateway

DRAIN_SECONDS = 1.0
"""How long open push connections are still answered after a stop was asked for: GMS may just have
sent something on one, and does not send it again."""

STORE = "store"
"""The root task that ends when the store turns out to be damaged."""

HOUSEKEEPING_SECONDS = 60.0
PURGE_PORTION = 2_000
COLLECT_EVERY = 20_000
"""Objects made and not yet freed before the garbage collector looks for cycles."""

COLLECT_EVERY_WITH_PAGES = 1_000_000
"""The same with a gateway. A poll that is held is some sixty objects, so thousands of them come and go by hundreds of
thousands, without a cycle among them; and each look at 20,000 of them took 50 ms, two or three times a second."""

SAME_WISH_SECONDS = 0.5
"""A signal that comes again within this is the same wish: a terminal sends it to all of a group, and who started the
daemon hands it on."""

LOOP_CHECK_SECONDS = 0.25
STALL_SECONDS = 0.5
CLOCK_STEP_MS = 30_000

log = get_logger()


async def run(settings: Settings, *, clock: Clock | None = None, stop: asyncio.Event | None = None) -> None:
    """Run the daemon until SIGTERM or SIGINT, or until `stop` is set. A second signal, a moment later, stops at
    once. SIGHUP reads the configuration anew.

    Raises `StoreError`, `ListenError` or `OSError` when it cannot start, and the error of a root task
    that failed.
    """
    started = time.monotonic()
    stop = stop or asyncio.Event()
    wakeup, reload = asyncio.Event(), asyncio.Event()
    listens = {name: its.listen for name, its in settings.listeners.items()}
    handed_over = by_listener(systemd.listen_fds(), listens)
    _obey_signals(stop, reload)
    for secret in settings.secret_values():
        redact(secret)
    log.info(Event.DAEMON_STARTING, version=__version__, config=str(settings.path), pid=os.getpid())
    stop_time = StopTime()
    async with Start(stop, stop_time) as start:
        await _run(
            settings, clock or SystemClock(), stop, reload, wakeup, handed_over, start, stop_time, started
        )


async def _run(
    settings: Settings,
    clock: Clock,
    stop: asyncio.Event,
    reload: asyncio.Event,
    wakeup: asyncio.Event,
    handed_over: Mapping[str, list[socket.socket]],
    start: Start,
    stop_time: StopTime,
    started: float,
) -> None:
    store = make_store(
        settings.store_url,
        directory=settings.directory,
        queue=settings.receiver.queue,
        keys=settings.store_keys,
        password_file=settings.store_password_file,
    )
    store.declare(alike(settings))
    clock = await _open(store, settings, clock)
    try:
        pacer = Pacer(settings.restoration.max_rate, clock, store.turns)
        target = settings.gms.slow_after.total_seconds()
        in_flight = InFlight(settings.restoration.max_in_flight, target, clock)
        async with GmsClient(settings.gms, pacer, clock) as gms:
            watcher = Watcher(store, settings, clock, wakeup, gms_answers=lambda: gms.available)
            sending = Sending(store, gms, pacer, in_flight, settings, clock, wakeup, suspect=watcher.look_at)
            worker = Worker(
                *(store, sending, settings, clock, wakeup),
                listening=lambda: (*delivery.listening(), *api.listening()),
            )
            delivery = Delivery(store, settings, clock, wakeup)
            await delivery.open()
            await watcher.load()
            ready = asyncio.Event()

            def listener(
                name: str,
                app: web.Application,
                answer_longest: Callable[[], bool] = lambda: False,
                heard: Callable[[str, object], None] | None = None,
            ) -> Listener:
                its, sockets = settings.listener(name), handed_over[name]
                return Listener(
                    *(app, its),
                    name=name,
                    handed_over=sockets,
                    beside=settings.connections_beside(name),
                    answer_longest=answer_longest,
                    heard=heard,
                )

            senders = Senders(clock)
            pushes = Receiver(store, settings.receiver, clock, wakeup, senders, instance=settings.instance)
            served, door = _gateway(store, sending, settings, clock, wakeup)
            gateway = listener("gateway", door.app(), served.answer_longest) if door and served else None
            api = Control(
                store,
                clock,
                wakeup,
                _surroundings(
                    *(store, watcher, worker, pacer, in_flight, gms, delivery, ready, gateway),
                    digest=served.digest if served else None,
                    forget=served.forget if served else None,
                    served=served,
                    want=sending.settling.want,
                    senders=senders,
                    metrics_at=lambda: scraped.addresses if scraped else [],
                    configuration=lambda: shown(reloading),
                ),
                settings,
            )
            scraped = listener("metrics", api.exposition.app(settings.instance)) if settings.metrics else None
            guard = Guard(settings.control)
            receiver = listener("receiver", pushes.app(), heard=senders.at_the_door)
            control = listener("control", guard.before(api.app(), api.needs))
            parts = Parts(
                *(receiver, pushes, control, guard, api, scraped, gateway, door, gms, sending, served),
                *(worker, watcher, delivery),
            )
            reloading = Reloading(settings, parts, store, clock, asked=reload, wakeup=wakeup)
            reporting = Reporting(store, worker, watcher, reloading, clock)
            if served is not None:
                # Before anything is sent: with the keys of another gateway it does not start.
                await served.open()
            # From here on `stop` is also how a part that fails ends the others.
            start.over()
            roots = _Roots(stop)
            try:
                await control.start()
                if scraped is not None:
                    await scraped.start()
                await receiver.start()
                roots.start(STORE, store.watch())
                for part in (sending, worker, delivery, served, api):
                    for name, life in part.lives().items() if part else ():
                        roots.start(name, life)
                if gateway is not None:
                    await gateway.start()
                roots.start("watcher", watcher.run())
                roots.start("housekeeping", _keep_house(store, reloading, clock))
                if await store.nodes() is not None:
                    roots.start("nodes", watch_nodes(store, clock, lambda: reloading.settings, sending.share))
                roots.start("unwatched", _report_unwatched(store, watcher, clock))
                clock_set = asyncio.Event()
                roots.start("loop", _watch_loop(clock, watcher, sending, clock_set))
                roots.start("due times", _read_due_times_anew(clock, store, reloading, clock_set))
                roots.start("lag", watch_lag())
                roots.start("reloading", reloading.run())
                sessions = (await store.counts(now=clock.now())).states[SessionState.LIVE]
                roots.start("watchdog", reporting.feed())
                roots.start("status", reporting.tell())
                ready.set()
                systemd.notify("READY=1")
                log.info(
                    Event.DAEMON_READY,
                    receiver=receiver.addresses,
                    control=control.addresses,
                    metrics=scraped.addresses if scraped else None,
                    gateway=gateway.addresses if gateway else None,
                    sessions=sessions,
                    servers=len(settings.chat_servers),
                    took_ms=round((time.monotonic() - started) * 1000),
                )
                spare_the_collector(with_pages=settings.gateway is not None)
                await stop.wait()
            finally:
                stopping = time.monotonic()
                # Answers to requests in flight may carry new keys: they get as long as GMS may take. With a
                # damaged store none of them can be written down.
                waits = reloading.settings.gms.timeout + reloading.settings.gms.connect_timeout
                grace = 0.0 if roots.failed == STORE else waits.total_seconds() + 1
                stop_time.begin(grace, lambda: worker.in_flight)
                if ready.is_set():
                    log.info(
                        Event.DAEMON_STOPPING, cause=roots.failed or "asked to", in_flight=worker.in_flight
                    )
                ready.clear()
                listeners = [receiver.stop(DRAIN_SECONDS), control.stop(0)]
                if scraped is not None:
                    listeners.append(scraped.stop(0))
                if gateway is not None and served is not None:
                    listeners += [gateway.stop(DRAIN_SECONDS), served.drain(grace)]
                cut_off, *_ = await asyncio.gather(worker.drain(grace), *listeners)
                await roots.cancel()
        roots.raise_failure()
    finally:
        await store.close()
    log.info(Event.DAEMON_STOPPED, took_ms=round((time.monotonic() - stopping) * 1000), in_flight=cut_off)


def _gateway(
    store: Store, sending: Sending, settings: Settings, clock: Clock, wakeup: asyncio.Event
) -> tuple[Chats, Gateway] | tuple[None, None]:
    """The chats of the gateway and its door, where there is one."""
    if settings.gateway is None:
        return None, None
    from asyncchatd.gateway import Chats, Gateway  # a twentieth of what the daemon imports

    chats = Chats(store, sending, settings.gateway, clock, wakeup)
    return chats, Gateway(settings.gateway, chats, clock, instance=settings.instance)


def spare_the_collector(*, with_pages: bool = False) -> None:
    """What lives now lives long, and what a push or ping makes goes without the collector's help: it
    need not look every 700 objects, which took a tenth of the time of a restoration."""
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY_WITH_PAGES if with_pages else COLLECT_EVERY)


class _Roots:
    """The root tasks. When one ends, the daemon stops."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None
        self.failed: str | None = None

    def start(self, name: str, life: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_named(life))
        task.set_name(name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    async def cancel(self) -> None:
        for task in self._tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._stop.is_set() and (task.cancelled() or task.exception() is None):
            return
        self.failed = task.get_name()
        self._failure = task.exception() if not task.cancelled() else None
        self._failure = self._failure or RuntimeError(f"{self.failed} ended")
        log.critical(Event.DAEMON_FAILED, part=self.failed, cause=repr(self._failure), exc_info=self._failure)
        self._stop.set()


async def _named(life: Awaitable[None]) -> None:
    await life


async def _open(store: Store, settings: Settings, local: Clock) -> Clock:
    """The clock to go by from then on."""
    started = time.monotonic()
    await store.open()
    try:
        clock = store.clock(local)
        counts = await store.counts(now=clock.now())
        # An interval that was shortened, or a clock that was set back while we were away.
        await store.pull_in(now=clock.now(), spread_ms=_interval_ms(settings))
        log.info(
            Event.STORE_OPENED,
            store=settings.store.shown,
            sessions=sum(counts.states.values()),
            took_ms=round((time.monotonic() - started) * 1000),
        )
        if settings.gateway is None and counts.of_gateway:
            chats = "1 live chat" if counts.of_gateway == 1 else f"{counts.of_gateway:,} live chats"
            log.warning(
                Event.CONFIG_WARNING,
                key="gateway",
                message=f"{chats} began at a gateway, and there is none: GMS does not know the keys their clients hold",
                advice="put [gateway] back until they have ended, with passthrough = true",
            )
        return clock
    except BaseException:
        await store.close()
        raise


def _surroundings(
    store: Store,
    watcher: Watcher,
    worker: Worker,
    pacer: Pacer,
    in_flight: InFlight,
    gms: GmsClient,
    delivery: Delivery,
    ready: asyncio.Event,
    gateway: Listener | None,
    digest: Callable[[str, str], str] | None,
    forget: Callable[[str], Awaitable[None]] | None,
    served: Chats | None,
    want: Callable[[str], None],
    senders: Senders,
    metrics_at: Callable[[], list[str]],
    configuration: Callable[[], shapes.Configuration],
) -> Surroundings:
    metrics.IN_FLIGHT.set_function(lambda: worker.in_flight)
    metrics.IN_FLIGHT_LIMIT.set_function(lambda: in_flight.limit)
    metrics.RATE_LIMIT.set_function(lambda: pacer.rate)
    metrics.GMS_UP.set_function(lambda: gms.available)
    metrics.QUEUE_DEPTH.set_function(lambda: store.depth)
    metrics.STORE_REPLACED.set_function(lambda: store.replaced is not None)
    metrics.STORE_WRITABLE.set_function(lambda: store.trouble is None)
    metrics.BUILD.info({"version": __version__, "python": platform.python_version()})

    def pings() -> shapes.Pings:
        return shapes.Pings(
            in_flight=worker.in_flight,
            in_flight_limit=in_flight.limit,
            max_rate=pacer.rate,
            gms_available=gms.available,
            nodes=[
                shapes.Node(node=node.base, resting=node.failures > 0, cause=node.cause) for node in gms.nodes
            ],
        )

    return Surroundings(
        servers=watcher.servers,
        pings=pings,
        ready=lambda: ready.is_set() and store.trouble is None,
        hurry=delivery.hurry,
        trouble=delivery.trouble,
        gateway=lambda: gateway.addresses if gateway else [],
        configuration=configuration,
        metrics=metrics_at,
        digest=digest,
        forget=forget,
        polls=lambda: served.polls_held if served else 0,
        streams=lambda: served.streams_open if served else 0,
        pushes_missing=lambda: served is not None and served.pushes_missing,
        want=want,
        senders=senders,
    )


def _interval_ms(settings: Settings) -> float:
    return settings.ping.interval.total_seconds() * 1000


async def _keep_house(store: Store, reloading: Reloading, clock: Clock) -> None:
    """Forget what ended long ago."""
    while True:
        keep_ms = round(reloading.settings.store.keep_ended.total_seconds() * 1000)
        with suppress(StoreError):
            if await store.duty("purge", seconds=HOUSEKEEPING_SECONDS):
                before = clock.now() - keep_ms
                while await store.purge(ended_before=before, limit=PURGE_PORTION) >= PURGE_PORTION:
                    await clock.sleep(0.1)
        await clock.sleep(min(HOUSEKEEPING_SECONDS, keep_ms / 1000))


async def _report_unwatched(store: Store, watcher: Watcher, clock: Clock) -> None:
    """Say which aliases no configured Chat Server has: nobody would notice the loss of theirs."""
    told: set[str] = set()
    while True:
        await clock.sleep(HOUSEKEEPING_SECONDS)
        servers = watcher.servers()
        # Each had its time to say who it is.
        nameless = [server.name for server in servers if server.app_dbid is None or server.assumed]
        advice = "add a [[chat_server]] for it, then reload"
        if nameless:
            advice = f"set app_dbid of {', '.join(nameless)}, whose may be this alias, then reload"
        with suppress(StoreError):
            if not await store.duty("unwatched", seconds=HOUSEKEEPING_SECONDS):
                continue
            counts = await store.counts_by_alias()
            unwatched = {
                alias: count for alias, count in counts.items() if alias not in {s.app_dbid for s in servers}
            }
            for alias in unwatched.keys() - told:
                log.warning(Event.SESSIONS_UNWATCHED, alias=alias, sessions=unwatched[alias], advice=advice)
            told = set(unwatched)


async def _watch_loop(clock: Clock, watcher: Watcher, sending: Sending, clock_set: asyncio.Event) -> None:
    """Notice when the daemon itself stood still, and when somebody set the clock. It waits for nothing else, or what
    took long would pass for a standstill.

    Three tasks measure how late they come, each for a judgement of its own, and none can go by another's meter. This
    one reads both clocks of the daemon at the same two moments: between others, a stall would look like a clock that
    was set. `watch_lag` goes by the machine's clock and up to fifty times a second, as fine as its histogram; at that
    pace nobody else needs to wake. `Reporting.feed` judges its own turn: a watchdog that is fed because another task
    comes in time says nothing of the one that feeds it.
    """
    wall, steady = clock.now(), clock.monotonic()
    while True:
        await clock.sleep(LOOP_CHECK_SECONDS)
        passed = clock.monotonic() - steady
        lag = passed - LOOP_CHECK_SECONDS
        step: Ms = round(clock.now() - wall - passed * 1000)
        wall, steady = clock.now(), clock.monotonic()
        sending.settling.come_round()
        if lag > STALL_SECONDS:
            log.warning(Event.LOOP_STALLED, stall_ms=round(lag * 1000))
            watcher.stalled()
        if abs(step) > CLOCK_STEP_MS:
            log.warning(Event.CLOCK_STEPPED, step_ms=step)
            clock_set.set()


async def _read_due_times_anew(
    clock: Clock, store: Store, reloading: Reloading, clock_set: asyncio.Event
) -> None:
    """Whenever the clock was set: what is due too late by it is due sooner."""
    while True:
        await clock_set.wait()
        clock_set.clear()
        try:
            await store.pull_in(now=clock.now(), spread_ms=_interval_ms(reloading.settings))
        except StoreError:  # again, until the disk takes it
            clock_set.set()
            await clock.sleep(LOOP_CHECK_SECONDS)


def _obey_signals(stop: asyncio.Event, reload: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    first: float | None = None

    def asked(number: signal.Signals) -> Callable[[], None]:
        def act() -> None:
            nonlocal first
            first = loop.time() if first is None else first
            stop.set()
            if loop.time() - first >= SAME_WISH_SECONDS:
                # Once more means now: what is in flight becomes due again when its lease runs out.
                flush(LAST_LINES_SECONDS)
                os._exit(128 + number)

        return act

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            continue  # a script's background job: the Ctrl-C is meant for what runs in front
        with suppress(ValueError, NotImplementedError, RuntimeError):  # not the main thread: a test's
            loop.add_signal_handler(number, asked(number))
    with suppress(ValueError, NotImplementedError, RuntimeError):
        # From the first moment on: unhandled it would end the process.
        loop.add_signal_handler(signal.SIGHUP, reload.set)
