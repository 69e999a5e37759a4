"""A failure in one of many cases of a test names the case."""

from __future__ import annotations

import pytest
from conftest import case


def test_a_failure_names_its_case() -> None:
    with pytest.raises(AssertionError) as caught, case("é", 7):
        raise AssertionError
    assert caught.value.__notes__ == [r"The case: '\xe9', 7"]


def test_so_does_one_where_nothing_was_raised() -> None:
    with (
        pytest.raises(pytest.fail.Exception) as caught,
        case("none"),
        pytest.raises(ValueError, match="never"),
    ):
        pass
    assert caught.value.__notes__ == ["The case: 'none'"]
