"""What is counted, for Prometheus. Names follow its conventions; see `GET /metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

PUSHES = Counter("asyncchatd_pushes", "Push notifications, by what they were", ["outcome"], registry=REGISTRY)
PINGS = Counter(
    "asyncchatd_pings",
    "Ping Refreshes settled, by reason and outcome",
    ["reason", "outcome"],
    registry=REGISTRY,
)
PING_SECONDS = Histogram(
    "asyncchatd_ping_seconds",
    "From sending a ping Refresh to its answer",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
PUSH_SECONDS = Histogram(
    "asyncchatd_push_seconds",
    "From a push's last byte to its answer",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
    registry=REGISTRY,
)
IN_FLIGHT = Gauge("asyncchatd_pings_in_flight", "Ping Refreshes sent and not answered", registry=REGISTRY)
IN_FLIGHT_LIMIT = Gauge("asyncchatd_pings_in_flight_limit", "How many may be", registry=REGISTRY)
LOOP_LAG = Gauge("asyncchatd_loop_lag_seconds", "How late the event loop last was", registry=REGISTRY)
SESSIONS = Gauge("asyncchatd_sessions", "Sessions by state", ["state"], registry=REGISTRY)
DUE = Gauge("asyncchatd_sessions_due", "Live sessions that are due, by reason", ["reason"], registry=REGISTRY)
SERVER_UP = Gauge(
    "asyncchatd_chat_server_up", "1 when the Chat Server's health page answers", ["server"], registry=REGISTRY
)
RESTORATIONS = Counter(
    "asyncchatd_restorations", "Restorations begun, by cause", ["cause"], registry=REGISTRY
)
NODE_UP = Gauge(
    "asyncchatd_gms_node_up", "1 when the GMS node is in good standing", ["node"], registry=REGISTRY
)
