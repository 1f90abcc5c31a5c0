"""A checkpoint that the build was not made from: refused, or compared and never passed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fastvlm.build import read_build
from fastvlm.errors import UsageError
from fastvlm_ref.checkpoint import load_checkpoint
from validation import validate
from validation.other_reference import check_shape

STEPS = 4


@pytest.fixture
def other(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint with another file beside the same tensors."""
    folder = Path(shutil.copytree(tiny, tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"unheard_of": 1}), "utf-8")
    return folder


def test_it_is_refused_with_the_option_that_allows_it(tiny_build: Path, other: Path) -> None:
    with pytest.raises(UsageError, match=r"\(config\.json differ\).*compare all the same with --other-reference"):
        validate(tiny_build, other)


def test_even_the_same_numbers_do_not_pass(validated_tiny: Path, other: Path, tmp_path: Path, heard: Any) -> None:
    build = Path(shutil.copytree(validated_tiny, tmp_path / "build"))
    assert (build / "selftest").is_dir()
    verdict = validate(build, other, other_reference=True, steps=STEPS, progress=heard)
    assert verdict.holds
    assert not verdict.passed
    stored = json.loads(verdict.path.read_text("utf-8"))
    assert stored["verdict"] == verdict.word == "compared"
    assert stored["reference_is_source"] is False
    assert stored["reference_differs_in"] == ["config.json"]
    assert stored["reference_files"]["config.json"] != read_build(build).source_files["config.json"]["sha256"]
    assert not (build / "selftest").exists()
    assert any("not what this build was made from" in note for note in heard.notes)


def test_other_weights_are_compared(tiny_build: Path, other: Path) -> None:
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.self_attn.q_proj.weight"))
    tensors[name] = -tensors[name]
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    verdict = validate(tiny_build, other, other_reference=True, steps=STEPS)
    assert not verdict.holds
    assert verdict.word == "compared"
    assert verdict.reference.differing == ("config.json", "model.safetensors")
    assert "language.kl" in {row.limit.key for row in verdict.rows if not row.passed}


def test_with_the_option_the_source_passes_as_without(tiny_build: Path) -> None:
    verdict = validate(tiny_build, other_reference=True, steps=STEPS)
    assert verdict.passed
    assert verdict.reference.is_source


def test_another_shape_is_refused_before_tensors_are_read(
    tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "reference"))
    from synthetic import write_llava

    checkpoint = write_llava(tmp_path / "small")
    monkeypatch.setattr("validation.original.load_checkpoint", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UsageError) as error:
        validate(tiny_build, checkpoint, other_reference=True)
    assert "another shape" in str(error.value)
    assert "text.hidden_size 64, the build 192" in str(error.value)
    assert "vision.widths [8, 16, 32, 64, 128], the build [" in str(error.value)


def test_what_is_no_shape_may_differ(exported_tiny: Path) -> None:
    build, config = read_build(exported_tiny), load_checkpoint("tiny").config
    same = replace(config.text, rope_theta=1.0, rms_norm_eps=1.0, max_positions=7, tied_head=not config.text.tied_head)
    check_shape(build, replace(config, text=same, vision=replace(config.vision, image_size=1024)), "other")
    with pytest.raises(UsageError, match=r"text\.layers 9, the build 4"):
        check_shape(build, replace(config, text=replace(config.text, layers=9)), "other")
    damaged = replace(build, manifest={"model": {"text": 3}})
    with pytest.raises(UsageError, match=r"text\.layers 4, the build null"):
        check_shape(damaged, config, "other")
