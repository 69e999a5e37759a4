"""A stand-in plant: GMS nodes and Chat Servers on loopback, faults included.

For rehearsing before production: it behaves as Genesys documents (protocol sections 2 to 5), breaks
on command, and reports what it suffered. A client that breaks a rule loses customers here, where it
does no harm. `plant` is the logic, without I/O; `server` puts it on sockets; `control` is its
control port, described in docs/standin.md.
"""

from asyncchatd.standin.control import session_line
from asyncchatd.standin.files import Generated, PlantFile
from asyncchatd.standin.health_page import HealthFormat
from asyncchatd.standin.plant import Plant
from asyncchatd.standin.plant.measure import Report, Timeline, percentiles
from asyncchatd.standin.plant.parts import PlantError
from asyncchatd.standin.port import stop_listening
from asyncchatd.standin.proxy import LoopbackProxy, Way
from asyncchatd.standin.pushes import ALL_FORMS, MessageForm, PushForm, TokenPlace, push_body
from asyncchatd.standin.server import TICK, Ports, StandIn, serve
from asyncchatd.standin.settings import (
    ChatServerSettings,
    PlantSettings,
    Rebinding,
    Rotation,
    SettingError,
    SickPage,
    chat_servers,
)
from asyncchatd.standin.spoiling import AfterWork, Over, Spoiling

__all__ = [
    "ALL_FORMS",
    "TICK",
    "AfterWork",
    "ChatServerSettings",
    "Generated",
    "HealthFormat",
    "LoopbackProxy",
    "MessageForm",
    "Over",
    "Plant",
    "PlantError",
    "PlantFile",
    "PlantSettings",
    "Ports",
    "PushForm",
    "Rebinding",
    "Report",
    "Rotation",
    "SettingError",
    "SickPage",
    "Spoiling",
    "StandIn",
    "Timeline",
    "TokenPlace",
    "Way",
    "chat_servers",
    "percentiles",
    "push_body",
    "serve",
    "session_line",
    "stop_listening",
]
