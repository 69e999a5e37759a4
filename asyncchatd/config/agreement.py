"""What must be alike in the configurations of all processes that share a store, as each says it to the others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import timedelta

from asyncchatd.config.sections.listeners import ALIKE, Section
from asyncchatd.config.settings import Settings
from asyncchatd.config.sources.files import SecretFile
from asyncchatd.model import durations


def alike(settings: Settings) -> Mapping[str, str]:
    """The values of the settings that are marked so, by their keys, as people write them. Of a secret it says a digest:
    the ones in question have 256 bits."""
    return dict(_alike(settings))


def _alike(settings: Settings) -> Iterator[tuple[str, str]]:
    for name, value in settings:
        if isinstance(value, Section):
            for field, info in type(value).model_fields.items():
                if ALIKE in info.metadata:
                    yield f"{name}.{field}", _text(getattr(value, field))
    yield "chat_server.name", ", ".join(sorted(each.name for each in settings.chat_servers)) or "none"
    yield "consumer.name", ", ".join(sorted(each.name for each in settings.consumers)) or "none"


def _text(value: object) -> str:
    match value:
        case None:
            return "none"
        case timedelta():
            return durations.text(value)
        case SecretFile():
            secrets = (each.get_secret_value().encode() for each in value.values)
            return ", ".join(
                hashlib.blake2b(secret, digest_size=4, person=b"asyncchatd-alike").hexdigest()
                for secret in secrets
            )
        case float():
            return f"{value:g}"
    return str(value)
