"""The model against numbers that other implementations made: Apple's encoder and transformers' Qwen2.

Weights are not stored: `seeded_weights.py` rebuilds them from names and shapes, so 125 M parameters travel as a rule.
The limits stand in `reference_limits.py`: float32 on another machine and another order of sums.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference_limits import check

from fastvlm_ref.config import TextConfig, VisionConfig
from fastvlm_ref.model import decoder as decoder_module
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.fastvithd import FastViTHD
from fastvlm_ref.model.kv_cache import KVCache

DATA = Path(__file__).parents[1] / "data"
TOWER = "model.vision_tower.vision_tower.model."

Array = NDArray[np.float32]


def seeded(module: torch.nn.Module, name: Callable[[str], str]) -> torch.nn.Module:
    """Fills a module by the seeded rule; `name` gives a parameter's name in the checkpoint that the golden is of."""
    spec = importlib.util.spec_from_file_location("seeded_weights", DATA / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    values = {
        key: torch.from_numpy(np.asarray(rule.seeded_tensor(name(key), tuple(value.shape))))
        for key, value in module.state_dict().items()
    }
    module.load_state_dict(values, assign=True)
    return module.eval()


@pytest.fixture(scope="module")
def tower() -> torch.nn.Module:
    """The official encoder's sizes, 125 M seeded parameters."""
    with torch.device("meta"):
        module = FastViTHD(VisionConfig())
    return seeded(module, lambda key: TOWER + key)


@pytest.fixture(scope="module")
def pictures() -> dict[int, torch.Tensor]:
    """Random pixels, drawn from one generator in the order of the goldens."""
    rng = np.random.Generator(np.random.PCG64(1))
    return {side: torch.from_numpy(rng.random((1, 3, side, side), dtype=np.float32)) for side in (256, 512)}


@pytest.mark.parametrize(("side", "step"), [(256, 1), (512, 8)])
def test_encoder(tower: torch.nn.Module, pictures: dict[int, torch.Tensor], side: int, step: int) -> None:
    golden = np.load(DATA / "goldens" / f"fastvithd_{side}.npz")["features"]
    with torch.inference_mode():
        found = tower(pictures[side])
    assert found.shape == (1, (side // 64) ** 2, 3072)
    check("golden_encoder", golden, found.numpy()[:, ::step], f"at {side}")


def test_a_fault_in_the_encoder_is_seen(tower: torch.nn.Module, pictures: dict[int, torch.Tensor]) -> None:
    """One channel's sign in one layer scale of 40 blocks is enough to miss the limit."""
    golden = np.load(DATA / "goldens" / "fastvithd_256.npz")["features"]
    scale = tower.get_parameter("network.4.11.layer_scale")
    with torch.inference_mode():
        scale[5] *= -1
        found = tower(pictures[256]).numpy()
        scale[5] *= -1
    check("golden_fault", golden, found, "in the encoder")


def _qwen2() -> tuple[TextConfig, Any]:
    golden = np.load(DATA / "goldens" / "qwen2_small.npz")
    stated = json.loads(str(golden["config"]))
    theta = stated.get("rope_theta") or stated["rope_parameters"]["rope_theta"]
    text = TextConfig(
        hidden_size=stated["hidden_size"], layers=stated["num_hidden_layers"], heads=stated["num_attention_heads"],
        kv_heads=stated["num_key_value_heads"], head_dim=stated["hidden_size"] // stated["num_attention_heads"],
        intermediate_size=stated["intermediate_size"], vocab_size=stated["vocab_size"],
        rms_norm_eps=stated["rms_norm_eps"], rope_theta=theta, qkv_bias=True, tied_head=True, max_positions=4096,
    )  # fmt: skip
    return text, golden


def _decoder(text: TextConfig) -> Decoder:
    module = Decoder(text)
    seeded(module, lambda key: "model." + key.replace("lm_head", "embed_tokens"))
    return module


def _steps(decoder: Decoder, text: TextConfig, golden: Any) -> tuple[Array, Array]:
    """Returns the logits of the prefill and of the cached steps that the golden's tokens lead to."""
    ids = torch.from_numpy(golden["input_ids"])
    cache = KVCache(text, 64, batch=len(ids))
    with torch.inference_mode():
        prefill = decoder.head(decoder(decoder.embed_tokens(ids), cache))
        steps = []
        for token in golden["step_tokens"].reshape(-1):
            steps.append(decoder.head(decoder(decoder.embed_tokens(torch.tensor([[int(token)]])), cache)))
    return prefill.numpy(), torch.cat(steps, 1)[0].numpy()


def test_decoder_prefill_and_cached_steps() -> None:
    text, golden = _qwen2()
    prefill, steps = _steps(_decoder(text), text, golden)
    check("golden_prefill", golden["prefill_logits"], prefill)
    expected = golden["step_logits"].reshape(-1, text.vocab_size)
    for index, found in enumerate(steps):
        check("golden_step", expected[index], found, f"{index}")
        assert found.argmax() == expected[index].argmax()


def test_a_position_off_by_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary angles of the cached steps one position late: the prefill stays right, the steps must not pass."""
    text, golden = _qwen2()
    plain = decoder_module.rope_tables

    def late(config: TextConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return plain(config, positions + (positions[0] > 0))

    monkeypatch.setattr(decoder_module, "rope_tables", late)
    prefill, steps = _steps(_decoder(text), text, golden)
    check("golden_prefill", golden["prefill_logits"], prefill)
    check("golden_fault", golden["step_logits"].reshape(-1, text.vocab_size)[0], steps[0], "in step 0")
