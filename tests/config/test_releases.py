"""Configurations that released versions wrote: `tests/releases/` has what `init` of each wrote, every key in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asyncchatd.config.loading import load

from .rig import problems

RELEASES = sorted((Path(__file__).parents[1] / "releases").glob("*/asyncchatd.toml"))
KEY = re.compile(r"^(?:# )?([a-z_]+) = ", re.MULTILINE)
SECTION = re.compile(r"^(?:# )?\[+([a-z_]+)\]+$", re.MULTILINE)


def keys(release: Path) -> set[tuple[str, str]]:
    """Each key with its section, those in comments too."""
    text = release.read_text()
    begins = [(each.end(), each[1]) for each in SECTION.finditer(text)]
    return {
        (max(begin for begin in begins if begin[0] < each.start())[1], each[1]) for each in KEY.finditer(text)
    }


@pytest.mark.parametrize("release", RELEASES, ids=lambda file: file.parent.name)
def test_what_init_of_a_release_wrote_is_taken_as_it_is(release: Path, tmp_path: Path) -> None:
    for name, value in {"push-secrets": "s" * 32, "store-keys": "A" * 43 + "="}.items():
        (tmp_path / name).write_text(value)
        (tmp_path / name).chmod(0o600)
    path = tmp_path / "asyncchatd.toml"
    path.write_bytes(release.read_bytes())
    [server] = load(path).chat_servers
    assert server.name == "chat-1"


@pytest.mark.parametrize("release", RELEASES, ids=lambda file: file.parent.name)
def test_each_key_that_a_release_had_is_one_still(release: Path, tmp_path: Path) -> None:
    known = keys(release)
    assert len(known) > 40
    for section, key in known - {("chat_server", "name"), ("chat_server", "health_url")}:
        lines = {} if section == "chat_server" else {section: f"{key} = [[]]"}
        more = f"[[chat_server]]\n{key} = [[]]" if section == "chat_server" else ""
        found = problems(tmp_path, more, **lines)
        assert any(key in named and "unknown" not in words for named, words in found.items()), (
            section,
            key,
            found,
        )
