"""What the control API answers with: JSON, also for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from asyncchatd.control.reading import LARGEST_LINE, BadRequest
from asyncchatd.control.shapes import Shape
from asyncchatd.listening import BodyError, go_on
from asyncchatd.stores import StoreError, in_full
from asyncchatd.wire import error_body


@web.middleware
async def errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Whatever goes wrong, the answer is JSON and says what to mend."""
    try:
        await go_on(request)  # whoever comes here has passed the guard
        return await handler(request)
    except BodyError as error:
        return _error(error.status, error.code, str(error))
    except BadRequest as error:
        later = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        response = json_answer(error_body(error.code, str(error), error.field), error.status, later)
        if error.status == 408:
            response.force_close()  # the rest of the body is still under way
        return response
    except StoreError as error:
        return _error(503, "store_failed", in_full(error))
    except web.HTTPRequestEntityTooLarge:
        return _error(413, "too_large", f"expected a body of at most {LARGEST_LINE} bytes")
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _error(error.status, error.reason.lower().replace(" ", "_"), error.reason, headers)
    except (web.RequestPayloadError, ConnectionError) as error:
        return _error(400, "unreadable", f"the body cannot be read: {type(error).__name__}")


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return json_answer(error_body(code, message), status, headers)


def json_answer(
    value: Shape | Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer in JSON, ended by a newline."""
    return web.Response(
        body=msgspec.json.encode(value) + b"\n",
        status=status,
        content_type="application/json",
        headers=headers,
    )
