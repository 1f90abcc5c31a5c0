"""What a scan found: each tensor's largest magnitude and share of subnormals, in the order in which they are computed.

Numbers have three significant digits, so that the last bits of a sum do not show. A tensor is called by its part
("encoder." or "decoder."), the innermost module that computed it, and the op: `encoder.network.10.0.token_mixer
matmul.2` is the second matmul of one call of that module.
It does not know how numbers are found, nor where they are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FP16_LARGEST = 65_504.0  # what fp16 can hold; beyond it is infinity
ALLOWED = 32_768.0  # what no value of a package may exceed (DESIGN, numbers that must hold)
SMALLEST_NORMAL = 2.0**-14  # below, fp16 loses bits, and an engine may flush
ENCODER, DECODER = "encoder.", "decoder."


@dataclass(frozen=True)
class TensorRange:
    """One tensor over all inputs: largest |x|, share of its values with 0 < |x| < 2⁻¹⁴, the input with the largest."""

    name: str
    peak: float
    subnormal: float
    worst: str


@dataclass(frozen=True)
class Ranges:
    """The result of one scan.

    fingerprint: of the checkpoint (`export.ranges.cache`). image_sizes: sides N that the encoder saw every picture at.
    pictures, prompts: what encoder and decoder were given, by name. positions: all that the decoder saw.
    calibration: the hash of the user's own pictures, None where there were none. tensors: in order of execution.
    sites: of the encoder's graph (`export.encoder_sites`), which of its tensors share an exponent.
    """

    fingerprint: str
    image_sizes: tuple[int, ...]
    pictures: tuple[str, ...]
    prompts: tuple[str, ...]
    positions: int
    calibration: str | None
    tensors: tuple[TensorRange, ...]
    sites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def part(self, prefix: str) -> tuple[TensorRange, ...]:
        """Returns the tensors of one part, ENCODER or DECODER, in order."""
        return tuple(tensor for tensor in self.tensors if tensor.name.startswith(prefix))

    def peaks(self, prefix: str) -> dict[str, float]:
        """Returns {name without `prefix`: largest magnitude} of one part, in order."""
        return {tensor.name.removeprefix(prefix): tensor.peak for tensor in self.part(prefix)}

    def first_beyond(self, limit: float, prefix: str = "") -> TensorRange | None:
        """Returns the first tensor, in order of execution, that exceeds `limit`; None where all keep it."""
        return next((tensor for tensor in self.part(prefix) if tensor.peak > limit), None)

    def largest(self, count: int, prefix: str = "") -> tuple[TensorRange, ...]:
        """Returns the `count` tensors with the largest magnitudes, the largest first."""
        return tuple(sorted(self.part(prefix), key=lambda tensor: -tensor.peak)[:count])

    def covers(self, image_sizes: tuple[int, ...], calibration: str | None) -> bool:
        """Whether all these sides and the user's pictures of this hash (None: no such pictures) were scanned."""
        return set(image_sizes) <= set(self.image_sizes) and calibration in (None, self.calibration)

    def as_json(self) -> dict[str, Any]:
        """Returns everything, and what a reader asks for first."""
        beyond = {str(int(limit)): self.first_beyond(limit) for limit in (FP16_LARGEST, ALLOWED)}
        first = {limit: None if tensor is None else tensor.name for limit, tensor in beyond.items()}
        return asdict(self) | {"first_beyond": first}


def ranges_of(content: Mapping[str, Any]) -> Ranges:
    """Returns the Ranges in what `as_json` gave, unknown keys ignored; ValueError for what no scan writes."""
    try:
        tensors = tuple(_tensor(row) for row in content["tensors"])
        return Ranges(
            _text(content["fingerprint"]),
            tuple(_count(side) for side in content["image_sizes"]),
            tuple(_text(name) for name in content["pictures"]),
            tuple(_text(name) for name in content["prompts"]),
            _count(content["positions"]),
            None if content["calibration"] is None else _text(content["calibration"]),
            tensors,
            {_text(site): tuple(_text(name) for name in names) for site, names in content["sites"].items()},
        )
    except (LookupError, TypeError, AttributeError) as problem:
        raise ValueError(f"it lacks a field or has another in its place ({problem})") from problem


def _tensor(row: Mapping[str, Any]) -> TensorRange:
    peak, subnormal = row["peak"], row["subnormal"]
    for number, most in ((peak, math.inf), (subnormal, 1.0)):
        if not isinstance(number, (int, float)) or not (math.isfinite(number) and 0 <= number <= most):
            raise ValueError(f"{row['name']} has {number!r}")
    return TensorRange(_text(row["name"]), float(peak), float(subnormal), _text(row["worst"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value
