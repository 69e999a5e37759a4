"""An HTTP answer, read from bytes: whole however it is cut, bounded, and an error of its own where it is none."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.gms.http_reply import (
    LARGEST_KEPT,
    MAX_HEAD,
    MAX_PACKED,
    MAX_REPLY,
    HttpReply,
    HttpReplyError,
    HttpReplyReader,
    HttpReplyTooLarge,
    unpacked,
)
from asyncchatd.wire.long_reply import MAX_VALUE
from asyncchatd.wire.packed import PORTION

BODY = b'{"statusCode":0,"chatId":"chat-1"}'
PIECE = 64 * 1024


def answer(body: bytes = BODY, *lines: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    """An answer that says how long it is."""
    head = (f"HTTP/{version} {status}", *lines, f"Content-Length: {len(body)}")
    return "\r\n".join((*head, "", "")).encode("latin-1") + body


def unmeasured(body: bytes, *lines: str, version: str = "1.1") -> bytes:
    """An answer whose head does not say how long it is, unless `lines` do."""
    return "\r\n".join((f"HTTP/{version} 200 OK", *lines, "", "")).encode("latin-1") + body


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailer + b"\r\n"


def fed(reader: HttpReplyReader, pieces: Iterable[bytes]) -> HttpReply | None:
    """The answer, if these pieces make one."""
    for piece in pieces:
        if (reply := reader.feed(piece)) is not None:
            return reply
    return None


def read(data: bytes) -> HttpReply:
    """The whole answer that came in one piece."""
    reply = HttpReplyReader().feed(data)
    assert reply is not None
    return reply


def read_to_the_end(data: bytes) -> HttpReply:
    """The answer that is whole only when the connection ends."""
    reader = HttpReplyReader()
    assert reader.feed(data) is None
    reply = reader.end()
    assert reply is not None
    return reply


def in_pieces(data: bytes, size: int = PIECE) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


# -- answers, however they come ------------------------------------------------------------------


def test_an_answer_is_its_status_and_its_body() -> None:
    reader = HttpReplyReader()
    assert reader.feed(answer(BODY, "Server: gms")) == HttpReply(200, BODY, None)
    assert reader.keeps_alive


@pytest.mark.parametrize("status", [200, 301, 404, 429, 500, 503, 599, 600, 999])
def test_every_status_is_an_answer(status: int) -> None:
    """What it means is decided elsewhere, also of those that no standard knows."""
    assert read(answer(status=f"{status} So it is")) == HttpReply(status, BODY, None)


def test_a_status_needs_no_reason() -> None:
    assert read(answer(status="200")) == HttpReply(200, BODY, None)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_never_has_a_body_is_whole_after_its_head(status: int) -> None:
    reader = HttpReplyReader()
    assert reader.feed(unmeasured(b"").replace(b"200 OK", b"%d No" % status)) == HttpReply(status, b"", None)
    assert reader.keeps_alive


ANSWERS = {
    "plain": answer(BODY, "Retry-After: 7"),
    "chunked": unmeasured(chunked(BODY[:5], BODY[5:]), "Retry-After: 7", "Transfer-Encoding: chunked"),
    "with a trailer": unmeasured(
        chunked(BODY, trailer=b"X-Checksum: 1\r\n"), "Retry-After: 7", "Transfer-Encoding: chunked"
    ),
    "zipped": answer(gzip.compress(BODY), "Retry-After: 7", "Content-Encoding: gzip"),
    "after an interim one": b"HTTP/1.1 100 Continue\r\n\r\n" + answer(BODY, "Retry-After: 7"),
}


@pytest.mark.parametrize("data", ANSWERS.values(), ids=ANSWERS.keys())
def test_where_the_pieces_are_cut_makes_no_difference(data: bytes) -> None:
    for cut in range(1, len(data)):
        reader = HttpReplyReader()
        assert reader.feed(data[:cut]) is None, cut
        assert reader.feed(data[cut:]) == HttpReply(200, BODY, "7"), cut
        assert reader.keeps_alive, cut


@pytest.mark.parametrize("data", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_may_come_byte_by_byte(data: bytes) -> None:
    reader = HttpReplyReader()
    *early, last = in_pieces(data, 1)
    assert fed(reader, early) is None
    assert reader.feed(last) == HttpReply(200, BODY, "7")


@pytest.mark.parametrize("data", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_that_the_connections_end_cuts_short_is_none(data: bytes) -> None:
    """Half a reply must never be taken for one: it might lack the new secure key."""
    for cut in range(len(data)):
        reader = HttpReplyReader()
        assert reader.feed(data[:cut]) is None, cut
        assert reader.end() is None, cut


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("lines", [(), ("Connection: close",), ("Connection: keep-alive",)])
def test_an_answer_of_unsaid_length_ends_with_the_connection(version: str, lines: tuple[str, ...]) -> None:
    reader = HttpReplyReader()
    assert fed(reader, in_pieces(unmeasured(BODY, *lines, version=version), 10)) is None
    assert reader.end() == HttpReply(200, BODY, None)
    assert not reader.keeps_alive


def test_an_answer_of_unsaid_length_may_be_empty() -> None:
    assert read_to_the_end(unmeasured(b"")) == HttpReply(200, b"", None)


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("1.1", None, True),
        ("1.1", "keep-alive", True),
        ("1.1", "close", False),
        ("1.1", "Close", False),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "close", False),
    ],
)
def test_whether_another_request_may_follow_is_the_servers_word(
    version: str, connection: str | None, kept: bool
) -> None:
    lines = (f"Connection: {connection}",) if connection else ()
    reader = HttpReplyReader()
    assert reader.feed(answer(BODY, *lines, version=version)) == HttpReply(200, BODY, None)
    assert reader.keeps_alive == kept


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_interim_answers_are_not_the_answer(status: str) -> None:
    """Nor is what they say: a proxy's Retry-After or encoding there is not that of the reply."""
    said = ("Retry-After: 99", "Content-Encoding: gzip", "Link: </x>")
    interim = "\r\n".join((f"HTTP/1.1 {status}", *said, "", "")).encode()
    reader = HttpReplyReader()
    assert reader.feed(interim) is None
    assert not reader.keeps_alive
    assert reader.feed(interim + answer()) == HttpReply(200, BODY, None)
    assert reader.keeps_alive


