"""A FastVLM of the smallest sizes that still has every part, with seeded weights and a stand-in for a tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DATA = Path(__file__).resolve().parent.parent / "data"
sys.path.insert(0, str(DATA))

from seeded_weights import seeded_tensor  # noqa: E402

from export.choice import Compression  # noqa: E402
from export.convert import PASSES  # noqa: E402
from export.plan import ExportPlan  # noqa: E402
from export.quiet import import_coremltools  # noqa: E402
from export.sizes import language_bytes  # noqa: E402
from fastvlm_ref.checkpoint.source import Source  # noqa: E402
from fastvlm_ref.config import FastVLMConfig, PromptConfig, TextConfig, VisionConfig  # noqa: E402
from fastvlm_ref.model.fastvlm import FastVLM  # noqa: E402
from validation.metrics import snr_db  # noqa: E402

CONTEXT, QUERY = 128, 16
SIZES = (128, 64)


def small_config(**text: Any) -> FastVLMConfig:
    """One block per stage, two decoder layers; `text` overrides fields of the decoder."""
    vision = VisionConfig(
        image_size=128, depths=(1, 1, 1, 1, 1), widths=(16, 32, 32, 64, 64), mlp_widths=(32, 64, 64, 64, 96),
        features=128, se_channels=16,
    )  # fmt: skip
    sizes: dict[str, Any] = {
        "hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 32, "intermediate_size": 96,
        "vocab_size": 300, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "qkv_bias": True, "tied_head": True,
        "max_positions": 2048,
    }  # fmt: skip
    return FastVLMConfig("llava_qwen2", vision, TextConfig(**(sizes | text)), PromptConfig(stop_ids=(2,)))


def small_model(**text: Any) -> FastVLM:
    """The seeded reference model, with the source and tokenizer that `load_checkpoint` would have given it."""
    model = FastVLM(small_config(**text)).eval().requires_grad_(False)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        value.copy_(torch.from_numpy(seeded_tensor(name, tuple(value.shape))))
    model.source = Source(id="small", revision=None, layout="llava", folder=Path("nowhere"), names=())
    model.tokenizer = Lengths()  # type: ignore[assignment]
    return model


def sizes_of(text: TextConfig, plan: ExportPlan) -> dict[str, int]:
    """Bytes of each tensor of a decoder that is not compressed."""
    return language_bytes(text, plan, Compression())


def snr(reference: Any, actual: Any) -> float:
    """Signal to noise in dB, of tensors or arrays."""
    return snr_db(np.asarray(reference, np.float64), np.asarray(actual, np.float64))


class Lengths:
    """What an export asks of a tokenizer: the length of each word for an id, and an id for any control token."""

    bos = None

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def encode_runs(self, runs: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in runs]

    def control(self, name: str) -> int:
        return 256 + len(name)

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}\n")


def use_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converts with all of coremltools' passes but two: equal constants stay apart, convolutions keep their weights."""
    left_out = ("const_deduplication", "fuse_conv_scale")
    passes = import_coremltools().PassPipeline.DEFAULT.passes
    every = [name.removeprefix("common::") for name in passes if not name.endswith(left_out)]
    assert len(every) > 4 * len(PASSES)
    monkeypatch.setattr("export.convert.PASSES", every)


def read_proto(package: Path) -> Any:
    """The Model protobuf of a package."""
    from export.quiet import import_coremltools

    proto = import_coremltools().proto.Model_pb2.Model()
    proto.ParseFromString((package / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    return proto
