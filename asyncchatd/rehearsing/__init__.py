"""The demo and the rehearsal: the daemon against the stand-in plant."""

from asyncchatd.rehearsing import demo, plot, pollers, rehearsal, trial, tuning
from asyncchatd.rehearsing.demo_plan import DemoPlan
from asyncchatd.rehearsing.together import story as together
from asyncchatd.rehearsing.together.plan import NodesPlan

__all__ = [
    "DemoPlan",
    "NodesPlan",
    "demo",
    "plot",
    "pollers",
    "rehearsal",
    "together",
    "trial",
    "tuning",
]
