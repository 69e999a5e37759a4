"""Requests as clients in the field write them, read as a GMS node reads them."""

from __future__ import annotations

import pytest

from asyncchatd.standin.requests import LARGEST_FIELD, MultipartCall, read_call
from asyncchatd.wire.chat_api.calls import ChatApiError, Operation


@pytest.mark.parametrize("path", ["s", "s/", "/s", "s//", "//s//?x=y"])
def test_a_chat_is_requested_with_any_number_of_slashes(path: str) -> None:
    received = read_call(path, b"&nickname=Jo&userId=&secureKey=&alias=")
    assert (received.operation, received.service) == (Operation.REQUEST_CHAT, "s")
    assert received.fields == {"nickname": "Jo"}


def test_a_service_may_be_named_like_an_operation() -> None:
    received = read_call("refresh/send/file//limits/", b"")
    assert (received.service, received.chat_id, received.operation) == (
        "refresh",
        "send",
        Operation.FILE_LIMITS,
    )


@pytest.mark.parametrize(
    "field", ["userData[a b]=1", "userData%5Ba+b%5D=1", 'userData["a b"]=1', "userData%5B%22a%20b%22%5D=1"]
)
def test_a_key_of_user_data_is_read_however_it_is_written(field: str) -> None:
    assert read_call("s", field.encode()).user_data == {"a b": "1"}


FILE = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="n.txt"\r\nContent-Type: text/plain\r\n\r\n'
    b"\r\n--y\r\n"
)
TRIPLE = b"".join(
    b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % pair
    for pair in (
        (b"userId", b"u"),
        (b"secureKey", b"k"),
        (b"alias", b"1"),
        (b"userData[file-description]", b"d"),
    )
)


@pytest.mark.parametrize("body", [FILE + TRIPLE, TRIPLE + FILE], ids=["file first", "triple first"])
def test_the_key_may_stand_before_the_file_or_behind_it(body: bytes) -> None:
    received = read_call("s/c/file", body + b"--x--\r\n", "multipart/form-data; boundary=x")
    assert (received.news.user_id, received.news.secure_key, received.news.alias) == ("u", "k", "1")
    assert received.user_data == {"file-description": "d"}
    file = received.files["file"]
    assert (file.name, file.size, b"".join(file.chunks())) == ("n.txt", 5, b"\r\n--y")


def test_a_field_without_end_is_refused() -> None:
    call = MultipartCall("s/c/send", "multipart/form-data; boundary=x")
    call.feed(b'--x\r\nContent-Disposition: form-data; name="message"\r\n\r\n')
    call.feed(bytes(LARGEST_FIELD))
    with pytest.raises(ChatApiError, match="too long"):
        call.feed(bytes(LARGEST_FIELD))
