"""Which devices a build fits and how fast it might be there, as `fastvlm fit` estimates it from the build's own files.

One row for devices that the estimate cannot tell apart. The largest image size counts. Nothing here was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastvlm.build import ONNX, Build
from validation.fit import advice, check, sizes
from validation.limits import storable

NO_FIGURES = "the estimate is of Core ML packages, and knows nothing of onnxruntime on these devices"
PARTLY = "estimated for whole builds alone; this one was exported with --only, or for somebody else's app"


def device_rows(build: Build) -> dict[str, Any]:
    """Returns the devices of the table with what a build needs and gets there."""
    if build.format == ONNX:
        return {"note": NO_FIGURES, "rows": []}
    if build.encoder is None or not build.language:
        return {"note": PARTLY, "rows": []}
    target = sizes.sizes_of(build.folder)
    rows = [_row(group, advice.advise(target, group[0])) for group in advice.classes()]
    return {"note": check.in_a_line(), "rows": rows}


def _row(group: Sequence[Any], answer: Any) -> dict[str, Any]:
    own = max((each for each in answer.estimates if each.real), key=lambda each: each.image_size)
    memory = own.memory
    return {
        "devices": [device.name for device in group],
        "kind": group[0].kind,
        "chip": group[0].chip.name,
        "memory_gb": list(group[0].memory_gb),
        "image_size": own.image_size,
        "fits": memory.verdict,
        "leaves_room": memory.leaves_room,
        "fits_app": own.fits_app,
        "need_bytes": memory.need,
        "limit_bytes": memory.limit,
        "increased_bytes": memory.increased,
        "basis": memory.basis,
        "first_token": storable(own.first_token),
        "tokens_per_second": storable(own.tokens_per_second),
        "assumed": list(own.assumed),
    }
