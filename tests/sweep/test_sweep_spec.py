"""What a spec file may say, and that everything wrong in it is told at once, before any work starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from specs import Write
from typed import Run

from fastvlm.errors import UsageError
from validation.sweep.cases import planned
from validation.sweep.spec import Named, read_spec


def test_a_spec_with_every_key(spec: Write, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("language: int8\n")
    read = read_spec(
        spec(
            "checkpoints: [tiny]",
            "image_sizes: [128, 256]",
            "schemes: [fp16, own.yaml]",
            "images: [reds, blues]",
            "target: gpu",
            "context: 512",
            "steps: 4",
            "device: iphone-15 PRO",
            "keep_builds: true",
        )
    )
    assert read.schemes == (Named("fp16", "fp16"), Named("own.yaml", str(tmp_path / "own.yaml")))
    assert read.images == (Named("reds", str(tmp_path / "reds")), Named("blues", str(tmp_path / "blues")))
    assert (read.image_sizes, read.target, read.context, read.steps) == ((128, 256), "gpu", 512, 4)
    assert (read.device, read.keep_builds) == ("iPhone 15 Pro", True)


def test_what_a_spec_leaves_out(spec: Write) -> None:
    read = read_spec(spec("checkpoints: [tiny]"))
    assert [each.at for each in (*read.checkpoints, *read.schemes, *read.images)] == ["tiny", "fp16", None]
    assert (read.image_sizes, read.target, read.context, read.keep_builds) == ((), None, 2048, False)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["checkpoints: [tiny]", "scheme: [int8]"],
            "unknown key 'scheme', perhaps schemes is meant; known: checkpoints",
        ),
        (["schemes: [int8]"], "checkpoints: it is missing, expected a list such as [tiny]"),
        (["checkpoints: tiny"], "checkpoints: 'tiny', expected a list of names in [brackets]"),
        (["checkpoints: []"], "checkpoints: [], expected a list of names"),
        (["checkpoints: [tiny, tiny]"], "checkpoints: tiny stands twice"),
        (["checkpoints: [tiny]", "image_sizes: [big]"], "image_sizes: ['big'], expected a list of whole numbers"),
        (["checkpoints: [tiny]", "steps: 1000"], "steps: 1000, expected a whole number from 1 to 256"),
        (["checkpoints: [tiny]", "context: -1"], "context: -1, expected a positive whole number"),
        (["checkpoints: [tiny]", "target: npu"], "target: 'npu', expected ane or gpu"),
        (["checkpoints: [tiny]", "device: Nokia 3310"], "'Nokia 3310' is not in the table"),
        (["checkpoints: [tiny]", "device: 5"], "device: 5, expected a device's name"),
        (["checkpoints: [tiny]", "keep_builds: yes please"], "keep_builds: 'yes please', expected true or false"),
        (["checkpoints: [tiny]", "checkpoints: [tiny]"], "stands twice"),
        (["checkpoints: [&a tiny, *a]"], "anchors and aliases"),
        (["- tiny"], "expected lines of the form"),
    ],
)
def test_what_is_wrong_in_a_spec_is_named_before_any_work(
    lines: list[str], said: str, spec: Write, run: Run, tmp_path: Path
) -> None:
    result = run("sweep", spec(*lines), "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: sweep {tmp_path / 'sweep.yaml'}: ")
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_everything_wrong_is_told_at_once(spec: Write) -> None:
    with pytest.raises(UsageError) as caught:
        read_spec(spec("schemes: int8", "colour: red", "steps: 0"))
    assert all(word in str(caught.value) for word in ("unknown key 'colour'", "schemes:", "steps: 0", "checkpoints:"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["checkpoints: [nowhere]"], "checkpoints: 'nowhere' is no size and no folder"),
        (["checkpoints: [0.5b]"], "expected a checkpoint's folder"),
        (["checkpoints: [tiny]", "schemes: [int9]"], "'int9' is no scheme and no file"),
        (["checkpoints: [tiny]", "schemes: [int4]", "target: ane"], "int4"),
        (["checkpoints: [tiny]", "image_sizes: [100]"], "image_sizes is 100, expected a multiple of 64"),
        (["checkpoints: [tiny]", "context: 100"], "tiny at 256, fp16: context is 100"),
        (["checkpoints: [tiny]", "images: [nowhere]"], "images: entry nowhere is not a folder"),
        (
            ["checkpoints: [tiny]", "images: [reds, ./reds]"],
            "tiny at 256, fp16, reds and tiny at 256, fp16, ./reds are the same",
        ),
        (["checkpoints: [tiny]", "schemes: [own.yaml]"], "tiny at 256, own.yaml: recipe: layers: 'no.such.layer' fits"),
    ],
)
def test_what_cannot_be_is_named_before_any_work(
    lines: list[str], said: str, spec: Write, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("language: int8\nlayers: {no.such.layer: fp16}\n")
    result = run("sweep", spec(*lines), "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["missing.yaml", "."])
def test_a_spec_that_is_no_file(word: str, run: Run, tmp_path: Path) -> None:
    result = run("sweep", tmp_path / word, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: sweep ")


def test_all_combinations_are_planned_in_the_spec_s_order(spec: Write) -> None:
    made = planned(
        read_spec(
            spec("checkpoints: [tiny]", "image_sizes: [256, 128]", "schemes: [fp16, int4]", "images: [reds, blues]")
        )
    )
    assert [(each.image_size, each.scheme, each.target) for each in made] == [
        (256, "fp16", "ane"), (256, "int4", "gpu"), (128, "fp16", "ane"), (128, "int4", "gpu"),
    ]  # fmt: skip
    assert all([case.images for case in each.cases] == ["reds", "blues"] for each in made)
    assert len({case.id for each in made for case in each.cases}) == 8


def _ids(file: Path) -> list[str]:
    return [case.id for making in planned(read_spec(file)) for case in making.cases]


def test_what_a_result_depends_on_changes_its_id_and_nothing_else_does(spec: Write, tmp_path: Path) -> None:
    lines = ["checkpoints: [tiny]", "schemes: [own.yaml]", "images: [reds]"]
    recipe = tmp_path / "own.yaml"
    recipe.write_text("language: int8\n")
    first = _ids(spec(*lines))
    assert _ids(spec(*lines, "device: iPhone 16", "keep_builds: true")) == first
    seen = {*first, *_ids(spec(*lines, "steps: 5")), *_ids(spec(*lines, "context: 1024"))}
    recipe.write_text("language: lut6\n")
    seen |= set(_ids(spec(*lines)))
    (tmp_path / "reds" / "red.png").write_bytes((tmp_path / "blues" / "blue.png").read_bytes())
    seen |= set(_ids(spec(*lines)))
    assert len(seen) == 5
