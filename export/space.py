"""How much disk a build takes, known from the model's sizes, and compared with what is free before the work starts.

A build is its weights: 2 bytes for each number of each part. The programs, labels and tokenizer are a few MB, and the
margin covers them. An older build that will be replaced stays until the new one is complete, so its room is not free.
It knows of graphs only what changes their size by more than a few per mille: the gains of batch norms and the layer
scales go into the weights beside them (`export.encoder`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from export.choice import Compression
from export.plan import ExportPlan
from export.sizes import language_bytes, table_bytes
from fastvlm.errors import OutputError
from fastvlm_ref.model.fastvlm import FastVLM

FP16_BYTES = 2
BLOB_BYTES = 96  # of each tensor in a weight file: 64 of metadata, and up to 64 to align its values
MARGIN = 0.02
FIXED_BYTES = 64_000_000  # programs, tokenizer, the package that coremltools writes of one function's stand-ins


def part_bytes(model: FastVLM, plan: ExportPlan, compression: Compression) -> dict[str, int]:
    """Returns the bytes of weights in each part that `plan` asks for: encoder, language, embeddings."""
    text = model.config.text
    parts = {}
    if plan.encoder:
        behind = model.projector.parameters() if plan.projector else ()
        plain = _stored_bytes([*_unfolded(model.vision_encoder), *behind])
        parts["encoder"] = plain - compression.encoder_saving
    if plan.language:
        sizes = language_bytes(text, plan, compression)
        parts["language"] = sum(sizes.values()) + BLOB_BYTES * len(sizes)
        parts["embeddings"] = table_bytes(text, compression.embeddings)
    return parts


def _unfolded(tower: nn.Module) -> Iterator[Tensor]:
    """The parameters that have numbers of their own in the encoder's graph."""
    norms = {id(part.weight) for part in tower.modules() if isinstance(part, nn.BatchNorm2d)}
    for name, weight in tower.named_parameters():
        if id(weight) not in norms and "layer_scale" not in name:
            yield weight


def needed_bytes(parts: Mapping[str, int]) -> int:
    """Returns what a build of `parts` takes while it is made, margin included."""
    return round(sum(parts.values()) * (1 + MARGIN)) + FIXED_BYTES


def check_space(place: Path, parts: Mapping[str, int], held: int = 0) -> None:
    """Raises OutputError where the disk of `place` has less free than `parts` need beyond the `held` bytes there."""
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    needed, free = needed_bytes(parts) - held, shutil.disk_usage(there).free
    if free < needed:
        finished = f" beyond the {held / 1e9:.2f} GB that are finished" if held else ""
        raise OutputError(
            f"this build needs {needed / 1e9:.2f} GB in {there}{finished}, and {free / 1e9:.2f} GB are free; "
            "free some, choose another disk with -o, or export the two packages apart with --only"
        )


def _stored_bytes(weights: Iterable[Tensor]) -> int:
    found = list(weights)
    return FP16_BYTES * _count(found) + BLOB_BYTES * len(found)


def _count(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)
