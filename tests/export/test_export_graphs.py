"""The graphs that ship compute what the reference computes, in float32, before Core ML enters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from export_limits import check
from small_export import CONTEXT, QUERY, small_model
from torch import Tensor, nn
from torch.nn import functional as F

from export.chunks import Chunk, HeadSplit
from export.decoder import LAYOUTS, LanguageGraph, filled
from export.encoder import EncoderGraph, Scaled, folds
from export.language import chunk_weight, whole_sizes
from export.layout import GraphSizes
from export.norms import ChannelNorm, RMSNormGraph
from export.plan import ExportPlan
from export.protection import PROTECTED, Protection
from export.weights import saturate
from fastvlm.errors import TensorError
from fastvlm_ref.model.attention import LayerNormChannel
from fastvlm_ref.model.decoder import RMSNorm, rope_tables
from validation.host import causal_mask, pad_rows, plan_prefill


def language_logits(graphs: dict[str, LanguageGraph], embeds: np.ndarray, prompt: int, text: Any) -> np.ndarray:
    """Drives prefill in chunks and decode over one shared cache, as a host drives the package."""
    cache, rows, position = torch.zeros_like(graphs["decode"].kvCache), [], 0
    for graph in graphs.values():
        graph.kvCache = cache

    def call(name: str, part: np.ndarray, query: int) -> Tensor:
        cos, sin = rope_tables(text, torch.arange(position, position + query))
        mask = causal_mask(position, len(part), query, CONTEXT)
        inputs = [
            torch.from_numpy(np.asarray(value, np.float32))
            for value in (pad(part, query), cos[None, None], sin[None, None], mask)
        ]
        out: Tensor
        (out,) = graphs[name](*inputs, torch.tensor([position], dtype=torch.int32))
        return out

    for chunk in plan_prefill(prompt, past=0, query=QUERY, context=CONTEXT):
        part = embeds[chunk.start : chunk.start + chunk.rows]
        call(chunk.function, part, QUERY if chunk.function == "prefill" else 1)
        position += chunk.rows
    for index in range(prompt, len(embeds)):
        rows.append(call("decode", embeds[index : index + 1], 1)[0, 0].numpy())
        position += 1
    return np.stack(rows)


def pad(rows: np.ndarray, query: int) -> np.ndarray:
    """`pad_rows` in float32: here nothing but the graph is under test."""
    padded = pad_rows(rows, query).astype(np.float32)
    padded[0, : len(rows)] = rows
    return padded


def reference_logits(model: Any, embeds: np.ndarray, prompt: int) -> np.ndarray:
    hidden = model.decoder(torch.from_numpy(embeds)[None])
    return np.asarray(model.decoder.head(hidden)[0, prompt:])


def graphs_of(
    model: Any, target: str = "ane", protection: Protection = PROTECTED, **changes: Any
) -> dict[str, LanguageGraph]:
    """Both functions of the whole language model, with their numbers; `changes` are to the graphs' sizes."""
    text = model.config.text
    plan = ExportPlan((64,), CONTEXT, QUERY, target=target)
    chunk, split = Chunk(1, 1, 0, text.layers, (0,), filling=True), HeadSplit(1, text.vocab_size)
    sizes = replace(whole_sizes(model.decoder, plan, protection), **changes)

    def graph(query: int, end: str) -> LanguageGraph:
        own: GraphSizes = replace(sizes, query=query)
        made = LanguageGraph(LAYOUTS[target](own), own, end=end, split=split, parts=chunk.parts)
        return filled(made, lambda name: chunk_weight(model.decoder, sizes, target, chunk, split, name))

    return {"prefill": graph(QUERY, "done"), "decode": graph(1, "logits")}


def embeds_of(model: Any, length: int) -> np.ndarray:
    ids = torch.arange(length) * 7 % model.config.text.vocab_size
    return np.asarray(model.decoder.embed_tokens(ids))


@pytest.mark.parametrize("side", [64, 192])
def test_encoder(model: Any, side: int) -> None:
    pixels = torch.rand(1, 3, side, side)
    with torch.no_grad():
        check("graph", model.encode_image(pixels), EncoderGraph(model)(pixels))


