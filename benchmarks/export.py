"""Export beside the stock route, `torch.jit.trace` and `ct.convert` with default settings, a process for each.

    python -P benchmarks/export.py rows CHECKPOINT [CHECKPOINT …] [--schemes fp16,int8,lut4,lut6,int4,mixed]
        [--only-rows encoder-one,encoder-two,language,everything] [--rounds N] [--no-stock] [--limit MINUTES]
        [--plot FILE.svg] [--json FILE]
    python -P benchmarks/export.py plot FIGURES.json [FIGURES.json …] FILE.svg    # what --json wrote, not measured anew

`-P` keeps this folder off the path, where this file would hide the package `export`.

Rows: the encoder at one size (1024) and at two (1024, 1152); the language model with both functions and the embedding
table, as one file (`--target gpu`), because the stock route makes one; everything at two sizes, in fp16 and by every
scheme of `--schemes` (int4 with `--target gpu`, the others for `ane`; the encoder stays fp16).

Seconds are of the whole process, imports and reading the checkpoint included; memory is the most that was resident;
disk is what the route leaves. Over `--rounds` the rows and routes take turns; what is printed are medians, and medians
of the rounds' ratios. `× fp16` and `× stock` are seconds over those of the fp16 row and of the stock route.

The stock route (`export_routes.py`) converts an equivalent module with coremltools' defaults, compresses it by
`linear_quantize_weights` or `palettize_weights`, and saves it. It makes `decode` alone: no `prefill`, no embedding
table. It is left out, and the table says why, for `mixed`, where it needs more memory than is free, where it takes
longer than `--limit`, and where k-means meets groups of fewer than 10,000 weights and scikit-learn is missing.
matplotlib and scikit-learn: `pip install -c constraints.txt -e '.[bench]'`; no other route gets to see scikit-learn.

Targets are the design's (`export_targets.py`); the missed ones are listed at the end. The exit code is 1 when one of
our exports failed, whatever the targets say. TMPDIR chooses the disk that is written to.

What compression loses is measured elsewhere: `compression.py` has the SNR per layer beside coremltools',
`accuracy.py` the right answers of every scheme.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))  # last, so that the package `export` comes before this file

from export_report import Figures, Measured, as_json, missed, table  # noqa: E402
from export_targets import EVERYTHING, SCHEMES, TITLES, Row, rows_of  # noqa: E402

KMEANS_1D = 10_000  # weights of a group from which on coremltools needs no scikit-learn
GROUP = 32
# The stock route's memory for 0.5B: 8.2 GB at 0.99 GB of fp16 weights (docs/benchmarks.md), 0.6 of it the imports.
STOCK_BASE, STOCK_FACTOR = 0.6e9, 7.7


def free_memory() -> float:
    """Bytes that a new process can have; infinity where the system does not tell."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), float("inf"))


def left_out(row: Row, facts: dict[str, Any], free: float, sklearn: bool) -> str | None:
    """Why the stock route of a row cannot run here, None where it can."""
    if row.scheme == "mixed":
        return "coremltools has no such scheme"
    if row.scheme.startswith("lut") and facts["narrowest"] * GROUP < KMEANS_1D and not sklearn:
        return "not measured: scikit-learn missing"
    if row.key in ("language", EVERYTHING):
        needed = STOCK_BASE + STOCK_FACTOR * facts["weights"]["language"]
        if needed > free:
            return f"left out: needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
    return None


