"""`paper.py encoders`: the paper's table of encoders at 224 to 336, timm's beside FastViTHD.

Float32 and random weights. One picture at a time, all encoders in turn, so that whatever else the machine does meets
each of them. FastViTHD's own growth with the side is measured too, because two of the paper's tables give it
differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median

import paper_claims as paper
import torch
from paper_oracles import Make, counted_flops, fastvithd, features, parameters, seeded, timm_encoder
from paper_table import Claim, Section, Table
from paper_turns import Route, in_turns, ratio

BASE = ("FastViTHD", 256)
GROWTH = (512, 768, 1024)
Key = tuple[str, int]


@dataclass(frozen=True)
class Encoder:
    """One encoder at one side. group: those of one group share their weights. published: the paper's milliseconds."""

    name: str
    side: int
    group: str
    make: Make
    published: float | None = None

    @property
    def key(self) -> Key:
        """Name and side."""
        return self.name, self.side


def encoders() -> list[Encoder]:
    """All that take part, the one that ratios are of first."""
    published = paper.TABLE_10 | {paper.TABLE_3_SIDE: paper.TABLE_10[BASE[1]]}
    ours = [
        Encoder("FastViTHD", side, "ours", fastvithd, published.get(side))
        for side in (BASE[1], paper.TABLE_3_SIDE, *GROWTH)
    ]
    others = {
        ("ViT-L/14", 224): timm_encoder("vit_large_patch14_clip_224"),
        ("ViTamin-L", 224): timm_encoder("vitamin_large_224"),
        ("ConvNeXt-L", 320): timm_encoder("convnext_large_mlp"),
    }
    return [
        *ours,
        Encoder("FastViTHD, timm's", 256, "mci3", timm_encoder("fastvit_mci3", inference_mode=True), published[256]),
        *(Encoder(*key, key[0], make, paper.TABLE_3[key][0]) for key, make in others.items()),
        Encoder("ViT-L/14", 336, "336", timm_encoder("vit_large_patch14_clip_336"), paper.VIT_336),
    ]


def measure(found: list[Encoder], flops: dict[Key, int], rounds: int, clock: str) -> dict[Key, list[float]]:
    """Seconds of every encoder, round by round."""
    modules = {encoder.group: encoder.make for encoder in found}
    made = {group: seeded(make) for group, make in modules.items()}
    routes: dict[str, Route] = {}
    for encoder in found:
        pixels = torch.rand(1, 3, encoder.side, encoder.side)
        routes[str(encoder.key)] = Route(partial(features(made[encoder.group]), pixels), flops[encoder.key])
    with torch.inference_mode():
        seconds = in_turns(routes, rounds, clock)
    return {encoder.key: seconds[str(encoder.key)] for encoder in found}


def section(rounds: int, clock: str) -> Section:
    """Measures, and puts the paper's figures beside."""
    found = encoders()
    flops = {encoder.key: counted_flops(encoder.make, (1, 3, encoder.side, encoder.side)) for encoder in found}
    seconds = measure(found, flops, rounds, clock)
    ratios = {key: ratio(values, seconds[BASE]) for key, values in seconds.items()}
    rows = []
    for encoder in found:
        key, own = encoder.key, median(seconds[encoder.key])
        rows.append((
            encoder.name, str(encoder.side), f"{parameters(encoder.make) / 1e6:.1f}", flops[key] / 1e9, own * 1e3,
            flops[key] / own / 1e9, ratios[key], encoder.published,
            encoder.published and encoder.published / paper.TABLE_10[BASE[1]],
        ))  # fmt: skip
    columns = ("encoder", "side", "M param.", "GFLOP", "ms here", "GFLOP/s", "ratio", "ms paper", "ratio paper")
    table = Table("One picture; ratios to FastViTHD at 256", columns, tuple(rows))
    work = {key: flops[key] / flops[BASE] for key in flops}
    return Section("encoders", (*_claims(ratios, work), *_growth(ratios, work)), (table,), (_note(rounds, clock),))


def _claims(ratios: dict[Key, float], work: dict[Key, float]) -> list[Claim]:
    """Each of table 3's encoders over FastViTHD, whose time table 4 contradicts."""
    base, elsewhere = paper.TABLE_10[BASE[1]], paper.TABLE_4[BASE[1]]
    published = {key: value[0] for key, value in paper.TABLE_3.items()} | {("ViT-L/14", 336): paper.VIT_336}
    return [
        Claim(
            f"{key[0]} at {key[1]} over FastViTHD", value / base, ratios[key], "×",
            (f"{value / elsewhere:.1f}× with table 4's {elsewhere} ms for FastViTHD; {work[key]:.1f}× the FLOPs",),
        )
        for key, value in published.items()
    ]  # fmt: skip


def _growth(ratios: dict[Key, float], work: dict[Key, float]) -> list[Claim]:
    """FastViTHD over itself at 256."""
    claims = []
    for side in GROWTH:
        key, base = ("FastViTHD", side), BASE[1]
        value = paper.TABLE_10[side] / paper.TABLE_10[base] if side in paper.TABLE_10 else None
        remark = f"{paper.TABLE_4[side] / paper.TABLE_4[base]:.1f}× by table 4; {work[key]:.1f}× the FLOPs"
        claims.append(Claim(f"FastViTHD at {side} over itself at 256", value, ratios[key], "×", (remark,)))
    return claims


def _note(rounds: int, clock: str) -> str:
    return (
        f"Float32, batch 1, medians of {rounds} rounds in turn, milliseconds {clock}. Contradictions: table 3 "
        f"has FastViTHD's {paper.TABLE_10[256]} ms at 224, of which its stride is no divisor, table 10 at 256; table 4 "
        f"has {paper.TABLE_4[256]} ms at 256 and {paper.TABLE_4[1024]} at 1024, where table 10 has "
        f"{paper.TABLE_10[1024]}. By section 4 all of it was measured on one machine."
    )