def test_encoder_with_scales_that_fp16_would_lose(model: Any) -> None:
    """Layer scales at their initial 1e-5 stay an op of their own."""
    changed = small_model()
    for name, value in changed.named_parameters():
        if "layer_scale" in name:
            value.fill_(1e-5)
    graph = EncoderGraph(changed)
    kept = [module for module in graph.modules() if isinstance(module, Scaled) and module.scale is not None]
    folded = [module for module in EncoderGraph(model).modules() if isinstance(module, Scaled) and module.scale is None]
    assert len(kept) == len(folded) == 7  # three RepMixer blocks, two attention blocks with two each
    pixels = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        check("graph", changed.encode_image(pixels), graph(pixels))


def test_folding_rule_looks_at_every_channel() -> None:
    weight = torch.full((2, 4, 1, 1), 0.1)
    assert folds(weight)
    weight[1] = 5e-4
    assert not folds(weight)


@pytest.mark.parametrize("target", ["ane", "gpu"])
@pytest.mark.parametrize("prompt", [1, 15, 16, 17, 40])
def test_language_model(model: Any, prompt: int, target: str) -> None:
    """Prefill in padded chunks, then three cached steps, against the whole sequence at once."""
    embeds = embeds_of(model, prompt + 3)
    with torch.no_grad():
        found = language_logits(graphs_of(model, target), embeds, prompt, model.config.text)
        check("graph", reference_logits(model, embeds, prompt), found)


def test_language_model_up_to_the_last_position(model: Any) -> None:
    """A prompt whose last chunk would leave the context is finished by decode, and the context can be filled."""
    embeds = embeds_of(model, CONTEXT)
    with torch.no_grad():
        found = language_logits(graphs_of(model), embeds, CONTEXT - 3, model.config.text)
        check("graph", reference_logits(model, embeds, CONTEXT - 3), found)


@pytest.mark.parametrize(
    "text",
    [
        {"qkv_bias": False, "tied_head": False, "rope_theta": 1e4, "kv_heads": 4},  # Llama / Vicuna
        {"heads": 6, "kv_heads": 2, "head_dim": 32, "hidden_size": 96},  # groups of three
        {"heads": 2, "kv_heads": 1, "head_dim": 128},
    ],
)
@pytest.mark.parametrize("target", ["ane", "gpu"])
def test_other_decoders(text: dict[str, Any], target: str) -> None:
    other = small_model(**text)
    embeds = embeds_of(other, 23)
    with torch.no_grad():
        found = language_logits(graphs_of(other, target), embeds, 20, other.config.text)
        check("graph", reference_logits(other, embeds, 20), found)


def test_a_wrong_rope_is_seen(model: Any) -> None:
    """The comparison above can fail: half the angle in the cached keys is found."""
    graphs = graphs_of(model)
    attention: Any = graphs["prefill"].layers[0]
    attention.self_attn.k_proj = nn.Conv2d(64, 64, 1)
    embeds = embeds_of(model, 23)
    with torch.no_grad():
        found = language_logits(graphs, embeds, 20, model.config.text)
        check("planted_fault", reference_logits(model, embeds, 20), found)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e4, 6e4])
def test_rms_norm_as_layer_norm(size: float) -> None:
    reference = RMSNorm(96, 1e-6)
    reference.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(1, 4, 96)
    x = x / x.abs().max() * size
    graph = RMSNormGraph(96, reference.eps)
    graph.weight.data = reference.weight.data.repeat(2)
    with torch.no_grad():
        check("graph", reference(x), graph(x))
        # fp16 in and out, the sums inside the op wider: what Core ML's layer_norm is relied on for
        mirrored = torch.cat((x, -x), -1).half().float()
        half = F.layer_norm(mirrored, (192,), graph.weight.half().float(), None, 1.0133e-6)[..., :96].half()
        check("fp16_norm", reference(x), half.float())


def test_channel_norm() -> None:
    reference = LayerNormChannel(48)
    x = torch.randn(1, 48, 5, 7) * 300
    with torch.no_grad():
        check("graph", reference(x), ChannelNorm(reference.eps)(x))


def test_saturation_is_counted_and_leaves_the_tensor_alone() -> None:
    weight = torch.tensor([[1e5, 0.0], [0.0, -7e4]])
    clamped, count = saturate("0.weight", weight)
    assert count == 2
    assert clamped.tolist() == [[65504.0, 0.0], [0.0, -65504.0]]
    assert weight[0, 0] == 1e5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(TensorError, match=r"layers\.3\.weight holds NaN or infinity"):
        saturate("layers.3.weight", torch.tensor([1.0, value]))