def test_an_interim_answer_alone_is_none() -> None:
    reader = HttpReplyReader()
    assert reader.feed(b"HTTP/1.1 100 Continue\r\n\r\n") is None
    assert reader.end() is None


@pytest.mark.parametrize("name", ["Retry-After", "retry-after", "RETRY-AFTER"])
def test_retry_after_is_handed_on_as_it_came(name: str) -> None:
    assert read(answer(BODY, f"{name}: Fri, 31 Dec 1999 23:59:59 GMT", status="503 Busy")) == HttpReply(
        503, BODY, "Fri, 31 Dec 1999 23:59:59 GMT"
    )
    assert read(answer(BODY, f"{name}: \xff")).retry_after == "\xff"


def test_a_header_without_a_value_leaves_the_next_one_alone() -> None:
    assert read(answer(BODY, "X-Nothing:", "Retry-After: 3")).retry_after == "3"


def test_line_ends_may_lack_their_carriage_returns() -> None:
    assert read(answer(BODY, "Retry-After: 3").replace(b"\r\n", b"\n")) == HttpReply(200, BODY, "3")


# -- encodings that nobody asked for ---------------------------------------------------------------


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("GZip", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("identity", BODY),
    ],
    ids=["gzip", "GZip", "x-gzip", "deflate", "raw deflate", "identity"],
)
def test_a_packed_body_is_unpacked(encoding: str, body: bytes) -> None:
    assert read(answer(body, f"Content-Encoding: {encoding}")) == HttpReply(200, BODY, None)
    assert read_to_the_end(unmeasured(body, f"Content-Encoding: {encoding}")).body == BODY


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate"])
def test_no_body_is_not_unpacked(encoding: str) -> None:
    """Errors of proxies say they are packed, and are empty."""
    assert read(answer(b"", f"Content-Encoding: {encoding}", status="502 Bad Gateway")) == HttpReply(
        502, b"", None
    )


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate"])
def test_a_body_that_is_not_packed_as_it_says_is_an_error(encoding: str) -> None:
    with pytest.raises(HttpReplyError, match=r"^HTTP 200, not encoded as it says$"):
        read(answer(b"\xff" + BODY, f"Content-Encoding: {encoding}"))


