"""The command `asyncchatd` for a parent that may die: python -m asyncchatd.tether COMMAND ...

The parent holds the other end of the standard input, a pipe, and writes nothing into it. When it is gone, SIGKILL
included, the pipe closes and this process is killed as well, so that a demo that was killed leaves no daemon behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress

from asyncchatd.__main__ import command

PR_SET_PDEATHSIG = 1
"""Number of the call of prctl(2) that asks for a signal when the parent's thread ends that started this process."""


def hold() -> None:
    """The tie between this process and its parent; it cannot be undone.

    It ends by SIGKILL: its work is in its store, and who would wait for a graceful stop is gone. On Linux the kernel
    sends that signal too, also to a process that is stopped and reads nothing. The parent starts it with
    `stdin=PIPE`, from its main thread.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, name="tether", daemon=True).start()


def _end_with_parent() -> None:
    with suppress(OSError):
        while os.read(0, 512):
            pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    hold()
    command()
