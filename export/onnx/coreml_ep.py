"""The language model for onnxruntime's CoreML provider: two files of fixed shapes that share one data file.

| file | rows Q | gives |
|---|---|---|
| `LanguageModel.onnx` | 1 | logits in parts, keys and values of its row |
| `LanguageModel-prefill.onnx` | 64 unless asked | keys and values of its rows |

What goes in beside rows of embeddings is the host's: tables of angles and a mask, as for Core ML, but that the mask has
C + Q columns, first those of the cache, then the Q new rows. The cache is the caller's: keys [1, kv_heads, D, C] and
values [1, kv_heads, C, D] for each layer, into which it writes what a call gives, at its position.
Prefill all rows but the last, decode the last. A padded last call repeats the last real row.
Matrices lie in the data file, which both share, and all else in the models. The provider reads external data in
releases since mid 2026 (microsoft/onnxruntime#28062, #29394); earlier ones cannot run these files.
It knows neither manifest nor command.
"""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto

from export.chunks import HEAD_CAP, head_split
from export.contract import FunctionSpec, TensorSpec
from export.decoder_weights import ANE
from export.key_shift import shifts_keys
from export.layout import GraphSizes
from export.onnx.coreml_layers import CoremlWriter
from export.onnx.data import DataFile
from export.onnx.encoder import COREML_OPSET
from export.onnx.graph import Graph, write_model
from export.protection import PROTECTED, Protection
from fastvlm import __version__
from fastvlm.errors import UsageError
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder

DECODE, PREFILL = "LanguageModel.onnx", "LanguageModel-prefill.onnx"
DTYPES: dict[str, int] = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


def write_coreml_language(
    decoder: Decoder, folder: Path, context: int, query: int = 64, variant: str = "fp16",
    protection: Protection = PROTECTED,
) -> dict[str, int]:  # fmt: skip
    """Writes both files and their data file, LanguageModel.onnx.data, into `folder`, where none of them may exist.

    context, query: C and Q of prefill. protection: a scan's exponents, which fp16 alone uses. Weights may stream.
    Returns how many values of each weight were too large for fp16. Raises UsageError for a variant or a context that
    the provider cannot run, TensorError for a weight with NaN or infinity.
    """
    floats = check_coreml(context, query, variant)
    clamped: dict[str, int] = {}
    with DataFile(folder / f"{DECODE}.data") as data:
        for name, rows in ((DECODE, 1), (PREFILL, query)):
            graph = Graph(Path(name).stem, data, COREML_OPSET)
            sizes = _sizes(decoder, context, rows, floats, protection)
            clamped |= CoremlWriter(graph, decoder, sizes, floats).write(head=name == DECODE)
            text = f"Language model of {decoder.config.layers} layers, {rows} rows at once, for the CoreML provider"
            metadata = {"variant": variant, "context": str(context), "query": str(rows)}
            write_model(graph.model(("fastvlm", __version__), text, metadata), folder / name)
    return clamped


def check_coreml(context: int, query: int, variant: str) -> int:
    """Returns the dtype of a variant; raises UsageError for what the provider cannot run."""
    problems = []
    if variant not in DTYPES:
        problems.append(
            f"--quantize is {variant!r}, expected fp32 or fp16: with --target coreml-ep there are standard ops alone, "
            "and none of those that the CoreML provider takes reads codes"
        )
    if context + query >= HEAD_CAP:
        problems.append(f"--context is {context}, expected less than {HEAD_CAP - query}: no axis may reach {HEAD_CAP}")
    if problems:
        raise UsageError("; ".join(problems))
    return DTYPES[variant]


def _sizes(decoder: Decoder, context: int, query: int, floats: int, protection: Protection) -> GraphSizes:
    if floats != TensorProto.FLOAT16:
        return GraphSizes(decoder.config, query, context)
    return GraphSizes(decoder.config, query, context, protection, shifts_keys=shifts_keys(decoder, context))


def coreml_functions(
    text: TextConfig, context: int, query: int = 64, variant: str = "fp16"
) -> tuple[FunctionSpec, ...]:
    """Returns the contracts of `decode` and `prefill`; UsageError as `write_coreml_language`."""
    floats = "float16" if check_coreml(context, query, variant) == TensorProto.FLOAT16 else "float32"
    split = head_split(text, ANE)
    logits = tuple(
        TensorSpec(split.name(part), (1, 1, split.rows), floats, "rows of the vocabulary, in order; cut to V")
        for part in range(split.count)
    )
    return (
        FunctionSpec("decode", _inputs(text, context, 1, floats, text.layers), (*_new(text, 1, floats), *logits)),
        FunctionSpec("prefill", _inputs(text, context, query, floats, text.layers - 1), _new(text, query, floats)),
    )


def _inputs(text: TextConfig, context: int, query: int, floats: str, layers: int) -> tuple[TensorSpec, ...]:
    keys, values = (1, text.kv_heads, text.head_dim, context), (1, text.kv_heads, context, text.head_dim)
    angles = (1, 1, query, text.head_dim)
    return (
        TensorSpec("inputsEmbeds", (1, query, text.hidden_size), floats, "rows of embeddings.bin or image tokens"),
        TensorSpec("ropeCos", angles, floats, "cosines of the rotary angles, computed in float32 on the host"),
        TensorSpec("ropeSin", angles, floats, "sines of the rotary angles, computed in float32 on the host"),
        TensorSpec(
            "causalMask", (1, 1, query, context + query), floats,
            "0 where a row may look, -1e4 elsewhere, never -inf: C positions of the cache, then the Q new rows",
        ),
        *(
            TensorSpec(f"past{kind}.{index}", shape, floats, f"cache of layer {index}")
            for index in range(layers)
            for kind, shape in (("Keys", keys), ("Values", values))
        ),
    )  # fmt: skip


def _new(text: TextConfig, query: int, floats: str) -> tuple[TensorSpec, ...]:
    keys, values = (1, text.kv_heads, text.head_dim, query), (1, text.kv_heads, query, text.head_dim)
    return tuple(
        TensorSpec(f"new{kind}.{index}", shape, floats, f"to be put into the cache of layer {index}")
        for index in range(text.layers)
        for kind, shape in (("Keys", keys), ("Values", values))
    )
