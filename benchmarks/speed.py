"""The MIL runtime beside the PyTorch reference, in one run: image encoding, decoding, memory, opening.

    python benchmarks/speed.py open    BUILD                    # seconds and memory that opening a package adds
    python benchmarks/speed.py encoder BUILD CHECKPOINT         # one picture, package beside float32 PyTorch
    python benchmarks/speed.py decode  BUILD CHECKPOINT         # one token behind --past positions, the same
    python benchmarks/speed.py memory  BUILD CHECKPOINT         # the most memory of each route while decoding
    python benchmarks/speed.py layout  [BUILD OTHER_BUILD]      # one step of both decoder layouts, --target ane and gpu

Notable choices:
- the two routes take turns, so that whatever else the machine does meets both; what is printed are medians and the
  median of the rounds' ratios;
- each figure stands beside what the machine could do at best: float32 matrix products for the encoder, reading the
  weights once for a token;
- memory is measured in a process per route: peak resident memory above what the imports take.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fastvlm.build import read_build
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.engine import TorchEngine
from validation.engine import PackageEngine
from validation.metrics import snr_db


def resident(field: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (the most so far); Linux alone tells."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"Error: this machine does not report {field}")


def in_turns(routes: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each route, round by round; one round before that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(rounds + 1):
        for name, run in routes.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def table(what: str, seconds: dict[str, list[float]], best: tuple[str, float], target: float) -> None:
    """Prints medians, the median ratio to the reference and the machine's limit."""
    package, reference = seconds["package"], seconds["reference"]
    ratio = median(one / other for one, other in zip(package, reference, strict=True))
    print(f"{what}, {torch.get_num_threads()} threads, {len(package)} rounds")
    for name, values in seconds.items():
        print(f"  {name:<26} {median(values):8.3f} s")
    print(f"  {best[0]:<26} {best[1]:8.3f} s  ({best[1] / median(package):.0%} of what the package takes)")
    print(f"  package / reference        {ratio:8.2f}    (target {target})")


