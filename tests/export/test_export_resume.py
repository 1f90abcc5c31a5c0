"""An export that was killed goes on: what it finished is taken over where this run would make the same, to the byte."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_export import CONTEXT, QUERY, small_model

from export import api, parts_key
from export.chunks import Chunk
from export.language import LanguageConverter
from export.parts_key import code_digest, encoder_key, language_key
from export.plan import ExportPlan
from fastvlm.build import read_build
from fastvlm.hashes import hash_tree
from fastvlm.manifest import check_files, read_manifest
from fastvlm.progress import Progress
from fastvlm_ref.checkpoint import load_checkpoint

PARTS = ("VisionEncoder.mlpackage", "LanguageModel.mlpackage", "embeddings.bin")

KILLED = """
import os, signal, sys
from export import export
from fastvlm.progress import Progress
class Killing(Progress):
    def stage(self, name, total=None):
        if name == "Language model":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().stage(name, total)
export("tiny", sys.argv[1], progress=Killing())
"""


@pytest.fixture(scope="module")
def killed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which an export of `tiny` was killed when the encoder was finished; copy it."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-u", "-c", KILLED, str(folder / "build")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL
    assert (run.stdout, run.stderr) == ("", "")  # a library is quiet
    (stage,) = folder.iterdir()
    assert re.fullmatch(r"\.build\.stage-[0-9a-f]{32}", stage.name)
    return folder


@pytest.fixture
def left(killed: Path, tmp_path: Path) -> Path:
    """The folder of the killed export, for one test."""
    return Path(shutil.copytree(killed, tmp_path / "left"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which parts are made, not taken over, from now on."""
    names: list[str] = []
    for function in ("write_package", "write_embeddings"):
        monkeypatch.setattr(f"export.build.{function}", _noted(f"export.build.{function}", names))
    return names


def _noted(function: str, names: list[str]) -> Callable[..., Any]:
    module, _, name = function.rpartition(".")
    write = getattr(sys.modules[module], name)

    def noted(path: Path, *given: Any) -> Any:
        names.append(path.name)
        return write(path, *given)

    return noted


def test_a_killed_export_goes_on_to_the_same_bytes(
    left: Path, exported_tiny: Path, made: list[str], heard: Any
) -> None:
    build = api.export("tiny", left / "build", progress=heard)
    assert made == ["LanguageModel.mlpackage", "embeddings.bin"]
    assert "VisionEncoder.mlpackage was finished by an interrupted run and is taken over" in heard.notes
    assert hash_tree(build) == hash_tree(exported_tiny)
    assert os.listdir(left) == ["build"]
    check_files(build, read_manifest(build))


