"""What is made of many runs: medians and quartiles from a clock that is no clock, and who runs when."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fastvlm.build import COMPUTE_UNITS, Build, read_build
from fastvlm.errors import ExecutionError, MissingDependency, ProcessError, PromptError
from fastvlm.manifest import NAME, read_manifest, write_manifest
from fastvlm.progress import SILENT
from fastvlm_ref.image import preprocess
from validation.children import Child
from validation.coreml import here
from validation.machine import Machine
from validation.profiling.bench import PackageBench, _core_ml_share
from validation.profiling.contender import Asked, Contender, contenders_of
from validation.profiling.result import Failure, Profile, Result, Stage, stages_of
from validation.profiling.rounds import Measured, Race, run_rounds
from validation.profiling.spread import Spread
from validation.profiling.workload import PHOTO, TOKENS, photo, workload_of

pytestmark = pytest.mark.usefixtures("one_thread")
TINY_STAGES = ["preprocess", "encode", "prefill", "first_token", "to_first_token", *["decode"] * 4]


def test_medians_and_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 8.0, 3.0]) == Spread(3.0, 2.0, 4.0, 1.0, 8.0, 5)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75, 1.0, 2.0, 2)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0, 1)
    assert Spread.of([1.23456, 1.23456]).as_json()["median"] == 1.235
    assert Spread.of([1.0]).as_json()["count"] == 1


def of_one_part(build: Path, part: str) -> Path:
    """The build as `export --only` would have left it: its manifest names that part alone."""
    manifest = read_manifest(build)
    lacking = {"language": ("encoder", None), "encoder": ("language", [])}[part]
    manifest["packages"][lacking[0]] = lacking[1]
    if part == "language":
        manifest["image"]["sizes"] = []
    write_manifest(build / NAME, manifest)
    return build


def bench(build: Path, ticks: Any, heard: list[str], **asked: Any) -> PackageBench:
    given = {"backend": "mil", "compute_units": None, "image_size": None, **asked}
    return PackageBench(heard.append, str(build), **given, clock=ticks.__next__)


def test_every_stage_is_timed_alone(exported_tiny: Path) -> None:
    """A clock that ticks once a look: each stage takes one, tokens share theirs, the sum is the sum."""
    heard: list[str] = []
    clerk = bench(exported_tiny, itertools.count(), heard)
    assert clerk.load() == [["load_encoder", None, 1], ["load_language", None, 1]]
    rows = clerk.run()
    assert [row[0] for row in rows] == TINY_STAGES
    assert [row[2] for row in rows] == [1, 1, 1, 1, 4, *[1 / TOKENS] * 4]
    assert [row[1] for row in rows if row[0] == "decode"] == [40, 512, 1024, 2047]
    assert heard[:3] == ["load_encoder", "load_language", "preprocess"]
    assert heard[-1] == "decode at 2047"
    memory = clerk.memory()
    assert 0 < memory["before_load"] <= memory["peak"]
    assert [row[0] for row in clerk.load()] == ["load_encoder", "load_language"], "again"


def test_a_run_does_the_work_that_its_stages_name(exported_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each stage: what is called, with how many rows or pixels, behind how many positions."""
    heard: list[str] = []
    clerk = bench(exported_tiny, itertools.count(), heard)
    clerk.load()
    assert clerk.engine is not None
    done: list[Any] = []

    def watch(name: str) -> None:
        call = getattr(clerk.engine, name)

        def watched(value: Any) -> Any:
            assert clerk.engine is not None
            done.append((heard[-1], name, len(value), clerk.engine.position))
            return call(value)

        setattr(clerk.engine, name, watched)

    def prepared(picture: Image.Image, side: int, rule: str) -> Any:
        done.append((heard[-1], rule, side, picture.size))
        return preprocess(picture, side, rule)

    monkeypatch.setattr("validation.profiling.bench.preprocess", prepared)
    for name in ("encode_image", "prefill", "decode"):
        watch(name)
    clerk.run()
    assert done.pop(0) == ("preprocess", "pad", 256, PHOTO)
    answer = [("encode", "encode_image", 256, 0), ("prefill", "prefill", 39, 0), ("first_token", "decode", 1, 39)]
    tokens = [(f"decode at {at}", "decode", 1, at) for at in (40, 512, 1024, 2047) for _ in range(TOKENS)]
    assert done == answer + tokens


def test_a_load_opens_everything_and_drops_what_was_open(exported_tiny: Path) -> None:
    clerk = bench(exported_tiny, itertools.count(), [])
    clerk.load()
    assert clerk.engine is not None
    opened = [list(clerk.engine._encoders), *(sorted(functions) for functions in clerk.engine.chain._functions)]
    assert opened == [[256], ["decode", "prefill"]]
    before = weakref.ref(clerk.engine)
    clerk._tell = lambda stage: heard.append((stage, before()))
    heard: list[Any] = []
    clerk.load()
    assert heard == [("load_encoder", None), ("load_language", None)]


