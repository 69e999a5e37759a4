"""Files through the gateway: byte for byte, in either order, and never held whole."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import tempfile
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from conftest import Events, soon
from yarl import URL

from asyncchatd.gateway.calling import files
from asyncchatd.gateway.calling.calls import Calls
from asyncchatd.gms import Streams
from asyncchatd.log import Event
from asyncchatd.standin.settings import PlantSettings, Rotation

from ..rig import Client, Json, Shop, shop

pytestmark = pytest.mark.usefixtures("events")

MIB = 1024 * 1024


@pytest_asyncio.fixture
async def here(tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(tmp_path, plant=PlantSettings(rotate=Rotation.ALWAYS)) as opened:
        yield opened
        assert opened.wrong() == {}


def some(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def upload(
    client: Client, content: bytes, *, name: str = "a.bin", file_first: bool = True
) -> tuple[int, Json]:
    boundary = "----0123456789"
    fields = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in {**client.triple, "userData[file-description]": "a parcel"}.items()
    ).encode()
    file = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        + content
        + b"\r\n"
    )
    body = (file + fields if file_first else fields + file) + f"--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    url = f"{client.shop.base}/{client.chat_id}/file"
    async with client.shop.http.post(url, data=io.BytesIO(body), headers=headers) as response:
        return response.status, await response.json()


async def download(client: Client, file_id: str) -> tuple[aiohttp.ClientResponse, bytes]:
    url = f"{client.shop.base}/{client.chat_id}/file/{file_id}/download"
    async with client.shop.http.post(url, data=client.triple) as response:
        return response, await response.read()


@pytest.mark.parametrize("file_first", [True, False])
@pytest.mark.parametrize("size", [0, 1, 70_000, pytest.param(3 * MIB, marks=pytest.mark.slow)])
async def test_an_upload_arrives_byte_for_byte_and_comes_back(
    here: Shop, size: int, file_first: bool
) -> None:
    client = await here.open()
    content = some(size)
    status, reply = await soon(upload(client, content, file_first=file_first))
    assert (status, reply["statusCode"]) == (200, 0)
    assert reply["secureKey"] == client.opened["secureKey"]
    await client.until(lambda: any(event["type"] == "FileUploaded" for event in client.shown))
    response, got = await soon(download(client, reply["userData"]["file-id"]))
    assert (response.status, got) == (200, content)
    assert "a.bin" in response.headers["Content-Disposition"]


async def test_what_gms_refuses_is_400_with_its_words(here: Shop) -> None:
    client = await here.open()
    status, reply = await soon(upload(client, b"x", name="virus.exe"))
    assert status == 400
    assert reply["errors"]
    assert reply["secureKey"] == client.opened["secureKey"]
    assert (await client.call("send", message="still here"))["statusCode"] == 0


async def test_what_is_too_large_never_reaches_gms(tmp_path: Path) -> None:
    async with shop(tmp_path, max_upload="1MiB") as small:
        client = await small.open()
        status, reply = await soon(upload(client, some(MIB + 1)))
        assert (status, bool(reply["errors"])) == (400, True)
        assert small.requests("file") == 0


async def test_a_file_with_a_wrong_key_never_reaches_gms(here: Shop) -> None:
    client = await here.open()
    stranger = Client(here, {**client.opened, "secureKey": "deadbeef"})
    for file_first in (True, False):
        _, reply = await soon(upload(stranger, b"x", file_first=file_first))
        assert (reply["statusCode"], reply["chatEnded"]) == (2, True)
    _, body = await soon(download(stranger, "1"))
    assert b'"statusCode":2' in body
    assert here.requests("file") == 0


async def test_a_file_that_somebody_else_may_have_the_chat_for_never_reaches_gms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = files.Files.__init__

    def late(its: files.Files, calls: Calls, streams: Streams, safe_until: object) -> None:
        made(its, calls, streams, lambda: float("-inf"))

    monkeypatch.setattr(files.Files, "__init__", late)
    async with shop(tmp_path) as here:
        client = await here.open()
        _, reply = await soon(upload(client, b"x"))
        assert (reply["statusCode"], [error["code"] for error in reply["errors"]]) == (1, [503])
        _, body = await soon(download(client, "1"))
        assert b'"statusCode":1' in body
        assert here.requests("file") == 0


async def test_what_is_no_upload_says_so(here: Shop) -> None:
    client = await here.open()
    url = f"{here.base}/{client.chat_id}/file"
    for headers, body in (
        ({"Content-Type": "multipart/form-data"}, b"x"),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b\r\nContent-Disposition: form-data\r\n"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"a=b"),
        ({"Content-Type": "multipart/form-data; boundary=b"}, two_files()),
    ):
        async with here.http.post(url, data=body, headers=headers) as response:
            assert response.status == 400
            assert (await response.json())["errors"]
    assert here.requests("file") == 0


def two_files() -> bytes:
    """Each would be appended to the one before it."""
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n'
    return part % (b"a.txt", b"one") + part % (b"b.txt", b"two") + b"--b--\r\n"


async def test_a_client_that_hangs_up_in_an_upload_is_no_error(here: Shop) -> None:
    """Of one the log would complain."""
    client = await here.open()
    writer = await begins_upload(here, client)
    writer.transport.abort()
    assert (await soon(upload(client, some(70_000))))[0] == 200
    assert here.requests("file") == 1


async def begins_upload(here: Shop, client: Client) -> asyncio.StreamWriter:
    """One of which nothing comes after its first bytes."""
    url = URL(here.base)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"POST {url.path}/{client.chat_id}/file HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode()
    )
    await writer.drain()
    return writer


async def test_a_file_for_which_there_is_no_room_is_told_to_come_again(
    here: Shop, events: Events, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = await here.open()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    status, reply = await soon(upload(client, some(3 * MIB)))
    assert (status, here.requests("file")) == (503, 0)
    assert reply["errors"]
    assert [said["cause"] for said in events.of(Event.UPLOAD_FAILED)] == ["No such file or directory"]
    assert (await soon(upload(client, some(70_000))))[0] == 200


async def test_the_limits_come_as_gms_says_them(here: Shop) -> None:
    client = await here.open()
    reply = await client.call("file/limits")
    [notice] = reply["messages"]
    assert notice["text"] == "file-client-cfg-get"
    assert "index" not in notice


async def test_a_file_that_is_not_there_is_a_reply(here: Shop) -> None:
    client = await here.open()
    response, body = await soon(download(client, "nothing"))
    assert response.content_type == "application/json"
    assert b'"statusCode"' in body


@pytest.mark.slow
async def test_a_large_file_is_not_held_and_pings_go_on_meanwhile(here: Shop) -> None:
    client = await here.open()
    size = 40 * MIB
    async with here.http.post(
        f"{here.plant.control_url}/upload", json={"chat_id": client.chat_id, "size": size}
    ):
        pass
    await client.until(lambda: any(event["type"] == "FileUploaded" for event in client.shown))
    [event] = [event for event in client.shown if event["type"] == "FileUploaded"]
    url = f"{here.base}/{client.chat_id}/file/{event['userData']['file-id']}/download"
    tracemalloc.start()
    try:
        async with here.http.post(url, data=client.triple) as response:
            assert response.headers["Content-Length"] == str(size)
            digest, got = hashlib.sha256(), 0
            first = await response.content.read(1000)
            assert (await soon(client.call("send", message="meanwhile")))["statusCode"] == 0
            digest.update(first)
            got += len(first)
            async for data in response.content.iter_chunked(65536):
                digest.update(data)
                got += len(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got == size
    assert peak < 20 * MIB  # with the stand-in and the client in it


@pytest.mark.slow
async def test_a_client_that_leaves_a_download_leaves_nothing(here: Shop) -> None:
    client = await here.open()
    async with here.http.post(
        f"{here.plant.control_url}/upload", json={"chat_id": client.chat_id, "size": 40 * MIB}
    ):
        pass
    await client.until(lambda: any(event["type"] == "FileUploaded" for event in client.shown))
    [event] = [event for event in client.shown if event["type"] == "FileUploaded"]
    url = f"{here.base}/{client.chat_id}/file/{event['userData']['file-id']}/download"
    for _ in range(20):
        response = await here.http.post(url, data=client.triple)
        await response.content.read(100)
        response.close()
        await asyncio.sleep(0)
    assert (await soon(client.call("send", message="still here")))["statusCode"] == 0


# -- slow clients ------------------------------------------------------------------------------------


async def dripping(client: Client) -> AsyncIterator[bytes]:
    """An upload that never ends, a byte at a time, never with a long pause."""
    yield b'----0123456789\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    while True:
        yield b"x"
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_an_upload_that_drips_is_hung_up_on(tmp_path: Path) -> None:
    async with shop(tmp_path, body_timeout="500ms") as here:
        client = await here.open()
        headers = {"Content-Type": "multipart/form-data; boundary=--0123456789"}
        url = f"{here.base}/{client.chat_id}/file"
        async with here.http.post(url, data=dripping(client), headers=headers) as response:
            assert (response.status, response.headers["Connection"]) == (408, "close")
        assert here.requests("file") == 0


async def test_uploads_that_are_taken_in_keep_no_place_from_files_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be anybody's: the key stands behind the file."""
    monkeypatch.setattr(files, "MOST_TAKEN_IN", 2)
    monkeypatch.setattr(files, "MOST_TRANSFERS", 1)
    async with shop(tmp_path) as here:
        client = await here.open()
        _, sent = await upload(client, b"first")
        url = URL(f"{here.base}/{client.chat_id}/file")
        opened = []
        for _ in range(2):
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(
                f"POST {url.path} HTTP/1.1\r\nHost: {url.authority}\r\nContent-Length: 1000\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode()
            )
            opened.append(writer)
        async with asyncio.timeout(10):
            while True:  # until both have been heard
                status, reply = await upload(client, b"second")
                if status != 200:
                    break
        assert (status, reply["errors"][0]["code"]) == (429, 429)
        response, got = await download(client, sent["userData"]["file-id"])
        assert (response.status, got) == (200, b"first")
        for writer in opened:
            writer.transport.abort()
