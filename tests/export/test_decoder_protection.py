"""What protects the decoder in fp16: exact powers of two, keys without their constant part, bounded norms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from export_limits import check
from small_export import CONTEXT, small_model, snr
from test_export_graphs import embeds_of, graphs_of, language_logits, reference_logits
from torch import Tensor

from export.chunks import Chunk, HeadSplit
from export.key_shift import LARGEST_TURN, key_shift, shifts_keys, slow_channels
from export.language import chunk_weight, whole_sizes
from export.nonlinear import softmax
from export.norms import LARGEST_SUM, BoundedRMSNorm, headroom, shrunk
from export.plan import ExportPlan
from export.protection import PROTECTED, Protection
from export.ranges.exponents import LARGEST_SCORE, LARGEST_SCORE_EXPONENT
from fastvlm_ref.model.decoder import RMSNorm
from validation.host import MASKED

HALF = 65_504.0
PROMPT = 20


def logits_of(model: Any, target: str, protection: Protection, **changes: Any) -> np.ndarray:
    with torch.no_grad():
        graphs = graphs_of(model, target, protection, **changes)
        return language_logits(graphs, embeds_of(model, PROMPT + 3), PROMPT, model.config.text)


@pytest.mark.parametrize("target", ["ane", "gpu"])
@pytest.mark.parametrize(
    "exponents",
    [{"mlp": (3, 5)}, {"values": (2, 7)}, {"mlp": (4,), "values": (0, 1)}],
    ids=["MLPs", "values", "both, of some layers"],
)
def test_powers_of_two_change_no_bit(model: Any, target: str, exponents: dict[str, Any]) -> None:
    """What is written scaled and read scaled back gives the same float32 numbers, to the last bit."""
    plain, scaled = (logits_of(model, target, Protection(**given)) for given in ({}, exponents))
    assert np.array_equal(plain, scaled)
    graph = graphs_of(model, target, Protection(**exponents))["decode"]
    bare = graphs_of(model, target)["decode"]
    changed = [name for name, value in graph.named_parameters() if not value.equal(bare.get_parameter(name))]
    assert changed, "nothing was scaled"


@pytest.mark.parametrize("target", ["ane", "gpu"])
def test_each_layer_has_its_own_exponents(model: Any, target: str) -> None:
    """Another layer's exponent would change no bit of the answers, and leave what is too large as it was."""
    protection = Protection(residual=1, mlp=(3, 5), values=(2, 7))
    sizes, bare = (
        whole_sizes(model.decoder, ExportPlan((64,), CONTEXT, 16, target=target), given)
        for given in (protection, PROTECTED)
    )
    split = HeadSplit(1, model.config.text.vocab_size)
    for layer, (mlp, values) in enumerate(zip(protection.mlp, protection.values, strict=True)):
        powers = {
            "mlp.up_proj": -mlp, "mlp.down_proj": mlp - 1,
            "self_attn.v_proj": -values, "self_attn.o_proj": values - 1,
        }  # fmt: skip
        chunk = Chunk(layer + 1, 2, layer, layer + 1, (), filling=False)  # a package of this layer alone
        for leaf, power in powers.items():
            name = f"layers.0.{leaf}.weight"
            weights = [chunk_weight(model.decoder, of, target, chunk, split, name) for of in (sizes, bare)]
            scaled, plain = (torch.cat(list(weight.pieces())) for weight in weights)
            assert scaled.equal(plain * 2.0**power), f"layer {layer}, {name}"


@pytest.mark.parametrize("target", ["ane", "gpu"])
def test_a_scaled_residual_stream_changes_no_bit_but_eps(model: Any, target: str) -> None:
    """Rows within the bound come back to their size before the norm; others are divided by another power of two."""
    plain, scaled = (logits_of(model, target, Protection(residual=exponent)) for exponent in (0, 6))
    check("graph", plain, scaled)
    graphs = graphs_of(model, target, Protection(residual=6))
    bare = graphs_of(model, target)
    for name in ("layers.0.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight"):
        assert graphs["decode"].get_parameter(name).equal(bare["decode"].get_parameter(name) / 64)


@pytest.mark.parametrize("target", ["ane", "gpu"])
@pytest.mark.parametrize("exponent", [1, LARGEST_SCORE_EXPONENT])
def test_scaled_scores_give_the_same_answers(model: Any, target: str, exponent: int) -> None:
    plain, scaled = (logits_of(model, target, Protection(scores=given)) for given in (0, exponent))
    check("graph", plain, scaled)


