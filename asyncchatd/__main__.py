"""`python -m asyncchatd` is the command `asyncchatd`."""

from asyncchatd.cli import main

main(prog_name="asyncchatd")
