"""Whatever a reload takes over, every part goes by it then: nothing goes on with what it copied at the start.

Each setting is changed by itself. The parts of a daemon that reload it are compared with those of a daemon that was
started with it: wherever the setting shows in these, it shows in those as well.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import re
import ssl
from collections.abc import Iterator, Mapping
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import FunctionType, MethodType
from typing import get_args

import pytest
from conftest import Certificates, FakeClock, PromptStore, settings_of
from control.test_api import PINGS

import asyncchatd
from asyncchatd import log
from asyncchatd.config.sections.listeners import Section
from asyncchatd.config.settings import (
    ChatServerSettings,
    Settings,
    keys_at_start,
    known_keys,
    section_models,
)
from asyncchatd.control.api import Control
from asyncchatd.control.exposition import Exposition
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.daemon.reloading import Parts
from asyncchatd.delivery.delivery import Delivery
from asyncchatd.gateway import Chats, Gateway
from asyncchatd.gms.client import GmsClient
from asyncchatd.gms.pacing import InFlight, Pacer
from asyncchatd.listening.guard import Guard
from asyncchatd.listening.listener import Listener
from asyncchatd.receiver import Receiver
from asyncchatd.sending.sending import Sending
from asyncchatd.watcher.watcher import Watcher
from asyncchatd.worker.worker import Worker

Plain = str | bytes | int | float | timedelta | IPv4Network | IPv6Network | None
Tree = dict[str, dict[str, object]]

START: Tree = {
    "receiver": {"listen": "127.0.0.1:0", "secrets": ["push-secret-1"]},
    "control": {"listen": "127.0.0.1:0"},
    "gms": {"nodes": ["https://gms-1:8080/genesys"], "username": "asyncchatd", "password": "its-password"},
    "metrics": {"listen": "127.0.0.1:0"},
    "gateway": {"listen": "127.0.0.1:0", "key_file": "gateway-keys", "node_group": "gms"},
}

OTHER: Tree = {
    "receiver": {
        "secrets": ["push-secret-2"],
        "secrets_file": "more-secrets",
        "allow": ["10.0.0.0/8"],
        "max_connections": 77,
    },
    "control": {
        "token": "another-token",
        "token_file": "tokens",
        "trust_socket": True,
        "allow": ["10.0.0.0/8"],
        "max_connections": 77,
        "tls_ca": "ca.pem",
        "client_certificate": "client.pem",
        "client_key": "client.pem",
    },
    "gms": {
        "nodes": ["https://gms-2:8080/genesys"],
        "service": "another-service",
        "timeout": "7s",
        "connect_timeout": "3s",
        "username": "another",
        "password": "another-password",
        "password_file": "password",
        "headers": {"apikey": "another"},
        "ca_file": "ca.pem",
        "client_cert": "client.pem",
        "client_key": "client.pem",
        "rest": "3s",
        "rest_max": "44s",
    },
    "store": {"keep_ended": "9d"},
    "ping": {"interval": "9m"},
    "restoration": {
        "max_rate": 33.0,
        "max_in_flight": 13,
        "lease": "19s",
        "backoff": "3s",
        "backoff_max": "44s",
        "insist": "3m",
    },
    "watcher": {
        "interval": "9s",
        "timeout": "3s",
        "fall": 7,
        "rise": 6,
        "fast_interval": "1.5s",
        "refused_interval": "50ms",
        "idle_connection": False,
    },
    "log": {"level": "debug"},
    "chat_server": {
        "name": "chat-b",
        "health_url": "http://chat-b/",
        "app_dbid": "118",
        "start_counter": "started",
        "uptime_counter": "uptime",
    },
    "transcript": {"max_events": 77, "max_bytes": "7KiB", "max_total": "77MiB", "keep": "7h"},
    "consumer": {
        "name": "another-app",
        "url": "https://chat.example.com/another",
        "secret_file": "webhook-secret",
        "ca_file": "ca.pem",
        "kinds": ["ended"],
        "services": ["another-service"],
        "from": "oldest",
        "timeout": "7s",
        "max_in_flight": 7,
        "park_after": "7h",
        "keep": "7d",
        "max_backlog": 777,
        "send_keys": True,
        "acknowledges": "7s",
    },
    "metrics": {"allow": ["10.9.7.0/24"], "max_connections": 78},
    "gateway": {
        "path": "/another",
        "origins": ["https://another.example"],
        "services": ["another-service"],
        "key_file": "more-gateway-keys",
        "apikeys_file": "apikeys",
        "node_group": "another-group",
        "user_data": {"Channel": "another"},
        "async_mode": False,
        "push_payload": True,
        "push_resend": False,
        "passthrough": True,
        "adopt": True,
        "max_adoptions": 7,
        "hold": "1.5s",
        "patience": "1.5s",
        "check_interval": "7m",
        "fallback_interval": "7s",
        "max_new_chats": 7,
        "max_rate": 7.0,
        "max_waiting": 7,
        "max_upload": "7MiB",
        "allow": ["10.0.0.0/8"],
        "max_connections": 77,
    },
}
"""Another value for each setting that a reload takes over."""

TOGETHER: dict[str, Tree] = {
    "gms.password_file": {"gms": {"password": None}},
    "gms.client_key": {"gms": {"client_cert": "client.pem"}},
    "control.client_key": {"control": {"client_certificate": "client.pem"}},
    "control.trust_socket": {"control": {"listen": "unix:/run/control.sock"}},
    "consumer.acknowledges": {"consumer": {"kinds": ["notified"]}},
}
"""What the configuration needs before and after for the setting to be changed by itself."""

ELSEWHERE = {
    "consumer.from": "read as `begin`, when the consumers are named to the store",
    **dict.fromkeys(("gms.client_cert", "gms.client_key"), "in the same TLS context as gms.ca_file"),
    **dict.fromkeys(
        ("control.tls_ca", "control.client_certificate", "control.client_key"), "the commands go by it"
    ),
}
"""It cannot be seen in any part, and why."""

LIVE = [key for key in known_keys() if key not in keys_at_start()]


@pytest.fixture
def directory(tmp_path: Path, certificates: Certificates) -> Iterator[Path]:
    (tmp_path / "more-secrets").write_text("push-secret-3\n")
    (tmp_path / "tokens").write_text("one-more-token\n")
    (tmp_path / "gateway-keys").write_text("ab" * 32)
    (tmp_path / "more-gateway-keys").write_text("cd" * 32)
    (tmp_path / "apikeys").write_text("an-apikey\n")
    (tmp_path / "webhook-secret").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8G\n")
    (tmp_path / "first-webhook-secret").write_text("whsec_C2FVsBQIhrscChlQIMV8b5sSYspob7oDC2FVsBQI\n")
    (tmp_path / "password").write_text("password-of-the-file\n")
    (tmp_path / "ca.pem").write_bytes(certificates.ca.read_bytes())
    (tmp_path / "client.pem").write_bytes(
        certificates.client.read_bytes() + certificates.client_key.read_bytes()
    )
    yield tmp_path
    log.set_level("info")  # the process'


def settings(directory: Path, *changes: Tree) -> Settings:
    sections: dict[str, object] = {}
    tree: Tree = {name: dict(keys) for name, keys in START.items()}
    server: dict[str, object] = {"name": "chat-a", "health_url": "http://chat-a/"}
    consumer: dict[str, object] = {
        "name": "app",
        "url": "https://chat.example.com/app",
        "secret_file": "first-webhook-secret",
    }
    for change in changes:
        for section, keys in change.items():
            tables = {"chat_server": server, "consumer": consumer}
            into = tables[section] if section in tables else tree.setdefault(section, {})
            into |= keys
    for section, keys in tree.items():
        sections[section] = {name: value for name, value in keys.items() if value is not None}
    return settings_of(directory, **sections, chat_servers=[server], consumers=[consumer])


def started(settings: Settings, store: PromptStore) -> Parts:
    """The parts of a daemon as `run` makes them."""
    clock, wakeup = FakeClock(), asyncio.Event()
    limits = settings.restoration
    pacer = Pacer(limits.max_rate, clock)
    in_flight = InFlight(limits.max_in_flight, settings.gms.slow_after.total_seconds(), clock)
    gms = GmsClient(settings.gms, pacer, clock)
    watcher = Watcher(store, settings, clock, wakeup)
    sending = Sending(store, gms, pacer, in_flight, settings, clock, wakeup)
    worker = Worker(store, sending, settings, clock, wakeup)
    for server in settings.chat_servers:
        watcher._begin(server)  # as `load` does
    pushes = Receiver(store, settings.receiver, clock, wakeup)
    api = Control(store, clock, wakeup, Surroundings(list, lambda: PINGS, lambda: True), settings)
    receiver = Listener(pushes.app(), settings.receiver, name="receiver")
    guard = Guard(settings.control)
    control = Listener(guard.before(api.app(), api.needs), settings.control, name="control")
    delivery = Delivery(store, settings, clock)
    assert settings.metrics is not None
    scraped = Listener(Exposition(store, clock, list).app(), settings.metrics, name="metrics")
    assert settings.gateway is not None
    chats = Chats(store, sending, settings.gateway, clock, wakeup)
    door = Gateway(settings.gateway, chats, clock)
    gateway = Listener(door.app(), settings.gateway, name="gateway")
    return Parts(
        *(receiver, pushes, control, guard, api, scraped, gateway, door, gms, sending, chats),
        *(worker, watcher, delivery),
    )


def held(value: object, path: str = "", seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, object]]:
    """All plain values that something of ours holds, and where: in its attributes, in what it contains, and in what
    its functions have closed over."""
    if value is None or isinstance(value, get_args(Plain)):
        yield path, value
        return
    if isinstance(value, ssl.SSLContext):
        yield path, tuple(sorted(value.cert_store_stats().items()))
        return
    if isinstance(value, re.Pattern):
        yield path, value.pattern
        return
    if id(value) in seen or isinstance(value, Section):
        return  # what is read from settings is no copy
    seen |= {id(value)}
    for name, each in _inside(value):
        yield from held(each, f"{path}.{name}", seen)


@functools.cache
def read_from_those_in_force() -> set[str]:
    """The names of settings that the parts read from the settings they go by, or the daemon from those in force."""
    house = Path(asyncchatd.__file__).parent
    rooms = ("worker", "sending", "watcher", "control", "gms", "listening", "daemon", "delivery", "gateway")
    files = [house / "receiver.py", *(file for room in rooms for file in (house / room).rglob("*.py"))]
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                whole = ast.unparse(node.value)
                in_force = "reloading.settings" if file.name == "run.py" else "settings"
                if in_force in whole or whole in ("limits", "configured", "server"):
                    names.add(node.attr)
    return names


def _inside(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((str(key), each) for key, each in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(number), each) for number, each in enumerate(value))
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            yield name, cell.cell_contents
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, MethodType):
        yield "self", value.__self__
    elif type(value).__module__.startswith("asyncchatd."):
        names = [*getattr(value, "__dict__", ()), *_slots(type(value))]
        yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))
    elif hasattr(value, "get_secret_value"):
        yield "secret", value.get_secret_value()


def _slots(kind: type) -> Iterator[str]:
    """Without pydantic's own, of which what the model has set is one."""
    for each in kind.__mro__:
        yield from (name for name in getattr(each, "__slots__", ()) if not name.startswith("__"))


