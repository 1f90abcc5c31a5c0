"""What was not measured fails a build, unless there is a reason that is no fault."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from audit_builds import audited, tiny

from export import export
from fastvlm.build import read_build
from fastvlm.hashes import file_hash
from fastvlm.manifest import read_manifest, write_manifest
from fastvlm_ref.checkpoint import load_checkpoint
from validation import validate
from validation.comparison import Comparison
from validation.pair import Pair
from validation.rungs import excused


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """tiny's encoder alone, at two sides."""
    return export("tiny", tmp_path_factory.mktemp("sized") / "build", only="encoder", image_sizes=(128, 64))


def test_a_row_that_a_whole_build_does_not_give_fails_it(exported_tiny: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("validation.comparison.compare_state", lambda *_: None)
    build = shutil.copytree(exported_tiny, tmp_path / "build")
    verdict = validate(build, steps=1)
    assert set(verdict.lacking) == {"state.keys_loss_db", "state.values_loss_db", "state.chunking_loss_db"}
    assert not verdict.passed
    assert all(row.passed for row in verdict.rows)
    assert json.loads((build / "validation.json").read_text("utf-8"))["verdict"] == "failed"


def test_a_part_that_a_build_lacks_excuses_its_rows(sized: Any, exported_tiny: Any) -> None:
    model = load_checkpoint("tiny")
    whole, encoder = Pair(read_build(exported_tiny), model), Pair(read_build(sized), model)
    assert excused(whole, "mil", layerwise=False) == set()
    assert {key.partition(".")[0] for key in excused(encoder, "mil", layerwise=False)} == {
        "language", "language_blocks", "answer", "prompt", "embeddings", "state", "tokenizer",
    }  # fmt: skip


def test_every_size_is_compared(sized: Any, tmp_path: Any, monkeypatch: Any) -> None:
    compared: list[Any] = []
    run = Comparison.run

    def kept(self: Comparison, *asked: Any) -> Any:
        compared.append(self)
        return run(self, *asked)

    monkeypatch.setattr(Comparison, "run", kept)
    verdict = validate(shutil.copytree(sized, tmp_path / "build"), steps=1)
    assert verdict.passed
    assert {name.rpartition(" at ")[2] for name in compared[0].found.encoder} == {"128", "64"}
    assert len(compared[0].example().pictures) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["compression"].update(language={"lut4": 1}), "compression.language is {'lut4': 1}, expected {}"),
        (
            lambda m: m["compression"].update(scheme="int8", layers={"language.nowhere": "int8"}),
            "names language.nowhere",
        ),
        (
            lambda m: m["functions"]["language"][0]["decode"]["outputs"][0].update(dtype="float32"),
            "functions.language.0.decode.outputs.0.dtype is float32, expected float16",
        ),
        (
            lambda m: m["functions"]["encoder"]["encode_256"]["outputs"][0].update(shape=[1, 1, 1]),
            "functions.encoder.encode_256.outputs.0.shape",
        ),
    ],
)
def test_what_the_manifest_tells_otherwise_is_named(exported_tiny: Any, tmp_path: Any, change: Any, says: str) -> None:
    build = shutil.copytree(exported_tiny, tmp_path / "build")
    manifest = read_manifest(build)
    change(manifest)
    manifest["files"] = {name: file_hash(build / name) for name in manifest["files"]}
    write_manifest(build / "manifest.json", manifest)
    row = audited(Pair(read_build(build), tiny()))["audit.differing_constants"]
    assert not row.passed
    assert says in row.subject
