"""The build folder: what lies in it, what its manifest says, and that a failure leaves nothing."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_export import CONTEXT, QUERY, SIZES, small_model

from export import api
from export.build import WEIGHT_FILE, BuildWriter
from export.protection import PROTECTED
from export.weightfile import WeightReader, WeightWriter
from fastvlm.errors import OutputError, TensorError
from fastvlm.hashes import hash_tree, sha256_bytes
from fastvlm.manifest import check_files, read_manifest
from fastvlm_ref.checkpoint.source import source_of


def test_manifest(build: Path, model: Any) -> None:
    manifest = read_manifest(build)
    check_files(build, manifest)
    assert manifest["image"]["sizes"] == list(SIZES)
    assert manifest["packages"] == {"encoder": "VisionEncoder.mlpackage", "language": ["LanguageModel.mlpackage"]}
    assert (manifest["context"], manifest["query_length"]) == (CONTEXT, QUERY)
    assert manifest["model"]["text"]["rope_theta"] == 1e6
    assert manifest["model"]["vision"]["widths"] == list(model.config.vision.widths)
    assert manifest["prompt"]["stop_ids"] == [2]
    assert manifest["embeddings"] == {"file": "embeddings.bin", "dtype": "float16", "rows": 300, "width": 64}
    assert manifest["compression"] == {"scheme": "fp16"}
    assert manifest["functions"]["encoder"][f"encode_{SIZES[0]}"]["outputs"] == [
        {"name": "imageFeatures", "kind": "tensor", "shape": [1, 4, 64], "dtype": "float16"}
    ]
    (package,) = manifest["functions"]["language"]
    assert package["state"]["shape"] == [4, 2, 32, CONTEXT]
    decode = package["decode"]
    assert [entry["name"] for entry in decode["inputs"]] == [
        "inputsEmbeds", "ropeCos", "ropeSin", "causalMask", "position",
    ]  # fmt: skip


def test_embedding_table(build: Path, model: Any) -> None:
    table = np.fromfile(build / "embeddings.bin", np.float16).reshape(300, 64)
    assert np.array_equal(table, model.decoder.embed_tokens.weight.half().numpy())


def test_nothing_of_the_machine_is_inside(build: Path) -> None:
    wanted = [os.fsencode(build.parent), os.fsencode(Path.home()), b"/tmp/", b"conversion_date"]
    for path in build.rglob("*"):
        if path.is_file() and path.name != "weight.bin":
            content = path.read_bytes()
            assert not [word for word in wanted if word in content], path.name


def test_a_folder_s_name_is_not_in_the_packages(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights in two folders: the labels of both packages are the same, other weights make others."""
    seen = []

    def note_labels(self: BuildWriter) -> None:
        seen.append(self.labels("A package.", self.encoder_specs))

    monkeypatch.setattr(BuildWriter, "write", note_labels)
    monkeypatch.setattr("export.api.check_written", lambda _: None)
    for name, weights, readme in (("first", b"1", "a"), ("second", b"1", "b"), ("third", b"2", "a")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "README.md").write_text(readme)
        changed = copy.copy(model)
        changed.source = source_of(folder, "llava", (folder / "model.safetensors",), None)
        api.export_model(changed, tmp_path / f"build of {name}", context=CONTEXT, query_length=QUERY)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    assert "first" not in str(seen[0])
    assert sha256_bytes(b"1") in seen[0].extra["fastvlm.source"]


