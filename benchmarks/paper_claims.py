"""What the FastVLM paper says, number by number with its table: arXiv 2412.13303v2, and ml-fastvlm's README.

Times are of an M1 Max with 32 GB: encoders by Core ML on the Neural Engine, language models by MLX on the GPU, both in
fp16 (section 4, "Benchmarking"). The paper adds the two and counts no text tokens.

Where two of its tables disagree both numbers stand here, under the names of their tables.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stages:
    """Milliseconds of one first token, as table 10 breaks it down."""

    vision: float
    prefill: float

    @property
    def total(self) -> float:
        """What table 6 prints, rounded."""
        return self.vision + self.prefill


LLAVA_ONEVISION = Stages(2721.4, 11402.4)  # 0.5B, 1152 × 1152, 7,290 tokens
FASTVLM_05B = Stages(116.3, 50.5)  # 1024 × 1024, 256 tokens
FASTVLM_7B = Stages(116.3, 524.5)
CAMBRIAN_TOWERS = {"ViT-L/14": 127.4, "SigLIP-SO400M": 272.1, "DINOv2 ViT-L/14": 1171.5, "ConvNeXt-XXL": 2290.4}
CAMBRIAN = Stages(sum(CAMBRIAN_TOWERS.values()), 1223.6)  # 8B, 576 tokens

FASTER_THAN_ONEVISION = 85.0  # abstract, sections 1 and 4.1, README
FASTER_THAN_CAMBRIAN = 7.9  # section 4.1, README
SMALLER = 3.4  # than SigLIP-SO400M: abstract, sections 1 and 4.1, README
SMALLER_ELSEWHERE = 3.6  # the same pair, in the list of contributions (section 1)
FEWER_THAN_FASTVIT = 4.0  # figure 2, section 3.2
FEWER_THAN_VIT = 16.0  # figure 2: "fewer tokens than ViT-L/14 at resolution 336"
FASTVIT_FEWER_THAN_VIT = 5.2  # section 3.1: a patch of 14
ONEVISION_TOKENS = 7290
CAMBRIAN_TOKENS = 576

# Milliseconds of FastViTHD at each side: table 10 (and 6), and table 4, of the same machine.
TABLE_10 = {256: 6.8, 768: 54.8, 1024: 116.3}
TABLE_4 = {256: 10.1, 512: 33.5, 768: 122.6, 1024: 235.6}
# Table 3: milliseconds and millions of parameters of other encoders, each at its own side.
TABLE_3 = {("ViT-L/14", 224): (47.2, 304), ("ViTamin-L", 224): (38.1, 333), ("ConvNeXt-L", 320): (34.4, 200)}
TABLE_3_SIDE = 224  # where the same table has FastViTHD's 6.8 ms
VIT_336 = 127.4  # milliseconds of ViT-L/14 at 336, tables 1 and 10
PARAMETERS = {"FastViTHD": 125.1, "SigLIP-SO400M": 430.0}  # millions: section 3.2, table 6
