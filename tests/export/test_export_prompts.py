"""prompts.json of a build: the checkpoint's prompts with its own tokenizer's ids, those that fit beside an image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_export import CONTEXT, QUERY, read_proto, small_model

from export import api
from export.build import BuildWriter
from export.plan import make_plan
from export.ready_prompts import fitting_prompts
from fastvlm.build import read_build
from fastvlm.errors import CheckpointError
from fastvlm.manifest import dump, read_manifest
from fastvlm.progress import SILENT
from fastvlm.prompts import read_prompts
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.ready_prompts import GENERAL
from fastvlm_ref.training.examples import ASKED


def test_the_build_holds_prompts_with_their_ids(exported_tiny: Path, tiny_model: Any) -> None:
    build = read_build(exported_tiny)
    assert build.manifest["schema"] == "0.3"
    assert build.manifest["prompts"] == {"file": "prompts.json"}
    assert "prompts.json" in build.manifest["files"]
    assert "prompts.json" in build.source_files
    assert build.prompts == exported_tiny / "prompts.json"
    prompts = read_prompts(build.prompts)
    assert {prompt.title: prompt.text for prompt in prompts} == ASKED
    for prompt in prompts:
        ids = encode_prompt(tiny_model.tokenizer, prompt.text, tiny_model.config.prompt)
        assert (list(prompt.ids_before_image), list(prompt.ids_after_image)) == ids
    content = build.prompts.read_bytes()
    assert content == dump(json.loads(content))


def test_a_build_of_the_embedded_checkpoint_carries_its_licence(exported_tiny: Path, root: Path) -> None:
    assert (exported_tiny / "licence" / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()
    assert read_manifest(exported_tiny)["licence"] == "apache-2.0"


def test_a_checkpoint_without_own_ones_gets_the_general_prompts(build: Path) -> None:
    prompts = read_prompts(build / "prompts.json")
    assert [(prompt.title, prompt.text) for prompt in prompts] == [(prompt.title, prompt.text) for prompt in GENERAL]


def test_what_does_not_fit_is_left_out_and_told(heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the smaller image all would fit; the larger one, of whatever order, decides."""
    model = small_model()
    every = fitting_prompts(model, make_plan(model.config, (), 32, 16), heard)
    assert (heard.notes, len(every)) == ([], len(GENERAL))
    tokens = 32 - sorted(prompt.count for prompt in every)[len(every) // 2]
    monkeypatch.setattr(type(model.config.vision), "tokens_at", lambda _, side: {64: 1, 128: tokens}[side])
    for sizes in ((64, 128), (128, 64)):
        heard.notes.clear()
        fitting = fitting_prompts(model, make_plan(model.config, sizes, 32, 16), heard)
        assert fitting == tuple(prompt for prompt in every if tokens + prompt.count < 32)
        assert 0 < len(fitting) < len(every)
        assert heard.notes == [
            f"the ready-made prompt {prompt.title!r} is left out: {prompt.count} ids and the {tokens} tokens of an "
            "image leave no room in --context 32"
            for prompt in every
            if prompt not in fitting
        ]


def test_the_last_position_is_the_answer_s(heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    prompt, *_ = fitting_prompts(model, make_plan(model.config, (), CONTEXT, QUERY), heard)
    for spare, kept in ((0, False), (1, True)):
        tokens = 32 - prompt.count - spare
        monkeypatch.setattr(type(model.config.vision), "tokens_at", lambda *_, tokens=tokens: tokens)
        titles = [one.title for one in fitting_prompts(model, make_plan(model.config, (), 32, 16), heard)]
        assert (prompt.title in titles) is kept


def test_an_encoder_alone_keeps_all(heard: Any) -> None:
    model = small_model()
    assert len(fitting_prompts(model, make_plan(model.config, (), 32, 16, "encoder"), heard)) == len(GENERAL)
    assert heard.notes == []


def test_they_are_told_of_once_and_kept_in_the_build(
    tmp_path: Path, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("encoder", "language", "embeddings"):
        monkeypatch.setattr(BuildWriter, f"write_{part}", lambda self: None)
    small = {"image_sizes": (256,), "context": 32, "query_length": 16}
    build = api.export_model(small_model(), tmp_path / "build", **small, progress=heard)
    left_out = [note for note in heard.notes if "ready-made" in note]
    assert 0 < len(left_out) == len(GENERAL) - len(read_prompts(build / "prompts.json"))


def test_a_wrong_file_is_refused_before_anything_is_converted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(tiny, tmp_path / "copied"))
    (copied / "prompts.json").write_text('[{"title": "a"}]')
    monkeypatch.setattr(api, "check_weights", lambda *_: pytest.fail("it went on"))
    with pytest.raises(CheckpointError, match=r"prompts\.json: entry 1: text is missing"):
        api.export(copied, tmp_path / "build")
    assert not (tmp_path / "build").exists()


def test_other_prompts_are_no_other_model(exported_tiny: Path, tiny: Path, tmp_path: Path) -> None:
    """Recorded among the source's files, and not in the label by which a package names its weights."""
    copied = Path(shutil.copytree(tiny, tmp_path / "copied"))
    (copied / "prompts.json").write_text('[{"title": "a", "text": "b"}]')
    model = load_checkpoint(copied)
    writer = BuildWriter(model, make_plan(model.config), tmp_path, model.source, model.tokenizer, SILENT)
    found, known = writer.source_files, read_build(exported_tiny).source_files
    assert [name for name in found | known if found.get(name) != known.get(name)] == ["prompts.json"]
    assert [prompt.title for prompt in writer.prompts] == ["a"]
    labelled = read_proto(exported_tiny / "VisionEncoder.mlpackage").description.metadata.userDefined["fastvlm.source"]
    assert writer.labels("A package.", writer.encoder_specs).extra["fastvlm.source"] == labelled
