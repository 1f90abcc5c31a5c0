"""`paper.py cambrian`: 7.9× against Cambrian-1-8B, by FLOPs and by an estimate of time on this machine.

Cambrian-1-8B is not run: its operations are counted by formula, and each kind is divided by the rate that this machine
reaches at the same kind of work, measured in turn: a ViT-L/14, a ConvNeXt-XXL at 256, FastViTHD at 1024, and one layer
of each language model with as many rows as the picture gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import paper_claims as paper
import torch
from paper_flops import (
    CAMBRIAN_QUERIES,
    CLIP_L,
    CONVNEXT_XXL,
    DINOV2_G,
    DINOV2_L,
    LLAMA_3_8B,
    SO400M,
    connector_flops,
    fastvithd_flops,
    layers_flops,
    prefill_flops,
)
from paper_oracles import decoder, fastvithd, features, seeded, timm_encoder
from paper_table import Cell, Claim, Section, Table
from paper_turns import Route, in_turns

from fastvlm_ref.config import TextConfig
from fastvlm_ref.synthetic.sizes import SIZES

QWEN = SIZES["7b"].text
ROWS = {"Llama-3-8B": (LLAMA_3_8B, CAMBRIAN_QUERIES), "Qwen2-7B": (QWEN, 256)}
SIDE = 1024
LINE_ENDS = 24


@dataclass(frozen=True)
class Part:
    """One piece of work. kind: which measured rate it is divided by; published: the paper's milliseconds."""

    name: str
    flops: int
    kind: str
    published: float | None = None


CAMBRIAN_TOWERS = (
    Part("CLIP ViT-L/14 at 336", CLIP_L.flops(336), "vit", paper.CAMBRIAN_TOWERS["ViT-L/14"]),
    Part("SigLIP-SO400M at 384", SO400M.flops(384), "vit", paper.CAMBRIAN_TOWERS["SigLIP-SO400M"]),
    Part("DINOv2 ViT-L/14 at 518", DINOV2_L.flops(518), "vit", paper.CAMBRIAN_TOWERS["DINOv2 ViT-L/14"]),
    Part("ConvNeXt-XXL at 1024", CONVNEXT_XXL.flops(1024), "convnext", paper.CAMBRIAN_TOWERS["ConvNeXt-XXL"]),
)
CAMBRIAN_PREFILL = Part(
    "Llama-3-8B, 576 rows", prefill_flops(LLAMA_3_8B, CAMBRIAN_QUERIES), "Llama-3-8B", paper.CAMBRIAN.prefill
)
OURS_VISION = Part("FastViTHD at 1024", fastvithd_flops(SIDE, "7b"), "fastvithd", paper.FASTVLM_7B.vision)
OURS_PREFILL = Part("Qwen2-7B, 256 rows", prefill_flops(QWEN, 256), "Qwen2-7B", paper.FASTVLM_7B.prefill)
# What the released checkpoint has and the paper's sum has not.
GIANT = Part("DINOv2 ViT-g/14 at 378, as released", DINOV2_G.flops(378), "vit")
CONNECTOR = Part("connector", connector_flops(), "Llama-3-8B")
LONGER = Part("Llama-3-8B, 600 rows", prefill_flops(LLAMA_3_8B, CAMBRIAN_QUERIES + LINE_ENDS), "Llama-3-8B")


def measured_rates(rounds: int, clock: str) -> dict[str, float]:
    """FLOP a second of each kind of work on this machine, the median of the rounds."""
    routes: dict[str, Route] = {}
    work = {"vit": CLIP_L.flops(336), "convnext": CONVNEXT_XXL.flops(256), "fastvithd": fastvithd_flops(SIDE)}
    modules = {
        "vit": (seeded(timm_encoder("vit_large_patch14_clip_336")), 336),
        "convnext": (seeded(timm_encoder("convnext_xxlarge")), 256),
        "fastvithd": (seeded(fastvithd), SIDE),
    }
    for name, (module, side) in modules.items():
        routes[name] = Route(partial(features(module), torch.rand(1, 3, side, side)), work[name])
    for name, (text, rows) in ROWS.items():
        routes[name] = _one_layer(text, rows)
    with torch.inference_mode():
        seconds = in_turns(routes, rounds, clock)
    return {name: routes[name].flops / median(values) for name, values in seconds.items()}


