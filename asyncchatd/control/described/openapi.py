"""The control API as an OpenAPI 3.1 document, for programs: `GET /openapi.json`.

Tests hold the document against the code: every route is in it and the reverse, and what a running API answers is valid
by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from asyncchatd import __version__
from asyncchatd.config import ORDINARY_RIGHTS
from asyncchatd.control.described.needs import NEEDS
from asyncchatd.control.described.schemas import Json, schemas
from asyncchatd.control.registrations import ACKNOWLEDGED, BESIDE, TAKE_ID
from asyncchatd.listening import Need
from asyncchatd.model import SessionState

LARGEST_PAGE = 10_000
LARGEST_PORTION = 1_000
"""Events in one answer."""


@cache
def document() -> Json:
    """The whole OpenAPI document of the control API."""
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "asyncchatd control API",
            "version": __version__,
            "description": "Sessions, Chat Servers, restorations and events of one asyncchatd. A secure key goes in,"
            " and comes out with a take alone. Where the listener has a token, every call but `/healthz` and `/readyz`"
            " is answered 401 without it; clients and pages that may not use the listener at all get 403, and so does a"
            " token without the right that a call needs (`missing_right`): it is the role that its `security` names."
            " Where there are no tokens, the rights `read`, `register` and `operate` are everybody's who reaches it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"bearer": []}, {"basic": []}],
        "servers": [{"url": "/", "description": "where this document came from"}],
        "tags": [
            {"name": name, "description": description}
            for name, description in (
                ("sessions", "Chat sessions and their tokens"),
                ("servers", "Chat Servers and restorations"),
                ("consumers", "Who is told of the events of chats, and the events"),
                ("daemon", "The daemon itself"),
            )
        ],
        "paths": {
            path: {
                name: {**call, **_security(NEEDS[name.upper(), path])} if isinstance(call, dict) else call
                for name, call in item.items()
            }
            for path, item in _paths().items()
        },
        "components": {
            "schemas": schemas(),
            "responses": _error_responses(),
            "parameters": _parameters(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "`control.token`"},
                "basic": {"type": "http", "scheme": "basic", "description": "the token as the password"},
            },
        },
    }


OF_A_BODY = (400, 404, 408, 409, 413, 415, 503)
"""How a call on one chat may be refused that says something in its body."""

# -- the calls -----------------------------------------------------------------------------------------


def _security(need: Need) -> Json:
    """What a call needs: OpenAPI 3.1 has roles for it. Without a token nobody has more than the ordinary rights."""
    if not need.token:
        return {"security": []}
    if need.right is None:
        return {}
    untold: list[Json] = [{}] if need.right in ORDINARY_RIGHTS.held else []
    return {"security": [*untold, {"bearer": [need.right]}, {"basic": [need.right]}]}


def _paths() -> dict[str, Json]:
    chat, server = [_parameter("chat_id")], [_parameter("name")]
    return {
        "/v1/sessions": {
            "get": _call(
                "sessions",
                "listSessions",
                "List sessions in the order of their chat ids",
                {200: _json("SessionPage", "A page; `next` is the `after` of the next one")},
                (400, 503),
                parameters=[_parameter(each) for each in ("alias", "state", "limit", "after")],
            ),
            "post": _call(
                "sessions",
                "registerSessions",
                "Register a session, or many, one JSON object on each line",
                {
                    200: _json("Registered", "Good lines are taken, bad ones told with their numbers"),
                    400: {
                        "description": "No line could be taken, or the body cannot be read",
                        "content": _content({"oneOf": [_ref("Registered"), _ref("Error")]}),
                    },
                },
                (408, 415, 503),
                parameters=[_parameter(each) for each in BESIDE],
                body={
                    "required": True,
                    "description": "Any number of lines, each a Registration with its `chat_id` or a Reply; or a"
                    " single one over several lines",
                    "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
                },
            ),
        },
        "/v1/sessions/{chat_id}": {
            "parameters": chat,
            "get": _call(
                "sessions", "getSession", "Show a session", {200: _json("Session", "The session")}, (404, 503)
            ),
            "put": _call(
                "sessions",
                "putSession",
                "Register a session, or tell its newest tokens",
                {
                    200: _json("RegisteredSession", "It was known"),
                    201: _json("RegisteredSession", "It is new"),
                },
                (400, 408, 409, 413, 415, 503),
                parameters=[_parameter(each) for each in (*BESIDE, TAKE_ID, ACKNOWLEDGED)],
                body={
                    "required": True,
                    "description": 'In our own form, or GMS\' reply to "request chat" as it came',
                    "content": _content({"oneOf": [_ref("Registration"), _ref("Reply")]}),
                },
            ),
            "delete": _call(
                "sessions",
                "deleteSession",
                "The chat is over: it is pinged no more",
                _done("It has ended, now or before"),
                (404, 503),
            ),
        },
        "/v1/sessions/{chat_id}/ping": {
            "parameters": chat,
            "post": _call(
                "sessions",
                "pingSession",
                "Make a session due now",
                {202: _json("Session", "It is pinged as soon as the rate allows")},
                (404, 409, 503),
            ),
        },
        "/v1/sessions/{chat_id}/take": {
            "parameters": chat,
            "post": _call(
                "sessions",
                "takeSession",
                "Have a session to oneself, with its newest tokens: it is not pinged meanwhile",
                {
                    200: {
                        **_json(
                            "Take", "It is over with a registration that names it, a release, or its time"
                        ),
                        "headers": {"Cache-Control": {"schema": {"const": "no-store"}}},
                    }
                },
                OF_A_BODY,
                body=_body("TakeWanted"),
            ),
        },
        "/v1/sessions/{chat_id}/release": {
            "parameters": chat,
            "post": _call(
                "sessions",
                "releaseSession",
                "End a take without a reply of GMS: the session is pinged at once",
                _done("It is over, now or before"),
                OF_A_BODY,
                body=_body("TakeNamed"),
            ),
        },
        "/v1/sessions/{chat_id}/acknowledged": {
            "parameters": chat,
            "post": _call(
                "sessions",
                "acknowledgeSession",
                "The Refresh was sent that an event of kind notified asked for, and brought no other tokens",
                _done("Pushes up to that event need no ping"),
                OF_A_BODY,
                body=_body("Acknowledged"),
            ),
        },
        "/v1/servers": {
            "get": _call(
                "servers",
                "listServers",
                "Chat Servers: state, process, sessions",
                {200: _json("Servers", "All that are configured")},
                (503,),
            ),
        },
        "/v1/servers/{name}/restore": {
            "parameters": server,
            "post": _call(
                "servers",
                "restoreServer",
                "Ping all sessions of a Chat Server, as if it had been lost",
                {202: _json("Restoration", "All its sessions are due")},
                (404, 409, 503),
            ),
        },
        "/v1/restorations": {
            "get": _call(
                "servers",
                "listRestorations",
                "Restorations, newest first",
                {200: _json("Restorations", "The last ones")},
                (400, 503),
                parameters=[_parameter("limit")],
            ),
        },
        "/v1/events": {
            "get": _call(
                "consumers",
                "fetchEvents",
                "Events for a consumer without a webhook; asking acknowledges those up to `after`",
                {
                    200: {
                        "description": "The events behind what is acknowledged, at once or as soon as there are some;"
                        " none when there were none for `wait`. With `Accept: text/event-stream` a stream of"
                        " ToldEvents, each with its `id`, and a comment every 15 s: it acknowledges nothing before"
                        " its client comes back with `Last-Event-ID`, for which it ends a minute after its first event",
                        "content": {
                            **_content(_ref("Events")),
                            "text/event-stream": {"schema": {"type": "string"}},
                        },
                    },
                    410: _json("OtherEpoch", "`after` is of another history of the store"),
                },
                (400, 404, 409, 503),
                parameters=[
                    _parameter(each) for each in ("consumer", "after_event", "last_event", "wait", "portion")
                ],
            ),
        },
        "/v1/consumers": {
            "get": _call(
                "consumers",
                "listConsumers",
                "Consumers: how far each is behind",
                {200: _json("Consumers", "All that are configured")},
                (503,),
            ),
        },
        **{
            f"/v1/consumers/{{name}}/{verb}": {
                "parameters": [_parameter("consumer_name")],
                "post": _call(
                    "consumers",
                    f"{verb}Consumer",
                    summary,
                    {200: _json("Steered", "It is done; the consumer as it is now")},
                    (404, *errors, 503),
                ),
            }
            for verb, summary, errors in (
                ("retry", "Try at once what waits for its next try; of one with a webhook", (409,)),
                ("pause", "Tell it nothing until it is resumed", ()),
                ("resume", "Go on telling it", ()),
                ("replay", "Try parked batches once more; of one with a webhook", (409,)),
            )
        },
        "/v1/store/accept": {
            "post": _call(
                "daemon",
                "acceptStore",
                "Take the store as it is, where an empty or older one took the place of the one of before",
                {200: _json("Accepted", "It is")},
                (503,),
            ),
        },
        "/v1/status": {
            "get": _call(
                "daemon", "getStatus", "All in one look", {200: _json("Status", "As it is now")}, (503,)
            ),
        },
        "/v1/live": {
            "get": _call(
                "daemon",
                "listen",
                "What the status page shows, as server-sent events",
                {
                    200: {
                        "description": "`history` once, the last 15 minutes (a list of the schema Moment), then"
                        " `picture` every second (the schema Picture), and before it `moments`, what the history got"
                        " since (a list, too); `trouble` in its place while the store cannot be read; `stopping`"
                        " before the end. A comment when there is no news for five seconds.",
                        "content": {"text/event-stream": {"schema": {"type": "string"}}},
                    }
                },
                (503,),
            ),
        },
        "/": {
            "get": _call(
                "daemon",
                "getPage",
                "The status page, for people",
                {200: _text("text/html", "It shows what `/v1/live` tells")},
            ),
        },
        "/openapi.json": {
            "get": _call(
                "daemon",
                "getDocument",
                "This document",
                {200: {"description": "OpenAPI 3.1", "content": _content({"type": "object"})}},
            ),
        },
        "/healthz": {
            "get": _call("daemon", "isAlive", "Whether the daemon lives", {200: _json("Alive", "It does")}),
        },
        "/readyz": {
            "get": _call(
                "daemon",
                "isReady",
                "Whether it takes pushes",
                {200: _json("Ready", "It does"), 503: _json("Ready", "It is starting or stopping")},
            ),
        },
        "/metrics": {
            "get": _call(
                "daemon",
                "getMetrics",
                "Metrics in Prometheus' text format",
                {200: _text("text/plain", "See docs/metrics.md")},
            ),
        },
    }


def _call(
    tag: str,
    name: str,
    summary: str,
    answers: Mapping[int, Json],
    errors: tuple[int, ...] = (),
    *,
    parameters: list[Json] | None = None,
    body: Json | None = None,
) -> Json:
    responses: Json = {str(status): answer for status, answer in answers.items()}
    responses |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in errors}
    call: Json = {"tags": [tag], "operationId": name, "summary": summary, "responses": responses}
    if parameters:
        call["parameters"] = parameters
    if body:
        call["requestBody"] = body
    return call


def _error_responses() -> Json:
    return {
        str(status): {"description": description, "content": _content(_ref("Error"))}
        for status, description in {
            400: "Something in the request is wrong; `field` names it",
            404: "There is none of this name",
            408: "The body came too slowly",
            409: "Not in the state it is in; with `Retry-After` where that passes by itself",
            413: "The body is too large",
            415: "The body is compressed in another way than gzip or deflate, or in a charset nobody knows",
            503: "Not now: the store cannot be used, or too many are listening",
        }.items()
    }


def _parameters() -> Json:
    identifier = {"type": "string", "minLength": 1}
    limit = {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE}
    token: Json = {"type": "string"}
    return {
        "chat_id": _in("path", "chat_id", identifier, "Of the session; percent-encoded where it must be"),
        "name": _in("path", "name", identifier, "`chat_server.name` of the configuration"),
        "alias": _in("query", "alias", {"type": "string"}, "Only sessions of this `app_dbid`"),
        "state": _in("query", "state", _enum(SessionState), "Only sessions in this state"),
        "limit": _in("query", "limit", limit, "How many at the most"),
        "after": _in("query", "after", {"type": "string"}, "Only chat ids behind this one"),
        "consumer_name": _in("path", "name", identifier, "`consumer.name` of the configuration"),
        "consumer": _in(
            "query", "consumer", identifier, "`consumer.name` of the configuration", required=True
        ),
        "after_event": _in(
            "query", "after", {"type": "string"}, "`cursor` of the last answer: acknowledges all up to it"
        ),
        "last_event": _in(
            "header", "Last-Event-ID", {"type": "string"}, "Of a stream: the `id` it had last; before `after`"
        ),
        "wait": _in(
            "query", "wait", {"type": "string"}, "How long to wait for events, such as `25s`; 60 s at most"
        ),
        "portion": _in(
            "query", "limit", {**limit, "maximum": LARGEST_PORTION}, "How many at the most; 100 by default"
        ),
        "service": _in("query", "service", token, "Of sessions that name none; without it `gms.service`"),
        "device_id": _in(
            "query", "device_id", token, "`GCTI_GMS_PushDeviceId` of the only session in the body"
        ),
        "take_id": _in(
            "query", "take_id", token, "The take that is over: these tokens are those of GMS' reply"
        ),
        "acknowledged": _in(
            "query",
            "acknowledged",
            token,
            "The event that asked for the Refresh: these tokens are those of its reply",
        ),
    }


def _in(place: str, name: str, schema: Json, description: str, *, required: bool = False) -> Json:
    return {
        "name": name,
        "in": place,
        "required": required or place == "path",
        "schema": schema,
        "description": description,
    }


def _enum(values: Iterable[str]) -> Json:
    return {"type": "string", "enum": [str(value) for value in values]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _body(name: str) -> Json:
    return {"required": True, "content": _content(_ref(name))}


def _done(description: str) -> dict[int, Json]:
    return {204: {"description": description}}


def _json(name: str, description: str) -> Json:
    return {"description": description, "content": _content(_ref(name))}


def _text(kind: str, description: str) -> Json:
    return {"description": description, "content": {kind: {"schema": {"type": "string"}}}}
