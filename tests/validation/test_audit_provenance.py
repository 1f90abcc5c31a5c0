"""The audit of licence, origin, tokenizer files and what is said of compression: found, named, no false alarm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_builds import Builds, red, tiny
from package_edits import manifest

from fastvlm.build import read_build
from fastvlm_ref.checkpoint import load_checkpoint
from validation.audit.findings import CONSTANTS, Findings
from validation.audit.provenance import hold_provenance
from validation.pair import Pair

NAMES = {"decoder.embed_tokens.weight", "decoder.layers.0.mlp.up_proj.weight"}
Edit = Callable[[Path], None]


def found(pair: Pair) -> list[str]:
    """Every sentence that this part of the audit has to say."""
    findings = Findings()
    hold_provenance(pair, NAMES, findings)
    return list(findings.counts.get(CONSTANTS, {}))


def told(path: str, value: Any = None) -> Edit:
    """Sets a field of the manifest, or takes it away."""

    def edit(build: Path) -> None:
        with manifest(build) as content:
            *parents, leaf = path.split(".")
            place = content
            for name in parents:
                place = place[name]
            place[leaf] = value
            if value is None:
                del place[leaf]

    return edit


def file(name: str, text: str | None) -> Edit:
    """Writes a file of the build, or takes it away."""

    def edit(build: Path) -> None:
        (build / name).unlink(missing_ok=True)
        if text is not None:
            (build / name).write_text(text)

    return edit


def _both(*edits: Edit) -> Edit:
    def edit(build: Path) -> None:
        for each in edits:
            each(build)

    return edit


PLANTED: dict[str, tuple[Edit, str]] = {
    "licence": (
        _both(told("licence", "mit"), told("licence_text", "mit")), "manifest.json: licence is mit, expected apache-2.0"
    ),
    "licence text": (
        told("licence_text", "mit"), "manifest.json: licence_text is mit, expected apache-2.0"
    ),
    "no licence text": (told("licence_text"), "manifest.json: licence_text is None, expected apache-2.0"),
    "another LICENSE": (
        file("licence/LICENSE", "MIT"),
        "licence/LICENSE is another text than the checkpoint's, by its hash in source.files",
    ),
    "no LICENSE": (file("licence/LICENSE", None), "licence/LICENSE is missing, which the checkpoint had"),
    "no LICENSE of a base": (
        told("source.files.base/LICENSE", {"sha256": "0" * 64, "bytes": 1}),
        "licence/base/LICENSE is missing, which the checkpoint had",
    ),
    "a LICENSE more": (file("licence/COPYING", "MIT"), "licence/COPYING is no text of the checkpoint's"),
    "scheme": (
        told("compression.scheme", "int4"),
        "manifest.json: compression.scheme is int4, expected what most layers have: ",
    ),
    "no scheme": (
        told("compression.scheme", ["int4"]),
        "manifest.json: compression.scheme is ['int4'], expected one of fp16, int8, int4, lut6, lut4, mixed, recipe",
    ),
    "saturated nowhere": (
        told("saturated", {"a": 1}), "manifest.json: saturated names a, expected a parameter of this model"
    ),
    "saturated none": (
        told("saturated", {"decoder.embed_tokens.weight": 0}),
        "manifest.json: saturated.decoder.embed_tokens.weight is 0, expected how many of its values were clamped",
    ),
    "saturated unknown": (
        told("saturated"),
        "manifest.json: saturated is None, expected weights with how many of their values were clamped",
    ),
    "revision": (told("source.revision", "deadbeef"), "manifest.json: source.revision is deadbeef, expected None"),
    "layout": (told("source.layout", "mlx"), "manifest.json: source.layout is mlx, expected llava"),
    "chat template": (
        file("tokenizer/chat_template.jinja", "{{ messages }}"),
        "tokenizer/chat_template.jinja is otherwise than the checkpoint's tokenizer has it",
    ),
    "tokenizer_config": (
        file("tokenizer/tokenizer_config.json", "{}"),
        "tokenizer/tokenizer_config.json is otherwise than the checkpoint's tokenizer has it",
    ),
    "no merges": (
        file("tokenizer/merges.txt", None), "tokenizer/merges.txt is missing, which the checkpoint's tokenizer has"
    ),
    "another file": (
        file("tokenizer/chat_template.json", "{}"),
        "tokenizer/chat_template.json is no file of the checkpoint's tokenizer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_named(tiny_build: Path, name: str) -> None:
    edit, says = PLANTED[name]
    edit(tiny_build)
    assert found(Pair(read_build(tiny_build), tiny())) == [says]


def test_it_is_a_row_of_the_audit(tiny_build: Path) -> None:
    told("licence_text", "mit")(tiny_build)
    ((key, subject),) = red(Pair(read_build(tiny_build), tiny())).items()
    assert (key, subject) == (CONSTANTS, "manifest.json: licence_text is mit, expected apache-2.0")


@pytest.mark.parametrize("schema", ["0.1", "0.2"])
def test_an_older_build_lacks_what_was_not_written_then(tiny_build: Path, schema: str) -> None:
    shutil.rmtree(tiny_build / "licence")
    (tiny_build / "tokenizer" / "chat_template.jinja").unlink()
    told("licence_text")(tiny_build)
    told("saturated")(tiny_build)
    told("schema", schema)(tiny_build)
    assert found(Pair(read_build(tiny_build), tiny())) == []
    file("tokenizer/chat_template.jinja", "{{ messages }}")(tiny_build)
    assert len(found(Pair(read_build(tiny_build), tiny()))) == 1


# The checkpoint's folder afterwards


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint."""
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "prompts.json", "NOTICE"])
def test_a_text_that_changed_since_is_nobody_s_fault(exported_tiny: Path, folder: Path, name: str) -> None:
    text = '{"prompts": [{"title": "A", "text": "What?"}]}' if name.endswith("json") else "MIT"
    (folder / name).write_text(text)
    assert found(Pair(read_build(exported_tiny), load_checkpoint(folder))) == []


