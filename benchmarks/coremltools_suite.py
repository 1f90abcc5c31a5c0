"""coremltools' own op tests, with the MIL runtime answering `predict`.

coremltools ships its tests in its wheel; off a Mac they convert and compare nothing. Here `MLModel.predict` and
`make_state` are answered by `validation.mil.MILModel`, and the checks for a Mac are told that they stand on one, so the
tests compare. Every result is appended to a record (JSON lines); a second run continues where the first stopped.

    python benchmarks/coremltools_suite.py torch --record torch.jsonl     # converted torch modules
    python benchmarks/coremltools_suite.py mil --record mil.jsonl         # the MIL builder tests (numpy answers)
    python benchmarks/coremltools_suite.py torch --sample 6 -k conv       # up to 6 rows of every test function
    python benchmarks/coremltools_suite.py summary --record torch.jsonl --write docs/mil-runtime.md

Needs pytest < 10, and for the MIL builder tests scipy (`pip install scipy`): four of their files import it. Rows run
smallest test function first. `--again failed` runs rows of that outcome once more; the last result of a row counts.

Outcomes, decided by where the error was raised:

    passed           all comparisons held ("compares nothing": the test never called `predict`)
    failed           `predict` raised, or an assertion after `predict` did not hold
    not convertible  coremltools' converter raised
    not compared     an assertion about the converted program, or the test's own code, raised before any `predict`
    torch            torch raised (tracing, or the reference answer)
    skipped          the test skips itself
    out of time      `--limit` seconds were not enough

Tests marked as failing, or skipped, for a fault of Core ML run like any other. Random numbers are seeded per row.
Rows of fp16 numbers run in precision "fp32" with a tolerance of 1e-2: the torch suite's 0.5 for them proves nothing,
the MIL suite's 1e-4 is below fp16's own rounding. The others run in precision "fp16", which rounds what a program
declares fp16 and leaves float32 alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from coremltools_suite_patches import TRACE, new_trace, pretend_mac, tighten_fp16
from coremltools_suite_summary import is_half, suite_of, summary, write_into

ROOT = Path(__file__).parents[1]
SUITES = {
    "torch": "converters/mil/frontend/torch/test/test_torch_ops.py",
    "mil": "converters/mil/mil/ops/tests",
}
ENVIRONMENT = {"INCLUDE_MIL_FP32_UNIT_TESTS": "1", "PYMIL_TEST_TARGETS": "mlprogram", "OMP_NUM_THREADS": "1"}
FLOAT32_ROWS = r"'mlprogram', (precision=)?'fp32'"
UNFINISHED = 99  # a worker's exit status when rows are left for the next process


def package_folder() -> Path:
    """Where coremltools is installed."""
    spec = importlib.util.find_spec("coremltools")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("Error: coremltools is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def read_record(record: Path) -> dict[str, dict[str, Any]]:
    """Row id -> its last result; ids "rows of SUITE" say how many were collected."""
    lines = record.read_text().splitlines() if record.exists() else []
    return {result["id"]: result for result in map(json.loads, lines)}


def append(record: Path, result: dict[str, Any]) -> None:
    """Adds one line to the record."""
    with record.open("a") as file:
        file.write(json.dumps(result) + "\n")


def test_function(row: str) -> str:
    """Class and function of a row's id."""
    return row.split("/")[-1].split("[")[0]


class RowTimeout(BaseException):
    """A row ran longer than its limit; not an Exception, so that no test catches it."""


def outcome_of(error: BaseException, innermost: str) -> str:
    """The outcome of a row that ended with `error`, raised in the file `innermost`; see the file's docstring."""
    if isinstance(error, RowTimeout):
        return "out of time"
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(item is known for item in chain for known in TRACE.runtime_errors):
        return "failed"
    if any(item is known for item in chain for known in TRACE.converter_errors):
        return "not convertible"
    if "/torch/" in innermost and "/coremltools/" not in innermost:
        return "torch"
    return "failed" if TRACE.predictions else "not compared"