def test_one_thread_reads_and_writes(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused convolutions and traced graphs must not depend on the number of cores."""
    threads = []

    def load(*_: Any, **__: Any) -> Any:
        threads.append(torch.get_num_threads())
        return model

    monkeypatch.setattr(api, "load_checkpoint", load)
    monkeypatch.setattr(BuildWriter, "write", lambda _: threads.append(torch.get_num_threads()))
    monkeypatch.setattr("export.api.check_written", lambda _: None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        api.export("nowhere", tmp_path / "one", context=CONTEXT, query_length=QUERY)
        api.export_model(model, tmp_path / "two", context=CONTEXT, query_length=QUERY)
        threads.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1, 1, 2]


def test_the_embedded_checkpoint_may_be_built_beside_a_folder_of_its_name(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "load_checkpoint", lambda *_, **__: model)
    monkeypatch.setattr(BuildWriter, "write", lambda self: (self.folder / "half").touch())
    monkeypatch.setattr("export.api.check_written", lambda _: None)
    (tmp_path / "tiny").mkdir()
    assert api.export("tiny", "tiny", context=CONTEXT, query_length=QUERY, overwrite=True) == tmp_path / "tiny"
    with pytest.raises(OutputError, match="lie in each other"):
        api.export("./tiny", "tiny/build", context=CONTEXT, query_length=QUERY)


def test_hashing_and_libraries_are_stages(model: Any, tmp_path: Path, heard: Any) -> None:
    build = api.export_model(
        model,
        tmp_path / "build",
        context=CONTEXT,
        query_length=QUERY,
        only="language",
        protection=PROTECTED,
        progress=heard,
    )
    assert list(heard.stages) == [
        "Checking the weights", "Hashing the checkpoint", "Loading coremltools", "Language model",
        "Hashing LanguageModel.mlpackage", "Embedding table", "Hashing embeddings.bin", "Hashing the build",
        "Bringing it to the disk",
    ]  # fmt: skip
    size = sum(entry["bytes"] for entry in read_manifest(build)["files"].values())
    hashed = [heard.stages[name] for name in heard.stages if name.startswith("Hashing")]  # each file once
    assert sum(total for total, _ in hashed) == sum(done for _, done in hashed) == size
    assert heard.stages["Language model"] == [1, 1]


@pytest.mark.parametrize("only", ["encoder", "language"])
def test_only_one_part(model: Any, tmp_path: Path, only: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(BuildWriter, "write_encoder", lambda self: written.append("encoder"))
    monkeypatch.setattr(BuildWriter, "write_language", lambda self: written.append("language"))
    build = api.export_model(model, tmp_path / "build", context=CONTEXT, query_length=QUERY, only=only)
    manifest = json.loads((build / "manifest.json").read_text())
    assert written == [only]
    assert list(manifest["packages"]) == list(manifest["functions"]) == [only]
    assert (build / "embeddings.bin").exists() == ("embeddings" in manifest) == (only == "language")


def test_saturation_is_told_and_written_down(tmp_path: Path, heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = small_model()
    changed.decoder.embed_tokens.weight[3, 5] = 1e6
    monkeypatch.setattr(BuildWriter, "write_language", lambda self: None)
    build = api.export_model(
        changed,
        tmp_path / "build",
        context=CONTEXT,
        query_length=QUERY,
        only="language",
        protection=PROTECTED,
        progress=heard,
    )
    assert [note for note in heard.notes if "beyond 65,504" in note] == [
        "decoder.embed_tokens.weight: 1 values beyond 65,504 were clamped to what fp16 can hold"
    ]
    assert read_manifest(build)["saturated"] == {"decoder.embed_tokens.weight": 1}


def test_what_goes_beyond_a_devices_limits_is_told(tmp_path: Path, heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    monkeypatch.setattr("export.build.IOS_FILE", 1000)

    def write_package(folder: Path, *_: object) -> dict[str, int]:
        (folder / WEIGHT_FILE).parent.mkdir(parents=True)
        (folder / WEIGHT_FILE).write_bytes(bytes(1001))
        return {}

    monkeypatch.setattr("export.build.write_package", write_package)
    api.export_model(
        model,
        tmp_path / "build",
        context=CONTEXT,
        query_length=QUERY,
        only="language",
        protection=PROTECTED,
        progress=heard,
    )
    (note,) = heard.notes
    assert note.startswith("LanguageModel.mlpackage holds 0.0 GB in one program")


def test_context_beyond_the_model_is_told(
    model: Any, tmp_path: Path, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BuildWriter, "write", lambda self: None)
    monkeypatch.setattr("export.api.check_written", lambda _: None)
    api.export_model(model, tmp_path / "build", context=4096, protection=PROTECTED, progress=heard)
    assert heard.notes == ["--context 4096 is more than the 2048 positions that this model was made for"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second line of defence: what the first let pass, or what a folding makes of good weights."""
    monkeypatch.setattr(api, "check_weights", lambda *_: None)
    broken = small_model()
    broken.vision_encoder.patch_embed[0].reparam_conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(TensorError, match=r"patch_embed\.0\.conv\.weight holds NaN"):
        api.export_model(broken, tmp_path / "build", context=CONTEXT, query_length=QUERY)
    assert list(tmp_path.iterdir()) == []


def test_licences_travel_along(tmp_path: Path, heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's terms cover what is made from the weights: agreement and sentence are in the build."""
    own, base, changed = tmp_path / "own", tmp_path / "base", small_model()
    changed.config = replace(changed.config, licence="apple-amlr")
    for folder in (own, base):
        folder.mkdir()
        (folder / "LICENSE_MODEL").write_text(folder.name)
    monkeypatch.setattr(BuildWriter, "write_language", lambda self: None)

    def built(name: str) -> Path:
        return api.export_model(
            changed,
            tmp_path / name,
            context=CONTEXT,
            query_length=QUERY,
            only="language",
            protection=PROTECTED,
            progress=heard,
        )

    manifest = read_manifest(built("without"))
    assert "Apple Machine Learning Research Model License Agreement." in manifest["licence_text"]
    assert len(heard.notes) == 1
    assert "holds none" in heard.notes[0]
    below = replace(changed.source, folder=base, names=("LICENSE_MODEL",))
    changed.source = replace(below, folder=own, base=below)
    build = built("with")
    assert (build / "licence/LICENSE_MODEL").read_text() == "own"
    assert (build / "licence/base/LICENSE_MODEL").read_text() == "base"
    assert {"licence/LICENSE_MODEL", "licence/base/LICENSE_MODEL"} <= read_manifest(build)["files"].keys()


def test_existing_output_needs_overwrite(build: Path, model: Any) -> None:
    before = hash_tree(build)
    with pytest.raises(OutputError, match="--overwrite"):
        api.export_model(model, build, context=CONTEXT, query_length=QUERY)
    assert hash_tree(build) == before


def test_weight_file_holds_every_blob_once(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    with path.open("wb") as handle:
        writer = WeightWriter(handle)
        first, second = writer.add(1, 0, b"ab" * 50), writer.add(1, 0, b"cd" * 40)
        assert writer.add(1, 0, b"ab" * 50) == first
        assert writer.add(4, 0, b"ab" * 50) not in (first, second)  # another dtype is another blob
        writer.finish()
    assert (first, second) == (64, 256)
    assert path.read_bytes()[:8] == bytes([3, 0, 0, 0, 2, 0, 0, 0])
    with WeightReader(path) as reader:
        assert reader.read(first) == (1, 0, b"ab" * 50)
        assert reader.read(second) == (1, 0, b"cd" * 40)
        with pytest.raises(RuntimeError, match="sentinel"):
            reader.read(first + 8)
