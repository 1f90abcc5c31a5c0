"""What a plan consists of, and running it: a loop of calls.

With a hook every result is shown as (name, op type, value) after its op; the value is the runtime's own tensor and may
be overwritten later, so a hook that keeps it copies it. Without a hook the loop does not mention hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastvlm.errors import ExecutionError, PackageError


@dataclass
class Step:
    """One call: `function(*take(frame))`, its results stored in `results`, the slots in `free` cleared afterwards."""

    name: str
    type: str
    function: Callable[..., Any]
    take: Callable[[list[Any]], Any]
    results: tuple[int, ...]
    many: bool
    free: tuple[int, ...] = ()


@dataclass
class BlockPlan:
    """The steps of one block, the slots of its inputs and of its outputs."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: list[Step]


Hook = Callable[[str, str, Any], None]

# The first slots of every frame: the frame itself, so that control flow takes it like any other argument, and the hook
# (or None), so that nested blocks know of it.
FRAME_SLOT, HOOK_SLOT, FIRST_FREE_SLOT = 0, 1, 2

_FAULTS = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, NotImplementedError)


def run_steps(steps: list[Step], frame: list[Any]) -> None:
    """Run `steps` on `frame`; ExecutionError names the op that failed and why."""
    step = None
    try:
        for step in steps:
            result = step.function(*step.take(frame))
            if step.many:
                for slot, value in zip(step.results, result or (), strict=True):
                    frame[slot] = value
            else:
                frame[step.results[0]] = result
            for slot in step.free:
                frame[slot] = None
    except PackageError as error:
        raise _located(step, error) from error
    except _FAULTS as error:
        raise _located(step, error) from error


def run_steps_hooked(steps: list[Step], frame: list[Any], hook: Hook) -> None:
    """`run_steps`, showing every result to `hook`; those of a nested block come before their op's own."""
    for step in steps:
        freed, step.free = step.free, ()
        try:
            run_steps([step], frame)
        finally:
            step.free = freed
        for slot in step.results:
            hook(step.name, step.type, frame[slot])
        for slot in freed:
            frame[slot] = None


def run_block(frame: list[Any], block: BlockPlan, arguments: tuple[Any, ...] = ()) -> list[Any]:
    """Run a nested block of the running frame on `arguments`; returns its results."""
    for slot, value in zip(block.inputs, arguments, strict=True):
        frame[slot] = value
    hook = frame[HOOK_SLOT]
    if hook is None:
        run_steps(block.steps, frame)
    else:
        run_steps_hooked(block.steps, frame, hook)
    return [frame[slot] for slot in block.outputs]


def _located(step: Step | None, error: Exception) -> ExecutionError:
    if step is None or getattr(error, "located", False):
        return error if isinstance(error, ExecutionError) else ExecutionError(str(error))
    reason = " ".join(str(error).split()) or type(error).__name__
    found = ExecutionError(f"op {step.name!r} ({step.type}): {reason}")
    found.located = True  # type: ignore[attr-defined]  # so that an enclosing block does not name itself too
    return found
