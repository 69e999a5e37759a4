"""The commands that tell a running daemon of chats: to look after them, and to do so no more.

register    chats it is to look after, from a file or standard input
end         chats it is to look after no more
"""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from asyncchatd.cli import tables
from asyncchatd.cli.commands.asking import WHERE_ELSE, ask, print_answer
from asyncchatd.cli.options import config_option, json_option
from asyncchatd.control import shapes
from asyncchatd.control.clients.blocking import BlockingClient
from asyncchatd.control.clients.calls import DaemonError, read


@click.command()
@click.argument("file", type=click.Path(allow_dash=True, readable=False), default="-")
@click.option("--service", help="That of chats which name none; without it gms.service.")
@click.option("--device-id", metavar="ID", help="GCTI_GMS_PushDeviceId of the chat, when FILE has only one.")
@config_option
@json_option
def register(file: str, service: str | None, device_id: str | None, config: Path, as_json: bool) -> None:
    """Register chats, or tell their newest tokens: JSON from FILE, or from standard input.

    GMS' reply to "request chat" is taken as it is. In asyncchatd's own form a chat has chat_id, user_id, secure_key
    and alias, and may have service, device_id and next_position. JSON is one chat, a list of them, or one on each line.
    Good ones are taken; each wrong one is told with its line, and the exit status is 1.

    No option takes a secure key, because every user of the host can read a command line.

    \b
    Example:
      asyncchatd register --service customer-support --device-id phone-4711 reply.json
      asyncchatd register < sessions.ndjson
    """
    lines = _lines(_content(file))
    answer = ask(config, lambda control: control.register(lines, service=service, device_id=device_id))
    view = read(shapes.Registered, answer)
    print_answer(answer if as_json else tables.registered(view))
    if view.refused:
        raise click.ClickException(f"{view.refused:,} of {view.taken + view.refused:,} were not taken")


def _content(file: str) -> bytes:
    if file.lstrip().startswith(("{", "[")):
        # Not repeated: it has keys in it.
        raise click.UsageError(
            "expected the name of a file, not JSON: every user of this host can read it there"
        )
    try:
        with click.open_file(file, "rb") as opened:
            content: bytes = opened.read()
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}") from None
    if not content.strip():
        raise click.ClickException("there is nothing to register; give a FILE, or JSON on standard input")
    return content


def _lines(content: bytes) -> bytes:
    """The chats, one on each line; what is not one JSON value is left to the daemon, which says where it is wrong."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content
    return b"\n".join(map(orjson.dumps, value if isinstance(value, list) else [value]))


@click.command()
@click.argument("chat_ids", nargs=-1, required=True, metavar="CHAT_ID...")
@config_option
@json_option
def end(chat_ids: tuple[str, ...], config: Path, as_json: bool) -> None:
    """Stop looking after chats. Nothing is sent to GMS, and no chat is closed by this.

    These chats are pinged no more, and their keys are forgotten. A customer who is still in one stays in it until
    somebody closes it, or until Chat Server gives it up, which the pings prevented. A chat that is registered again
    is looked after again.

    \b
    Example:
      asyncchatd end 00048aAPEQJ8000U
    """
    answer = ask(config, lambda control: _ended(control, chat_ids))
    ended, unknown = answer["ended"], answer["unknown"]
    print_answer(dict(answer) if as_json else tables.ended(len(ended)))
    if unknown:
        raise click.ClickException(f"no such session: {', '.join(unknown)}{WHERE_ELSE['end']}")


def _ended(control: BlockingClient, chat_ids: tuple[str, ...]) -> dict[str, list[str]]:
    answer: dict[str, list[str]] = {"ended": [], "unknown": []}
    for chat_id in dict.fromkeys(chat_ids):
        try:
            control.end(chat_id)
        except DaemonError as error:
            if error.status != 404:
                raise
            answer["unknown"].append(chat_id)
        else:
            answer["ended"].append(chat_id)
    return answer
