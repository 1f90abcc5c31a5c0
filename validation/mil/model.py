"""MILModel: an ML program that answers `predict` on any machine, with the surface of coremltools' MLModel.

It executes the bytes of the package: protobuf and mapped weights, never coremltools' converter objects.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastvlm.errors import ExecutionError, PackageError
from validation.mil.allowance import within_work
from validation.mil.device import found_device, on_device
from validation.mil.execution import HOOK_SLOT, Hook, run_steps, run_steps_hooked
from validation.mil.features import Feature, array_to_tensor, default_tensor, describe, image_to_tensor, to_output
from validation.mil.package import Package, open_package
from validation.mil.plan import FunctionPlan, plan_function
from validation.mil.rounding import PRECISIONS, held_type
from validation.mil.state import MILState
from validation.mil.values import StateType
from validation.within_memory import within_memory


class Descriptions(dict[str, str]):
    """Name -> description, in the package's order; prints as a mapping, like coremltools' feature descriptions."""


class MILModel:
    """One function of an ML program.

    source: path of an .mlpackage, a spec (protobuf Model; `weights`: its weights folder), or a coremltools MLModel.
    function_name: None takes the package's default function. precision: "fp16", "fp16-accumulate" or "fp32", see
    `validation.mil.rounding`. device: any torch device; weights are copied there when the function first runs. Raises
    PackageError for anything damaged, UnsupportedOp (all unknown ops at once), ExecutionError for a device that is
    not there.
    """

    def __init__(
        self,
        source: Any,
        function_name: str | None = None,
        precision: str = "fp16",
        *,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
    ):
        if precision not in PRECISIONS:
            raise ExecutionError(f"precision {precision!r} given, expected one of {', '.join(PRECISIONS)}")
        self.precision = precision
        self.device = found_device(device)
        self.package: Package = open_package(source, weights)
        description = self.package.spec.description
        self.function_names = sorted(self.package.program.functions)
        if not isinstance(function_name, str | None):
            known = ", ".join(self.function_names)
            raise ExecutionError(f"function name {function_name!r} given, expected one of {known}")
        self.function_name = function_name or description.defaultFunctionName or self._only_function()
        self.plan: FunctionPlan = plan_function(self.package, self.function_name, precision, self.device)
        self._describe(description)

    def _only_function(self) -> str:
        if "main" in self.function_names or len(self.function_names) != 1:
            return "main"
        return str(self.function_names[0])

    def _describe(self, description: Any) -> None:
        described = next((item for item in description.functions if item.name == self.function_name), description)
        declared = self.plan.inputs
        self.inputs: dict[str, Feature] = {
            item.name: describe(item, declared[item.name]) for item in described.input if item.name in declared
        }
        self.states: dict[str, Feature] = {
            name: Feature(name, kind.tensor) for name, kind in declared.items() if isinstance(kind, StateType)
        }
        missing = [name for name in declared if name not in self.inputs and name not in self.states]
        outputs = self.plan.outputs
        missing += [item.name for item in described.output if item.name not in outputs]
        missing += [item.name for item in described.input if item.name not in declared]
        if missing:
            raise PackageError(
                f"description and program of function {self.function_name!r} differ in {', '.join(missing)}"
            )
        self.outputs: dict[str, Feature] = {item.name: describe(item, outputs[item.name]) for item in described.output}
        self.input_description = Descriptions({name: item.description for name, item in self.inputs.items()})
        self.output_description = Descriptions({name: item.description for name, item in self.outputs.items()})

    def get_spec(self) -> Any:
        """A copy of the model's protobuf message (Model.proto)."""
        return copy.deepcopy(self.package.spec)

    def function(self, name: str) -> MILModel:
        """Another function of the same package; it shares the mapped weights and everything converted from them."""
        return MILModel(self.package, name, self.precision, device=self.device)

    def make_state(self) -> MILState:
        """Fresh zeros for every state of this function, to hand to `predict`.

        Raises PackageError for a state without a fixed shape or beyond the memory.
        """
        open_ended = [f"state {name!r} is {item.type}" for name, item in self.states.items() if None in item.shape]
        if open_ended:
            raise PackageError(f"{', '.join(open_ended)}, expected a fixed shape; the program is damaged")
        shapes = {name: tuple(int(n or 0) for n in item.shape) for name, item in self.states.items()}
        return MILState(shapes, {name: self._held(item) for name, item in self.states.items()}, self.device)

    def _held(self, feature: Feature) -> torch.dtype:
        if feature.type.dtype is None:
            raise PackageError(f"{feature.name!r} is a string; the runtime takes numbers and images")
        return held_type(feature.type.dtype, self.precision)

    def predict(
        self, data: Mapping[str, Any], state: MILState | None = None, *, hook: Hook | None = None
    ) -> dict[str, Any]:
        """Run the function.

        data: input name -> array, number, torch tensor, or (image inputs) PIL image / uint8 (H, W, channels); None for
        an optional input is its default.
        Returns output name -> numpy array in its declared type (fp16 as float16; precision "fp32": float32; a scalar in
        shape (1,)), PIL image for image outputs. hook(name, op type, value) sees every result, in nested blocks too.
        Raises ExecutionError for a wrong input, state, or value; a state may then hold what was written before.
        """
        results = self.predict_tensors(data, state, hook=hook)
        return {name: to_output(results[name], feature) for name, feature in self.outputs.items()}

    def predict_tensors(
        self, data: Mapping[str, Any], state: MILState | None = None, *, hook: Hook | None = None
    ) -> dict[str, Any]:
        """`predict`, with the results as the runtime's own tensors on its device; the next call may overwrite them."""
        with within_memory():
            frame = self.plan.binder.frame()
        self._bind_inputs(frame, data)
        self._bind_states(frame, state)
        try:
            with (
                torch.inference_mode(),
                on_device(self.device),
                within_memory(),
                within_work(self.package.weight_bytes),
            ):
                if hook is None:
                    run_steps(self.plan.body.steps, frame)
                else:
                    frame[HOOK_SLOT] = hook
                    run_steps_hooked(self.plan.body.steps, frame, hook)
            return {name: frame[slot] for name, slot in zip(self.plan.outputs, self.plan.body.outputs, strict=True)}
        finally:
            frame.clear()  # it holds itself: without this all constants would wait for the garbage collector

    def _bind_inputs(self, frame: list[Any], data: Mapping[str, Any]) -> None:
        if not isinstance(data, Mapping):
            raise ExecutionError(
                f"function {self.function_name!r} takes a mapping of names to values, {type(data).__name__} given"
            )
        unknown = [str(name) for name in data if name not in self.inputs]
        missing = [name for name, item in self.inputs.items() if data.get(name) is None and not item.optional]
        if unknown or missing:
            raise ExecutionError(
                f"function {self.function_name!r} takes {', '.join(self.inputs) or 'no inputs'}"
                + (f"; unknown: {', '.join(unknown)}" if unknown else "")
                + (f"; missing: {', '.join(missing)}" if missing else "")
            )
        for name, slot in zip(self.plan.inputs, self.plan.body.inputs, strict=True):
            if name in self.inputs:
                frame[slot] = self._tensor(self.inputs[name], data.get(name)).to(self.device)

    def _tensor(self, feature: Feature, value: Any) -> torch.Tensor:
        if value is None:
            return default_tensor(feature, self.precision)
        if feature.image is not None:
            return image_to_tensor(value, feature, self.precision)
        return array_to_tensor(value, feature, self.precision)

    def _bind_states(self, frame: list[Any], state: MILState | None) -> None:
        if self.states and state is None:
            raise ExecutionError(
                f"function {self.function_name!r} keeps state ({', '.join(self.states)}); pass make_state()"
            )
        if state is not None and not isinstance(state, MILState):
            raise ExecutionError(f"state of type {type(state).__name__} given, expected one from make_state()")
        for name, slot in zip(self.plan.inputs, self.plan.body.inputs, strict=True):
            if name in self.states:
                frame[slot] = self._state(self.states[name], state)

    def _state(self, feature: Feature, state: MILState | None) -> Any:
        box = state.boxes.get(feature.name) if state else None
        if box is None:
            raise ExecutionError(f"the state given has no {feature.name!r}; it was made by another model")
        expected = (tuple(feature.shape), self._held(feature))
        found = (tuple(box.tensor.shape), box.tensor.dtype)
        if found != expected:
            raise ExecutionError(
                f"state {feature.name!r} is {found}, expected {expected}; it was made by another model"
            )
        return box
