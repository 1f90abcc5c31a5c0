"""An export takes what a kept scan asks for, says what is missing, and never goes on with parts of other exponents."""

from __future__ import annotations

import copy
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export import api
from export.build import BuildWriter
from export.protection import PROTECTED, UNPROTECTED, Protection
from export.ranges.cache import fingerprint, place_of, store
from export.ranges.kept import scan_command
from export.ranges.result import DECODER, Ranges, TensorRange
from export.ranges.scan import scan, scan_model
from fastvlm.manifest import read_manifest
from fastvlm_ref.checkpoint import load_checkpoint

ASKED = {"context": 512, "query_length": 64}
NEVER = "no scan of this checkpoint is kept"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Protection]:
    """What protections builds are asked for; no package is made."""
    seen: list[Protection] = []
    monkeypatch.setattr(BuildWriter, "write", lambda self: seen.append(self.protection))
    monkeypatch.setattr("export.api.check_written", lambda _: None)
    return seen


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Ranges:
    """A scan of tiny, kept where no test looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTVLM_CACHE", str(tmp_path_factory.mktemp("scanned")))
        return scan("tiny", image_sizes=(256,))


@pytest.fixture
def kept(found: Ranges) -> Ranges:
    """That scan, kept, but its third layer's MLP and its logits are made to be large."""
    large = {f"{DECODER}layers.2.mlp mul": 50_000.0, f"{DECODER}lm_head linear": 70_000.0}
    tensors = tuple(replace(tensor, peak=large.get(tensor.name, tensor.peak)) for tensor in found.tensors)
    ranges = replace(found, tensors=tensors)
    store(ranges)
    return ranges


def test_without_a_scan_there_are_no_exponents_and_a_note(built: list[Protection], tmp_path: Path, heard: Any) -> None:
    api.export("tiny", tmp_path / "build", progress=heard, **ASKED)
    (note,) = [note for note in heard.notes if note.startswith(NEVER)]
    assert note.endswith("type: fastvlm scan tiny --image-size 256")
    assert built == [PROTECTED]


def test_the_note_names_the_command_that_covers_the_export(
    built: list[Protection], tmp_path: Path, heard: Any, tiny: Path
) -> None:
    folder = tmp_path / "my checkpoint"
    folder.symlink_to(tiny)
    api.export(folder, tmp_path / "build", image_sizes=(64, 128), progress=heard, **ASKED)
    api.export(folder, tmp_path / "other", only="language", progress=heard, **ASKED)
    api.export(folder, tmp_path / "third", only="language", allow_pickle=True, progress=heard, **ASKED)
    commands = [note.partition("type: ")[2] for note in heard.notes if note.startswith(NEVER)]
    assert commands == [
        f"fastvlm scan '{folder}' --image-size 64 --image-size 128", f"fastvlm scan '{folder}'",
        f"fastvlm scan '{folder}' --allow-pickle",
    ]  # fmt: skip


def test_a_kept_scan_gives_the_exponents(kept: Ranges, built: list[Protection], tmp_path: Path, heard: Any) -> None:
    api.export("tiny", tmp_path / "build", progress=heard, **ASKED)
    (protection,) = built
    assert protection.as_json() == {"scanned": list(kept.image_sizes), "mlp": [0, 0, 2, 0]}
    (told,) = [note for note in heard.notes if "scan" in note]
    assert told == "as the scan asks, these are stored divided by powers of two: MLPs of layers 2 / 2^2"
    (problem,) = [note for note in heard.notes if "no power of two" in note]
    assert problem.startswith("decoder.lm_head linear reaches 70,000")
    heard.notes.clear()
    api.export("tiny", tmp_path / "other", only="encoder", progress=heard)
    assert not [note for note in heard.notes if "no power of two" in note], "of the decoder, which is not made"
    assert built[-1].as_json() == {"scanned": list(kept.image_sizes)}


def test_a_longer_context_counts_keys_with_their_constant_part(
    kept: Ranges, built: list[Protection], tmp_path: Path, heard: Any
) -> None:
    """What is left out depends on the context; beyond the scanned one the scores count as they are."""
    shifted = {"constant": 9.0, "keys shifted": 3.0, "scores shifted": 3.0}
    rows = [TensorRange(f"{DECODER}layers.0.self_attn {name}", peak, 0.0, "x") for name, peak in shifted.items()]
    large = f"{DECODER}layers.0.self_attn scores"
    tensors = [replace(tensor, peak=5_000.0) if tensor.name == large else tensor for tensor in kept.tensors]
    store(replace(kept, tensors=(*tensors, *rows)))
    told = []
    for context in (2048, 4096, 512):
        heard.notes.clear()
        api.export("tiny", tmp_path / str(context), context=context, only="language", progress=heard)
        told.append(any(f"one of {context:,} leaves out another" in note for note in heard.notes))
    assert [protection.scores for protection in built] == [0, 1, 0]
    assert told == [False, True, False], "no count is a bound where the context is longer"


def test_the_scan_that_is_named_can_be_typed() -> None:
    assert scan_command(shlex.quote("a\u202fb"), (256,)) == r"fastvlm scan 'a'$'\xe2\x80\xaf''b' --image-size 256"


