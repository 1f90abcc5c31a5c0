"""Every kind of build passes the audit with nothing left over, and the audit says what it looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from audit_builds import BUILDS, LANGUAGE, Builds, audited, red, tiny

from export.api import export_model
from export.ranges.scan import scan_model
from fastvlm.build import read_build
from fastvlm.manifest import read_manifest
from fastvlm_ref.checkpoint import load_checkpoint
from validation.audit import audit
from validation.limits import CODED, LIMITS
from validation.pair import Pair

EXACT = ("audit.differing_weights", "audit.differing_constants", "audit.unexplained")


def test_the_embedded_checkpoint_passes_exactly(exported_tiny: Path) -> None:
    rows = audited(Pair(read_build(exported_tiny), tiny()))
    assert tuple(rows) == EXACT
    assert all(row.value == 0 for row in rows.values())
    stored = sum(path.stat().st_size for path in exported_tiny.rglob("weight.bin")) / 2
    looked_at = int(rows["audit.differing_weights"].subject.split()[1].replace(",", ""))
    assert 0.98 * stored <= looked_at <= stored  # the rest are headers and the signs of the sine


# The others are like these in all that an audit looks at; `make long` takes them as well.
USUAL = ("gpu", "exponents", "chain", "outliers", "int8", "mixture")
KINDS = [pytest.param(name, marks=() if name in USUAL else pytest.mark.long) for name in BUILDS]


@pytest.mark.parametrize("name", KINDS)
def test_every_build_passes(name: str, builds: Builds) -> None:
    pair = builds.pair(name)
    rows = audited(pair)
    assert {key: row.subject for key, row in rows.items() if not row.passed} == {}
    for key, row in rows.items():
        print(f"{key} {row.value:.3g} ({row.subject})")
        assert row.limit.limit == 0 or key in CODED
    used = {scheme for part in ("language", "encoder") for scheme in pair.build.manifest["compression"].get(part, {})}
    wanted = {f"audit.{scheme}_{metric}" for scheme in used for metric in ("misfit", "snr_db")}
    assert rows.keys() == {*EXACT, *wanted} | ({"audit.code_excess"} if used else set())
    assert rows.keys() == {key for key in pair.limits if key.startswith("audit.")}


@pytest.mark.parametrize("scheme", ["int8", "lut6", "int4", "lut4"])
def test_no_layer_is_worse_than_the_table_measured(scheme: str, builds: Builds) -> None:
    """Of the decoder; what the table has may be a layer of the encoder."""
    rows = audited(builds.pair(scheme))
    misfit, snr = rows[f"audit.{scheme}_misfit"], rows[f"audit.{scheme}_snr_db"]
    assert misfit.value <= 1.05 * misfit.limit.measured
    assert snr.value >= snr.limit.measured - 0.1


def test_a_scanned_build_passes(tmp_path: Path) -> None:
    """An MLP beyond fp16 whose exponent a scan found."""
    model = load_checkpoint("tiny")
    mlp = model.decoder.layers[2].mlp
    mlp.up_proj.weight *= 2.0**13
    mlp.down_proj.weight *= 2.0**-13
    scan_model(model, image_sizes=(64,))
    build = export_model(model, tmp_path / "build", **LANGUAGE)
    assert read_manifest(build)["protection"] == {"scanned": [64], "mlp": [0, 0, 5, 0]}
    assert red(Pair(read_build(build), model)) == {}
    assert red(Pair(read_build(build), tiny())).keys() == {"audit.differing_weights"}


@pytest.mark.parametrize("name", ["chain", "mixture"])
def test_a_streaming_model_gives_the_same_rows(name: str, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """And pages are given back piece by piece, not at the end of a weight."""
    whole = audited(builds.pair(name))
    given_back: list[int] = []
    monkeypatch.setattr("validation.mil.blob.BlobFile.forget", lambda self, offset: given_back.append(offset))
    for module in ("weights", "schemes"):
        monkeypatch.setattr(f"validation.audit.{module}.HELD", 1)
    monkeypatch.setattr("fastvlm_ref.checkpoint.tensors.PIECE", 4096)
    streaming = Pair(read_build(builds.build(name)), load_checkpoint("tiny", stream=True))
    assert audited(streaming) == whole
    assert len(given_back) > 2 * len(set(given_back))


def test_progress_is_told_in_stored_bytes(builds: Builds, heard: Any) -> None:
    pair = builds.pair("int8")
    audit(pair, heard)
    ((total, done),) = heard.stages.values()
    assert total == done
    weights = sum(
        (stage.package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for stage in pair.build.language
    )
    assert 0.95 * weights <= done <= weights


def test_its_rows_are_the_rung_of_constants() -> None:
    for key in (*EXACT, *CODED):
        assert (LIMITS.get(key) or CODED[key]).rung == "constants"
