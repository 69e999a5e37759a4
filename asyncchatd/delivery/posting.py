"""Posting to a consumer's webhook: its connections, one signed request, and one to try it without events."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

import aiohttp
import msgspec
from aiohttp.http import SERVER_SOFTWARE

from asyncchatd import __version__
from asyncchatd.config import ConsumerSettings, webhook_key
from asyncchatd.delivery.signing import signed

LARGEST_ANSWER = 64 * 1024
"""Bytes of an answer that are read, so that its connection may serve again. What it says does not matter."""

TEST_BATCH = msgspec.json.encode({"type": "test", "chat_id": None, "events": []})
"""What a webhook is tried with: of no chat, and without events."""


def new_session(settings: ConsumerSettings, tls: ssl.SSLContext | Literal[False]) -> aiohttp.ClientSession:
    """The connections to one webhook, which go nowhere but to its address: by no proxy of the environment."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=settings.max_in_flight),
        timeout=aiohttp.ClientTimeout(total=settings.timeout.total_seconds()),
        headers={"User-Agent": f"asyncchatd/{__version__} {SERVER_SOFTWARE}"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


def keys_of(settings: ConsumerSettings) -> list[bytes]:
    """The keys that sign what goes to this consumer."""
    values = settings.secret_file.values if settings.secret_file else ()
    return [webhook_key(secret.get_secret_value()) for secret in values]


async def post(
    http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], body: bytes
) -> tuple[int, Mapping[str, str]]:
    """The status and headers of the answer to one signed request; a redirect is an answer. Raises
    `aiohttp.ClientError`, `OSError`, and `ValueError` for a name that cannot be one."""
    headers = {"Content-Type": "application/json", **headers}
    async with http.post(url, data=body, headers=headers, allow_redirects=False) as response:
        with suppress(TimeoutError, aiohttp.ClientError):  # the status has said it
            left = LARGEST_ANSWER
            while left > 0 and (chunk := await response.content.read(left)):
                left -= len(chunk)
        return response.status, response.headers


async def try_webhook(settings: ConsumerSettings, tls: ssl.SSLContext | Literal[False]) -> int:
    """The status that a webhook answers to a signed batch of type `test`, without events. Raises as `post` does."""
    assert settings.url is not None
    headers = signed(keys_of(settings), f"test-{secrets.token_hex(8)}", int(time.time()), TEST_BATCH)
    async with new_session(settings, tls) as http:
        status, _ = await post(http, settings.url, headers, TEST_BATCH)
        return status
