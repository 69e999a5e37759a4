"""`asyncchatd logs`: the log, told to a tired operator.

`read` turns files, a pipe or the journal into lines; `sentences` says each event in words; `story` tells what
happened to one chat, Chat Server or restoration and why; `summary` counts what happened. All but `read` are
pure: lines in, words out.
"""
