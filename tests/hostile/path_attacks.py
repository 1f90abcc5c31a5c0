"""Sixty names that no file may use for another, and a folder in which each that can would lead to good bytes.

It knows no reader but by `foreign_readers.Reader`: from which folder names count, and what its target is called.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foreign_readers import Reader


def names(reader: Reader) -> list[str]:
    """Returns sixty names; those that may lead somewhere lead to the reader's target or to its canary."""
    outside, good = reader.canary, reader.named
    up = "../" * (reader.below.count("/") + 1) + outside.name
    folder, _, leaf = good.rpartition("/")
    stem, dot, ending = leaf.rpartition(".")
    inner = f"{folder}/" if folder else ""
    found = [
        up, f"./{up}", f"a/./../{up}", f"{inner}../{up}", f"a/b/../../{up}", f"{up}/", f"{up}/.",
        up.replace("../", "..//"), str(outside), f"/{outside}", f"/.{outside}",
        f"/proc/self/root{outside}", f"/proc/self/cwd/{up}",
        "/dev/zero", "/dev/fd/0", "/dev/stdin", "/proc/self/environ", "/etc/passwd", f"file:/{outside}", f"~/{up}",
        "~root/x", f"$HOME/{leaf}", f"${{PWD}}/{good}", f"$(pwd)/{good}", f"`pwd`/{good}", up.replace("..", "%2e%2e"),
        up.replace("/", "%2f"), up.replace("/", "\\"), f"C:\\{leaf}", f"C:/{leaf}", f"C:{leaf}", f"\\\\host\\x\\{leaf}",
        f"//host/x/{leaf}", f"\\\\?\\C:\\{leaf}", f"{good}\0", f"{good}\0.txt", f"{up}\0{leaf}", f"{good}\n",
        f"{good}\r", f"\t{good}", f"{inner}{stem}\x1b[2J{dot}{ending}", f"{good}\x7f", f"{inner}caf\u00e9{dot}{ending}",
        f"{inner}cafe\u0301{dot}{ending}", f"{inner}\ufb01le{dot}{ending}", up.replace("..", "\uff0e\uff0e"),
        up.replace("..", "\u2024\u2024"), up.replace("/", "\u2215"), f"{inner}\u202e{leaf}", f"{stem}\u200b.{ending}",
        f"\ufeff{good}", f"{good}:stream", f"{inner} {leaf}", f"{good} ", f"{good}/", f"./{good}", "", "..",
        f"{inner}{'x' * 300}.{ending}", "a/" * 5000 + leaf,
    ]  # fmt: skip
    assert len(found) == len(set(found)) == 60, (len(found), len(set(found)))
    return found


@contextmanager
def led(reader: Reader, name: str) -> Iterator[None]:
    """Holds the target's bytes at the place below the folder that the name leads to, where a file can be there."""
    base = reader.folder / reader.below
    place = base / name
    made = None
    if name and ".." not in place.parts and place.is_relative_to(base) and not name.endswith("/"):
        with suppress(OSError, ValueError):  # not every name can be a file's
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                made = Path(shutil.copyfile(reader.folder / reader.target, place))
    try:
        yield
    finally:
        if made is not None:
            made.unlink()
