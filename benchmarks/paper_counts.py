"""`paper.py counts`: the claims that need no clock, parameters and tokens.

Parameters are counted in the models themselves, on torch's meta device; FastViTHD's tokens are those that it gives
there, the others' closed forms (`paper_flops.py`).
"""

from __future__ import annotations

import paper_claims as paper
import torch
from paper_flops import CAMBRIAN_QUERIES, CLIP_L, anyres_tokens, halved_tokens
from paper_oracles import fastvithd, onevision, parameters, shapes_of, siglip
from paper_table import Claim, Section, Table
from torch import nn

from fastvlm_ref.config import VisionConfig
from validation.fit.published import CLIP_WIDTH

SIDES = (224, 256, 336, 448, 768, 1024)
FASTVIT_STRIDE = 32
ONEVISION_SIDE = 1152


def counts() -> Section:
    """Parameters and tokens."""
    claims, table = _sizes()
    fewer, tokens = _tokens()
    return Section("counts", (*claims, *fewer), (table, tokens))


def _sizes() -> tuple[tuple[Claim, ...], Table]:
    """3.4×: encoder beside encoder."""
    tower, head = parameters(fastvithd), parameters(_clip_head)
    whole, used = parameters(siglip), parameters(lambda: onevision().model.vision_tower)
    claim = Claim(
        "FastViTHD smaller than SigLIP-SO400M, parameters", paper.SMALLER, whole / (tower + head), "×",
        (
            f"the paper says {paper.SMALLER_ELSEWHERE}× of the same pair in its list of contributions",
            f"{used / tower:.2f}× as they run: LLaVA-OneVision drops SigLIP's last layer and head, FastVLM CLIP's head",
        ),
    )  # fmt: skip
    rows = (
        ("FastViTHD with its CLIP head", _millions(tower + head), paper.PARAMETERS["FastViTHD"]),
        ("FastViTHD as FastVLM runs it", _millions(tower), None),
        ("SigLIP-SO400M with its head", _millions(whole), paper.PARAMETERS["SigLIP-SO400M"]),
        ("SigLIP-SO400M as LLaVA-OneVision runs it", _millions(used), None),
    )
    return (claim,), Table("Parameters, millions", ("encoder", "here", "paper"), rows)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}"


def _clip_head() -> nn.Module:
    return nn.Linear(VisionConfig().features, CLIP_WIDTH, bias=False)


def _tokens() -> tuple[tuple[Claim, ...], Table]:
    """4× and 16×, and what others make of a picture."""
    tower = shapes_of(fastvithd)
    ours = {side: tokens_of(tower, side) for side in SIDES}
    fastvit = {side: halved_tokens(side, FASTVIT_STRIDE) for side in SIDES}
    claims = (
        Claim(
            "FastViTHD, fewer tokens than FastViT at 1024", paper.FEWER_THAN_FASTVIT, fastvit[1024] / ours[1024], "×"
        ),
        Claim(
            "FastViTHD, fewer tokens than FastViT at 336", paper.FEWER_THAN_FASTVIT, fastvit[336] / ours[336], "×",
            ("336 is a multiple of neither 32 nor 64: both round up, to 11 × 11 and 6 × 6",),
        ),
        Claim(
            "FastViTHD, fewer tokens than ViT-L/14 at 336", paper.FEWER_THAN_VIT, CLIP_L.tokens(336) / ours[336], "×",
            ("only by rounding 5.25 up to 6; what the strides give stands below",),
        ),
        Claim(
            "FastViTHD, fewer tokens than ViT-L/14 at 448, of which both strides are divisors",
            paper.FASTVIT_FEWER_THAN_VIT * paper.FEWER_THAN_FASTVIT, CLIP_L.tokens(448) / ours[448], "×",
            (
                f"the paper's {paper.FASTVIT_FEWER_THAN_VIT}× of FastViT (section 3.1) times its "
                f"{paper.FEWER_THAN_FASTVIT:g}× contradict its {paper.FEWER_THAN_VIT:g}×",
            ),
        ),
        Claim(
            "LLaVA-OneVision at 1152, visual tokens", paper.ONEVISION_TOKENS, anyres_tokens(ONEVISION_SIDE), "tokens",
            ("10 × 729 leaves out the line end behind each of the 81 rows of tiles",),
        ),
        Claim(
            "Cambrian-1, visual tokens", paper.CAMBRIAN_TOKENS, CAMBRIAN_QUERIES + int(CAMBRIAN_QUERIES**0.5), "tokens",
            ("its code puts a line end behind each of the 24 rows (cambrian_arch.py)",),
        ),
    )  # fmt: skip
    rows = tuple((f"{side}", CLIP_L.tokens(side), fastvit[side], ours[side]) for side in SIDES)
    return claims, Table("Tokens of a picture", ("side", "ViT-L/14", "FastViT", "FastViTHD"), rows)


def tokens_of(tower: nn.Module, side: int) -> int:
    """Tokens that FastViTHD itself, on the meta device, gives for a picture of N = `side`."""
    with torch.inference_mode():
        return int(tower(torch.zeros(1, 3, side, side, device="meta")).shape[1])
