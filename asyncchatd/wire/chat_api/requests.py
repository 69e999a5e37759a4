"""Requests: the calls of chat clients as they come, and what of each goes on to GMS.

Clients in the field are not exact, and a servlet container forgives them (protocol section 7): slashes are doubled,
bodies begin with `&`, texts are not encoded, names are percent-encoded twice or in quotes, a position is the text
`undefined`. Reading forgives the same. What goes on to GMS keeps the names and the order that the client chose.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from email.message import Message
from functools import lru_cache
from urllib.parse import unquote, unquote_to_bytes

from asyncchatd.model import Hidden, Tokens, Value
from asyncchatd.wire.chat_api.calls import Call, ChatApiError, Operation, call
from asyncchatd.wire.chat_api.multipart import MultipartReader, PartHead
from asyncchatd.wire.identifiers import as_token
from asyncchatd.wire.lenient_json import as_whole

MAX_FIELDS = 1_000
"""Parameters of one request. Each costs far more memory than the two bytes that it may have in a form."""

ALL_EVENTS, NO_EVENTS, LAST_EVENT = 1, 0, -1
"""The `transcriptPosition` that asks for all events, for none and for the last one; others ask for those from that
index on (protocol section 2)."""

TRIPLE = ("userId", "secureKey", "alias")
"""The parameters that say who asks."""

POSITION = "transcriptPosition"

WAIT = "wait"
"""Of a Refresh: the seconds that a client wants it held. GMS knows none of that name: it is for the gateway alone."""

Pair = tuple[str, str]
"""Name and value of a parameter."""


class ClientCall(Value, frozen=True):
    """One request of a chat client."""

    service: str
    """Decoded."""
    chat_id: str | None
    """Decoded; `None` for "request chat" alone."""
    operation: Operation
    file_id: str | None = None
    """Of a download and a delete."""
    pairs: Hidden[tuple[Pair, ...]] = ()
    """The parameters but the identity triple, the position and the wait, in their order, named as the client does."""
    user_id: str | None = None
    secure_key: Hidden[str | None] = None
    """Of the triple `None` stands for what is missing, empty or a placeholder such as `undefined`."""
    alias: str | None = None
    position: int | None = None
    """The `transcriptPosition`, -1 or more; `None` when the client gives none that can be read."""
    wait: int | None = None
    """The seconds that a poll may be held; `None` when the client gives none that can be read."""

    @property
    def asked_from(self) -> int:
        """The position from which a poll asks."""
        return ALL_EVENTS if self.position is None else self.position

    def get(self, name: str) -> str | None:
        """The value of the first parameter of that name; `None` when there is none."""
        return next((value for sent, value in self.pairs if plain_name(sent) == name), None)

    @property
    def message(self) -> str | None:
        """What the customer sends, or of a poll the preview of what he types."""
        return self.get("message")

    @property
    def user_data(self) -> tuple[Pair, ...]:
        """The keys and values of the `userData[key]` parameters, in their order."""
        found = ((user_data_key(name), value) for name, value in self.pairs)
        return tuple((key, value) for key, value in found if key is not None)


def client_call(path: str, pairs: Iterable[Pair]) -> ClientCall:
    """The request that these parameters make on `path`, which is percent-encoded and relative to `{base}/2/chat/`.

    Of a repeated `secureKey`, `userId` or `alias` the first counts that is one, of a repeated position the first.
    Raises `ChatApiError` for the path.
    """
    service, chat_id, operation, file_id = read_path(path)
    triple: dict[str, str] = {}
    position: str | None = None
    wait: int | None = None
    others: list[Pair] = []
    for pair in pairs:
        name = plain_name(pair[0])
        if name in TRIPLE:
            if name not in triple and (token := as_token(pair[1].strip())) is not None:
                triple[name] = token
        elif name == POSITION:
            position = pair[1] if position is None else position
        elif name == WAIT and operation is Operation.REFRESH:
            wait = as_whole(pair[1]) if wait is None else wait
        else:
            others.append(pair)
    return ClientCall(
        service,
        chat_id,
        operation,
        file_id,
        tuple(others),
        triple.get("userId"),
        triple.get("secureKey"),
        triple.get("alias"),
        read_position(position),
        wait if wait is not None and wait >= 0 else None,
    )


def forwarded(asked: ClientCall, service: str, tokens: Tokens, position: int | None) -> Call:
    """The call that goes to GMS for a client's, but for "request chat" and an upload.

    The triple is that of `tokens` and stands first, whatever stands behind it may be lost; then comes `position`, the
    session's own; then the client's parameters in their order. The position of a read receipt is what it says, and
    stays the client's. Raises `ChatApiError` when the request cannot be written.
    """
    if asked.operation is Operation.READ_RECEIPT:
        position = asked.position
    own = [] if position is None else [(POSITION, str(position))]
    return call(asked.operation, service, tokens, [*own, *asked.pairs], asked.file_id)


# -- the path -------------------------------------------------------------------------------------------


def read_path(path: str) -> tuple[str, str | None, Operation, str | None]:
    """Service, chat id, operation and file id of a path, percent-encoded and relative to `{base}/2/chat/`.

    Empty segments do not count. Raises `ChatApiError`: `unknown_operation`, and `bad_path` for a segment that would
    address something else.
    """
    segments = [unquote(part, errors="replace") for part in path.partition("?")[0].split("/") if part]
    if not {".", ".."}.isdisjoint(segments):
        raise ChatApiError("bad_path", "expected no segment of dots in the path")
    match segments:
        case [service]:
            return service, None, Operation.REQUEST_CHAT, None
        case [service, chat_id, name] if name in _PLAIN_OPERATIONS:
            return service, chat_id, _PLAIN_OPERATIONS[name], None
        case [service, chat_id, "file", "limits"]:
            return service, chat_id, Operation.FILE_LIMITS, None
        case [service, chat_id, "file", file_id, "download"]:
            return service, chat_id, Operation.FILE_DOWNLOAD, file_id
        case [service, chat_id, "file", file_id, "delete"]:
            return service, chat_id, Operation.FILE_DELETE, file_id
    raise ChatApiError("unknown_operation", "no operation of the Chat API has this path")


_PLAIN_OPERATIONS = {
    operation.value: operation for operation in Operation if operation.value and "/" not in operation.value
}


# -- the body -------------------------------------------------------------------------------------------


def read_body(body: bytes, content_type: str) -> list[Pair]:
    """The parameters in the body of a request without a file, in their order. Files in it are left out.

    A multipart body is read as such and all else as a form, whatever it is called; JSON, which is documented for no
    call, is refused. Raises `ChatApiError`: `json_body`, `bad_form`, `no_boundary`, `bad_multipart`.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        return _read_multipart(body, content_type)
    if kind.endswith(("/json", "+json")):
        raise ChatApiError("json_body", "expected a form, as the Chat API has it, not JSON")
    return read_form(body, _charset(content_type))


