"""What a bundle holds: its layout, its metadata as Apple's readers expect it, tables, texts, licences."""

from __future__ import annotations

import json
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest

from fastvlm.app_limits import APP_LIMIT
from fastvlm.hashes import file_hash, sha256_file
from fastvlm.licences import APPLE, APPLE_SENTENCE
from fastvlm.manifest import read_manifest, write_manifest
from fastvlm.mlpackage import MODEL_FILE, WEIGHT_FILE, canonical_manifest
from fastvlm.progress import SILENT
from fastvlm.prompts import read_prompts
from ios_bundle import bundle, verify
from ios_bundle.contents import Entry
from ios_bundle.copying import copy_entries
from ios_bundle.layout import COMPILED, PACKAGE, bundle_name
from ios_bundle.metadata import read_metadata

PACKAGE_FILES = ("Manifest.json", MODEL_FILE, WEIGHT_FILE)
EXPECTED = {
    "metadata.json", "checksums.json", "preprocess.json", "generation.json", "prompts.json", "MODEL_CARD.md",
    "embeddings/embed.bin", "scripts/compile_models.sh", "LICENSES/DERIVATIVE.txt", "LICENSES/LICENSE",
    *(f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")),
    *(f"selftest/{name}" for name in ("picture.png", "photo.png", "features.bin", "selftest.json")),
    *(f"models/{package}.mlpackage/{file}" for package in ("VisionEncoder", "LanguageModel") for file in PACKAGE_FILES),
}  # fmt: skip
# What Apple's Swift decodes without a default (ModelBundle, LanguageConfig, VisionConfig of coreai-models 0.2).
APPLES = {
    "metadata_version": str, "kind": str, "name": str, "assets": dict, "language.tokenizer": str,
    "language.vocab_size": int, "language.max_context_length": int, "vision.image_size": int, "vision.patch_size": int,
    "vision.image_token_count": int, "vision.image_token_id": int,
}  # fmt: skip

Edit = Callable[[dict[str, Any]], None]


def edited(build: Path, edit: Edit) -> Path:
    """A build whose manifest says something else: no verdict stands for it any more."""
    manifest = read_manifest(build)
    edit(manifest)
    write_manifest(build / "manifest.json", manifest)
    return build


def text_of(folder: Path, name: str) -> str:
    return (folder / name).read_text("utf-8")


def test_the_layout_is_the_documented_one(tiny_bundle: Path) -> None:
    files = {path.relative_to(tiny_bundle).as_posix(): path for path in tiny_bundle.rglob("*") if path.is_file()}
    assert files.keys() == EXPECTED
    assert verify(tiny_bundle).whole
    programs = {name for name, path in files.items() if path.stat().st_mode & stat.S_IXUSR}
    assert programs == {"scripts/compile_models.sh"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tiny_bundle.rglob("*")} == {0o644, 0o755}


def test_metadata_holds_what_apples_reader_requires(tiny_bundle: Path) -> None:
    metadata = read_metadata(tiny_bundle)
    for path, kind in APPLES.items():
        value: Any = metadata
        for key in path.split("."):
            value = value[key]
        assert type(value) is kind, path
    assert (metadata["metadata_version"], metadata["kind"]) == ("0.2", "vlm")
    assert all(isinstance(asset, str) for asset in metadata["assets"].values())
    assert metadata["vision"]["image_strategy"] == "pad"


def test_assets_are_stems_that_lead_to_packages(tiny_bundle: Path) -> None:
    metadata = read_metadata(tiny_bundle)
    stems = {metadata["assets"][role] for role in ("main", "vision")} | {
        each["asset"] for each in metadata["language"]["chain"]
    }
    for stem in stems:
        assert not stem.endswith((PACKAGE, COMPILED))
        assert (tiny_bundle / f"{stem}{PACKAGE}").is_dir()


def test_metadata_tells_how_to_run_what_the_manifest_told(tiny_bundle: Path, validated_tiny: Path) -> None:
    metadata, manifest = read_metadata(tiny_bundle), read_manifest(validated_tiny)
    stage = metadata["language"]["chain"][0]
    assert {**stage["functions"], "state": stage["state"]} == manifest["functions"]["language"][0]
    encoder = metadata["vision"]["functions"]["encode_256"]
    assert encoder["inputs"] == manifest["functions"]["encoder"]["encode_256"]["inputs"]
    assert metadata["prompt"] == {**manifest["prompt"], "bos_id": None}
    assert metadata["profiles"] == [
        {"name": "256", "function": "encode_256", "image_size": 256, "image_tokens": 16, "context": 2048,
         "text_positions": 2032, "max_new_tokens": 256}
    ]  # fmt: skip
    assert metadata["bundle"]["manifest_sha256"] == sha256_file(validated_tiny / "manifest.json")


def test_metadata_carries_the_verdict_with_its_limits(tiny_bundle: Path, validated_tiny: Path) -> None:
    stated = read_metadata(tiny_bundle)["validation"]
    limits = json.loads(text_of(validated_tiny, "validation.json"))["limits"]
    assert stated["verdict"] == "passed"
    assert [row["value"] for row in stated["limits"]] == [row["value"] for row in limits]


def test_packages_are_canonical(tiny_bundle: Path) -> None:
    for package in tiny_bundle.glob("models/*.mlpackage"):
        hashes = (sha256_file(package / name) for name in (MODEL_FILE, WEIGHT_FILE))
        assert text_of(package, "Manifest.json") == canonical_manifest(*hashes)


def test_packages_that_another_tool_saved_become_canonical(validated: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """As Xcode or coremltools leave one: the same items under random ids."""
    path = validated / "VisionEncoder.mlpackage" / "Manifest.json"
    content = json.loads(path.read_text("utf-8"))
    for key in list(content["itemInfoEntries"]):
        other = str(uuid.uuid4()).upper()
        content["itemInfoEntries"][other] = content["itemInfoEntries"].pop(key)
        if content["rootModelIdentifier"] == key:
            content["rootModelIdentifier"] = other
    path.write_text(json.dumps(content), "utf-8")
    made = bundle(validated, tmp_path / "out", unvalidated=True)
    for package in ("VisionEncoder", "LanguageModel"):
        name = f"models/{package}.mlpackage/Manifest.json"
        assert text_of(made, name) == text_of(tiny_bundle, name)


def test_stop_ids_are_the_checkpoints_and_the_templates(validated: Path, tmp_path: Path) -> None:
    """A checkpoint that states none still ends where its template does."""

    def forget(manifest: dict[str, Any]) -> None:
        manifest["prompt"]["stop_ids"] = [7]

    made = bundle(edited(validated, forget), tmp_path / "out", unvalidated=True)
    assert json.loads(text_of(made, "generation.json"))["stop_ids"] == [7, 556, 558]
    assert read_metadata(made)["prompt"]["stop_ids"] == [7, 556, 558]


def test_an_answer_is_as_long_as_a_small_context_allows(validated: Path, tmp_path: Path) -> None:
    """96 positions, 16 for the picture, 26 at most for a ready-made prompt: a default of 256 would refuse them all."""
    longest = max(prompt.count for prompt in read_prompts(validated / "prompts.json"))
    shorten: Edit = lambda manifest: manifest.update(context=96)  # noqa: E731
    made = bundle(edited(validated, shorten), tmp_path / "out", unvalidated=True)
    assert json.loads(text_of(made, "generation.json"))["max_new_tokens"] == 96 - 16 - longest
    assert read_metadata(made)["profiles"][0]["max_new_tokens"] == 96 - 16 - longest


def test_an_int8_table_is_split_into_codes_and_scales(validated: Path, tmp_path: Path) -> None:
    rows, width = 576, 192
    codes = np.arange(rows * width, dtype=np.int64).astype(np.int8)
    scales = np.linspace(0.01, 1, rows).astype(np.float16)
    (validated / "embeddings.bin").write_bytes(codes.tobytes() + scales.tobytes())

    def compress(manifest: dict[str, Any]) -> None:
        manifest["embeddings"] |= {"dtype": "int8", "scales": {"dtype": "float16", "offset": rows * width}}
        manifest["compression"]["embeddings"] = "int8"
        manifest["files"]["embeddings.bin"] = file_hash(validated / "embeddings.bin")

    made = bundle(edited(validated, compress), tmp_path / "out", unvalidated=True)
    assert (made / "embeddings/embed.bin").read_bytes() == codes.tobytes()
    assert (made / "embeddings/scales.bin").read_bytes() == scales.tobytes()
    assert read_metadata(made)["embedding"]["scales"] == {"file": "embeddings/scales.bin", "dtype": "float16"}
    assert verify(made).whole


def test_pieces_of_a_table_are_held_to_the_whole(validated: Path, tmp_path: Path) -> None:
    """What was copied in two is hashed as one: another code in the copy is a change."""
    (tmp_path / "out").mkdir()
    pieces = [Entry("codes", "embeddings.bin", length=1000), Entry("scales", "embeddings.bin", start=1000)]
    promised = {"embeddings.bin": sha256_file(validated / "embeddings.bin")}
    assert copy_entries(validated, tmp_path / "out", pieces, promised, SILENT)[1] == []
    assert copy_entries(validated, tmp_path / "out", pieces[:1] + pieces[:1], promised, SILENT)[1] == ["embeddings.bin"]


@pytest.mark.parametrize("system", ["Be brief.", 'It\'s "quoted" \\ and\nlong', ""])
@pytest.mark.parametrize("turn", [None, "Be kind."])
def test_a_missing_chat_template_is_made_of_the_prompt_rule(
    system: str, turn: str | None, validated: Path, tmp_path: Path
) -> None:
    (validated / "tokenizer/chat_template.jinja").unlink()

    def tell(manifest: dict[str, Any]) -> None:
        manifest["prompt"]["system"] = system
        del manifest["files"]["tokenizer/chat_template.jinja"]

    made = bundle(edited(validated, tell), tmp_path / "out", unvalidated=True)
    messages = [{"role": "user", "content": "What's {prompt}?"}]
    if turn is not None:
        messages.insert(0, {"role": "system", "content": turn})
    rendered = jinja2.Template(text_of(made, "tokenizer/chat_template.jinja")).render(messages=messages)
    said = turn or system
    before = f"<|im_start|>system\n{said}<|im_end|>\n" if said else ""
    turns = "<|im_start|>user\n<image>\nWhat's {prompt}?<|im_end|>\n<|im_start|>assistant\n"
    assert rendered == before + turns


def test_a_chat_template_inside_the_config_is_written_out(validated: Path, tmp_path: Path) -> None:
    (validated / "tokenizer/chat_template.jinja").unlink()
    config = json.loads(text_of(validated, "tokenizer/tokenizer_config.json"))
    (validated / "tokenizer/tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ 1 }}"}))
    drop: Edit = lambda manifest: manifest["files"].pop("tokenizer/chat_template.jinja")  # noqa: E731
    made = bundle(edited(validated, drop), tmp_path / "out", unvalidated=True)
    assert text_of(made, "tokenizer/chat_template.jinja") == "{{ 1 }}"


