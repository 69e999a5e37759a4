"""The options that commands share: where the configuration is, and JSON for programs."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import click

FILE = click.Path(path_type=Path, readable=False)
"""A file that is named. Whether it can be read is said by what reads it, with what to do and with exit status 1, as of
one that is not there; click would call the option wrong."""

USUAL_FILES = (Path("/etc/asyncchatd/asyncchatd.toml"), Path("etc/asyncchatd.toml"))
"""Where the configuration is looked for when nobody says where it is."""


def usual(_: click.Context, __: click.Parameter, given: Path | None) -> Path:
    found = given or next((path for path in USUAL_FILES if os.path.isfile(path)), None)
    if found is None:
        tried = " nor ".join(map(str, USUAL_FILES))
        raise click.ClickException(
            f"no configuration: there is neither {tried}; name one with --config or $ASYNCCHATD_CONFIG,"
            " or write one: asyncchatd init"
        )
    return found


def server_names(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Names of Chat Servers that begin so, as far as a configuration tells. Never fails: it runs while
    somebody types."""
    try:
        named = context.params.get("config") or os.environ.get("ASYNCCHATD_CONFIG")
        path = named or usual(context, parameter, None)
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("chat_server", [])
        names = [str(table.get("name", "")) for table in tables]
    except Exception:
        return []
    return [name for name in names if name.startswith(begun)]


config_option = click.option(
    "--config",
    type=FILE,
    callback=usual,
    envvar="ASYNCCHATD_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help=f"The configuration; default {USUAL_FILES[0]}, else {USUAL_FILES[1]}.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
