"""An export in small: what every publishing goes through, in milliseconds, with parts, temporary files and a manifest.

It also holds what the suites of faults do to a process: let it die, or fail, at its n-th step or line, with or without
what a power cut takes (files that were never synced), without locks, and where two folders cannot trade names.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ordeal import Outcome

from fastvlm import steps
from fastvlm.hashes import hash_tree
from fastvlm.manifest import NAME, check_files, read_manifest, write_manifest
from fastvlm.parts import Parts
from fastvlm.publish import staged_folder
from fastvlm.scratch import temporary_in

WEIGHTS, TABLE, TEMPORARY = 60_000, 20_000, 90_000  # bytes
FIELDS: dict[str, Any] = {
    name: {} for name in ("source", "model", "image", "prompt", "functions", "packages", "compression")
}
HALL = str(Path(steps.__file__).parent)


def stand_in(target: Path, word: str, *, overwrite: bool = True, stop: Callable[[], object] | None = None) -> None:
    """Publishes a build of the given content; `stop` is called when its first part is finished."""
    with staged_folder(target, overwrite, resume=True, needed=150_000, check=whole) as stage, temporary_in(stage):
        parts = Parts(stage)
        parts.want({"Model.mlpackage": {"word": word}, "embeddings.bin": {"word": word}})
        parts.make("Model.mlpackage", {"word": word}, lambda path: _package(path, word))
        if stop is not None:
            stop()
        parts.make("embeddings.bin", {"word": word}, lambda path: _table(path, word))
        (stage / "tokenizer").mkdir()
        (stage / "tokenizer" / "tokenizer.json").write_text(f'"{word}"')
        files = parts.hashes | hash_tree(stage, (NAME, ".parts", ".tmp", *parts.names))
        write_manifest(stage / NAME, {**FIELDS, "fastvlm_version": "0", "licence": word, "files": files})


def whole(build: Path) -> str:
    """Returns the word of a build; raises BuildError unless it is complete to the last byte."""
    manifest = read_manifest(build)
    check_files(build, manifest)
    return str(manifest["licence"])


def _package(path: Path, word: str) -> dict[str, int]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(word[:1].encode() * TEMPORARY)
    (path / "Data").mkdir(parents=True)
    (path / "Data" / "weight.bin").write_bytes(word[:1].encode() * WEIGHTS)
    (path / "Manifest.json").write_text(f'"{word}"')
    return {}


def _table(path: Path, word: str) -> dict[str, int]:
    path.write_bytes(word[-1:].encode() * TABLE)
    return {}


def failed(outcomes: list[Outcome]) -> list[Outcome]:
    """Returns those that did not pass: a case here makes its own assertions, and an error that ends it is none."""
    return [outcome for outcome in outcomes if outcome.kind != "passed"]


def beside(folder: Path) -> list[str]:
    """Returns all that lies in a folder, hidden names too."""
    return sorted(path.name for path in folder.iterdir())


class Steps:
    """Counts the steps of this process, knows what was synced, and does something before the n-th (0: never)."""

    def __init__(self, act: Callable[[], object] = lambda: None, at: int = 0) -> None:
        self.act, self.at, self.seen = act, at, 0
        self.names: list[tuple[str, Path]] = []
        self.synced: set[int] = set()

    def __call__(self, step: str, path: Path) -> None:
        self.seen += 1
        self.names.append((step, path))
        if self.seen == self.at:
            self.act()
        if step == "sync":
            self.synced.add(path.lstat().st_ino)


def killed(work: Callable[[], object], at: int, *, power: Path | None = None) -> bool:
    """Runs `work` in a child that dies before its step `at`; False where it was done before.

    `power`: the folder whose files lose, in the same moment, whatever was never synced.
    """

    def run() -> None:
        def die() -> NoReturn:
            for file in power.rglob("*") if power else ():
                if file.is_file() and file.stat().st_ino not in watch.synced and file.name != "old":
                    os.truncate(file, 0)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("still there")

        watch = Steps(die, at)
        steps.before = watch
        if power:
            watch.synced |= {file.stat().st_ino for file in power.rglob("*")}
        work()

    return _died(run)


def killed_at_line(work: Callable[[], object], at: int) -> bool:
    """The same at the line `at` that is executed of the hall's code, which is any moment between two calls."""
    return _died(lambda: _by_lines(work, at))


def lines_of(work: Callable[[], object]) -> int:
    """Returns how many lines of the hall's code `work` executes."""
    return _by_lines(work, 0)


def _by_lines(work: Callable[[], object], at: int) -> int:
    count = 0

    def line(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, _: str, __: object) -> Any:
        return line if frame.f_code.co_filename.startswith(HALL) else None

    sys.settrace(call)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def _died(run: Callable[[], object]) -> bool:
    """Whether a child that runs this is killed; AssertionError where it ends in another way than well."""
    child = os.fork()
    if not child:
        code = 3
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"ended with {status}"
    return status == signal.SIGKILL


def without_locks() -> None:
    """Lets this process find no locks, as on some network file systems."""

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.flock = refuse


def without_exchange() -> None:
    """Lets this process find a file system on which two folders cannot trade names in one step."""

    def refuse(first: Path, second: Path) -> NoReturn:
        steps.before("exchange", second)
        raise OSError(errno.EINVAL, "Invalid argument")

    steps.exchange = refuse  # type: ignore[assignment]


@contextmanager
def quick_disk(otherwise: Path) -> Iterator[Path]:
    """A new folder on a disk in memory, where there is one: thousands of syncs would wait for a real one."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 200_000_000):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="fastvlm-tests-", dir=memory, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def restored() -> Iterator[None]:
    """Undoes what the two above and a suite have done to this process."""
    kept = fcntl.flock, steps.exchange, steps.before
    try:
        yield
    finally:
        fcntl.flock, steps.exchange, steps.before = kept
