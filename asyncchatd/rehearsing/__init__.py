"""The demo and the rehearsal: the daemon against the stand-in plant."""

from asyncchatd.rehearsing import demo, plot, pollers, rehearsal, trial, tuning
from asyncchatd.rehearsing.demo_plan import DemoPlan

__all__ = [
    "DemoPlan",
    "demo",
    "plot",
    "pollers",
    "rehearsal",
    "trial",
    "tuning",
]
