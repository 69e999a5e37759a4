"""What the control port shows of the plant, as JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from asyncchatd.standin.gms_node import GmsNode
from asyncchatd.standin.messages import write_event
from asyncchatd.standin.plant.parts import ChatSession, PlantServer
from asyncchatd.standin.plant.transcript import AGENT, CUSTOMER, is_message_of_customer


def session_line(session: ChatSession) -> dict[str, object]:
    """A session as the daemon's `POST /v1/sessions` takes it."""
    return {
        "service": session.service,
        "chat_id": session.chat_id,
        "user_id": session.user_id,
        "secure_key": session.secure_key,
        "alias": session.alias,
        "device_id": session.device_id,
        "next_position": session.next_index,
    }


def chat_line(session: ChatSession) -> dict[str, object]:
    """How a chat fared, living or ended. No secure key."""
    said = Counter(event.participant_id for event in session.events if event.kind == "message")
    texts = Counter(event.text for event in session.events if is_message_of_customer(event))
    return {
        "chat_id": session.chat_id,
        "service": session.service,
        "device_id": session.device_id,
        "alias": session.alias,
        "node": session.node,
        "swallowed": session.swallowed,
        "ended": session.ended,
        "next_position": session.next_index,
        "requests": session.requests,
        "refreshes": session.refreshes_asked,
        "refreshes_after_the_end": session.closed_refreshes,
        "overlapping": session.overlapping,
        "agent_messages": said[AGENT],
        "customer_messages": said[CUSTOMER],
        "doubled_messages": texts.total() - len(texts),
    }


def shown_chat(session: ChatSession, digests: Mapping[str, str]) -> dict[str, object]:
    """All that the plant has of a chat but its tokens: its transcript above all. `digests`: its files' SHA-256."""
    return {
        **chat_line(session),
        "nickname": session.nickname,
        "user_data": session.user_data or {},
        "read_to": session.read_to,
        "files": [
            {"file_id": file_id, "name": file.name, "size": file.size, "sha256": digests.get(file_id)}
            for file_id, file in (session.files or {}).items()
        ],
        "events": [
            {"who": "agent" if event.participant_id == AGENT else "customer", **write_event(event)}
            for event in session.events
        ],
    }


def shown_server(server: PlantServer, health_url: str) -> dict[str, object]:
    return {
        "name": server.name,
        "app_dbid": server.app_dbid,
        "process_os_pid": server.process.pid,
        "phase": server.phase.value,
        "sessions": len(server.process.sessions),
        "slow": server.slow,
        "health": server.health.value,
        "shares_address": server.twin is not None,
        "health_url": health_url,
    }


def shown_node(number: int, node: GmsNode) -> dict[str, object]:
    return {
        "number": number,
        "url": node.url,
        "phase": node.phase.value,
        "requests": node.requests,
        "slow": node.slow,
        "failing": None if node.failing is None else asdict(node.failing),
        "garbage_rate": node.garbage_rate,
        "after_work": None if node.spoiling is None else asdict(node.spoiling),
        "proxy_patience": node.patience,
    }
