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

    try:
        signal.signal(signal.SIGINT, interrupted)
        main(prog_name="asyncchatd")
    except KeyboardInterrupt:  # in the moment before `main` can answer it
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        if interrupted is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    command()
