"""`LanguageModel.onnx`: a decoder, written to its files.

It knows neither manifest nor command.
"""

from __future__ import annotations

from pathlib import Path

from export.contract import FunctionSpec, TensorSpec
from export.onnx.data import DataFile
from export.onnx.decoder import EMBEDS, LAST, LOGITS, TOTAL, DecoderWriter
from export.onnx.graph import Graph, write_model
from export.onnx.schemes import check_variant
from export.protection import PROTECTED, Protection
from fastvlm import __version__
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder

FILE = "LanguageModel.onnx"
ANY = -1  # a length that a caller chooses


def write_language(
    decoder: Decoder, path: Path, context: int, variant: str = "fp32", protection: Protection = PROTECTED
) -> dict[str, int]:  # fmt: skip
    """Writes a decoder to `path` and its weights to `path`.data, neither of which may exist; `context` C positions.

    variant: of VARIANTS. protection: a scan's exponents, which fp16 alone uses. The weights may stream: no more than
    one matrix is in memory. Returns how many values of each weight were too large for fp16. Raises UsageError for a
    variant that this decoder cannot have, TensorError for a weight with NaN or infinity.
    """
    form = check_variant(variant, decoder.config)
    with DataFile(path.with_name(f"{path.name}.data")) as data:
        graph = Graph(path.stem, data)
        clamped = DecoderWriter(graph, decoder, form, context, protection).write()
    text = f"Prefill and decode of a language model of {decoder.config.layers} layers, {variant}, for onnxruntime"
    write_model(graph.model(("fastvlm", __version__), text, {"variant": variant, "context": str(context)}), path)
    return clamped


def language_function(text: TextConfig, context: int, variant: str = "fp32") -> FunctionSpec:
    """Returns the contract of the file; a length that the caller chooses is −1. UsageError as `write_language`."""
    floats = "float16" if check_variant(variant, text).halves else "float32"
    cache = (1, text.kv_heads, context, text.head_dim)
    layers = [(kind, index) for index in range(text.layers) for kind in ("Keys", "Values")]
    return FunctionSpec(
        "main",
        (
            TensorSpec(EMBEDS, (1, ANY, text.hidden_size), floats, "rows of embeddings.bin or image tokens"),
            TensorSpec(LAST, (1,), "int32", "the last position that is filled after this call"),
            TensorSpec(TOTAL, (), "int32", "how many positions are filled after this call"),
            *(TensorSpec(f"past{kind}.{index}", cache, floats, f"cache of layer {index}") for kind, index in layers),
        ),
        (
            TensorSpec(LOGITS, (1, 1, text.vocab_size), "float32", "of the last row, for each row of the vocabulary"),
            *(
                TensorSpec(f"present{kind}.{index}", cache, floats, f"the buffer of past{kind}.{index}, in place")
                for kind, index in layers
            ),
        ),
    )  # fmt: skip
