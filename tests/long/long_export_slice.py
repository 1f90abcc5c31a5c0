"""Six layers at the official widths of 0.5B, exported both ways: the same programs, constants and numbers.

Not named test_*, so that `make test` passes by: the direct route takes minutes and several gigabytes. `make long` runs
it. The weights are seeded; the vocabulary, the MLP's width and the context are the official ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeded_weights import seeded_tensor
from test_export_streaming import check_same_package, direct, streamed, written

from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder
from validation.host import causal_mask, pad_rows, rope_tables
from validation.mil import MILModel

CONTEXT, QUERY = 2048, 64
SLICE = TextConfig(
    hidden_size=896, layers=6, heads=14, kv_heads=2, head_dim=64, intermediate_size=4864, vocab_size=151_936,
    rms_norm_eps=1e-6, rope_theta=1e6, qkv_bias=True, tied_head=False, max_positions=32_768,
)  # fmt: skip


class Sliced:
    """What the routes ask of a model."""

    def __init__(self) -> None:
        self.config = type("Config", (), {"text": SLICE})
        self.decoder = Decoder(SLICE).eval().requires_grad_(False)
        for name, value in self.decoder.named_parameters():
            value.copy_(torch.from_numpy(seeded_tensor(f"model.{name}", tuple(value.shape))))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, model = tmp_path_factory.mktemp("slice"), Sliced()
    routes: dict[str, Any] = {"streamed": streamed, "direct": direct}
    found = {name: written(route, model, folder / name, CONTEXT, QUERY, target="gpu") for name, route in routes.items()}
    return {name: package for name, (package,) in found.items()}


def test_programs_and_weights(packages: dict[str, Path]) -> None:
    check_same_package(packages["streamed"], packages["direct"])


def test_numbers(packages: dict[str, Path]) -> None:
    """A chunk of prefill and a step of decode: the same bits from both packages, none of them zero throughout."""
    rows = np.random.default_rng(0).standard_normal((QUERY + 1, SLICE.hidden_size)).astype(np.float32) * 0.02
    found = []
    for package in packages.values():
        decode = MILModel(package, "decode")
        state = decode.make_state()
        for model, start, query in ((decode.function("prefill"), 0, QUERY), (decode, QUERY, 1)):
            part = rows[start : start + query]
            cos, sin = rope_tables(start, query, SLICE.head_dim, SLICE.rope_theta)
            outputs = model.predict(
                {
                    "inputsEmbeds": pad_rows(part, query), "ropeCos": cos, "ropeSin": sin,
                    "causalMask": causal_mask(start, len(part), query, CONTEXT),
                    "position": np.array([start], np.int32),
                },
                state,
            )  # fmt: skip
        found.append(outputs["logits"])
    assert np.array_equal(found[0], found[1])
    assert np.abs(found[0]).max() > 0.1
    assert found[0].shape == (1, 1, SLICE.vocab_size)
