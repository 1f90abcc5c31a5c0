"""States (iOS18 states, coreml_dialect).

coremltools stores `coreml_update_state` as write_state followed by read_state.
"""

from __future__ import annotations

from validation.mil.registry import Kind, State, Tensor, op


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first.data_ptr() == second.data_ptr() and first.shape == second.shape and first.stride() == second.stride()


@op("read_state", kind=Kind.MOVE)
def read_state(input: State) -> Tensor:
    """iOS18 states.read_state: the state's own tensor; the plan sees to it that nobody overwrites what is still read"""
    return input.tensor


@op("write_state", kind=Kind.MOVE)
def write_state(input: State, data: Tensor) -> None:
    """MIL write_state: what an in-place update already wrote stays, anything else is copied

    A fresh tensor replaces the old one, so that values read earlier keep what they read.
    """
    if data.shape != input.tensor.shape:
        raise ValueError(f"state of shape {list(input.tensor.shape)} given a value of shape {list(data.shape)}")
    if not _same_memory(data, input.tensor):
        input.tensor = data.to(input.tensor.dtype, copy=True)


@op("coreml_update_state", kind=Kind.MOVE)
def coreml_update_state(state: State, value: Tensor) -> Tensor:
    """coreml_dialect ops.coreml_update_state: write_state, then read_state"""
    write_state(state, value)
    return state.tensor
