"""The one table of limits: what is compared, by which metric, how far it may go, what was measured, and why.

The command, the tests and the documents all read this table; a limit on a build that stands anywhere else is a defect
(the export tests' seeded model has rows of the same form in tests/export/export_limits.py). Each limit keeps
3 to 15 times headroom over the measured value (in dB: 10 to 20 dB of error), so that it neither alarms on another CPU
nor sleeps through a fault; a test holds the table to that, and to what a validation really measures. The exceptions
are named there: what fp16 can hold, what must be exact, and what the design fixes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
        "audit", "differing_weights", "max", 0.0, 0,
        "fp16 numbers in the packages that are not the checkpoint's with the declared folds, rounded once: bit for bit",
    ),
    Limit(
        "audit", "differing_constants", "max", 0.0, 0,
        "strides, pads, axes, eps, scales, windows of the state, schemes: what the reference has, as it is stored",
    ),
    Limit(
        "audit", "unexplained", "max", 0.0, 0,
        "ops and constants that the reference has not, and declared parameters that no op reads",
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
# What an audit holds compressed weights to, each scheme by itself: scheme -> metric -> (limit, measured).
_CODES: dict[str, dict[str, tuple[float, float]]] = {
    "int8": {"misfit": (5e-3, 6.2e-5), "snr_db": (17.0, 36.6)},
    "lut6": {"misfit": (0.01, 2.5e-4), "snr_db": (11.0, 30.4)},
    "int4": {"misfit": (0.2, 0.0534), "snr_db": (2.0, 20.9)},
    "lut4": {"misfit": (0.05, 3.73e-3), "snr_db": (-1.0, 18.2)},
}
_CODE_WORDS = {
    "misfit": "share of a table's values that no weight uses, and of weights outside its reach, in the worst layer",
    "snr_db": "the worst layer's weights against the checkpoint's; what no input looks at may go lost",
}
_CODE_EXCESS = Limit(
    "audit", "code_excess", "max", 1e-3, 0,
    "steps by which a code's value is farther from the weight than the nearest one; 1e-5 is float32's own rounding",
)  # fmt: skip
_CODED: dict[str, dict[str, Limit]] = {
    scheme: {
        f"audit.{scheme}_{metric}": Limit(
            "audit", f"{scheme}_{metric}", "min" if metric == "snr_db" else "max", limit, measured,
            f"{scheme}: {_CODE_WORDS[metric]}",
        )
        for metric, (limit, measured) in rows.items()
    }
    for scheme, rows in _CODES.items()
}  # fmt: skip
CODED: dict[str, Limit] = {_CODE_EXCESS.key: _CODE_EXCESS}  # every row that compression may add to an audit
for _rows in _CODED.values():
    CODED |= _rows

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
    for scheme in _used(compression.get("language"), compression.get("encoder")):
        found |= {_CODE_EXCESS.key: _CODE_EXCESS, **_CODED[scheme]}
    if compression.get("embeddings") == "int8":
        del found["embeddings.max_error"]
        found[EMBEDDINGS_INT8.key] = EMBEDDINGS_INT8
    return found


def _coarsest(counts: object) -> str | None:
    """The coarsest scheme of {scheme: number of layers}; None where nothing is compressed."""
    return next(_used(counts), None)


def _used(*counts: object) -> Iterator[str]:
    """The schemes that any of {scheme: number of layers} has, the coarsest first."""
    known = [each for each in counts if isinstance(each, dict)]
    return (scheme for scheme in COARSEST_FIRST if any(each.get(scheme) for each in known))


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
