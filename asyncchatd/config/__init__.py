"""The configuration: what may be set, and how it is read."""

from typing import TYPE_CHECKING

from asyncchatd.faces import on_demand

if TYPE_CHECKING:
    from asyncchatd.config.addresses import Listen
    from asyncchatd.config.agreement import alike
    from asyncchatd.config.bounds import MOST, duration
    from asyncchatd.config.consumers import ConsumerSettings, TranscriptSettings
    from asyncchatd.config.contact import Contact, load_contact
    from asyncchatd.config.document import content_of
    from asyncchatd.config.files import keys_in, webhook_key
    from asyncchatd.config.gateway import GatewaySettings
    from asyncchatd.config.gms import GmsSettings
    from asyncchatd.config.listeners import (
        ControlSettings,
        ListenerSettings,
        MetricsSettings,
        ReceiverSettings,
    )
    from asyncchatd.config.loading import load
    from asyncchatd.config.problems import ConfigError, Problem
    from asyncchatd.config.rights import ALL_RIGHTS, ORDINARY_RIGHTS, Grant, Right, Rights
    from asyncchatd.config.settings import (
        OPTIONAL,
        SECTIONS,
        TABLES,
        ChatServerSettings,
        LogSettings,
        PingSettings,
        RestorationSettings,
        Settings,
        WatcherSettings,
        keys_at_start,
    )
    from asyncchatd.config.trust import tls_context
    from asyncchatd.config.wording import problem_of
else:
    __getattr__ = on_demand(
        __name__,
        {
            "addresses": ("Listen",),
            "agreement": ("alike",),
            "bounds": ("MOST", "duration"),
            "consumers": ("ConsumerSettings", "TranscriptSettings"),
            "contact": ("Contact", "load_contact"),
            "document": ("content_of",),
            "files": ("keys_in", "webhook_key"),
            "gateway": ("GatewaySettings",),
            "gms": ("GmsSettings",),
            "listeners": ("ControlSettings", "ListenerSettings", "MetricsSettings", "ReceiverSettings"),
            "loading": ("load",),
            "problems": ("ConfigError", "Problem"),
            "rights": ("ALL_RIGHTS", "ORDINARY_RIGHTS", "Grant", "Right", "Rights"),
            "settings": (
                "OPTIONAL",
                "SECTIONS",
                "TABLES",
                "ChatServerSettings",
                "LogSettings",
                "PingSettings",
                "RestorationSettings",
                "Settings",
                "WatcherSettings",
                "keys_at_start",
            ),
            "trust": ("tls_context",),
            "wording": ("problem_of",),
        },
    )

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
    "Contact",
    "ControlSettings",
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
    "alike",
    "content_of",
    "duration",
    "keys_at_start",
    "keys_in",
    "load",
    "load_contact",
    "problem_of",
    "tls_context",
    "webhook_key",
]
