"""What makes coremltools' own tests compare off a Mac: patches, applied before the tests are imported.

`MLModel.predict` and `make_state` are answered by the MIL runtime, checks for a Mac say yes, and what the running test
does is noted in TRACE, so that an error is known by where it came from. Rows declared fp16 run in precision "fp32".
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Trace:
    """What the running test has done so far, and which errors came out of the converter and out of the runtime."""

    conversions: int = 0
    predictions: int = 0
    precision: str = "fp16"
    mark: str = ""
    converter_errors: list[BaseException] = field(default_factory=list)
    runtime_errors: list[BaseException] = field(default_factory=list)


TRACE = Trace()


def new_trace(half: bool) -> None:
    """Forget the last test; half: the next one's programs are declared fp16."""
    TRACE.__dict__.update(Trace(precision="fp32" if half else "fp16").__dict__)


def pretend_mac() -> None:
    """Make coremltools' tests compare, with MILModel answering; must run before they are imported."""
    import platform

    import coremltools
    import coremltools._deps as dependencies

    dependencies._IS_MACOS = True
    from coremltools.models import MLModel, utils
    from coremltools.models import model as models

    utils._macos_version = lambda: (15, 5)
    models._macos_version = lambda: (15, 5)
    MLModel.predict = _predict
    MLModel.make_state = lambda self: _runtime(self).make_state()
    coremltools.convert = coremltools.converters.convert = _watched_convert(coremltools.convert)
    # The choice of torch frontends reads the machine when this module is imported: rows stay those of an Intel Mac.
    # What the tests leave out on Intel for the sake of Core ML or of its last torch is run.
    import coremltools.converters.mil.frontend.torch.test.testing_utils

    platform.machine = lambda: "arm64"
    provide_nms()
    hurry()


def hurry() -> None:
    """Take from the converter what costs half of its time and changes no program.

    It collects garbage after every conversion, checks the program after each of a hundred passes (here: after each of
    the three pipelines), and prints it for a log that nobody reads.
    """
    import gc

    from coremltools.converters import _converters_entry as entry
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    entry.gc = types.SimpleNamespace(collect=lambda: 0)
    apply = PassPipelineManager.apply_pipeline
    checked, printed = Program.validate, Program.__str__

    def apply_quickly(program: Any, pipeline: Any) -> None:
        Program.validate = lambda *arguments, **options: None
        Program.__str__ = lambda self: ""
        try:
            apply(program, pipeline)
        finally:
            Program.validate, Program.__str__ = checked, printed
        program.validate()

    PassPipelineManager.apply_pipeline = staticmethod(apply_quickly)
    gc.freeze()


def provide_nms() -> None:
    """Where torchvision is missing: the two functions of it that TestNms names, written after its documentation."""
    import coremltools._deps as dependencies
    import torch

    if dependencies._HAS_TORCH_VISION:
        return

    def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Intersection over union of boxes (x1, y1, x2, y2): (N, 4), (M, 4) -> (N, M)."""
        low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        areas = [(box[:, 2:] - box[:, :2]).prod(-1) for box in (a, b)]
        return shared / (areas[0][:, None] + areas[1] - shared)

    def survivors(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
        """Indices of the boxes that no better kept box overlaps by more than the threshold, best first."""
        kept: list[int] = []
        for index in scores.argsort(descending=True, stable=True).tolist():
            # torchvision compares float32 with a float64 threshold: 0.2 is over 0.2, which one test relies on.
            if not kept or not (overlap(dets[[index]], dets[kept]).double() > iou_threshold).any():
                kept.append(index)
        return torch.tensor(kept, dtype=torch.int64)

    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.impl("torchvision::nms", "CPU", survivors)
    module = types.ModuleType("torchvision")
    module.ops = types.SimpleNamespace(nms=torch.ops.torchvision.nms, box_iou=overlap)  # type: ignore[attr-defined]
    sys.modules["torchvision"] = module
    dependencies._HAS_TORCH_VISION = True


def _watched_convert(convert: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*arguments: Any, **options: Any) -> Any:
        TRACE.conversions += 1
        try:
            return convert(*arguments, **options)
        except BaseException as error:
            TRACE.converter_errors.append(error)
            raise

    return watched


def _runtime(model: Any) -> Any:
    from validation.mil import MILModel

    if not hasattr(model, "_mil_runtime"):
        name = getattr(model, "function_name", None)
        model._mil_runtime = MILModel(model, name, precision=TRACE.precision)
    return model._mil_runtime


def _predict(model: Any, data: Any, state: Any = None) -> Any:
    """What coremltools does on a Mac: numbers are converted to the declared type, whatever type they come in."""
    from fastvlm.errors import FastVLMError

    if isinstance(data, list):
        return [_predict(model, item, state) for item in data]
    TRACE.predictions += 1
    try:
        return _answer(model, data, state)
    except FastVLMError as error:
        # Core ML's own errors reach Python in these words, which some tests expect.
        raised = RuntimeError(f"Unable to compute the prediction using ML Program: {error}")
        TRACE.runtime_errors.append(raised)
        raise raised from error
    except BaseException as error:
        TRACE.runtime_errors.append(error)
        raise


def _answer(model: Any, data: Any, state: Any) -> Any:
    import numpy as np

    runtime = _runtime(model)
    given = {}
    for name, value in data.items():
        feature = runtime.inputs.get(name)
        plain = feature is not None and feature.image is None
        given[name] = np.asarray(value).astype(feature.type.dtype.numpy) if plain else value
    return runtime.predict(given, state)


def tighten_fp16() -> None:
    """Compare rows of fp16 numbers at 1e-2, whatever tolerance the suite takes for them."""
    import numpy as np

    original = np.testing.assert_allclose

    def compare(actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0, **options: Any) -> None:
        rtol, atol = (1e-2, 1e-2) if TRACE.precision == "fp32" else (rtol, atol)
        original(actual, desired, rtol, atol, **options)

    np.testing.assert_allclose = compare  # type: ignore[assignment]
