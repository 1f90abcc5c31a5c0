"""The rows of builds of ONNX files, by variant: what their outputs show beside the float32 reference.

There is no yardstick of fp16 in them, for fp32 computes in the reference's own numbers: image tokens are held to an
SNR, logits to their KL, tokens to the tokens. Each limit was measured on the embedded checkpoint, all of it in that
variant.
"""

from __future__ import annotations

from dataclasses import replace

from fastvlm.errors import BuildError
from validation.limits.by_scheme import EMBEDDINGS_INT8
from validation.limits.limit import Limit
from validation.limits.table import LIMITS

SHARED = ("manifest", "tokenizer", "preprocess", "prompt")  # what no number format touches
STEPS = ("kl", "kl_step", "logit_error", "top5_overlap", "rank", "divergences")
SNR = Limit("encoder", "snr_db", "min", 100.0, 124.0, "image tokens of a picture against the reference's, float32")
# variant -> row -> (limit, measured)
# fmt: off
ROWS: dict[str, dict[str, tuple[float, float]]] = {
    "fp32": {  # 100 dB is what the design asks for
        "encoder.snr_db": (100.0, 129.0), "encoder.psnr_db": (128.0, 143.0),
        "language.kl": (1e-11, 1.26e-12), "language.kl_step": (5e-10, 5.53e-11),
        "language.logit_error": (1e-4, 1.22e-5),
        "answer.kl": (1.5e-11, 1.87e-12), "answer.kl_step": (6e-10, 7.34e-11), "answer.logit_error": (1e-4, 1.4e-5),
    },
    "fp16": {  # 60 dB is what the design asks for
        "encoder.snr_db": (60.0, 72.0), "encoder.psnr_db": (74.0, 86.2),
        "language.kl": (2e-5, 2.88e-6), "language.kl_step": (1e-3, 1.39e-4), "language.logit_error": (0.15, 0.044),
        "answer.kl": (2e-5, 2.36e-6), "answer.kl_step": (1e-3, 9.91e-5), "answer.logit_error": (0.15, 0.0419),
    },
    "int8": {  # an encoder of 0.5B size with drawn weights keeps 29.2 and 43.6 dB
        "encoder.snr_db": (24.0, 41.6), "encoder.psnr_db": (38.0, 56.1),
        "language.kl": (4e-3, 8.62e-4), "language.kl_step": (0.2, 0.0482), "language.logit_error": (0.9, 0.275),
        "language.top5_overlap": (0.6, 1), "language.rank": (3, 1),
        "answer.kl": (8e-3, 1.7e-3), "answer.kl_step": (0.5, 0.133), "answer.logit_error": (2.2, 0.677),
        "answer.top5_overlap": (0.6, 1), "answer.rank": (3, 1),
    },
    "int4": {  # the encoder is int8's
        "encoder.snr_db": (24.0, 41.6), "encoder.psnr_db": (38.0, 56.1),
        "language.kl": (0.2, 0.0521), "language.kl_step": (9.0, 2.9), "language.logit_error": (13.0, 4.11),
        "language.top5_overlap": (0.4, 1), "language.rank": (6, 2),
        "answer.kl": (0.2, 0.053), "answer.kl_step": (9.0, 2.85), "answer.logit_error": (13.0, 4.03),
        "answer.top5_overlap": (0.4, 1), "answer.rank": (6, 2),
    },
}
# fmt: on
REASON = "{} as ONNX: what it loses on the embedded checkpoint, with headroom"


def onnx_limits(variant: str) -> dict[str, Limit]:
    """Returns the limits of a variant, by key; BuildError for one that no export writes."""
    if variant not in ROWS:
        raise BuildError(f"compression.scheme is {variant[:40]!r}, expected one of {', '.join(ROWS)}; export again")
    kept = [limit for limit in LIMITS.values() if limit.quantity in SHARED]
    kept += [LIMITS[f"{quantity}.{metric}"] for quantity in ("language", "answer") for metric in STEPS]
    kept += [LIMITS["encoder.psnr_db"], SNR]
    kept.append(EMBEDDINGS_INT8 if variant in ("int8", "int4") else LIMITS["embeddings.max_error"])
    found = {limit.key: limit for limit in kept}
    for key, (limit, measured) in ROWS[variant].items():
        found[key] = replace(found[key], limit=limit, measured=measured, reason=REASON.format(variant))
    return found
