"""Where a running daemon is reached, as a command reads it.

The usual `[control]` says nothing but where to listen, and is read here: pydantic, and the models of all sections, take
longer to import than such a command takes in all. Any other section is read by them, and so is what is wrong with one,
so that it is told in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from asyncchatd.config.sources.document import read_toml
from asyncchatd.config.values.addresses import USUAL_CONTROL, Listen


class Contact(Protocol):
    """What a client of the control API needs to know: the part of `ControlSettings` that is for it."""

    @property
    def listen(self) -> Listen: ...
    @property
    def tokens(self) -> tuple[str, ...]: ...
    @property
    def tls_certificate(self) -> Path | None: ...
    @property
    def tls_client_ca(self) -> Path | None: ...
    @property
    def tls_ca(self) -> Path | None: ...
    @property
    def client_certificate(self) -> Path | None: ...
    @property
    def client_key(self) -> Path | None: ...


@dataclass(frozen=True, slots=True)
class LocalContact:
    """A daemon on this host that asks for no token and speaks no TLS."""

    listen: Listen = USUAL_CONTROL
    tokens: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_client_ca: Path | None = None
    tls_ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None


def load_contact(path: Path) -> Contact:
    """Read only what is said of the control API. An operator at a shell has neither the daemon's credentials nor its
    state directory, so the rest of the file, which may refer to them, is not looked at. Raises `ConfigError`."""
    data, _ = read_toml(path)
    if (found := local_contact(data.get("control", {}))) is not None:
        return found
    from asyncchatd.config.loading import load_control

    return load_control(path)


def local_contact(section: object) -> LocalContact | None:
    """What a right `[control]` says that has only `listen`, on this host; `None` of any other."""
    if not isinstance(section, Mapping) or not section.keys() <= {"listen"}:
        return None
    try:
        found = LocalContact(Listen.parse(section["listen"])) if section else LocalContact()
    except ValueError:
        return None
    return found if found.listen.local else None
