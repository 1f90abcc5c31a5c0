"""The fault suite: what it plants is planted, the rung that should finds it, and what none finds is said."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fastvlm.manifest import NAME as MANIFEST
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.decoder import Attention
from fastvlm_ref.model.kv_cache import KVCache
from validation.faults import CATALOGUE, SHORT, Bench, Fault
from validation.faults.__main__ import main
from validation.faults.checkpoints import SMALL, Subject
from validation.faults.fault import PLACES
from validation.faults.otherwise import Attending, instead
from validation.faults.programs import MODEL, NotThere
from validation.faults.rungs import Climb
from validation.faults.suite import plant, run
from validation.limits import RUNGS

ROOT = Path(__file__).resolve().parent.parent.parent
BY_NAME = {fault.name: fault for fault in CATALOGUE}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny_subject(exported_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    subject = Subject(load_checkpoint("tiny"), tmp_path_factory.mktemp("faults"))
    shutil.copytree(exported_tiny, subject.folder / "fp16")
    return subject


@pytest.fixture
def bench(tiny_subject: Subject, tmp_path: Path) -> Bench:
    return tiny_subject.bench(tmp_path / "build", own_model=True)


def climbs_only(monkeypatch: pytest.MonkeyPatch, *rungs: str) -> None:
    """Leaves the other rungs out: each compares by itself, but blocks need the sample of the network."""
    for rung in {"constants", "ops", "network", "blocks"} - set(rungs):
        monkeypatch.setattr(Climb, rung, lambda self: ())


def test_the_catalogue_covers_every_rung_and_place():
    assert len(CATALOGUE) >= 40
    assert f"{len(CATALOGUE)} kinds" in (ROOT / "docs" / "validation.md").read_text("utf-8")
    assert len(BY_NAME) == len(CATALOGUE)
    assert {fault.rung for fault in CATALOGUE} == set(RUNGS)
    assert {fault.where for fault in CATALOGUE} == set(PLACES)
    assert all(fault.text.endswith(".") and "\n" not in fault.text for fault in CATALOGUE)


def test_the_short_form_has_two_kinds_of_every_rung():
    assert len(SHORT) == 12
    assert min(Counter(fault.rung for fault in SHORT)[rung] for rung in RUNGS) >= 2
    assert {fault.where for fault in SHORT} == set(PLACES)


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.name)
def test_a_fault_is_caught_by_the_rung_that_should(fault, tiny_subject, monkeypatch):
    climbs_only(monkeypatch, "network", fault.rung)
    outcome = plant(fault, tiny_subject)
    assert not outcome.refused, "what is planted leaves a program that runs"
    assert outcome.good, f"{outcome.found_by}: {outcome.worst}"


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_a_clean_bench_raises_no_alarm(scheme, tiny_subject):
    outcome = plant(None, tiny_subject, scheme)
    assert outcome.good
    assert not outcome.red


def test_every_fault_leaves_other_files_or_another_reference(tiny_subject, tmp_path):
    """None of them plants nothing: the manifest, which hashes all files, or the model is not what it was."""
    sealed = {}
    for index, fault in enumerate([None, *CATALOGUE]):
        scheme = fault.scheme if fault else "fp16"
        if fault is not None and (fault.where == "reference" or scheme != "fp16"):
            continue
        bench = tiny_subject.bench(tmp_path / str(index))
        if fault is not None:
            fault.plant(bench)
        bench.seal()
        sealed[fault.name if fault else None] = (bench.folder / MANIFEST).read_bytes()
        shutil.rmtree(bench.folder)
    assert len(set(sealed.values())) == len(sealed)


def nothing(bench):
    """Nothing is planted."""


def unknown_op(bench):
    """A GELU is an op that nobody knows."""
    with bench.encoder() as program:
        for function in program.functions.values():
            function.ops("gelu")[0].type = "no_such_op"


def test_a_fault_that_changes_nothing_is_missed(tiny_subject, monkeypatch):
    monkeypatch.setattr("validation.faults.__main__.subject", lambda *_: tiny_subject)
    monkeypatch.setattr("validation.faults.__main__.SHORT", [Fault("nothing", "graph", "network", "", nothing)])
    climbs_only(monkeypatch, "network")
    result = CliRunner().invoke(main, ["--short"])
    assert result.exit_code == 1
    assert "MISSED" in result.output
    assert "0 of 1 caught, each by its rung; 0 by others alone, 1 missed; 0 false alarms" in result.output


def test_a_fault_that_another_rung_catches_is_not_caught(tiny_subject, monkeypatch):
    monkeypatch.setattr("validation.faults.__main__.subject", lambda *_: tiny_subject)
    climbs_only(monkeypatch, "constants", "network")
    wrong = Fault("wrong-rung", "build", "network", "", BY_NAME["merges-lost"].plant)
    monkeypatch.setattr("validation.faults.__main__.SHORT", [BY_NAME["merges-lost"], wrong])
    result = CliRunner().invoke(main, ["--short"])
    assert result.exit_code == 1
    assert "1 of 2 caught, each by its rung; 1 by others alone, 0 missed" in result.output


def test_a_clean_bench_that_raises_an_alarm_fails_the_suite(tiny_subject, monkeypatch):
    outcome = plant(BY_NAME["blue-first"], tiny_subject)
    monkeypatch.setattr("validation.faults.suite.climb", lambda _: (outcome.red, {}))
    monkeypatch.setattr("validation.faults.__main__.subject", lambda *_: tiny_subject)
    monkeypatch.setattr("validation.faults.__main__.SHORT", [BY_NAME["blue-first"]])
    result = CliRunner().invoke(main, ["--short"])
    assert result.exit_code == 1
    assert "1 of 1 caught" in result.output
    assert "1 false alarms" in result.output


def test_a_program_that_cannot_run_is_an_alarm_and_told_as_one(tiny_subject):
    outcome = plant(Fault("broken", "graph", "network", "", unknown_op), tiny_subject)
    assert outcome.good
    assert "no_such_op" in outcome.refused["network"]
    assert outcome.worst.startswith("network refused")


def test_a_name_that_no_fault_has_is_refused():
    result = CliRunner().invoke(main, ["--fault", "blue-first", "--fault", "blue-last"])
    assert result.exit_code == 2
    assert "no fault is called blue-last" in result.output


@pytest.mark.long
def test_a_clean_seed_raises_no_alarm():
    result = CliRunner().invoke(main, ["--seeds", "1"])
    assert result.exit_code == 0, result.output
    assert "1 clean seeds: 0 alarms" in result.output


def test_the_seeded_checkpoint_has_what_tiny_has_not():
    assert not SMALL.text.tied_head
    assert SMALL.text.kv_heads < SMALL.text.heads
    assert SMALL.text.layers > 3


def test_a_bench_is_a_copy(bench, tiny_subject):
    BY_NAME["sign-of-a-reference-weight"].plant(bench)
    BY_NAME["sign-of-an-embedding"].plant(bench)
    assert plant(None, tiny_subject).good


def test_opening_and_saving_changes_no_byte(bench):
    package = bench.build.encoder
    before = (package / MODEL).read_bytes()
    with bench.encoder():
        pass
    assert (package / MODEL).read_bytes() == before


def test_what_is_not_there_is_said(bench):
    with bench.language() as program:
        function = program.functions["decode"]
        with pytest.raises(NotThere, match="layers_9_"):
            function.weighted("layers.9.mlp.up_proj")
        with pytest.raises(NotThere, match="no constant"):
            program.stored("layers.9.mlp.up_proj")
        with pytest.raises(NotThere, match="no gelu ahead"):
            function.ahead(function.weighted("lm_head"), "gelu")
        with pytest.raises(NotThere, match="no gelu behind"):
            function.behind(function.weighted("lm_head"), "gelu")


def test_the_attention_that_faults_change_is_the_reference_s_own(bench):
    text = bench.model.config.text
    embeds = torch.randn(1, 9, text.hidden_size)
    before = [bench.model.decoder(embeds, KVCache(text, 16)), bench.model.decoder(embeds)]
    attending = Attending()
    for module in bench.model.decoder.modules():
        if isinstance(module, Attention):
            instead(module, lambda *taken: attending(*taken))
    after = [bench.model.decoder(embeds, KVCache(text, 16)), bench.model.decoder(embeds)]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_the_suite_begins_with_a_clean_bench_of_every_scheme(tiny_subject):
    outcomes = list(run([BY_NAME["sign-of-a-decoder-weight"], BY_NAME["quantised-scale-doubled"]], tiny_subject))
    assert [outcome.fault.name if outcome.fault else None for outcome in outcomes] == [
        None, None, "sign-of-a-decoder-weight", "quantised-scale-doubled",
    ]  # fmt: skip
