"""`benchmarks/onnx.py`: what it counts, how it judges, and what its contender over a build does for each figure."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fastvlm.build import FORMATS, read_build
from fastvlm.errors import ExecutionError
from fastvlm_ref.model.fastvlm import FastVLM

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    import benchmarks.onnx as module

    return module


def seconds(bench: ModuleType, first: float, step: float, further: float, peak: float) -> object:
    one = bench.Seconds(peak=peak, ids=[1, 2])
    for factor in (1.0, 2.0):  # the machine was busy in the second round: ratios do not see it
        for stage, value in {"encoder": first / 2, "prefill": first / 2, "first": first, "decode": step}.items():
            one.add(stage, value * factor)
        one.add("follow_up", further * factor)
    return one


def test_ratios_are_taken_round_by_round(bench: ModuleType) -> None:
    slow, fast = seconds(bench, 4.0, 0.2, 1.0, 4e9), seconds(bench, 1.0, 0.02, 0.05, 1e9)
    assert fast.ratio("first", slow) == 0.25
    assert bench.follow_up(fast) == pytest.approx(0.05)


class Answers:
    """A contender that read so many positions."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def call(self, what: str, **_: object) -> object:
        first = {"encoder": 1.0, "prefill": 1.0, "first": 2.0, "rows": self.rows}
        known = {"first": first, "decode": {"seconds": [1.0], "ids": [1, 2]}, "about": {"peak": 1.0, "opened": 1.0}}
        return known.get(what, 1.0)


def test_who_read_another_prompt_is_not_compared(bench: ModuleType, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.zeros((128, 128, 3), np.uint8))
    asked = (tmp_path / "pixels.npy", ([1, 2], [3], [4]), 2, 1)
    found = bench.measure({"one": Answers(7), "other": Answers(7)}, *asked)
    assert [len(one.stages["first"]) for one in found.values()] == [2, 2]
    with pytest.raises(ExecutionError, match="other read 6 positions, expected 7"):
        bench.measure({"one": Answers(7), "other": Answers(6)}, *asked)


def test_every_missed_target_is_named(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "parity", lambda build: "passed")
    builds = dict.fromkeys(("fp32", "int8", "int4"))
    stock = seconds(bench, 4.0, 0.3, 1.0, 4e9)
    good = {"fp32": (2.5, 0.1, 0.1), "int8": (1.5, 0.05, 0.05), "int4": (1.4, 0.03, 0.05)}
    found = {"transformers": stock} | {name: seconds(bench, *values, 1e9) for name, values in good.items()}
    assert bench.missed(found, builds) == []
    worse = {
        "first token of int4": {"int4": (2.6, 0.03, 0.05), "int8": (2.7, 0.05, 0.05), "fp32": (3.0, 0.1, 0.1)},
        "tokens per second of fp32": {"fp32": (2.5, 0.16, 0.1)},
        "tokens per second of int8": {"int8": (1.5, 0.1, 0.05)},
        "follow-up of int4": {"int4": (1.4, 0.03, 0.2)},
    }
    for words, values in worse.items():
        slower = {name: seconds(bench, *given, 1e9) for name, given in values.items()}
        assert words in " ".join(bench.missed(found | slower, builds)), words
    heavy = found | {"int4": replace(found["int4"], peak=3e9)}
    assert "peak memory of int4" in " ".join(bench.missed(heavy, builds))
    monkeypatch.setattr(bench, "parity", lambda build: "not validated")
    assert "no variant is known to pass" in " ".join(bench.missed(found, builds))


def test_the_table_says_what_was_measured(bench: ModuleType) -> None:
    found = {"transformers": seconds(bench, 4.0, 0.2, 1.0, 4e9), "int4": seconds(bench, 1.0, 0.02, 0.05, 1e9)}
    _, stock, ours, _ = bench.table(found, {})
    # Medians of two rounds, of which the second took twice as long; ratios are the rounds' own.
    assert (
        stock.split()[1:] == "3.00 s 1.00× 3.00 s 1.00× 6.00 s 1.00× 3.3 1.0× 1500 ms 0.250 4,000 MB 1.00× 2/2".split()
    )
    assert (
        ours.split()[1:] == "0.75 s 0.25× 0.75 s 0.25× 1.50 s 0.25× 33.3 10.0× 75 ms 0.050 1,000 MB 0.25× 2/2".split()
    )


