"""How long a validation will take, roughly, told before it begins: operations of the build's functions over a core's.

Packages and reference run side by side, a core each. The rates are those of one core of an x86-64 server of 2022, with
the build of 0.5B and its shapes; another machine may take half the time or three times as long.
It knows nothing of what is compared, only how often each function runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil
from typing import Any

from fastvlm.build import Build
from fastvlm.progress import Progress
from validation.lint.cost import cost_of
from validation.program import Function, read_program

# floating-point operations a second; `decode` reads a weight from memory for every two
RATES = {"encode": 75e9, "prefill": 60e9, "decode": 9e9}
ROUNDED = 2.4  # passes of the encoder that the reference takes: in float32, and with every op rounded
IMAGE = 256  # image tokens where the build has no encoder to tell
LOWER = (7.0, 2.0)  # encoders and prompts that constants, ops and blocks take together, on one picture
TEXT = 64  # positions of a prompt besides the image
LOADING = 150e6  # bytes of a checkpoint read, hashed and widened to float32 in a second
IMPORTS = 8.0
WORTH_SAYING = 60.0  # seconds


@dataclass(frozen=True)
class Seconds:
    """What one call of each function of a build takes; encode: all image sizes together."""

    encode: float
    prefill: float
    decode: float


def seconds_of(build: Build) -> Seconds:
    """Returns what one call of each function takes, from its operations; PackageError where a package is damaged."""
    found = dict.fromkeys(RATES, 0.0)
    packages = [*([build.encoder] if build.encoder else []), *(stage.package for stage in build.language)]
    for package in packages:
        for function in read_program(package).functions:
            kind = "encode" if package == build.encoder else function.name
            if kind in RATES:
                found[kind] += _operations(function) / RATES[kind]
    return Seconds(**found)


def _operations(function: Function) -> int:
    return sum(cost_of(op).flops for op in function.ops)


def expected_seconds(build: Build, in_full: int, alone: int, steps: int) -> float:
    """Returns how long `in_full` samples take, and `alone` of which only the answers are compared."""
    each = seconds_of(build)
    positions = max(((side // build.stride) ** 2 for side in build.image_sizes), default=IMAGE) + TEXT
    prompt = ceil(positions / build.query) * each.prefill
    answer = steps * each.decode
    reference = in_full * (ROUNDED * each.encode + prompt + answer) + 2 * prompt
    package = in_full * (each.encode + 2 * (prompt + answer)) + prompt
    lower = LOWER[0] * each.encode + LOWER[1] * prompt
    asked = alone * (each.encode + prompt + answer)
    compared = max(reference, package) if (os.cpu_count() or 1) > 1 else reference + package
    read = sum(_bytes(row) for row in build.source_files.values())
    return IMPORTS + read / LOADING + lower + compared + asked


def _bytes(row: Any) -> int:
    count = row.get("bytes") if isinstance(row, dict) else None
    return count if isinstance(count, int) else 0


def tell(build: Build, in_full: int, alone: int, steps: int, progress: Progress) -> None:
    """Tells a listener what to expect, where it is more than a minute."""
    seconds = expected_seconds(build, in_full, alone, steps)
    if seconds > WORTH_SAYING:
        progress.note(f"this takes about {in_words(seconds)}, roughly: reckoned from the operations of the build")


def in_words(seconds: float) -> str:
    """Returns minutes or hours as one says them."""
    minutes = max(1, round(seconds / 60))
    if minutes == 1:
        return "a minute"
    return f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"
