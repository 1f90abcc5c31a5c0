"""`fastvlm profile` as it is typed: tables, JSON, refusals before any work, and processes that end on the way."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

from fastvlm.cli import cli
from fastvlm.errors import ExecutionError, UsageError
from validation.coreml import here
from validation.profiling import measuring, profile
from validation.profiling.result import STAGES

pytestmark = pytest.mark.usefixtures("one_thread")
Typed = Callable[..., click.testing.Result]

STAGE = {"stage", "position", "first", "runs"}
CONTENDER = {
    "name", "build", "backend", "compute_units", "device", "prompt_positions", "stages", "memory_bytes", "plan",
}  # fmt: skip
SHAPE: dict[str, set[str]] = {  # docs/profiling.md
    "": {
        "schema", "fastvlm", "machine", "load_average", "runs", "photo", "tokens_per_position", "contenders", "ratios",
        "failures",
    },
    "machine": {"model", "chip", "system", "architecture", "cores", "memory_gb"},
    "contenders": CONTENDER,
    "contenders.build": {"manifest_sha256", "image_size", "context", "query", "lacking"},
    "contenders.stages": STAGE,
    "contenders.stages.runs": {"median", "q1", "q3", "min", "max", "count"},
    "contenders.memory_bytes": {"before_load", "peak"},
    "contenders.plan": {"package", "function", "ops", "told", "op_percent", "cost_percent"},
    "contenders.plan.op_percent": {"neuralEngine", "gpu", "cpu"},
    "contenders.plan.cost_percent": {"neuralEngine", "gpu", "cpu"},
    "contenders.device": {"kind", "os"},
    "ratios": {"contender", "to", "stages"},
    "ratios.stages": {"stage", "position", "ratio"},
    "failures": {"contender", "stage", "kind"},
}  # fmt: skip


@pytest.fixture
def typed() -> Typed:
    """Types `fastvlm profile …`."""

    def run(*words: object) -> click.testing.Result:
        return click.testing.CliRunner().invoke(cli, ["profile", *map(str, words)], prog_name="fastvlm")

    return run


def shape_of(value: Any, path: str = "") -> dict[str, set[str]]:
    """The keys of every object in a JSON document, by its path; lists are looked through."""
    found: dict[str, set[str]] = {}
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict):
            found.setdefault(path, set()).update(each)
            for key, inner in each.items():
                for place, keys in shape_of(inner, f"{path}.{key}".strip(".")).items():
                    found.setdefault(place, set()).update(keys)
    return found


def personal(folder: Path) -> list[str]:
    """What would tell whose machine this is."""
    return [getpass.getuser(), platform.node(), str(Path.home()), str(folder), os.sep + "tmp", "STANDIN", "TEAM"]


def check_nameless(text: str, folder: Path) -> None:
    for word in personal(folder):
        assert not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), word


def test_a_table_and_its_json_in_real_processes(typed: Typed, exported_tiny: Path, tmp_path: Path) -> None:
    """Two processes, one run: what a user types."""
    other = Path(shutil.copytree(exported_tiny, tmp_path / "second"))
    shown = typed(exported_tiny, other, "--backend", "mil", "--runs", 1, "--json")
    assert shown.exit_code == 0
    content = json.loads(shown.stdout)
    assert [each["name"] for each in content["contenders"]] == ["tiny, mil", "second, mil"]
    stages = {row["stage"] for row in content["contenders"][0]["stages"]}
    assert stages == set(STAGES) - {"load_encoder_core_ml", "load_language_core_ml"}
    for row in content["contenders"][1]["stages"]:
        assert row["first"] > 0
        assert row["runs"]["count"] == 1
    memory = content["contenders"][0]["memory_bytes"]
    assert 100e6 < memory["before_load"] < memory["peak"], "its own, and it grew"
    assert content["failures"] == []
    assert len(content["ratios"][0]["stages"]) == 11
    check_nameless(shown.stdout, tmp_path)
    assert "next: fastvlm lint" in shown.stderr


def test_a_process_that_ends_is_told_and_the_others_go_on(
    mac: pytest.MonkeyPatch, typed: Typed, exported_tiny: Path
) -> None:
    mac.setenv("COREML_STANDIN", "kill predict decode")
    shown = typed(exported_tiny, "--backend", "mil", "--backend", "coreml", "--compute-units", "cpuOnly", "--runs", 1)
    assert shown.exit_code == 1
    assert "Error: tiny, coreml cpuOnly ended by itself (SIGKILL) at stage first_token" in shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert any(row[:2] == ["encode", "A"] for row in rows), "the MIL runtime went on"
    assert "Traceback" not in shown.output


def test_core_ml_is_measured_on_every_choice(mac: Any, in_process: None, typed: Typed, exported_tiny: Path) -> None:
    shown = typed(exported_tiny, "--backend", "coreml", "--runs", 1, "--json")
    assert shown.exit_code == 0
    content = json.loads(shown.stdout)
    units = [each["compute_units"] for each in content["contenders"]]
    assert units == ["cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine", "all"]
    shares = [each["plan"][-1]["op_percent"]["neuralEngine"] for each in content["contenders"]]
    assert shares == [0.0, 0.0, 96.0, 96.0]
    loads = {row["stage"]: row["first"] for row in content["contenders"][0]["stages"]}
    assert loads["load_encoder_core_ml"] == 0.002
    assert loads["load_language_core_ml"] == 0.004
    assert content["machine"]["model"] == "Mac14,2"
    check_nameless(shown.stdout, exported_tiny)
    told = shape_of(content)
    assert {path: keys for path, keys in told.items() if keys != SHAPE[path]} == {}
    assert set(SHAPE) - set(told) == {"contenders.device", "failures"}


def test_the_table_says_what_core_ml_plans(mac: Any, in_process: None, typed: Typed, exported_tiny: Path) -> None:
    shown = typed(exported_tiny, "--backend", "coreml", "--compute-units", "all", "--runs", 2)
    assert shown.exit_code == 0
    assert "Apple M2, Mac14,2, macOS 15.5" in shown.stdout
    assert "LanguageModel.mlpackage decode: ops neuralEngine 96 %, cpu 4 %; estimated cost" in shown.stdout
    heads = next(line for line in shown.stdout.splitlines() if line.startswith("stage"))
    assert "median of 2" in heads
    assert "× A" not in heads, "nothing to compare with"


def test_a_plan_that_aborts_leaves_the_latencies(
    mac: pytest.MonkeyPatch, typed: Typed, exported_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that measures lives here, the one that plans in a real process."""
    from local import Local

    monkeypatch.setattr("validation.profiling.rounds.Child", Local)
    mac.setenv("COREML_STANDIN", "abort plan")
    shown = typed(exported_tiny, "--backend", "coreml", "--compute-units", "all", "--runs", 1, "--json")
    assert shown.exit_code == 1
    content = json.loads(shown.stdout)
    assert content["failures"] == [
        {"contender": "tiny, coreml all", "stage": "planning encode_256", "kind": "SIGABRT"}
    ]  # fmt: skip
    assert "Error: tiny, coreml all, at stage planning encode_256: the compute plan of VisionEnc" in shown.stderr
    assert content["contenders"][0]["plan"] is None
    assert {row["stage"] for row in content["contenders"][0]["stages"]} == set(STAGES)


