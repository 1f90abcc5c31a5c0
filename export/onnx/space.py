"""How many bytes the files of an ONNX build take, from shapes alone, for the check of the disk before the work."""

from __future__ import annotations

from math import prod

from export.onnx.plan import OnnxPlan
from export.onnx.schemes import BLOCK, VARIANTS
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.shapes import decoder_shapes

FLOAT_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
TABLES = 4.5 / BLOCK  # bytes of a float32 scale and half a byte of a zero point, for each weight of a block


def onnx_bytes(model: FastVLM, asked: OnnxPlan) -> dict[str, int]:
    """Returns the bytes of weights in each part that is asked for: encoder, language, embeddings."""
    plan, variant, text = asked.plan, VARIANTS[asked.variant], model.config.text
    whole = FLOAT_BYTES["fp16" if variant.halves else "fp32"]
    found = {}
    if plan.encoder:
        weights = [*model.vision_encoder.parameters(), *model.projector.parameters()]
        # the CoreML provider's models hold their weights, so those of every image size are there again
        times = len(plan.image_sizes) if asked.coreml else 1
        each = FLOAT_BYTES["int8"] if asked.encoder.eight_bits else whole
        found["encoder"] = round(each * times * sum(weight.numel() for weight in weights))
    if plan.language:
        shapes = {name: prod(shape) for name, shape in decoder_shapes(text).items() if "embed_tokens" not in name}
        head = shapes.pop("lm_head.weight")
        per, per_head = (whole if bits is None else bits / 8 + TABLES for bits in (variant.bits, variant.head_bits))
        found["language"] = round(per * sum(shapes.values()) + per_head * head)
        found["embeddings"] = round(FLOAT_BYTES[variant.embeddings] * text.vocab_size * text.hidden_size)
    return found