def test_libraries_are_there_before_the_first_load(exported_tiny: Path, mac: pytest.MonkeyPatch) -> None:
    """Else their import, seconds of coremltools', would count as the load of a package, and as its memory."""
    given = {"build": str(exported_tiny), "backend": "mil", "compute_units": None, "image_size": None}
    child = Child("served_bench:Librarian", "the librarian", **given)
    before = child.call("modules")
    child.call("load")
    assert child.call("modules") == before
    child.close()
    mac.setattr(here, "library", _refuse)
    with pytest.raises(MissingDependency, match="not today"):
        bench(exported_tiny, itertools.count(), [], backend="coreml")


def _refuse() -> None:
    raise MissingDependency("not today")


@pytest.mark.parametrize("part", ["encoder", "language"])
def test_a_build_of_one_part_is_measured_in_that_part(part: str, tiny_build: Path) -> None:
    """Without an encoder nothing is called the time to the first token: it would be another sum."""
    clerk = bench(of_one_part(tiny_build, part), itertools.count(), [])
    loaded, stages = [row[0] for row in clerk.load()], [row[0] for row in clerk.run()]
    assert loaded == [f"load_{part}"]
    language = [stage for stage in TINY_STAGES[2:] if stage != "to_first_token"]
    assert stages == (TINY_STAGES[:2] if part == "encoder" else language)


def test_an_encoder_for_an_app_is_measured_too(exported_app: Path) -> None:
    clerk = bench(exported_app, itertools.count(), [])
    assert [row[0] for row in (*clerk.load(), *clerk.run())] == ["load_encoder", "preprocess", "encode"]


def test_where_it_decodes(exported_tiny: Path) -> None:
    build = read_build(exported_tiny)
    assert workload_of(build).positions == (40, 512, 1024, 2047)
    assert workload_of(replace(build, context=1024)).positions == (40, 512, 1023)
    assert workload_of(replace(build, context=64)).positions == (40, 63)
    assert workload_of(replace(build, context=41)).positions == (40,)
    two = workload_of(replace(build, image_sizes=(256, 128)), 128)
    assert (two.side, two.tokens, two.positions[0]) == (128, 4, 28), "the size that was asked for"
    with pytest.raises(PromptError, match="the prompt takes 40 positions"):
        workload_of(replace(build, context=40))
    assert workload_of(replace(build, encoder=None)).tokens == 16, "the checkpoint's own image size"
    assert photo().size == PHOTO


class Player:
    """A contender that notes when it is asked, and fails when it is told to."""

    def __init__(self, name: str, heard: list[str], fails: dict[str, Exception]) -> None:
        self.name, self._heard, self._fails, self._count = name, heard, fails, 0
        self.closed, self.stage = False, "start"

    def call(self, name: str, **_: Any) -> Any:
        """One row a run."""
        assert not self.closed
        self._heard.append(f"{name} {self.name}")
        if name in self._fails:
            raise self._fails[name]
        self._count += 1
        return {"load": [["load_encoder", None, 1.0]], "run": [["encode", None, float(self._count)]]}.get(name, {})

    def close(self) -> None:
        """Marks it."""
        self.closed = True


def contender(name: str, build: Build) -> Contender:
    return Contender(name, build, "mil", None, None, workload_of(build))


@pytest.fixture
def three(exported_tiny: Path) -> list[Contender]:
    build = read_build(exported_tiny)
    return [contender(name, build) for name in "ABC"]


def race(three: list[Contender], fails: dict[str, dict[str, Exception]]) -> tuple[Race, list[str], dict[str, Player]]:
    heard: list[str] = []
    players: dict[str, Player] = {}

    def start(of: Contender) -> Player:
        if "start" in fails.get(of.name, {}):
            raise fails[of.name]["start"]
        return players.setdefault(of.name, Player(of.name, heard, fails.get(of.name, {})))

    running = Race(three)
    running.start(start)
    return running, heard, players


def test_contenders_run_in_turn_and_another_one_begins_each_round(three: list[Contender]) -> None:
    running, heard, _ = race(three, {})
    run_rounds(running, 4, SILENT)
    calls = [word.split() for word in heard]
    assert [name for call, name in calls if call == "run"] == list("ABC" + "ABC" + "BCA" + "CAB" + "ABC")
    assert [call for call, _ in calls] == [*["load"] * 3, *["run"] * 15, *["memory"] * 3, *["plan"] * 3, *["load"] * 9]
    first = running.all[0]
    assert first.first == {("load_encoder", None): 1.0, ("encode", None): 2.0}, "the first run is no run"
    assert first.runs["encode", None] == [3.0, 4.0, 5.0, 6.0]
    assert first.runs["load_encoder", None] == [1.0] * 3


