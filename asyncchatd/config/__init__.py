"""The configuration: what may be set, and how it is read."""

from asyncchatd.config.consumers import ConsumerSettings, TranscriptSettings
from asyncchatd.config.files import content_of, webhook_key
from asyncchatd.config.gateway import GatewaySettings
from asyncchatd.config.kinds import MOST, Duration, Listen
from asyncchatd.config.listeners import ControlSettings, ListenerSettings, MetricsSettings, ReceiverSettings
from asyncchatd.config.loading import load, load_control
from asyncchatd.config.problems import ConfigError, Problem, problem_of
from asyncchatd.config.rights import ALL_RIGHTS, ORDINARY_RIGHTS, Grant, Right, Rights
from asyncchatd.config.settings import (
    OPTIONAL,
    SECTIONS,
    TABLES,
    ChatServerSettings,
    GmsSettings,
    LogSettings,
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
    "OPTIONAL",
    "ORDINARY_RIGHTS",
    "SECTIONS",
    "TABLES",
    "ChatServerSettings",
    "ConfigError",
    "ConsumerSettings",
    "ControlSettings",
    "Duration",
    "GatewaySettings",
    "GmsSettings",
    "Grant",
    "Listen",
    "ListenerSettings",
    "LogSettings",
    "MetricsSettings",
    "PingSettings",
    "Problem",
    "ReceiverSettings",
    "RestorationSettings",
    "Right",
    "Rights",
    "Settings",
    "TranscriptSettings",
    "WatcherSettings",
    "content_of",
    "keys_at_start",
    "load",
    "load_control",
    "problem_of",
    "tls_context",
    "webhook_key",
]
