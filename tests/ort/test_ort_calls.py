"""Calls that are stopped: from another thread, by Ctrl-C, before they begin; what an engine is worth afterwards."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from ort_limits import check

from export.onnx.graph import IR_VERSION, OPSET
from fastvlm.build import ONNX, read_build
from fastvlm.errors import ExecutionError, Stopped
from validation.ort import engine as engine_file
from validation.ort.calls import Calls
from validation.ort.engine import OrtEngine
from validation.ort.settings import Settings, run_options, session_options

SIDE, LONG = 1024, 600  # a chain of products of 30 ms each


@pytest.fixture(scope="module")
def chain() -> onnxruntime.InferenceSession:
    """A session that multiplies for many seconds, one node after the other."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in ("x0", f"x{LONG}"))
    nodes = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(LONG)]
    weight = numpy_helper.from_array(np.eye(SIDE, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


@pytest.fixture
def calls() -> Calls:
    return Calls()


def begun(chain: onnxruntime.InferenceSession, then: Callable[[], Any]) -> Callable[[Any], Any]:
    """A call of the chain that does `then` on another thread, once it runs."""

    def call(options: onnxruntime.RunOptions) -> Any:
        threading.Timer(0.1, then).start()
        return chain.run(None, {"x0": np.ones((SIDE, SIDE), np.float32)}, options)

    return call


def test_a_call_gives_what_it_returns(calls: Calls) -> None:
    assert calls("it", lambda options: ("done", options.terminate)) == ("done", False)


def test_stopping_from_another_thread(calls: Calls, chain: onnxruntime.InferenceSession) -> None:
    with pytest.raises(Stopped, match="stopped before the answer was complete"):
        calls("it", begun(chain, calls.stop))
    with pytest.raises(Stopped):
        calls("it", lambda _: "not even begun")
    calls.resume()
    assert calls("it", lambda _: "again") == "again"


def test_a_stop_that_is_taken_back_at_once(calls: Calls, chain: onnxruntime.InferenceSession) -> None:
    """Whoever resumes before the call has noticed does not turn the stop into a failure."""

    def both() -> None:
        calls.stop()
        calls.resume()

    with pytest.raises(Stopped):
        calls("it", begun(chain, both))
    assert calls("it", lambda _: "again") == "again"


def test_ctrl_c(calls: Calls, chain: onnxruntime.InferenceSession) -> None:
    """It reaches the waiting thread at once; when it goes on, nothing runs any more."""
    ended: list[str] = []
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def call(options: onnxruntime.RunOptions) -> None:
        try:
            begun(chain, lambda: os.kill(os.getpid(), signal.SIGINT))(options)
        finally:
            ended.append("terminated" if options.terminate else "ran to its end")

    try:
        with pytest.raises(KeyboardInterrupt):
            calls("it", call)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended == ["terminated"]
    assert calls("it", lambda _: "again") == "again"


def test_what_onnxruntime_raises_is_named(calls: Calls, chain: onnxruntime.InferenceSession) -> None:
    with pytest.raises(ExecutionError, match=r"it failed in onnxruntime \(.*INVALID_ARGUMENT") as caught:
        calls("it", lambda options: chain.run(None, {"x0": np.ones((2, 2), np.float32)}, options))
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_is_left_as_it_is(calls: Calls) -> None:
    with pytest.raises(ZeroDivisionError):
        calls("it", lambda _: 1 // 0)


def test_calls_are_made_one_at_a_time(calls: Calls) -> None:
    threads = {calls("it", lambda _: threading.get_ident()) for _ in range(5)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_options_of_a_call() -> None:
    assert run_options(shrink=True).get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"
    assert run_options().log_severity_level == 4
    assert session_options  # the session's own: test_ort_loading.py


# The engine


class Stopping(OrtEngine):
    """An engine that is stopped when its call number `at` begins."""

    at, made = 0, 0

    def _advance(self, rows: np.ndarray) -> np.ndarray:
        self.made += 1
        if self.made == self.at:
            self.stop()
        return super()._advance(rows)


@pytest.fixture
def stopping(written_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> Stopping:
    monkeypatch.setattr(engine_file, "MOST_ROWS", 8)
    return Stopping(read_build(written_onnx, (ONNX,)), settings=Settings(threads=1, spin=False))


def test_an_engine_is_usable_after_a_stop(stopping: Stopping) -> None:
    """What was filled before stays; going on from there gives what was given without the stop."""
    rows = stopping.embed(range(40))
    stopping.prefill(rows)
    whole = stopping.decode(rows[:1])
    stopping.reset()
    stopping.at = stopping.made + 4
    with pytest.raises(Stopped):
        stopping.prefill(rows)
    assert stopping.position == 24
    with pytest.raises(Stopped):
        stopping.encode_image(np.zeros((256, 256, 3), np.uint8))
    stopping.resume()
    stopping.prefill(rows[24:])
    check("reused", whole, stopping.decode(rows[:1]))
