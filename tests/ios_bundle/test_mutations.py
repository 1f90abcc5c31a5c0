"""Every single change of a bundle is found, and nothing that is no change: 2,000 of one, 200 of the other."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvlm.errors import BundleError
from fastvlm.paths import open_followed
from ios_bundle import verify
from ios_bundle.layout import CHECKSUMS, METADATA

MUTATIONS, CLEAN_RUNS = 2000, 200
Draw = random.Random


class Victim:
    """A copy that is damaged and repaired again and again: copying 30 files anew each time takes the disk's time."""

    def __init__(self, bundle: Path, place: Path) -> None:
        self.path = Path(shutil.copytree(bundle, place / "victim"))
        self._content = {path.relative_to(bundle): path.read_bytes() for path in files_of(bundle)}
        self._folders = {path.relative_to(bundle) for path in bundle.rglob("*") if path.is_dir()}

    def repair(self) -> None:
        """Puts back whatever was changed; a file that is as it was is only read."""
        (self.path.parent / "elsewhere").unlink(missing_ok=True)
        for path in sorted(self.path.rglob("*"), reverse=True):
            relative = path.relative_to(self.path)
            if path.is_dir() and not path.is_symlink():
                if relative not in self._folders:
                    path.rmdir()
            elif not path.is_file() or path.is_symlink() or relative not in self._content:
                path.unlink()
        for folder in sorted(self._folders):
            (self.path / folder).mkdir(exist_ok=True)
        for relative, data in self._content.items():
            path = self.path / relative
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)


def files_of(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def flip(bundle: Path, draw: Draw) -> None:
    """One bit of one file, the seal and the metadata too."""
    path = draw.choice(files_of(bundle))
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flip_seal(bundle: Path, draw: Draw) -> None:
    """One bit of what says what the files should be."""
    path = bundle / draw.choice((CHECKSUMS, METADATA))
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def rewrite_seal(bundle: Path, draw: Draw) -> None:
    """The same list in other words: white space, or a line twice."""
    path = bundle / CHECKSUMS
    lines = path.read_text("utf-8").splitlines(keepends=True)
    at = draw.randrange(len(lines))
    lines.insert(at, draw.choice((" ", "\n", lines[at])))
    path.write_text("".join(lines), "utf-8")


def add_file(bundle: Path, draw: Draw) -> None:
    """A file that nobody sealed, empty or not, visible or not, with any name."""
    folder = draw.choice([bundle, *(path for path in sorted(bundle.rglob("*")) if path.is_dir())])
    name = draw.choice(("new.txt", ".hidden", "é.json", "._x", ".DS_Store", "weight.bin ", "a\nb", "Metadata.JSON"))
    (folder / name).write_bytes(draw.randbytes(draw.choice((0, 1, 100))))


def add_folder(bundle: Path, draw: Draw) -> None:
    """A folder with nothing in it."""
    (draw.choice((bundle, bundle / "models")) / draw.choice(("empty", ".git", "__MACOSX"))).mkdir()


def delete(bundle: Path, draw: Draw) -> None:
    draw.choice(files_of(bundle)).unlink()


def delete_folder(bundle: Path, draw: Draw) -> None:
    shutil.rmtree(draw.choice(sorted(path for path in bundle.rglob("*") if path.is_dir())))


def rename(bundle: Path, draw: Draw) -> None:
    """A file or a folder under another name: another ending, upper case, another place."""
    path = draw.choice(sorted(bundle.rglob("*")))
    other = draw.choice((path.with_name(path.name + "x"), path.with_name(path.name.swapcase()), bundle / "moved"))
    path.rename(other if other != path else path.with_name("renamed"))


def as_compiled(bundle: Path, draw: Draw) -> None:
    """A package that calls itself compiled."""
    package = draw.choice(sorted(bundle.glob("models/*.mlpackage")))
    package.rename(package.with_suffix(".mlmodelc"))


def truncate(bundle: Path, draw: Draw) -> None:
    path = draw.choice([path for path in files_of(bundle) if path.stat().st_size])
    with path.open("r+b") as handle:
        handle.truncate(draw.randrange(path.stat().st_size))


def extend(bundle: Path, draw: Draw) -> None:
    with draw.choice(files_of(bundle)).open("ab") as handle:
        handle.write(draw.choice((b"\0", b"\n", b" ", draw.randbytes(9))))


def swap(bundle: Path, draw: Draw) -> None:
    """Two files that trade places; only where they differ is that a change."""
    first, second = draw.sample(files_of(bundle), 2)
    mine, other = first.read_bytes(), second.read_bytes()
    if mine == other:
        return flip(bundle, draw)
    first.write_bytes(other)
    second.write_bytes(mine)


def link(bundle: Path, draw: Draw) -> None:
    """The same bytes behind a link."""
    path = draw.choice(files_of(bundle))
    path.rename(bundle.parent / "elsewhere")
    path.symlink_to(bundle.parent / "elsewhere")


def pipe(bundle: Path, draw: Draw) -> None:
    """A pipe in the place of a file: whoever opens it waits for ever."""
    path = draw.choice(files_of(bundle))
    path.unlink()
    os.mkfifo(path)


def folder_for_file(bundle: Path, draw: Draw) -> None:
    """A folder where a file was, with the file in it."""
    path = draw.choice(files_of(bundle))
    data = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / path.name).write_bytes(data)


