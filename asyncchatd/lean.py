"""Importing for the daemon without what its libraries do at their import for programs that it is not.

A quarter of the daemon's start went into four such things: structlog reads rich for tracebacks that are not ours,
aiohttp reads the certificates of all authorities of the system for a client that nobody uses, pydantic asks every
package that is installed for plugins of its own, and the garbage collector looks again and again at modules that live
as long as the process.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast

AUTHORITIES = "SSL_CERT_FILE"
"""Where OpenSSL is told that another file has the authorities than the one it was built with."""

PLUGINS = "PYDANTIC_DISABLE_PLUGINS"
"""Where pydantic is told of which plugins it makes no use."""

_SAID = {AUTHORITIES: os.devnull, PLUGINS: "__all__"}


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Within it a package cannot be imported, as if it were not installed; what was there before,
    or was not, is so again afterwards."""
    modules = cast(dict[str, ModuleType | None], sys.modules)
    was_named, before = package in modules, modules.get(package)
    modules[package] = None  # which Python takes for "it is not there"
    try:
        yield
    finally:
        if was_named:
            modules[package] = before
        else:
            modules.pop(package, None)


@contextmanager
def importing() -> Iterator[None]:
    """Within it modules are imported: none reads the authorities of the system, no package is asked for plugins of
    pydantic, and the garbage collector rests.

    So aiohttp's own TLS context, which is used where none is given, trusts nobody whom a directory of the system's
    does not name. Every connection of asyncchatd is given one (`asyncchatd.config.tls_context`). And no plugin sees the
    configuration, which has secrets in it.
    """
    before, collecting = {name: os.environ.get(name) for name in _SAID}, gc.isenabled()
    os.environ.update(_SAID)
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
