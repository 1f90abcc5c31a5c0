"""`mixed` on the embedded checkpoint: its record tells the truth of the bytes on disk, and its budgets hold there."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from package_constants import compressed, op_counts
from small_export import CONTEXT, QUERY

from export.api import export_model
from export.build import WEIGHT_FILE
from export.choice import intended, measured
from export.compression.calibration import LINEARS
from export.compression.schemes import SCHEMES
from export.compression.sensitivity import candidates, measure
from export.plan import make_plan
from fastvlm.errors import UsageError
from fastvlm.hashes import hash_tree
from fastvlm.manifest import read_manifest
from fastvlm.progress import Progress
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import shipped_samples
from validation.mil.package import open_package

ASKED: dict[str, Any] = {"context": CONTEXT, "query_length": QUERY, "only": "language"}
LANGUAGE = "LanguageModel.mlpackage"


@pytest.fixture(scope="module")
def cut() -> FastVLM:
    """Two layers of the embedded checkpoint, in memory: less to measure."""
    model = load_checkpoint("tiny")
    text = replace(model.config.text, layers=2)
    decoder = Decoder(text).requires_grad_(False)
    decoder.load_state_dict(model.decoder.state_dict(), strict=False)
    model.decoder, model.config = decoder, replace(model.config, text=text)
    return model


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def build(cut: FastVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mixed` with most things said: a budget, a layer that is fixed and one that stays fp16."""
    folder = tmp_path_factory.mktemp("mixed")
    text = "language: mixed\nbudget: {bits: 6}\nlayers: {language.lm_head: int8, language.layers.0.mlp.up_proj: fp16}\n"
    return export_model(cut, folder / "build", quantize=recipe(folder, text), **ASKED)


def stored_bytes(build: Path) -> dict[str, int]:
    """The bytes of codes and tables of every compressed layer, from the references in the program."""
    from export.postcheck import operations

    package = open_package(build / LANGUAGE)
    content = (build / LANGUAGE / WEIGHT_FILE).read_bytes()
    found: Counter[str] = Counter()
    for op in operations(package.program.functions["decode"]):
        if op.type.startswith("constexpr_"):
            for value in op.inputs.values():
                at = value.arguments[0].value.blobFileValue.offset
                found[op.outputs[0].name] += int.from_bytes(content[at + 8 : at + 16], "little")
    return dict(found)


def test_the_record_is_that_of_the_package(build: Path, cut: FastVLM) -> None:
    record = read_manifest(build)["compression"]
    named = {f"layers.{index}.{linear}" for index in range(2) for linear in LINEARS}
    layers, table = record["layers"], record["sensitivity"]
    assert record["scheme"] == "recipe"
    assert layers.keys() == {f"language.{name}" for name in (named | {"lm_head"}) - {"layers.0.mlp.up_proj"}}
    assert record["language"] == dict(Counter(layers.values()))
    assert {row["layer"] for row in table["layers"]} == named - {"layers.0.mlp.up_proj"}
    assert all(layers[f"language.{row['layer']}"] == row["scheme"] for row in table["layers"])
    assert all(row["noise_db"].keys() == {"int8", "lut6", "lut4"} for row in table["layers"])
    assert record["recipe"]["budget"] == {"kind": "bits", "value": 6.0}
    assert record["embeddings"] == "fp16"
    calibration = record["calibration"]
    assert calibration["pictures"] == 3
    assert calibration["positions"] > 30
    assert len(calibration["sha256"]) == 64
    package = build / LANGUAGE
    ops = {name.replace("_weight_to_fp16", ""): found.op for name, found in compressed(package, "decode").items()}
    assert ops == {name.removeprefix("language.").replace(".", "_"): SCHEMES[s].op for name, s in layers.items()}
    wanted = Counter(SCHEMES[scheme].op for scheme in layers.values())
    assert {op: op_counts(package, "decode")[op] for op in wanted} == wanted


