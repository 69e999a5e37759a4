"""The sockets of a listener: its own, and those that systemd has handed over."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from asyncchatd.config import OPTIONAL, Listen
from asyncchatd.log import Event, get_logger

log = get_logger()

BACKLOG = 1024
SOCKET_MODE = 0o660
LEAST_CONNECTIONS = 8
FILES_KEPT = 256
"""File descriptors that no client gets: for the store, for GMS and for health pages."""


class ListenError(Exception):
    """The address cannot be had; the text says why and what to do."""


def somebody_waits(listening: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    look = select.poll()
    look.register(listening, select.POLLIN)
    return bool(look.poll(0))


def affordable_connections(most: int, beside: Sequence[int]) -> tuple[int, str, str]:
    """How many of `most` connections a listener may have where the other listeners of this process want `beside`; if
    not all, why in words, and what to do. Where the file descriptors do not suffice for all, each listener has an equal
    share of them, and what one does not want goes to the others."""
    files = raise_file_limit()
    left, affordable = files - FILES_KEPT, most
    wanted = sorted([most, *beside])
    for number, each in enumerate(wanted):
        share = max(LEAST_CONNECTIONS, left // (len(wanted) - number))
        if each == most:
            affordable = min(most, share)
            break
        left -= min(each, share)
    message = f"{most}, but with {files} open files allowed it can only be {affordable}"
    needed = sum(wanted) + FILES_KEPT
    return affordable, message, f"raise LimitNOFILE= in the unit (or ulimit -Hn) to {needed}, or set it lower"


def raise_file_limit() -> int:
    """Allow this process as many open files as it may allow itself; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft


def by_listener(
    handed_over: Mapping[str, Sequence[socket.socket]], listens: Mapping[str, Listen]
) -> dict[str, list[socket.socket]]:
    """Sockets from systemd for the listeners of these names. One that is called otherwise, as it is when the unit
    lacks `FileDescriptorName=`, is taken by the listener that is configured for its port or path. Raises
    `ListenError` when there is none: else it would stand open, and nobody would answer there."""
    found = {name: list(handed_over.get(name, ())) for name in listens}
    for label, sockets in handed_over.items():
        for each in sockets if label not in listens else ():
            fits = [name for name, listen in listens.items() if _is_at(each, listen) and not found[name]]
            unit = label if label.endswith(".socket") else "the socket unit"
            if label in OPTIONAL:
                raise ListenError(
                    f"systemd hands over {address_of(each)} for the {label}, and the configuration has no [{label}]:"
                    " write that section, or disable the socket unit"
                )
            if len(fits) != 1:
                raise ListenError(
                    f"systemd hands over {address_of(each)} under the name {label!r}: {unit} needs, in its [Socket]"
                    f" section, {' or '.join(f'FileDescriptorName={name}' for name in listens)}"
                )
            [name] = fits
            found[name].append(each)
            log.warning(
                Event.CONFIG_WARNING,
                key=f"{name}.listen",
                message=f"{address_of(each)} from systemd has the name {label!r}; it is taken for the {name}'s",
                advice=f"add FileDescriptorName={name} to the [Socket] section of {unit}",
            )
    return found


def check_handed_over(each: socket.socket, name: str) -> None:
    """Refuse a socket from systemd on which nothing can be accepted. Raises `ListenError`."""
    if each.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
        trouble = "takes datagrams: its socket unit needs ListenStream= instead of ListenDatagram="
    elif _is_connection(each):
        trouble = "is a single connection: its socket unit needs Accept=no, or no Accept= at all"
    else:
        return
    raise ListenError(f"{name}: the socket from systemd at {address_of(each)} {trouble}")


def _is_connection(each: socket.socket) -> bool:
    """As systemd hands them over, one to each service, under `Accept=yes`."""
    try:
        each.getpeername()
    except OSError as error:
        return error.errno != errno.ENOTCONN
    return True


def _is_at(each: socket.socket, listen: Listen) -> bool:
    if each.family == socket.AF_UNIX:
        return listen.path is not None and each.getsockname() == listen.path
    return listen.port not in (None, 0) and each.getsockname()[1] == listen.port


def bind(listen: Listen, name: str) -> list[socket.socket]:
    """The listening sockets of an address; for TCP one of each family. Raises `ListenError`, in which `name` is the
    listener's."""
    try:
        return [_bind_unix(listen.path)] if listen.path is not None else _bind_tcp(listen)
    except OSError as error:
        number = errno.ENOTSOCK if _is_no_socket(listen) else error.errno or 0
        reason = {
            errno.ENOTSOCK: "is there and no socket; remove it, or name another path",
            errno.EADDRINUSE: "is in use; is another asyncchatd running?",
            errno.EADDRNOTAVAIL: "is no address of this host",
            errno.EACCES: "may not be used by this user",
        }.get(number, f"cannot be used: {error.strerror or error}")
        raise ListenError(f"{name}.listen: {listen} {reason}") from error


def _bind_tcp(listen: Listen) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    found = socket.getaddrinfo(
        listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):  # the same address may be found twice
            each = socket.socket(family, kind, protocol)
            sockets.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.setblocking(False)
            each.bind(address)
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _bind_unix(path: str) -> socket.socket:
    each = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        each.setblocking(False)
        _remove_stale(path)
        os.fchmod(each.fileno(), SOCKET_MODE)  # so that it is never wider, not even for a moment
        each.bind(path)
        os.chmod(path, SOCKET_MODE)
    except OSError:
        each.close()
        raise
    return each


def _remove_stale(path: str) -> None:
    """A socket file outlives a killed daemon; one that somebody listens on is left alone."""
    if _unix_problem(Path(path)) is None:
        with suppress(FileNotFoundError):
            os.unlink(path)


def bind_problem(listen: Listen) -> int | None:
    """The error number of trying to listen there for a moment; `None` when it went well. Nothing stays there, and
    nothing is removed."""
    try:
        if listen.path is not None:
            return _unix_problem(Path(listen.path))
        for each in _bind_tcp(listen):
            each.close()
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno or errno.EIO
    return None


def _is_no_socket(listen: Listen) -> bool:
    return listen.path is not None and os.path.lexists(listen.path) and not Path(listen.path).is_socket()


def _unix_problem(path: Path) -> int | None:
    """Why nobody may listen there. A socket that nobody listens on, and only that, may be removed."""
    if not path.parent.is_dir():
        return errno.ENOENT
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return errno.EACCES
    if not os.path.lexists(path):
        return None
    if not path.is_socket():
        return errno.ENOTSOCK
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError:
            pass  # a full queue, a socket of another kind, one that this user may not speak to
        return errno.EADDRINUSE


def address_of(each: socket.socket) -> str:
    """The address of a listening socket, as the configuration writes it."""
    name = each.getsockname()
    if each.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if each.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"
