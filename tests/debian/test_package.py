"""The Debian package says of the project what the project says."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from asyncchatd import __version__
from asyncchatd.preflight import installing

ROOT = Path(__file__).parents[2]


def test_the_package_is_of_the_version_of_the_project() -> None:
    newest = re.match(r"asyncchatd \(([^)]+)\)", (ROOT / "debian" / "changelog").read_text())
    assert newest
    assert newest[1] == __version__


def test_the_maintainers_are_the_same_everywhere() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    address = setup["metadata"]["maintainer_email"]
    for name in ("control", "changelog"):
        assert f"<{address}>" in (ROOT / "debian" / name).read_text()


def test_the_purge_removes_the_drop_ins_that_init_writes() -> None:
    purge = (ROOT / "debian" / "asyncchatd.postrm").read_text()
    for unit in (installing.SERVICE, installing.SOCKET, installing.GATEWAY_SOCKET):
        assert re.search(rf"for unit in .*\b{re.escape(unit)}\b", purge)
    assert f"$unit.d/{installing.DROP_IN}" in purge
