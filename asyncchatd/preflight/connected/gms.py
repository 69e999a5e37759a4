"""A GMS node as `asyncchatd check --connect` finds it.

A wrong base path is the likeliest mistake, and whatever listens there answers 404 to it as GMS does. So GMS' own status
page is asked for, and where it is not there, whether the Chat API is: by OPTIONS, which browsers send before each call,
and which touches no chat. Whether GMS has the service nothing but a chat would show; that is said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp import hdrs

from asyncchatd.config import GmsSettings, Settings
from asyncchatd.listening import certificates
from asyncchatd.model import Finding, findings
from asyncchatd.preflight.connected.reaching import in_words, tls_error, unresolved
from asyncchatd.preflight.wording import good_until
from asyncchatd.wire import LARGEST_STATUS, NODE_STATUS, NodeStatus, is_web_page, read_node_status

USUAL_PATH = "/genesys"
"""Of GMS, where no proxy changes it."""

ASKS_WHO = frozenset({401, 403, 407})
NOT_THERE = frozenset({404, 410})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
KNOWS_OPTIONS = frozenset({*range(200, 300), 405, 501})
"""What answers OPTIONS where the Chat API is, or a proxy that lets GET and POST alone through."""

UNREACHED = "check the address and port, the firewall between, and that GMS runs"
CREDENTIALS = "set gms.username and gms.password_file, or gms.headers, as GMS or its proxy asks"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one question."""

    status: int
    body: bytes = b""
    location: str | None = None


async def node(settings: Settings, index: int, session: aiohttp.ClientSession) -> AsyncIterator[Finding]:
    """Whether GMS is at this address, is in service, and lets us ask."""
    gms = settings.gms
    base, key = gms.nodes[index], f"gms.nodes[{index}]"
    if (nowhere := await unresolved(key, base, gms.connect_timeout)) is not None:
        yield nowhere
        return
    try:
        asking = _Asking(gms, session)
        yield await _judged(asking, key, base)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        advice = UNREACHED
        if (untrusted := tls_error(error)) is not None:
            advice = certificates.advice(untrusted, "gms.ca_file")
        yield findings.error(key, f"{base} does not answer: {in_words(error)}", advice)
        return
    if base.startswith("https:"):
        until = await certificates.of_server(base, asking.tls, gms.connect_timeout.total_seconds())
        if until is not None:
            yield good_until(key, f"the certificate of {base}", until, "have it renewed on the server")


def service(settings: Settings) -> Iterator[Finding]:
    """That the service was not tried, and why not."""
    name = settings.gms.service
    message = f"whether GMS has the service {name} was not tried: only opening a chat would show it"
    yield findings.note("gms.service", message)


class _Asking:
    """Asks GMS nodes as the daemon does: with its time-outs, credentials and trust."""

    def __init__(self, gms: GmsSettings, session: aiohttp.ClientSession) -> None:
        self.gms = gms
        self.tls = gms.tls()
        self._session = session
        self._timeout = aiohttp.ClientTimeout(
            total=gms.timeout.total_seconds(), sock_connect=gms.connect_timeout.total_seconds()
        )

    async def status_page(self, base: str) -> Answer:
        """The page that says how the node is."""
        return await self._ask(hdrs.METH_GET, f"{base}{NODE_STATUS}")

    async def chat_api(self, base: str) -> Answer:
        """What the Chat API says to the question that browsers ask first."""
        return await self._ask(hdrs.METH_OPTIONS, f"{base}/2/chat/{self.gms.service}")

    async def _ask(self, method: str, url: str) -> Answer:
        headers = self.gms.request_headers()
        async with self._session.request(
            method, url, headers=headers, timeout=self._timeout, ssl=self.tls, allow_redirects=False
        ) as response:
            body = await _beginning(response)
            return Answer(response.status, body, response.headers.get(hdrs.LOCATION))


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """What is looked at of an answer, in however many pieces it comes."""
    body = b""
    while len(body) < LARGEST_STATUS and (more := await response.content.read(LARGEST_STATUS - len(body))):
        body += more
    return body


