"""`asyncchatd logs`: the log, told to a tired operator.

`read` turns files, a pipe or the journal into lines; `sentences` says each event in words, put together in `phrases`
where that takes more than a line; `chat` tells what happened to one chat and why, `whole` what happened to a Chat
Server, in a restoration or at all, both with `plant`, what every chat depends on, and `narrator`, how it is told;
`summary` counts what happened. All but `read` are pure: lines in, words out. `telling` puts them together, `show`
writes them down.
"""

from asyncchatd.story import telling
from asyncchatd.story.read import LogsError
from asyncchatd.story.show import moment

__all__ = [
    "LogsError",
    "moment",
    "telling",
]
