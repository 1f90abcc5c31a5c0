"""The one table of limits: what is compared, by which metric, how far it may go, what was measured, and why.

The command, the tests and the documents all read this table; a limit on a build that stands anywhere else is a defect
(the export tests' seeded model has rows of the same form in tests/export/export_limits.py). Each limit keeps
3 to 15 times headroom over the measured value (in dB: 10 to 20 dB of error), so that it neither alarms on another CPU
nor sleeps through a fault; a test holds the table to that, and to what a validation really measures, and another plants
for every row a fault that it must catch. The exceptions are named there: what fp16 can hold, what must be exact, what
the design fixes, and the difference of two errors.
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
    "audit": "constants", "embeddings": "constants", "manifest": "constants", "op": "ops",
    "blocks": "blocks", "encoder_blocks": "blocks", "language_blocks": "blocks",
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
        "encoder_blocks", "snr_loss_db", "max", 6.0, 1.75,
        "how much worse any block of the encoder is than the reference with each op rounded to fp16",
    ),
    Limit(
        "language_blocks", "snr_loss_db", "max", 6.0, -0.36,
        "the same for the decoder's layers, in prefill and in decode",
    ),
    Limit("blocks", "unmatched", "max", 0.0, 0, "blocks of the reference that a program lacks"),
    Limit(
        "encoder", "psnr_db", "min", 60.0, 78.0,
        "20·log10(max |ref| / RMSE) of a picture's image tokens; rounding each op to fp16 costs 70–84 dB",
    ),
    Limit(
        "encoder", "snr_loss_db", "max", 6.0, 2.57,
        "how much worse than the reference with each op rounded to fp16: what the graph adds to what fp16 costs",
    ),
    Limit(
        "encoder", "cosine_loss_db", "max", 6.0, 1.2,
        "the same of 1 − cosine: the direction alone, which is what the language model's norms leave of it",
    ),
    Limit(
        "encoder", "worst_token_loss_db", "max", 12.0, 4.0,
        "the same of the worst image token, which may be another than the worst of fp16 alone",
    ),
    Limit(
        "encoder", "peak", "max", 32768.0, 371,
        "largest value that any op returns; fp16 ends at 65,504, half of it is kept as margin",
    ),
    Limit(
        "language", "kl", "max", 5e-5, 1.42e-05,
        "KL in nats, mean over all steps of all transcripts; 1.5e-6 on 0.5B with drawn weights",
    ),
    Limit(
        "language", "kl_step", "max", 6e-3, 1.39e-03,
        "KL of the worst single step: far past a stop id, where keys are so sensitive that fp16 alone costs 42 dB",
    ),
    Limit(
        "language", "logit_error", "max", 0.15, 0.0431,
        "largest logit difference over the spread (standard deviation) of the reference's logits; bounds a tie",
    ),
    Limit(
        "language", "top5_overlap", "min", 1.0, 1,
        "share of a step's five best tokens that the package has among its five, but for exchanges within its noise",
    ),
    Limit(
        "language", "rank", "max", 1.0, 1,
        "place of the reference's token in the package's logits, tokens within the step's noise not counted",
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
        "answer", "kl", "max", 5e-5, 1.44e-05,
        "mean KL from pixels: the image tokens' fp16 error comes on top of the decoder's own",
    ),
    Limit(
        "answer", "kl_step", "max", 6e-3, 1.76e-03,
        "the same from pixels, worst single step",
    ),
    Limit(
        "answer", "logit_error", "max", 0.15, 0.0352,
        "the same from pixels; one limit for both, because it also bounds what may be a tie",
    ),
    Limit(
        "answer", "top5_overlap", "min", 1.0, 1,
        "the same from pixels, the package's own image tokens included in what counts as noise",
    ),
    Limit(
        "answer", "rank", "max", 1.0, 1,
        "the same from pixels, the package's own image tokens included in what counts as noise",
    ),
    Limit(
        "answer", "divergences", "max", 0.0, 0,
        "the same, from pixels to tokens with the package's own image tokens",
    ),
    Limit(
        "state", "keys_loss_db", "max", 6.0, 0.65,
        "a layer's keys after prefill in chunks against all at once: how much worse than with each op rounded to fp16",
    ),
    Limit(
        "state", "values_loss_db", "max", 6.0, 0.98,
        "the same of a layer's values",
    ),
    Limit(
        "state", "chunking_loss_db", "max", 6.0, -9.29,
        "what `decode` writes against what `prefill` wrote there, in the error of fp16 alone: chunks leave no seam",
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
        "preprocess", "differing_bytes", "max", 0.0, 0,
        "bytes that the manifest's image rule makes of a picture otherwise than the checkpoint's",
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
Rows = dict[str, dict[str, tuple[float, float]]]
_LANGUAGE: Rows = {
    "int8": {
        "kl": (2e-3, 4.94e-4), "kl_step": (0.05, 0.0136), "logit_error": (0.9, 0.26),
        "top5_overlap": (0.6, 1), "rank": (3, 1),
    },
    "lut6": {
        "kl": (0.02, 4.95e-3), "kl_step": (0.4, 0.121), "logit_error": (3.0, 0.961),
        "top5_overlap": (0.6, 1), "rank": (3, 1),
    },
    "int4": {
        "kl": (0.25, 0.0684), "kl_step": (7.0, 2.14), "logit_error": (6.5, 1.99),
        "top5_overlap": (0.4, 0.8), "rank": (4, 1),
    },
    "lut4": {
        "kl": (0.8, 0.247), "kl_step": (24.0, 7.21), "logit_error": (16.0, 5.11),
        "top5_overlap": (0.2, 0.8), "rank": (100, 23),
    },
}  # fmt: skip
_STATE: Rows = {  # chunks leave no more of a seam than in fp16: both ways have the same weights
    "int8": {"keys_loss_db": (32.0, 20.7), "values_loss_db": (34.0, 22.6)},
    "lut6": {"keys_loss_db": (42.5, 31.3), "values_loss_db": (45.5, 34.1)},
    "int4": {"keys_loss_db": (53.0, 41.8), "values_loss_db": (55.5, 44.2)},
    "lut4": {"keys_loss_db": (55.0, 43.5), "values_loss_db": (57.5, 46.2)},
}
_ENCODER: Rows = {
    "int8": {
        "psnr_db": (45.0, 56.0), "snr_loss_db": (35.0, 23.2), "cosine_loss_db": (35.0, 23.4),
        "worst_token_loss_db": (36.0, 24.1),
    },
    "lut6": {
        "psnr_db": (33.0, 44.2), "snr_loss_db": (46.0, 34.2), "cosine_loss_db": (46.0, 34.1),
        "worst_token_loss_db": (47.0, 35.0),
    },
    "int4": {  # in the 37 layers that blocks can hold
        "psnr_db": (22.5, 33.7), "snr_loss_db": (56.0, 44.8), "cosine_loss_db": (54.0, 42.3),
        "worst_token_loss_db": (56.0, 43.9),
    },
    "lut4": {
        "psnr_db": (18.0, 28.8), "snr_loss_db": (61.0, 49.6), "cosine_loss_db": (59.0, 47.5),
        "worst_token_loss_db": (61.0, 49.7),
    },
}  # fmt: skip
_BLOCKS: dict[str, Rows] = {  # as far from the yardstick as the weights are
    "encoder_blocks": {
        "int8": {"snr_loss_db": (38.0, 27.2)}, "lut6": {"snr_loss_db": (46.0, 34.9)},
        "int4": {"snr_loss_db": (55.0, 44.1)}, "lut4": {"snr_loss_db": (60.0, 48.9)},
    },
    "language_blocks": {
        "int8": {"snr_loss_db": (31.0, 20.4)}, "lut6": {"snr_loss_db": (39.0, 28.4)},
        "int4": {"snr_loss_db": (48.0, 37.5)}, "lut4": {"snr_loss_db": (52.0, 41.3)},
    },
}  # fmt: skip
# Weights of fewer bits, each op alone: rows of builds that have such weights. part -> scheme -> (limit, measured).
_PACKED: dict[str, dict[str, tuple[float, float]]] = {
    "encoder": {"int8": (20.0, 35.8), "lut6": (12.0, 26.9), "int4": (5.0, 16.5), "lut4": (2.5, 14.0)},
    "language": {"int8": (20.0, 37.8), "lut6": (12.0, 27.6), "int4": (5.0, 17.3), "lut4": (2.5, 13.4)},
}
_PACKED_REASON = "worst output channel of a layer in {}, judged as of the size of all: what its codes cannot hold"
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

# A real checkpoint against logits that others published in bfloat16 (validation/official). Measured on the embedded
# checkpoint and on one of 0.5B size with drawn weights, against their own logits in bfloat16; not yet on real weights.
OFFICIAL: dict[str, Limit] = {
    limit.key: limit
    for limit in (
        Limit(
            "official", "differing_positions", "max", 0.0, 0,
            "positions that the prompt has more or fewer than the published one: image tokens and ids of text",
        ),
        Limit(
            "official", "logit_error", "max", 0.1, 0.0257,
            "largest difference from a published logit over the spread of all logits; bfloat16 has steps of 0.0625 "
            "from 8 to 16, and what is rounded in another order differs by a few of them",
        ),
        Limit(
            "official", "bf16_cost", "max", 0.06, 0.0169,
            "what rounding each op to bfloat16 costs a logit here (RMS over the vocabulary) over the same spread: "
            "where it costs more, the comparison cannot tell rounding from a fault",
        ),
    )
}  # fmt: skip


def limits_of(compression: Mapping[str, Any]) -> dict[str, Limit]:
    """Returns the limits that a build is held to, by key; `compression` is its manifest's entry."""
    language, encoder = (_coarsest(compression.get(part)) for part in ("language", "encoder"))
    if compression.get("embeddings") == "int8":
        language = language or "int8"  # the decoder starts from rows of eight bits
    whole = _coarsest(dict.fromkeys(filter(None, (language, encoder)), 1))
    found = dict(LIMITS)
    parts = (
        ("language", language, _LANGUAGE), ("answer", whole, _LANGUAGE), ("state", language, _STATE),
        ("encoder", encoder, _ENCODER), ("encoder_blocks", encoder, _BLOCKS["encoder_blocks"]),
        ("language_blocks", language, _BLOCKS["language_blocks"]),
    )  # fmt: skip
    for quantity, scheme, rows in parts:
        for metric, (limit, measured) in rows.get(scheme or "", {}).items():
            if (key := f"{quantity}.{metric}") in found:
                reason = f"{scheme} weights: what they lose on the embedded checkpoint, with headroom"
                found[key] = replace(found[key], limit=limit, measured=measured, reason=reason)
    for part, schemes in _PACKED.items():
        if (scheme := _coarsest(compression.get(part))) is not None:
            row = Limit("op", f"{part}_packed_db", "min", *schemes[scheme], _PACKED_REASON.format(scheme))
            found[row.key] = row
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
            "rung": self.limit.rung,
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