async def _judged(asking: _Asking, key: str, base: str) -> Finding:
    page = await asking.status_page(base)
    status = page.status
    if 200 <= status < 300:
        return _said(key, base, page.body)
    if status in REDIRECTS and not _within(base, page):
        return _redirected(key, base, page)
    if status >= 500:
        return _behind_its_proxy(key, base, status)
    api = await asking.chat_api(base)
    if api.status in NOT_THERE:
        return await _elsewhere(asking, key, base, status)
    if api.status in ASKS_WHO:
        return findings.warning(key, f"{base} answers, but with status {api.status}", CREDENTIALS)
    if api.status in REDIRECTS:
        return _redirected(key, base, api)
    if api.status in KNOWS_OPTIONS:
        return findings.ok(key, f"{base} answers: {_told_of_page(status, api.status)}")
    if api.status >= 500:
        return _behind_its_proxy(key, base, api.status)
    told = f"{base} answers with status {status}, and with {api.status} to OPTIONS"
    return findings.warning(key, f"{told}: whether GMS is there cannot be told", _correct(base))


def _told_of_page(status: int, of_api: int) -> str:
    """The Chat API is there, the status page is not as GMS has it."""
    if status in ASKS_WHO:
        return f"its status page asks for a user of GMS (status {status}), the Chat API does not"
    return f"the Chat API does (status {of_api} to OPTIONS); its status page is not there (status {status})"


def _behind_its_proxy(key: str, base: str, status: int) -> Finding:
    advice = "look whether GMS runs behind the proxy that answered"
    return findings.warning(key, f"{base} answers, but with status {status}", advice)


def _said(key: str, base: str, body: bytes) -> Finding:
    match read_node_status(body):
        case NodeStatus.ONLINE:
            return findings.ok(key, f"{base} is GMS and says ONLINE")
        case NodeStatus.OFFLINE:
            advice = "bring the node back in GMS, or take it out of gms.nodes until it is"
            message = f"{base} is GMS and says OFFLINE: it was taken out of service, or is about to stop"
            return findings.warning(key, message, advice)
    if is_web_page(body):
        message = f"{base}{NODE_STATUS} is a web page, which GMS does not answer there"
        return findings.warning(key, message, _correct(base))
    message = f"{base} answers, but its status page says neither ONLINE nor OFFLINE, as GMS does"
    return findings.warning(key, message, _correct(base))


def _redirected(key: str, base: str, answer: Answer) -> Finding:
    target = _target(base, answer)
    leads = f" to {target}" if target else ""
    message = f"{base} redirects{leads} (status {answer.status}), and a redirect is not followed"
    moved = _base_of(target)
    if moved and moved != base:
        return findings.error(key, message, f'set it to "{moved}", which is where it leads')
    return findings.warning(key, message, "set it to where that leads, if that is GMS")


def _within(base: str, answer: Answer) -> bool:
    """Whether it leads to another spelling of the same page, such as one with a slash at its end."""
    return _base_of(_target(base, answer)) == base


def _base_of(target: str) -> str | None:
    """The base address, where this is one of GMS' pages."""
    for behind in (NODE_STATUS, "/2/chat/"):
        moved, found, _ = target.partition(behind)
        if found:
            return moved
    return None


def _target(base: str, answer: Answer) -> str:
    """Where it leads, without what may be secret; empty where that cannot be told."""
    try:
        target = urljoin(f"{base}{NODE_STATUS}", (answer.location or "").partition("?")[0].partition("#")[0])
    except ValueError:
        return ""
    told = answer.location and target.startswith(("http://", "https://")) and "@" not in target
    return target if told else ""


async def _elsewhere(asking: _Asking, key: str, base: str, status: int) -> Finding:
    """Neither page is there: GMS may be at another path of the same server."""
    for candidate in _other_bases(base):
        page = await asking.status_page(candidate)
        if page.status == 200 and read_node_status(page.body) is not None:
            message = f"GMS is not at {base} (status {status}), but at {candidate}"
            return findings.error(key, message, f'set it to "{candidate}"')
    message = f"something answers at {base}, but neither GMS' status page nor its Chat API is there (status {status})"
    return findings.error(key, message, _correct(base))


def _other_bases(base: str) -> list[str]:
    """Where GMS may be instead, on the same server."""
    path = urlsplit(base).path
    origin = base[: len(base) - len(path)]
    above = [path.rsplit("/", up)[0] for up in (1, 2) if path.count("/") >= up]
    paths = [USUAL_PATH, f"{path}{USUAL_PATH}", *above]
    return [f"{origin}{each}" for each in dict.fromkeys(paths) if each != path]


def _correct(base: str) -> str:
    return (
        f"correct the path behind the host, which is {USUAL_PATH} where no proxy changes it, such that"
        f" {urlsplit(base).scheme}://HOST/PATH{NODE_STATUS} says ONLINE"
    )