def test_a_budget_holds_on_the_disk(build: Path, cut: FastVLM) -> None:
    """Fixed layers are no part of it; and no layer could have had more."""
    record = read_manifest(build)["compression"]
    table = record["sensitivity"]
    sizes = {name.replace("_weight_to_fp16", ""): size for name, size in stored_bytes(build).items()}
    weights = {row["layer"]: cut.decoder.get_submodule(row["layer"]).weight.numel() for row in table["layers"]}
    total = sum(sizes[name.replace(".", "_")] for name in weights)
    bits = 8 * total / sum(weights.values())
    assert 5.5 < bits <= 6.0
    assert table["bits"] == pytest.approx(bits, abs=1e-3)
    for row in table["layers"]:
        assert row["bits"] == pytest.approx(8 * sizes[row["layer"].replace(".", "_")] / weights[row["layer"]], abs=1e-3)
    assert sizes["lm_head"] * 8 / cut.decoder.lm_head.weight.numel() > 8  # int8, whatever the budget says


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget: {bits: 4.0}", r"size budget is 4 bits a weight, tables included; this model reaches 4\.\d\d to 8\."),
        ("budget: {snr_db: 60}", r"quality budget is snr_db 60; this model reaches \d\d\.\d\d to \d\d\.\d\d dB"),
    ],
)
def test_a_budget_out_of_reach_names_the_range(text: str, said: str, cut: FastVLM, tmp_path: Path) -> None:
    path = recipe(tmp_path, f"language: mixed\n{text}\n")
    with pytest.raises(UsageError, match=said):
        export_model(cut, tmp_path / "build", quantize=path, **ASKED)
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_zeros_are_part_of_the_head(cut: FastVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is stored in several outputs takes their bytes, and palettes fit it where they fit the outputs."""
    model = load_checkpoint("tiny")
    text = replace(model.config.text, layers=1, vocab_size=565, tied_head=False)
    decoder = Decoder(text).requires_grad_(False)
    for name, value in decoder.state_dict().items():
        value.copy_(model.decoder.state_dict()[name][: len(value)])
    model.decoder, model.config = decoder, replace(model.config, text=text)
    whole = {row.layer: row for row in measure(model, shipped_samples()[:1], candidates("ane"))[1].rows}
    filled = {row.layer: row for row in measure(model, shipped_samples()[:1], candidates("ane"), head_rows=576)[1].rows}
    assert [candidate.scheme.name for candidate in whole["lm_head"].candidates] == ["int8"]
    head = filled["lm_head"]
    assert head.shape == (576, text.hidden_size)
    assert [candidate.scheme.name for candidate in head.candidates] == ["int8", "lut6", "lut4"]
    assert [candidate.bytes for candidate in head.candidates] == [c.scheme.bytes(head.shape) for c in head.candidates]
    assert head.candidates[0].decibel == whole["lm_head"].candidates[0].decibel
    assert head.candidates[0].decibel < head.candidates[1].decibel < head.candidates[2].decibel < -5
    monkeypatch.setattr("export.chunks.HEAD_CAP", 128)
    plan = make_plan(model.config, (), CONTEXT, QUERY, "language")
    found = measured(intended(model, plan, "mixed"), model, plan, shipped_samples()[:1])
    assert found.table is not None
    assert found.table.rows[-1].shape == (576, text.hidden_size)
    assert found.table.bits <= 5.0


class Interrupting(Progress):
    """Interrupts when the embedding table's turn comes."""

    def stage(self, name: str, total: int | None = None) -> Any:
        if name == "Embedding table":
            raise KeyboardInterrupt
        return super().stage(name, total)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which parts are made, not taken over, from now on."""
    from export import build as module

    names: list[str] = []

    def noted(write: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *given: (names.append(path.name), write(path, *given))[1]

    for function in ("write_package", "write_embeddings"):
        monkeypatch.setattr(module, function, noted(getattr(module, function)))
    return names


@pytest.fixture
def pictures(tmp_path: Path, tiny: Path) -> Path:
    """One picture, other than the shipped three together."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copyfile(tiny / "pictures" / "wide.png", folder / "mine.png")
    return folder


@pytest.mark.parametrize(
    "change",
    [
        "nothing",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("the scheme", "the pictures", "the embeddings")),
    ],
)
def test_only_what_was_compressed_alike_is_taken_over(
    change: str, cut: FastVLM, tmp_path: Path, pictures: Path, made: list[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_model(cut, tmp_path / "build", quantize="lut4", progress=Interrupting(), **ASKED)
    assert made == [LANGUAGE]
    del made[:]
    asked = {
        "nothing": {"quantize": "lut4"},
        "the scheme": {"quantize": "int8"},
        "the pictures": {"quantize": "lut4", "calibration": pictures},
        "the embeddings": {"quantize": recipe(tmp_path, "language: lut4\n")},
    }[change]
    again = export_model(cut, tmp_path / "build", **asked, **ASKED)
    assert made == [*([LANGUAGE] if change in ("the scheme", "the pictures") else []), "embeddings.bin"]
    if change == "nothing":
        fresh = export_model(cut, tmp_path / "fresh", **asked, **ASKED)
        assert hash_tree(again) == hash_tree(fresh)
    if change == "the pictures":
        assert read_manifest(again)["compression"]["calibration"]["pictures"] == 1


def test_int8_and_fp16_measure_nothing(cut: FastVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("calibrate", "measure"):
        monkeypatch.setattr(f"export.choice.{step}", lambda *_: pytest.fail("something was measured"))
    record = read_manifest(export_model(cut, tmp_path / "build", quantize="int8", **ASKED))["compression"]
    assert "calibration" not in record


def test_few_bits_in_the_encoder_alone_measure_nothing(
    cut: FastVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What calibration finds is the decoder's; the encoder is compressed without."""
    monkeypatch.setattr("export.choice.calibrate", None)  # calling it would fail
    asked = ASKED | {"only": None}
    build = export_model(cut, tmp_path / "build", quantize=recipe(tmp_path, "encoder: lut4\n"), **asked)
    record = read_manifest(build)["compression"]
    assert set(record["encoder"]) == {"lut4"}
    assert "calibration" not in record


def test_mixed_without_a_layer_left_is_told(cut: FastVLM, tmp_path: Path, heard: Any) -> None:
    path = recipe(tmp_path, "language: mixed\nbudget: {bits: 4.5}\nlayers: {language.*: int8}\n")
    export_model(cut, tmp_path / "build", quantize=path, progress=heard, **ASKED)
    assert any(note.startswith("mixed has no layer left to choose for") for note in heard.notes)
