"""The command `run`: the daemon."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from asyncchatd import log
from asyncchatd.cli.loops import new_runner
from asyncchatd.cli.options import config_option
from asyncchatd.config import ConfigError, LogSettings, Settings, load
from asyncchatd.daemon import run as daemon
from asyncchatd.listening import ListenError
from asyncchatd.model import Level
from asyncchatd.preflight import checks
from asyncchatd.stores import StoreError

STOPS = (signal.SIGTERM, signal.SIGINT)


@click.command()
@config_option
def run(config: Path) -> None:
    """Run the daemon until SIGTERM or SIGINT; a second one stops it at once.

    \b
    Example:
      asyncchatd run --config /etc/asyncchatd/asyncchatd.toml
    """
    try:
        settings = load(config)
    except ConfigError as error:
        log.configure()
        raise _cannot_start(error) from None
    for secret in settings.secret_values():
        log.redact(secret)
    _configure_log(settings.log)
    for finding in checks.remarks(settings):
        if finding.level in {Level.WARNING, Level.ERROR}:
            log.get_logger().warning(
                log.Event.CONFIG_WARNING, key=finding.key, message=finding.message, advice=finding.advice
            )
    stop = asyncio.Event()
    try:
        with new_runner() as runner:
            runner.run(_life(settings, stop))
        _on_a_signal(_leave)
        atexit.register(_on_a_signal, signal.SIG_IGN)  # Python takes its own handlers away
    except Exception as error:
        if stop.is_set():  # it ran; its own event daemon_failed tells the rest
            log.leave_if_nobody_reads()
            raise click.ClickException(f"a part of the daemon failed: {log.scrub(repr(error))}") from None
        if isinstance(error, StoreError | ListenError | OSError):
            raise _cannot_start(
                error, f"asyncchatd check --connect --config {config} looks at all it needs"
            ) from None
        log.leave_if_nobody_reads()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


async def _life(settings: Settings, stop: asyncio.Event) -> None:
    try:
        await daemon.run(settings, stop=stop)
    finally:
        # Not in the middle of a loop that closes, which takes its handlers with it.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def _on_a_signal(handler: Callable[[int, FrameType | None], NoReturn] | signal.Handlers) -> None:
    for number in STOPS:
        signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """One more signal while Python takes its leave: the daemon has ended in order."""
    log.flush(log.LAST_LINES_SECONDS)
    os._exit(0)


def _configure_log(settings: LogSettings) -> None:
    if settings.file is None:
        log.configure(settings.level, settings.format)
        return
    try:
        with log.open_file(settings.file) as file:
            log.configure("info", settings.format)
            log.get_logger().info(log.Event.LOG_FILE_BEGUN, file=str(settings.file))
            log.configure(settings.level, settings.format, file)
    except OSError as error:
        log.configure()
        raise _cannot_start(
            ValueError(f"log.file: {settings.file} cannot be written: {error.strerror}")
        ) from None


def _cannot_start(error: Exception, advice: str = "") -> click.ClickException:
    cause = log.scrub(_text_of(error))
    log.get_logger().critical(log.Event.DAEMON_FAILED, part="start", cause=cause)
    log.leave_if_nobody_reads()
    return click.ClickException(f"{cause} ({advice})" if advice else cause)


def _text_of(error: BaseException) -> str:
    return str(error) or type(error).__name__
