"""Chat clients at the plant's nodes, on real sockets: every operation, files of any size, browsers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from asyncchatd.standin import PlantSettings
from asyncchatd.standin.files import CHUNK, Generated, PlantFile

from .test_server import Site, receiving, running

MIB = 1024 * 1024

Json = dict[str, Any]


@dataclass
class Client:
    """A chat client that speaks HTTP as it likes, and knows its triple."""

    site: Site
    base: str
    chat_id: str
    triple: dict[str, str]

    async def post(self, operation: str, **fields: str) -> Json:
        async with self.site.http.post(
            f"{self.base}/{self.chat_id}/{operation}", data=self.triple | fields
        ) as got:
            assert got.status == 200, await got.text()
            reply: Json = await got.json()
            return reply

    async def upload(self, file: PlantFile, *, file_first: bool) -> tuple[int, Json]:
        form = aiohttp.FormData()
        if not file_first:
            for name, value in self.triple.items():
                form.add_field(name, value)
        form.add_field("file", _sent(file), filename=file.name)
        if file_first:
            for name, value in self.triple.items():
                form.add_field(name, value)
        async with self.site.http.post(f"{self.base}/{self.chat_id}/file", data=form) as got:
            reply: Json = await got.json()
            return got.status, reply


async def _sent(file: PlantFile) -> AsyncIterator[bytes]:
    for piece in file.chunks():
        yield piece


async def begin(site: Site, data: object = None, path: str = "support") -> Client:
    base = f"{site.standin.gms_urls[0]}/2/chat/support"
    url = f"{site.standin.gms_urls[0]}/2/chat/{path}"
    async with site.http.post(url, data=data or {"nickname": "Ann"}) as got:
        reply = await got.json()
        assert (got.status, reply["statusCode"]) == (200, 0)
    triple = {name: reply[name] for name in ("userId", "secureKey", "alias")}
    return Client(site, base, reply["chatId"], triple)


async def chat(site: Site, client: Client) -> Json:
    async with site.http.get(f"{site.standin.control_url}/chats/{client.chat_id}") as got:
        assert got.status == 200
        shown: Json = await got.json()
        return shown


def multipart(**fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        form.add_field(name, value)
    return form


@pytest.mark.parametrize("path", ["support", "support/", "/support//"])
async def test_a_chat_can_be_requested_in_every_form(path: str) -> None:
    async with running() as site:
        for data in ({"nickname": "Ann", "userId": ""}, multipart(nickname="Ann", secureKey="")):
            client = await begin(site, data, path)
            assert (await chat(site, client))["nickname"] == "Ann"


async def test_a_conversation_is_the_same_for_both_ends() -> None:
    async with running() as site:
        client = await begin(site)
        await site.control("/join", chat_id=client.chat_id)
        await site.control("/type", chat_id=client.chat_id)
        first = await client.post("refresh", transcriptPosition="1", message="")
        assert [event["type"] for event in first["messages"]] == [
            "ParticipantJoined",
            "ParticipantJoined",
            "TypingStarted",
        ]
        await site.control("/say", chat_id=client.chat_id, text="hello")
        assert (await client.post("send", message="hi", messageType="text"))["messages"] == []
        for _ in range(2):
            await client.post("send", message="my order", eventAttributes='{"a":{"b":1}}')
        await client.post("startTyping")
        await client.post("stopTyping")
        await client.post("updateNickname", nickname="Ann B.")
        await client.post("pushUrl", pushUrl="https://www.example.com/")
        await client.post("updateData", **{'userData["order"]': "7"})
        await client.post("readReceipt", transcriptPosition="3")
        await client.post("customNotice", eventAttributes='{"seen":true}')
        await site.control("/notice", chat_id=client.chat_id, text="look", attributes={"price": 3})
        shown = await chat(site, client)
        told = [(event["who"], event["type"], event.get("text")) for event in shown["events"]]
        assert told == [
            ("customer", "ParticipantJoined", None),
            ("agent", "ParticipantJoined", None),
            ("agent", "Message", "hello"),
            ("customer", "Message", "hi"),
            ("customer", "Message", "my order"),
            ("customer", "Message", "my order"),
            ("customer", "NicknameUpdated", None),
            ("customer", "PushUrl", "https://www.example.com/"),
            ("customer", "CustomNotice", None),
            ("agent", "CustomNotice", "look"),
        ]
        assert (shown["user_data"], shown["read_to"]) == ({"order": "7"}, 3)
        seen = await client.post("refresh", transcriptPosition="undefined")
        assert [
            {"who": told, **event} for (told, *_), event in zip(told, seen["messages"], strict=True)
        ] == shown["events"]
        assert (shown["customer_messages"], shown["agent_messages"], shown["doubled_messages"]) == (3, 1, 1)
        assert (await client.post("disconnect"))["chatEnded"] is True
        shown = await chat(site, client)
        assert (shown["ended"], shown["refreshes"], shown["overlapping"]) == ("disconnected", 2, 0)
        report = await site.report()
        assert (report["doubled_messages"], report["unreadable_requests"]) == (1, 0)


async def test_every_chat_says_how_it_fared_without_its_keys() -> None:
    async with running() as site:
        one, other = await begin(site), await begin(site)
        await asyncio.gather(one.post("refresh"), one.post("refresh"))
        await other.post("send", message="hi")
        async with site.http.get(f"{site.standin.control_url}/chats?service=support") as got:
            raw = await got.read()
        lines = {line["chat_id"]: line for line in map(json.loads, raw.splitlines())}
        assert (lines[one.chat_id]["refreshes"], lines[one.chat_id]["overlapping"]) == (2, 1)
        assert (lines[other.chat_id]["requests"], lines[other.chat_id]["customer_messages"]) == (1, 1)
        assert one.triple["secureKey"].encode() not in raw
        async with site.http.get(f"{site.standin.control_url}/chats?service=another") as got:
            assert await got.read() == b""


@pytest.mark.parametrize("file_first", [True, False], ids=["file first", "triple first"])
async def test_an_upload_comes_back_byte_by_byte(file_first: bool) -> None:
    file = PlantFile("Übersicht 1.bin", 10 * MIB, Generated(5))
    async with running() as site:
        client = await begin(site)
        status, reply = await client.upload(file, file_first=file_first)
        assert (status, reply["statusCode"]) == (200, 0)
        file_id = reply["userData"]["file-id"]
        url = f"{client.base}/{client.chat_id}/file/{file_id}/download"
        async with site.http.post(url, data=client.triple) as got:
            assert got.headers["Content-Disposition"].startswith("attachment; filename=")
            assert "filename*=UTF-8''" in got.headers["Content-Disposition"]
            assert got.content_length == file.size
            assert hashlib.sha256(await got.read()).hexdigest() == file.sha256()
        [kept] = (await chat(site, client))["files"]
        assert (kept["size"], kept["sha256"]) == (file.size, file.sha256())
        deleted = await client.post(f"file/{file_id}/delete", transcriptPosition="-1")
        assert deleted["messages"][0]["type"] == "FileDeleted"


@pytest.mark.parametrize("form", ["urlencoded", "multipart"])
async def test_limits_are_asked_for_in_either_form(form: str) -> None:
    async with running() as site:
        client = await begin(site)
        data = client.triple if form == "urlencoded" else multipart(**client.triple)
        async with site.http.post(f"{client.base}/{client.chat_id}/file/limits", data=data) as got:
            [notice] = (await got.json())["messages"]
        assert (notice["text"], notice["userData"]["upload-max-files"]) == ("file-client-cfg-get", "10")


async def test_an_upload_of_50_mib_is_refused_and_never_held() -> None:
    async with running() as site:
        client = await begin(site)
        tracemalloc.start()
        try:
            status, reply = await client.upload(PlantFile("a.bin", 50 * MIB, Generated(1)), file_first=True)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (status, reply["statusCode"]) == (400, 2)
        assert "errors" in reply
        assert peak < 8 * MIB
        assert (await chat(site, client))["files"] == []


async def test_a_request_while_a_file_comes_is_a_second_one() -> None:
    async with running() as site:
        client = await begin(site)
        more = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield b"begun"
            await more.wait()

        form = aiohttp.FormData()
        form.add_field("file", slowly(), filename="a.txt")
        for name, value in client.triple.items():
            form.add_field(name, value)
        url = f"{client.base}/{client.chat_id}/file"
        upload = asyncio.create_task(site.http.post(url, data=form))
        async with asyncio.timeout(10):
            while "file" not in (await site.report())["requests_by_operation"]:
                pass
        await client.post("refresh")
        more.set()
        async with await upload as got:
            assert got.status == 200
        assert (await site.report())["overlapping_requests"] == 1
        shown = await chat(site, client)
        assert (shown["requests"], shown["overlapping"]) == (2, 1)


async def test_an_upload_that_breaks_off_leaves_its_session_free() -> None:
    async with running() as site:
        client = await begin(site)
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        for body in (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n", b"--x\r\n\r\n\r\n--x--"):
            async with site.http.post(
                f"{client.base}/{client.chat_id}/file", data=body, headers=headers
            ) as got:
                assert got.status == 400
        await client.post("refresh")
        assert (await site.report())["overlapping_requests"] == 0


@pytest.mark.parametrize("fault", ["fail", "garbage"])
async def test_a_faulty_node_takes_the_file_before_it_answers(fault: str) -> None:
    async with running() as site:
        client = await begin(site)
        await site.control(f"/gms/1/{fault}")
        form = aiohttp.FormData()
        form.add_field("file", _sent(PlantFile("a.bin", 5 * MIB, Generated(1))), filename="a.bin")
        async with site.http.post(f"{client.base}/{client.chat_id}/file", data=form) as got:
            assert got.status == (503 if fault == "fail" else 200)
        assert (await site.report())["requests_faulted"] == 1


@pytest.mark.slow
async def test_a_file_of_any_size_is_fetched_piece_by_piece() -> None:
    file = PlantFile("terms.pdf", 100 * MIB, Generated(9))
    async with running() as site:
        client = await begin(site)
        done = await site.control("/upload", chat_id=client.chat_id, name=file.name, size=file.size, seed=9)
        assert done == {"uploaded": 1, "undeliverable": 0}
        seen = await client.post("refresh", transcriptPosition="-1")
        file_id = seen["messages"][0]["userData"]["file-id"]
        url = f"{client.base}/{client.chat_id}/file/{file_id}/download"
        digest = hashlib.sha256()
        tracemalloc.start()
        try:
            async with site.http.post(url, data=client.triple) as got:
                await client.post("refresh")  # the session is free while its file comes
                async for piece in got.content.iter_chunked(CHUNK):
                    digest.update(piece)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert digest.hexdigest() == file.sha256()
        assert peak < 4 * MIB
        assert (await site.report())["overlapping_requests"] == 0


async def test_a_download_can_be_cut_off_in_the_middle() -> None:
    async with running() as site:
        client = await begin(site)
        await site.control("/upload", chat_id=client.chat_id, size=MIB)
        seen = await client.post("refresh", transcriptPosition="-1")
        file_id = seen["messages"][0]["text"]
        await site.control("/gms/1/after_work", what="half_body")
        url = f"{client.base}/{client.chat_id}/file/{file_id}/download"
        async with site.http.post(url, data=client.triple) as got:
            assert got.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await got.read()


async def test_a_text_can_be_an_agents_file() -> None:
    async with running() as site:
        client = await begin(site)
        await site.control("/upload", chat_id=client.chat_id, name="a.txt", text="hällo")
        [kept] = (await chat(site, client))["files"]
        assert kept == {
            "file_id": kept["file_id"],
            "name": "a.txt",
            "size": 6,
            "sha256": hashlib.sha256("hällo".encode()).hexdigest(),
        }


async def test_a_multipart_body_that_cannot_be_read_is_an_error_of_the_client() -> None:
    async with running() as site:
        client = await begin(site)
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        url = f"{client.base}/{client.chat_id}/file"
        async with site.http.post(url, data=b"--x\r\n" + bytes(MIB // 2), headers=headers) as got:
            assert got.status == 400
        assert (await site.report())["unreadable_requests"] == 1


# --- who may ask ------------------------------------------------------------------------------


async def test_a_page_that_is_allowed_may_ask_and_others_may_not() -> None:
    settings = PlantSettings(origins=("https://www.example.com",), required_headers={"apikey": "open sesame"})
    async with running(settings) as site:
        url = f"{site.standin.gms_urls[0]}/2/chat/support"
        preflight = {
            "Origin": "https://www.example.com",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "apikey",
        }
        async with site.http.options(url, headers=preflight) as got:
            assert got.status == 200
            assert got.headers["Access-Control-Allow-Origin"] == "https://www.example.com"
            assert got.headers["Access-Control-Allow-Credentials"] == "true"
            assert got.headers["Access-Control-Allow-Headers"] == "apikey"
        asked = {"Origin": "https://www.example.com", "apikey": "open sesame"}
        async with site.http.post(url, data={"nickname": "Ann"}, headers=asked) as got:
            assert (got.status, got.headers["Vary"]) == (200, "Origin")
            assert got.headers["Access-Control-Allow-Origin"] == "https://www.example.com"
        async with site.http.post(url, headers={"Origin": "https://www.example.com"}) as got:
            assert got.status == 401
            assert "Access-Control-Allow-Origin" in got.headers, "or the page could not read why"
        async with site.http.options(url, headers=preflight | {"Origin": "https://example.com"}) as got:
            assert (got.status, got.headers["Allow"]) == (200, "POST, OPTIONS")
            assert "Access-Control-Allow-Origin" not in got.headers, "so the browser does not send it"


async def test_basic_authentication_is_asked_for() -> None:
    login = "Basic " + base64.b64encode(b"ann:open sesame").decode()
    async with running(PlantSettings(required_headers={"Authorization": login})) as site:
        url = f"{site.standin.gms_urls[0]}/2/chat/support"
        async with site.http.post(url, data={"nickname": "Ann"}) as got:
            assert got.status == 401
            assert got.headers["WWW-Authenticate"].startswith("Basic ")
        site.http.headers["Authorization"] = login
        await begin(site)


# --- pushes -----------------------------------------------------------------------------------


async def test_pushes_stop_with_their_node_and_come_again_with_a_request_at_another() -> None:
    wishes = {
        "userData[GCTI_Chat_PushSubscribe]": "true",
        "userData[GCTI_GMS_NodeGroup]": "cluster",
        "userData[GCTI_GMS_PushDeviceId]": "phone-7",
        "userData[GCTI_GMS_PushDeviceType]": "customhttp",
    }
    async with receiving() as (url, came), running(PlantSettings(push_url=url)) as site:
        await site.control("/settings", rebind="request")
        client = await begin(site, {"nickname": "Ann"} | wishes)
        await site.control("/say", chat_id=client.chat_id)
        assert (await came.get()).device_id == "phone-7"
        for fault in ("kill", "hang"):
            await site.control("/gms/1/start")
            await site.control(f"/gms/1/{fault}")
            await site.control("/say", chat_id=client.chat_id)
        await site.until("pushes_swallowed", 2)
        client.base = client.base.replace(site.standin.gms_urls[0], site.standin.gms_urls[1])
        await client.post("refresh")
        await site.control("/say", chat_id=client.chat_id)
        await came.get()
        assert await site.control("/swallow", chat_id=client.chat_id) == {"sessions": 1}
        await site.control("/say", chat_id=client.chat_id)
        report = await site.report()
        assert (report["pushes_sent"], report["pushes_swallowed"]) == (2, 3)


async def test_a_node_that_is_redeployed_pushes_again_when_it_is_there() -> None:
    async with receiving() as (url, came), running(PlantSettings(push_url=url, gms_nodes=1)) as site:
        (line,) = await site.chats(count=1)
        await site.control("/gms/1/redeploy", seconds=3600)
        await site.control("/say", chat_id=line["chat_id"], text="lost")
        await site.control("/gms/1/fail", rate=0)
        await site.control("/say", chat_id=line["chat_id"], text="told")
        assert (await came.get()).device_id == line["device_id"]
        await site.control("/gms/1/redeploy", seconds=0)
        async with asyncio.timeout(10):
            while site.standin.nodes[0].failing is not None:
                await site.report()
        await site.control("/say", chat_id=line["chat_id"], text="told again")
        await came.get()
        report = await site.report()
        assert (report["pushes_sent"], report["pushes_swallowed"]) == (2, 1)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/upload", {"size": -1}, "size"),
        ("/type", {"started": "yes"}, "started"),
        ("/swallow", {"swallowed": 1}, "swallowed"),
        ("/notice", {"message": "look"}, "message"),
        ("/settings", {"rebind": "never"}, "rebind"),
        ("/settings", {"origins": "https://www.example.com"}, "origins"),
        ("/settings", {"upload_file_types": None}, "upload_file_types"),
    ],
)
async def test_a_wrong_command_names_its_field(path: str, body: dict[str, object], field: str) -> None:
    async with running() as site, site.http.post(site.standin.control_url + path, json=body) as got:
        assert got.status == 400
        assert (await got.json())["error"]["field"] == field
