"""The sockets of a listener: an address that cannot be had is one readable line."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import AsyncExitStack, closing
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import unused_port
from conftest import Events, listening, soon
from yarl import URL

from asyncchatd.config.sections.listeners import ControlSettings
from asyncchatd.config.values.addresses import Listen
from asyncchatd.listening import Listener, ListenError, bind_problem, by_listener, sockets
from asyncchatd.log.events import Event

from .rig import Greeter, connected, listener

pytestmark = pytest.mark.usefixtures("events")


# -- how many connections --------------------------------------------------------------


async def test_no_more_connections_are_promised_than_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    """Else the store and GMS would be the ones to find none left."""
    monkeypatch.setattr(sockets, "raise_file_limit", lambda: sockets.FILES_KEPT + 8)
    async with listening(Greeter().app) as base, AsyncExitStack() as many:
        silent = [await many.enter_async_context(connected(base)) for _ in range(9)]
        assert await silent[0].rest() == b""
    warning = events.one(Event.CONFIG_WARNING)
    assert warning["key"] == "receiver.max_connections"
    assert "it can only be 8" in str(warning["message"])


@pytest.mark.parametrize(
    ("most", "beside", "share"),
    [
        (20_000, [20_000], 1_500),
        (20_000, [20_000, 20_000], 1_000),
        (20_000, [200, 1_000], 1_800),
        (1_000, [200, 20_000], 1_000),
        (200, [1_000, 20_000], 200),
        (2_000, [200, 20_000], 1_400),
    ],
)
def test_listeners_share_the_files_that_may_be_open(
    monkeypatch: pytest.MonkeyPatch, most: int, beside: list[int], share: int
) -> None:
    """What one of them does not want goes to the others."""
    monkeypatch.setattr(sockets, "raise_file_limit", lambda: 3_000 + sockets.FILES_KEPT)
    affordable, message, advice = sockets.affordable_connections(most, beside)
    assert affordable == share
    assert f"it can only be {share}" in message
    assert f"to {most + sum(beside) + sockets.FILES_KEPT}," in advice


# -- addresses -----------------------------------------------------------------------------------------


async def test_it_tells_where_it_really_listens() -> None:
    port = unused_port()
    for listen in (f"127.0.0.1:{port}", "127.0.0.1:0"):
        ours = listener(Greeter().app, listen)
        await ours.start()
        [address] = ours.addresses
        host, _, number = address.rpartition(":")
        assert host == "127.0.0.1"
        assert int(number) == port if listen.endswith(str(port)) else int(number) > 0
        await ours.stop(0)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")
async def test_every_interface_means_both_families() -> None:
    port = unused_port()
    async with listening(Greeter().app, f":{port}"):
        for host in ("127.0.0.1", "[::1]"):
            async with connected(f"http://{host}:{port}") as connection:
                assert (await connection.ask()).endswith(b"hello")


async def test_an_address_in_use_is_one_readable_line() -> None:
    async with listening(Greeter().app) as base:
        where = URL(base).authority
        with pytest.raises(ListenError) as caught:
            await listener(Greeter().app, where, name="control").start()
    assert str(caught.value) == f"control.listen: {where} is in use; is another asyncchatd running?"


async def test_an_address_of_another_host_is_one_readable_line() -> None:
    with pytest.raises(ListenError) as caught:
        await listener(Greeter().app, "192.0.2.1:8091").start()
    assert str(caught.value) == "receiver.listen: 192.0.2.1:8091 is no address of this host"


async def test_a_name_that_does_not_resolve_is_one_readable_line() -> None:
    with pytest.raises(
        ListenError, match=r"^receiver\.listen: no\.such\.host\.invalid:8091 cannot be used: "
    ):
        await listener(Greeter().app, "no.such.host.invalid:8091").start()


async def test_after_a_failed_start_there_is_nothing_to_stop() -> None:
    async with listening(Greeter().app) as base:
        failed = listener(Greeter().app, URL(base).authority)
        with pytest.raises(ListenError):
            await failed.start()
        await soon(failed.stop(60))
        async with connected(base) as connection:
            assert (await connection.ask()).endswith(b"hello")


# -- Unix sockets ----------------------------------------------------------------------------------------


async def ask_unix(path: Path) -> str:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
        http.get("http://localhost/") as response,
    ):
        return await response.text()


async def test_what_is_no_socket_that_was_left_over_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that may not be looked at may be in use."""
    path = tmp_path / "control.sock"
    path.write_text("somebody's")
    assert bind_problem(Listen(path=str(path))) == errno.ENOTSOCK
    with pytest.raises(ListenError, match="no socket"):
        await listener(Greeter().app, f"unix:{path}").start()
    assert path.read_text() == "somebody's"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()

        def may_not(self: socket.socket, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        class Forbidden(socket.socket):
            connect = may_not

        monkeypatch.setattr(socket, "socket", Forbidden)
        assert bind_problem(Listen(path=str(path))) == errno.EADDRINUSE
        with pytest.raises(ListenError, match="is in use"):
            await listener(Greeter().app, f"unix:{path}").start()
    assert path.is_socket()


async def test_a_unix_socket_is_for_owner_and_group_and_goes_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    ours = listener(Greeter().app, f"unix:{path}")
    await ours.start()
    assert ours.addresses == [f"unix:{path}"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert await soon(ask_unix(path)) == "hello"
    await ours.stop(0)
    assert not path.exists()


async def test_a_unix_socket_is_not_open_to_others_even_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is right after `bind`, for a user who masks nothing."""
    monkeypatch.setattr(os, "chmod", lambda *_: None)
    before = os.umask(0)
    try:
        async with listening(Greeter().app, f"unix:{tmp_path}/control.sock"):
            assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o660
    finally:
        os.umask(before)


async def test_the_socket_file_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with listening(Greeter().app, f"unix:{path}"):
        assert await soon(ask_unix(path)) == "hello"


async def test_the_socket_file_of_a_living_daemon_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with listening(Greeter().app, f"unix:{path}"):
        second = listener(Greeter().app, f"unix:{path}", name="control")
        with pytest.raises(ListenError) as caught:
            await second.start()
        await second.stop(0)
        assert str(caught.value) == f"control.listen: unix:{path} is in use; is another asyncchatd running?"
        assert await soon(ask_unix(path)) == "hello"


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="is there and no socket; remove it"):
        await listener(Greeter().app, f"unix:{path}").start()
    assert path.read_text() == "precious"


async def test_a_socket_in_a_directory_that_is_not_there_is_one_readable_line(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "control.sock"
    with pytest.raises(ListenError) as caught:
        await listener(Greeter().app, f"unix:{path}").start()
    assert str(caught.value) == f"receiver.listen: unix:{path} cannot be used: No such file or directory"


async def test_a_socket_handed_over_takes_the_place_of_the_address(tmp_path: Path) -> None:
    path = tmp_path / "never-made.sock"
    handed = socket.create_server(("127.0.0.1", 0))
    handed.setblocking(False)
    ours = listener(Greeter().app, f"unix:{path}", handed_over=(handed,))
    await ours.start()
    assert ours.addresses == [f"127.0.0.1:{handed.getsockname()[1]}"]
    async with connected(f"http://{ours.addresses[0]}") as connection:
        assert (await connection.ask()).endswith(b"hello")
    await ours.stop(1)
    assert not path.exists()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
async def test_a_socket_of_systemd_that_accepts_nothing_is_named_with_the_remedy(
    kind: socket.SocketKind, tmp_path: Path
) -> None:
    """`ListenDatagram=`, and `Accept=yes`, under which a connection comes instead of the socket."""
    address = str(tmp_path / "s")
    remedy = "ListenStream=" if kind is socket.SOCK_DGRAM else "Accept=no"
    with socket.socket(socket.AF_UNIX, kind) as bound, socket.socket(socket.AF_UNIX, kind) as client:
        bound.bind(address)
        handed = bound
        if kind is socket.SOCK_STREAM:
            bound.listen()
            client.connect(address)
            handed, _ = bound.accept()
        with handed, pytest.raises(ListenError, match=rf"^receiver: .*{address}.*{remedy}"):
            await listener(Greeter().app, handed_over=(handed,)).start()


async def test_a_unix_socket_of_systemd_is_not_removed(tmp_path: Path) -> None:
    """It belongs to the socket unit, which listens on for the successor."""
    path = tmp_path / "systemd.sock"
    handed = socket.socket(socket.AF_UNIX)
    handed.bind(str(path))
    handed.setblocking(False)
    ours = listener(Greeter().app, f"unix:{path}", handed_over=(handed,))
    await ours.start()
    assert await soon(ask_unix(path)) == "hello"
    await ours.stop(0)
    assert path.exists()


async def test_a_socket_from_systemd_that_others_reach_is_refused_for_an_api_without_token() -> None:
    """The configuration cannot know what the socket unit says."""
    for control, fine in (({}, False), ({"token": "a-token-that-nobody-guesses"}, True)):
        handed = socket.create_server(("0.0.0.0", 0))
        handed.setblocking(False)
        settings = ControlSettings.model_validate(control)
        ours = Listener(Greeter().app, settings, name="control", handed_over=(handed,))
        if fine:
            await ours.start()
        else:
            with pytest.raises(
                ListenError, match=r"^control: the socket from systemd: .*control\.token_file"
            ):
                await ours.start()
        await ours.stop(0)


# -- sockets from systemd --------------------------------------------------------------------------------


def test_a_socket_without_its_name_is_taken_where_its_address_is_configured(
    events: Events, tmp_path: Path
) -> None:
    path = str(tmp_path / "control.sock")
    with closing(socket.create_server(("127.0.0.1", 0))) as pushes, socket.socket(socket.AF_UNIX) as control:
        control.bind(path)
        handed = {"asyncchatd.socket": [pushes], "unknown": [control]}
        listens = {"receiver": Listen(port=pushes.getsockname()[1]), "control": Listen(path=path)}
        assert by_listener(handed, listens) == {"receiver": [pushes], "control": [control]}
    first, second = events.of(Event.CONFIG_WARNING)
    assert first["advice"] == "add FileDescriptorName=receiver to the [Socket] section of asyncchatd.socket"
    assert second["advice"] == "add FileDescriptorName=control to the [Socket] section of the socket unit"


def test_a_socket_of_a_gateway_that_is_not_configured_is_an_error_that_says_so() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as clients:
        listens = {"receiver": Listen(port=0), "control": Listen(port=0)}
        with pytest.raises(
            ListenError, match=r"for the gateway, and the configuration has no \[gateway\]: write"
        ):
            by_listener({"gateway": [clients]}, listens)
        handed = by_listener({"gateway": [clients]}, {**listens, "gateway": Listen(port=0)})
        assert handed == {"receiver": [], "control": [], "gateway": [clients]}


def test_a_socket_that_could_be_anybodys_is_an_error_that_says_what_to_add() -> None:
    """Else it would stand open, and nobody would answer there."""
    with closing(socket.create_server(("127.0.0.1", 0))) as pushes:
        port = pushes.getsockname()[1]
        for listens, named in (
            ({"receiver": Listen(port=0), "control": Listen(port=0)}, {}),
            ({"receiver": Listen(port=port), "control": Listen(port=port)}, {}),
            ({"receiver": Listen(port=port), "control": Listen(port=0)}, {"receiver": [pushes]}),
        ):
            with pytest.raises(
                ListenError, match="FileDescriptorName=receiver or FileDescriptorName=control"
            ):
                by_listener({**named, "asyncchatd.socket": [pushes]}, listens)