def test_one_changed_byte_is_made_anew(left: Path, exported_tiny: Path, made: list[str], heard: Any) -> None:
    (weights,) = left.rglob("weight.bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    build = api.export("tiny", left / "build", only="encoder", progress=heard)
    assert made == ["VisionEncoder.mlpackage"]
    assert any("is not as it was finished and is made anew" in note for note in heard.notes)
    assert hash_tree(build / made[0]) == hash_tree(exported_tiny / made[0])


def test_other_options_take_nothing_over(left: Path, made: list[str], heard: Any) -> None:
    build = api.export("tiny", left / "build", only="encoder", image_sizes=[64], progress=heard)
    assert made == ["VisionEncoder.mlpackage"]
    assert "VisionEncoder.mlpackage of an interrupted run does not fit this one and is not used" in heard.notes
    assert read_manifest(build)["image"]["sizes"] == [64]


def test_options_of_other_parts_do_not_matter(left: Path, exported_tiny: Path, made: list[str]) -> None:
    build = api.export("tiny", left / "build", only="encoder", context=1024, query_length=32)
    assert made == []
    assert hash_tree(build / "VisionEncoder.mlpackage") == hash_tree(exported_tiny / "VisionEncoder.mlpackage")


class Interrupting(Progress):
    """Interrupts when the embedding table's turn comes."""

    def stage(self, name: str, total: int | None = None) -> Any:
        if name == "Embedding table":
            raise KeyboardInterrupt
        return super().stage(name, total)


def test_clamped_values_are_told_again(tmp_path: Path, made: list[str], heard: Any) -> None:
    model = small_model()
    model.decoder.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    asked: dict[str, Any] = {"context": CONTEXT, "query_length": QUERY, "only": "language"}
    with pytest.raises(KeyboardInterrupt):
        api.export_model(model, tmp_path / "build", **asked, progress=Interrupting())
    build = api.export_model(model, tmp_path / "build", **asked, progress=heard)
    assert made == ["LanguageModel.mlpackage", "embeddings.bin"]
    assert read_manifest(build)["saturated"] == {"decoder.layers.1.mlp.up_proj.weight": 1}
    assert any("1 values beyond 65,504" in note for note in heard.notes)


PLAN = ExportPlan((128,), CONTEXT, QUERY)
FILES = {"model.safetensors": {"sha256": "0" * 64, "bytes": 1}}


def changes(model: Any) -> dict[str, tuple[Any, ...]]:
    """What must change the keys: (model, plan, files) and whether that of the encoder, of the language model, does."""
    encoder, language, statistics = small_model(), small_model(), small_model()
    encoder.projector[0].weight[0, 0] += 1
    language.decoder.norm.weight[0] += 1
    next(statistics.vision_encoder.buffers())[0] += 1
    other = small_model()
    other.config = replace(other.config, licence="another")
    return {
        "nothing": (model, PLAN, FILES, False, False),
        "the files": (model, PLAN, {"model.safetensors": {"sha256": "1" * 64, "bytes": 1}}, True, True),
        "the image sizes": (model, replace(PLAN, image_sizes=(64,)), FILES, True, False),
        "their order": (model, replace(PLAN, image_sizes=(64, 128)), FILES, True, False),
        "the context": (model, replace(PLAN, context=2 * CONTEXT), FILES, False, True),
        "the query length": (model, replace(PLAN, query_length=2 * QUERY), FILES, False, True),
        "the parts asked for": (model, replace(PLAN, parts=("encoder",)), FILES, False, False),
        "the config": (other, PLAN, FILES, True, True),
        "a weight of the encoder in memory": (encoder, PLAN, FILES, True, False),
        "a statistic of the encoder in memory": (statistics, PLAN, FILES, True, False),
        "a weight of the decoder in memory": (language, PLAN, FILES, False, True),
    }


@pytest.mark.long
def test_a_chain_goes_on_behind_its_last_finished_package(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while the third of four packages is made; the bytes are those of a run that nobody interrupted."""
    model, asked = small_model(layers=4), {"context": CONTEXT, "query_length": QUERY, "only": "language"}
    convert = LanguageConverter.convert

    def interrupted(self: LanguageConverter, chunk: Chunk, spec: Any) -> Any:
        if chunk.number == 3:
            raise KeyboardInterrupt
        return convert(self, chunk, spec)

    whole = api.export_model(model, tmp_path / "whole", max_file_size=130_000, **asked)
    names = [stage.package.name for stage in read_build(whole).language]
    assert len(names) == 4
    monkeypatch.setattr(LanguageConverter, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.export_model(model, tmp_path / "build", max_file_size=130_000, **asked)
    monkeypatch.setattr(LanguageConverter, "convert", convert)
    made.clear()
    build = api.export_model(model, tmp_path / "build", max_file_size=130_000, **asked)
    assert made == [*names[2:], "embeddings.bin"]
    assert hash_tree(build) == hash_tree(whole)


def test_keys_change_with_what_makes_a_part(model: Any) -> None:
    encoder, language = encoder_key(model, PLAN, FILES), language_key(model, PLAN, FILES)
    plans = replace(PLAN, image_sizes=(128, 64))
    assert encoder_key(model, replace(plans, image_sizes=(64, 128)), FILES) != encoder_key(model, plans, FILES)
    for what, (changed, plan, files, one, other) in changes(model).items():
        assert (encoder_key(changed, plan, files) != encoder) == one, what
        assert (language_key(changed, plan, files) != language) == other, what


def test_another_version_of_the_code_takes_nothing_over(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoder_key(model, PLAN, FILES), language_key(model, PLAN, FILES)
    for name, value in (("version", lambda library: "0"), ("code_digest", lambda: "other"), ("__version__", "other")):
        with monkeypatch.context() as patch:
            patch.setattr(parts_key, name, value)
            assert all(key not in before for key in (encoder_key(model, PLAN, FILES), language_key(model, PLAN, FILES)))


def test_the_code_is_told_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = Path(parts_key.__file__).parent.parent
    for room in parts_key.ROOMS:
        shutil.copytree(rooms / room, tmp_path / room, ignore=lambda _, names: [n for n in names if n == "tiny"])
    (tmp_path / "fastvlm").mkdir()
    for name in parts_key.HALL:
        shutil.copyfile(rooms / name, tmp_path / name)
    here = code_digest()
    monkeypatch.setattr(parts_key, "__file__", str(tmp_path / "export" / "parts_key.py"))
    assert code_digest() == here
    for name in ("fastvlm_ref/model/decoder.py", parts_key.HALL[-1]):
        with (tmp_path / name).open("a") as code:
            code.write("\n")
        assert code_digest() != here
        here = code_digest()
    shutil.rmtree(tmp_path / "fastvlm")
    for room in parts_key.ROOMS:
        shutil.rmtree(tmp_path / room)
    assert code_digest() != code_digest()  # without sources nothing is taken over


def test_streaming_weights_count_by_their_files() -> None:
    model = load_checkpoint("tiny", stream=True)
    assert parts_key.memory_digest([model.decoder.layers, model.decoder.embed_tokens]) == parts_key.memory_digest([])
    assert parts_key.memory_digest([torch.nn.Linear(1, 1)]) != parts_key.memory_digest([])
