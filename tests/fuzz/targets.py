"""One target for each parser: given any bytes it returns, or raises what the fuzzer must show.

Each holds what the parser promises: its own error and no other, and no secret in it.
"""

from __future__ import annotations

import logging
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import orjson

from asyncchatd import config
from asyncchatd.control.reading import BadRequest
from asyncchatd.control.registrations import Beside, read_registration
from asyncchatd.gms.http_reply import MAX_REPLY, HttpReplyError, HttpReplyReader, unpacked
from asyncchatd.log.redaction import scrub
from asyncchatd.model.data import TokenNews
from asyncchatd.standin.messages import write_push
from asyncchatd.standin.requests import read_call
from asyncchatd.wire.chat_api.calls import FORM, ChatApiError
from asyncchatd.wire.chat_api.outcome import classify
from asyncchatd.wire.chat_api.replies import read_reply
from asyncchatd.wire.health import HealthError, read_health
from asyncchatd.wire.identifiers import as_token, is_token
from asyncchatd.wire.lenient_json import NotJson, opened_text, read_json
from asyncchatd.wire.long_reply import KEPT, LongReply
from asyncchatd.wire.node_status import is_web_page, read_node_status
from asyncchatd.wire.push import PushError, read_push

KEY = "4ee15d7e1c343c8e"
_SCRATCH = tempfile.TemporaryDirectory()
logging.disable()


def push(data: bytes) -> None:
    try:
        read = read_push(data)
    except PushError:
        return
    assert read.device_id or read.news.chat_id
    for token in (read.device_id, read.news.chat_id, read.news.user_id, read.news.alias):
        assert token is None or token.encode()


def planted(data: bytes) -> None:
    """A key where participants write; the first two bytes say in what, and how deep that stands."""
    kind, nesting, written = (
        data[:1],
        data[1:2],
        data[2:].replace(b"KEY", KEY.encode()).decode("utf-8", "replace"),
    )
    try:
        value = read_json(written)
    except NotJson:
        value = written
    names = ("text", "userData", "message", "eventAttributes", "from", "nickname", "data", "GCTI_SYSTEM")
    for content in (written, value):
        event = {
            **dict.fromkeys(names, content),
            **{"index": 1, "type": _KINDS[ord(kind or b"0") % len(_KINDS)]},
        }
        message = _NESTINGS[ord(nesting or b"0") % len(_NESTINGS)](event)
        read = read_push(write_push("d", message))
        assert read.device_id == "d"
        assert read.news == TokenNews()


_KINDS = ("Message", "push-url", "CustomNotice", "ParticipantJoined", "FileUploaded", "External", "Later")
_NESTINGS: tuple[Callable[[object], object], ...] = (
    lambda event: event,
    lambda event: [event],
    lambda event: {"statusCode": 0, "messages": [event], "monitored": event, "userData": event},
    lambda event: orjson.dumps({"messages": [event]}).decode(),
    lambda event: {"channel": "/service", "data": {"messages": [event]}},
    lambda event: {"index": 1, "type": "push-url", "message": event},
)


def token(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    if is_token(text):
        assert text.isprintable()
        assert text not in (".", "..")
        assert text.strip(" \"'()<>[]{}*").casefold() not in ("", "null", "none", "undefined")
        assert as_token(text) == text


def reply(data: bytes) -> None:
    repr(
        classify(data[0] * 3 if data else 200, data[1:], chat_id="c", retry_after=data[:8].decode("latin-1"))
    )
    try:
        read_reply(data)
    except ChatApiError:
        return


def http_reply(data: bytes) -> None:
    """In two pieces; the first byte says where it is cut."""
    cut = 1 + data[0] if data else 0
    reader = HttpReplyReader()
    try:
        read = reader.feed(data[1:cut]) or reader.feed(data[cut:]) or reader.end()
        body = b"" if read is None else read.body if read.packed is None else unpacked(read)
    except HttpReplyError:
        return
    assert len(body) <= MAX_REPLY


def long_reply(data: bytes) -> None:
    """In pieces of as many bytes as the first one says; it is an object where the whole is one, and there only."""
    size, body = (max(3, data[0]), data[1:]) if data else (3, data)
    reply = LongReply()
    for start in range(0, len(body), size):
        reply.feed(body[start : start + size])
    said = reply.end()
    try:
        whole = read_json(body)
    except NotJson:
        whole = None
    if not isinstance(whole, dict):
        assert len(said) < 2
        return
    short = read_json(said)
    assert isinstance(short, dict)
    assert all(repr(short.get(name)) == repr(whole.get(name)) for name in KEPT)


def call(data: bytes) -> None:
    path, _, body = data.partition(b"\n")
    for content_type in (FORM, "multipart/form-data; boundary=x", path.decode("latin-1")):
        for where in ("s/c/send", path.decode("latin-1")):
            try:
                read_call(where, body, content_type)
            except ChatApiError:
                continue


def node_status(data: bytes) -> None:
    read_node_status(data)
    is_web_page(data)


def health(data: bytes) -> None:
    try:
        read_health(data)
    except HealthError:
        return


def json(data: bytes) -> None:
    try:
        read_json(data)
        opened_text(data.decode("utf-8", "surrogateescape"))
    except NotJson:
        return


def registration(data: bytes) -> None:
    line = data.replace(b"KEY", KEY.encode())
    told = ""
    try:
        read_registration(line, Beside("support"))
    except BadRequest as error:
        told = f"{error} {error.field}"
    assert KEY not in told


def configuration(data: bytes) -> None:
    file = Path(_SCRATCH.name, "asyncchatd.toml")
    file.write_bytes(data)
    try:
        config.load(file)
    except config.ConfigError:
        return


def redaction(data: bytes) -> None:
    text = data.decode("utf-8", "replace").replace(KEY, "")
    assert KEY not in scrub(f"{text} secureKey={KEY}&x")


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        push,
        node_status,
        planted,
        token,
        reply,
        http_reply,
        long_reply,
        call,
        health,
        json,
        registration,
        configuration,
        redaction,
    )
}

