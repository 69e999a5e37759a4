"""The configuration: what may be set, and how it is read."""

from asyncchatd.config.files import content_of
from asyncchatd.config.kinds import MOST, Duration, Listen
from asyncchatd.config.listeners import ControlSettings, ListenerSettings, ReceiverSettings
from asyncchatd.config.loading import load, load_control
from asyncchatd.config.problems import ConfigError, Problem, problem_of
from asyncchatd.config.rights import ALL_RIGHTS, ORDINARY_RIGHTS, Grant, Right, Rights
from asyncchatd.config.settings import (
    SECTIONS,
    ChatServerSettings,
    GmsSettings,
    PingSettings,
    RestorationSettings,
    Settings,
    WatcherSettings,
    keys_at_start,
)
from asyncchatd.config.trust import tls_context

__all__ = [
    "ALL_RIGHTS",
    "MOST",
    "ORDINARY_RIGHTS",
    "SECTIONS",
    "ChatServerSettings",
    "ConfigError",
    "ControlSettings",
    "Duration",
    "GmsSettings",
    "Grant",
    "Listen",
    "ListenerSettings",
    "PingSettings",
    "Problem",
    "ReceiverSettings",
    "RestorationSettings",
    "Right",
    "Rights",
    "Settings",
    "WatcherSettings",
    "content_of",
    "keys_at_start",
    "load",
    "load_control",
    "problem_of",
    "tls_context",
]
