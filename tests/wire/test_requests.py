"""Requests of chat clients: read however a client in the field writes them, and passed on as it meant them."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.model import Tokens
from asyncchatd.wire.chat_api.calls import FORM, ChatApiError, Operation
from asyncchatd.wire.chat_api.requests import (
    MAX_FIELDS,
    ClientCall,
    Pair,
    client_call,
    forwarded,
    plain_name,
    read_body,
    read_form,
    read_path,
    read_position,
    user_data_key,
)

OURS = Tokens("C1", "0U", "true0key0of0gms", "117")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
pairs = st.lists(st.tuples(texts.filter(lambda name: name != ""), texts), max_size=8)
segments = texts.filter(lambda text: text not in ("", ".", ".."))


def asked(path: str, form: bytes = b"", content_type: str = FORM) -> ClientCall:
    return client_call(path, read_body(form, content_type))


def multipart(fields: list[tuple[str, str]], *files: tuple[str, str, bytes]) -> bytes:
    parts = [f'name="{name}"'.encode() + b"\r\n\r\n" + value.encode() for name, value in fields]
    parts += [f'name="{name}"; filename="{file}"'.encode() + b"\r\n\r\n" + data for name, file, data in files]
    return (
        b"".join(b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--x--\r\n"
    )


MULTIPART = "multipart/form-data; boundary=x"


# -- the path -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("s", Operation.REQUEST_CHAT),
        ("s/", Operation.REQUEST_CHAT),
        ("s//", Operation.REQUEST_CHAT),
        ("s/c/send", Operation.SEND),
        ("s/c/refresh/", Operation.REFRESH),
        ("/s//c//refresh//", Operation.REFRESH),
        ("s/c/refresh?x=1/2", Operation.REFRESH),
        ("s/c/startTyping", Operation.START_TYPING),
        ("s/c/stopTyping", Operation.STOP_TYPING),
        ("s/c/disconnect", Operation.DISCONNECT),
        ("s/c/pushUrl", Operation.PUSH_URL),
        ("s/c/updateNickname", Operation.UPDATE_NICKNAME),
        ("s/c/customNotice", Operation.CUSTOM_NOTICE),
        ("s/c/updateData", Operation.UPDATE_DATA),
        ("s/c/readReceipt", Operation.READ_RECEIPT),
        ("s/c/file/limits", Operation.FILE_LIMITS),
        ("s/c/file", Operation.FILE_UPLOAD),
        ("s/c/file/", Operation.FILE_UPLOAD),
    ],
)
def test_a_path_is_read_with_slashes_to_spare(path: str, operation: Operation) -> None:
    service, chat_id, found, file_id = read_path(path)
    assert (service, found, file_id) == ("s", operation, None)
    assert chat_id == (None if operation is Operation.REQUEST_CHAT else "c")


def test_a_file_is_named_in_the_path() -> None:
    assert read_path("s/c/file/7%2F8/download") == ("s", "c", Operation.FILE_DOWNLOAD, "7/8")
    assert read_path("s/c/file/limits/delete") == ("s", "c", Operation.FILE_DELETE, "limits")


def test_a_service_or_a_chat_may_be_named_like_an_operation() -> None:
    assert read_path("refresh") == ("refresh", None, Operation.REQUEST_CHAT, None)
    assert read_path("send/refresh/send") == ("send", "refresh", Operation.SEND, None)
    assert read_path("file/file/file") == ("file", "file", Operation.FILE_UPLOAD, None)


@given(segments, segments, segments)
def test_segments_are_decoded_after_they_are_told_apart(service: str, chat_id: str, file_id: str) -> None:
    path = "/".join(quote(each, safe="") for each in (service, chat_id, "file", file_id, "download"))
    assert read_path(path) == (service, chat_id, Operation.FILE_DOWNLOAD, file_id)


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "s/c", "s/c/Refresh", "s/c/refresh/now", "s/c/file/7", "s/c/file/7/upload", "s/refresh"),
        *("s/c/file%2Flimits", "s/c/file/{fileId}", "s/c//"),
    ],
)
def test_what_is_no_operation_is_said_to_be_none(path: str) -> None:
    with pytest.raises(ChatApiError) as error:
        read_path(path)
    assert error.value.code == "unknown_operation"


@pytest.mark.parametrize(
    "path", ["..", "s/../refresh", "s/%2e%2E/refresh", "%2e/c/send", "s/c/file/../delete"]
)
def test_a_segment_of_dots_addresses_nothing(path: str) -> None:
    with pytest.raises(ChatApiError) as error:
        read_path(path)
    assert error.value.code == "bad_path"


@given(texts)
def test_any_path_is_read_or_refused(path: str) -> None:
    try:
        service, chat_id, operation, _ = read_path(path)
    except ChatApiError:
        return
    assert service
    assert (chat_id is None) == (operation is Operation.REQUEST_CHAT)


# -- the body -------------------------------------------------------------------------------------------


@given(pairs)
def test_a_form_is_read_as_it_was_written(said: list[Pair]) -> None:
    assert read_form(urlencode(said).encode()) == said
    assert read_form(b"&" + urlencode(said, quote_via=quote).encode()) == said


@given(st.binary(max_size=60), st.sampled_from(["utf-8", "windows-1252", "shift_jis", "gb18030"]))
def test_any_bytes_are_a_form_that_can_be_written_again(body: bytes, charset: str) -> None:
    for name, value in read_form(body, charset):
        name.encode()
        value.encode()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"&a=1&&b=2&", [("a", "1"), ("b", "2")]),
        (b"a=1&a=2&a", [("a", "1"), ("a", "2"), ("a", "")]),
        (b"message=1+1=2", [("message", "1 1=2")]),
        (b"message=50% off, 5%2 and %zz", [("message", "50% off, 5%2 and %zz")]),
        (b"message=Tom & Jerry", [("message", "Tom "), (" Jerry", "")]),
        (b"message=a;b=c", [("message", "a;b=c")]),
        ("message=schön 👋".encode(), [("message", "schön 👋")]),
        (b"message=sch%F6n", [("message", "schön")]),
        (b"message=sch\xf6n", [("message", "schön")]),
        (b"a=%C3%B6&b=%F6", [("a", "ö"), ("b", "ö")]),
        (b"message=%81", [("message", "\ufffd")]),
        (b"\xef\xbb\xbfa=1", [("a", "1")]),
        (b"=1", [("", "1")]),
        (b"", []),
    ],
)
def test_a_form_is_read_as_clients_mean_it(body: bytes, said: list[Pair]) -> None:
    assert read_form(body) == said


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        (f"{FORM}; charset=ISO-8859-1", "Ã¶"),
        (f"{FORM}; charset=us-ascii", "Ã¶"),
        (f'{FORM};charset="UTF-8"', "ö"),
        (f"{FORM};charset=utf8", "ö"),
        (f"{FORM}; charset=iso-8859-99", "ö"),
        (f"{FORM}; charset=punycode", "ö"),
        (f"{FORM}; charset=unicode_escape", "ö"),
        (f"{FORM}; charset=utf-16", "ö"),
        (f"{FORM}; charset=", "ö"),
        (f"{FORM}; charset=KOI8-R", "ц╤"),
        ("", "ö"),
        ("text/plain", "ö"),
        ("no type\r\nat all", "ö"),
    ],
)
def test_the_charset_is_that_of_the_header(content_type: str, message: str) -> None:
    assert read_body(b"message=%C3%B6", content_type) == [("message", message)]


def test_a_form_has_its_bounds() -> None:
    assert len(read_form(b"&" * 10_000 + b"a&" * MAX_FIELDS)) == MAX_FIELDS
    with pytest.raises(ChatApiError) as error:
        read_form(b"a&" * (MAX_FIELDS + 1))
    assert error.value.code == "bad_form"


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "text/x+json"]
)
def test_json_is_refused_in_words(content_type: str) -> None:
    with pytest.raises(ChatApiError, match="expected a form") as error:
        read_body(b'{"secureKey": "k"}', content_type)
    assert error.value.code == "json_body"


def test_a_multipart_body_says_the_same_as_a_form() -> None:
    said = [("userId", "0U"), ("secureKey", "4ee15d7e"), ("userData[a b]", "x&y=z"), ("message", "schön\r\n")]
    body = multipart(said)
    assert read_body(body, MULTIPART) == said == read_body(urlencode(said).encode(), FORM)
    assert client_call("s/c/file/limits", read_body(body, MULTIPART)).secure_key == "4ee15d7e"


def test_files_are_left_out_wherever_they_stand() -> None:
    body = multipart([("a", "1"), ("b", "")], ("file", "x.png", b"secureKey"), ("none", "", b""))
    assert read_body(body, MULTIPART) == [("a", "1"), ("b", "")]


def test_a_multipart_body_is_decoded_by_its_charset_or_what_pages_use() -> None:
    body = multipart([("message", "?")]).replace(b"?", b"\xf6")
    assert read_body(body, MULTIPART) == [("message", "ö")]
    assert read_body(body, f"{MULTIPART}; charset=koi8-r") == [("message", "Ж")]


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"", MULTIPART, "bad_multipart"),
        (multipart([("a", "1")])[:-8], MULTIPART, "bad_multipart"),
        (b"a=1", MULTIPART, "bad_multipart"),
        (multipart([("a", "1")]), "multipart/form-data", "no_boundary"),
        (multipart([("a", "")] * (MAX_FIELDS + 1)), MULTIPART, "bad_multipart"),
    ],
)
def test_a_multipart_body_that_cannot_be_read_is_refused(body: bytes, content_type: str, code: str) -> None:
    with pytest.raises(ChatApiError) as error:
        read_body(body, content_type)
    assert error.value.code == code


# -- parameters -----------------------------------------------------------------------------------------


def test_the_triple_and_the_position_are_taken_out_and_all_else_stays_in_order() -> None:
    call = asked(
        "customer%20support/C1/send",
        b"&messageType=text&userId=0U&message=a%26b&alias=117&secureKey=4ee15d7e&transcriptPosition=7&x=&message=2",
    )
    assert (call.service, call.chat_id, call.operation) == ("customer support", "C1", Operation.SEND)
    assert (call.user_id, call.secure_key, call.alias) == ("0U", "4ee15d7e", "117")
    assert call.position == call.asked_from == 7
    assert call.pairs == (("messageType", "text"), ("message", "a&b"), ("x", ""), ("message", "2"))
    assert call.message == "a&b"
    assert call.get("nickname") is None


@pytest.mark.parametrize(
    "nothing", ["", " ", "null", "undefined", "(null)", "None", "****", "[object Object]"]
)
def test_a_placeholder_is_no_token(nothing: str) -> None:
    form = urlencode({"secureKey": nothing, "userId": nothing, "alias": nothing}).encode()
    call = asked("s/c/refresh", form)
    assert (call.user_id, call.secure_key, call.alias, call.pairs) == (None, None, None, ())


def test_of_a_repeated_token_the_first_counts_that_is_one() -> None:
    assert (
        asked("s/c/refresh", b"secureKey=&secureKey=null&secureKey=aaab&secureKey=bbba").secure_key == "aaab"
    )


def test_nothing_of_the_client_is_shown() -> None:
    call = asked("s/c/send", b"secureKey=4ee15d7e&message=hello&userData[a]=b")
    assert "4ee15d7e" not in repr(call)
    assert "hello" not in repr(call)
    assert "userData" not in repr(call)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        *((None, None), ("", None), (" ", None), ("undefined", None), ("NaN", None), ("null", None)),
        *(("-2", None), ("1e3", None), ("2.5", None), ("\uff11", None), ("1_0", None), ("9" * 5000, None)),
        *(("0", 0), ("-1", -1), ("1", 1), ("17", 17), (" 17 ", 17), ("17.0", 17), ("+3", 3)),
    ],
)
def test_a_position_is_read_or_none(text: str | None, position: int | None) -> None:
    assert read_position(text) == position
    call = client_call("s/c/refresh", [] if text is None else [("transcriptPosition", text)])
    assert (call.position, call.asked_from) == (position, 1 if position is None else position)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "userData[first name]",
            'userData["first name"]',
            "userData['first name']",
            'userData[ "first name" ]',
        ),
        *("userData%5Bfirst%20name%5D", "userData%5b%22first name%22%5d", "userData%255Bfirst name%255D"),
        *("userData[first%20name]", " userData[first name] "),
    ],
)
def test_a_key_of_user_data_is_known_however_it_is_written(name: str) -> None:
    assert user_data_key(name) == "first name"
    assert plain_name(name) == "userData[first name]"
    call = asked("s/c/updateData", urlencode([(name, "x")]).encode())
    assert call.user_data == (("first name", "x"),)
    assert call.pairs == ((name, "x"),), "what goes on to GMS is named as the client did"


@pytest.mark.parametrize(
    "name", ["message", "userData", "userData[a", "userdata[a]", "xuserData[a]", "", "%"]
)
def test_other_parameters_are_no_user_data(name: str) -> None:
    assert user_data_key(name) is None
    assert plain_name(name) == name


def test_a_key_of_user_data_may_be_anything() -> None:
    assert user_data_key("userData[]") == ""
    assert user_data_key("userData[a[0]]") == "a[0]"
    assert user_data_key('userData["]') == '"'
    assert user_data_key("userData[50%]") == "50%"


@given(texts, st.booleans(), st.sampled_from(["", '"', "'"]))
def test_any_key_is_found_again(key: str, encoded: bool, mark: str) -> None:
    key = "k" + key.strip().replace("%", "") + "k"
    name = f"userData[{mark}{key}{mark}]"
    assert user_data_key(quote(name) if encoded else name) == key


# -- what goes on to GMS --------------------------------------------------------------------------------


def test_our_triple_stands_first_and_our_position_takes_the_place_of_the_client_s() -> None:
    form = b"message=hi&secureKey=ours&userId=x&transcriptPosition=1&userData[a]=b&alias=y&message=again"
    call = forwarded(asked("s/C1/send", form), "s", OURS, 9)
    assert call.path == "s/C1/send"
    assert parse_qsl(call.body.decode()) == [
        *(("userId", "0U"), ("secureKey", "true0key0of0gms"), ("alias", "117"), ("transcriptPosition", "9")),
        *(("message", "hi"), ("userData[a]", "b"), ("message", "again")),
    ]


def test_without_a_position_of_ours_none_goes_out() -> None:
    call = forwarded(asked("s/C1/send", b"transcriptPosition=4&message=hi"), "s", OURS, None)
    assert b"transcriptPosition" not in call.body


@pytest.mark.parametrize(("said", "sent"), [("12", [("transcriptPosition", "12")]), ("undefined", [])])
def test_a_read_receipt_says_the_client_s_position(said: str, sent: list[Pair]) -> None:
    asked_for = client_call("s/C1/readReceipt", [("transcriptPosition", said)])
    assert parse_qsl(forwarded(asked_for, "s", OURS, 40).body.decode())[3:] == sent


def test_the_session_s_own_service_is_called_and_the_file_is_named() -> None:
    call = forwarded(asked("other/C1/file/a%20b/delete"), "s t", OURS, 2)
    assert call.path == "s%20t/C1/file/a%20b/delete"


@given(pairs, st.integers(1, 99))
def test_no_token_of_the_client_reaches_gms(said: list[Pair], position: int) -> None:
    mixed = [
        ("secureKey", "theirs1"),
        *said,
        ("userId", "theirs2"),
        ("secure%4Bey", "theirs3"),
        ("alias", "theirs4"),
    ]
    form = urlencode([*mixed, ("transcriptPosition", "77")]).encode()
    sent = parse_qsl(
        forwarded(asked("s/C1/send", form), "s", OURS, position).body.decode(), keep_blank_values=True
    )
    assert sent[:4] == [
        *(("userId", "0U"), ("secureKey", "true0key0of0gms"), ("alias", "117")),
        ("transcriptPosition", str(position)),
    ]
    assert sent[4:] == said


@pytest.mark.parametrize(
    ("said", "wait"),
    [([], None), (["25"], 25), (["0"], 0), (["9", "25"], 9), (["-1"], None), (["soon"], None), ([""], None)],
)
def test_a_poll_says_for_how_long_it_waits_and_gms_is_not_told(said: list[str], wait: int | None) -> None:
    call = client_call("s/c/refresh", [("message", ""), *(("wait", each) for each in said)])
    assert (call.wait, call.pairs) == (wait, (("message", ""),))


def test_a_wait_of_another_call_is_whatever_its_client_means() -> None:
    call = client_call("s/c/send", [("message", "Hello"), ("wait", "25")])
    assert (call.wait, call.pairs) == (None, (("message", "Hello"), ("wait", "25")))
