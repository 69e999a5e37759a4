"""Lengths of time: a file's is read back as it was, and people's are as precise as is of use."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.model import durations


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("1.5 h", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        ("9" * 400 + "d", timedelta.max),
    ],
)
def test_a_length_is_a_number_with_its_unit(text: str, length: timedelta) -> None:
    assert durations.parse(text) == length


@pytest.mark.parametrize("text", ["", "5", "s", "5 minutes", "-5s", "1e3s", "1.s", "nan", "5s "])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        durations.parse(text)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(minutes=30), "30m"),
        (timedelta(seconds=1.25), "1.25s"),
        (timedelta(milliseconds=500), "500ms"),
        (timedelta(hours=36), "1.5d"),
        (timedelta(seconds=61), "61s"),
    ],
)
def test_a_file_has_the_largest_unit_that_is_exact(length: timedelta, text: str) -> None:
    assert durations.text(length) == text


@given(st.timedeltas(timedelta(microseconds=1), timedelta(days=36_500)))
def test_what_a_file_says_is_read_back_as_it_was(length: timedelta) -> None:
    assert durations.parse(durations.text(length)) == length


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.0071, "0.007 s"),
        (0.034, "0.03 s"),
        (4.21, "4.2 s"),
        (45, "45 s"),
        (119, "119 s"),
        (28 * 60, "28 min"),
        (3 * 3600 + 720, "3 h 12 min"),
        (5 * 3600, "5 h"),
        (2 * 86400, "2 d"),
        (51 * 3600, "2 d 3 h"),
    ],
)
def test_people_read_a_length_as_precise_as_is_of_use(seconds: float, words: str) -> None:
    assert durations.in_words(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "never"),
        (0.0134, "13 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (131.44, "131.4 s"),
    ],
)
def test_what_was_measured_can_be_compared(seconds: float | None, text: str) -> None:
    assert durations.measured(seconds, "never") == text