# -- bounds ------------------------------------------------------------------------------------------


def long(size: int) -> bytes:
    """A reply of so many bytes."""
    ends = b'{"secureKey":"key-2","messages":["', b'"],"alias":"118"}'
    return (b"x" * (size - sum(map(len, ends)))).join(ends)


SHORT = b'{"secureKey":"key-2","alias":"118"}'


def spread(size: int) -> bytes:
    """A reply of so many bytes in many messages, none of which is too large to keep."""
    message = b'{"a":"%s"},' % (b"x" * 100_000)
    messages = message * ((size - 1000) // len(message))
    said = b'{"secureKey":"key-2","messages":[' + messages
    return said + b'{}],"alias":"118"' + b" " * (size - len(said) - 18) + b"}"


@pytest.mark.slow
def test_the_largest_body_is_read_and_no_larger_one() -> None:
    largest = spread(MAX_REPLY)
    reply = fed(HttpReplyReader(), in_pieces(answer(largest)))
    assert reply is not None
    assert (reply.status, without_events(reply.body)) == (200, SHORT)
    with pytest.raises(HttpReplyTooLarge, match=rf"^HTTP 200, more than {MAX_REPLY} bytes$"):
        fed(HttpReplyReader(), in_pieces(answer(largest + b" ")))


def without_events(body: bytes) -> bytes:
    """What a long reply comes to, but for the last of its events."""
    fields = orjson.loads(body)
    kept: bytes = orjson.dumps(
        {name: fields[name] for name in fields if name not in ("messages", "asyncchatd-cut")}
    )
    return kept


def test_of_a_body_too_long_to_keep_what_is_needed_is_kept() -> None:
    whole = long(LARGEST_KEPT)
    assert read(answer(whole)) == HttpReply(200, whole, None)
    assert fed(HttpReplyReader(), in_pieces(answer(whole), 1000)) == HttpReply(200, whole, None)
    longer = answer(long(LARGEST_KEPT + 1))
    for reply in (read(longer), fed(HttpReplyReader(), in_pieces(longer, 1000))):
        assert reply is not None
        assert (reply.status, without_events(reply.body)) == (200, SHORT)


def test_one_message_that_is_too_large_to_keep_is_an_answer_too_large() -> None:
    with pytest.raises(HttpReplyTooLarge, match=rf"^HTTP 200, one value of more than {MAX_VALUE} bytes$"):
        fed(HttpReplyReader(), in_pieces(answer(long(MAX_VALUE + 1000))))


@pytest.mark.parametrize("body", [b" ", b"<", b"x", b"\xff"])
def test_of_a_long_body_that_is_no_reply_its_first_byte_is_left(body: bytes) -> None:
    left = HttpReply(404, body.strip(), None)
    assert fed(HttpReplyReader(), in_pieces(answer(body * 1_000_000, status="404 X"))) == left


@pytest.mark.parametrize("trailer", [b"Content-Encoding: gzip\r\n", b"Retry-After: 9\r\n"])
def test_what_stands_behind_a_body_changes_nothing(trailer: bytes) -> None:
    said = unmeasured(chunked(b"{}", trailer=trailer), "Transfer-Encoding: chunked")
    assert read(said) == HttpReply(200, b"{}", None)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_transfer_encoding_that_says_no_length_ends_with_the_connection(encoding: str) -> None:
    assert read_to_the_end(unmeasured(b"{}", f"Transfer-Encoding: {encoding}")) == HttpReply(200, b"{}", None)


@pytest.mark.parametrize("window", [zlib.MAX_WBITS | 16, zlib.MAX_WBITS])
def test_a_packed_body_that_is_cut_off_is_no_answer(window: int) -> None:
    """Its beginning might read as a reply without the new secure key."""
    packer = zlib.compressobj(wbits=window)
    packed = packer.compress(BODY * 50) + packer.flush()
    encoding = "gzip" if window > zlib.MAX_WBITS else "deflate"
    with pytest.raises(HttpReplyError, match="not encoded as it says"):
        read(answer(packed[:-6], f"Content-Encoding: {encoding}"))


def test_folded_lines_are_read_over() -> None:
    assert read(answer(BODY, "X-Folded: one\r\n two", "Retry-After: 7")) == HttpReply(200, BODY, "7")


@pytest.mark.parametrize("lines", [(), ("Content-Length: 1000000000",), ("Transfer-Encoding: chunked",)])
def test_a_body_too_large_is_given_up_before_its_end(lines: tuple[str, ...]) -> None:
    """However the answer says how long it is, if it does: what more there is must not be waited for."""
    reader = HttpReplyReader()
    assert reader.feed(unmeasured(b"", *lines)) is None
    piece = b"%x\r\n%s\r\n" % (PIECE, b" " * PIECE) if "Transfer-Encoding: chunked" in lines else b" " * PIECE
    for _ in range(MAX_REPLY // PIECE):
        assert reader.feed(piece) is None
    with pytest.raises(HttpReplyTooLarge):
        reader.feed(piece)


WINDOWS = [zlib.MAX_WBITS | 16, zlib.MAX_WBITS, -zlib.MAX_WBITS]


def packed_answer(window: int, body: Iterable[bytes]) -> bytes:
    packer = zlib.compressobj(wbits=window)
    packed = b"".join(map(packer.compress, body)) + packer.flush()
    return answer(packed, f"Content-Encoding: {'gzip' if window > zlib.MAX_WBITS else 'deflate'}")


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
def test_what_a_small_body_unpacks_to_is_bounded(window: int) -> None:
    """In memory also while it is unpacked."""
    data = packed_answer(window, [bytes(2**20)] * (MAX_REPLY // 2**20 + 1))
    tracemalloc.start()
    try:
        reply = fed(HttpReplyReader(), in_pieces(data))
        assert reply is not None
        assert reply.body == b""
        with pytest.raises(HttpReplyTooLarge, match=f"more than {MAX_REPLY} bytes"):
            unpacked(reply)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [LARGEST_KEPT + 1, 5 * 2**20])
def test_a_long_packed_body_means_what_it_means_unpacked(size: int, window: int) -> None:
    reply = read(packed_answer(window, [spread(size)]))
    assert reply.packed is not None
    assert without_events(unpacked(reply)) == SHORT


@pytest.mark.slow
def test_a_long_packed_body_that_is_damaged_or_has_one_value_that_is_too_large_is_an_error() -> None:
    packed = gzip.compress(spread(2**20))
    cut = read(answer(packed[:-6], "Content-Encoding: gzip"))
    with pytest.raises(HttpReplyError, match="not encoded as it says"):
        unpacked(cut)
    value = read(packed_answer(zlib.MAX_WBITS, [b'{"alias":"', b"x" * (MAX_VALUE + 1), b'"}']))
    with pytest.raises(HttpReplyTooLarge, match=f"one value of more than {MAX_VALUE} bytes"):
        unpacked(value)


def test_no_more_is_kept_of_a_packed_body_than_is_read() -> None:
    with pytest.raises(HttpReplyTooLarge, match=f"more than {MAX_PACKED} bytes, compressed"):
        fed(HttpReplyReader(), in_pieces(answer(bytes(MAX_PACKED + 1), "Content-Encoding: gzip")))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [PORTION - 1, PORTION, PORTION + 1, LARGEST_KEPT, LARGEST_KEPT - 1])
@pytest.mark.parametrize("body", [bytes, random.Random(1).randbytes], ids=["alike", "random"])
def test_a_packed_body_of_any_size_comes_out_whole(
    body: Callable[[int], bytes], size: int, window: int
) -> None:
    said = body(size)
    assert read(packed_answer(window, [said])) == HttpReply(200, said, None)


def test_a_head_without_an_end_is_given_up() -> None:
    lines = b"HTTP/1.1 200 OK\r\n" + b"X-Filler: %s\r\n" % (b"x" * 100) * (MAX_HEAD // 100)
    with pytest.raises(HttpReplyError, match=rf"^more than {MAX_HEAD} bytes around a body of 0$"):
        fed(HttpReplyReader(), in_pieces(lines, 1000))
    assert read(answer(BODY, *["X-Filler: " + "x" * 100] * (MAX_HEAD // 200))).body == BODY


def test_a_trailer_without_an_end_is_given_up() -> None:
    reader = HttpReplyReader()
    assert reader.feed(unmeasured(b"2\r\n{}\r\n0\r\nX: ", "Transfer-Encoding: chunked")) is None
    with pytest.raises(HttpReplyError, match=r"around a body of 2$"):
        fed(reader, [b"a" * 1000] * (MAX_HEAD // 1000 + 1))


def test_a_body_in_the_smallest_of_chunks_is_read() -> None:
    body = b" " * (2 * MAX_HEAD)
    packed = chunked(*in_pieces(body, 1))
    assert fed(HttpReplyReader(), in_pieces(unmeasured(packed, "Transfer-Encoding: chunked"))) == HttpReply(
        200, body, None
    )


def test_interim_answers_without_an_end_are_given_up() -> None:
    with pytest.raises(HttpReplyError, match="around a body"):
        fed(HttpReplyReader(), in_pieces(b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD // 10), 1000))


# -- what follows an answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        answer(b"second", "Retry-After: 99", "Content-Encoding: gzip", status="503 Busy"),
        answer(b"second", "Retry-After: 99")[:40],
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"<html>",
        b"\0\0\0",
    ],
    ids=["another answer", "half an answer", "101", "HTML", "zeros"],
)
@pytest.mark.parametrize("lines", [(), ("Connection: close",)])
def test_what_comes_behind_an_answer_changes_nothing_in_it(more: bytes, lines: tuple[str, ...]) -> None:
    """Nobody asked for it, so it must never be taken for the answer to the next request."""
    reader = HttpReplyReader()
    assert reader.feed(answer(BODY, "Retry-After: 3", *lines) + more) == HttpReply(200, BODY, "3")
    assert not reader.keeps_alive


def test_an_answer_behind_another_is_there_for_who_waits_for_it() -> None:
    """A proxy that repeats an answer may hand over the one that is waited for in the same piece."""
    reader = HttpReplyReader()
    data = answer(b"stale") + answer(b"right", "Retry-After: 3", status="503 Busy") + answer(b"more")
    assert reader.feed(data) == HttpReply(200, b"stale", None)
    assert reader.further == [HttpReply(503, b"right", "3"), HttpReply(200, b"more", None)]
    assert reader.failure is None
    assert not reader.keeps_alive


@pytest.mark.parametrize("cut", [0, 10, 60, 70])
def test_an_answer_may_begin_in_the_piece_that_ends_another(cut: int) -> None:
    reader = HttpReplyReader()
    behind = answer(b"right" * 10_000)
    assert reader.feed(answer(b"stale") + behind[:cut]) == HttpReply(200, b"stale", None)
    assert reader.keeps_alive == (cut == 0)
    assert fed(reader, in_pieces(behind[cut:], 1000)) == HttpReply(200, b"right" * 10_000, None)


@pytest.mark.parametrize(
    ("behind", "failure"),
    [
        (b"<html>", HttpReplyError),
        (answer(b"\xff", "Content-Encoding: gzip"), HttpReplyError),
        (answer(long(MAX_VALUE + 1000)), HttpReplyTooLarge),
    ],
    ids=["no HTTP", "false gzip", "too large"],
)
def test_what_is_none_behind_an_answer_is_told_after_it(behind: bytes, failure: type[HttpReplyError]) -> None:
    reader = HttpReplyReader()
    assert reader.feed(answer() + behind) == HttpReply(200, BODY, None)
    assert type(reader.failure) is failure
    assert reader.further == []


def test_one_connections_answers_are_read_one_after_the_other() -> None:
    """And each for itself: what one says of its body is nothing to the next."""
    reader = HttpReplyReader()
    for data in ANSWERS.values():
        for piece in in_pieces(data, 7):
            reply = reader.feed(piece)
        assert reply == HttpReply(200, BODY, "7")
        assert reader.keeps_alive
        assert reader.feed(answer(b"{}")) == HttpReply(200, b"{}", None)
    for _ in range(3):
        assert fed(reader, in_pieces(answer(long(MAX_VALUE)))) == HttpReply(200, SHORT, None)


# -- what is no answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"220 smtp ready\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"<html>",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        unmeasured(b"", "Content-Length: 2", "Content-Length: 3"),
        unmeasured(b"", "Content-Length: 2", "Content-Length: 2"),
        unmeasured(b"", "Content-Length: -1"),
        unmeasured(b"", "Content-Length: 99999999999999999999999"),
        unmeasured(b"", "Content-Length: two"),
        unmeasured(b"zz\r\n", "Transfer-Encoding: chunked"),
    ],
)
def test_what_is_no_http_is_an_error_at_once(data: bytes) -> None:
    """And stays one at any cut."""
    for cut in range(len(data)):
        with pytest.raises(HttpReplyError) as failed:
            fed(HttpReplyReader(), (data[:cut], data[cut:]))
        assert str(failed.value).isprintable()


def test_no_byte_at_all_is_no_answer() -> None:
    assert HttpReplyReader().end() is None


def test_an_error_shows_nothing_of_what_was_read() -> None:
    """It goes to the log, and there are keys in an answer."""
    key = "4ee15d7e1c343c8e"
    for data in (
        unmeasured(f"key={key}\r\n".encode(), "Transfer-Encoding: chunked", f"X-Key: {key}"),
        answer(key.encode(), "Content-Encoding: gzip"),
        f"{key}\r\n\r\n".encode(),
        f"HTTP/1.1 200 OK\r\n{key}\r\n\r\n".encode(),
    ):
        with pytest.raises(HttpReplyError) as failed:
            read(data)
        assert key not in f"{failed.value!r} {failed.value}"


# -- anything ------------------------------------------------------------------------------------------

FRAGMENTS = (
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 503 Busy\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 99\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Content-Encoding: deflate\r\n",
    b"Retry-After: 3\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n",
    b"\r\n",
    b"\n",
    b"\0",
    b"hello",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    gzip.compress(b"hello"),
)

some_bytes = st.one_of(st.binary(max_size=40), st.lists(st.sampled_from(FRAGMENTS)).map(b"".join))


def outcome(pieces: Iterable[bytes]) -> HttpReply | type[HttpReplyError] | None:
    """What these bytes and then the end of the connection come to; any other error comes through."""
    reader = HttpReplyReader()
    try:
        reply = fed(reader, pieces)
        return reader.end() if reply is None else reply
    except HttpReplyError as error:
        return type(error)


@pytest.mark.slow
@given(pieces=st.lists(some_bytes))
def test_any_bytes_are_an_answer_or_an_error_of_the_readers_own(pieces: list[bytes]) -> None:
    outcome(pieces)


@pytest.mark.slow
@given(data=some_bytes, cuts=st.lists(st.integers(0, 200)))
def test_any_bytes_come_to_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    pieces = [data[start:end] for start, end in pairwise(sorted({0, len(data), *cuts}))]
    assert outcome(pieces) == outcome([data])