class Recorder:
    """A pytest plugin: runs one shard, skips what the record holds, appends every result."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.rows = re.compile(arguments.rows)
        self.left = 0
        results = read_record(arguments.record)
        again = set(arguments.again.split(",")) if arguments.again else set()
        started = arguments.started
        self.done = {
            name
            for name, result in results.items()
            if result.get("outcome") not in again or result.get("at", 0) > started
        }

    def pytest_collection_finish(self) -> None:
        """`pytest.xfail` inside a test, or `skip` for a fault of Core ML, only notes its reason."""
        skip = pytest.skip

        def note(reason: str = "") -> None:
            TRACE.mark = reason or "no reason given"

        def skip_or_note(reason: str = "", **options: Any) -> None:
            note(reason) if reason.startswith("rdar") else skip(reason, **options)

        pytest.skip = skip_or_note  # type: ignore[assignment]
        pytest.xfail = note  # type: ignore[assignment]

    @pytest.hookimpl(trylast=True)  # after -k
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keeps the rows of this process: chosen, of its share, not in the record yet; small test functions first."""
        arguments = self.arguments
        functions: dict[str, list[Any]] = defaultdict(list)
        for item in items:
            item.fault = _fault_it_is_skipped_for(item)
            if self.rows.search(item.nodeid):
                functions[test_function(item.nodeid)].append(item)
        if arguments.shard == 0 and not arguments.keyword:
            for suite, rows in Counter(suite_of(item.nodeid) for group in functions.values() for item in group).items():
                append(arguments.record, {"id": f"rows of {suite}", "rows": rows})
        ordered = sorted(functions.items(), key=lambda pair: len(pair[1]))
        chosen = [item for name, group in ordered for item in _drawn(name, group, arguments.sample)]
        mine = [item for i, item in enumerate(chosen) if i % arguments.jobs == arguments.shard]
        mine = [item for item in mine if item.nodeid not in self.done]
        self.left = max(len(mine) - arguments.per_process, 0)
        items[:] = mine[: arguments.per_process]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Notes the row that runs, seeds the generators by its id, starts its time limit."""
        import numpy as np
        import torch

        running_file(self.arguments.record, self.arguments.shard).write_text(nodeid)
        new_trace(half=is_half(nodeid))
        seed = zlib.crc32(nodeid.encode())
        np.random.seed(seed)
        torch.manual_seed(seed)
        signal.setitimer(signal.ITIMER_REAL, self.arguments.limit)

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        """Records how the row ended, and why."""
        if call.when == "teardown" or (call.when == "setup" and call.excinfo is None):
            return
        result = {"id": item.nodeid, "outcome": "passed", "at": round(time.time()), "s": round(call.duration, 2)}
        mark = item.get_closest_marker("xfail")
        if mark or TRACE.mark or item.fault:
            result["mark"] = TRACE.mark or item.fault or str(mark.kwargs.get("reason", ""))
        if call.excinfo is None and not TRACE.predictions:
            result["why"] = "compares nothing"
        if call.excinfo is not None:
            error, text = call.excinfo.value, str(call.excinfo.value)
            skipped = call.excinfo.typename == "Skipped"
            innermost = str(call.excinfo.traceback[-1].path)
            result["outcome"] = "skipped" if skipped else outcome_of(error, innermost)
            result["why"] = " ".join(f"{call.excinfo.typename}: {text}".split())[:300]
        append(self.arguments.record, result)

    def pytest_runtest_logfinish(self) -> None:
        """Stops the time limit and removes the packages that the row left."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for folder in Path(tempfile.gettempdir()).glob("*.mlpackage"):
            shutil.rmtree(folder, ignore_errors=True)


def _fault_it_is_skipped_for(item: Any) -> str:
    """Take from the test, and its class, the mark that skips it for a fault of Core ML, and return its reason.

    "rdar" is Apple's list of faults.
    """
    found = ""
    for mark in list(item.iter_markers("skip")):
        reason = str(mark.kwargs.get("reason", ""))
        if reason.startswith("rdar"):
            found = reason
            for node in item.listchain():
                node.own_markers = [other for other in node.own_markers if other is not mark]
    return found


def _drawn(function: str, group: list[Any], sample: int) -> list[Any]:
    """At most `sample` entries of the group, always the same ones, in their order; 0 takes all."""
    if not sample or len(group) <= sample:
        return group
    places = random.Random(function).sample(range(len(group)), sample)
    return [group[place] for place in sorted(places)]


