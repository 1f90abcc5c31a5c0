"""coremltools' own op tests, with the MIL runtime answering `predict`.

coremltools ships its tests in its wheel; off a Mac they convert and compare nothing. Here `MLModel.predict` and
`make_state` are answered by `validation.mil.MILModel`, and the checks for a Mac are told that they stand on one, so the
tests compare. Every result is appended to a record (JSON lines); a second run continues where the first stopped.

    python benchmarks/coremltools_suite.py mil                # the MIL builder tests (numpy answers)
    python benchmarks/coremltools_suite.py torch -k conv      # converted torch modules
    python benchmarks/coremltools_suite.py summary            # the table for docs/mil-runtime.md

Programs declared fp16 run in precision "fp32": the suite's tolerance of 0.5 for them proves nothing, 1e-2 is used.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SUITES = {
    "mil": "converters/mil/mil/ops/tests",
    "torch": "converters/mil/frontend/torch/test/test_torch_ops.py",
}
ENVIRONMENT = {"INCLUDE_MIL_FP32_UNIT_TESTS": "1", "PYMIL_TEST_TARGETS": "mlprogram", "OMP_NUM_THREADS": "1"}


def package_folder() -> Path:
    """Where coremltools is installed."""
    spec = importlib.util.find_spec("coremltools")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("Error: coremltools is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def pretend_mac() -> None:
    """Make coremltools' tests compare, with MILModel answering; must run before they are imported."""
    import coremltools._deps as dependencies

    dependencies._IS_MACOS = True
    from coremltools.models import MLModel, utils
    from coremltools.models import model as models

    utils._macos_version = lambda: (15, 0)
    models._macos_version = lambda: (15, 0)
    MLModel.predict = _predict
    MLModel.make_state = lambda self: _runtime(self).make_state()


def _runtime(model: Any) -> Any:
    from validation.mil import MILModel

    if not hasattr(model, "_mil_runtime"):
        name = getattr(model, "function_name", None)
        model._mil_runtime = MILModel(model, name, precision="fp32")
    return model._mil_runtime


def _predict(model: Any, data: Any, state: Any = None) -> Any:
    """What coremltools does on a Mac: numbers are converted to the declared type, whatever type they come in."""
    import numpy as np

    if isinstance(data, list):
        return [_predict(model, item, state) for item in data]
    runtime = _runtime(model)
    given = {}
    for name, value in data.items():
        feature = runtime.inputs.get(name)
        plain = feature is not None and feature.image is None
        given[name] = np.asarray(value).astype(feature.type.dtype.numpy) if plain else value
    return runtime.predict(given, state)


class Recorder:
    """A pytest plugin: runs one shard, skips what the record holds, appends every result."""

    def __init__(self, record: Path, shard: int, shards: int, rows: str):
        self.record, self.shard, self.shards, self.rows = record, shard, shards, re.compile(rows)
        self.done = {json.loads(line)["id"] for line in record.read_text().splitlines()} if record.exists() else set()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        mine = [item for i, item in enumerate(items) if i % self.shards == self.shard]
        items[:] = [item for item in mine if item.nodeid not in self.done and self.rows.search(item.nodeid)]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and not (report.when == "setup" and report.outcome != "passed"):
            return
        reason = ""
        if report.outcome != "passed":
            text = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
            lines = [line for line in text.splitlines() if line.startswith("E  ")] or text.splitlines()
            reason = " ".join(line.lstrip("E ").strip() for line in lines[:3])[:300]
        xfail = getattr(report, "wasxfail", None)
        result = {"id": report.nodeid, "outcome": "xfail" if xfail is not None else report.outcome, "why": reason}
        with self.record.open("a") as file:
            file.write(json.dumps(result) + "\n")


def run_shard(target: str, record: Path, shard: int, shards: int, rows: str, keyword: str) -> int:
    """Run one shard in this process."""
    sys.path.insert(0, str(ROOT))
    pretend_mac()
    import pytest

    settings = Path(tempfile.mkdtemp()) / "pytest.ini"
    settings.write_text("[pytest]\n")
    options = ["-c", str(settings), "--rootdir", str(package_folder()), "-q", "--no-header", "--tb=short"]
    options += ["-p", "no:cacheprovider", "--continue-on-collection-errors", "-W", "ignore"]
    if keyword:
        options += ["-k", keyword]
    where = str(package_folder() / SUITES[target]) if target in SUITES else target
    return int(pytest.main([where, *options], plugins=[Recorder(record, shard, shards, rows)]))


def run(arguments: argparse.Namespace) -> None:
    """Start one process per shard and wait for them."""
    environment = {**os.environ, **ENVIRONMENT}
    command = [sys.executable, __file__, arguments.target, "--record", str(arguments.record), "--rows", arguments.rows]
    command += ["-k", arguments.keyword, "--jobs", str(arguments.jobs)]
    workers = [
        subprocess.Popen([*command, "--shard", str(shard)], env=environment, stdout=subprocess.DEVNULL)
        for shard in range(arguments.jobs)
    ]
    for worker in workers:
        worker.wait()


def summary(record: Path) -> str:
    """A table: op family, passed, failed, skipped, expected to fail; then every distinct reason of a failure."""
    results = [json.loads(line) for line in record.read_text().splitlines()]
    families: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    for result in results:
        family = "::".join(result["id"].split("/")[-1].split("[")[0].split("::")[:2])
        families[family][result["outcome"]] += 1
        if result["outcome"] == "failed":
            reasons[f"{family}: {result['why'][:160]}"] += 1
    total: Counter[str] = sum(families.values(), Counter())
    lines = ["| family | passed | failed | skipped | xfail |", "|---|---|---|---|---|"]
    for family, counts in [*sorted(families.items()), ("all", total)]:
        row = [family, *(str(counts[outcome]) for outcome in ("passed", "failed", "skipped", "xfail"))]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *(f"{count} x {reason}" for reason, count in reasons.most_common())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="mil, torch, summary, or a path of tests")
    parser.add_argument("--record", type=Path, default=Path("coremltools-suite.jsonl"))
    parser.add_argument("--rows", default="fp32", help="only tests whose id matches this pattern")
    parser.add_argument("-k", dest="keyword", default="")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shard", type=int)
    arguments = parser.parse_args()
    if arguments.target == "summary":
        sys.stdout.write(summary(arguments.record) + "\n")
    elif arguments.shard is None:
        run(arguments)
    else:
        sys.exit(
            run_shard(
                arguments.target, arguments.record, arguments.shard, arguments.jobs, arguments.rows, arguments.keyword
            )
        )


if __name__ == "__main__":
    main()
