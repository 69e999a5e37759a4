"""The parts of a plant as plain data: Chat Servers, their processes, sessions, requests, timers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush

from asyncchatd.model import Ms
from asyncchatd.standin.files import PlantFile
from asyncchatd.standin.health_page import HealthFormat
from asyncchatd.standin.messages import PlantEvent
from asyncchatd.standin.requests import Received
from asyncchatd.standin.settings import SickPage


class PlantError(Exception):
    """A command that cannot be carried out. Says what was expected."""


class Phase(StrEnum):
    """The phases of a Chat Server."""

    UP = "up"
    HUNG = "hung"
    """Its ports accept and never answer; its sessions are in memory still."""
    STOPPING = "stopping"
    """It announced its stop: it serves, but client requests take sessions to other servers."""
    DOWN = "down"
    """Its ports are closed and its memory is gone."""


@dataclass(slots=True, eq=False)
class ServerProcess:
    """One run of a Chat Server. Sessions belong to the process, not to the server: a new one, pid
    changed or not, knows none of them."""

    server: PlantServer
    pid: int
    started_at: Ms
    sessions: dict[str, ChatSession] = field(default_factory=dict, repr=False)
    opened: int = 0
    """Sessions it ever took, restored ones included."""
    silent_since: float | None = None
    """When it hung or died; `None` while it serves."""
    dead: bool = False
    died_at: float = 0.0
    """Where the restoration window begins; not where a hang before it did."""


@dataclass(slots=True, eq=False)
class PlantServer:
    """One Chat Server instance."""

    name: str
    app_dbid: str
    health: HealthFormat | SickPage
    process: ServerProcess = field(init=False)
    phase: Phase = Phase.DOWN
    slow: float = 0.0
    """Seconds every answer takes longer, health page included."""
    twin: ServerProcess | None = None
    """Another process behind the address of its health page. It shows itself every other time."""
    looked_at: int = 0

    def seen(self) -> ServerProcess:
        """The process that shows itself to who looks at the health page now."""
        self.looked_at += 1
        return self.process if self.twin is None or self.looked_at % 2 else self.twin


@dataclass(slots=True)
class Owed:
    """Pushes of a session that no client request has acknowledged yet."""

    since: float
    attempts: int = 0
    scheduled: bool = False


@dataclass(slots=True, eq=False)
class ChatSession:
    """One chat session. Its memory matters: a plant holds 100,000 of them."""

    chat_id: str
    service: str
    user_id: str
    secure_key: str = field(repr=False)
    alias: str
    process: ServerProcess = field(repr=False)
    idle: OrderedDict[str, ChatSession] = field(repr=False)
    """The queue of silence it stands in: those with push, or those without."""
    last_request: float
    nickname: str = "Customer"
    device_id: str | None = None
    """`None` without push subscription."""
    resend: bool = False
    payload: bool = True
    notify_requestor: bool = False
    node: int = 1
    """The GMS node that its pushes go by."""
    swallowed: bool = False
    """None of its pushes arrives."""
    events: list[PlantEvent] = field(default_factory=list, repr=False)
    typing: PlantEvent | None = field(default=None, repr=False)
    """The last of `events` that says what an agent is doing now, and goes when he does something else."""
    next_index: int = 1
    read_to: int = 0
    """The highest position of which the customer sent a read receipt."""
    aliases: tuple[str, ...] = ()
    """Earlier ones."""
    previous: Previous | None = None
    doubtful: tuple[Previous, ...] = ()
    """Replaced by replies that may have been lost: good until the client shows that it knows the newest."""
    rotate_next: bool = False
    """The next answered request rotates, whatever the settings say."""
    requests: int = 0
    """That arrived for it, of every operation, whatever became of them."""
    refreshes_asked: int = 0
    """The Refreshes among them."""
    overlapping: int = 0
    """Those that came while GMS worked on another one, and its client waited."""
    refreshes: int = 0
    """That were carried out."""
    ended: str | None = None
    """Why it is over."""
    last_words: bool = False
    """The first answer after the end still shows the transcript, under statusCode 0."""
    closed_refreshes: int = 0
    closed_at: Ms = 0
    """When the last of them came."""
    owed: Owed | None = None
    push_taken: bool = False
    """A push was answered with 200, and no request of the client came since."""
    pushed_at: float = -1.0
    """When a push of its was sent or taken last."""
    lost: LostAnswer | None = None
    """The last answer of its that was lost."""
    in_flight: list[Ticket] | None = field(default=None, repr=False)
    user_data: dict[str, str] | None = field(default=None, repr=False)
    files: dict[str, PlantFile] | None = field(default=None, repr=False)
    """By file id; those that a customer deleted are gone."""
    uploads: int = 0
    uploaded_bytes: int = 0
    downloads: int = 0


@dataclass(frozen=True, slots=True)
class Previous:
    """Tokens that a rotation replaced."""

    user_id: str
    secure_key: str = field(repr=False)
    until: float
    """Taken until then (`previous_key_grace`)."""
    at_ms: Ms
    """When they were replaced."""


@dataclass(frozen=True, slots=True)
class LostAnswer:
    """The answer that a client never got; times of the plant's clock, in seconds."""

    asked_at: float
    at: float


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """The answer of a GMS node, as it goes out over HTTP."""

    body: bytes = field(repr=False)
    status: int = 200
    content_type: str = "application/json"
    file: PlantFile | None = field(default=None, repr=False)
    """What goes out in the place of `body`, piece by piece."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request on its way through GMS."""

    received: Received
    session: ChatSession | None
    wanted: Callable[[], bool] = field(repr=False)
    """Whether the client still waits for the answer."""
    node: int | None = None
    """The GMS node that was asked."""
    arrived_at: float = 0.0
    delay: float = 0.0
    """Seconds from the queue to the Chat Server."""
    queued: bool = False
    refused: NodeAnswer | None = None
    """GMS' own answer, given at once."""
    replaced: Previous | None = None
    """The tokens that this request's answer replaces."""
    told_the_end: bool = False
    """It is a Refresh of a closed chat, and its answer says so."""
    cut_off_at: float | None = None
    """When a proxy hung up on a client that waited. The work goes on."""
    orphaned: bool = False
    """Its client is dead."""


class Timers:
    """The timers: what happens later. One heap for all sessions: a task or a loop timer for each would cost more
    than the plant itself."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, due: float, action: Callable[[], None]) -> None:
        """Runs `action` at the first `run` that is not before `due`."""
        self._count += 1
        heappush(self._heap, (due, self._count, action))

    def run(self, now: float) -> None:
        """Runs everything due, in order; what it schedules for now as well."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            heappop(heap)[2]()
