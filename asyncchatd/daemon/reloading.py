"""Taking over a changed configuration while the daemon runs: SIGHUP, `systemctl reload`.

All or nothing. The file is read, validated and compared first, and whatever may fail is tried; only
then do the parts take it over, in one step in which nothing else runs and nothing can fail. A file
that is wrong, or that changes what cannot be changed in a running daemon, is refused as a whole: the
log says why and what to do, the status line says that it was refused, and the daemon runs on as before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from asyncchatd.config import SECTIONS, TABLES, ConfigError, Settings, keys_at_start, load
from asyncchatd.control import shapes
from asyncchatd.control.api import Control
from asyncchatd.daemon import systemd
from asyncchatd.delivery import Delivery
from asyncchatd.gms import GmsClient
from asyncchatd.listening import Guard, Listener, certificates
from asyncchatd.log import Event, get_logger, go_on_in, metrics, open_file, redact, scrub, set_level
from asyncchatd.model import Clock, Ms
from asyncchatd.receiver import Receiver
from asyncchatd.sending import Sending
from asyncchatd.stores import STORE_PAUSE_SECONDS, Store, StoreError, tell_failure
from asyncchatd.watcher import Watcher
from asyncchatd.worker import Worker

if TYPE_CHECKING:
    from asyncchatd.gateway import Chats, Gateway

log = get_logger()


class NotTakenOver(Exception):
    """The changed configuration is not taken over; the text says why."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(why)
        self.advice = advice


def differences(before: Settings, after: Settings) -> list[str]:
    """The keys whose values differ, as `section.key`; one of a table that repeats as `chat_server[NAME]`."""
    return [*_of_sections(before, after), *_of_tables(before, after)]


def _of_sections(before: Settings, after: Settings) -> Iterator[str]:
    for name in SECTIONS:
        one, other = getattr(before, name), getattr(after, name)
        if None in (one, other):  # a section that may be left out: with it a port comes or goes
            if one is not other:
                yield f"{name}.listen"
            continue
        for key in type(one).model_fields:
            if getattr(one, key) != getattr(other, key):
                yield f"{name}.{key}"
    if before.store.url == after.store.url and before.store_url != after.store_url:
        yield "store.url"  # the file lies in another directory now, and with it the database


def _of_tables(before: Settings, after: Settings) -> Iterator[str]:
    for table, field in TABLES.items():
        one, other = ({each.name: each for each in getattr(settings, field)} for settings in (before, after))
        for name in dict.fromkeys((*one, *other)):
            if one.get(name) != other.get(name):
                yield f"{table}[{name}]"


def fixed(changed: Sequence[str]) -> list[str]:
    """The changed keys that a running daemon cannot take over."""
    at_start = keys_at_start()
    return [key for key in changed if key in at_start]


def read_anew(path: Path, before: Settings) -> tuple[Settings, list[str]]:
    """The settings of the file, and what they change. Raises `NotTakenOver` when they cannot be taken over."""
    try:
        after = load(path)
        after.gms.tls()  # which may fail, and is not asked for first when it must not
    except ConfigError as error:
        raise NotTakenOver(
            str(error).replace("\n", "; "),
            f"correct it, see asyncchatd check --config {path}, and reload again",
        ) from None
    except (OSError, ValueError) as error:
        raise NotTakenOver(
            f"the TLS files of [gms] cannot be used: {error}", "correct gms.ca_file, client_cert, client_key"
        ) from None
    changed = differences(before, after)
    if stuck := fixed(changed):
        raise NotTakenOver(
            f"{', '.join(stuck)} cannot be changed while the daemon runs",
            "restart the daemon to take the whole file over, or take these changes back and reload again",
        )
    return after, changed


class Part(Protocol):
    """A part of the daemon that goes by settings which may change.

    What it takes from them it takes in `reload`, also at its beginning, or reads from them each time:
    tests/daemon/test_takeover.py finds what it would go on with.
    """

    def reload(self, settings: Settings) -> None:
        """Go by these from now on. No other task runs meanwhile, and nothing in it may fail."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the daemon, in the order in which they take a configuration over."""

    receiver: Listener
    pushes: Receiver
    control: Listener
    guard: Guard
    api: Control
    metrics: Listener | None
    gateway: Listener | None
    door: Gateway | None
    gms: GmsClient
    sending: Sending
    chats: Chats | None
    worker: Worker
    watcher: Watcher
    delivery: Delivery

    def objection(self, settings: Settings) -> str | None:
        """What a socket that systemd has handed over speaks against, if anything."""
        listeners = (self.receiver, self.control, self.metrics, self.gateway)
        objections = (each.objection(settings) for each in listeners if each is not None)
        return next((objection for objection in objections if objection), None)

    async def chats_objection(self, settings: Settings) -> str | None:
        """What the chats of the gateway speak against, if anything. Raises `StoreError`."""
        if self.chats is None or settings.gateway is None:
            return None
        return await self.chats.objection(settings.gateway)

    def reload(self, settings: Settings) -> None:
        """Each of them goes by these from now on."""
        set_level(settings.log.level)  # first: some keep a logger of their own
        for part in self:
            part.reload(settings)

    def __iter__(self) -> Iterator[Part]:
        parts = (getattr(self, each.name) for each in fields(self))
        return (part for part in parts if part is not None)


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """Why the file as it was last read is not in force."""

    at: Ms
    cause: str
    advice: str


