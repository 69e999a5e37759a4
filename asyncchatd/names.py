"""Names of hosts: looked up in threads of our own, remembered, and looked up anew when they may have moved.

A name server that is dead holds a look for half a minute, and nothing can end it. The event loop's own threads
are few, and everybody's: some names that hang there stop every other look. So each side (pings, health pages)
has its own `Names`, and in it a name that hangs holds nothing but its own thread, however many wait for it.

Known addresses serve on while the name server fails: it says nothing of the hosts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from aiohappyeyeballs import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult

BELIEVED_SECONDS = 60.0
"""How long addresses are believed. Then they are looked up anew, and serve meanwhile: after a node's restart all
its connections are made anew at once, and one look does for them all."""

PAUSE_SECONDS = 1.0
"""Between two looks at a name whose addresses are known."""

MOST_AT_ONCE = 64
"""Names that are looked up at once; others wait for their turn."""

REMEMBERED = 1_000


class Names:
    """The names one side uses. They belong to one event loop."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, _Name] = OrderedDict()
        """The one used last stands last."""
        self._waiting: deque[_Name] = deque()
        self._looking = 0

    async def addresses(self, host: str, port: int) -> list[AddrInfoType]:
        """The addresses, each time another one first: so the hosts behind one name share the load. Raises
        `OSError`, or `UnicodeError` for what cannot be a name."""
        if (numeric := _numeric(host, port)) is not None:
            return numeric
        name = self._name(host)
        if not name.addresses:
            # Who waits may run out of time; a slow look goes on, and does for those who come after.
            await asyncio.shield(name.lookup or self._look(name))
        elif name.may_have_moved():
            self._look(name)
        name.addresses.append(name.addresses.pop(0))
        return [_with_port(address, port) for address in name.addresses]

    def is_sought(self, host: str) -> bool:
        """Whether it was asked for, and no address of it has been told yet: the name server does not answer."""
        name = self._names.get(host)
        return name is not None and name.lookup is not None and not name.addresses

    def doubt(self, host: str) -> None:
        """Nobody could be reached there: it may have moved, and is looked up anew."""
        name = self._names.get(host)
        if name is not None and name.addresses:
            name.believed_until = float("-inf")
            if name.may_have_moved():
                self._look(name)

    def _name(self, host: str) -> _Name:
        name = self._names.setdefault(host, _Name(host))
        self._names.move_to_end(host)
        if len(self._names) > REMEMBERED:
            self._names.popitem(last=False)
        return name

    def _look(self, name: _Name) -> asyncio.Future[None]:
        name.looked_at = time.monotonic()
        lookup = name.lookup = asyncio.get_running_loop().create_future()
        self._waiting.append(name)
        self._next()
        return lookup

    def _next(self) -> None:
        while self._waiting and self._looking < MOST_AT_ONCE:
            name = self._waiting.popleft()
            self._looking += 1
            look = _Look(name.host, asyncio.get_running_loop(), self, name)
            try:
                # Nobody waits for it when the daemon stops.
                threading.Thread(target=look.run, name=f"name {name.host}", daemon=True).start()
            except RuntimeError:
                self._looked(name, OSError("no thread to look the name up"))

    def _looked(self, name: _Name, found: list[AddrInfoType] | Exception) -> None:
        self._looking -= 1
        lookup, name.lookup = name.lookup, None
        if not isinstance(found, Exception):
            name.addresses = found
            name.believed_until = time.monotonic() + BELIEVED_SECONDS
        if lookup is not None and not lookup.done():
            if isinstance(found, Exception):
                lookup.set_exception(found)
                lookup.exception()  # told to those who wait for it; the addresses from before serve on
            else:
                lookup.set_result(None)
        self._next()


class NamesForAiohttp(AbstractResolver):
    """The same for a session of aiohttp's client. Its connector needs no cache besides."""

    def __init__(self, names: Names) -> None:
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of this family, or of any."""
        found = [
            ResolveResult(
                hostname=host,
                host=_numeric_host(address),
                port=port,
                family=address[0],
                proto=address[2],
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._names.addresses(host, port)
            if family in (socket.AF_UNSPEC, address[0])
        ]
        if not found:
            raise OSError("the name has no address of this kind")
        return found

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True, eq=False)
class _Name:
    host: str
    addresses: list[AddrInfoType] = field(default_factory=list)
    believed_until: float = 0.0
    looked_at: float = float("-inf")
    lookup: asyncio.Future[None] | None = None
    """The look that goes on, or waits for its turn."""

    def may_have_moved(self) -> bool:
        """It is time to look it up anew."""
        now = time.monotonic()
        return self.lookup is None and now > self.believed_until and now - self.looked_at >= PAUSE_SECONDS


@dataclass(slots=True, eq=False)
class _Look:
    """One look, in its thread."""

    host: str
    loop: asyncio.AbstractEventLoop
    names: Names
    name: _Name

    def run(self) -> None:
        found: list[AddrInfoType] | Exception
        try:
            found = cast(list[AddrInfoType], socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM))
            found = list(found) or OSError("the name has no address")
        except Exception as error:
            found = error
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.names._looked, self.name, found)


def _numeric(host: str, port: int) -> list[AddrInfoType] | None:
    """An address written as one needs no look."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return cast(list[AddrInfoType], socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric))


def _with_port(address: AddrInfoType, port: int) -> AddrInfoType:
    family, kind, protocol, canonical, where = address
    return family, kind, protocol, canonical, (where[0], port, *where[2:])


def _numeric_host(address: AddrInfoType) -> str:
    """With the interface, where a link-local address needs one."""
    where = address[4]
    scope = where[3] if len(where) == 4 else 0
    return f"{where[0]}%{scope}" if scope and "%" not in str(where[0]) else str(where[0])
