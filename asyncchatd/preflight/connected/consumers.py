"""Consumers as `asyncchatd check --connect` finds them: each webhook is tried with a signed batch without events."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import Literal

import aiohttp

from asyncchatd.config import ConsumerSettings, Settings, tls_context
from asyncchatd.delivery import Fate, fate_of, try_webhook
from asyncchatd.listening import certificates
from asyncchatd.model import Finding, durations, findings
from asyncchatd.preflight.connected.reaching import in_words, tls_error, unresolved
from asyncchatd.preflight.wording import good_until


async def consumer(settings: Settings, index: int) -> AsyncIterator[Finding]:
    """Whether a consumer's webhook takes what is signed as its events are; one that fetches is not looked for."""
    named = settings.consumers[index]
    key = f"consumer[{index}].url"
    if named.url is None:
        message = f"{named.name} has no url: it fetches its events, from GET /v1/events?consumer={named.name}"
        yield findings.ok(f"consumer[{index}]", message)
        return
    if (nowhere := await unresolved(key, named.url, named.timeout)) is not None:
        yield nowhere
        return
    tls: ssl.SSLContext | Literal[False] = False
    try:
        if named.url.startswith("https:"):
            tls = tls_context(authorities=named.ca_file)
        status = await try_webhook(named, tls)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        yield _no_answer(index, named, error)
        return
    yield _answered(index, named, status)
    if tls:
        until = await certificates.of_server(named.url, tls, named.timeout.total_seconds())
        if until is not None:
            what = f"the certificate of the webhook of {named.name}"
            yield good_until(key, what, until, "have it renewed on the server")


def _no_answer(index: int, named: ConsumerSettings, error: Exception) -> Finding:
    key = f"consumer[{index}].url"
    if isinstance(error, TimeoutError):
        message = f"the webhook of {named.name} does not answer within {durations.text(named.timeout)}"
        advice = (
            "look whether the application answers before it works on what it got, or raise"
            f" consumer[{index}].timeout"
        )
        return findings.error(key, message, advice)
    advice = "check the address and port, the firewall between, and that the application runs"
    if (untrusted := tls_error(error)) is not None:
        advice = certificates.advice(untrusted, f"consumer[{index}].ca_file")
    return findings.error(key, f"the webhook of {named.name} cannot be reached: {in_words(error)}", advice)


def _answered(index: int, named: ConsumerSettings, status: int) -> Finding:
    key = f"consumer[{index}].url"
    answers = f"the webhook of {named.name} answers with status {status}"
    match fate_of(status):
        case Fate.TAKEN:
            return findings.ok(
                key, f"the webhook of {named.name} took a signed batch of type test (status {status})"
            )
        case Fate.GONE:
            advice = (
                "it wants nothing more, and would be paused: correct the address, or take the consumer out"
            )
        case Fate.FAILED if 300 <= status < 400:
            advice = "redirects are not followed: set url to where it leads"
        case Fate.FAILED:
            advice = "look into the application's log, or its proxy's: while it answers so, its events wait"
        case Fate.REFUSED if status in {401, 403}:
            key = f"consumer[{index}].secret_file"
            advice = (
                "give the application the secret of this file, verify the bytes as they came, and look whether both"
                " hosts' clocks are right: docs/chat-app.md"
            )
        case Fate.REFUSED if status in {404, 405}:
            advice = "nothing takes a POST there: correct the path"
        case Fate.REFUSED:
            advice = "answer 2xx to a batch of type test, which has no events: docs/chat-app.md"
            return findings.warning(key, f"{answers} to a signed batch of type test", advice)
    return findings.error(key, answers, advice)
