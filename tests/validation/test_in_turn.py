"""One package open at a time gives the numbers of all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.api import export_model
from fastvlm.build import read_build
from fastvlm_ref.checkpoint import load_checkpoint
from validation.engine import PackageEngine
from validation.in_turn import logits_in_turn


@pytest.mark.parametrize("limit", [None, 1_200_000, 800_000])
def test_the_same_bits(limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One package, some with layers and the head behind them, and the head in packages of its own."""
    monkeypatch.setattr("export.chunks.HEAD_CAP", 256)
    model = load_checkpoint("tiny")
    folder = export_model(model, tmp_path / "build", context=96, query_length=16, only="language", max_file_size=limit)
    build = read_build(folder)
    assert (len(build.language) == 1) == (limit is None)
    assert any(not stage.state for stage in build.language) == (limit == 800_000)
    rows = np.asarray(model.decoder.embed_tokens.weight[:93].numpy())
    engine = PackageEngine(build)
    engine.prefill(rows[:89])  # whole chunks, a padded one, and single rows at the context's end
    wanted = np.stack([engine.decode(row[None]) for row in rows[89:]])
    seen: list[str] = []
    found = logits_in_turn(build, rows, 89, hook=lambda name, kind, value: seen.append(kind))
    assert np.array_equal(found, wanted)
    assert {"conv", "softmax"} <= set(seen)
    swapped: Any = [*reversed(rows[:89]), *rows[89:]]
    assert not np.array_equal(logits_in_turn(build, np.stack(swapped), 89), wanted)