def products_per_second() -> float:
    """Multiply-adds a second of a large float32 matrix product, the best of five."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = min(in_turns({"x": lambda: a @ b}, 5)["x"])
    return 1024**3 / seconds


def bytes_per_second() -> float:
    """Bytes a second that this machine reads from memory when it adds up 1 GB, the best of five."""
    block = torch.ones(256 * 1024 * 1024)
    return block.numel() * 4 / min(in_turns({"x": block.sum}, 5)["x"])


def conv_products(model: Any, side: int) -> float:
    """Multiply-adds of one picture through encoder and projector, counted by hooks on convolutions and linears."""
    total = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    modules = [*model.vision_encoder.modules(), *model.projector.modules()]
    hooks = [module.register_forward_hook(count) for module in modules if isinstance(module, kinds)]
    with torch.inference_mode():
        model.encode_image(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return total


def encoder(arguments: argparse.Namespace) -> None:
    """One picture."""
    model = load_checkpoint(arguments.checkpoint)
    package = PackageEngine(read_build(Path(arguments.build)), image_size=arguments.size)
    side = package.image_size
    reference = TorchEngine(model, image_size=side)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    routes = {"package": lambda: package.encode_image(pixels), "reference": lambda: reference.encode_image(pixels)}
    seconds = in_turns(routes, arguments.rounds)
    best = conv_products(model, side) / products_per_second()
    table(f"encoder at {side}", seconds, ("matrix products alone", best), 1.15)


def decode(arguments: argparse.Namespace) -> None:
    """One token behind `--past` others."""
    model = load_checkpoint(arguments.checkpoint)
    build = read_build(Path(arguments.build))
    package, reference = PackageEngine(build), TorchEngine(model, build.context)
    row = package.embed([1])
    past = np.repeat(row, arguments.past, 0)
    for engine in (package, reference):
        engine.prefill(past)

    def step(engine: Any) -> Callable[[], Any]:
        return lambda: engine.decode(row)

    seconds = in_turns({"package": step(package), "reference": step(reference)}, arguments.rounds)
    weights = sum(file.stat().st_size for stage in build.language for file in stage.package.rglob("weight.bin"))
    best = weights / bytes_per_second()
    table(f"decode behind {arguments.past} positions", seconds, ("reading fp16 weights once", best), 0.9)


def layout(arguments: argparse.Namespace) -> None:
    """One step of the decoder in both layouts, side by side: of two builds, or of layers that are built here."""
    steps = built_steps(arguments) if arguments.build else drawn_steps(arguments)
    results: dict[str, Any] = {}

    def run(name: str) -> None:
        results[name] = steps[name]()

    seconds = in_turns({name: partial(run, name) for name in steps}, arguments.rounds)
    ratio = median(one / other for one, other in zip(seconds["ane"], seconds["gpu"], strict=True))
    what = "two builds" if arguments.build else f"{arguments.layers} layers of {arguments.width} without a head"
    print(f"one step of {what}, {torch.get_num_threads()} threads, {arguments.rounds} rounds")
    for name, values in seconds.items():
        print(f"  {name:<10} {median(values) * 1e3:8.1f} ms")
    print(f"  ane / gpu  {ratio:8.2f}     (target 1.05)")
    print(f"  the two agree to {snr_db(results['gpu'], results['ane']):.0f} dB")


def built_steps(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """A token behind `--past` others, of the builds of both targets."""
    engines: dict[str, PackageEngine] = {}
    for folder in (arguments.build, arguments.checkpoint):
        build = read_build(Path(folder))
        engines[build.target] = PackageEngine(build)
    if set(engines) != {"ane", "gpu"}:
        raise SystemExit(f"Error: builds for {', '.join(engines)} given, expected one for ane and one for gpu")
    for engine in engines.values():
        engine.prefill(np.repeat(engine.embed([1]), arguments.past, 0))
    return {name: partial(engine.decode, engine.embed([1])) for name, engine in sorted(engines.items())}


def drawn_steps(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Layers with weights of a seed, see `layouts`."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it says which torch it was tested with
    from layouts import SIZES, steps

    return steps(replace(SIZES[arguments.width], layers=arguments.layers))


def opening(arguments: argparse.Namespace) -> None:
    """What opening `decode` adds to a process that has imported the runtime."""
    from validation.mil import MILModel

    build = read_build(Path(arguments.build))
    before, start = resident("VmRSS"), time.perf_counter()
    MILModel(build.language[0].package, function_name="decode")
    seconds, added = time.perf_counter() - start, resident("VmRSS") - before
    print(f"opening: {seconds:.2f} s (target < 1), {added / 1e6:.0f} MB (target < 200)")
    print(f"coremltools imported: {'yes' if 'coremltools' in sys.modules else 'no'}")


def one_route(arguments: argparse.Namespace) -> None:
    """Decodes 8 tokens by one route and prints the most memory above the imports, as JSON."""
    build = read_build(Path(arguments.build))
    before = resident("VmRSS")
    if arguments.route == "package":
        engine: Any = PackageEngine(build)
    else:
        engine = TorchEngine(load_checkpoint(arguments.checkpoint), build.context)
    row = engine.embed([1])
    engine.prefill(np.repeat(row, 70, 0))
    for _ in range(8):
        engine.decode(row)
    print(json.dumps({"bytes": resident("VmHWM") - before}))


def memory(arguments: argparse.Namespace) -> None:
    """Each route in a process of its own."""
    most = {}
    for route in ("package", "reference"):
        command = [sys.executable, __file__, "route", arguments.build, arguments.checkpoint, "--route", route]
        most[route] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["bytes"]
        print(f"  {route:<12} {most[route] / 1e6:8.0f} MB above the imports")
    print(f"  package / reference {most['package'] / most['reference']:.2f} (target 0.7)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("open", "encoder", "decode", "memory", "layout", "route"))
    parser.add_argument("build", nargs="?")
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--size", type=int, default=None, help="image side; the first exported by default")
    parser.add_argument("--past", type=int, default=300, help="positions before the token")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--width", choices=("0.5b", "1.5b", "7b"), default="0.5b", help="whose widths `layout` builds")
    parser.add_argument("--layers", type=int, default=4, help="layers that `layout` builds")
    parser.add_argument("--route", choices=("package", "reference"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what != "layout" and arguments.build is None:
        parser.error(f"{arguments.what} needs a build folder")
    if arguments.what == "layout" and arguments.build and not arguments.checkpoint:
        parser.error("layout needs two builds, one for each target, or none")
    if arguments.what not in ("open", "layout") and arguments.checkpoint is None:
        parser.error(f"{arguments.what} needs the checkpoint that the build was made from")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    chosen = {"open": opening, "encoder": encoder, "decode": decode, "memory": memory}
    chosen |= {"layout": layout, "route": one_route}
    chosen[arguments.what](arguments)


if __name__ == "__main__":
    main()