def test_the_checkpoints_licence_goes_along(tiny_bundle: Path, root: Path) -> None:
    assert text_of(tiny_bundle, "LICENSES/LICENSE") == text_of(root, "LICENSE")
    for name in ("MODEL_CARD.md", "LICENSES/DERIVATIVE.txt"):
        assert "derivative of tiny" in text_of(tiny_bundle, name)
        assert "converted to Core ML packages" in text_of(tiny_bundle, name)


@pytest.mark.parametrize(
    ("licence", "said"), [(APPLE, APPLE_SENTENCE), ("unknown", "Licence unknown"), ("llama2", "llama2")]
)
def test_a_licence_is_said_and_never_guessed(licence: str, said: str, validated: Path, tmp_path: Path) -> None:
    say: Edit = lambda manifest: manifest.update(licence=licence)  # noqa: E731
    made = bundle(edited(validated, say), tmp_path / "out", unvalidated=True)
    assert said in text_of(made, "MODEL_CARD.md")
    assert said in text_of(made, "LICENSES/DERIVATIVE.txt")
    assert read_metadata(made)["licence"]["name"] == licence


def test_a_strangers_words_cannot_write_the_card(validated: Path, tmp_path: Path) -> None:
    say: Edit = lambda manifest: manifest["source"].update(id="x](http://evil)\n# <script>")  # noqa: E731
    made = bundle(edited(validated, say), tmp_path / "out", unvalidated=True)
    card = text_of(made, "MODEL_CARD.md")
    assert "<script>" not in card
    assert "](" not in card
    assert read_metadata(made)["name"].isascii()


