"""The status page: one HTML file with everything in it, and the headers that keep others out of it.

It may run exactly the script and the style in the file, by their hashes, connect to where it came from,
and nothing else: no other host, no frame, no form, no markup made from text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

HTML = resources.files("asyncchatd.control.status").joinpath("page.html").read_text("utf-8")
"""The page, the same for everybody: what it shows it fetches from `v1/live`."""


def _hash_of(element: str) -> str:
    [content] = re.findall(rf"<{element}>(.*?)</{element}>", HTML, re.DOTALL)
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of('script')}",
            f"style-src {_hash_of('style')}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
