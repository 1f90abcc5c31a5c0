"""What one export to ONNX is to make, checked before heavy work; numbers that both formats share are `ExportPlan`'s.

| target | for |
|---|---|
| cpu | onnxruntime's own kernels, which also its GPU and browser builds have: fp32, fp16, int8, int4 |
| coreml-ep | onnxruntime's CoreML provider: standard ops of fixed shapes, fp32 or fp16 |

It does not know graphs or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.onnx.coreml_ep import check_coreml
from export.onnx.encoder import EncoderForm
from export.onnx.schemes import VARIANTS, check_variant
from export.plan import CONTEXT, ExportPlan, check_options, make_plan
from fastvlm.build import COREML_EP, CPU, ONNX_TARGETS
from fastvlm.errors import UsageError
from fastvlm_ref.config import FastVLMConfig

DEFAULT = "fp32"


@dataclass(frozen=True)
class OnnxPlan:
    """plan: image sizes N, C, Q, parts; variant: of VARIANTS; target: of ONNX_TARGETS."""

    plan: ExportPlan
    variant: str
    target: str

    @property
    def coreml(self) -> bool:
        """Whether it is for onnxruntime's CoreML provider."""
        return self.target == COREML_EP

    @property
    def encoder(self) -> EncoderForm:
        """What the encoder is written as."""
        return EncoderForm(self.variant, self.coreml)


def check_onnx_options(
    image_sizes: Sequence[int] = (),
    context: int | None = None,
    query_length: int = 64,
    only: str | None = None,
    target: str | None = None,
    max_file_size: int | None = None,
    quantize: str | Path | None = None,
    calibration: str | Path | None = None,
    purpose: str | None = None,
) -> None:
    """Checks what can be checked without a checkpoint; UsageError that lists every problem."""
    variant, target = str(quantize or DEFAULT), target or CPU
    problems = [
        f"{option} is for --format coreml; leave it out"
        for option, given in (("--max-file-size", max_file_size is not None), ("--for", purpose is not None))
        if given
    ]
    if target not in ONNX_TARGETS:
        problems.append(f"--target is {target!r}, expected {' or '.join(ONNX_TARGETS)} with --format onnx")
    if variant not in VARIANTS:
        problems.append(f"--quantize is {variant!r}, expected one of {', '.join(VARIANTS)} with --format onnx")
    try:
        check_options(image_sizes, context, query_length, only, "gpu", None, None, calibration)
        if target == COREML_EP and variant in VARIANTS:
            check_coreml(context or CONTEXT, query_length, variant)
    except UsageError as problem:
        problems.append(str(problem))
    if problems:
        raise UsageError("; ".join(problems))


def make_onnx_plan(
    config: FastVLMConfig,
    image_sizes: Sequence[int] = (),
    context: int | None = None,
    query_length: int = 64,
    only: str | None = None,
    target: str | None = None,
    quantize: str | Path | None = None,
) -> OnnxPlan:
    """Returns the plan for a checkpoint; UsageError for what it cannot have."""
    variant = str(quantize or DEFAULT)
    plan = OnnxPlan(make_plan(config, image_sizes, context, query_length, only, "gpu"), variant, target or CPU)
    if plan.plan.language and not plan.coreml:
        check_variant(variant, config.text)
    return plan
