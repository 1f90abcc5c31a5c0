"""`VisionEncoder.onnx`: FastViTHD and projector for one or several image sizes, the weights in one data file.

| variant | weights | computes in | image in | image tokens out |
|---|---|---|---|---|
| fp32 | float32 | float32 | bytes uint8 (1, N, N, 3) | float32 (1, T, H) |
| fp16 | float16, with a scan's exponents | float16 | bytes | float16 |
| int8 | int8, scales float32 | int8 and float32 (`encoder_int8`) | bytes | float32 |
| int4 | as int8: on thousands of positions four bits are no faster than float32 | | | |

For onnxruntime's CoreML provider (`coreml=True`, fp32 and fp16) the image comes as pixels (1, 3, N, N) in [0, 1] in the
graph's dtype, because that provider takes no uint8; the opset is 20, the newest whose ops it takes; and the weights
stay in the model, because its releases until 2026 take no node that reads external data, and two of 2026 crash on it.
It knows neither manifest nor command.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto
from torch import Tensor

from export.contract import FunctionSpec, TensorSpec
from export.encoder import EncoderGraph
from export.onnx.data import DataFile
from export.onnx.encoder_graph import EncoderWriter
from export.onnx.encoder_int8 import Int8EncoderWriter
from export.onnx.forms import Forms
from export.onnx.graph import OPSET, Graph, write_model
from export.onnx.smoothing import channel_powers, pictures
from export.protection import PROTECTED, Protection
from fastvlm import __version__
from fastvlm.errors import UsageError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.config import VisionConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import Sample, shipped_samples
from fastvlm_ref.threads import one_thread

NAME = "VisionEncoder"
IMAGE, FEATURES = "image", "imageFeatures"
COREML_OPSET = 20
BRIGHTEST = 255

DTYPES: dict[str, int] = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "int8": TensorProto.FLOAT,
    "int4": TensorProto.FLOAT,
}
WORDS: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}


@dataclass(frozen=True)
class EncoderForm:
    """What is asked for: one of DTYPES, and whether for onnxruntime's CoreML provider. UsageError for what is not."""

    variant: str = "fp32"
    coreml: bool = False

    def __post_init__(self) -> None:
        if self.variant not in DTYPES:
            raise UsageError(f"--quantize is {self.variant!r}, expected one of {', '.join(DTYPES)} with --format onnx")
        if self.coreml and self.eight_bits:
            raise UsageError(
                f"--quantize {self.variant} needs ops of onnxruntime's own, which its CoreML provider does not take; "
                "with --target coreml-ep expected fp32 or fp16"
            )

    @property
    def dtype(self) -> int:
        """TensorProto.FLOAT or FLOAT16: of feature maps and image tokens."""
        return DTYPES[self.variant]

    @property
    def eight_bits(self) -> bool:
        """Whether weights and activations of the 1×1 convolutions are int8."""
        return self.variant in ("int8", "int4")


@dataclass(frozen=True)
class WrittenEncoder:
    """What was written: image side N -> model file, the data file if there is one, and how many values were clamped."""

    models: dict[int, str]
    data: str | None
    clamped: dict[str, int]

    @property
    def files(self) -> tuple[str, ...]:
        """All names, beside each other in one folder."""
        return (*self.models.values(), *([self.data] if self.data else []))


def encoder_function(vision: VisionConfig, hidden: int, side: int, form: EncoderForm) -> FunctionSpec:
    """Returns `encode_<N>`: its input and output by name, shape and dtype, as the manifest states them."""
    tokens, dtype = vision.tokens_at(side), WORDS[form.dtype]
    if form.coreml:
        image = TensorSpec(IMAGE, (1, 3, side, side), dtype, f"red, green, blue of {side}×{side} pixels, from 0 to 1")
    else:
        text = f"RGB picture of {side}×{side} pixels, upright, padded to a square and resized"
        image = TensorSpec(IMAGE, (1, side, side, 3), "uint8", text)
    features = TensorSpec(FEATURES, (1, tokens, hidden), dtype, f"{tokens} image tokens, row by row, projected")
    return FunctionSpec(f"encode_{side}", (image,), (features,))


@one_thread()
def write_encoders(
    model: FastVLM,
    sides: Sequence[int],
    folder: Path,
    form: EncoderForm,
    protection: Protection = PROTECTED,
    samples: Sequence[Sample] | None = None,
    progress: Progress = SILENT,
) -> WrittenEncoder:
    """Writes one model per image side N into `folder`, the first as VisionEncoder.onnx; none of the files may exist.

    protection: a scan's exponents, which fp16 uses. samples: pictures that show int8 how large its channels are (the
    shipped ones). Raises TensorError for weights that are NaN or infinite, ImageError for a sample that is no picture.
    """
    half = form.dtype == TensorProto.FLOAT16
    encoder = EncoderGraph(model, protection if half else Protection(safe_forms=False))
    powers: dict[str, Tensor] = {}
    if form.eight_bits:
        with progress.stage("Looking at the encoder's channels"):
            shown = shipped_samples() if samples is None else samples
            powers = channel_powers(encoder, pictures(shown, model.config.image_rule))
    written = WrittenEncoder({}, None if form.coreml else f"{NAME}.onnx.data", {})
    with ExitStack() as stack, progress.stage("Writing the vision encoder", len(sides)) as advance:
        data = stack.enter_context(DataFile(folder / written.data)) if written.data else None
        for side in sides:
            spec = encoder_function(model.config.vision, model.config.text.hidden_size, side, form)
            graph = Graph(spec.name, data, COREML_OPSET if form.coreml else OPSET)
            if form.eight_bits:
                writer: EncoderWriter = Int8EncoderWriter(graph, encoder, side, powers)
            else:
                writer = EncoderWriter(graph, encoder, form.dtype, side, written.clamped)
            written.models[side] = f"{NAME}.onnx" if side == sides[0] else f"{NAME}-{side}.onnx"
            _write(writer, spec, form, folder / written.models[side])
            advance(1)
    return written


def _write(writer: EncoderWriter, spec: FunctionSpec, form: EncoderForm, path: Path) -> None:
    (image,), (features,) = spec.inputs, spec.outputs
    kind = form.dtype if form.coreml else TensorProto.UINT8
    given = writer.graph.input(IMAGE, kind, image.shape)
    pixels = given if form.coreml else pixels_of(writer, given)
    writer.graph.output(writer.tokens(pixels), FEATURES, form.dtype, features.shape)
    properties = {"variant": form.variant, "image": image.text, "features": features.text}
    text = "FastVLM's vision encoder and projector: a picture in, image tokens out"
    write_model(writer.graph.model(("fastvlm", __version__), text, properties), path)


def pixels_of(forms: Forms, image: str) -> str:
    """Bytes (1, N, N, 3) -> pixels (1, 3, N, N) in [0, 1]: v / 255 in float32, as in the reference, then rounded."""
    with forms.graph.scope(IMAGE):
        planes = forms.graph.op("Cast", forms.transpose(image, 0, 3, 1, 2), to=TensorProto.FLOAT)
        whole = forms.graph.constant(np.array(BRIGHTEST, np.float32))
        pixels = forms.graph.op("Div", planes, whole)
        return pixels if forms.dtype == TensorProto.FLOAT else forms.graph.op("Cast", pixels, to=forms.dtype)
