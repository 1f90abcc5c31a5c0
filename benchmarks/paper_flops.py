"""Floating-point operations and tokens in closed form, of the models that the paper compares.

A multiply-add counts as two; norms, activations and biases are left out, a per mille or two. Tests hold the formulas
against operations counted while transformers' models and this project's run on torch's meta device.

Sources: Cambrian-1's four towers: arXiv 2406.16860, section on the Spatial Vision Aggregator (CLIP ViT-L/14 at 336,
SigLIP SO400M/14 at 384, OpenCLIP ConvNeXt-XXL at 1024, DINOv2 ViT-L/14 at 518), which is what FastVLM's table 10 lists.
The released 8B has DINOv2-giant at 378 in the last one's place: cambrian-mllm/cambrian,
scripts/cambrian/finetune_cambrian_8b.sh, `facebook/dinov2-giant-res378`; connector_depth 3, 10 sampler layers, 576
queries from there too. The connector: cambrian/model/vision_sampler.py and cambrian_arch.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastvlm_ref.config import TextConfig, VisionConfig
from fastvlm_ref.synthetic.sizes import SIZES
from validation.fit.published import LLAMA_31_8B
from validation.fit.tower import tower_work

LLAMA_3_8B = replace(LLAMA_31_8B, max_positions=8192)  # 3.1 has the same sizes
CAMBRIAN_QUERIES = 576


@dataclass(frozen=True)
class ViT:
    """A plain vision transformer. extra: tokens beside those of patches; gated: three matrices in the MLP (SwiGLU)."""

    width: int
    depth: int
    inner: int
    extra: int = 1
    gated: bool = False
    patch: int = 14

    def tokens(self, side: int) -> int:
        """Patches of a picture of N = `side` that fit whole."""
        return (side // self.patch) ** 2

    def flops(self, side: int) -> int:
        """One picture, without pooling head."""
        patches, width = self.tokens(side), self.width
        rows = patches + self.extra
        matrices = 4 * width**2 + (3 if self.gated else 2) * width * self.inner
        layer = rows * matrices + 2 * rows**2 * width
        return 2 * (patches * 3 * self.patch**2 * width + self.depth * layer)


@dataclass(frozen=True)
class ConvNeXt:
    """A ConvNeXt: blocks and channels of its four stages."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]

    def flops(self, side: int) -> int:
        """One picture of N = `side`, a multiple of 32, without head."""
        side //= 4
        products = side**2 * 3 * 4**2 * self.widths[0]
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage:
                side //= 2
                products += side**2 * 2**2 * self.widths[stage - 1] * width
            products += side**2 * depth * (7**2 * width + 2 * width * 4 * width)
        return 2 * products


CLIP_L = ViT(1024, 24, 4096)
SO400M = ViT(1152, 27, 4304, extra=0)
SO400M_ONEVISION = replace(SO400M, depth=26)  # LLaVA-OneVision drops the last layer and the head
DINOV2_L = ViT(1024, 24, 4096)
DINOV2_G = ViT(1536, 40, 4096, gated=True)
CONVNEXT_XXL = ConvNeXt((3, 4, 30, 3), (384, 768, 1536, 3072))


def fastvithd_flops(side: int, size: str = "0.5b") -> int:
    """FastViTHD with the projector of one of the official sizes: convolutions and matrix products."""
    works = tower_work(VisionConfig(), SIZES[size].text.hidden_size, side)
    return sum(work.count * work.flops for work in works if work.op in ("conv", "matmul"))


def layers_flops(text: TextConfig, rows: int, causal: bool = True) -> int:
    """All layers over `rows` positions, no head; `causal`: no score is computed that the mask hides."""
    queries = text.heads * text.head_dim
    matrices = text.hidden_size * (2 * queries + 2 * text.kv_width + 3 * text.intermediate_size)
    scores = 2 * rows**2 * queries
    return 2 * text.layers * (rows * matrices + (scores // 2 if causal else scores))


def prefill_flops(text: TextConfig, rows: int) -> int:
    """All layers, and the head for the last position."""
    return layers_flops(text, rows) + 2 * text.hidden_size * text.vocab_size


def connector_flops() -> int:
    """Cambrian-1-8B's connector: projections of four towers' features, 3 sampler layers, and 10 inside the decoder.

    Each query looks at 1 + 1 + 1 + 16 features: ConvNeXt's are brought to 96 × 96, the others' to 24 × 24.
    """
    queries, width, hidden = CAMBRIAN_QUERIES, 1024, LLAMA_3_8B.hidden_size
    towers = ((queries, 1152), (queries, 1024), (queries, 1536), (16 * queries, 384 + 768 + 1536 + 3072))
    projections = sum(tokens * (channels * width + width**2) for tokens, channels in towers)
    seen = 1 + 1 + 1 + 16

    def sampler(stream: int) -> int:
        own = width**2 + (stream + width) * width + 2 * width**2 + width**2 + width * stream
        return queries * (own + seen * 2 * width**2 + 2 * seen * width)

    out = queries * (width * hidden + hidden**2)
    return 2 * (projections + 3 * sampler(width) + 10 * sampler(hidden) + out)


def halved_tokens(side: int, stride: int) -> int:
    """Positions behind convolutions of stride 2 that together make `stride`: each keeps the half, rounded up."""
    while stride > 1:
        side, stride = -(-side // 2), stride // 2
    return side**2


def anyres_tokens(side: int, tile: int = 384, patch: int = 14, most: int = 9) -> int:
    """Visual tokens that LLaVA-OneVision makes of a square picture of whole tiles: base picture, tiles, line ends.

    The base picture gives (tile // patch)² tokens, the tiles are put together to one map, and each of its rows is
    followed by one more token. ValueError for a side that is no whole number of tiles, and where the model would
    shrink that map (more tiles than `most`, anyres_max_9).
    """
    across = side // tile
    if side % tile or not 1 <= across**2 <= most:
        raise ValueError(f"a picture of {side}: expected 1 to {most} tiles of {tile}, as many across as down")
    grid = tile // patch
    return grid**2 + (across * grid) * (across * grid + 1)
