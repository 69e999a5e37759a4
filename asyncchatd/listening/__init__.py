"""The doors: listeners, who may come in, and TLS."""

from typing import TYPE_CHECKING

from asyncchatd.faces import on_demand

if TYPE_CHECKING:
    from asyncchatd.listening import certificates, event_stream, tls
    from asyncchatd.listening.access import Refusals, address_shown, go_on, go_on_later, may_stay
    from asyncchatd.listening.bodies import Body, BodyError, is_plain, push_text
    from asyncchatd.listening.guard import SAFE_METHODS, Guard, Need, Needs
    from asyncchatd.listening.listener import Listener
    from asyncchatd.listening.senders import Senders
    from asyncchatd.listening.served import INSTANCE, alive, has_left, heard_leaving
    from asyncchatd.listening.sockets import (
        ListenError,
        affordable_connections,
        bind_problem,
        by_listener,
        raise_file_limit,
    )
else:
    __getattr__ = on_demand(
        __name__,
        {
            "access": ("Refusals", "address_shown", "go_on", "go_on_later", "may_stay"),
            "bodies": ("Body", "BodyError", "is_plain", "push_text"),
            "certificates": (),
            "event_stream": (),
            "guard": ("SAFE_METHODS", "Guard", "Need", "Needs"),
            "listener": ("Listener",),
            "senders": ("Senders",),
            "served": ("INSTANCE", "alive", "has_left", "heard_leaving"),
            "sockets": (
                "ListenError",
                "affordable_connections",
                "bind_problem",
                "by_listener",
                "raise_file_limit",
            ),
            "tls": (),
        },
    )

__all__ = [
    "INSTANCE",
    "SAFE_METHODS",
    "Body",
    "BodyError",
    "Guard",
    "ListenError",
    "Listener",
    "Need",
    "Needs",
    "Refusals",
    "Senders",
    "address_shown",
    "affordable_connections",
    "alive",
    "bind_problem",
    "by_listener",
    "certificates",
    "event_stream",
    "go_on",
    "go_on_later",
    "has_left",
    "heard_leaving",
    "is_plain",
    "may_stay",
    "push_text",
    "raise_file_limit",
    "tls",
]
