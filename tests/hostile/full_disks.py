"""Cases of really full disks (`small_disks`): an export there ends in a sentence, and an old build is untouched."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from ordeal import Case
from small_disks import make_read_only, on_small_disk
from stand_in import beside, stand_in, whole

from fastvlm.errors import OutputError


@contextmanager
def refused(words: str) -> Iterator[None]:
    """The block must end with an OutputError that says so."""
    with pytest.raises(OutputError, match=words):
        yield


def mounted_cases(place: Path, sizes: tuple[int, ...] = (0, 36, 72)) -> list[Case]:
    """Really full disks: with these kilobytes beside an old build, for temporary files, and read-only; the stand-in."""
    old = 25 << 12  # bytes that the old build takes, in pages, its folders among them

    def target(more: int) -> None:
        def work() -> None:
            stand_in(place / "build", "old")
            with refused(r"no space left for .*: 0\.15 MB are needed, .* were written and .* free"):
                stand_in(place / "build", "new")
            assert whole(place / "build") == "old"
            assert beside(place) == ["build"]

        on_small_disk(place, old + more, work)

    def temporary(size: int) -> None:
        def work() -> None:
            os.environ["TMPDIR"] = tempfile.tempdir = str(place)
            stand_in(place.parent / f"beside {size}" / "build", "new")

        on_small_disk(place, size + 4096, work)
        assert whole(place.parent / f"beside {size}" / "build") == "new"

    def read_only() -> None:
        def work() -> None:
            stand_in(place / "build", "old")
            make_read_only(place)
            with refused("read-only|may not be written"):
                stand_in(place / "build", "new")
            assert whole(place / "build") == "old"

        on_small_disk(place, 1 << 20, work)

    return [
        *((f"a disk with {size} kB left", partial(target, size << 10)) for size in sizes),
        *((f"TMPDIR of {size + 4} kB", partial(temporary, size << 10)) for size in sizes),
        ("a read-only disk", read_only),
    ]


def really_mounted_cases(place: Path) -> list[Case]:
    """Real exports on real small disks: 20 sizes of the target's, 20 of the one for temporary files; and read-only."""
    from export import api, export

    def onnx(output: Path) -> None:
        api.check_space = lambda *_: None  # type: ignore[attr-defined]
        export("tiny", output, format="onnx", overwrite=True)

    def target(size: int) -> None:
        def work() -> None:
            with refused("no space left for .* are needed, .* free"):
                onnx(place / "build")
            assert beside(place) == []

        on_small_disk(place, size, work)

    def temporary(size: int) -> None:
        def work() -> None:
            os.environ["TMPDIR"] = tempfile.tempdir = str(place)
            onnx(place.parent / "built")

        on_small_disk(place, size, work)
        shutil.rmtree(place.parent / "built")

    def read_only() -> None:
        def work() -> None:
            make_read_only(place)
            with refused("read-only|may not be written"):
                onnx(place / "build")

        on_small_disk(place, 1 << 20, work)

    return [
        *((f"a disk of {index * 100_000:,} bytes", partial(target, index * 100_000)) for index in range(1, 21)),
        *((f"TMPDIR of {index * 4096:,} bytes", partial(temporary, index * 4096)) for index in range(1, 21)),
        ("a real export and a read-only disk", read_only),
    ]
