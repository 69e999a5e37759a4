"""What the tests of each folder cost: `python tests/costs.py [OPTIONS OF PYTEST]` prints a table of processor seconds.

Each folder has a process of its own, whose start is counted, as is every process that its tests start. Seconds of the
processor are about the same on a machine that does other work, and those of the wall are not.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def seconds() -> float:
    """Of the processor, that all processes that ended have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(*options: str) -> None:
    """Print the table. Exits with what a test failed with."""
    folders = sorted({path.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/test_*.py")})
    print("| Tests | Processor, s |\n|---|---|")
    for name, paths in (
        *((each, [TESTS / each]) for each in folders),
        ("the rest", [*TESTS.glob("test_*.py")]),
    ):
        before = seconds()
        done = subprocess.run([sys.executable, "-m", "pytest", *options, *paths], stdout=subprocess.PIPE)
        if done.returncode not in (0, 5):  # 5: none of them is chosen
            sys.exit(done.stdout.decode())
        print(f"| {name} | {seconds() - before:.0f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
