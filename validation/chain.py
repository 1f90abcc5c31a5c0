"""The language model's packages as one: called in order, each with what the one before hands on.

Every package with layers has a state of its own; a package of the head alone has none and takes the hidden states of
the last that has. Packages and functions are opened when they are first asked for.
It knows neither positions nor embeddings: what goes in is prepared by `validation.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.build import HIDDEN, STATE, Stage
from fastvlm.errors import BuildError
from validation.backends import Predictor, open_package
from validation.host import EMBEDS
from validation.peaks import Where

# a function, what it takes, its state, and where it is
Predict = Callable[[Predictor, dict[str, Any], Any, Where], dict[str, Any]]


class Chain:
    """The packages of one build, executed by one backend with one precision."""

    def __init__(
        self, stages: Sequence[Stage], backend: str, precision: str, target: str, compute_units: str | None = None
    ) -> None:
        self.stages, self.backend, self.precision, self.target = stages, backend, precision, target
        self.compute_units = compute_units
        self._functions: list[dict[str, Predictor]] = [{} for _ in stages]

    def open(self) -> list[Predictor]:
        """Opens every function that there is, and returns them in the order of a call."""
        return [
            self._function(index, name)
            for index, stage in enumerate(self.stages)
            for name in (("prefill", "decode") if stage.prefill else ("decode",))
        ]

    def make_states(self) -> list[Any]:
        """Returns a fresh state for each package, None for one that keeps nothing."""
        return [
            self._function(index, "decode").make_state() if stage.state else None
            for index, stage in enumerate(self.stages)
        ]

    def read_states(self, states: Sequence[Any]) -> list[NDArray[np.float16] | None]:
        """Returns a copy of what each package's state holds, in the shape that the manifest gives; None without one."""
        return [None if state is None else np.asarray(state.read_state(STATE)) for state in states]

    def prefill(self, inputs: dict[str, Any], states: Sequence[Any], predict: Predict) -> None:
        """Fills the states with Q positions; the head's packages are passed by."""
        for index, stage in enumerate(self.stages):
            if stage.prefill:
                outputs = predict(self._function(index, "prefill"), inputs, states[index], (stage.package, "prefill"))
                inputs = {**inputs, EMBEDS: outputs.get(HIDDEN)}

    def decode(self, inputs: dict[str, Any], states: Sequence[Any], predict: Predict) -> NDArray[np.float32]:
        """Fills one position; returns the logits float32 (rows,), all outputs of the head put together in order."""
        logits: list[NDArray[np.float32]] = []
        for index, stage in enumerate(self.stages):
            taken = inputs if stage.state else {EMBEDS: inputs[EMBEDS]}
            outputs = predict(self._function(index, "decode"), taken, states[index], (stage.package, "decode"))
            missing = [name for name in stage.logits if name not in outputs]
            if missing:
                raise BuildError(
                    f"{stage.package} gives no {', '.join(missing)}, which the manifest lists; export the build again"
                )
            logits += [np.asarray(outputs[name], np.float32).reshape(-1) for name in stage.logits]
            inputs = {**inputs, EMBEDS: outputs.get(HIDDEN, inputs[EMBEDS])}
        return np.concatenate(logits)

    def _function(self, index: int, name: str) -> Predictor:
        opened = self._functions[index]
        if name not in opened:
            beside = next(iter(opened.values()), None)
            package = self.stages[index].package
            opened[name] = open_package(
                package, name, self.backend, self.precision, beside, self.target, self.compute_units
            )
        return opened[name]
