"""The configuration: what may be set, and how it is read."""

from typing import TYPE_CHECKING

from asyncchatd.faces import on_demand

if TYPE_CHECKING:
    from asyncchatd.config.agreement import alike
    from asyncchatd.config.contact import Contact, load_contact
    from asyncchatd.config.loading import load
    from asyncchatd.config.sections.consumers import ConsumerSettings, TranscriptSettings
    from asyncchatd.config.sections.gateway import GatewaySettings
    from asyncchatd.config.sections.gms import GmsSettings
    from asyncchatd.config.sections.listeners import (
        ControlSettings,
        ListenerSettings,
        MetricsSettings,
        ReceiverSettings,
    )
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
    from asyncchatd.config.sources.document import content_of
    from asyncchatd.config.sources.files import keys_in, webhook_key
    from asyncchatd.config.sources.problems import ConfigError, Problem
    from asyncchatd.config.values.addresses import Listen
    from asyncchatd.config.values.bounds import MOST, duration
    from asyncchatd.config.values.rights import ALL_RIGHTS, ORDINARY_RIGHTS, Grant, Right, Rights
    from asyncchatd.config.values.trust import tls_context
    from asyncchatd.config.wording import problem_of
else:
    __getattr__ = on_demand(
        __name__,
        {
            "values.addresses": ("Listen",),
            "agreement": ("alike",),
            "values.bounds": ("MOST", "duration"),
            "sections.consumers": ("ConsumerSettings", "TranscriptSettings"),
            "contact": ("Contact", "load_contact"),
            "sources.document": ("content_of",),
            "sources.files": ("keys_in", "webhook_key"),
            "sections.gateway": ("GatewaySettings",),
            "sections.gms": ("GmsSettings",),
            "sections.listeners": (
                "ControlSettings",
                "ListenerSettings",
                "MetricsSettings",
                "ReceiverSettings",
            ),
            "loading": ("load",),
            "sources.problems": ("ConfigError", "Problem"),
            "values.rights": ("ALL_RIGHTS", "ORDINARY_RIGHTS", "Grant", "Right", "Rights"),
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
            "values.trust": ("tls_context",),
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
