"""The rows that a build without compression is held to, and those of a real checkpoint against published logits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from validation.limits.limit import Limit, Measurement

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
        "strides, pads, axes, eps, scales, windows of the state, schemes, prompt ids, what packages declare, licence "
        "and tokenizer files: as the reference has them",
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
        "tokenizer", "differing_ids", "max", 0.0, 0,
        "ids that the build's tokenizer spells otherwise than the checkpoint's, and texts that it cuts into other ids",
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


def worst(key: str, values: dict[str, float], limits: Mapping[str, Limit] = LIMITS) -> Measurement:
    """Returns the measurement of limit `key` for the worst of `values` (subject -> value); NaN is the worst of all."""
    limit = limits[key]
    sign = 1.0 if limit.bound == "max" else -1.0
    subject = max(values, key=lambda name: math.inf if math.isnan(values[name]) else sign * values[name])
    return Measurement(limit, values[subject], subject)