def test_the_mask_wins_over_every_score_that_is_stored() -> None:
    """Masked scores of 2e6, divided by 512, in fp16: what is masked weighs nothing, the rest what it should."""
    scores = torch.linspace(-2e6, 2e6, 257)[None] / 2.0**LARGEST_SCORE_EXPONENT
    assert scores.abs().max() <= LARGEST_SCORE
    masked = (scores + torch.where(torch.arange(257) < 100, 0.0, MASKED)).half().float()
    assert masked.abs().max() <= 32_768
    found = softmax(masked, LARGEST_SCORE_EXPONENT)
    exact = torch.softmax(scores[:, :100].half().double() * 2.0**LARGEST_SCORE_EXPONENT, -1)
    assert not found[:, 100:].any()
    assert torch.allclose(found[:, :100].double(), exact, atol=1e-7)


def biased_model(size: float, channels: slice) -> Any:
    """A model whose keys have biases of `size` in some channels of each head."""
    model = small_model(kv_heads=2)
    text = model.config.text
    for layer in model.decoder.layers:
        heads = layer.self_attn.k_proj.bias.data.view(text.kv_heads, text.head_dim)
        heads[:, channels] = size
    return model


SLOWEST = slice(15, None, 16)  # channels 15 and 31 of 32: the pair that rotates slowest


@pytest.mark.parametrize("target", ["ane", "gpu"])
def test_keys_without_their_constant_part_give_the_same_answers(target: str) -> None:
    model = biased_model(40.0, SLOWEST)
    assert shifts_keys(model.decoder, CONTEXT)
    reference = reference_logits(model, embeds_of(model, PROMPT + 3), PROMPT)
    check("graph", reference, logits_of(model, target, PROTECTED))
    check("graph", reference, logits_of(model, target, PROTECTED, shifts_keys=False))


@pytest.mark.parametrize("target", ["ane", "gpu"])
def test_cached_keys_lose_their_bias_and_nothing_else(target: str) -> None:
    """The state holds keys of a few units where without the shift it holds the bias; fp16 keeps more of them."""
    model = biased_model(400.0, SLOWEST)
    held = {}
    for shifts in (True, False):
        graphs = graphs_of(model, target, shifts_keys=shifts)
        with torch.no_grad():
            language_logits(graphs, embeds_of(model, PROMPT + 3), PROMPT, model.config.text)
        cache = graphs["decode"].kvCache
        held[shifts] = (cache if target == "ane" else cache.transpose(2, 3))[0, ..., :PROMPT]  # keys of layer 0
    shift = torch.zeros(2, 32)
    shift[:, SLOWEST] = 400.0
    assert torch.allclose(held[True], held[False] - shift[..., None], atol=1e-3)
    assert held[False].abs().max() > 390
    assert held[True].abs().max() < 30


def test_a_shift_of_another_layer_is_seen() -> None:
    """The comparison can fail: keys that lose eight times what turns of their bias give other answers."""
    model = biased_model(40.0, slice(None))
    graphs = graphs_of(model)
    for graph in graphs.values():
        for layer in graph.layers:
            layer.self_attn.key_shift_swapped.data *= 8
    embeds = embeds_of(model, PROMPT + 3)
    with torch.no_grad():
        found = language_logits(graphs, embeds, PROMPT, model.config.text)
    check("planted_fault", reference_logits(model, embeds, PROMPT), found)


def test_only_slow_pairs_are_shifted() -> None:
    text = small_model().config.text
    slow = slow_channels(text, CONTEXT)
    angles = [text.rope_theta ** (-2 * (c % 16) / 32) * 2047 for c in range(32)]
    assert slow.equal(slow_channels(text, 2048))  # what a scan saw holds for every shorter context
    assert not slow.equal(slow_channels(text, 32_768))
    assert slow.tolist() == [angle < LARGEST_TURN for angle in angles]
    assert 0 < slow.sum() < 32
    turned = [2 * math.sin(min(angle, math.pi) / 2) for angle, yes in zip(angles, slow, strict=True) if yes]
    assert max(turned) < 1  # |R_j b − b| / |b| at the farthest position
    assert key_shift(torch.full((64,), 9.0), text, CONTEXT)[0].tolist() == (9 * slow.float()).tolist()
    one = torch.zeros(64)
    one[15] = -9.0  # its pair is channel 31: together or not at all
    one[31], one[14] = 0.5, 0.5
    assert key_shift(one, text, CONTEXT).nonzero().tolist() == [[0, 15], [0, 31]]


@pytest.mark.parametrize(("size", "wanted"), [(7.9, False), (8.1, True)])
def test_small_biases_stay(size: float, wanted: bool) -> None:
    """Where no bias is large the keys stay as they are: three roundings less."""
    assert shifts_keys(biased_model(size, SLOWEST).decoder, CONTEXT) is wanted
    assert not shifts_keys(biased_model(400.0, slice(0, 1)).decoder, CONTEXT)  # a pair that rotates
    assert not shifts_keys(small_model(qkv_bias=False).decoder, CONTEXT)


