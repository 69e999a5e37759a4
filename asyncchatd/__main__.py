"""`python -m asyncchatd` is the command `asyncchatd`."""

from __future__ import annotations

import signal


def command() -> None:
    """The command. While Python reads its modules, and while it takes leave, Ctrl-C ends it without a word: no
    code of ours runs then that could say one."""
    interrupted = signal.getsignal(signal.SIGINT)  # ignored in the background of some shells
    if interrupted is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from asyncchatd.cli import main

    signal.signal(signal.SIGINT, interrupted)
    try:
        main(prog_name="asyncchatd")
    finally:
        if interrupted is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    command()
