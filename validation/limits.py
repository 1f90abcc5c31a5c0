"""The one table of limits: what is compared, by which metric, how far it may go, what was measured, and why.

The command, the tests and the documents all read this table; a limit on a build that stands anywhere else is a defect
(the export tests' seeded model has rows of the same form in tests/export/export_limits.py). Each limit keeps
3 to 15 times headroom over the measured value (in dB: 10 to 20 dB of error), so that it neither alarms on another CPU
nor sleeps through a fault; a test holds the table to that, and to what a validation really measures. The exceptions
are named there: what fp16 can hold, what must be exact, and what the design fixes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastvlm.manifest import significant

# From what no output shows to what a user reads. A fault is caught by the rung that looks at what it changes.
RUNGS = ("constants", "ops", "blocks", "network", "tokens")
_RUNG_OF = {
    "audit": "constants", "embeddings": "constants", "manifest": "constants", "op": "ops", "block": "blocks",
    "preprocess": "tokens", "prompt": "tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """One row: `metric` of `quantity` must be at least (`min`) or at most (`max`) `limit`."""

    quantity: str
    metric: str
    bound: Literal["min", "max"]
    limit: float
    measured: float  # the worst value on the embedded checkpoint
    reason: str

    @property
    def key(self) -> str:
        """`quantity.metric`, the name by which tests and reports speak of this row."""
        return f"{self.quantity}.{self.metric}"

    @property
    def rung(self) -> str:
        """Which of `RUNGS` measures it."""
        return "tokens" if self.metric == "divergences" else _RUNG_OF.get(self.quantity, "network")

    @property
    def words(self) -> str:
        """The limit as tables show it: "≥ 60" or "≤ 5e-05"."""
        return in_words(self.bound, self.limit)

    def holds(self, value: float) -> bool:
        """Returns whether `value` is good; NaN never is."""
        return value >= self.limit if self.bound == "min" else value <= self.limit


def in_words(bound: str, limit: float) -> str:
    """Returns how a limit is shown: "≥ 60" for a `min`, "≤ 5e-05" for a `max`."""
    return f"{'≥' if bound == 'min' else '≤'} {limit:g}"


# fmt: off
TABLE: tuple[Limit, ...] = (
    Limit(
        "op", "weights_db", "min", 55.0, 66.1,
        "worst output channel of a convolution or linear layer alone, in float32; weights rounded to fp16 keep 66 dB",
    ),
    Limit(
        "op", "plain_db", "min", 95.0, 109.7,
        "worst row of what stands between weights (norms, attention, GELU, sums) in float32: no weight is rounded",
    ),
    Limit(
        "op", "unmatched", "max", 0.0, 0,
        "pieces of the reference that a program lacks, or that give something of another shape",
    ),
    Limit(
        "op", "uncovered", "max", 0.0, 0,
        "ops of a program that no piece of the reference holds: what they compute was compared with nothing",
    ),
    Limit(
        "encoder", "psnr_db", "min", 60.0, 78.0,
        "20·log10(max |ref| / RMSE) of a picture's image tokens; rounding each op to fp16 costs 70–84 dB",
    ),
    Limit(
        "encoder", "snr_loss_db", "max", 6.0, 2.57,
        "how much worse than the reference with each op rounded to fp16: what the graph adds to what fp16 costs",
    ),
    Limit(
        "encoder", "peak", "max", 32768.0, 371,
        "largest value that any op returns; fp16 ends at 65,504, half of it is kept as margin",
    ),
    Limit(
        "language", "kl", "max", 5e-5, 6.1e-06,
        "KL in nats, mean over a transcript's steps, worst transcript; fp16 alone costs 7e-6 on 0.5B",
    ),
    Limit(
        "language", "kl_step", "max", 3e-4, 9.1e-05,
        "KL of the worst single step, mostly past a stop id, where the model is unsure; twice that on other weights",
    ),
    Limit(
        "language", "logit_error", "max", 0.1, 0.0297,
        "largest logit difference over the spread (standard deviation) of the reference's logits; bounds a tie",
    ),
    Limit(
        "language", "divergences", "max", 0.0, 0,
        "greedy tokens that differ where the reference's margin exceeds twice that step's logit error",
    ),
    Limit(
        "language", "peak", "max", 32768.0, 10000,
        "largest value that any op returns; the causal mask's own −1e4 is among them",
    ),
    Limit(
        "answer", "kl", "max", 5e-5, 4e-06,
        "mean KL of the worst transcript from pixels: the image tokens' fp16 error comes on top of the decoder's own",
    ),
    Limit(
        "answer", "logit_error", "max", 0.1, 0.0276,
        "the same from pixels; one limit for both, because it also bounds what may be a tie",
    ),
    Limit(
        "answer", "divergences", "max", 0.0, 0,
        "the same, from pixels to tokens with the package's own image tokens",
    ),
    Limit(
        "embeddings", "max_error", "max", 0.0, 0,
        "rows of embeddings.bin against the checkpoint's table rounded to fp16: a copy, so exact",
    ),
    Limit(
        "manifest", "differing_fields", "max", 0.0, 0,
        "model sizes, image rule, prompt rule and stop ids that the manifest states otherwise than the checkpoint",
    ),
    Limit(
        "prompt", "differing_ids", "max", 0.0, 0,
        "ids made by the build's tokenizer and template against the checkpoint's",
    ),
)
# fmt: on

LIMITS: dict[str, Limit] = {limit.key: limit for limit in TABLE}

# Compression loses what fp16 does not. A build is held to the rows of the coarsest scheme that it uses, in place of
# those above: each measured on the embedded checkpoint, all of it in that scheme. scheme -> key -> (limit, measured).
COARSEST_FIRST = ("lut4", "int4", "lut6", "int8")
_LANGUAGE: dict[str, dict[str, tuple[float, float]]] = {
    "int8": {"kl": (2e-3, 5e-4), "kl_step": (0.04, 8.72e-3), "logit_error": (0.6, 0.144)},
    "lut6": {"kl": (8e-3, 1.81e-3), "kl_step": (0.08, 0.016), "logit_error": (1.5, 0.403)},
    "int4": {"kl": (0.15, 0.0322), "kl_step": (2.0, 0.424), "logit_error": (4.0, 0.967)},
    "lut4": {"kl": (0.7, 0.174), "kl_step": (16.0, 4.08), "logit_error": (10.0, 2.69)},
}
_ENCODER: dict[str, dict[str, tuple[float, float]]] = {
    "int8": {"psnr_db": (45.0, 56.0), "snr_loss_db": (35.0, 23.2)},
    "lut6": {"psnr_db": (33.0, 44.2), "snr_loss_db": (46.0, 34.2)},
    "int4": {"psnr_db": (22.5, 33.7), "snr_loss_db": (56.0, 44.8)},  # in the 37 layers that blocks can hold
    "lut4": {"psnr_db": (18.0, 28.8), "snr_loss_db": (61.0, 49.6)},
}
# Weights of fewer bits, each op alone: rows of builds that have such weights. part -> scheme -> (limit, measured).
_PACKED: dict[str, dict[str, tuple[float, float]]] = {
    "encoder": {"int8": (20.0, 35.8), "lut6": (12.0, 26.9), "int4": (5.0, 16.5), "lut4": (2.5, 14.0)},
    "language": {"int8": (20.0, 37.8), "lut6": (12.0, 27.6), "int4": (5.0, 17.3), "lut4": (2.5, 13.4)},
}
_PACKED_REASON = "worst output channel of a layer in {}, judged as of the size of all: what its codes cannot hold"
EMBEDDINGS_INT8 = Limit(
    "embeddings", "row_snr_db", "min", 20.5, 40.2,
    "the worst row of embeddings.bin against the checkpoint's; a row whose largest value is 40 times its mean keeps 21",
)  # fmt: skip


def limits_of(compression: Mapping[str, Any]) -> dict[str, Limit]:
    """Returns the limits that a build is held to, by key; `compression` is its manifest's entry."""
    language, encoder = (_coarsest(compression.get(part)) for part in ("language", "encoder"))
    if compression.get("embeddings") == "int8":
        language = language or "int8"  # the decoder starts from rows of eight bits
    whole = _coarsest(dict.fromkeys(filter(None, (language, encoder)), 1))
    found = dict(LIMITS)
    parts = (("language", language, _LANGUAGE), ("answer", whole, _LANGUAGE), ("encoder", encoder, _ENCODER))
    for quantity, scheme, rows in parts:
        for metric, (limit, measured) in rows.get(scheme or "", {}).items():
            if (key := f"{quantity}.{metric}") in found:
                reason = f"{scheme} weights: what they lose on the embedded checkpoint, with headroom"
                found[key] = replace(found[key], limit=limit, measured=measured, reason=reason)
    for part, schemes in _PACKED.items():
        if (scheme := _coarsest(compression.get(part))) is not None:
            row = Limit("op", f"{part}_packed_db", "min", *schemes[scheme], _PACKED_REASON.format(scheme))
            found[row.key] = row
    if compression.get("embeddings") == "int8":
        del found["embeddings.max_error"]
        found[EMBEDDINGS_INT8.key] = EMBEDDINGS_INT8
    return found