def running_file(record: Path, shard: int) -> Path:
    """Holds the id of the row that a worker is at; its time of change says since when."""
    return record.with_suffix(f".running{shard}")


def _out_of_time(number: int, frame: Any) -> None:
    raise RowTimeout("ran longer than the limit")


def run_shard(arguments: argparse.Namespace) -> int:
    """Run some rows of one shard in this process; UNFINISHED says that more are left."""
    sys.path.insert(0, str(ROOT))
    pretend_mac()
    tighten_fp16()
    signal.signal(signal.SIGALRM, _out_of_time)
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        settings = Path(folder) / "pytest.ini"
        settings.write_text("[pytest]\n")
        options = ["-c", str(settings), "--rootdir", str(package_folder()), "-qq", "--tb=no", "--runxfail"]
        options += ["-p", "no:cacheprovider", "--continue-on-collection-errors", "-W", "ignore"]
        if arguments.keyword:
            options += ["-k", arguments.keyword]
        target = arguments.target
        where = str(package_folder() / SUITES[target]) if target in SUITES else target
        recorder = Recorder(arguments)
        status = int(pytest.main([where, *options], plugins=[recorder]))
    return UNFINISHED if recorder.left else status


def run(arguments: argparse.Namespace) -> None:
    """Keep one process per shard running until all rows are in the record."""
    workers = {shard: _start(arguments, shard) for shard in range(arguments.jobs)}
    while workers:
        time.sleep(1)
        for shard, worker in list(workers.items()):
            running = running_file(arguments.record, shard)
            stuck = running.exists() and time.time() - running.stat().st_mtime > 3 * arguments.limit + 60
            if worker.poll() is None and not stuck:
                continue
            if stuck:
                worker.kill()
            status = worker.wait()
            if stuck or status < 0 or status > 128:
                why = "the row never ended" if stuck else f"the process died with status {status}"
                result = {"id": running.read_text(), "outcome": "out of time" if stuck else "failed", "why": why}
                append(arguments.record, result)
            running.unlink(missing_ok=True)
            del workers[shard]
            if stuck or status < 0 or status > 128 or status == UNFINISHED:
                workers[shard] = _start(arguments, shard)


def _start(arguments: argparse.Namespace, shard: int) -> subprocess.Popen[bytes]:
    options = {"rows": arguments.rows, "sample": arguments.sample, "limit": arguments.limit, "again": arguments.again}
    options |= {"jobs": arguments.jobs, "per-process": arguments.per_process, "started": arguments.started}
    command = [sys.executable, __file__, arguments.target, "--record", str(arguments.record), "-k", arguments.keyword]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, **ENVIRONMENT}
    running_file(arguments.record, shard).unlink(missing_ok=True)  # of a run that was stopped
    with open(arguments.record.with_suffix(f".log{shard}"), "ab") as log:
        return subprocess.Popen([*command, f"--shard={shard}"], env=environment, stdout=log, stderr=log)


def main() -> None:
    """Runs the suite, or writes the summary of a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="torch, mil, summary, or a path of tests")
    parser.add_argument("--record", type=Path, default=Path("coremltools-suite.jsonl"))
    parser.add_argument("--rows", default=FLOAT32_ROWS, help="only tests whose id matches this pattern")
    parser.add_argument("-k", dest="keyword", default="", help="only tests that pytest's -k picks")
    parser.add_argument("--sample", type=int, default=0, help="at most this many rows of each test function")
    parser.add_argument("--again", default="", help="outcomes to run once more, separated by commas")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a row may take")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--per-process", type=int, default=1500, help="rows before a process is replaced")
    parser.add_argument("--write", type=Path, help="summary: the document whose tables are replaced")
    parser.add_argument("--shard", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.target == "summary":
        texts = summary(read_record(arguments.record))
        if arguments.write:
            write_into(arguments.write, texts)
        else:
            sys.stdout.write("\n\n".join(f"## {name}\n\n{text}" for name, text in texts.items()) + "\n")
    elif arguments.shard is None:
        run(arguments)
    else:
        sys.exit(run_shard(arguments))


if __name__ == "__main__":
    main()
