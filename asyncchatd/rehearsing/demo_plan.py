"""The plan of the demo: what its options ask for, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from asyncchatd.standin import ALL_FORMS, HealthFormat, Plant, PlantSettings, Rotation, chat_servers

KILLED = "chat-2"
"""The Chat Server that is killed."""

MOST_CUSTOMERS = 10

HOLD_SECONDS = 0.5
"""`gateway.hold`: less than in the field, so that the pages poll often within the seconds here."""

ROOM = 2
"""By so many chats there is more room for the customers' on the Chat Server that is killed than they need."""

WATCH_SECONDS = 2.0
FAST_WATCH_SECONDS = 0.5
SLOWEST_NOTICE_SECONDS = 1.1 * (WATCH_SECONDS + 2 * FAST_WATCH_SECONDS) + 0.5
"""The longest a loss goes unnoticed here: one interval, two fast ones, their jitter, and some room."""

GMS_SECONDS = 2.0
"""`gms.timeout`: so long a chat is left alone after a lost answer. The field's 10 s are to its window of minutes what
this is to the seconds here."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the options ask for, and what follows from it."""

    sessions: int = 3000
    servers: int = 4
    rate: float = 200.0
    """Requests per second to GMS, `restoration.max_rate`."""
    seconds: float = 20.0
    """How long all is well."""

    @property
    def interval(self) -> float:
        """`ping.interval` in seconds: keepalives take half of the rate."""
        return max(5.0, self.sessions / (0.5 * self.rate))

    @property
    def messages_per_second(self) -> float:
        """Agents write often enough for every form a push may have, but their pushes take no more than a
        fifth of the rate: acknowledgements go before everything else."""
        return min(max(20.0, 1.2 * len(ALL_FORMS) / self.seconds), 0.2 * self.rate)

    @property
    def window(self) -> float:
        """The plants' restoration window in seconds, rather more than noticing and restoring takes when
        acknowledgements and overdue keepalives get their share. The field's is minutes; nobody wants to
        wait them out."""
        restoring = self.sessions / self.servers / (0.7 * self.rate)
        return max(8.0, round(1.6 * (SLOWEST_NOTICE_SECONDS + restoring)))

    @property
    def customers(self) -> int:
        """Those with a chat page. Their requests are few beside all others, and their chats fit on one Chat Server."""
        return max(1, min(MOST_CUSTOMERS, int(self.rate / 20), self.sessions // (self.servers - 1) - ROOM))

    def start_chats(self, plant: Plant) -> None:
        """The chats that are there from the start. The Chat Server that is killed has fewer than the others, so those
        of the customers begin there."""
        others = [name for name in plant.servers if name != KILLED]
        beside = min(self.sessions, (self.customers + ROOM) * len(others))
        plant.start_chats(beside, servers=others)
        plant.start_chats(self.sessions - beside)

    def plant(self) -> PlantSettings:
        """A plant as hard on its clients as the documents allow, with health pages of every format."""
        formats = list(HealthFormat)
        servers = chat_servers(self.servers)
        return PlantSettings(
            servers=tuple(
                replace(server, health=formats[n % len(formats)]) for n, server in enumerate(servers)
            ),
            restoration_window=self.window,
            rotate=Rotation.ALWAYS,
            rotate_every=1,
        )

    def other_plant(self) -> PlantSettings:
        """The one without asyncchatd: the same, but that it changes keys at a restoration alone."""
        return replace(self.plant(), rotate=Rotation.RESTORE)
