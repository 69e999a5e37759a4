"""The settings of the plant: what is refused, what is secret, what is documented."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from asyncchatd.standin import MessageForm, PlantSettings, SettingError

from .plant_rig import Rig


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rotate": "sometimes"}, "never, restore, refresh, always"),
        ({"latency": -1}, "0 or more"),
        ({"latency": True}, "a number"),
        ({"nonsense": 1}, "no such setting"),
        ({"push_url": "http://example.com/push"}, "loopback"),
        ({"push_url": "http://127.0.0.1.example.com/push"}, "loopback"),
        ({"gms_capacity": 0}, "above 0"),
        ({"push_forms": [{"message": "poem"}]}, f"one of {', '.join(MessageForm)}, got"),
        ({"push_forms": [{"content": ["password"]}]}, "session-id"),
        ({"servers": []}, "no such setting"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_expected(
    rig: Rig, values: dict[str, object], said: str
) -> None:
    before = rig.plant.settings
    with pytest.raises(SettingError, match=said):
        rig.plant.change(values)
    assert rig.plant.settings is before


def test_the_push_secret_does_not_show() -> None:
    settings = PlantSettings(push_url="http://127.0.0.1:1/push/hush", required_headers={"apikey": "hush"})
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings.shown())


def test_the_documentation_names_every_setting_and_every_figure(rig: Rig) -> None:
    text = (Path(__file__).parents[2] / "docs" / "standin.md").read_text()
    names = {*PlantSettings().shown(), *(figure.name for figure in fields(rig.plant.report()))} - {"seconds"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
