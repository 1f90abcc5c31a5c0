"""File sizes before there are files, beside the export's own arithmetic and beside real builds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fit_limits import check, off

from export.choice import Compression, intended
from export.plan import FILE_SIZES, ExportPlan
from export.sizes import language_bytes
from export.space import part_bytes
from fastvlm.errors import UsageError
from fastvlm_ref.config import FastVLMConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.synthetic.sizes import SIZES
from validation.fit.advice import CHOICES
from validation.fit.files import files_of
from validation.fit.sizes import sizes_of
from validation.fit.stored import stored_as

# As an export of seeded weights made them: packages, and of these with layers.
PACKAGES = {"0.5b": (1, 1), "1.5b": (4, 4), "7b": (16, 14)}


def test_a_builds_files_are_what_was_said(build: Path) -> None:
    built = sizes_of(build)
    assert built.built is not None
    own = built.built
    stored = stored_as(own.scheme, own.target, built.vision, built.text)
    files = files_of(built.vision, built.text, stored, own.target)
    check("weight_files", off(files.encoder, own.files.encoder))
    check("weight_files", off(sum(files.language), sum(own.files.language)))
    assert (len(files.language), files.layered) == (len(own.files.language), own.files.layered)
    assert files.embeddings == own.files.embeddings
    check("build_total", off(files.total, own.files.total))


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_counted(name: str) -> None:
    size = SIZES[name]
    files = files_of(size.vision, size.text, stored_as("fp16", "ane", size.vision, size.text), "ane")
    assert (len(files.language), files.layered) == PACKAGES[name]
    assert max(files.language) < 1_000_000_000


@pytest.fixture(scope="module")
def tiny_model() -> FastVLM:
    from fastvlm_ref import load_checkpoint

    return load_checkpoint("tiny")


@pytest.mark.parametrize(("scheme", "target"), CHOICES)
def test_the_export_reckons_the_same(tiny_model: FastVLM, scheme: str, target: str) -> None:
    config = tiny_model.config
    plan = ExportPlan((256,), 2048, 64, target=target, max_file_size=FILE_SIZES[target])
    compression = intended(tiny_model, plan, scheme)
    stored = stored_as(scheme, target, config.vision, config.text)
    assert dict(stored.schemes) == dict(compression.schemes)
    assert language_bytes(config.text, plan, stored) == language_bytes(config.text, plan, compression)


@pytest.mark.parametrize("name", SIZES)
def test_the_encoder_of_official_size_weighs_what_its_tensors_do(name: str) -> None:
    size = SIZES[name]
    with torch.device("meta"):
        model = FastVLM(FastVLMConfig("llava_qwen2", size.vision, size.text))
    plan = ExportPlan((1024,), 2048, 64, ("encoder",))
    files = files_of(size.vision, size.text, stored_as("fp16", "ane", size.vision, size.text), "ane")
    check("weight_files", off(files.encoder, part_bytes(model, plan, Compression())["encoder"]))


def test_a_recipe_is_a_scheme_layer_by_layer(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("language: int8\nencoder: int8\nlayers:\n  language.lm_head: fp16\n")
    size = SIZES["0.5b"]
    stored = stored_as(str(recipe), "ane", size.vision, size.text)
    assert "language.lm_head" not in stored.schemes
    assert stored.schemes["language.layers.23.mlp.up_proj"].name == "int8"
    assert stored.schemes["encoder.projector_0"].name == "int8"
    plain = stored_as("fp16", "ane", size.vision, size.text)
    files, dense = (files_of(size.vision, size.text, each, "ane") for each in (stored, plain))
    assert files.encoder < 0.55 * dense.encoder
    assert files.embeddings == dense.embeddings


@pytest.mark.parametrize(
    ("scheme", "target", "said"),
    [("mixed", "ane", "by what it measures"), ("int4", "ane", "gpu only"), ("int5", "ane", "no scheme and no file")],
)
def test_what_nobody_can_know_is_refused(scheme: str, target: str, said: str) -> None:
    size = SIZES["0.5b"]
    with pytest.raises(UsageError, match=said):
        stored_as(scheme, target, size.vision, size.text)