@pytest.mark.parametrize("at", ["start", "load", "run"])
def test_one_that_fails_is_out_and_the_others_go_on(three: list[Contender], at: str) -> None:
    running, heard, players = race(three, {"B": {at: ProcessError("B ended", "encode", "SIGKILL")}})
    run_rounds(running, 2, SILENT)
    assert heard.count("run A") == heard.count("run C") == 3
    assert heard.count(f"{at} B") <= 1
    measured = running.all[1]
    assert (measured.stage, str(measured.error)) == ("encode", "B ended")
    assert "B" not in players or players["B"].closed
    assert running.all[0].error is None
    running.close()
    assert players["A"].closed


def test_a_failure_says_whose_it_is() -> None:
    refused = Failure.of("tiny, mil", "prefill", ExecutionError("an input\nis wrong"))
    assert refused.told == "tiny, mil, at stage prefill: an input is wrong"
    ended = Failure.of("tiny, mil", "prefill", ProcessError("tiny, mil ended by itself", "prefill", "SIGKILL"))
    assert ended.told == "tiny, mil ended by itself"


def test_an_error_that_tells_no_stage_has_the_last_one(three: list[Contender]) -> None:
    running, _, players = race(three, {"A": {"run": ExecutionError("no numbers")}})
    players["A"].stage = "prefill"
    run_rounds(running, 1, SILENT)
    assert running.all[0].stage == "prefill"


def test_ratios_are_of_medians(three: list[Contender]) -> None:
    def result(of: Contender, seconds: float, missing: bool = False) -> Result:
        spread = None if missing else Spread.of([seconds, seconds, 100.0])
        return Result(of, (Stage("encode", None, 9.0, spread), Stage("decode", 512, None, spread)), {})

    results = (result(three[0], 2.0), result(three[1], 3.0), result(three[2], 1.0, missing=True))
    profile = Profile(Machine("", "", "Linux", "x86_64", 2, 8.0), 3, 0.0, results, ())
    assert profile.ratios[1] == {("encode", None): 1.5, ("decode", 512): 1.5}
    assert profile.ratios[2] == {}
    told = profile.as_json()["ratios"]
    assert [row["contender"] for row in told] == ["B", "C"]
    assert told[0]["stages"][1] == {"stage": "decode", "position": 512, "ratio": 1.5}


def test_a_core_ml_load_that_is_told_in_part_is_not_told() -> None:
    told, silent = SimpleNamespace(load_seconds=2.0), SimpleNamespace(load_seconds=None)
    assert [*_core_ml_share("load_language", [told, told])] == [["load_language_core_ml", None, 4.0]]
    assert [*_core_ml_share("load_language", [told, silent])] == []


def test_stages_are_in_the_order_of_an_answer(three: list[Contender]) -> None:
    measured = Measured(three[0])
    measured.keep([["decode", 512, 1.0], ["decode", 40, 1.0], ["encode", None, 2.0], ["load_encoder", None, 3.0]])
    measured.keep_first([["prefill", None, 4.0]])
    assert [(stage.name, stage.position) for stage in stages_of(measured)] == [
        ("load_encoder", None), ("encode", None), ("prefill", None), ("decode", 40), ("decode", 512),
    ]  # fmt: skip


def test_a_mac_measures_core_ml_unless_told_otherwise(exported_tiny: Path, mac: pytest.MonkeyPatch) -> None:
    found = contenders_of([exported_tiny], Asked())
    assert [(each.backend, each.compute_units) for each in found] == [("coreml", units) for units in COMPUTE_UNITS]
    mac.setattr(here, "system", lambda: "linux")
    assert [each.backend for each in contenders_of([exported_tiny], Asked())] == ["mil"]


def test_a_mac_whose_coremltools_does_not_load_is_told_before_any_work(
    exported_tiny: Path, mac: pytest.MonkeyPatch
) -> None:
    mac.setattr(here, "library", _refuse)
    with pytest.raises(MissingDependency, match="not today"):
        contenders_of([exported_tiny], Asked(backends=("mil", "coreml")))


def test_contenders_have_names_without_paths(exported_tiny: Path) -> None:
    found = contenders_of([exported_tiny, exported_tiny], Asked(backends=("mil",)))
    assert [each.name for each in found] == ["tiny (1), mil", "tiny (2), mil"]
    assert [each.name for each in contenders_of([exported_tiny], Asked(backends=("mil", "mil")))] == ["tiny, mil"]
    (found,) = contenders_of([exported_tiny / NAME], Asked(backends=("mil",)))
    assert (found.name, found.build.folder) == ("tiny, mil", exported_tiny), "a build may be named by its manifest"
