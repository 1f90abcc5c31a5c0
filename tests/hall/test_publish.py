"""Publishing: whole or not at all, never over something foreign, nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastvlm import steps
from fastvlm.errors import OutputError
from fastvlm.publish import check_output, replace_file, staged_folder

MANIFEST = '{"schema": "0.1", "fastvlm_version": "0", "files": {"content": {}}}'


def make_build(target: Path, text: str, overwrite: bool = False) -> None:
    with staged_folder(target, overwrite) as stage:
        (stage / "manifest.json").write_text(MANIFEST)
        (stage / "content").write_text(text)


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_appears_whole_and_alone(tmp_path: Path) -> None:
    make_build(tmp_path / "a" / "build", "one")
    assert everything_in(tmp_path) == ["a", "a/build", "a/build/content", "a/build/manifest.json"]


def test_failure_leaves_nothing_not_even_parents(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "a" / "b" / "build", False) as stage:
        raise ZeroDivisionError((stage / "half").write_text(""))
    assert everything_in(tmp_path) == []


def test_failure_keeps_the_older_build(tmp_path: Path) -> None:
    make_build(tmp_path / "build", "old")
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "build", True):
        raise KeyboardInterrupt
    assert (tmp_path / "build" / "content").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_existing_output_needs_overwrite(tmp_path: Path) -> None:
    make_build(tmp_path / "build", "old")
    with pytest.raises(OutputError, match="--overwrite"):
        check_output(tmp_path / "build", overwrite=False)
    make_build(tmp_path / "build", "new", overwrite=True)
    assert (tmp_path / "build" / "content").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("manifest", [None, "{}", "[]", "not json", '{"manifest_version": 3}'])
def test_overwrite_spares_what_is_not_ours(tmp_path: Path, manifest: str | None) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters.txt").write_text("dear")
    if manifest is not None:
        (home / "manifest.json").write_text(manifest)
    before = everything_in(tmp_path)
    with pytest.raises(OutputError, match="not made by fastvlm"):
        check_output(home, overwrite=True)
    assert everything_in(tmp_path) == before


def test_overwrite_refuses_what_became_foreign_meanwhile(tmp_path: Path) -> None:
    make_build(tmp_path / "build", "old")
    with pytest.raises(OutputError, match="not made by fastvlm"), staged_folder(tmp_path / "build", True):
        (tmp_path / "build" / "manifest.json").unlink()
    assert everything_in(tmp_path) == ["build", "build/content"]


def test_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine").write_text("")
    with pytest.raises(OutputError, match="--overwrite"), staged_folder(tmp_path / "build", False):
        shutil.copytree(foreign, tmp_path / "build")
    shutil.rmtree(foreign)
    assert everything_in(tmp_path) == ["build", "build/mine"]


def test_empty_folder_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    make_build(tmp_path / "build", "new", overwrite=True)
    assert (tmp_path / "build" / "content").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_file_in_the_way(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "file", overwrite)
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "file" / "below", overwrite)
    assert (tmp_path / "file").read_text() == "mine"


def test_link_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    make_build(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    make_build(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "content").read_text() == "new"


def test_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="leads nowhere"):
        check_output(tmp_path / "link", overwrite=True)


def test_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        check_output(tmp_path / ("x" * 300), overwrite=False)


def test_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no space left"), staged_folder(tmp_path / "build", False):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert everything_in(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "build", False) as stage:
        (stage / "absent").read_bytes()


def test_published_folder_has_usual_permissions(tmp_path: Path) -> None:
    make_build(tmp_path / "build", "x")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "build").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "name", ["notes.txt", "photos/me.png", "selftests", "selftest/mine.txt", "report/mine.txt", "report.html"]
)
def test_overwrite_spares_what_others_put_into_a_build(tmp_path: Path, name: str) -> None:
    make_build(tmp_path / "build", "old")
    mine = tmp_path / "build" / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(OutputError, match="others put there"):
        make_build(tmp_path / "build", "new", overwrite=True)
    assert (mine.read_text(), (tmp_path / "build" / "content").read_text()) == ("mine", "old")


def test_a_build_with_a_linked_folder_is_not_replaced(tmp_path: Path) -> None:
    make_build(tmp_path / "build", "old")
    (tmp_path / "build" / "link").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="others put there"):
        check_output(tmp_path / "build", overwrite=True)


def test_what_validation_and_the_finder_add_may_be_replaced(tmp_path: Path) -> None:
    make_build(tmp_path / "build", "old")
    for name in ("validation.json", "selftest/picture.png", ".DS_Store", f".selftest.stage-{'0' * 16}/half"):
        place = tmp_path / "build" / name
        place.parent.mkdir(exist_ok=True)
        place.write_text("")
    make_build(tmp_path / "build", "new", overwrite=True)
    assert everything_in(tmp_path) == ["build", "build/content", "build/manifest.json"]


def test_folders_that_only_look_like_stages_are_left_alone(tmp_path: Path) -> None:
    names = [".build.stage-mine", f".build.stage-{'0' * 17}", f".build.older-{'g' * 16}", f".builds.stage-{'0' * 16}"]
    for name in names:
        (tmp_path / name).mkdir()
    make_build(tmp_path / "build", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "build"])


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which two folders cannot trade names in one step."""

    def unsupported(*_: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(steps, "exchange", unsupported)


@pytest.mark.usefixtures("no_exchange")
def test_exchange_without_kernel_support(tmp_path: Path) -> None:
    make_build(tmp_path / "build", "old")
    make_build(tmp_path / "build", "new", overwrite=True)
    assert (tmp_path / "build" / "content").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, PermissionError])
