"""Every stored fp16 weight against the number that the checkpoint and the declared folds give, bit for bit.

Both sides come in pieces and give their pages back, so a weight of a gigabyte costs a few dozen megabytes. What is
declared is rounded as an export rounds: saturated at fp16's end, then to the nearest (`export.parameters`).
It knows no programs; what is stored in fewer bits is `validation.audit.codes`'.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from numpy.typing import NDArray

from export.parameters import GraphWeight
from validation.audit.findings import WEIGHTS, Findings
from validation.mil.values import Constant, TensorType

Bits = NDArray[np.uint16]
HELD = 1 << 24  # values of a mapped blob after which its pages are given back: 32 MB


def compare_halves(title: str, weight: GraphWeight, constant: Constant, findings: Findings) -> None:
    """Counts the values in which a stored constant differs from what `weight` declares, and tells the first.

    PackageError where the constant cannot be read, TensorError where the checkpoint's weight is no number.
    """
    count = prod(weight.shape)
    findings.look(WEIGHTS, count)
    kind = constant.type
    if (
        not isinstance(kind, TensorType)
        or kind.dtype is None
        or (kind.dtype.name, kind.shape) != ("fp16", weight.shape)
    ):
        findings.count(WEIGHTS, f"{title} is {kind}, expected fp16{list(weight.shape)}", count)
        return
    different, first = 0, ""
    for start, stored, declared in _pieces(weight, constant):
        wrong = np.flatnonzero(stored != declared)
        if wrong.size and not first:
            at = int(wrong[0])
            place = [int(each) for each in np.unravel_index(start + at, weight.shape)]
            found, expected = (float(bits[at : at + 1].view(np.float16)[0]) for bits in (stored, declared))
            first = f"{title} {place} is {found:.5g}, expected {expected:.5g} (of {weight.name})"
        different += wrong.size
    constant.forget()
    if different:
        findings.count(WEIGHTS, first, different)


def _pieces(weight: GraphWeight, constant: Constant) -> Iterator[tuple[int, Bits, Bits]]:
    """Gives where a piece starts, its stored bits, and those that are declared."""
    start = held = 0
    clamped: dict[str, int] = {}  # what an export reports; here it is only rounded like there
    for piece in weight.halves(clamped):
        declared = np.frombuffer(piece, np.uint16)
        yield start, constant.part(start, declared.size).view(np.uint16), declared
        start, held = start + declared.size, held + declared.size
        if held >= HELD:
            constant.forget()
            held = 0
