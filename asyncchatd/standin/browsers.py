"""What a GMS node of the plant says to browsers: which pages may ask, and how a file is saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import quote

from aiohttp import web

from asyncchatd.standin.files import PlantFile


def cross_origin(request: web.BaseRequest, origins: Collection[str]) -> Mapping[str, str]:
    """The headers that let a page of one of these origins read the answer, credentials included; none for others."""
    origin = request.headers.get("Origin")
    if origin is None or origin not in origins:
        return {}
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin",
    }
    if request.method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = "POST, OPTIONS"
        headers["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "")
        headers["Access-Control-Max-Age"] = "600"
    return headers


async def send_file(
    request: web.BaseRequest, file: PlantFile, content_type: str, headers: Mapping[str, str], *, cut_off: bool
) -> web.StreamResponse:
    """Answers with a file, as fast as the client takes it. `cut_off`: hangs up in the middle, by
    `ConnectionResetError`."""
    name = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in file.name)
    encoded = quote(file.name, safe="", errors="replace")
    disposition = f"attachment; filename=\"{name}\"; filename*=UTF-8''{encoded}"
    response = web.StreamResponse(
        headers={**headers, "Content-Type": content_type, "Content-Disposition": disposition}
    )
    response.content_length = file.size
    await response.prepare(request)
    sent = 0
    for piece in file.chunks():
        if cut_off and (sent + len(piece)) * 2 > file.size:
            await response.write(piece[: len(piece) // 2])
            raise ConnectionResetError("hung up")
        try:
            await response.write(piece)
        except ConnectionError:
            return response  # the client has left
        sent += len(piece)
    await response.write_eof()
    return response
