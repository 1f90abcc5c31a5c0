"""What goes into a bundle and from where: a list of entries, decided before the first byte is copied.

An entry is a file of the build that keeps its bytes, a piece of one (the scales of an int8 table), or text made here.
Names are proven plain, ASCII and different even where upper and lower case are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastvlm.build import Build
from fastvlm.errors import BuildError
from fastvlm.licences import FOLDER as LICENCE
from fastvlm.manifest import SELFTEST_FILES, dump
from fastvlm.mlpackage import FILES
from fastvlm.paths import contained, is_plain
from ios_bundle import layout
from ios_bundle.chat_template import FILE as CHAT_TEMPLATE
from ios_bundle.chat_template import chat_template
from ios_bundle.compile_script import SCRIPT
from ios_bundle.host_files import generation_record, preprocess_record
from ios_bundle.promises import packages

TOKENIZER_FILES, OPTIONAL = ("tokenizer.json", "tokenizer_config.json"), (CHAT_TEMPLATE, "chat_template.json")


@dataclass(frozen=True)
class Entry:
    """One file of the bundle: `data`, or `length` bytes of the build's file `source` from `start` on."""

    path: str
    source: str | None = None
    data: bytes = b""
    start: int = 0
    length: int | None = None  # None: to the end
    executable: bool = False

    def size(self, build: Path) -> int:
        """Returns the bytes that it takes."""
        if self.source is None:
            return len(self.data)
        return self.length if self.length is not None else contained(build, self.source).stat().st_size - self.start


def entries(build: Build) -> list[Entry]:
    """Returns every file that keeps its bytes, and the script; what is made of them, `made` lists afterwards.

    Raises BuildError for files that are missing, names that no bundle may have, and packages that hold more than this
    tool's do.
    """
    script = Entry(layout.COMPILE, data=SCRIPT, executable=True)
    found = [*_packages(build), *_table(build), *_tokenizer(build), *_selftest(build), *_licences(build), script]
    _check(build, found)
    return found


def made(copied: Build) -> Iterator[Entry]:
    """Yields what is worked out from files, where `copied` is the build with those of the bundle in place of its own.

    So whatever is said of a tokenizer or of prompts is said of the bytes that were hashed.
    """
    if not (copied.tokenizer / CHAT_TEMPLATE).is_file():
        yield Entry(f"{layout.TOKENIZER}/{CHAT_TEMPLATE}", data=chat_template(copied))
    yield Entry(layout.PREPROCESS, data=dump(preprocess_record(copied)))
    yield Entry(layout.GENERATION, data=dump(generation_record(copied)))


def _packages(build: Build) -> Iterator[Entry]:
    for package in packages(build):
        own = [name.removeprefix(f"{package}/") for name in build.manifest["files"] if name.startswith(f"{package}/")]
        if more := sorted(set(own) - set(FILES)):
            raise BuildError(
                f"{build.folder / package} holds {', '.join(more[:5])} beside what this tool writes; another tool "
                "saved it: export the build again"
            )
        yield from (Entry(f"{layout.MODELS}/{package}/{name}", f"{package}/{name}") for name in FILES)


def _table(build: Build) -> Iterator[Entry]:
    table = build.embeddings
    assert table is not None
    name = table.file.relative_to(build.folder).as_posix()
    codes = table.rows * table.width
    if table.dtype == "int8":
        yield Entry(layout.EMBED, name, length=codes)
        yield Entry(layout.SCALES, name, start=codes)
    else:
        yield Entry(layout.EMBED, name)


def _tokenizer(build: Build) -> Iterator[Entry]:
    folder = build.tokenizer.relative_to(build.folder).as_posix()
    names = (*TOKENIZER_FILES, *(name for name in OPTIONAL if f"{folder}/{name}" in build.manifest["files"]))
    yield from (Entry(f"{layout.TOKENIZER}/{name}", f"{folder}/{name}") for name in names)
    if build.prompts is None:
        raise BuildError(f"{build.folder} has no ready-made prompts, an older fastvlm made it; export the build again")
    yield Entry(layout.PROMPTS, build.prompts.relative_to(build.folder).as_posix())


def _selftest(build: Build) -> Iterator[Entry]:
    names = [f"{layout.SELFTEST}/{name}" for name in SELFTEST_FILES]
    if contained(build.folder, f"{layout.SELFTEST}/selftest.json").is_file():
        yield from (Entry(name, name) for name in names)


def _licences(build: Build) -> Iterator[Entry]:
    for name in build.manifest["files"]:
        if name.startswith(f"{LICENCE}/"):
            yield Entry(f"{layout.LICENSES}/{name.removeprefix(f'{LICENCE}/')}", name)


def _check(build: Build, found: list[Entry]) -> None:
    """Raises BuildError that lists all missing files and all names that cannot be."""
    missing = [each.source for each in found if each.source and not contained(build.folder, each.source).is_file()]
    names = [each.path for each in found] + [layout.NOTICE]
    odd = [name for name in names if not is_plain(name) or any(part.startswith(".") for part in name.split("/"))]
    folded = [name.casefold() for name in names]
    odd += [name for name in names if folded.count(name.casefold()) > 1]
    if missing:
        cure = "validate" if all(str(name).startswith(f"{layout.SELFTEST}/") for name in missing) else "export"
        raise BuildError(f"{build.folder} is incomplete, it lacks {', '.join(map(str, missing[:10]))}; {cure} it again")
    if odd:
        raise BuildError(f"{build.folder} has names that no bundle may have: {', '.join(map(ascii, odd[:10]))}")
