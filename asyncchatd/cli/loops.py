"""The event loop a command runs in, and how it ends by Ctrl-C, SIGTERM and a closed terminal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import TypeVar

from asyncchatd.terminal import say

T = TypeVar("T")


def until_stopped(life: Coroutine[object, object, T]) -> T:
    """Run `life` until it ends. Ctrl-C, SIGTERM and a closed terminal cancel it, so that it cleans up."""
    stopped: list[signal.Signals] = []

    async def cancellable() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            stopped.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # whoever started us said so: a background job, nohup
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await life

    with new_runner() as runner:
        try:
            return runner.run(cancellable())
        except asyncio.CancelledError:
            say("stopped", error=True)
            raise SystemExit(128 + stopped[0] if stopped else 1) from None


def run(work: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run `work` until it ends. Ctrl-C interrupts it, but not while its event loop is made: Python cannot clean up half
    a loop, and says so at length."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    async def interruptible() -> T:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return await work()

    try:
        with asyncio.Runner() as runner:
            return runner.run(interruptible())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def new_runner() -> asyncio.Runner:
    """An event loop, uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
