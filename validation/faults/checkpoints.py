"""What faults are planted into: the embedded checkpoint, or small seeded ones, each with the builds that are needed.

A seeded checkpoint is one of `fastvlm synth` (`fastvlm_ref.synthetic`) with small numbers: every stage of the tower,
several decoder layers, fewer key heads than query heads, a head of its own, which `tiny` has not.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from export.api import export_model
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.config import VisionConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.synthetic.folder import Recipe, write_synthetic
from fastvlm_ref.synthetic.sizes import QWEN2_7B, SIZES, Size
from validation.faults.bench import Bench

CHECKPOINTS = ("tiny", "seeded")
CONTEXT = 512  # positions that the builds hold
VISION = VisionConfig(
    image_size=128, depths=(1, 1, 2, 1, 1), widths=(16, 32, 32, 64, 64), mlp_widths=(32, 64, 64, 128, 128),
    features=128, se_channels=8,  # fewer than ten: such a bias lies in the program, not in the weight file
)  # fmt: skip
TEXT = replace(
    QWEN2_7B, hidden_size=128, layers=4, heads=4, kv_heads=2, head_dim=32, intermediate_size=256, vocab_size=736
)
SMALL: Size = replace(SIZES["7b"], name="small", text=TEXT, tokens=700, vision=VISION)


class Subject:
    """A checkpoint in memory and its clean builds in `folder`, one for each scheme, made when it is first asked for."""

    def __init__(self, model: FastVLM, folder: Path, progress: Progress = SILENT) -> None:
        self.model, self.folder, self.progress = model, folder, progress

    def build(self, scheme: str = "fp16") -> Path:
        """Returns the clean build whose weights are stored in `scheme`; never written to."""
        place = self.folder / scheme
        if not place.exists():
            quantize = None if scheme == "fp16" else scheme
            export_model(self.model, place, context=CONTEXT, quantize=quantize, progress=self.progress)
        return place

    def bench(self, folder: Path, scheme: str = "fp16", *, own_model: bool = False) -> Bench:
        """Returns a bench in the new folder `folder`; `own_model` where the model is to be changed."""
        model = copy.deepcopy(self.model) if own_model else self.model
        return Bench(self.build(scheme), model, folder)


def subject(checkpoint: str, folder: Path, progress: Progress = SILENT) -> Subject:
    """Returns "tiny", or "seeded" (seed 0), with room for its builds in `folder`."""
    return Subject(load_checkpoint("tiny"), folder, progress) if checkpoint == "tiny" else seeded(0, folder, progress)


def seeded(seed: int, folder: Path, progress: Progress = SILENT) -> Subject:
    """Returns the small checkpoint of a seed, which is written into `folder` for that."""
    place = write_synthetic(Recipe(SMALL, seed=seed), folder / "checkpoint")
    return Subject(load_checkpoint(place), folder, progress)