def test_where_nothing_could_be_measured_its_error_is_the_answer(
    mac: pytest.MonkeyPatch, in_process: None, exported_tiny: Path
) -> None:
    mac.setenv("COREML_STANDIN", "refuse predict encode_256")
    with pytest.raises(ExecutionError, match="cannot run encode_256"):
        profile([exported_tiny], backends=("coreml",), compute_units=("all",), runs=1)


def test_a_connected_device_is_measured(mac: Any, in_process: None, typed: Typed, exported_app: Path) -> None:
    shown = typed(exported_app, "--device-udid", "00008130-STANDIN", "--team", "TEAM", "--runs", 2, "--json")
    assert shown.exit_code == 0
    content = json.loads(shown.stdout)
    (contender,) = content["contenders"]
    assert contender["device"] == {"kind": "iphone", "os": "18.5"}
    assert [(row["stage"], row["runs"]["median"]) for row in contender["stages"]] == [
        ("load_encoder_core_ml", 0.005), ("encode", 0.007),
    ]  # fmt: skip
    assert contender["plan"][0]["op_percent"]["neuralEngine"] > 0
    check_nameless(shown.stdout, exported_app)


def test_devices_are_listed(mac: pytest.MonkeyPatch, typed: Typed) -> None:
    shown = typed("--connected")
    assert shown.exit_code == 0
    assert shown.stdout == "00008130-STANDIN  iphone, 18.5, connected\n"
    assert json.loads(typed("--connected", "--json").stdout)[0]["kind"] == "iphone"
    mac.setattr("validation.coreml.remote._listed", lambda tools: [])
    assert "no device is connected" in typed("--connected").stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no build was named"),
        ([""], "it is empty, expected a name"),
        (["BUILD", "--runs", "0"], "0 is not in the range 1<=x<=10000"),
        (["BUILD", "--runs", "-3"], "-3 is not in the range"),
        (["BUILD", "--runs", "9" * 400], "is not in the range"),
        (["BUILD", "--image-size", "512"], "no encoder of that size, it has [256]"),
        (["BUILD", "--compute-units", "all"], "add --backend coreml"),
        (["BUILD", "--team", "TEAM"], "name the device with --device-udid"),
        (["nowhere"], "not a build folder"),
        (["BUILD", "--backend", "coreml"], "needs macOS, this machine is linux; --backend mil runs"),
        (["BUILD", "--device-udid", "X"], "needs macOS, this machine is linux"),
        (["--connected"], "needs macOS, this machine is linux"),
        (["BUILD", "--backend", "cuda"], "'mil', 'coreml'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    typed: Typed, exported_tiny: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "system", lambda: "linux")
    monkeypatch.setattr("validation.profiling.rounds.Child", None)  # nobody may start one
    shown = typed(*(exported_tiny if word == "BUILD" else word for word in words))
    assert shown.exit_code == 2
    assert shown.stderr.startswith("Error: ")
    assert says in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_a_device_that_is_not_there_and_a_team_that_is_missing(mac: Any, typed: Typed, exported_tiny: Path) -> None:
    assert "--device-udid needs --team" in typed(exported_tiny, "--device-udid", "00008130-STANDIN").stderr
    assert "is not there" in typed(exported_tiny, "--device-udid", "another", "--team", "TEAM").stderr


def test_python_says_the_same(exported_tiny: Path) -> None:
    for runs in (0, 10**400):
        with pytest.raises(UsageError, match="expected 1 to 10000"):
            profile([exported_tiny], runs=runs)
    with pytest.raises(UsageError, match="no build to profile"):
        profile([])
    with pytest.raises(UsageError, match="unknown backend 'cuda'"):
        profile([exported_tiny], backends=("cuda",))


def test_what_takes_long_or_swaps_or_is_busy_is_told(
    exported_tiny: Path, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.profiling.rounds.Child", _refuse)
    monkeypatch.setattr(measuring, "memory_bytes", lambda: 2_000_000)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 3.0, 3.0))
    with pytest.raises(ExecutionError):
        profile([exported_tiny] * 2, backends=["mil"], runs=5000, progress=heard)
    assert [re.sub(r"[\d.]+", "N", note)[:40] for note in heard.notes] == [
        "this takes up to N minutes on the MIL ru", "all contenders are loaded at once, about",
        "this machine is busy (load N): times wil", "tiny (N), mil, at stage start: not today",
    ]  # fmt: skip


def _refuse(*_: Any, **__: Any) -> Any:
    raise ExecutionError("not today")


def test_the_peak_of_memory_is_the_process_s_own() -> None:
    """Not what `ru_maxrss` inherits from the process that started it."""
    from validation.children import Child

    burden = bytearray(300_000_000)
    burden[::4096] = b"x" * len(burden[::4096])
    child = Child("served:Clerk", "the clerk")
    assert 0 < child.call("peak") < 150_000_000
    child.close()
    del burden


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells")
def test_this_machine_is_told_without_its_owner() -> None:
    from validation.machine import this_machine

    told = this_machine().as_json()
    assert told["cores"] == os.cpu_count()
    check_nameless(json.dumps(told), Path("/nowhere"))