def _coarsest(counts: object) -> str | None:
    """The coarsest scheme of {scheme: number of layers}; None where nothing is compressed."""
    used = counts if isinstance(counts, dict) else {}
    return next((scheme for scheme in COARSEST_FIRST if used.get(scheme)), None)


@dataclass(frozen=True)
class Measurement:
    """One value held against its row of the table; `subject` says which picture or prompt was worst."""

    limit: Limit
    value: float
    subject: str

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return self.limit.holds(self.value)

    def as_json(self) -> dict[str, object]:
        """The row as `validation.json` and `--json` show it, numbers to three significant digits."""
        return {
            "quantity": self.limit.quantity,
            "metric": self.limit.metric,
            "bound": self.limit.bound,
            "limit": self.limit.limit,
            "value": storable(self.value),
            "subject": self.subject,
            "passed": self.passed,
            "reason": self.limit.reason,
        }


def storable(value: float) -> float | str:
    """Returns `value` to three significant digits; inf, -inf and nan as words, which JSON numbers cannot say."""
    return significant(value) if math.isfinite(value) else str(value)


def worst(key: str, values: dict[str, float], limits: Mapping[str, Limit] = LIMITS) -> Measurement:
    """Returns the measurement of limit `key` for the worst of `values` (subject -> value); NaN is the worst of all."""
    limit = limits[key]
    sign = 1.0 if limit.bound == "max" else -1.0
    subject = max(values, key=lambda name: math.inf if math.isnan(values[name]) else sign * values[name])
    return Measurement(limit, values[subject], subject)