def test_every_setting_that_a_reload_takes_over_has_another_value_here() -> None:
    named = [f"{section}.{key}" for section, keys in OTHER.items() for key in keys]
    assert sorted(named) == sorted(LIVE), "give a new setting another value here, or mark it AT_START"


def test_the_mark_is_known_by_every_section_that_has_the_setting() -> None:
    """A section that declares a setting of its base anew must not lose the mark."""
    at_start = keys_at_start()
    for name, kind in section_models().items():
        for base in kind.__mro__[1:]:
            for key in getattr(base, "model_fields", {}):
                assert (f"receiver.{key}" in at_start) == (f"{name}.{key}" in at_start), key
    assert not any(f"chat_server.{key}" in at_start for key in ChatServerSettings.model_fields)


@pytest.mark.slow
@pytest.mark.parametrize("key", LIVE)
async def test_every_part_goes_by_what_a_reload_takes_over(
    key: str, directory: Path, store: PromptStore
) -> None:
    section, name = key.split(".")
    change = {section: {name: OTHER[section][name]}}
    together = TOGETHER.get(key, {})
    before = settings(directory, together)
    after = settings(directory, together, change)
    parts = started(before, store)
    old, new = dict(held(parts)), dict(held(started(after, store)))
    shows = {path for path in old.keys() | new.keys() if old.get(path, "-") != new.get(path, "-")}
    seen = shows or name in read_from_those_in_force() or key in ELSEWHERE
    assert seen, "nobody goes by it after a reload: mark it AT_START"
    parts.reload(after)
    now = dict(held(parts))
    stale = {path for path in shows if now.get(path, "-") != new.get(path, "-")}
    assert not stale, f"goes on with the {key} of the start"


@pytest.mark.parametrize("line", ["one-more-token", "one-more-token read events", "one-more-token read"])
async def test_the_rights_of_a_token_are_taken_over(line: str, directory: Path, store: PromptStore) -> None:
    """Which stand in a file beside the configuration, where nothing may have changed."""
    change: Tree = {"control": {"token_file": "tokens"}}
    (directory / "tokens").write_text("one-more-token read events:app\n")
    parts = started(settings(directory, change), store)
    old = dict(held(parts))
    (directory / "tokens").write_text(f"{line}\n")
    after = settings(directory, change)
    new = dict(held(started(after, store)))
    shows = {path for path in old.keys() | new.keys() if old.get(path, "-") != new.get(path, "-")}
    assert shows, "no part knows the rights of a token"
    parts.reload(after)
    now = dict(held(parts))
    assert {path for path in shows if now.get(path, "-") != new.get(path, "-")} == set()
