"""The settings that a rehearsal tries: those of a configuration file, or the defaults, and what the options change."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from asyncchatd.config import (
    ConfigError,
    GatewaySettings,
    GmsSettings,
    PingSettings,
    Problem,
    RestorationSettings,
    WatcherSettings,
    problem_of,
)
from asyncchatd.model import durations
from asyncchatd.rehearsing.trial import Keys, Sections

GMS_KEYS = ("timeout", "connect_timeout", "rest", "rest_max")
"""How patient the daemon is with GMS. The other keys of `[gms]` say where it is and how to log in."""

GATEWAY_KEYS = ("hold", "check_interval", "fallback_interval", "max_connections", "max_rate")
"""What polls go by. The other keys of `[gateway]` say where it is and who may come."""

_fields: dict[str, Any] = {
    key: (each.annotation, each) for key, each in GatewaySettings.model_fields.items() if key in GATEWAY_KEYS
}
_Polls = create_model("_Polls", **_fields)  # without the files that only the daemon has


@dataclass(frozen=True, slots=True)
class Tuned:
    """The settings to be tried."""

    ping: PingSettings = field(default_factory=PingSettings)
    restoration: RestorationSettings = field(default_factory=RestorationSettings)
    watcher: WatcherSettings = field(default_factory=WatcherSettings)
    gms: GmsSettings = field(default_factory=lambda: GmsSettings(nodes=("http://127.0.0.1:8080",)))
    """Of these only `GMS_KEYS` count."""

    def sections(self) -> Sections:
        """As a configuration has them."""
        patience = {name: value for name, value in self.gms.model_dump().items() if name in GMS_KEYS}
        return {
            "ping": _written(self.ping.model_dump()),
            "restoration": _written(self.restoration.model_dump()),
            "watcher": _written(self.watcher.model_dump()),
            "gms": _written(patience),
        }


def tuned(config: Path | None, options: Mapping[str, Mapping[str, object]]) -> Tuned:
    """The settings of a configuration, or the defaults, with `options` (by section and key) in their place.

    Of the file only these settings are looked at: it may name credentials and directories that only the
    daemon has. Raises `ConfigError`.
    """
    file = {} if config is None else _toml(config)
    problems: list[Problem] = []

    def section(
        name: str, kind: type[BaseModel], keys: Sequence[str] = (), **needed: object
    ) -> BaseModel | None:
        given = file.get(name, {})
        values = {**given, **options.get(name, {})} if isinstance(given, dict) else {}
        values = {key: value for key, value in values.items() if not keys or key in keys}
        try:
            return kind.model_validate({**needed, **values})
        except ValidationError as error:
            problems.extend(problem_of(each, (name,), {}) for each in error.errors())
            return None

    ping = section("ping", PingSettings)
    restoration = section("restoration", RestorationSettings)
    watcher = section("watcher", WatcherSettings)
    gms = section("gms", GmsSettings, GMS_KEYS, nodes=("http://127.0.0.1:8080",))
    if problems:
        raise ConfigError(config or Path("options"), problems)
    assert isinstance(ping, PingSettings)
    assert isinstance(restoration, RestorationSettings)
    assert isinstance(watcher, WatcherSettings)
    assert isinstance(gms, GmsSettings)
    return Tuned(ping, restoration, watcher, gms)


def of_gateway(config: Path | None) -> Keys:
    """The settings of `[gateway]` that polls go by, of a configuration or the defaults, as a file has them. Raises
    `ConfigError`."""
    given = {} if config is None else _toml(config).get("gateway", {})
    values = (
        {key: value for key, value in given.items() if key in GATEWAY_KEYS} if isinstance(given, dict) else {}
    )
    try:
        return _written(_Polls.model_validate(values).model_dump())
    except ValidationError as error:
        problems = [problem_of(each, ("gateway",), {}) for each in error.errors()]
        raise ConfigError(config or Path("options"), problems) from None


def _toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        problem = Problem("", None, f"cannot be read: {error.strerror}")
    except ValueError as error:
        problem = Problem("", None, f"not valid TOML: {error}")
    raise ConfigError(path, [problem])


def _written(values: Mapping[str, object]) -> dict[str, str | int | float]:
    """As the configuration file writes them."""
    return {
        name: durations.text(value) if isinstance(value, timedelta) else value
        for name, value in values.items()
        if isinstance(value, timedelta | int | float)
    }