def test_a_folder_by_another_name_is_the_same_checkpoint(exported_tiny: Path, folder: Path) -> None:
    assert found(Pair(read_build(exported_tiny), load_checkpoint(folder))) == []


def test_tokenizer_files_that_the_export_made(folder: Path, tiny_build: Path) -> None:
    """Of a checkpoint without tokenizer.json: as they are, as another version may write them, and with a fault."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    model = load_checkpoint(folder)
    assert model.tokenizer is not None
    shutil.rmtree(tiny_build / "tokenizer")
    model.tokenizer.save(tiny_build / "tokenizer")
    pair = Pair(read_build(tiny_build), model)
    assert found(pair) == []
    path = tiny_build / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content, indent=2), "utf-8")
    assert found(pair) == []
    content["added_tokens"][0]["special"] = not content["added_tokens"][0]["special"]
    path.write_text(json.dumps(content), "utf-8")
    assert found(pair) == ["tokenizer/tokenizer.json is otherwise than the checkpoint's tokenizer has it"]


@pytest.mark.parametrize("name", ["int8", "int4", "mixture"])
def test_compressed_builds_say_what_they_are(builds: Builds, tmp_path: Path, name: str) -> None:
    assert found(builds.pair(name)) == []
    for scheme in {"fp16", "lut4", "int8", "int4"} - {name}:
        if name != "mixture" or scheme != "int8":
            (sentence,) = found(builds.edited(name, tmp_path / scheme, told("compression.scheme", scheme)))
            assert sentence.startswith(f"manifest.json: compression.scheme is {scheme}, ")


def test_an_encoder_for_an_app(exported_app: Path, app_build: Path) -> None:
    assert found(Pair(read_build(exported_app), tiny())) == []
    file("licence/LICENSE", "MIT")(app_build)
    assert len(found(Pair(read_build(app_build), tiny()))) == 1
