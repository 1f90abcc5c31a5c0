"""What ops of the MIL runtime take beside what a call is charged for them: the prices of `validation/mil/work.py`.

    python benchmarks/work_prices.py [--side 1024] [--rounds 5] [--threads 1] [--ops add topk]

Each op is a package of its own, in float32 and in fp16, of square maps. `charged` is what the runtime counted for that
very call, in the time that a large product takes for as many multiplications in the same run (`linear`, float32): 1 in
the last column is what its price says, 3 lets a stranger's package take three times as long as was meant. The
last lines are the dearest op, and what a call of a package without weights takes that consists of it alone.

Notable choices: all ops take turns, round by round, so that what else the machine does meets each; medians. Sides where
a map no longer fits a cache are the dear ones. It does not plant anything: tests/hostile/test_hostile_work.py does.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from layouts import converted
from speed import in_turns

from validation.mil import MILModel
from validation.mil.allowance import MOST_WITHOUT_WEIGHTS, Allowance, allowance

YARDSTICK = "linear"
SMALL = 8  # side of the matrices that are multiplied one by one
CHAIN = 1024  # ops of a few values each
LEAST = 256  # side: of a smaller product most is the call itself

Build = Callable[[Any, int], Any]


def chained(x: Any, side: int) -> Any:
    """Ops of SMALL values: what starting an op costs."""
    value = mb.slice_by_size(x=x, begin=[0, 0], size=[1, SMALL])
    for _ in range(CHAIN):
        value = mb.add(x=value, y=value)
    return value


def image(x: Any, side: int) -> Any:
    """(1, 4, side / 2, side / 2)."""
    return mb.reshape(x=x, shape=[1, 4, side // 2, side // 2])


def product(x: Any, side: int) -> Any:
    """x @ xᵀ of a constant as large."""
    return mb.linear(x=x, weight=np.ones((side, side), np.float16 if x.dtype == types.fp16 else np.float32))


def small_products(x: Any, side: int) -> Any:
    """As many small matrices as the map holds, each with itself."""
    many = mb.reshape(x=x, shape=[-1, SMALL, SMALL])
    return mb.matmul(x=many, y=many)


def depthwise(x: Any, side: int) -> Any:
    """3x3 windows of one channel each."""
    return mb.conv(x=image(x, side), weight=np.ones((4, 1, 3, 3), np.float32), groups=4, pad_type="same")


def resized(x: Any, side: int) -> Any:
    """One row and column more."""
    more = side // 2 + 1
    return mb.resize_bilinear(x=image(x, side), target_size_height=more, target_size_width=more)


def places(x: Any, side: int) -> Any:
    """int32 (side, side): a place of each row, from the far end."""
    return np.broadcast_to(np.arange(side - 1, -1, -1, dtype=np.int32), (side, side)).copy()


BUILDS: dict[str, Build] = {
    YARDSTICK: product,
    "matmul": small_products,
    "conv": depthwise,
    "max_pool": lambda x, side: mb.max_pool(x=image(x, side), kernel_sizes=[3, 3], strides=[1, 1], pad_type="same"),
    "add": lambda x, side: mb.add(x=x, y=x),
    "silu": lambda x, side: mb.silu(x=x),
    "sin": lambda x, side: mb.sin(x=x),
    "erf": lambda x, side: mb.erf(x=x),
    "acos": lambda x, side: mb.acos(x=x),
    "softmax": lambda x, side: mb.softmax(x=x, axis=-1),
    "transpose": lambda x, side: mb.transpose(x=x, perm=[1, 0]),
    "reduce_sum": lambda x, side: mb.reduce_sum(x=x, axes=[0]),
    "reduce_argmax": lambda x, side: mb.reduce_argmax(x=x, axis=0),
    "cumsum": lambda x, side: mb.cumsum(x=x, axis=0),
    "instance_norm": lambda x, side: mb.instance_norm(x=image(x, side)),
    "gather": lambda x, side: mb.gather(x=x, indices=np.arange(side - 1, -1, -1, dtype=np.int32), axis=1),
    "gather_along_axis": lambda x, side: mb.gather_along_axis(x=x, indices=places(x, side), axis=0),
    "resize_bilinear": resized,
    "argsort": lambda x, side: mb.argsort(x=x, axis=0),
    "topk": lambda x, side: mb.topk(x=x, k=side // 2, axis=0)[0],
    f"{CHAIN} small ops": chained,
}
TYPES = {"float32": types.fp32, "fp16": types.fp16}


def model(build: Build, kind: str, side: int) -> MILModel:
    """The one op as a program of x (side, side)."""

    @mb.program(input_specs=[mb.TensorSpec((side, side), TYPES[kind])], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        return build(x, side)

    return MILModel(converted(program))


def charged(made: MILModel, given: dict[str, np.ndarray]) -> int:
    """Multiplications that one call is charged."""
    found: list[Allowance] = []
    made.predict_tensors(given, hook=lambda *_: found.append(allowance()))
    return found[0].all - found[0].left


def measured(names: list[str], side: int, rounds: int) -> dict[str, tuple[float, int]]:
    """Op (of `BUILDS`) and type to median seconds of a call and what it is charged."""
    drawn = np.random.default_rng(0).uniform(-1, 1, (side, side))
    calls: dict[str, Callable[[], Any]] = {}
    charges: dict[str, int] = {}
    for kind in TYPES:
        given = {"x": drawn.astype(np.float16 if kind == "fp16" else np.float32)}
        for name in names:
            made = model(BUILDS[name], kind, side)
            calls[f"{name} {kind}"] = partial(made.predict_tensors, given)
            charges[f"{name} {kind}"] = charged(made, given)
    return {name: (median(seconds), charges[name]) for name, seconds in in_turns(calls, rounds).items()}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description="what ops take beside what a call is charged for them")
    parser.add_argument("--side", type=int, default=1024, help=f"of the square maps, a multiple of 16 from {LEAST} on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ops", nargs="+", choices=BUILDS, default=list(BUILDS), metavar="OP", help="these alone")
    options = parser.parse_args()
    if options.side < LEAST or options.side % 16 or options.rounds < 1 or options.threads < 1:
        parser.error(f"--side takes multiples of 16 from {LEAST} on, --rounds and --threads at least 1")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    names = [name for name in BUILDS if name == YARDSTICK or name in options.ops]
    found = measured(names, options.side, options.rounds)
    yardstick, charge = found[f"{YARDSTICK} float32"]
    rate = charge / yardstick
    print(f"{YARDSTICK} float32: 2^36 multiplications take {2**36 / rate:.2f} s of {options.threads} thread(s)")
    print(f"{'op':28} {'ms':>9} {'charged':>9} {'taken / charged':>16}")
    ratios = {name: taken / (count / rate) for name, (taken, count) in found.items()}
    for name, (taken, count) in found.items():
        print(f"{name:28} {taken * 1e3:9.2f} {count / rate * 1e3:9.2f} {ratios[name]:16.2f}")
    dearest = max(ratios, key=ratios.__getitem__)
    whole = MOST_WITHOUT_WEIGHTS / rate * ratios[dearest]
    print(f"dearest: {dearest}, {ratios[dearest]:.2f} × its price; a call of it alone ends within {whole:.0f} s")


if __name__ == "__main__":
    main()
