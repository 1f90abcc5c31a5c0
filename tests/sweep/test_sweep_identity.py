"""What a case's id is made of, what changes while a sweep runs, and names that lead where the spec says."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from specs import Write
from typed import Run

from fastvlm.errors import HubError, UsageError
from fastvlm.progress import Progress
from fastvlm_ref.checkpoint.opening import TINY
from validation.sweep import identity, working
from validation.sweep.cases import planned
from validation.sweep.identity import SAMPLE, SAMPLES, checkpoint_digest, code, what_changed
from validation.sweep.rows import open_folder, read_row
from validation.sweep.spec import Named, read_spec


def test_two_entries_that_mean_the_same_are_refused(spec: Write, tmp_path: Path) -> None:
    for name in ("own.yaml", "copy.yaml"):
        (tmp_path / name).write_text("language: int8\n")
    with pytest.raises(UsageError, match=r"own\.yaml, reds and tiny at 256, copy\.yaml, reds are the same"):
        planned(read_spec(spec("checkpoints: [tiny]", "schemes: [own.yaml, copy.yaml]", "images: [reds]")))
    shutil.copytree(TINY, tmp_path / "twin")  # with its times
    with pytest.raises(UsageError, match="tiny at 256, fp16, reds and twin at 256, fp16, reds are the same"):
        planned(read_spec(spec("checkpoints: [tiny, twin]", "images: [reds]")))


def test_files_of_one_size_and_time_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    large = tmp_path / "model.safetensors"
    seen = set()
    for content in (b"a", b"b"):
        large.write_bytes(content * (2 * SAMPLES * SAMPLE))
        (tmp_path / "config.json").write_bytes(content)
        for file in tmp_path.iterdir():
            os.utime(file, ns=(1, 1))
        seen.add(checkpoint_digest(str(tmp_path)))
    with large.open("r+b") as handle:  # the last bytes count too
        handle.seek(-1, os.SEEK_END)
        handle.write(b"c")
    os.utime(large, ns=(1, 1))
    assert len({*seen, checkpoint_digest(str(tmp_path))}) == 3


def test_all_code_and_the_libraries_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"validation", "fastvlm"} < set(identity.ROOMS)
    first = code()
    code.cache_clear()
    monkeypatch.setattr(identity, "version", lambda name: "0")
    assert code() != first
    code.cache_clear()


def test_code_is_read_once_and_not_for_each_build(spec: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(identity, "code_digest", lambda rooms: read.append(rooms) or "code")
    code.cache_clear()
    planned(read_spec(spec("checkpoints: [tiny]", "image_sizes: [64, 128, 192]", "schemes: [fp16, int8]")))
    code.cache_clear()
    assert len(read) == 1


def test_what_changes_while_a_sweep_runs_is_no_result(
    spec: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "own.yaml").write_text("language: int8\n")
    (making,) = planned(read_spec(spec("checkpoints: [model]", "schemes: [own.yaml]", "images: [reds, blues]")))
    reds, blues = making.cases
    out = tmp_path / "out"
    name = open_folder(out)
    shutil.copy(tmp_path / "reds" / "red.png", tmp_path / "reds" / "more.png")
    assert (what_changed(making, reds), what_changed(making, blues)) == ("the pictures of reds", None)
    (tmp_path / "reds" / "more.png").unlink()
    (tmp_path / "own.yaml").write_text("language: lut6\n")
    assert what_changed(making, reds) == f"the checkpoint {tmp_path / 'model'} or the recipe {tmp_path / 'own.yaml'}"
    monkeypatch.setattr(working, "_export", lambda *_: pytest.fail("a build was made of what has changed"))
    working.work(str(out), name, making.as_json(), False)
    row = read_row(out, reds.id)
    assert row is not None
    assert row["status"] == "error"
    assert "own.yaml changed since the sweep began; type the same command again" in row["error"]
    (tmp_path / "own.yaml").write_text("language: int8\n")
    os.utime(tmp_path / "model" / "config.json")
    changed = what_changed(making, reds)
    assert changed is not None
    assert str(tmp_path / "model") in changed


def test_pictures_that_change_while_they_are_compared_give_no_result(
    spec: Write, exported_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (making,) = planned(read_spec(spec("checkpoints: [tiny]", "images: [reds]")))
    out = tmp_path / "out"
    name = open_folder(out)
    shutil.copytree(exported_tiny, out / "builds" / making.folder)

    def compared(*_: object) -> dict[str, Any]:
        shutil.copy(tmp_path / "blues" / "blue.png", tmp_path / "reds" / "more.png")
        return {"status": "passed"}

    monkeypatch.setattr(working, "_compared", compared)
    working.work(str(out), name, making.as_json(), False)
    row = read_row(out, making.cases[0].id)
    assert row is not None
    assert row["error"].startswith("the pictures of reds changed since the sweep began")


@pytest.mark.parametrize("word", ["~nobody9/x", "a" * 300, "a/" + "b" * 300, "~"])
@pytest.mark.parametrize("key", ["checkpoints", "schemes", "images"])
def test_odd_names_are_named(key: str, word: str, spec: Write, run: Run, tmp_path: Path) -> None:
    lines = [f'{key}: ["{word}"]', *(["checkpoints: [tiny]"] if key != "checkpoints" else [])]
    found = run("sweep", spec(*lines), "-o", tmp_path / "out")
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1), found.stderr
    assert found.stderr.startswith(f"Error: sweep: {key}: "), found.stderr


def test_a_context_without_end_is_refused(spec: Write) -> None:
    with pytest.raises(UsageError, match=r"context: 10+\.*, expected a positive whole number up to 1048576"):
        read_spec(spec("checkpoints: [tiny]", f"context: {10**30}"))


def test_a_file_of_another_form_is_told_with_a_line_of_a_sweep(spec: Write) -> None:
    with pytest.raises(UsageError, match=r"expected lines of the form `checkpoints: \[tiny\]`"):
        read_spec(spec("- tiny"))


def test_the_current_folder_changes_nothing(spec: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    for name in ("model", "photos", "owner/name"):
        (elsewhere / name).mkdir(parents=True)
    (elsewhere / "own.yaml").write_text("language: int8\n")
    monkeypatch.chdir(elsewhere)
    read = read_spec(spec("checkpoints: [model, owner/name]", "schemes: [own.yaml]", "images: [photos]"))
    assert read.checkpoints == tuple(Named(name, str(tmp_path / name)) for name in ("model", "owner/name"))
    assert read.schemes == (Named("own.yaml", str(tmp_path / "own.yaml")),)
    assert read.images == (Named("photos", str(tmp_path / "photos")),)


def test_a_recipe_named_like_a_scheme_is_meant_by_its_path_alone(spec: Write, tmp_path: Path) -> None:
    (tmp_path / "int8").write_text("language: lut6\n")
    read = read_spec(spec("checkpoints: [tiny]", "schemes: [int8, ./int8]"))
    assert [each.at for each in read.schemes] == ["int8", str(tmp_path / "int8")]
    assert len({making.id for making in planned(read)}) == 2


def test_nothing_is_fetched_while_anything_is_wrong(
    spec: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetched(word: str, progress: Progress) -> str:
        if "/" in word and not word.startswith("/"):
            asked.append(word)
            raise HubError("no connection")
        return word

    monkeypatch.setattr("validation.sweep.cases.on_disk", fetched)
    for wrong in ("schemes: [int9]", "images: [nowhere]", "image_sizes: [100]"):
        with pytest.raises(UsageError) as caught:
            planned(read_spec(spec("checkpoints: [owner/name, tiny]", wrong)))
        assert "no connection" not in str(caught.value)
    assert asked == []
    with pytest.raises(UsageError, match="no connection"):
        planned(read_spec(spec("checkpoints: [owner/name, tiny]")))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such names")
def test_names_that_are_no_text(spec: Write, tmp_path: Path) -> None:
    (tmp_path / "reds" / os.fsdecode(b"\xff.png")).write_bytes((tmp_path / "reds" / "red.png").read_bytes())
    with pytest.raises(UsageError, match="its name is not UTF-8, and reports name it; rename the file"):
        planned(read_spec(spec("checkpoints: [tiny]", "images: [reds]")))
    odd = tmp_path / os.fsdecode(b"\xfe")
    odd.mkdir()
    with pytest.raises(UsageError, match="its folder's name is not UTF-8"):
        read_spec(spec("checkpoints: [tiny]").rename(odd / "sweep.yaml"))


def test_questions_without_their_pictures_and_files_that_may_not_be_read(
    spec: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "q.jsonl").write_text('{"image": "gone.png", "prompt": "What?"}\n')

    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied", "red.png")

    monkeypatch.setattr(identity, "sha256_file", refuse)
    with pytest.raises(UsageError) as caught:
        planned(read_spec(spec("checkpoints: [tiny]", "images: [q.jsonl, reds]")))
    assert "line 1: no picture at gone.png" in str(caught.value)
    assert "images: red.png: Permission denied" in str(caught.value)
