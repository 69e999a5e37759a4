"""Server-sent events, as a reader by the standard understands them."""

from __future__ import annotations

import pytest

from asyncchatd.listening import event_stream


def test_an_event_has_its_id_its_name_and_its_data() -> None:
    assert event_stream.event(b"{}", event_id="7") == b"id: 7\ndata: {}\n\n"
    assert event_stream.event(b"{}", name="end") == b"event: end\ndata: {}\n\n"


@pytest.mark.parametrize("data", [b'{"a":\n1}', b'{"a":\r1}', b'{"a":\r\n1}'])
def test_data_of_several_lines_stays_one_event(data: bytes) -> None:
    assert event_stream.event(data) == b'data: {"a":\ndata: 1}\n\n'


def test_an_event_without_data_is_one_all_the_same() -> None:
    assert event_stream.event(b"") == b"data: \n\n"


def test_what_is_no_event_ends_as_one_does() -> None:
    assert event_stream.retry(500) == b"retry: 500\n\n"
    assert event_stream.place("7") == b"id: 7\n\n"
    assert event_stream.ALIVE.startswith(b":")
    assert event_stream.ALIVE.endswith(b"\n\n")
