"""`python tests/fuzz/run.py [--seconds N] [TARGET ...]`: fuzz the parsers with atheris, a process for each.

The seconds are for all of them together, 60 by default. What breaks a parser is kept in
`tests/fuzz/found/`; add it to the tests of that parser. `make fuzz` runs it; it is not part of `make test`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from targets import SEEDS, TARGETS

FOUND = Path(__file__).parent / "found"
LONGEST = 4096
SLOWEST_SECONDS = 5


def main() -> int:
    parser = ArgumentParser(prog="python tests/fuzz/run.py", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--in-process", action="store_true", help="fuzz the one target in this process")
    parser.add_argument(
        "targets", nargs="*", choices=[*TARGETS, []], metavar="TARGET", help=", ".join(TARGETS)
    )
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if options.in_process:
        fuzz(names[0], options.seconds)
    each = max(1, options.seconds // len(names))
    failed = [name for name in names if not run(name, each)]
    print(f"failed: {', '.join(failed)}" if failed else "nothing found", flush=True)
    return 1 if failed else 0


def run(name: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own, because libFuzzer ends the one it runs in."""
    print(f"== {name}, {seconds} s", flush=True)
    command = [sys.executable, __file__, "--in-process", "--seconds", str(seconds), name]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=seconds + 60, check=False)
    last = done.stderr.splitlines()
    print("\n".join(last[-1:] if done.returncode == 0 else last[-40:]), flush=True)
    return done.returncode == 0


def fuzz(name: str, seconds: int) -> None:
    """Never returns."""
    import atheris

    with atheris.instrument_imports(include=["asyncchatd"]):
        for module in [module for module in sys.modules if module.startswith("asyncchatd")]:
            del sys.modules[module]
        del sys.modules["targets"]
        from targets import TARGETS as instrumented

    FOUND.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup(
            [
                "fuzz",
                f"-max_total_time={seconds}",
                f"-max_len={LONGEST}",
                f"-timeout={SLOWEST_SECONDS}",
                "-rss_limit_mb=1024",
                f"-artifact_prefix={FOUND}/{name}-",
                corpus,
            ],
            instrumented[name],
        )
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
