"""Finished parts of interrupted work: used again where every byte is as it was, made anew wherever it is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvlm import publish
from fastvlm.parts import RECORDS, Parts, digest, tidy
from fastvlm.publish import kept_bytes, staged_folder

MANIFEST = '{"schema": "0.1", "fastvlm_version": "0", "files": {"one/a": {}, "one/b/c": {}, "two": {}}}'
MADE_OF = {"of": "this"}


def write_one(path: Path) -> dict[str, int]:
    """A part that is a folder."""
    (path / "b").mkdir(parents=True)
    (path / "a").write_bytes(b"aaaa")
    (path / "b" / "c").write_bytes(b"cc")
    return {"clamped": 2}


def write_two(path: Path) -> dict[str, int]:
    """A part that is a file."""
    path.write_bytes(b"22")
    return {}


def refuse(path: Path) -> dict[str, int]:
    raise AssertionError(f"{path} was written although it was finished")


def all_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A stage with both parts finished, as an interrupted run leaves it."""
    stage = tmp_path / "stage"
    stage.mkdir()
    parts = Parts(stage)
    assert parts.make("one", MADE_OF, write_one) == {"clamped": 2}
    assert parts.make("two", MADE_OF, write_two) == {}
    tidy(stage)
    return stage


def test_a_finished_part_is_taken_over_with_its_result(stage: Path, heard: Any) -> None:
    parts = Parts(stage, heard)
    assert parts.want({"one": MADE_OF, "two": MADE_OF}) == {"one": 6, "two": 2}
    assert parts.make("one", MADE_OF, refuse) == {"clamped": 2}
    assert parts.make("two", MADE_OF, refuse) == {}
    assert heard.notes == [f"{name} was finished by an interrupted run and is taken over" for name in ("one", "two")]
    assert parts.names == ["one", "two"]
    assert {path: entry["bytes"] for path, entry in parts.hashes.items()} == {"one/a": 4, "one/b/c": 2, "two": 2}