def test_sizes_stand_beside_the_limit_of_an_app(tiny_bundle: Path) -> None:
    size = read_metadata(tiny_bundle)["size"]
    files = [path for path in tiny_bundle.rglob("*") if path.is_file()]
    sealed = sum(path.stat().st_size for path in files if path.name not in ("metadata.json", "checksums.json"))
    assert size == {"bytes": sealed, "app_limit_bytes": APP_LIMIT, "fits_app": True}
    assert "4 GB that an app may have" in text_of(tiny_bundle, "MODEL_CARD.md")


def test_memory_is_the_sum_of_its_parts_beside_what_phones_give(tiny_bundle: Path) -> None:
    memory = read_metadata(tiny_bundle)["memory"]
    weights = sum(path.stat().st_size for path in tiny_bundle.glob(f"models/*/{WEIGHT_FILE}"))
    assert memory["of"]["weights"] == weights
    assert memory["of"]["state"] == 2 * 8 * 2 * 32 * 2048
    assert memory["need_bytes"] == sum(memory["of"].values())
    assert [row["memory_gb"] for row in memory["device_classes"]] == [4, 6, 8]


@pytest.mark.parametrize(
    ("source", "name"),
    [("apple/FastVLM-0.5B", "FastVLM-0.5B-1024"), ("./tiny", "tiny-1024"), ("Grüße & mehr", "Gr-e-mehr-1024"),
     ("…", "FastVLM-1024"), ("../../etc", "etc-1024")],
)  # fmt: skip
def test_the_name_is_plain_whatever_the_source_is_called(source: str, name: str) -> None:
    assert bundle_name(source, (1024,)) == name


def test_the_name_says_what_is_out_of_the_ordinary(validated: Path, tmp_path: Path) -> None:
    def tell(manifest: dict[str, Any]) -> None:
        manifest.update(target="gpu", context=1024)
        manifest["compression"]["scheme"] = "int8"

    made = bundle(edited(validated, tell), tmp_path / "out", unvalidated=True)
    assert read_metadata(made)["name"] == "tiny-256-int8-gpu-c1024"
