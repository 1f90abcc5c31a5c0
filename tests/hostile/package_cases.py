"""Cases of the row of damaged packages: one is opened, run once, described and linted after a change to one file."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ordeal import Case
from stranger_packages import WAYS, Original

from fastvlm.errors import FastVLMError, PackageError
from validation.contents import describe_package
from validation.lint.checking import lint
from validation.mil import MILModel
from validation.mil.features import Feature

MOST_GIVEN = 1 << 20  # values that a case gives as one input


def package_cases(originals: Sequence[Original], folder: Path, count: int, seed: str = "package") -> list[Case]:
    """`count` changes, dealt out in turn to the packages; each is laid out in `folder` when its case runs."""
    return [_case(originals[index % len(originals)], folder, f"{seed} {index}") for index in range(count)]


def _case(original: Original, folder: Path, seed: str) -> Case:
    draw = random.Random(f"{original.folder.name} {seed}")
    (way,) = draw.choices(tuple(WAYS), tuple(WAYS.values()))

    def run() -> None:
        part, data = original.changed(way, draw)
        used(original.lay(folder / original.folder.name, {part: data}))

    return f"{original.folder.name} {seed} {way}", run


def used(package: Path) -> None:
    """Describes, lints and runs a package; raises the named error of the run where there was one."""
    for look in (describe_package, lint):
        try:
            look(package)
        except FastVLMError:
            continue
    ran(package)


def ran(package: Path) -> dict[str, Any]:
    """One call of the default function, of ones."""
    model = MILModel(package)
    state = model.make_state() if model.states else None
    return model.predict({name: _given(feature) for name, feature in model.inputs.items()}, state)


def _given(feature: Feature) -> np.ndarray:
    """A picture or numbers as the package says that it takes them."""
    if feature.image is not None:
        shape: tuple[int, ...] = (feature.image.height, feature.image.width, 3)
        dtype: Any = np.uint8
    else:
        shape = tuple(int(length or 1) for length in feature.shape)
        dtype = feature.type.dtype.numpy if feature.type.dtype is not None else np.float32
    if min(shape, default=0) < 0 or math.prod(shape) > MOST_GIVEN:
        raise PackageError(f"{feature.name!a:.60} takes {shape}, which nobody gives")
    return np.ones(shape, dtype)
