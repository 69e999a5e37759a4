"""What the benchmarks share: rounds, processors, processes, tables."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Took:
    """One measured stretch."""

    count: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Per second."""
        return self.count / self.seconds

    @property
    def cpu_us(self) -> float:
        """Processor microseconds each."""
        return self.cpu_seconds / self.count * 1e6


class Stopwatch:
    """`with Stopwatch() as watch: ...; watch.took(count)`. Wall and this process's processor time."""

    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._wall, self._cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu

    def took(self, count: int) -> Took:
        """What was measured, for so many things done."""
        return Took(count, self._wall, self._cpu)


def on_processor(number: int) -> None:
    """Keep this process on one processor, where the system allows it."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {number % (os.cpu_count() or 1)})


@contextlib.contextmanager
def process(module: str, *arguments: str, processor: int = 1) -> Iterator[str]:
    """Run `python -m module` beside us on another processor; yields its first line of output."""
    child = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(child.pid, {processor % (os.cpu_count() or 1)})
        assert child.stdout is not None
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def rss_mb(pid: int | str = "self") -> float:
    """Resident memory of a process, MB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
