"""Speeds that others measured and published, each with what was run, as ops on an engine.

`fits` names the figures that an efficiency is fitted to (`check.py`); the others are only held against it. None was
measured by this project, and each was measured with other software than the one before: that is told, not corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from fastvlm.devices import CHIPS, Chip
from fastvlm_ref.config import TextConfig, VisionConfig
from fastvlm_ref.synthetic.sizes import SIZES
from validation.fit.decoder import decode_work, rows_work
from validation.fit.tower import Stores, dense, tower_work
from validation.fit.work import HALF, Shape, Weights, Work

ENCODE, PREFILL, DECODE = "encode", "prefill", "decode"
PAPER = "FastVLM, arXiv 2412.13303: M1 Max, encoder on the Neural Engine, language model with MLX"
LLAMA = "Apple, On Device Llama 3.1 with Core ML: M1 Max, GPU"
MOBILECLIP2 = "apple/ml-mobileclip, README: iPhone 12 Pro Max; MobileCLIP2-S3's tower is FastViTHD's with a CLIP head"
ROCKY = "john-rocky/CoreML-LLM, ModelDownloader.swift: iPhone 17 Pro, Core ML with state, 4 packages and a head"
PANARO = "smpanaro/coreml-llm-cli, README: Core ML, 64 rows at each step, packages of 3 layers"
PANARO_M3 = "AppleNeuralEngine-Kit, README: the same model on an M3 Max"
MORALES = "tmorales2000/fastvlm-coreai: Mac mini M4 Pro, Core AI (not Core ML) on the GPU"

LLAMA_31_8B = TextConfig(4096, 32, 32, 8, 128, 14_336, 128_256, 1e-5, 5e5, False, False, 131_072)
QWEN3_VL_2B = TextConfig(2048, 28, 16, 8, 128, 6144, 151_936, 1e-6, 5e6, False, True, 262_144)
LLAMA_2_7B = SIZES["vicuna-7b"].text
CLIP_WIDTH = 768


@dataclass(frozen=True)
class Published:
    """One figure: `works` on the engine ("ane" | "gpu") of `chip` took so many seconds.

    unit: "ms" or "tokens/s", as it was published. fits: whether an efficiency is fitted to it. packages, layers: as in
    `timing.stage`.
    """

    what: str
    stage: str
    chip: str
    engine: str
    value: float
    unit: str
    source: str
    works: Callable[[], list[Work]]
    fits: bool = False
    packages: int = 1
    layers: int = 0

    @property
    def seconds(self) -> float:
        """What it took."""
        return self.value / 1e3 if self.unit == "ms" else 1 / self.value

    def in_unit(self, seconds: float) -> float:
        """Seconds as the figure is published."""
        return seconds * 1e3 if self.unit == "ms" else 1 / seconds


def chip_of(figure: Published) -> Chip:
    """The chip that a figure was measured on."""
    return next(chip for chip in CHIPS if chip.name == figure.chip)


def in_bits(bits: float, form: str) -> Stores:
    """How others stored all linear layers: `bits` a weight, scales and tables included."""

    def stores(_: str, shape: Shape) -> Weights:
        return Weights(round(prod(shape) * bits / 8), HALF * prod(shape), form)

    return stores


def _encoder(side: int, milliseconds: float) -> Published:
    return Published(
        f"FastViTHD at {side}", ENCODE, "M1 Max", "ane", milliseconds, "ms", PAPER,
        lambda: tower_work(VisionConfig(), SIZES["0.5b"].text.hidden_size, side), fits=True,
    )  # fmt: skip


def _prefill(size: str, milliseconds: float) -> Published:
    text = SIZES[size].text
    return Published(
        f"prefill of 256 rows, {size}", PREFILL, "M1 Max", "gpu", milliseconds, "ms", PAPER,
        lambda: rows_work(text, 256, 256, "gpu"), fits=True, layers=text.layers,
    )  # fmt: skip


def _llama(name: str, stores: Stores, rate: float) -> Published:
    return Published(
        f"step of Llama 3.1 8B, {name}", DECODE, "M1 Max", "gpu", rate, "tokens/s", LLAMA,
        lambda: decode_work(LLAMA_31_8B, 2048, "gpu", stores), fits=True, layers=LLAMA_31_8B.layers,
    )  # fmt: skip


def _morales(size: str, name: str, stores: Stores, rate: float) -> Published:
    text = SIZES[size].text
    return Published(
        f"step of {size}, {name}", DECODE, "M4 Pro", "gpu", rate, "tokens/s", MORALES,
        lambda: decode_work(text, 4096, "gpu", stores), layers=text.layers,
    )  # fmt: skip


def _panaro(chip: str, rate: float, source: str) -> Published:
    return Published(
        "step of Llama 2 7B, 64 rows, 4-bit palettes", PREFILL, chip, "ane", rate, "tokens/s", source,
        lambda: rows_work(LLAMA_2_7B, 64, 512, "ane", in_bits(4, "palette")), packages=13,
    )  # fmt: skip


FIGURES: tuple[Published, ...] = (
    _encoder(256, 6.8),
    _encoder(768, 54.8),
    _encoder(1024, 116.3),
    _prefill("0.5b", 50.5),
    _prefill("1.5b", 116.1),
    _prefill("7b", 524.5),
    _llama("fp16", dense, 16.26),
    _llama("int4 in blocks of 32", in_bits(4.5, "block"), 33.67),
    Published(
        "FastViTHD at 256", ENCODE, "A14", "ane", 8.0, "ms", MOBILECLIP2,
        lambda: tower_work(VisionConfig(), CLIP_WIDTH, 256),
    ),
    _panaro("M1 Max", 7.02, PANARO),
    _panaro("M3 Max", 13.92, PANARO_M3),
    Published(
        "step of Qwen3-VL 2B, int8", DECODE, "A19 Pro", "ane", 24.4, "tokens/s", ROCKY,
        lambda: decode_work(QWEN3_VL_2B, 2048, "ane", in_bits(8, "channel")), packages=5,
    ),
    _morales("0.5b", "fp16", dense, 131),
    _morales("7b", "int4", in_bits(4.5, "block"), 51),
)  # fmt: skip
