"""Files of the plant: made up from a seed, in memory or on disk, and never larger than they may be."""

from __future__ import annotations

import gc
import os

import pytest

from asyncchatd.standin.files import CHUNK, IN_MEMORY, Generated, Incoming, OnDisk, PlantFile


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, 1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_a_seed_says_every_byte(size: int) -> None:
    one, same, other = (b"".join(PlantFile("f", size, Generated(seed)).chunks()) for seed in (1, 1, 2))
    assert len(one) == size
    assert one == same
    assert size < 9 or one != other


def test_no_part_of_a_made_up_file_is_like_another() -> None:
    chunks = list(PlantFile("f", 5 * CHUNK, Generated(1)).chunks())
    assert len(set(chunks)) == 5


@pytest.mark.parametrize("size", [0, 1, CHUNK, IN_MEMORY, IN_MEMORY + 1, 3 * IN_MEMORY])
@pytest.mark.parametrize("piece", [1000, CHUNK, 2 * IN_MEMORY])
def test_an_upload_comes_back_as_it_was(size: int, piece: int) -> None:
    content = b"".join(PlantFile("f", size, Generated(3)).chunks())
    incoming = Incoming("f", 4 * IN_MEMORY)
    for at in range(0, size, piece):
        incoming.write(content[at : at + piece])
    file = incoming.whole()
    assert (file.size, b"".join(file.chunks())) == (size, content)
    assert file.sha256() == PlantFile("f", size, Generated(3)).sha256()
    assert isinstance(file.content, OnDisk) == (size > IN_MEMORY)


def test_a_file_that_is_too_large_is_counted_and_not_kept() -> None:
    incoming = Incoming("f", 2 * IN_MEMORY)
    for _ in range(3):
        incoming.write(bytes(IN_MEMORY))
    file = incoming.whole()
    assert (file.size, file.content) == (3 * IN_MEMORY, b"")


@pytest.mark.slow
def test_a_file_on_disk_is_gone_with_who_held_it() -> None:
    before = open_files()
    incoming = Incoming("f", 4 * IN_MEMORY)
    incoming.write(bytes(2 * IN_MEMORY))
    assert open_files() == before + 1
    file = incoming.whole()
    del incoming
    assert len(b"".join(file.chunks())) == 2 * IN_MEMORY
    del file
    gc.collect()
    assert open_files() == before
