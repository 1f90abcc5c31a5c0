"""`fastvlm train`: fine-tuning on a user's rows, measuring, and everything that is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_rows import train, write_rows

from fastvlm.errors import ImageError, UsageError
from fastvlm.hashes import list_tree
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.training.batches import batches
from fastvlm_ref.training.examples import write_examples
from fastvlm_ref.training.finetune import AMLR_SENTENCE, finetune_stage, write_finetuned
from fastvlm_ref.training.rows import Row, UserRows, read_rows
from fastvlm_ref.training.saving import is_trained
from fastvlm_ref.training.stages import STAGES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


def test_a_fine_tune_leaves_a_checkpoint_that_learned(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = train("--checkpoint", "tiny", "--data", rows, "-o", out, "--steps", 12, "--batch", 2, "--rate", "1e-3")
    assert done.exit_code == 0, done.output
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out.work" / "curve.jsonl").read_text().splitlines()]
    assert losses
    tuned = load_checkpoint(out)
    assert tuned.config.licence == "apache-2.0"
    for colour in ("red", "blue"):
        with Image.open(tmp_path / f"{colour}.png") as picture:
            assert "".join(tuned.generate(picture, "What is it?", 5)) == colour
    again = train("--checkpoint", "tiny", "--data", rows, "-o", out)
    assert (again.exit_code, "--overwrite" in again.output) == (2, True)


def test_rows_go_through_the_checkpoints_own_rules(rows: Path) -> None:
    model = load_checkpoint("tiny")
    assert model.tokenizer is not None
    source = UserRows(read_rows(rows), model.tokenizer, model.config)
    stage = replace(finetune_stage("stage3", 4, 2, None), image_size=256)
    batch = source.batch(stage, 0, 0)
    assert batch.pixels is not None
    assert batch.packed is not None
    assert batch.pixels.shape == (1, 3, 256, 256)
    assert int(batch.pixels[0, :, 0].sum()) == 0  # a wide picture has black bars
    answered = batch.packed.targets[batch.packed.targets >= 0].tolist()
    assert answered[-1] == model.tokenizer.control("<|im_end|>")
    assert model.tokenizer.decode(answered[:-1]) in ("red", "blue")
    assert torch.equal(batch.pixels, source.batch(stage, 0, 0).pixels)  # type: ignore[arg-type]
    parts = [source.batch(stage, step, part).packed for step in (0, 1) for part in (0, 1)]
    assert len({tuple(part.targets[0].tolist()) for part in parts[:2] if part}) == 2  # an epoch visits every row


def test_a_derivative_keeps_its_licence(tmp_path: Path) -> None:
    model = load_checkpoint("tiny")
    model.config = replace(model.config, licence="apple-amlr")
    write_finetuned(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert AMLR_SENTENCE in card
    assert "derivative" in card
    assert load_checkpoint(tmp_path).config.licence == "apple-amlr"


def test_the_licences_of_a_lora_and_its_base_go_along(tmp_path: Path) -> None:
    base, lora, out = (tmp_path / name for name in ("base", "lora", "out"))
    for folder, text in ((base, "of the base"), (lora, "of the adapter"), (out, None)):
        folder.mkdir()
        if text:
            (folder / "LICENSE").write_text(text)
    (base / "NOTICE").write_text("a notice")
    model = load_checkpoint("tiny")
    assert model.source is not None
    model.source = replace(model.source, folder=lora, base=replace(model.source, folder=base))
    write_finetuned(model, out)
    texts = {file.name: file.read_text() for file in out.iterdir() if "LIC" in file.name or file.name == "NOTICE"}
    assert texts == {"LICENSE": "of the adapter", "LICENSE_of_base_LICENSE": "of the base", "NOTICE": "a notice"}


def test_a_trained_folder_with_something_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    write_finetuned(load_checkpoint("tiny"), tmp_path)
    assert is_trained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert not is_trained(tmp_path)


def test_pictures_of_the_users_are_not_replaced(tmp_path: Path) -> None:
    write_finetuned(load_checkpoint("tiny"), tmp_path)
    write_examples(tmp_path / "pictures")
    assert is_trained(tmp_path)
    (tmp_path / "pictures" / "holiday.png").write_bytes(b"mine")
    assert not is_trained(tmp_path)


def test_a_card_that_is_no_text_is_somebody_elses(tmp_path: Path) -> None:
    write_finetuned(load_checkpoint("tiny"), tmp_path)
    (tmp_path / "README.md").write_bytes(b"`fastvlm train` \xff\xfe")
    assert not is_trained(tmp_path)


def test_a_stage_that_ends_early_for_the_recipe_runs_all_of_a_users_steps() -> None:
    stage = finetune_stage("stage2", 5000, 2, None)
    assert (stage.steps, stage.last_step) == (5000, 5000)


def test_every_bad_row_is_listed_at_once(rows: Path) -> None:
    rows.write_text(
        '{"image": "red.png", "prompt": "?"}\nnonsense\n{"image": "no.png", "prompt": "?", "answer": "x"}\n[]'
    )
    with pytest.raises(UsageError) as caught:
        read_rows(rows)
    for said in ("4 rows", "line 1: answer missing", "line 2: not JSON", "no picture at no.png", "line 4: a list"):
        assert said in str(caught.value)


def test_pictures_and_lengths_are_checked_before_training(rows: Path) -> None:
    (rows.parent / "text.png").write_text("no picture")
    long = "word " * 3000
    rows.write_text(
        rows.read_text()
        + json.dumps({"image": "text.png", "prompt": "?", "answer": "x"})
        + "\n"
        + json.dumps({"image": "red.png", "prompt": long, "answer": "x"})
    )
    model = load_checkpoint("tiny")
    assert model.tokenizer is not None
    source = UserRows(read_rows(rows), model.tokenizer, model.config)
    with pytest.raises(UsageError, match=r"2 rows cannot be used: .*text\.png.*; red\.png: .* the model has 2048"):
        source.check(256)


def test_an_error_of_the_background_process_comes_as_itself(rows: Path) -> None:
    """A picture that goes away while training runs: its own error, no traceback as text."""
    model = load_checkpoint("tiny")
    assert model.tokenizer is not None
    source = UserRows(read_rows(rows), model.tokenizer, model.config)
    (rows.parent / "red.png").unlink()
    with pytest.raises(ImageError, match=r"red\.png") as caught:
        list(batches(source, replace(STAGES["stage3"], image_size=256, pictures=2), 0, 2))
    assert "Traceback" not in str(caught.value)


def test_a_folder_of_rows_is_read_whole(rows: Path) -> None:
    (rows.parent / "more.jsonl").write_text(rows.read_text())
    assert len(read_rows(rows.parent)) == 4
    assert read_rows(rows)[0] == Row(rows.parent / "red.png", "What is it?", "red")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "-o DIR"),
        (["-o", "out", "--data", "rows.jsonl"], "--checkpoint"),
        (["-o", "out", "--steps", "5"], "--steps"),
        (["-o", "out", "--checkpoint", "tiny", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["-o", "out", "--checkpoint", "tiny", "--data", "rows.jsonl", "--stage", "encoder"], "stage3"),
        (["-o", "out", "--checkpoint", "tiny", "--data", "rows.jsonl", "--stage", "fourth"], "stage3"),
        (["-o", "out", "--checkpoint", "tiny", "--data", "rows.jsonl", "--image-size", "100"], "64"),
        (["--evaluate", "no-such-folder"], "no-such-folder"),
        (["--evaluate", "tiny", "-o", "out"], "--output"),
        (
            ["--evaluate", "tiny", "--checkpoint", "tiny", "--steps", "5", "--work", "w"],
            "--checkpoint, --steps, --work",
        ),
        (["--evaluate", "tiny", "--overwrite", "--image-size", "256"], "--image-size, --overwrite"),
        (
            ["-o", "out", "--checkpoint", "tiny", "--data", "rows.jsonl", "--json", "--questions", "5"],
            "--questions, --json",
        ),
        (["-o", "out", "--json"], "--json"),
        (["-o", "out", "--base", "tiny"], "--base"),
        (["-o", "out", "--work", "rows.jsonl"], "rows.jsonl is a file"),
        (["-o", "out", "--work", "out/work"], "--work"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], said: str, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    result = train(*arguments)
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert (result.exit_code, len(errors)) == (2, 1), result.output
    assert said in errors[0]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["-o", "ck/sub"], "with -o"),
        (["-o", "ck", "--overwrite"], "with -o"),
        (["-o", ".", "--overwrite"], "with -o"),
        (["-o", "out", "--work", "ck"], "with --work"),
        (["-o", "out", "--work", "ck/state"], "with --work"),
    ],
)
def test_nothing_is_written_into_a_checkpoint(
    places: list[str], said: str, tiny: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    shutil.copytree(tiny, "ck")
    before = list_tree(Path("ck"))
    result = train("--checkpoint", "ck", "--data", "rows.jsonl", "--steps", 1, "--batch", 1, *places)
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert "lie in each other" in result.output
    assert list_tree(Path("ck")) == before


def test_the_embedded_checkpoint_is_not_written_into_either(rows: Path, tiny: Path) -> None:
    result = train("--checkpoint", "tiny", "--data", rows, "-o", tiny / "sub", "--steps", 1, "--batch", 1)
    assert (result.exit_code, "lie in each other" in result.output) == (2, True), result.output


def test_measuring_prints_a_table_and_says_no(tmp_path: Path) -> None:
    """Nine questions to a model whose projector is gone: all forms in the table, exit code 1."""
    model = load_checkpoint("tiny")
    with torch.no_grad():
        model.projector[2].weight.zero_()
    write_finetuned(model, tmp_path)
    result = train("--evaluate", tmp_path, "--questions", 9, "--json")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found["good"] is False
    assert len(found["rows"]) == 10
