"""Twelve ways in which what lies at a name is no plain file, or becomes another between two looks.

Each takes the place of a reader's target and gives back nothing but what to undo. All lead, where they lead anywhere,
to good bytes: what refuses them is the rule alone.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from foreign_readers import Reader

Attack = Callable[[Reader], None]


def place_of(reader: Reader) -> Path:
    """Where the target lies."""
    return reader.folder / reader.target


def _to_the_canary(reader: Reader) -> None:
    place_of(reader).symlink_to(reader.canary)


def _relative(reader: Reader) -> None:
    place_of(reader).symlink_to(os.path.relpath(reader.canary, place_of(reader).parent))


def _within(reader: Reader) -> None:
    shutil.copyfile(reader.canary, place_of(reader).with_name("twin"))
    place_of(reader).symlink_to("twin")


def _chain(reader: Reader) -> None:
    place_of(reader).with_name("twin").symlink_to(reader.canary)
    place_of(reader).symlink_to("twin")


def _circle(reader: Reader) -> None:
    place_of(reader).symlink_to(place_of(reader).name)


def _folder_is_a_link(reader: Reader) -> None:
    """The folder on the way lies elsewhere; of a reader without one, the file is a link through another folder."""
    parent = place_of(reader).parent
    if parent == reader.folder:
        (reader.folder / "way").symlink_to(reader.folder.parent)
        place_of(reader).symlink_to(f"way/{reader.canary.name}")
        return
    shutil.copyfile(reader.canary, place_of(reader))
    parent.rename(reader.folder.parent / "moved")
    parent.symlink_to(reader.folder.parent / "moved")


def _pipe(reader: Reader) -> None:
    os.mkfifo(place_of(reader))


def _link_to_a_pipe(reader: Reader) -> None:
    os.mkfifo(place_of(reader).with_name("twin"))
    place_of(reader).symlink_to("twin")


def _device(reader: Reader) -> None:
    """Zeros without end; who may not make a device links to it."""
    try:
        os.mknod(place_of(reader), 0o666 | 0o020000, os.makedev(1, 5))
        with place_of(reader).open("rb"):
            pass
    except OSError:
        place_of(reader).unlink(missing_ok=True)
        place_of(reader).symlink_to("/dev/zero")


def _socket(reader: Reader) -> None:
    before = os.getcwd()
    os.chdir(place_of(reader).parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(place_of(reader).name)
    os.chdir(before)


def _folder(reader: Reader) -> None:
    place_of(reader).mkdir()


def _good(reader: Reader) -> None:
    """What the swap finds at first."""
    shutil.copyfile(reader.canary, place_of(reader))


ATTACKS: dict[str, Attack] = {
    "a link out": _to_the_canary, "a relative link out": _relative, "a link to a twin": _within, "a chain": _chain,
    "a circle": _circle, "a folder that is a link": _folder_is_a_link, "a pipe": _pipe,
    "a link to a pipe": _link_to_a_pipe, "a device": _device, "a socket": _socket, "a folder": _folder,
    "a swap for a link": _good,
}  # fmt: skip
SWAP = "a swap for a link"


@contextmanager
def attacked(reader: Reader, name: str) -> Iterator[None]:
    """Holds the attack in the target's place; what was there comes back."""
    kept = reader.folder.parent / "kept"
    shutil.copytree(reader.folder, kept, symlinks=True)
    try:
        place_of(reader).unlink()
        ATTACKS[name](reader)
        yield
    finally:
        shutil.rmtree(reader.folder)
        with suppress(FileNotFoundError):
            shutil.rmtree(reader.folder.parent / "moved")
        kept.rename(reader.folder)


def swap(reader: Reader) -> None:
    """Puts a link to the canary where a plain file was."""
    place_of(reader).unlink()
    _to_the_canary(reader)


def read_with_a_swap(reader: Reader) -> object:
    """Reads while the target is exchanged: just before it is opened, or between a check and a library's opening."""
    if reader.between is not None:
        return reader.between(lambda: swap(reader))
    opened = os.open
    waiting = [place_of(reader).name]

    def hooked(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if waiting and os.path.basename(path) == waiting[0]:
            waiting.clear()
            swap(reader)
        return opened(path, flags, mode, dir_fd=dir_fd)

    with ExitStack() as stack:
        stack.enter_context(mock.patch("os.open", hooked))
        read = reader.read(reader.named)
    assert not waiting, "nothing was opened"
    return read