class Reloading:
    """The reloading of the configuration. Its root task is `run`."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        store: Store,
        clock: Clock,
        *,
        asked: asyncio.Event,
        wakeup: asyncio.Event,
    ) -> None:
        """`asked` is set when somebody asks for the file to be read anew, `wakeup` wakes the worker."""
        self.settings = settings
        """Those in force."""
        self.taken_over_at = clock.now()
        """When they were taken over."""
        self.refused: RefusedFile | None = None
        """Why the file as it was last read was refused, if it was."""
        self._parts = parts
        self._store = store
        self._clock = clock
        self._asked = asked
        self._wakeup = wakeup
        self._spread = False
        """Due times must still be brought within a shortened interval."""
        self._tell_success()
        _show_end(_end_of_client_certificate(settings))

    async def run(self) -> None:
        """Take the file over whenever that is asked for, until cancelled."""
        while True:
            if self._spread:
                await self._clock.wait(self._asked, STORE_PAUSE_SECONDS)
            else:
                await self._asked.wait()
            if self._asked.is_set():
                self._asked.clear()
                systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
                await self._reload()
                systemd.notify("READY=1")
            if self._spread:
                await self._pull_in()

    async def _reload(self) -> None:
        before = self.settings
        if before.log.file is not None:
            await _open_log_anew(before.log.file)
        path = str(before.path)
        try:
            # In a thread: a file system that hangs must not stop pushes.
            settings, changed = await asyncio.to_thread(read_anew, before.path, before)
            if objection := self._parts.objection(settings):
                raise NotTakenOver(objection, "take this change back and reload again")
            if objection := await self._parts.chats_objection(settings):
                from asyncchatd.gateway import KEY_ADVICE  # there is one, so that it is imported already

                raise NotTakenOver(objection, KEY_ADVICE)
        except StoreError as error:
            tell_failure(error)
            self._refuse("the store does not answer", "reload again once it does")
            return
        except NotTakenOver as error:
            self._refuse(scrub(str(error)), error.advice)
            return
        end = await asyncio.to_thread(_end_of_client_certificate, settings)
        for secret in settings.secret_values():
            redact(secret)
        self._parts.reload(settings)
        self.settings = settings
        self._tell_success()
        _show_end(end)
        self._spread |= settings.ping.interval < before.ping.interval
        log.info(Event.CONFIG_RELOADED, config=path, changed=changed)

    def _refuse(self, cause: str, advice: str) -> None:
        self.refused = RefusedFile(self._clock.now(), cause, advice)
        metrics.RELOAD_SUCCESSFUL.set(0)
        log.error(Event.CONFIG_REFUSED, config=str(self.settings.path), cause=cause, advice=advice)

    def _tell_success(self) -> None:
        self.taken_over_at, self.refused = self._clock.now(), None
        metrics.RELOAD_SUCCESSFUL.set(1)
        metrics.RELOAD_SUCCESS_AT.set(self.taken_over_at / 1000)

    async def _pull_in(self) -> None:
        """Silent sessions were to be pinged within the old interval; now sooner."""
        spread_ms = self.settings.ping.interval.total_seconds() * 1000
        try:
            await self._store.pull_in(now=self._clock.now(), spread_ms=spread_ms)
        except StoreError as error:
            tell_failure(error)
            return
        self._spread = False
        self._wakeup.set()


async def _open_log_anew(path: Path) -> None:
    """Go on in a new file of this name: whoever rotates logs has given the old one another name, as a rule."""
    try:
        file = await asyncio.to_thread(open_file, path)
    except OSError as error:
        log.error(Event.LOG_FILE_LOST, file=str(path), cause=error.strerror)
        return
    with file:
        go_on_in(file)


def shown(reloading: Reloading) -> shapes.Configuration:
    """What the API shows of the configuration."""
    refused = reloading.refused
    return shapes.Configuration(
        taken_over_at=_written(reloading.taken_over_at),
        refused=None
        if refused is None
        else shapes.Refused(at=_written(refused.at), cause=refused.cause, advice=refused.advice),
    )


def _written(ms: Ms) -> str:
    return shapes.write_time(datetime.fromtimestamp(ms / 1000, UTC))


CLIENT_CERTIFICATE = "gms.client_cert"


def _end_of_client_certificate(settings: Settings) -> datetime | None:
    """When the certificate runs out that GMS is shown; `None` where there is none."""
    with suppress(OSError, ValueError):  # it was read a moment ago
        return certificates.of_file(settings.gms.client_cert) if settings.gms.client_cert else None
    return None


def _show_end(end: datetime | None) -> None:
    if end is not None:
        metrics.CERTIFICATE_END.labels(CLIENT_CERTIFICATE).set(end.timestamp())
        return
    with suppress(KeyError):
        metrics.CERTIFICATE_END.remove(CLIENT_CERTIFICATE)