@pytest.mark.parametrize("done", [1, 2], ids=["after the first rename", "after the second"])
def test_interrupted_between_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException], done: int
) -> None:
    """One whole build is at the name, whichever; the next run leaves nothing else."""
    make_build(tmp_path / "build", "old")
    rename, calls = os.rename, []

    def interrupted(first: Path, second: Path) -> None:
        rename(first, second)
        calls.append(second)
        if len(calls) == done:
            raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", interrupted)
        with pytest.raises(interruption):
            make_build(tmp_path / "build", "new", overwrite=True)
    assert (tmp_path / "build" / "content").read_text() == ("old", "new")[done - 1]
    make_build(tmp_path / "build", "newer", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["build"]


KILLED = """
import errno, os, signal, sys
from fastvlm import publish, steps
def unsupported(*_):
    raise OSError(errno.EINVAL, "")
rename, left = os.rename, [int(sys.argv[2])]
def killed(first, second):
    rename(first, second)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
steps.exchange, os.rename = unsupported, killed
with publish.staged_folder(sys.argv[1], True) as stage:
    (stage / "manifest.json").write_text('{"schema": "0.1", "fastvlm_version": "0", "files": {"content": {}}}')
    (stage / "content").write_text("new")
"""


@pytest.mark.parametrize(("done", "text"), [(1, "old"), (2, "new")])
def test_killed_between_two_renames_no_build_is_lost(root: Path, tmp_path: Path, done: int, text: str) -> None:
    make_build(tmp_path / "build", "old")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "build"), str(done)]
    assert subprocess.run(command, cwd=root, check=False).returncode == -signal.SIGKILL
    with pytest.raises(OutputError, match="--overwrite"):
        make_build(tmp_path / "build", "newer")
    assert (tmp_path / "build" / "content").read_text() == text
    make_build(tmp_path / "build", "newer", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["build"]


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="atomic exchange is known there only")
def test_readers_never_see_a_gap(tmp_path: Path) -> None:
    make_build(tmp_path / "build", "0")
    gaps: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                (tmp_path / "build" / "content").read_text()
            except FileNotFoundError as gap:
                gaps.append(str(gap))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(20):
            make_build(tmp_path / "build", str(turn), overwrite=True)
    finally:
        done.set()
        reader.join()
    assert gaps == []


HOLDER = """
import sys, time
from fastvlm.publish import staged_folder
with staged_folder(sys.argv[1], False) as stage:
    (stage / "half").write_text("")
    print("ready", flush=True)
    time.sleep(60)
"""


def start_holder(root: Path, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(target)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    return holder


def test_stages_of_the_dead_are_removed_those_of_the_living_are_not(root: Path, tmp_path: Path) -> None:
    with start_holder(root, tmp_path / "build") as dead:
        dead.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    with start_holder(root, tmp_path / "build") as living:
        assert not left.exists()
        (stage,) = tmp_path.iterdir()
        make_build(tmp_path / "build", "new")
        assert (stage / "half").exists()
        living.kill()
    make_build(tmp_path / "build", "newer", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["build"]


def test_replace_file(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", b"one")
    replace_file(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(OutputError, match="cannot write"):
        replace_file(tmp_path / "absent" / "file", b"")


def test_a_file_of_which_the_disk_keeps_less_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "file", b"one")
    monkeypatch.setattr(steps, "write", lambda path, data: path.write_bytes(data[:-1]))
    with pytest.raises(OutputError, match="the disk kept 1,999 of 2,000 bytes"):
        replace_file(tmp_path / "file", bytes(2000))
    assert (tmp_path / "file").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]
