"""From the scan to the answer: a checkpoint that leaves fp16 is scanned, exported by what was found, and computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.api import export_model
from export.protection import PROTECTED, Protection
from export.ranges.scan import scan_model
from fastvlm.build import read_build
from fastvlm.manifest import read_manifest
from fastvlm_ref.checkpoint import load_checkpoint
from validation.engine import PackageEngine
from validation.metrics import snr_db

POWER = 13  # of one MLP's up, taken back in its down: 37.5 becomes 3.1e5
LEAST_SNR = 57.0  # dB; measured 67.0


@pytest.fixture(scope="module")
def loud() -> Any:
    """tiny with an MLP beyond fp16; in float32 it computes what tiny does, to the last bit."""
    model = load_checkpoint("tiny")
    mlp = model.decoder.layers[2].mlp
    mlp.up_proj.weight *= 2.0**POWER
    mlp.down_proj.weight *= 2.0**-POWER
    return model


@torch.no_grad()
def logits_of(model: Any, folder: Path, protection: Protection | None) -> tuple[np.ndarray, np.ndarray]:
    """The last logits of a text: the model's, and those of its build."""
    ids = [*model.tokenizer.encode("a red triangle, a blue square"), *model.tokenizer.encode(" and a ring")]
    build = export_model(model, folder, only="language", context=128, query_length=16, protection=protection)
    engine = PackageEngine(read_build(build))
    engine.reset()
    rows = engine.embed(ids)
    engine.prefill(rows[:-1])
    reference = model(torch.tensor([ids]))[0, -1].numpy()
    return reference, engine.decode(rows[-1:])


def test_a_scanned_checkpoint_beyond_fp16_computes(loud: Any, tmp_path: Path) -> None:
    ranges = scan_model(loud, image_sizes=(64,))
    first = ranges.first_beyond(65_504)
    assert first is not None
    assert first.name == "decoder.layers.2.mlp mul"
    reference, found = logits_of(loud, tmp_path / "scanned", None)
    assert read_manifest(tmp_path / "scanned")["protection"] == {"scanned": [64], "mlp": [0, 0, 5, 0]}
    print(f"{snr_db(reference, found):.1f} dB")
    assert snr_db(reference, found) >= LEAST_SNR


def test_without_its_exponent_it_does_not(loud: Any, tmp_path: Path) -> None:
    """The test above can fail: values turn infinite, and nothing that comes of them is a number."""
    _, found = logits_of(loud, tmp_path / "plain", PROTECTED)
    assert not np.isfinite(found).all()