def _one_layer(text: TextConfig, rows: int) -> Route:
    """One layer over that many rows."""
    layer = replace(text, layers=1, vocab_size=16)
    run = partial(seeded(partial(decoder, layer)), torch.randn(1, rows, text.hidden_size))
    return Route(run, layers_flops(layer, rows))


def section(rounds: int, clock: str) -> Section:
    """Counts, measures and estimates."""
    rates = measured_rates(rounds, clock)
    cambrian, ours = (*CAMBRIAN_TOWERS, CAMBRIAN_PREFILL), (OURS_VISION, OURS_PREFILL)
    seconds = {part: part.flops / rates[part.kind] for part in (*cambrian, *ours, GIANT, CONNECTOR, LONGER)}
    released = (*(part for part in CAMBRIAN_TOWERS if "DINOv2" not in part.name), GIANT, CONNECTOR, LONGER)
    total = sum(seconds[part] for part in ours)
    claims = (
        Claim(
            "Cambrian-1-8B over FastVLM-7B at 1024, first token (here: estimate)", paper.FASTER_THAN_CAMBRIAN,
            sum(seconds[part] for part in cambrian) / total, "×",
            (*_contradictions(), "the paper leaves out Cambrian's connector and 24 line ends: see the released one"),
        ),
        Claim("  vision alone", paper.CAMBRIAN.vision / paper.FASTVLM_7B.vision,
              sum(seconds[part] for part in CAMBRIAN_TOWERS) / seconds[OURS_VISION], "×"),
        Claim("  prefill alone", paper.CAMBRIAN.prefill / paper.FASTVLM_7B.prefill,
              seconds[CAMBRIAN_PREFILL] / seconds[OURS_PREFILL], "×"),
        Claim("the same by FLOPs", None, _flops(cambrian) / _flops(ours), "×"),
        Claim("  vision alone", None, _flops(CAMBRIAN_TOWERS) / OURS_VISION.flops, "×"),
        Claim("  prefill alone", None, CAMBRIAN_PREFILL.flops / OURS_PREFILL.flops, "×"),
        Claim(
            "Cambrian-1-8B as released over FastVLM-7B (estimate)", None,
            sum(seconds[part] for part in released) / total, "×",
            ("DINOv2-giant at 378 where the paper lists ViT-L/14 at 518, its connector, 600 rows",),
        ),
    )  # fmt: skip
    rows = tuple(_row(part, rates, seconds[part]) for part in seconds)
    columns = ("part", "GFLOP", "ms paper", "TFLOP/s paper", "GFLOP/s here", "s here, estimated")
    return Section("cambrian", claims, (Table("Parts", columns, rows),), (_note(rounds, clock),))


def _flops(parts: tuple[Part, ...]) -> int:
    return sum(part.flops for part in parts)


def _row(part: Part, rates: dict[str, float], seconds: float) -> tuple[Cell, ...]:
    implied = part.published and part.flops / part.published / 1e9
    return part.name, part.flops / 1e9, part.published, implied, rates[part.kind] / 1e9, seconds


def _contradictions() -> tuple[str, ...]:
    towers = {part.name: part for part in CAMBRIAN_TOWERS}
    dino, clip = towers["DINOv2 ViT-L/14 at 518"], towers["CLIP ViT-L/14 at 336"]
    otherwise = paper.CAMBRIAN.total / (paper.TABLE_4[SIDE] + paper.FASTVLM_7B.prefill)
    return (
        f"{otherwise:.1f}× with table 4's {paper.TABLE_4[SIDE]} ms for FastViTHD at 1024",
        f"DINOv2's ViT-L/14 takes {paper.CAMBRIAN_TOWERS['DINOv2 ViT-L/14'] / paper.VIT_336:.1f} times as long there "
        f"as CLIP's for {dino.flops / clip.flops:.1f} times the FLOPs: see the rates that its times imply",
    )


def _note(rounds: int, clock: str) -> str:
    return (
        f"Rates are medians of {rounds} rounds in turn ({clock} time), float32, random weights; those of the language "
        "models are of one layer. An estimate is FLOPs over the rate of its kind of work, the connector's over the "
        "language model's."
    )