def read_form(body: bytes, charset: str = "utf-8") -> list[Pair]:
    """The parameters of an urlencoded form, in their order.

    Text that is not encoded is taken as it stands, up to the next `&`. What is not in `charset`, an encoding that
    Python knows, is read as Windows-1252: a page of that encoding sends it so without a word. Raises `ChatApiError`
    with `bad_form` for too many parameters.
    """
    fields = [field for field in body.removeprefix(codecs.BOM_UTF8).split(b"&") if field]
    if len(fields) > MAX_FIELDS:
        raise _too_many()
    pairs = []
    for field in fields:
        name, _, value = field.partition(b"=")
        pairs.append((_decoded(name, charset), _decoded(value, charset)))
    return pairs


def _decoded(sent: bytes, charset: str) -> str:
    if sent.isalnum():  # which takes ASCII letters and digits alone
        return sent.decode("ascii")
    return _text(unquote_to_bytes(sent.replace(b"+", b" ")), charset)


def _text(content: bytes, charset: str) -> str:
    try:
        return content.decode(charset)
    except UnicodeDecodeError:
        return content.decode("windows-1252", "replace")


def _read_multipart(body: bytes, content_type: str) -> list[Pair]:
    reader = MultipartReader(content_type)
    fields: list[tuple[str, list[bytes]]] = []
    now: list[bytes] = []
    for found in reader.feed(body):
        if not isinstance(found, PartHead):
            now.append(found)
            continue
        now = []
        if found.filename is None:
            fields.append((found.name, now))
            if len(fields) > MAX_FIELDS:
                raise _too_many()
    reader.close()
    charset = _charset(content_type)
    return [(name, _text(b"".join(content), charset)) for name, content in fields]


def _too_many() -> ChatApiError:
    return ChatApiError("bad_form", f"expected a form of at most {MAX_FIELDS} parameters")


_CHARSETS = re.compile(
    r"utf-?8|us-ascii|iso-8859-\d{1,2}|windows-125\d|koi8-[ru]|shift_jis|euc-(?:jp|kr)|gbk|gb18030|big5"
)
"""Encodings of pages. Python knows more, of which some are no encodings of text and some take long."""


@lru_cache(maxsize=64)
def _charset(content_type: str) -> str:
    """The encoding that a Content-Type says; UTF-8 when it says none of those in use."""
    header = Message()
    header["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
    said = header.get_param("charset")
    name = said.strip().lower() if isinstance(said, str) else ""
    if name in ("iso-8859-1", "us-ascii"):
        return "windows-1252"  # as every browser understands these names (whatwg.org, Encoding)
    try:
        return codecs.lookup(name).name if _CHARSETS.fullmatch(name) else "utf-8"
    except LookupError:
        return "utf-8"


# -- parameters -----------------------------------------------------------------------------------------


def read_position(text: str | None) -> int | None:
    """The position in a `transcriptPosition`; `None` for what is missing or cannot be one, such as `undefined`."""
    position = as_whole(text)
    return position if position is not None and position >= LAST_EVENT else None


def plain_name(name: str) -> str:
    """A parameter's name as it is meant: `userData%5Bkey%5D`, still encoded when the form was decoded, and
    `userData["key"]` are `userData[key]`."""
    if name.isalpha():
        return name
    name = _unquoted(name).strip()
    key = _key_of(name)
    return name if key is None else f"userData[{key}]"


def user_data_key(name: str) -> str | None:
    """The key of a `userData[key]` parameter, without quotes; `None` for others."""
    return None if name.isalpha() else _key_of(_unquoted(name).strip())


def _key_of(name: str) -> str | None:
    if not (name.startswith("userData[") and name.endswith("]")):
        return None
    key = name[len("userData[") : -1].strip()
    if len(key) > 2 and key[0] == key[-1] and key[0] in "\"'":
        key = key[1:-1]
    return key


_MOST_UNQUOTED = 3
"""So often a name is looked at that was encoded again and again."""


def _unquoted(name: str) -> str:
    for _ in range(_MOST_UNQUOTED):
        if "%" not in name or (plain := unquote(name, errors="replace")) == name:
            break
        name = plain
    return name
