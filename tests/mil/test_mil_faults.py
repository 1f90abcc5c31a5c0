"""What goes wrong inside an op is named, what goes wrong in the caller's hook is left alone, and no plan is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mil_messages import add_op, empty_program, give, one_op

from fastvlm.errors import ExecutionError, PackageError, UsageError
from validation.mil import MILModel

PAIR = np.float32([1, -1])
CUBE = np.ones((1, 1, 2, 2, 2, 2), np.float32)


def nested(inner: str = "relu") -> Any:
    """y = branch(x), where both branches apply the op `inner`."""
    spec, block = empty_program({"pred": np.bool_(True), "x": PAIR})
    add_op(block, "cond", {"y": "fp32"}, {"pred": "@pred"})
    for _ in range(2):
        branch = block.operations[-1].blocks.add()
        add_op(branch, inner, {"inner": "fp32"}, {"x": "@x"})
        branch.outputs.append("inner")
    give(spec, block, ["y"])
    return spec


def plain(count: int = 3) -> Any:
    spec, block = empty_program({"x": PAIR})
    for index in range(count):
        add_op(block, "sin", {f"a{index}": "fp32"}, {"x": f"@a{index - 1}" if index else "@x"})
    give(spec, block, [f"a{count - 1}"])
    return spec


FEEDS = {"plain": {"x": PAIR}, "nested": {"pred": True, "x": PAIR}}
PROGRAMS: dict[str, Callable[[], Any]] = {"plain": plain, "nested": nested}


def raising(model: MILModel, name: str, error: BaseException) -> None:
    """Makes the step called `name` raise."""

    def fail(*_: Any) -> Any:
        raise error

    blocks = [model.plan.body.steps]
    for step in model.plan.body.steps:
        if step.type == "cond":
            blocks += [branch.steps for branch in step.take(model.plan.binder.frame())[1]]
    for step in (step for steps in blocks for step in steps):
        if step.name == name:
            step.function = fail


@pytest.mark.parametrize(
    ("kind", "arguments", "reason"),
    [
        ("conv", {"x": (CUBE[0, 0, 0, 0],), "weight": np.ones((2, 2), np.float32)}, "0 spatial axes"),
        ("conv", {"x": (CUBE,), "weight": CUBE}, "4 spatial axes"),
        ("conv_transpose", {"x": (CUBE,), "weight": CUBE}, "4 spatial axes"),
        ("avg_pool", {"x": (CUBE,), "kernel_sizes": np.int32([1, 1, 1, 1]), "pad_type": "valid"}, "4 spatial axes"),
        ("max_pool", {"x": (CUBE,), "kernel_sizes": np.int32([1, 1, 1, 1]), "pad_type": "valid"}, "4 spatial axes"),
        ("l2_pool", {"x": (CUBE,), "kernel_sizes": np.int32([1, 1, 1, 1]), "pad_type": "valid"}, "4 spatial axes"),
        ("reduce_sum", {"x": "text", "axes": (np.int32([0]),)}, "AttributeError: "),
        ("gather", {"x": (PAIR,), "indices": "text"}, "AttributeError: "),
        ("read_state", {"input": (PAIR,)}, "AttributeError: "),
        ("list_read", {"ls": (PAIR,), "index": np.int32(0)}, "AttributeError: "),
    ],
)
def test_a_fault_of_an_op_names_it(kind: str, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExecutionError, match=rf"op 'out0' \({kind}\): .*{reason}"):
        one_op(kind, arguments, "fp32")


@pytest.mark.parametrize("hook", [None, lambda *_: None])
@pytest.mark.parametrize("error", [MemoryError(), KeyError(3), AttributeError("no such"), AssertionError("never")])
@pytest.mark.parametrize(("program", "step"), [("plain", "a1"), ("nested", "inner")])
def test_any_exception_of_an_op_names_it(program: str, step: str, error: Exception, hook: Any) -> None:
    model = MILModel(PROGRAMS[program]())
    raising(model, step, error)
    with pytest.raises(ExecutionError, match=rf"op '{step}' .*: {type(error).__name__}") as caught:
        model.predict(FEEDS[program], hook=hook)
    assert str(caught.value).count("op '") == 1


@pytest.mark.parametrize("hook", [None, lambda *_: None])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), UsageError("as it is")])
@pytest.mark.parametrize(("program", "step"), [("plain", "a1"), ("nested", "inner")])
def test_what_is_no_fault_of_an_op_passes(program: str, step: str, error: BaseException, hook: Any) -> None:
    model = MILModel(PROGRAMS[program]())
    raising(model, step, error)
    with pytest.raises(type(error)) as caught:
        model.predict(FEEDS[program], hook=hook)
    assert caught.value is error


@pytest.mark.parametrize("error", [ValueError("mine"), KeyError(1), ExecutionError("mine too"), KeyboardInterrupt()])
@pytest.mark.parametrize(("program", "step"), [("plain", "a1"), ("nested", "inner"), ("nested", "y")])
def test_an_exception_of_the_hook_passes_as_it_is(program: str, step: str, error: BaseException) -> None:
    def hook(name: str, kind: str, value: Any) -> None:
        if name == step:
            raise error

    with pytest.raises(type(error)) as caught:
        MILModel(PROGRAMS[program]()).predict(FEEDS[program], hook=hook)
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_hook_leaves_the_plan_alone() -> None:
    """Another thread may run the same plan at that moment: what a step frees is there while the step runs."""
    model = MILModel(plain())
    want = [step.free for step in model.plan.body.steps]
    assert any(want)
    seen = []
    step = model.plan.body.steps[1]
    function = step.function

    def watched(*arguments: Any) -> Any:
        seen.append([step.free for step in model.plan.body.steps])
        return function(*arguments)

    step.function = watched
    shown = []
    model.predict({"x": PAIR}, hook=lambda name, kind, value: shown.append((name, kind, value.tolist())))
    assert seen == [want]
    assert [name for name, _, _ in shown] == ["a0", "a1", "a2"]
    np.testing.assert_allclose(shown[-1][2], np.sin(np.sin(np.sin(PAIR))), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "arguments", "results"),
    [
        ("clip", {"x": (PAIR,), "alpha": np.float32(0), "beta": np.float32(1)}, []),
        ("relu", {"x": (PAIR,)}, []),
        ("relu", {"x": (PAIR,)}, ["fp32", "fp32"]),
        ("linear", {"x": (np.ones((1, 512), np.float16),), "weight": np.ones((1024, 512), np.float16)}, ["fp16"] * 2),
    ],
)
def test_another_number_of_results_is_a_damaged_program(
    kind: str, arguments: dict[str, Any], results: list[str]
) -> None:
    with pytest.raises(PackageError, match=rf"{kind} .* declares {len(results)} results, expected 1; the program is"):
        one_op(kind, arguments, results, precision="fp16")
