"""What a plan consists of, and running it: a loop of calls.

With a hook every result is shown as (name, op type, value) after its op; the value is the runtime's own tensor and may
be overwritten later, so a hook that keeps it copies it. Without a hook the loop does not mention hooks. A plan never
changes while it runs: several calls may run it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fastvlm.errors import ExecutionError, FastVLMError, PackageError
from validation.mil.allowance import allowance


@dataclass(slots=True)
class Step:
    """One call: `function(*take(frame))`, its results stored in `results`, the slots in `free` cleared afterwards.

    inplace: the same call writing into its first argument, which planning puts in the function's place where it may.
    What it spends of a call's work (`spending`): `begins` whatever it takes, `fixed` for constants, `price` for each
    value in the slots of `reads` (`asks`: it has to spend these itself, before it runs), `makes` for each value of its
    results.
    """

    name: str
    type: str
    function: Callable[..., Any]
    take: Callable[[list[Any]], Any]
    results: tuple[int, ...]
    many: bool
    free: tuple[int, ...] = ()
    inplace: Callable[..., Any] | None = None
    begins: int = 0
    fixed: int = 0
    price: int = 0
    reads: tuple[int, ...] = ()
    makes: int = 0
    asks: bool = True

    def keeping(self) -> Step:
        """The same call, which clears nothing: for a hook its results are shown first. Asked for when plans run."""
        return replace(self, free=())

    def spends(self, frame: list[Any]) -> int:
        """What it spends before it runs."""
        values: int = sum([frame[slot].numel() for slot in self.reads])
        return self.fixed + self.price * values

    def write_in_place(self) -> None:
        """Let it write into its first argument, of which it then touches no more than it is given."""
        if self.inplace is not None:
            self.function, self.reads, self.makes = self.inplace, self.reads[1:], 0


@dataclass
class BlockPlan:
    """The steps of one block, the slots of its inputs and of its outputs."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: list[Step]


Hook = Callable[[str, str, Any], None]

# The first slots of every frame: the frame itself, so that control flow takes it like any other argument, and the hook
# (or None), so that nested blocks know of it.
FRAME_SLOT, HOOK_SLOT, ROUNDS_SLOT, FIRST_FREE_SLOT = 0, 1, 2, 3
MOST_ROUNDS = 10_000  # of all loops of one call together; no program of this project has any

# What torch and the ops themselves raise reads well alone; of others (KeyError: 3) the message needs the kind.
_SPEAKING = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, FastVLMError)


class _HookFault(BaseException):
    """Carries what a hook raised past the ops whose blocks were running: none of them is at fault."""

    def __init__(self, error: Exception):
        self.error = error


def run_steps(steps: list[Step], frame: list[Any]) -> None:
    """Run `steps` on `frame`; ExecutionError names the op that failed and why."""
    step, work = None, allowance()
    try:
        for step in steps:
            if step.asks:
                work.left -= step.spends(frame)
            if work.left < 0:
                work.check()
            result = step.function(*step.take(frame))
            if step.many:
                for slot, value in zip(step.results, result or (), strict=True):
                    frame[slot] = value
                    if step.makes:
                        work.left -= step.makes * value.numel()
            else:
                frame[step.results[0]] = result
                work.left -= step.makes * result.numel()
            for slot in step.free:
                frame[slot] = None
    except Exception as error:
        named = _located(step, error)
        if named is error:
            raise
        raise named from error


def run_steps_hooked(steps: list[Step], frame: list[Any], hook: Hook) -> None:
    """`run_steps`, showing every result to `hook`; those of a nested block come before their op's own.

    What the hook raises comes out as it is.
    """
    try:
        _run_shown(steps, frame, hook)
        return
    except _HookFault as fault:
        raised = fault.error
    raise raised


def _run_shown(steps: list[Step], frame: list[Any], hook: Hook) -> None:
    for step in steps:
        run_steps([step.keeping()], frame)
        for slot in step.results:
            _show(hook, step, frame[slot])
        for slot in step.free:
            frame[slot] = None


def _show(hook: Hook, step: Step, value: Any) -> None:
    try:
        hook(step.name, step.type, value)
    except Exception as error:
        raise _HookFault(error) from None


def run_block(frame: list[Any], block: BlockPlan, arguments: tuple[Any, ...] = ()) -> list[Any]:
    """Run a nested block of the running frame on `arguments`; returns its results."""
    for slot, value in zip(block.inputs, arguments, strict=True):
        frame[slot] = value
    hook = frame[HOOK_SLOT]
    if hook is None:
        run_steps(block.steps, frame)
    else:
        _run_shown(block.steps, frame, hook)
    return [frame[slot] for slot in block.outputs]


def _located(step: Step | None, error: Exception) -> Exception:
    """The fault of an op as an ExecutionError that names it once; errors of other stages stay what they are."""
    other = isinstance(error, FastVLMError) and not isinstance(error, PackageError)
    if step is None or other or getattr(error, "located", False):
        return error
    said = " ".join(str(error).split())
    kind = "" if said and isinstance(error, _SPEAKING) else type(error).__name__
    found = ExecutionError(f"op {step.name!r} ({step.type}): {': '.join(part for part in (kind, said) if part)}")
    found.located = True  # type: ignore[attr-defined]  # so that an enclosing block does not name itself too
    return found
