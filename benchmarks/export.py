"""Export beside the stock route, `torch.jit.trace` and `ct.convert` with default settings, a process for each.

    python benchmarks/export.py language CHECKPOINT     # both functions and the embedding table / stock: one function
    python benchmarks/export.py encoder  CHECKPOINT     # two sizes / stock: one size
    python benchmarks/export.py whole    CHECKPOINT     # everything at two sizes; there is no stock route to a build

Seconds are of the whole process, imports and reading the checkpoint included; memory is the most that was resident.
The stock route converts an equivalent module with coremltools' defaults and saves it; it knows no embedding table, no
second function, no second size. `--no-stock` leaves it out: it needs about seven gigabytes for 0.5B.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = (1024, 1152)
PARTS = {"language": "language", "encoder": "encoder", "whole": None}


def ours(what: str, checkpoint: str, folder: Path) -> None:
    """`fastvlm export`, by its library call."""
    from export.api import export

    sizes = () if what == "language" else SIZES
    export(checkpoint, folder / "build", image_sizes=sizes, only=PARTS[what])


def stock(what: str, checkpoint: str, folder: Path) -> None:
    """One function by trace (with its re-check, as by default) and convert."""
    import coremltools as ct
    import numpy as np
    import torch

    from export.decoder import LanguageGraph
    from export.encoder import EncoderGraph
    from export.plan import ExportPlan
    from fastvlm_ref.checkpoint import load_checkpoint

    model = load_checkpoint(checkpoint)
    if what == "encoder":
        example: tuple[Any, ...] = (torch.zeros(1, 3, SIZES[0], SIZES[0]),)
        traced = torch.jit.trace(EncoderGraph(model).eval(), example)
        options: dict[str, Any] = {"inputs": [ct.ImageType("image", example[0].shape, scale=1 / 255)]}
    else:
        from export.contract import language_functions

        _, decode = language_functions(model.config.text, ExportPlan(SIZES, 2048, 64))
        example = (*(torch.zeros(item.shape) for item in decode.inputs[:-1]), torch.zeros(1, dtype=torch.int32))
        traced = torch.jit.trace(LanguageGraph(model.decoder, 1, 2048, head=True).eval(), example)
        assert decode.state is not None
        wrapped = ct.TensorType(shape=decode.state.shape, dtype=np.float16)
        kinds = [np.int32 if item.dtype == "int32" else np.float16 for item in decode.inputs]
        options = {
            "inputs": [
                ct.TensorType(item.name, item.shape, dtype=kind)
                for item, kind in zip(decode.inputs, kinds, strict=True)
            ],
            "states": [ct.StateType(wrapped, decode.state.name)],
        }
    converted = ct.convert(
        traced, minimum_deployment_target=ct.target.iOS18, skip_model_load=True, convert_to="mlprogram", **options
    )
    converted.save(str(folder / "stock.mlpackage"))


def measured(route: str, what: str, checkpoint: str) -> dict[str, float]:
    """Runs one route in a process of its own; seconds, bytes of memory, bytes on disk."""
    with tempfile.TemporaryDirectory() as place:
        # -P: this file's folder stays off the path, where it would hide the package `export`
        command = [sys.executable, "-P", __file__, what, checkpoint, "--route", route, "--folder", place]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"Error: the {route} route ended with {done.returncode}: {done.stderr[-500:]}")
        usage = json.loads(done.stdout.splitlines()[-1])
        disk = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    return {"seconds": seconds, "disk": disk, **usage}


def one_route(arguments: argparse.Namespace) -> None:
    """The process that is measured; prints its CPU seconds and most memory as JSON."""
    {"ours": ours, "stock": stock}[arguments.route](arguments.what, arguments.checkpoint, Path(arguments.folder))
    own = resource.getrusage(resource.RUSAGE_SELF)
    scale = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    print(json.dumps({"cpu": own.ru_utime + own.ru_stime, "memory": own.ru_maxrss * scale}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=PARTS)
    parser.add_argument("checkpoint")
    parser.add_argument("--no-stock", action="store_true", help="leave the stock route out")
    parser.add_argument("--route", choices=("ours", "stock"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.route:
        one_route(arguments)
        return
    routes = ["ours"] if arguments.no_stock or arguments.what == "whole" else ["ours", "stock"]
    print(f"{arguments.what}, free disk {shutil.disk_usage(tempfile.gettempdir()).free / 1e9:.0f} GB")
    for route in routes:
        found = measured(route, arguments.what, arguments.checkpoint)
        print(
            f"  {route:<6} {found['seconds']:7.1f} s  {found['cpu']:7.1f} CPU s  {found['memory'] / 1e9:5.2f} GB memory"
            f"  {found['disk'] / 1e9:5.2f} GB on disk",
            flush=True,
        )


if __name__ == "__main__":
    main()