def test_a_scan_of_other_sides_is_told(kept: Ranges, built: list[Protection], tmp_path: Path, heard: Any) -> None:
    api.export("tiny", tmp_path / "build", image_sizes=(256, 128, 64), progress=heard, **ASKED)
    (note,) = [note for note in heard.notes if "the scan of this checkpoint" in note]
    assert "saw pictures of 256 pixels, none of 128, 64" in note
    assert note.endswith("type: fastvlm scan tiny --image-size 256 --image-size 128 --image-size 64")
    heard.notes.clear()
    api.export("tiny", tmp_path / "other", only="language", progress=heard, **ASKED)
    assert not [note for note in heard.notes if "the scan of this checkpoint" in note]


def test_a_damaged_scan_is_told_and_not_used(kept: Ranges, built: list[Protection], tmp_path: Path, heard: Any) -> None:
    place = place_of(kept.fingerprint)
    place.write_bytes(place.read_bytes().replace(b"50000.0", b"5000.0"))
    api.export("tiny", tmp_path / "build", progress=heard, **ASKED)
    assert built == [PROTECTED]
    assert sum("is damaged (its hash differs)" in note for note in heard.notes) == 1
    assert sum(note.startswith(NEVER) for note in heard.notes) == 1


def test_a_changed_model_was_not_scanned(built: list[Protection], tmp_path: Path, heard: Any) -> None:
    model = load_checkpoint("tiny")
    scanned = Ranges(fingerprint(model, model.source.files()), (256,), (), (), 0, None, ())
    store(scanned)
    api.export_model(model, tmp_path / "build", progress=heard, **ASKED)
    assert not [note for note in heard.notes if note.startswith(NEVER)]
    changed = copy.copy(model)
    changed.decoder = copy.deepcopy(model.decoder)
    changed.decoder.layers[0].mlp.up_proj.weight.data[0] *= 1e6
    api.export_model(changed, tmp_path / "other", progress=heard, **ASKED)
    assert [note for note in heard.notes if note.startswith(NEVER)]


def test_a_decoder_in_memory_is_told_how_to_be_scanned(
    kept: Ranges, built: list[Protection], tmp_path: Path, heard: Any
) -> None:
    """`fastvlm scan` streams it: the same command again would not help."""
    model = load_checkpoint("tiny")
    api.export_model(model, tmp_path / "build", progress=heard, **ASKED)
    (note,) = [note for note in heard.notes if note.startswith(NEVER)]
    assert "fastvlm scan" not in note
    assert "scan_model" in note
    scan_model(model, image_sizes=(256,))
    heard.notes.clear()
    api.export_model(model, tmp_path / "other", progress=heard, **ASKED)
    api.export_model(load_checkpoint("tiny", stream=True), tmp_path / "third", progress=heard, **ASKED)
    assert not [note for note in heard.notes if note.startswith(NEVER)]


def test_a_given_protection_takes_its_place(kept: Ranges, built: list[Protection], tmp_path: Path, heard: Any) -> None:
    model = load_checkpoint("tiny", stream=True)
    for name, given in {"one": UNPROTECTED, "other": Protection(residual=3)}.items():
        api.export_model(model, tmp_path / name, protection=given, progress=heard, **ASKED)
    assert built == [UNPROTECTED, Protection(residual=3)]
    assert not [note for note in heard.notes if "scan" in note]


def test_parts_and_manifest_know_their_exponents(model: Any, tmp_path: Path) -> None:
    """What one part depends on makes that part anew, and no other."""

    def made_of(protection: Protection) -> dict[str, Any]:
        plan = api.make_plan(model.config, (64,), 128, 16)
        writer = BuildWriter(model, plan, tmp_path, model.source, model.tokenizer, api.SILENT, protection=protection)
        return writer.made_of

    plain = made_of(PROTECTED)
    for changed, parts in (
        (Protection(encoder={"network.8": 1}), {"VisionEncoder.mlpackage"}),
        (Protection(residual=1), {"LanguageModel.mlpackage", "embeddings.bin"}),
        (Protection(scores=1), {"LanguageModel.mlpackage", "embeddings.bin"}),
        (Protection(mlp=(0, 1)), {"LanguageModel.mlpackage", "embeddings.bin"}),
        (Protection(values=(1,)), {"LanguageModel.mlpackage", "embeddings.bin"}),
        (UNPROTECTED, {"VisionEncoder.mlpackage", "LanguageModel.mlpackage", "embeddings.bin"}),
    ):
        found = made_of(changed)
        assert {name for name in plain if found[name] != plain[name]} == parts


def test_the_manifest_states_the_exponents(build: Path, model: Any, tmp_path: Path) -> None:
    assert read_manifest(build)["protection"] == {}
    protection = Protection(residual=1, mlp=(0, 2))
    plan = api.make_plan(model.config, (64,), 128, 16, "encoder")
    writer = BuildWriter(model, plan, tmp_path, model.source, model.tokenizer, api.SILENT, protection=protection)
    assert writer.manifest()["protection"] == {"residual": 1, "mlp": [0, 2]}
