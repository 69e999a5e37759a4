"""The lowest versions of the dependencies that CI tries: tests/lowest.txt says what setup.cfg promises."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lowest() -> list[str]:
    """`name==version` for each lower bound of setup.cfg, in its order."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    pins = []
    for line in setup["options"]["install_requires"].splitlines():
        if not line or line.startswith("#"):
            continue
        bound = re.match(r"([\w-]+) >= ([\d.]+)", line)
        assert bound, f"no lower bound in {line!r}"
        pins.append(f"{bound[1]}=={bound[2]}")
    return pins


def test_ci_tries_the_lowest_versions_that_setup_cfg_allows() -> None:
    pins = [line for line in (ROOT / "tests/lowest.txt").read_text().splitlines() if not line.startswith("#")]
    assert pins == lowest()
