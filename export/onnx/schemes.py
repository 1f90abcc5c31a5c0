"""The forms in which the language model is written for onnxruntime, and what each can hold.

| variant | matrices | multiplied by | activations |
|---|---|---|---|
| fp32 | float32 | `MatMul` | float32 |
| fp16 | float16 | `MatMul` | float16, the residual stream float32 |
| int8 | 8 bits, a float32 scale for each 32 inputs of a row | `MatMulNBits` | float32; 8 bits inside a product |
| int4 | 4 bits, a scale and a zero point for each 32 inputs; the head 8 bits | `MatMulNBits` | the same |

Notable choices, measured with 0.5B on two cores with AVX-512 VNNI:
- int8 is not `DynamicQuantizeMatMul`, which has one scale for all rows of a call: the answer would depend on how a
  prompt is cut into calls, and one token of large values would take the bits of all others. It takes as long for a
  token, and 0.4 of the time for a prompt;
- four bits for the head too would save a tenth of a token's time and cost 5 dB on the embedded checkpoint;
- activations are quantised inside the product (accuracy level 4), for each row and 32 inputs by themselves; in float32
  (level 1) a token takes twice as long.
It knows shapes, no values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import TensorProto

from fastvlm.errors import UsageError
from fastvlm_ref.config import TextConfig

BLOCK = 32  # inputs of a row that share a scale; also of a row of activations inside a product
ACCURACY = 4  # of MatMulNBits: activations as int8


@dataclass(frozen=True)
class Variant:
    """One form of the language model.

    floats: TensorProto.FLOAT or FLOAT16, the dtype of activations, of the cache and of `inputsEmbeds`; bits, head_bits:
    of the codes of a layer's matrices and of the head's, None where they are floats; embeddings: of embeddings.bin.
    """

    name: str
    floats: int
    bits: int | None
    head_bits: int | None
    embeddings: str

    @property
    def halves(self) -> bool:
        """Whether it computes in float16."""
        return self.floats == TensorProto.FLOAT16


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("fp32", TensorProto.FLOAT, None, None, "fp32"),
        Variant("fp16", TensorProto.FLOAT16, None, None, "fp16"),
        Variant("int8", TensorProto.FLOAT, 8, 8, "int8"),
        Variant("int4", TensorProto.FLOAT, 4, 8, "int8"),
    )
}


def check_variant(name: str, text: TextConfig) -> Variant:
    """Returns a variant by its name; raises UsageError for an unknown one and for a decoder that it cannot hold."""
    variant = VARIANTS.get(name)
    if variant is None:
        raise UsageError(f"--quantize is {name!r}, expected one of {', '.join(VARIANTS)} with --format onnx")
    problems = [f"{inputs} inputs of {what}" for what, inputs in _inputs(text) if variant.bits and inputs % BLOCK]
    if problems:
        raise UsageError(
            f"--quantize {name} needs blocks of {BLOCK} inputs, and this decoder has {', '.join(problems)}; "
            "export fp32 or fp16"
        )
    return variant


def _inputs(text: TextConfig) -> Iterator[tuple[str, int]]:
    """How many inputs the matrices have."""
    yield "q_proj, k_proj, v_proj, gate_proj, up_proj and lm_head", text.hidden_size
    yield "o_proj", text.heads * text.head_dim
    yield "down_proj", text.intermediate_size