def rounding_norm(x: Tensor, norm: BoundedRMSNorm) -> Tensor:
    """A bounded norm on an engine that rounds every step to fp16 and adds blocks of 32 squares in fp16; (1, H, 1, 1).

    That is the runtime's pessimistic device (`fp16-accumulate`), its layer_norm included.
    """
    half = x.half()
    root = torch.rsqrt(
        torch.maximum(half.abs().amax(1, keepdim=True) * 2.0**-norm.power, torch.ones((), dtype=half.dtype))
    )
    y = half * (root * root) if norm.safe else half
    squares = torch.cat((y, y)).flatten() ** 2
    total = torch.zeros((), dtype=torch.half)
    for block in squares.float().split(32):
        total = total + block.sum().half()
    mean = (total / squares.numel()).float()
    return (y * torch.rsqrt(mean + norm.norm.eps).half()).float()


@pytest.mark.parametrize("width", [896, 1536, 3584, 4096])
@pytest.mark.parametrize(
    "row", ["all at the end of fp16", "one value and zeros", "alternating", "small", "zeros", "spikes among small ones"]
)
def test_bounded_norm_at_its_bound(width: int, row: str) -> None:
    """No sum leaves fp16 even where an engine squares and adds in fp16; the result is the norm's."""
    x = torch.zeros(1, width, 1, 1)
    flat = x.view(-1)
    generator = torch.Generator().manual_seed(width)
    if row == "all at the end of fp16":
        flat[:] = HALF
    elif row == "one value and zeros":
        flat[7] = -HALF
    elif row == "alternating":
        flat[:], flat[::2] = HALF, -HALF
    elif row == "small":
        flat[:] = 0.02 * torch.randn(width, generator=generator)
    elif row == "spikes among small ones":
        flat[:] = torch.randn(width, generator=generator)
        flat[::200] = 8000.0
    norm = BoundedRMSNorm(width, 1e-6)
    norm.weight.data.fill_(1.0)
    reference = RMSNorm(width, 1e-6)
    power = headroom(2 * width)
    assert 2 * width * 4.0**power <= LARGEST_SUM < 2 * width * 4.0 ** (power + 1)
    with torch.no_grad():
        exact = reference(x.view(1, 1, -1)).view(x.shape)
        assert shrunk(x, 1, power, 1.0)[0].abs().max() <= 2.0**power * (1 + 1e-6)
        found, rounded = norm(x), rounding_norm(x, norm)
    assert torch.isfinite(found).all()
    assert torch.isfinite(rounded).all()
    if row != "zeros":
        check("graph_norm", exact, found)
        check("fp16_engine_norm", exact, rounded)
    else:
        assert not found.any()


@pytest.mark.parametrize(("width", "largest"), [(896, 28_729), (1536, 12_313), (3584, 28_729), (4096, 32_833)])
def test_the_sum_of_squares_as_it_is_rounded(width: int, largest: int) -> None:
    """Over rows of one value, all that fp16 has in two binades: above 32,768 only where 2H is a power of two."""
    values = torch.arange(4096, 16_384, 4).half().view(1, 1, 1, -1)
    found = shrunk(values, 1, headroom(2 * width), 1.0)[0].double() ** 2 * 2 * width
    assert largest - 2 < found.max() <= largest
    assert bool(found.max() > LARGEST_SUM) is (width == 4096)


@pytest.mark.parametrize("exponent", [0, 3, 8])
def test_bounded_norm_of_a_scaled_stream(exponent: int) -> None:
    """A row of any size gives the same norm whatever power of two it comes divided by, eps included."""
    reference, norm = RMSNorm(96, 1e-6), BoundedRMSNorm(96, 1e-6, exponent)
    weight = torch.rand(96) + 0.5
    reference.weight.data, norm.weight.data = weight, weight.view(1, 96, 1, 1)
    rows = torch.randn(5, 96) * torch.tensor([1e-3, 1e-2, 1.0, 1e2, 1e4])[:, None]
    with torch.no_grad():
        for row in rows:
            check("graph_norm", reference(row), norm(row.view(1, 96, 1, 1) * 2.0**-exponent).flatten())


def test_without_the_bound_it_overflows() -> None:
    """What the bound is for: on the same engine, the norm of a row of 300 is 0, since the sum of its squares is not."""
    x = torch.full((1, 896, 1, 1), 300.0)
    found = []
    for safe in (False, True):
        norm = BoundedRMSNorm(896, 1e-6, safe=safe)
        norm.weight.data.fill_(1.0)
        with torch.no_grad():
            check("graph_norm", torch.ones_like(x), norm(x))
        found.append(rounding_norm(x, norm))
    assert not found[0].any()
    assert snr(torch.ones_like(x), found[1]) > 60


def test_exponents_say_what_they_are() -> None:
    protection = Protection(encoder={"network.8": 3}, residual=2, mlp=(0, 4), values=(0, 0))
    assert protection.as_json() == {"encoder": {"network.8": 3}, "residual": 2, "mlp": [0, 4]}
    assert PROTECTED.as_json() == {}
    assert [replace(protection).mlp_of(layer) for layer in range(3)] == [0, 4, 0]