def child(*arguments: str, seconds: float | None = None) -> dict[str, Any]:
    """Runs export_routes.py and returns its JSON; RuntimeError with its last line when it fails."""
    command = [sys.executable, "-P", str(HERE / "export_routes.py"), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"stopped after {(seconds or 0) / 60:g} minutes") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"ended with {done.returncode}: {last[:300]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(route: str, row: Row, checkpoint: str, seconds: float | None = None) -> Figures:
    """Runs one route of a row in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        used = child(route, row.key, row.scheme, checkpoint, place, seconds=seconds)
        elapsed = time.perf_counter() - start
        disk = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    figures = Figures(elapsed, used["cpu"], used["memory"], disk)
    print(f"  {row.title:<30} {route:<6} {figures.line}", file=sys.stderr, flush=True)
    return figures


def turns(checkpoint: str, facts: dict[str, Any], rows: Sequence[Row], options: argparse.Namespace) -> list[Measured]:
    """Every row by both routes, round by round; what failed once is not tried again."""
    results = [Measured(row, row.weights(facts["weights"])) for row in rows]
    sklearn = importlib.util.find_spec("sklearn") is not None
    for _ in range(options.rounds):
        for result in results:
            if result.failed is None:
                try:
                    result.ours.append(measured("ours", result.row, checkpoint))
                except RuntimeError as error:
                    result.failed = str(error)
            if not options.stock or result.left_out is not None:
                continue
            result.left_out = left_out(result.row, facts, free_memory(), sklearn)
            if result.left_out is None:
                try:
                    result.stock.append(measured("stock", result.row, checkpoint, options.limit * 60))
                except RuntimeError as error:
                    result.left_out = str(error)
    return results


def rows(options: argparse.Namespace) -> int:
    """Measures, prints, writes; 1 when an export of ours failed."""
    wanted = rows_of(options.only_rows, options.schemes)
    found: list[dict[str, Any]] = []
    for checkpoint in options.checkpoints:
        try:
            facts = child("facts", checkpoint)
        except RuntimeError as error:
            raise SystemExit(f"Error: {checkpoint}: {error}") from None
        name = Path(checkpoint).name
        print(f"{name}, {options.rounds} round(s)", file=sys.stderr, flush=True)
        results = turns(checkpoint, facts, wanted, options)
        record = as_json(name, facts, results)
        print(table(record), flush=True)
        found.append(record)
    print(missed(found))
    if options.json:
        machine = {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
        content = {"machine": machine, "rounds": options.rounds, "checkpoints": found}
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if options.plot:
        draw(found, options.plot)
    return int(any(row["failed"] for record in found for row in record["rows"]))


def plot(options: argparse.Namespace) -> int:
    """Draws what earlier runs wrote."""
    draw(
        [record for file in options.figures for record in json.loads(file.read_text("utf-8"))["checkpoints"]],
        options.plot,
    )
    return 0


def draw(records: list[dict[str, Any]], file: Path) -> None:
    """The plot; matplotlib is loaded here, after everything is measured and in no measured process."""
    from export_plot import save

    save(records, file)


def listed(known: Sequence[str]) -> Any:
    """A parser of names with commas between them."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name)
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'}; known are {', '.join(known)}")
        return names

    return parse


def positive(text: str) -> int:
    """A count of at least one."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("rows", help="measure")
    measure.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    measure.add_argument("--schemes", type=listed(SCHEMES), default=SCHEMES, help="of everything; default: all")
    measure.add_argument("--only-rows", type=listed(tuple(TITLES)), default=tuple(TITLES), help="default: all")
    measure.add_argument("--rounds", type=positive, default=1)
    measure.add_argument("--no-stock", dest="stock", action="store_false", help="leave the stock route out")
    measure.add_argument("--limit", type=positive, default=30, metavar="MINUTES", help="of one stock route; default 30")
    measure.add_argument("--plot", type=Path, metavar="FILE.svg")
    measure.add_argument("--json", type=Path, metavar="FILE")
    again = commands.add_parser("plot", help="draw what `rows --json` wrote")
    again.add_argument("figures", type=Path, nargs="+", metavar="FIGURES.json")
    again.add_argument("plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("a plot needs matplotlib: pip install -c constraints.txt -e '.[bench]'")
    for file in (options.plot, getattr(options, "json", None)):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"there is no folder {file.absolute().parent}")  # said before minutes are spent
    return {"rows": rows, "plot": plot}[options.command](options)


if __name__ == "__main__":
    raise SystemExit(main())
