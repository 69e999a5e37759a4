"""Multipart bodies: the same is read however they are cut, and no more is kept than must be."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.wire.chat_api.calls import ChatApiError
from asyncchatd.wire.chat_api.multipart import MAX_HEAD, MAX_PARTS, MultipartReader, PartHead

X = 'multipart/form-data; boundary="x"'

Parts = list[tuple[PartHead, bytes]]


def read(pieces: Iterable[bytes], content_type: str = X) -> Parts:
    reader = MultipartReader(content_type)
    parts: list[tuple[PartHead, bytearray]] = []
    for piece in pieces:
        for found in reader.feed(piece):
            if isinstance(found, PartHead):
                parts.append((found, bytearray()))
            else:
                assert found
                parts[-1][1].extend(found)
    reader.close()
    return [(head, bytes(content)) for head, content in parts]


def written(parts: Parts) -> bytes:
    blocks = []
    for head, content in parts:
        disposition = f'form-data; name="{head.name}"'
        if head.filename is not None:
            disposition += f'; filename="{head.filename}"'
        blocks.append(
            b"--x\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"
        )
    return b"".join(blocks) + b"--x--\r\n"


names = st.text(st.characters(exclude_characters='"\r\n', exclude_categories=["Cs"]), max_size=9).filter(
    lambda name: "%22" not in name and "%0" not in name
)
contents = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"y", b"\r\n--", b"\0"]), max_size=12).map(
    b"".join
)
heads = st.builds(PartHead, names, st.none() | names)


@given(st.lists(st.tuples(heads, contents), max_size=4), st.data())
def test_the_same_is_read_however_it_is_cut(parts: Parts, data: st.DataObject) -> None:
    body = written(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert read(pieces) == parts
    assert read(bytes([byte]) for byte in body) == parts


def test_what_stands_before_and_behind_does_not_count() -> None:
    body = b"preamble\r\n--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x-- epilogue\r\n--x\r\n"
    assert read([body, b"more"]) == [(PartHead("a"), b"b")]


@pytest.mark.parametrize(
    ("disposition", "head"),
    [
        ("form-data; name=file; filename=n.txt", PartHead("file", "n.txt")),
        ('form-data; filename="n.txt"; name="file"', PartHead("file", "n.txt")),
        ('form-data; filename="a; name=b"; name="file"', PartHead("file", "a; name=b")),
        ('form-data; name="file"; filename=""', PartHead("file", "")),
        ('form-data; name="file"; filename="C:\\dir\\"', PartHead("file", "C:\\dir\\")),
        ('form-data; name="userData[a;b]"', PartHead("userData[a;b]")),
        ('form-data; name="a%22b"', PartHead('a"b')),
        ('FORM-DATA; NAME="ä"', PartHead("ä")),
    ],
)
def test_a_disposition_is_read_as_browsers_write_it(disposition: str, head: PartHead) -> None:
    body = f"--x\r\ncontent-type: a/b\r\nCONTENT-Disposition: {disposition}\r\n\r\n\r\n--x--".encode()
    assert read([body]) == [(head, b"")]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "cut off"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb", "cut off"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x", "cut off"),
        (b"--x\r\nContent-Type: text/plain\r\n\r\nb\r\n--x--", "no name"),
        (b"--x\r\nX: y\r\n--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x--", "no end"),
        (b"--x\r\nX: " + b"y" * MAX_HEAD, "too long"),
        (written([(PartHead("a"), b"")] * (MAX_PARTS + 1)), "too many"),
    ],
)
def test_a_body_that_cannot_be_read_says_why(body: bytes, why: str) -> None:
    with pytest.raises(ChatApiError, match=why) as caught:
        read([body])
    assert caught.value.code == "bad_multipart"


def test_a_body_needs_a_boundary() -> None:
    with pytest.raises(ChatApiError) as caught:
        MultipartReader("multipart/form-data")
    assert caught.value.code == "no_boundary"


class _Written:
    def __init__(self) -> None:
        self.body = bytearray()

    async def write(self, data: bytes) -> None:
        self.body += data


async def test_what_a_client_of_aiohttp_writes_is_read() -> None:
    form = aiohttp.FormData()
    form.add_field("file", b"\r\n--x\0", filename="n.txt")
    form.add_field("userData[file-description]", "notes")
    payload = form()
    assert isinstance(payload, aiohttp.MultipartWriter)
    out = _Written()
    await payload.write(out)  # type: ignore[arg-type]  # nothing but `write` is asked of it
    [file, field] = read([bytes(out.body)], payload.headers["Content-Type"])
    assert file == (PartHead("file", "n.txt"), b"\r\n--x\0")
    assert (field[0].filename, field[1]) == (None, b"notes")


def test_a_large_file_is_never_held_whole() -> None:
    reader = MultipartReader(X)
    block = b"\r\n--" * 16384
    size = 0
    tracemalloc.start()
    try:
        for _ in reader.feed(b'--x\r\nContent-Disposition: form-data; name="file"; filename="n"\r\n\r\n'):
            pass
        for _ in range(160):
            size += sum(len(found) for found in reader.feed(block) if isinstance(found, bytes))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 159 * len(block)
    assert peak < 8 * len(block)
