"""A configuration file, and what reading it comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncchatd.config.loading import load
from asyncchatd.config.settings import Settings
from asyncchatd.config.sources.problems import ConfigError

SMALL = {"receiver": 'secrets = ["s-1"]', "gms": 'nodes = ["http://gms-1:8080/genesys"]'}


def write(directory: Path, more: str = "", **sections: str) -> Path:
    """The smallest valid file, with sections added or replaced, in a directory of its own."""
    tables = "\n".join(f"[{name}]\n{keys}" for name, keys in (SMALL | sections).items())
    path = directory / "asyncchatd.toml"
    path.write_text(f"{tables}\n{more}\n")
    return path


def settings(directory: Path, more: str = "", **sections: str) -> Settings:
    return load(write(directory, more, **sections))


def problems(directory: Path, more: str = "", **sections: str) -> dict[str, str]:
    """What is wrong, by key."""
    with pytest.raises(ConfigError) as caught:
        load(write(directory, more, **sections))
    return {problem.key: problem.message for problem in caught.value.problems}