def test_the_least_time_is_work_over_the_peak(
    bench: ModuleType, written_onnx: Path, tiny_model: FastVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: each matrix of a layer once a row, the head once, weights read once a token."""
    build, rows = read_build(written_onnx, FORMATS), 40
    text = vars(tiny_model.config.text) | {"head_dim": tiny_model.config.text.head_dim}
    build = replace(build, manifest=build.manifest | {"model": {"text": text}})
    decoder = tiny_model.decoder
    body = sum(weight.numel() for weight in decoder.layers.parameters() if weight.ndim == 2)
    assert bench.layer_weights(build) == body
    head = tiny_model.config.text.vocab_size * tiny_model.config.text.hidden_size
    monkeypatch.setattr(bench, "products_of", lambda file: {"float32": 6e9, "int8": 0})
    found = {"fp32": bench.Seconds({"encoder": [12.0], "prefill": [(body * rows + head) / 1e9 * 4], "decode": [1.0]})}
    data = (written_onnx / "LanguageModel.onnx.data").stat().st_size
    line = bench.limits(found, {"fp32": build}, build.image_sizes[0], rows, bench.Peaks(1e9, 9e9, data * 2.0))[-1]
    assert [word for word in line.split() if word.endswith("%")] == ["50%", "25%", "50%"]
    assert "6000.0 ms" in line


def test_peaks_are_work_over_seconds(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply-adds and bytes a second, when everything takes half a second but torch's product, which takes one."""
    from benchmarks import onnx_work

    ones, taken = onnx_work.torch.ones, iter([1.0, 0.5, 0.5, 0.5, 0.5])
    monkeypatch.setattr(onnx_work, "SIDE", 64)
    monkeypatch.setattr(onnx_work.torch, "ones", lambda count: ones(count >> 18))
    monkeypatch.setattr(onnx_work, "_best", lambda run: (run(), next(taken))[1])
    assert onnx_work.measured_peaks(onnx_work.torch.get_num_threads()) == bench.Peaks(64**3 * 2, 64**3 * 2, 8192)


def test_products_are_counted_by_what_multiplies(tmp_path: Path) -> None:
    """A convolution, a product by codes of each kind behind it, and one of two activations."""
    from benchmarks.onnx_work import products_of

    def weight(name: str, kind: int, *shape: int) -> onnx.TensorProto:
        return helper.make_tensor(name, kind, shape, np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind)))

    shapes = {"c": (32, 3, 2, 2), "d": (32, 48), "b": (16, 2, 32), "s": (32,)}
    kinds = {"c": TensorProto.FLOAT, "d": TensorProto.INT8, "b": TensorProto.UINT8, "s": TensorProto.FLOAT}
    weights = [weight(name, kinds[name], *shape) for name, shape in shapes.items()]
    weights += [onnx.numpy_helper.from_array(np.array([16, 32]), "r"), weight("one", TensorProto.FLOAT, 1)]
    blocks = {"K": 48, "N": 16, "bits": 8, "block_size": 32}
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["seen"], strides=[2, 2]),  # 8 x 8 -> 4 x 4
        helper.make_node("Reshape", ["seen", "r"], ["rows"]),
        helper.make_node("DynamicQuantizeMatMul", ["rows", "d", "one"], ["wide"], "by8", domain="com.microsoft"),
        helper.make_node("MatMulNBits", ["wide", "b", "s"], ["narrow"], "bits", domain="com.microsoft", **blocks),
        helper.make_node("Transpose", ["narrow"], ["turned"]),
        helper.make_node("MatMul", ["narrow", "turned"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(*end) for end in (("x", 1, (1, 3, 8, 8)), ("y", 1, (16, 16)))]
    graph = helper.make_graph(nodes, "all", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph), tmp_path / "all.onnx")
    counted = products_of(tmp_path / "all.onnx")
    assert counted == {"float32": 32 * 16 * 3 * 4 + 16 * 16 * 16, "int8": 16 * 32 * 48 + 16 * 48 * 16}


def test_our_contender_answers_as_the_engine(bench: ModuleType, written_onnx: Path, tmp_path: Path) -> None:
    from benchmarks.onnx_contenders import Ours
    from validation.ort.engine import OrtEngine

    build = read_build(written_onnx, FORMATS)
    side = build.image_sizes[0]
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    ours = Ours(lambda stage: None, str(written_onnx), side, 1)
    first = ours.first(str(tmp_path / "pixels.npy"), [3, 4], [5, 6])
    ids = ours.decode(3)["ids"]
    ours.follow_up([7, 8])
    engine = OrtEngine(build, side)
    rows = np.concatenate([engine.embed([3, 4]), engine.encode_image(pixels), engine.embed([5, 6])])
    expected = [int(engine.decode(rows).argmax())]
    for _ in range(3):
        expected.append(int(engine.decode(engine.embed(expected[-1:])).argmax()))
    assert (ids, first["rows"]) == (expected, len(rows))
    assert ours.last == int(engine.decode(engine.embed([*expected[-1:], 7, 8])).argmax())