SEEDS: dict[str, tuple[bytes, ...]] = {
    "push": (
        b'{"deviceId":"d","message":{"chatId":"c","userId":"u","secureKey":"k","alias":"117"}}',
        b'{"deviceId":"d","message":"{\\"session-id\\":\\"c\\",\\"messages\\":[{\\"type\\":\\"Message\\"}]}"}',
    ),
    "planted": (
        b'00{"chatId":"KEY","userId":"KEY","secureKey":"KEY","alias":"KEY"}',
        b'12{"GCTI_SYSTEM":"{\\"secure-key\\":\\"KEY\\"}","message":{"secureKey":"KEY"}}',
    ),
    "token": (b"4ee15d7e1c343c8e", b" [null] ", b"xxxx-xxxx", b"4ee1****8c8e"),
    "reply": (
        b'C{"statusCode":0,"alias":"117","userId":"u","secureKey":"k","chatId":"c","messages":[{"index":1}]}',
    ),
    "http_reply": (
        b"\x20HTTP/1.1 200 OK\r\nRetry-After: 3\r\nContent-Length: 5\r\n\r\nhello",
        b"\x30HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"\x40HTTP/1.0 503 Busy\r\nConnection: close\r\nContent-Encoding: deflate\r\n\r\n"
        + zlib.compress(b"hello"),
    ),
    "long_reply": (
        b'\x10{"statusCode":0,"messages":[{"index":1,"utcTime":2,"text":"\\"}]"}, [1]],"secureKey":"k"}',
        b'\x03{"chatId":["\\ud800"],"errors":[{"code":1e400}],"messages":[NaN]}',
    ),
    "call": (
        b"\nmessage=a&userData[k]=v&userId=u&secureKey=k&alias=1",
        b'\n--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--',
    ),
    "health": (
        b'{"app_dbid": 117, "process_os_pid": 1000, "uptime": "1d 02:03:04"}',
        b"app_dbid=117\nprocess_os_pid: 1000\n",
        b'<a app_dbid="117"><process_os_pid>1000</process_os_pid></a>',
        b'# TYPE a_total counter\na_total{app_dbid="117"} 3 1700000000\n',
    ),
    "json": (b'[{"a": NaN, "b": "\\ud800", "c": 1e400}]',),
    "registration": (
        b'{"chat_id":"c","user_id":"u","secure_key":"KEY","alias":117,"next_position":2}',
        b'{"statusCode":0,"chatId":"c","userId":"u","secureKey":"KEY","alias":117,"nextPosition":2,"KEY":"KEY"}',
        b'{"chat_id":"c","user_id":"u","secure_kye":"KEY","alias":117}',
    ),
    "configuration": (
        b'[receiver]\nsecrets = ["a-long-push-secret"]\n[gms]\nnodes = ["http://gms-1:8080/genesys"]\n'
        b'timeout = "10s"\n[[chat_server]]\nname = "chat-1"\nhealth_url = "http://chat-1:4001/"\n',
    ),
    "redaction": (b'password: \'a\', {"api-key": "b"} Authorization: Basic c',),
}
