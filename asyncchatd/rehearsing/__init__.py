"""The demo and the rehearsal: the daemon against the stand-in plant."""

from asyncchatd.rehearsing import demo, plot, rehearsal, trial, tuning

__all__ = [
    "demo",
    "plot",
    "rehearsal",
    "trial",
    "tuning",
]
