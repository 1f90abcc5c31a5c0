"""A run's state: gone on from by the same run alone, refused when it is another's or damaged, removed at the end."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from training_rows import train, write_rows

from fastvlm import steps
from fastvlm.errors import CheckpointError, ImageError, OutputError
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.training import batches, loop
from fastvlm_ref.training.batches import Batch
from fastvlm_ref.training.finetune import finetune, finetune_stage
from fastvlm_ref.training.rows import Row, UserRows, read_rows, rows_hash
from fastvlm_ref.training.stages import Stage
from fastvlm_ref.training.state import StateFile

pytestmark = pytest.mark.usefixtures("one_thread")
STAGE = finetune_stage("stage3", 4, 1, 1e-3)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


@pytest.fixture
def foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    """No background process, which takes seconds to start."""
    made = batches.batches
    monkeypatch.setattr(loop, "batches", lambda *given, background: made(*given, background=False))


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Has every stage end after `steps`, as a run that was interrupted there."""
    monkeypatch.setattr("fastvlm_ref.training.finetune.train_stage", partial(loop.train_stage, stop_at=steps))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_checkpoint(folder).state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


class Noting(UserRows):
    """Rows that note which steps they were asked for."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.asked: list[int] = []

    def batch(self, stage: Stage, step: int, part: int) -> Batch:
        self.asked.append(step)
        return super().batch(stage, step, part)


def test_training_continues_where_it_stopped(rows: Path, tmp_path: Path) -> None:
    """Two steps, then two more from the state, give the weights of four; the first two are not made again."""
    asked: list[int] = []

    def run(work: str, stop_at: int | None = None) -> dict[str, Tensor]:
        model = load_checkpoint("tiny")
        assert model.tokenizer is not None
        source = Noting(read_rows(rows), model.tokenizer, model.config)
        loop.train_stage(model, STAGE, source, tmp_path / work, made_from={}, stop_at=stop_at, background=False)
        asked[:] = source.asked
        return model.state_dict()

    whole, half = run("whole"), run("cut", 2)
    assert not same(whole, half)
    assert same(whole, run("cut"))
    assert asked == [2, 3]


@pytest.mark.usefixtures("foreground")
def test_other_rows_are_learned_anew(rows: Path, tmp_path: Path) -> None:
    """The state of a published run is gone: the same command with other data never gives the older weights."""
    command = ("--checkpoint", "tiny", "-o", tmp_path / "out", "--steps", 2, "--batch", 1, "--overwrite", "--data")
    assert train(*command, rows).exit_code == 0
    first = weights(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out.work").iterdir()] == ["curve.jsonl"]
    other = tmp_path / "other.jsonl"
    other.write_text(rows.read_text().replace('"answer": "red"', '"answer": "wood"').replace('"blue"}', '"stone"}'))
    assert train(*command, other).exit_code == 0
    assert not same(first, weights(tmp_path / "out"))
    assert train(*command, rows).exit_code == 0
    assert same(first, weights(tmp_path / "out"))


def other_answers(rows: Path) -> dict[str, Any]:
    rows.write_text(rows.read_text().replace('"answer": "red"', '"answer": "green"'))
    return {}


def other_pictures(rows: Path) -> dict[str, Any]:
    Image.new("RGB", (120, 80), "green").save(rows.parent / "red.png")
    return {}


def other_weights(rows: Path) -> dict[str, Any]:
    folder = rows.parent / "tiny"
    shutil.copytree(load_checkpoint("tiny").source.folder, folder)  # type: ignore[union-attr]
    (folder / "generation_config.json").write_text('{"eos_token_id": [556, 558], "do_sample": true}')
    return {"checkpoint": folder}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_answers, "(rows)"),
        (other_pictures, "(rows)"),
        (other_weights, "(checkpoint)"),
        (lambda _: {"image_rule": "crop"}, "(image rule)"),
        (lambda _: {"system": "Be short."}, "(prompt)"),
        (lambda _: {"image_size": 128}, "(image size)"),
        (lambda _: {"stage": finetune_stage("stage3", 5, 2, 1e-4)}, "(batch, rate, steps)"),
    ],
)
@pytest.mark.usefixtures("foreground")
def test_an_interrupted_run_is_not_continued_with_anything_else(
    change: Callable[[Path], dict[str, Any]], said: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 1)
    given: dict[str, Any] = {"checkpoint": "tiny", "data": rows, "work": tmp_path / "work", "stage": STAGE}
    finetune(**given)
    finetune(**given)  # the same run goes on
    with pytest.raises(CheckpointError) as caught:
        finetune(**given | change(rows))
    assert said in str(caught.value)
    assert "remove this file" in str(caught.value)


def test_the_hash_of_rows_says_what_they_hold(rows: Path) -> None:
    read = read_rows(rows)
    assert rows_hash(read) == rows_hash(read_rows(rows))
    assert rows_hash(read) != rows_hash(read[::-1])
    moved = rows.parent / "moved"
    moved.mkdir()
    for file in (rows, *rows.parent.glob("*.png")):
        shutil.copy(file, moved)
    assert rows_hash(read) == rows_hash(read_rows(moved))


def saved(model: FastVLM, work: Path) -> dict[str, Any]:
    """Saves a good state of STAGE after one step, and returns it."""
    work.mkdir()
    learner = loop.Learner(model, STAGE)
    loop.prepare(model, STAGE)
    loop._save(StateFile(work, STAGE, {}), 1, learner, loop.optimiser(learner, STAGE))
    state: dict[str, Any] = torch.load(work / "stage3.pt")
    return state


def stored(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def damages(state: dict[str, Any]) -> dict[str, bytes]:
    """Files that are no state, by what is wrong with them."""
    projector = state["parts"]["projector"]
    return {
        "empty": b"",
        "cut": stored(state)[:100_000],
        "text": b"what is this",
        "a pickle of code": pickle.dumps(print),
        "a list": stored([1]),
        "foreign": stored({"model": {}}),
        "no step": stored({name: value for name, value in state.items() if name != "step"}),
        "steps beyond the end": stored(state | {"step": 99}),
        "no parts": stored(state | {"parts": {}}),
        "a part's tensor": stored(state | {"parts": state["parts"] | {"projector": {"0.bias": projector["0.bias"]}}}),
        "the optimiser": stored(state | {"adam": {}}),
        "heads": stored(state | {"heads": {"dense": torch.zeros(1)}}),
    }


def test_a_damaged_state_is_one_error_that_says_what_to_do(rows: Path, tmp_path: Path) -> None:
    model = load_checkpoint("tiny")
    assert model.tokenizer is not None
    source = UserRows(read_rows(rows), model.tokenizer, model.config)
    work = tmp_path / "work"
    go_on = partial(loop.train_stage, model, STAGE, source, work, made_from={}, stop_at=1, background=False)
    for name, content in damages(saved(model, work)).items():
        (work / "stage3.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="remove it to start anew") as caught:
            go_on()
        assert "\n" not in str(caught.value), name
    (work / "stage3.pt").unlink()
    saved(model, tmp_path / "good")
    shutil.copy(tmp_path / "good" / "stage3.pt", work)
    go_on()


def test_a_state_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(steps, "before", lambda step, _: calls.append(step))
    StateFile(tmp_path, STAGE, {}).save(1, {}, {}, {})
    assert calls == ["sync", "rename", "sync", "remove"]


def test_what_an_older_version_left_is_named_and_stays(rows: Path, tmp_path: Path, heard: Any) -> None:
    model = load_checkpoint("tiny")
    assert model.tokenizer is not None
    source = UserRows(read_rows(rows), model.tokenizer, model.config)
    for name in ("stage3.new", "stage2.new", "stage3.pt"):
        (tmp_path / name).write_bytes(b"half of a state")
    with pytest.raises(CheckpointError, match="remove it to start anew"):
        loop.train_stage(model, STAGE, source, tmp_path, made_from={}, progress=heard)
    (note,) = heard.notes
    assert note.startswith(f"{tmp_path / 'stage3.new'} looks like what an older fastvlm left")
    assert (tmp_path / "stage3.new").read_bytes() == b"half of a state"


def test_a_state_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--work"):
        StateFile(tmp_path / "nowhere", STAGE, {}).save(1, {}, {}, {})


def test_a_run_gives_the_callers_threads_back_and_ends_its_own(rows: Path, tmp_path: Path) -> None:
    """A run that fails in its second step does so too."""
    model = load_checkpoint("tiny")
    assert model.tokenizer is not None
    source = UserRows(read_rows(rows), model.tokenizer, model.config)
    lost = UserRows([*read_rows(rows), Row(tmp_path / "gone.png", "?", "!")], model.tokenizer, model.config)
    go = partial(loop.train_stage, model, STAGE, made_from={}, background=False)
    before = threading.active_count()
    torch.set_num_threads(2)
    next(batches.batches(source, STAGE, 0, 1, background=False))
    assert torch.get_num_threads() == 2
    go(source, tmp_path / "good")
    assert (torch.get_num_threads(), threading.active_count()) == (2, before)
    with pytest.raises(ImageError) as caught:
        go(lost, tmp_path / "lost")
    assert caught.traceback  # it holds the run's frames, which would else end the threads by being collected
    assert (torch.get_num_threads(), threading.active_count()) == (2, before)


def test_the_curve_has_a_line_for_the_last_step(rows: Path, tmp_path: Path) -> None:
    model = load_checkpoint("tiny")
    assert model.tokenizer is not None
    source = UserRows(read_rows(rows), model.tokenizer, model.config)
    loop.train_stage(model, STAGE, source, tmp_path, made_from={}, background=False)
    assert [json.loads(line)["step"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()] == [4]