KINDS: tuple[Callable[[Path, Draw], None], ...] = (
    flip, flip, flip_seal, rewrite_seal, add_file, add_folder, delete, delete_folder, rename, as_compiled, truncate,
    extend, swap, link, pipe, folder_for_file,
)  # fmt: skip


def found(bundle: Path, compiled: bool = False) -> bool:
    try:
        return not verify(bundle, compiled=compiled).whole
    except BundleError:  # no bundle any more, or one of a version that is not read: found as well
        return True


def test_two_thousand_changes_are_found(small_bundle: Path, tmp_path: Path) -> None:
    draw, missed, kinds = random.Random(7), [], Counter[str]()
    victim = Victim(small_bundle, tmp_path)
    for number in range(MUTATIONS):
        change = KINDS[number % len(KINDS)]
        change(victim.path, draw)
        kinds[change.__name__] += 1
        if not found(victim.path, compiled=number % 5 == 0):
            missed.append((number, change.__name__))
        victim.repair()
        assert number % 50 or verify(victim.path).whole
    print(f"{MUTATIONS} changes, {dict(kinds)}, missed: {missed}")
    assert not missed
    assert sum(kinds.values()) == MUTATIONS


def test_two_hundred_clean_runs_raise_no_alarm(small_bundle: Path, tmp_path: Path) -> None:
    """As it is, copied, zipped and unzipped, its folder renamed, its modes and times changed; five runs of each."""
    trees = set()
    for number in range(CLEAN_RUNS // 5):
        copy = tmp_path / f"copy {number % 3} é"
        if number % 4 == 0:
            shutil.make_archive(str(tmp_path / "packed"), "zip", small_bundle)
            with zipfile.ZipFile(tmp_path / "packed.zip") as archive:
                archive.extractall(copy)
        else:
            shutil.copytree(small_bundle, copy, copy_function=(shutil.copy, shutil.copy2, shutil.copyfile)[number % 3])
        for result in (verify(copy) for _ in range(5)):
            assert result.whole, result.problems
            assert result.seal is not None
            trees.add(result.seal.tree)
        shutil.rmtree(copy)
    assert len(trees) == 1


@pytest.mark.parametrize("blind", ["_oddity", "_difference", "_files", "_holds"])
def test_without_one_of_its_checks_verify_misses_something(
    blind: str, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count above can fail: each check taken away lets changes through."""
    from ios_bundle import seal, verification

    sealed = {path.relative_to(small_bundle).as_posix() for path in files_of(small_bundle)}
    fakes = {
        "_oddity": (verification, lambda entry, path: (None, entry.is_dir())),
        "_difference": (verification, lambda *given: None),
        "_files": (verification, lambda folder: (set(sealed), [])),
        "_holds": (seal, lambda content, data: True),
    }
    monkeypatch.setattr(fakes[blind][0], blind, fakes[blind][1])
    monkeypatch.setattr(verification, "open_plain", open_followed)  # which refuses a link that `_oddity` has passed
    draw, missed = random.Random(7), 0
    victim = Victim(small_bundle, tmp_path)
    for number in range(4 * len(KINDS)):
        KINDS[number % len(KINDS)](victim.path, draw)
        missed += not found(victim.path)
        victim.repair()
    assert missed
