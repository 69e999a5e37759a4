"""A port of the plant: what becomes of those who come while it closes."""

import asyncio
import gc
import socket
from types import ModuleType

import acceptance.plant
import pytest

from asyncchatd import standin


class Known(asyncio.Protocol):
    def __init__(self) -> None:
        self.made = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        transport.close()


@pytest.mark.parametrize("plant", [standin, acceptance.plant])
@pytest.mark.parametrize("turns", range(5))
async def test_who_comes_while_a_server_is_ended_is_let_in_or_reset_and_no_socket_is_left(
    turns: int, plant: ModuleType
) -> None:
    """Two plants have it, which share nothing. Accepting takes turns of the loop, and a server can be closed in each
    of them. A socket that nobody closes warns when it is collected, which fails the test."""
    protocols: list[Known] = []

    def known() -> Known:
        protocols.append(Known())
        return protocols[-1]

    server = await asyncio.get_running_loop().create_server(known, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        for _ in range(turns):
            await asyncio.sleep(0)
        await plant.stop_listening(server)
        await asyncio.sleep(0)
        gc.collect()
        client.settimeout(5)
        try:
            assert await asyncio.to_thread(client.recv, 1) == b""
        except ConnectionResetError:
            assert not protocols
        else:
            assert [each.made for each in protocols] == [True]