def test_what_makes_a_part_is_told_by_content_not_by_order() -> None:
    assert digest({"a": 1, "b": [2, {"c": 3}]}) == digest({"b": (2, {"c": 3}), "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def _damage_record(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(stage: Path) -> None:
        path = stage / RECORDS / "one.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def _forge(field: str, value: Any) -> Callable[[Path], None]:
    """A record that agrees with its own hash."""

    def change(said: dict[str, Any]) -> dict[str, Any]:
        record = {**said["record"], field: value}
        return {"record": record, "sha256": digest(record)}

    return _damage_record(change)


def _truncate_record(stage: Path) -> None:
    path = stage / RECORDS / "one.json"
    path.write_bytes(path.read_bytes()[:-1])


def _link_record(stage: Path) -> None:
    path = stage / RECORDS / "one.json"
    shutil.move(path, stage.parent / "record")
    path.symlink_to(stage.parent / "record")


def _link_file(stage: Path) -> None:
    shutil.move(stage / "one" / "a", stage.parent / "a")
    (stage / "one" / "a").symlink_to(stage.parent / "a")


def _link_folder(stage: Path) -> None:
    shutil.move(stage / "one", stage.parent / "one")
    (stage / "one").symlink_to(stage.parent / "one")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a changed byte": lambda stage: (stage / "one" / "a").write_bytes(b"aaab"),
    "a longer file": lambda stage: (stage / "one" / "a").write_bytes(b"aaaaa"),
    "an empty file": lambda stage: (stage / "one" / "b" / "c").write_bytes(b""),
    "a missing file": lambda stage: (stage / "one" / "b" / "c").unlink(),
    "an extra file": lambda stage: (stage / "one" / "more").write_bytes(b""),
    "an extra folder": lambda stage: (stage / "one" / "more").mkdir(),
    "a link to a file": _link_file,
    "a link to a folder": _link_folder,
    "a file with a second name": lambda stage: os.link(stage / "one" / "a", stage.parent / "a"),
    "a pipe": lambda stage: os.mkfifo(stage / "one" / "pipe"),
    "no part": lambda stage: shutil.rmtree(stage / "one"),
    "another kind of part": lambda stage: (shutil.rmtree(stage / "one"), (stage / "one").write_bytes(b"")),
    "no record": lambda stage: (stage / RECORDS / "one.json").unlink(),
    "half a record": _truncate_record,
    "a record that is no JSON": lambda stage: (stage / RECORDS / "one.json").write_text("{"),
    "a record that is no text": lambda stage: (stage / RECORDS / "one.json").write_bytes(b"\xff\xfe"),
    "a record that is a list": _damage_record(lambda record: [record]),
    "a record that is deep": lambda stage: (stage / RECORDS / "one.json").write_text("[" * 100_000),
    "a record of another result": _damage_record(lambda said: {**said, "record": {**said["record"], "result": {}}}),
    "a record without fields": _damage_record(lambda _: {"record": {}, "sha256": digest({})}),
    **{
        f"a record whose {field} is {value}": _forge(field, value)
        for field, value in (
            ("files", 3),
            ("files", [1]),
            ("files", {"one/a": 4}),
            ("files", {"one/a": {}}),
            ("result", 3),
        )
    },
    "a record that is a link": _link_record,
    "a record that is a folder": lambda stage: (
        (stage / RECORDS / "one.json").unlink(),
        (stage / RECORDS / "one.json").mkdir(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("through", ["want and make", "make alone"])
def test_what_is_damaged_is_made_anew(stage: Path, damage: str, through: str, heard: Any) -> None:
    DAMAGES[damage](stage)
    parts = Parts(stage, heard)
    if through == "want and make":
        parts.want({"one": MADE_OF, "two": MADE_OF})
    written = []
    assert parts.make("one", MADE_OF, lambda path: (written.append(path), write_one(path))[1]) == {"clamped": 2}
    assert parts.make("two", MADE_OF, refuse) == {}
    assert len(written) == 1
    assert (stage / "one" / "a").read_bytes() == b"aaaa"
    assert not (stage / "one").is_symlink()
    tidy(stage)
    assert all_in(stage) == [
        RECORDS,
        f"{RECORDS}/one.json",
        f"{RECORDS}/two.json",
        "one",
        "one/a",
        "one/b",
        "one/b/c",
        "two",
    ]
    assert not any(note.startswith("one was finished") for note in heard.notes)
    assert Parts(stage).make("one", MADE_OF, refuse) == {"clamped": 2}


def test_parts_of_something_else_are_dropped(stage: Path, heard: Any) -> None:
    parts = Parts(stage, heard)
    assert parts.want({"one": {"of": "that"}, "three": MADE_OF}) == {}
    assert all_in(stage) == [RECORDS]
    assert heard.notes == [
        f"{name} of an interrupted run does not fit this one and is not used" for name in ("one", "two")
    ]


def test_make_alone_looks_at_what_made_a_part(stage: Path) -> None:
    assert Parts(stage).make("one", {"of": "that"}, lambda path: (write_one(path), {"clamped": 3})[1]) == {"clamped": 3}


def test_a_part_that_fails_is_not_there(tmp_path: Path) -> None:
    def fail(path: Path) -> dict[str, int]:
        write_one(path)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Parts(tmp_path).make("one", MADE_OF, fail)
    assert not (tmp_path / "one").exists()
    tidy(tmp_path)
    assert all_in(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a\0"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        Parts(tmp_path).make(name, MADE_OF, write_two)


def build(target: Path, overwrite: bool = False, end: BaseException | None = None, after: int = 2) -> list[str]:
    """Makes a build of two parts, ended by `end` after so many of them; returns which were written."""
    written = []

    def noted(write: Callable[[Path], dict[str, int]]) -> Callable[[Path], dict[str, int]]:
        return lambda path: (written.append(path.name), write(path))[1]

    with staged_folder(target, overwrite, resume=True) as stage:
        parts = Parts(stage)
        for number, (name, write) in enumerate({"one": write_one, "two": write_two}.items()):
            if end is not None and number == after:
                (parts._records / "half").mkdir(exist_ok=True)
                (parts._records / "half" / name).write_bytes(b"unfinished")
                raise end
            parts.make(name, MADE_OF, noted(write))
        (stage / "manifest.json").write_text(MANIFEST)
        if end is not None:
            raise end
    return written


WHOLE = ["build", "build/manifest.json", "build/one", "build/one/a", "build/one/b", "build/one/b/c", "build/two"]
INTERRUPTS = [KeyboardInterrupt(), SystemExit(143)]


def test_a_published_build_holds_no_records(tmp_path: Path) -> None:
    assert build(tmp_path / "build") == ["one", "two"]
    assert all_in(tmp_path) == WHOLE
    assert build(tmp_path / "build", overwrite=True) == ["one", "two"]
    assert all_in(tmp_path) == WHOLE


@pytest.mark.parametrize("end", INTERRUPTS, ids=repr)
@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupt_keeps_what_is_finished_and_says_where(tmp_path: Path, end: BaseException, after: int) -> None:
    with pytest.raises(type(end)) as caught:
        build(tmp_path / "a" / "build", end=type(end)(), after=after)
    (stage,) = (tmp_path / "a").iterdir()
    assert caught.value.__notes__ == [f"the finished parts are kept in {stage}, and the same command goes on with them"]
    names = ["one", "two"][:after]
    assert sorted(os.listdir(stage)) == [RECORDS, *names]
    assert sorted(os.listdir(stage / RECORDS)) == [f"{name}.json" for name in names]
    assert build(tmp_path / "a" / "build") == ["one", "two"][after:]
    assert all_in(tmp_path / "a") == WHOLE


def test_a_second_interrupt_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever presses Ctrl-C twice meets the run while it removes what is unfinished."""

    def impatient(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "tidy", impatient)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "build", end=KeyboardInterrupt(), after=1)
    assert build(tmp_path / "build") == ["two"]
    assert all_in(tmp_path) == WHOLE


@pytest.mark.parametrize("end", INTERRUPTS, ids=repr)
def test_an_interrupt_before_any_part_leaves_nothing(tmp_path: Path, end: BaseException) -> None:
    with pytest.raises(type(end)) as caught:
        build(tmp_path / "a" / "build", end=type(end)(), after=0)
    assert not hasattr(caught.value, "__notes__")
    assert all_in(tmp_path) == []


@pytest.mark.parametrize("left", [False, True])
def test_any_other_failure_leaves_nothing(tmp_path: Path, left: bool) -> None:
    if left:
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "build", end=KeyboardInterrupt(), after=1)
    with pytest.raises(ZeroDivisionError):
        build(tmp_path / "build", end=ZeroDivisionError())
    assert all_in(tmp_path) == []


def test_the_older_build_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    build(tmp_path / "build")
    (tmp_path / "build" / "two").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "build", overwrite=True, end=KeyboardInterrupt())
    assert (tmp_path / "build" / "two").read_bytes() == b"old"
    assert build(tmp_path / "build", overwrite=True) == []
    assert (tmp_path / "build" / "two").read_bytes() == b"22"
    assert all_in(tmp_path) == WHOLE


def test_an_interrupt_when_the_new_build_has_the_name_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "build")
    swap = publish.swap

    def interrupted(*given: Any) -> None:
        swap(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "swap", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "build", overwrite=True)
    assert all_in(tmp_path) == WHOLE


def test_a_stage_of_another_user_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "build", end=KeyboardInterrupt())
    another = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another)
    assert build(tmp_path / "build") == ["one", "two"]
    assert all_in(tmp_path) == WHOLE


def test_of_two_stages_the_later_is_taken_and_the_other_removed(tmp_path: Path) -> None:
    for name, after in (("first", 1), ("second", 2)):
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / name, end=KeyboardInterrupt(), after=after)
    for number, letter in (("second", "1"), ("first", "0")):
        (stage,) = (path for path in tmp_path.iterdir() if path.name.startswith(f".{number}."))
        os.utime(stage / RECORDS, (int(letter), int(letter)))
        stage.rename(tmp_path / f".build.stage-{letter * 16}")
    assert build(tmp_path / "build") == []
    assert all_in(tmp_path) == WHOLE


def test_what_a_killed_run_left_beside_its_parts_is_not_published(tmp_path: Path) -> None:
    """A killed run tidies nothing."""
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "build", end=KeyboardInterrupt(), after=1)
    (stage,) = tmp_path.iterdir()
    for name in ("two", "tokenizer/vocab.json", f"{RECORDS}/half/two/a", f"{RECORDS}/three.json", f"{RECORDS}/one"):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text("{}")
    assert build(tmp_path / "build") == ["two"]
    assert all_in(tmp_path) == WHOLE


def test_other_work_at_the_same_place_removes_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "build", end=KeyboardInterrupt())
    with staged_folder(tmp_path / "build", False) as stage:
        assert os.listdir(stage) == []
    assert all_in(tmp_path) == ["build"]


HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_parts import MADE_OF, Parts, staged_folder, write_one
with staged_folder(Path(sys.argv[1]), False, resume=True) as stage:
    Parts(stage).make("one", MADE_OF, write_one)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_living_run_keeps_its_own(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "build"), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == "ready\n"
        (stage,) = tmp_path.iterdir()
        before = all_in(stage)
        assert kept_bytes(tmp_path / "build") == 0  # what it holds is not to be had
        assert build(tmp_path / "build") == ["one", "two"]
        assert all_in(stage) == before
        living.send_signal(signal.SIGKILL)
    assert kept_bytes(tmp_path / "build") == sum(file.stat().st_size for file in stage.rglob("*") if file.is_file()) > 0
    assert build(tmp_path / "build", overwrite=True) == ["two"]
    assert all_in(tmp_path) == WHOLE


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_parts

def run(target, moment):
    left = [moment]
    def killing(call):
        def killed(*given, **named):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **named)
        return killed
    for name in ("rename", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, name, killing(getattr(os, name)))
    test_parts.build(target, overwrite=True)
    os._exit(0)

folder = Path(sys.argv[1])
for moment in range(1, 200):
    place = folder / f"killed at {moment}"
    shutil.copytree(folder / "build", place / "build")
    child = os.fork()
    if child == 0:
        run(place / "build", moment)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        break
"""


def test_a_kill_at_any_moment_leaves_one_whole_build(root: Path, tmp_path: Path) -> None:
    """Before each call that changes the disk, one after the other; the next run leaves the new build alone."""
    build(tmp_path / "build")
    (tmp_path / "build" / "two").write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True)
    folders = list(tmp_path.glob("killed at *"))
    assert 20 < len(folders) < 199
    found, taken_over = set(), 0
    for folder in folders:
        assert all_in(folder / "build") == [name.removeprefix("build/") for name in WHOLE[1:]]
        found.add((folder / "build" / "two").read_bytes())
        taken_over += 2 - len(build(folder / "build", overwrite=True))
        assert (folder / "build" / "two").read_bytes() == b"22"
        assert all_in(folder) == WHOLE
    assert found == {b"old", b"22"}
    assert taken_over > 10
