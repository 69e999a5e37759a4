"""A plant under a fake clock, for each test that asks for it."""

from __future__ import annotations

import pytest

from .plant_rig import Rig, make_rig


@pytest.fixture
def rig() -> Rig:
    return make_rig()
