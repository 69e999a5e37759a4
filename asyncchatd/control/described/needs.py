"""What a client of the control API needs for each call: the one place where it is written down.

The guard asks for it, and the OpenAPI document shows it. A route that is not here is not served: the daemon does not
start with it.
"""

from __future__ import annotations

from asyncchatd.config import Right
from asyncchatd.listening import Need, Needs

OPEN = Need(token=False)
"""For load balancers and supervisors. They are told whether the daemon lives and is ready, and nothing else."""

NEEDS: Needs = {
    ("PUT", "/v1/sessions/{chat_id}"): Need(Right.REGISTER),
    ("GET", "/v1/sessions/{chat_id}"): Need(Right.READ),
    ("DELETE", "/v1/sessions/{chat_id}"): Need(Right.REGISTER),
    ("POST", "/v1/sessions/{chat_id}/ping"): Need(Right.OPERATE),
    ("POST", "/v1/sessions/{chat_id}/take"): Need(Right.KEYS),
    ("POST", "/v1/sessions/{chat_id}/release"): Need(Right.KEYS),
    ("POST", "/v1/sessions/{chat_id}/acknowledged"): Need(Right.KEYS),
    ("POST", "/v1/sessions"): Need(Right.REGISTER),
    ("GET", "/v1/sessions"): Need(Right.READ),
    ("GET", "/v1/servers"): Need(Right.READ),
    ("POST", "/v1/servers/{name}/restore"): Need(Right.OPERATE),
    ("GET", "/v1/restorations"): Need(Right.READ),
    ("GET", "/v1/events"): Need(Right.EVENTS, same_site=True),
    ("GET", "/v1/consumers"): Need(Right.READ),
    ("POST", "/v1/consumers/{name}/retry"): Need(Right.OPERATE),
    ("POST", "/v1/consumers/{name}/pause"): Need(Right.OPERATE),
    ("POST", "/v1/consumers/{name}/resume"): Need(Right.OPERATE),
    ("POST", "/v1/consumers/{name}/replay"): Need(Right.OPERATE),
    ("POST", "/v1/store/accept"): Need(Right.OPERATE),
    ("GET", "/v1/status"): Need(Right.READ),
    ("GET", "/v1/live"): Need(Right.READ, same_site=True),
    ("GET", "/"): Need(Right.READ),
    ("GET", "/openapi.json"): Need(),
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/metrics"): Need(Right.READ),
}
