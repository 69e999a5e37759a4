"""`[[consumer]]`: who may be asked to acknowledge pushes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ..rig import problems, settings


def consumer(name: str, *keys: str) -> str:
    return "\n".join(("[[consumer]]", f'name = "{name}"', 'kinds = ["notified"]', *keys, ""))


ASKED = 'acknowledges = "5s"'


def test_one_is_asked_to_acknowledge_for_as_long_as_is_said(tmp_path: Path) -> None:
    both = settings(tmp_path, consumer("app", ASKED) + consumer("archive")).consumers
    assert [each.acknowledges for each in both] == [timedelta(seconds=5), None]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((), ()),
        (('services = ["support"]',), ()),
        ((), ('services = ["support"]',)),
        (('services = ["support", "sales"]',), ('services = ["billing", "sales"]',)),
    ],
)
def test_two_for_the_chats_of_one_service_are_named_both(
    tmp_path: Path, one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    said = problems(
        tmp_path, consumer("archive") + consumer("app", ASKED, *one) + consumer("bot", ASKED, *other)
    )
    assert said == {
        "consumer[2].acknowledges": "expected one consumer with acknowledges for the chats of a service, not app and"
        " bot both"
    }


def test_two_for_the_chats_of_different_services_are_fine(tmp_path: Path) -> None:
    lines = (consumer(name, ASKED, f'services = ["{name}"]') for name in ("sales", "support"))
    assert len(settings(tmp_path, "".join(lines)).consumers) == 2


def test_one_that_is_not_told_of_pushes_cannot_be_asked(tmp_path: Path) -> None:
    [said] = problems(tmp_path, f'[[consumer]]\nname = "app"\n{ASKED}\n').values()
    assert 'expected "notified" among kinds' in said


def test_a_kind_that_is_none_is_told_by_its_number(tmp_path: Path) -> None:
    text = '[[consumer]]\nname = "app"\nkinds = ["chat", "notify", "gap"]\n'
    [said] = problems(tmp_path, text).values()
    assert "notified, gap; number 2 is none of them" in said


@pytest.mark.parametrize("value", ['"61s"', '"0s"', '"soon"', "5"])
def test_its_time_is_a_duration_of_a_minute_at_most(tmp_path: Path, value: str) -> None:
    assert list(problems(tmp_path, consumer("app", f"acknowledges = {value}"))) == [
        "consumer[0].acknowledges"
    ]
