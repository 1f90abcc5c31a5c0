"""The rows of compressed builds: what each scheme loses, and what its codes are held to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from validation.limits.limit import Limit
from validation.limits.table import LIMITS

# Compression loses what fp16 does not. A build is held to the rows of the coarsest scheme that it uses, in place of
# those above: each measured on the embedded checkpoint, all of it in that scheme. scheme -> key -> (limit, measured).
COARSEST_FIRST = ("lut4", "int4", "lut6", "int8")
Rows = dict[str, dict[str, tuple[float, float]]]
_LANGUAGE: Rows = {
    "int8": {
        "kl": (4e-3, 8.49e-4), "kl_step": (0.2, 0.0419), "logit_error": (0.9, 0.26),
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
