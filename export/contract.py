"""The I/O contract of every function that an export makes, as data: one place for graph, package, manifest and check.

Names, shapes and dtypes are those of docs/architecture.md; a Swift host is written against them. Those of the encoder
for Apple's sample app are what its code asks for (app/FastVLM/FastVLM.swift, class `fastvithd`).
It knows neither torch nor coremltools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.chunks import Chunk, HeadSplit
from export.plan import ExportPlan
from fastvlm.build import APPLE_APP
from fastvlm_ref.config import TextConfig, VisionConfig

SCALE = 1 / 255  # bytes to [0, 1]; FastVLM's mean is 0 and its std 1, so bias 0 is lossless
STATE = "kvCache"
IOS16, IOS18 = "iOS16", "iOS18"
SYSTEMS = {IOS16: 7, IOS18: 9}  # specification version; iOS 18's is the first with several functions, and with state
EMBEDS, HIDDEN = "inputsEmbeds", "hiddenStates"  # what goes into every package, and what one hands to the next


@dataclass(frozen=True)
class TensorSpec:
    """One input, output or state: what a host must pass or will get."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "float16" | "float32" | "int32"; "uint8" for an image
    text: str  # what it is, shown by Xcode
    kind: str = "tensor"  # "tensor" | "image" (RGB N×N, scale 1/255, bias 0, shape (1, 3, N, N))

    def as_json(self) -> dict[str, Any]:
        """The manifest's entry."""
        return {"name": self.name, "kind": self.kind, "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class FunctionSpec:
    """One function of a package; `system`: the oldest that loads it, of SYSTEMS."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: TensorSpec | None = None
    system: str = IOS18

    @property
    def alone(self) -> bool:
        """Whether it is its package's only function: systems before iOS 18 know no others, nor names of functions."""
        return self.system != IOS18

    def as_json(self) -> dict[str, Any]:
        """The manifest's entry, without the state, which all functions of a package share."""
        return {
            "inputs": [tensor.as_json() for tensor in self.inputs],
            "outputs": [tensor.as_json() for tensor in self.outputs],
        }


def encoder_function(vision: VisionConfig, hidden: int, side: int) -> FunctionSpec:
    """Returns `encode_<N>`: an image N×N in, image tokens (1, T, H) out."""
    tokens = vision.tokens_at(side)
    image = TensorSpec(
        "image",
        (1, 3, side, side),
        "uint8",
        f"RGB picture of {side}×{side} pixels, padded to a square and resized",
        "image",
    )
    features = TensorSpec(
        "imageFeatures", (1, tokens, hidden), "float16", f"{tokens} image tokens, row by row, projected"
    )
    return FunctionSpec(f"encode_{side}", (image,), (features,))


def app_function(vision: VisionConfig, side: int) -> FunctionSpec:
    """Returns `main` of the encoder in Apple's sample app: pixels (1, 3, N, N) in [0, 1] in, the tower's tokens out."""
    tokens = vision.tokens_at(side)
    pixels = TensorSpec(
        "images", (1, 3, side, side), "float32", f"red, green and blue of {side}×{side} pixels, values from 0 to 1"
    )
    features = TensorSpec(
        "image_features", (1, tokens, vision.features), "float32", f"{tokens} image tokens, row by row, not projected"
    )
    return FunctionSpec("main", (pixels,), (features,), system=IOS16)


def encoder_functions(vision: VisionConfig, hidden: int, plan: ExportPlan) -> tuple[FunctionSpec, ...]:
    """Returns one function per asked size, in the order asked; for an app its own."""
    if plan.purpose == APPLE_APP:
        return tuple(app_function(vision, side) for side in plan.image_sizes)
    return tuple(encoder_function(vision, hidden, side) for side in plan.image_sizes)


def state_spec(text: TextConfig, context: int, layers: int, target: str) -> TensorSpec:
    """Returns the state of `layers` layers, rows 2l, 2l + 1 layer l's keys and values.

    For "ane" (2·layers, kv_heads, D, C), for "gpu" (2·layers, kv_heads, C, D).
    """
    last = (text.head_dim, context) if target == "ane" else (context, text.head_dim)
    shape = (2 * layers, text.kv_heads, *last)
    return TensorSpec(
        STATE, shape, "float16", "keys and values of every layer; make it once per conversation, pass it on"
    )


def language_inputs(text: TextConfig, query: int, context: int, first: bool = True) -> tuple[TensorSpec, ...]:
    """Returns the inputs of a function that takes Q = `query` positions at once; `first`: of the first package."""
    angles = "of the rotary angles, computed in float32 on the host"
    return (
        _embeds(text, query, first),
        TensorSpec("ropeCos", (1, 1, query, text.head_dim), "float16", f"cosines {angles}"),
        TensorSpec("ropeSin", (1, 1, query, text.head_dim), "float16", f"sines {angles}"),
        TensorSpec(
            "causalMask", (1, 1, query, context), "float16", "0 where a row may look, -1e4 elsewhere, never -inf"
        ),
        TensorSpec(
            "position", (1,), "int32", f"where in the context the first row goes; position + {query} <= {context}"
        ),
    )


def language_functions(text: TextConfig, plan: ExportPlan, chunk: Chunk, split: HeadSplit) -> tuple[FunctionSpec, ...]:
    """Returns `prefill` (Q rows, no head) and `decode` (one row) of one package; of a head alone only `decode`."""
    outputs = tuple(
        TensorSpec(split.name(part), (1, 1, split.rows), "float16", _rows_of(text, split, part)) for part in chunk.parts
    )
    if not chunk.layers:
        return (FunctionSpec("decode", (_embeds(text, 1, first=False),), outputs),)
    state = state_spec(text, plan.context, chunk.layers, plan.target)
    done = TensorSpec("done", (1, 1, 1), "float16", "of no meaning; the result of prefill is the state")
    query, first = plan.query_length, chunk.number == 1
    filled = (done,) if chunk.filling else (_hidden(text, query),)
    return (
        FunctionSpec("prefill", language_inputs(text, query, plan.context, first), filled, state),
        FunctionSpec("decode", language_inputs(text, 1, plan.context, first), outputs or (_hidden(text, 1),), state),
    )


def _embeds(text: TextConfig, query: int, first: bool) -> TensorSpec:
    source = "rows of embeddings.bin or image tokens" if first else f"`{HIDDEN}` of the package before"
    return TensorSpec(EMBEDS, (1, query, text.hidden_size), "float16", source)


def _hidden(text: TextConfig, query: int) -> TensorSpec:
    return TensorSpec(HIDDEN, (1, query, text.hidden_size), "float16", f"`{EMBEDS}` of the next package")


def _rows_of(text: TextConfig, split: HeadSplit, part: int) -> str:
    if split.count == 1:
        return "one value per row of the vocabulary"
    first, last = part * split.rows, min((part + 1) * split.rows, text.vocab_size)
    return f"one value for each of the vocabulary's rows {first} to {last - 1}; what is behind them has no meaning"
