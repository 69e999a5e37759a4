"""The plant: Chat Servers, the sessions in them, and what all of it suffers. No I/O."""

from asyncchatd.standin.plant.measure import Report
from asyncchatd.standin.plant.parts import PlantError
from asyncchatd.standin.plant.plant import LONG_TEXT, Plant

__all__ = ["LONG_TEXT", "Plant", "PlantError", "Report"]
