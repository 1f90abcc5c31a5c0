"""Bad input: one `Error:` line that says what to do, exit code 2, nothing left behind, the checkpoint untouched."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typed import Run

from fastvlm.build import read_build
from fastvlm.hashes import hash_tree
from fastvlm.progress import SILENT
from validation.original import load_reference, open_reference


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[..., None]:
    """Types a command that must be refused with the given words, and compares everything in `tmp_path` around it."""

    def check(*words: object, says: tuple[str, ...]) -> None:
        before = hash_tree(tmp_path)
        folders = {path for path in tmp_path.rglob("*") if path.is_dir()}
        result = run(*words)
        (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
        assert line.startswith("Error: ")
        assert [word for word in says if word not in line] == [], line
        assert result.exit_code == 2
        assert result.stdout == ""
        assert hash_tree(tmp_path) == before
        assert {path for path in tmp_path.rglob("*") if path.is_dir()} == folders

    return check


Refused = Callable[..., None]


def edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_such_folder(refused: Refused, tmp_path: Path) -> None:
    refused("export", tmp_path / "absent", "-o", tmp_path / "out", says=("absent", "no such folder"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "expected"),
        ({"notes.txt": "x"}, "expected"),
        ({"config.json": "{}"}, "expected"),
        ({"config.json": "{"}, "JSON"),
    ],
)
def test_not_a_checkpoint(refused: Refused, tmp_path: Path, content: dict[str, str], says: str) -> None:
    (tmp_path / "folder").mkdir()
    for name, text in content.items():
        (tmp_path / "folder" / name).write_text(text)
    refused("export", tmp_path / "folder", "-o", tmp_path / "out", says=("folder", says))


def test_unknown_model_type(refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
    edit_config(checkpoint, model_type="gpt_5")
    refused("export", checkpoint, "-o", tmp_path / "out", says=("gpt_5", "llava_qwen2", "fast_vlm"))


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_weights(refused: Refused, checkpoint: Path, tmp_path: Path, kept: float) -> None:
    weights = checkpoint / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    refused("export", checkpoint, "-o", tmp_path / "out", says=("model.safetensors",))


def test_wrong_tokenizer(refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {f"extra{index}": size + 100 + index for index in range(50)}
    path.write_text(json.dumps(tokenizer))
    refused("export", checkpoint, "-o", tmp_path / "out", says=("288", "token"))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("text.png", b"not an image", "image"),
        ("empty.jpg", b"", "is empty (0 bytes)"),
        ("cut.png", None, "cut.png"),
    ],
)
def test_image_that_is_none(
    refused: Refused, small_checkpoint: Path, picture: Path, name: str, data: bytes | None, says: str
) -> None:
    bad = picture.with_name(name)
    bad.write_bytes(picture.read_bytes()[:80] if data is None else data)
    refused("run", small_checkpoint, bad, "What?", says=(name, says))


def test_image_that_is_absent(refused: Refused, small_checkpoint: Path, tmp_path: Path) -> None:
    refused("run", small_checkpoint, tmp_path / "absent.png", "What?", says=("absent.png", "nothing"))
    refused("run", small_checkpoint, tmp_path, "What?", says=("a folder",))


def test_heic_without_its_plugin(
    refused: Refused, small_checkpoint: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed, where it is
    photo = picture.with_name("photo.HEIC")
    photo.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    refused("run", small_checkpoint, photo, "What?", says=("photo.HEIC", "pillow-heif"))


def test_prompt_longer_than_the_context(refused: Refused, small_checkpoint: Path, build: Path, picture: Path) -> None:
    from fastvlm_ref.checkpoint import load_checkpoint
    from fastvlm_ref.prompt import encode_prompt

    question = "What?" * 200
    model = load_checkpoint(small_checkpoint)
    before, after = encode_prompt(model.tokenizer, question, model.config.prompt)
    positions = len(before) + (128 // 64) ** 2 + len(after)
    says = (
        f"takes {positions} positions", "up to 4,", f"together {positions + 4} of a context of 512", "--max-new-tokens",
    )  # fmt: skip
    words = (picture, question, "--max-new-tokens", 4)
    refused("run", small_checkpoint, *words, "--context", 512, says=(*says, "or use a larger --context"))
    refused("run", build, *words, says=(*says, "or export again with a larger --context"))


def test_image_side_beyond_the_limit(refused: Refused, small_checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    says = ("--image-size is 40960", "to 4096")
    refused("run", small_checkpoint, picture, "What?", "--image-size", 40960, says=says)
    refused("run", tmp_path / "absent", picture, "What?", "--image-size", 40960, says=says)  # before it is read


def test_logits_that_are_no_numbers(refused: Refused, build: Path, picture: Path) -> None:
    table = build / "embeddings.bin"
    table.write_bytes(b"\x00\x7e" * (table.stat().st_size // 2))  # NaN
    says = ("logits are not numbers", f"`fastvlm validate {build}`", "export again")
    refused("run", build, picture, "What?", says=says)


def test_empty_prompt(refused: Refused, small_checkpoint: Path, picture: Path) -> None:
    refused("run", small_checkpoint, picture, "", says=("prompt", "empty"))


@pytest.fixture
def large_picture(picture: Path) -> Path:
    """A picture of the size of the one that logits were published for."""
    path = picture.with_name("large.png")
    with Image.open(picture) as small:
        small.resize((640, 480)).save(path)
    return path


def test_no_picture_to_check_official_logits_with(refused: Refused, small_checkpoint: Path, picture: Path) -> None:
    check = ("check-official", small_checkpoint)
    text = picture.with_name("text.jpg")
    text.write_text("no picture")
    refused(*check, says=("--image",))
    refused(*check, "--image", "", says=("--image", "it is empty"))
    refused(*check, "--image", picture.parent, says=("a folder",))
    refused(*check, "--image", picture.with_name("absent.jpg"), says=("absent.jpg", "nothing"))
    refused(*check, "--image", text, says=("text.jpg", "is not a picture"))
    refused(*check, "--image", picture, says=("red.png is 90×60 pixels", "expected 640×480", "000000039769.jpg"))


def test_nothing_that_official_logits_belong_to(
    refused: Refused, small_checkpoint: Path, build: Path, large_picture: Path, tmp_path: Path
) -> None:
    says = (
        "no logits were published",
        "width 64",
        "0.5B: 24 layers, width 896",
        "7B: 28 layers",
        "Apple's checkpoints",
    )
    refused("check-official", small_checkpoint, "--image", large_picture, says=says)
    refused("check-official", build, "--image", large_picture, says=(f"{build} is a build", "expected a checkpoint"))
    refused("check-official", tmp_path / "absent", "--image", large_picture, says=("absent", "no such folder"))
    refused("check-official", large_picture.parent, "--image", large_picture, says=("is not a checkpoint",))


def test_empty_words(refused: Refused, build: Path, picture: Path) -> None:
    refused("run", "", picture, "What?", says=("TARGET", "it is empty"))
    refused("run", "", says=("TARGET", "it is empty"))
    refused("run", build, "", "What?", says=("IMAGE", "it is empty"))
    refused("inspect", "", says=("PACKAGE_OR_BUILD", "it is empty"))
    refused("validate", build, "--reference", "", says=("--reference", "it is empty"))
    refused("export", "", "-o", build, says=("CHECKPOINT", "it is empty"))
    refused("export", "tiny", "-o", "", says=("--output", "it is empty"))


@pytest.mark.parametrize("name", ["run", "inspect", "validate"])
def test_folder_that_may_not_be_read(
    refused: Refused, picture: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # permissions do not bind whom tests may run as
    more = (picture, "What?") if name == "run" else ()
    refused(name, picture.parent, *more, says=(f"{picture.parent} may not be read", "permissions"))


def test_output_exists(refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("folder", "file"):
        place = tmp_path / name
        place.mkdir() if name == "folder" else place.write_text("mine")
    (tmp_path / "folder" / "letter").write_text("dear")
    refused("export", checkpoint, "-o", tmp_path / "folder", says=("folder", "--overwrite"))
    refused("export", checkpoint, "-o", tmp_path / "folder", "--overwrite", says=("not made by fastvlm",))
    refused("export", checkpoint, "-o", tmp_path / "file", "--overwrite", says=("is a file",))
    refused("export", checkpoint, "-o", checkpoint, "--overwrite", says=("checkpoint",))
    refused("export", checkpoint, "-o", checkpoint / "build", says=("checkpoint",))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--image-size", "100"), "64"),
        (("--context", "100"), "32"),
        (("--template", "nosuch"), "qwen_2"),
        (("--base", "absent"), "--base is for LoRA adapters"),
    ],
)
def test_options_that_cannot_work(
    refused: Refused, checkpoint: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    refused("export", checkpoint, "-o", tmp_path / "out", *options, says=(says,))


@pytest.mark.parametrize("backend", ["mil", "coreml"])
def test_a_checkpoint_is_no_build(refused: Refused, small_checkpoint: Path, picture: Path, backend: str) -> None:
    refused("run", small_checkpoint, picture, "What?", "--backend", backend, says=("--backend", "export"))


def test_what_a_build_cannot_do(refused: Refused, build: Path, picture: Path) -> None:
    refused("run", build, picture, "What?", "--backend", "torch", says=("--backend torch",))
    refused("run", build, picture, "What?", "--template", "plain", says=("--template", "export"))
    refused("run", build, picture, "What?", "--image-size", "256", says=("256", "128"))


def damage_weights(build: Path) -> None:
    weights = build / "LanguageModel.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    weights.write_bytes(weights.read_bytes()[:-100])


def newer_schema(build: Path) -> None:
    path = build / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": "7.0"}))


def no_manifest(build: Path) -> None:
    (build / "manifest.json").unlink()


def no_package(build: Path) -> None:
    shutil.rmtree(build / "VisionEncoder.mlpackage")


def link_outside(build: Path) -> None:
    (build / "embeddings.bin").unlink()
    (build / "embeddings.bin").symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_weights, "weight.bin"),
        (newer_schema, "schema 7.0"),
        (no_manifest, "manifest.json"),
        (no_package, "VisionEncoder.mlpackage"),
    ],
)
def test_damaged_build(
    refused: Refused, build: Path, small_checkpoint: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(build)
    refused("validate", build, "--reference", small_checkpoint, says=(says,))


def test_link_out_of_a_build(run: Run, build: Path, small_checkpoint: Path) -> None:
    link_outside(build)
    result = run("validate", build, "--reference", small_checkpoint)
    assert result.exit_code == 2
    assert "is a link" in result.stderr


def test_reference_that_is_another(refused: Refused, build: Path, checkpoint: Path, picture: Path) -> None:
    edit_config(checkpoint, unheard_of=1)
    says = ("config.json", "not what this build was made from", "--other-reference")
    refused("validate", build, "--reference", checkpoint, "--images", picture.parent, says=says)


def test_reference_of_other_sizes_is_not_read(
    refused: Refused, build: Path, checkpoint: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(checkpoint, unheard_of=1)
    monkeypatch.setattr("validation.original.load_checkpoint", lambda *_, **__: pytest.fail("it was read"))
    says = ("config.json differ", "not what this build was made from")
    refused("validate", build, "--reference", checkpoint, "--images", picture.parent, says=says)


def test_reference_of_the_same_sizes(refused: Refused, build: Path, checkpoint: Path, picture: Path) -> None:
    path = checkpoint / "config.json"
    path.write_text(path.read_text().replace(": ", " :", 1))
    says = ("config.json differ", "not what this build was made from")
    refused("validate", build, "--reference", checkpoint, "--images", picture.parent, says=says)


def test_changed_texts_are_the_same_reference(build: Path, checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("my notes\n")
    (checkpoint / "LICENSE").write_text("as before\n")
    (checkpoint / "prompts.json").write_text('[{"title": "a", "text": "b"}]')
    opened = read_build(build)
    source = open_reference(opened, checkpoint, SILENT, {}, other=False)
    model, *_ = load_reference(opened, source, SILENT, other=False, stream=False)
    assert model.source.folder == checkpoint


def test_reference_left_out(refused: Refused, build: Path, picture: Path) -> None:
    refused("validate", build, "--images", picture.parent, says=("--reference CHECKPOINT",))


def test_pictures_that_are_none(refused: Refused, build: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    refused("validate", build, "--reference", small_checkpoint, "--images", tmp_path / "absent", says=("--images",))


def test_questions_with_bad_lines(
    refused: Refused, build: Path, small_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"image": "pictures/red.png", "prompt": "What?"}\n{"image": "gone.png", "prompt": "What?"}\n[')
    says = ("questions.jsonl", "line 2: no picture at gone.png", "line 3: not JSON")
    refused("validate", build, "--reference", small_checkpoint, "--questions", path, says=says)
    words = ("validate", build, "--reference", small_checkpoint)
    refused(*words, "--questions", tmp_path / "absent", says=("--questions", "is not a file"))
    refused(*words, "--questions", "", says=("--questions", "it is empty"))
    refused(*words, "--questions", path, "--images", picture.parent, says=("--images and --questions",))
    path.write_text('{"image": "questions.jsonl", "prompt": "What?"}')
    refused(*words, "--questions", path, says=("questions.jsonl is not a picture",))


def test_another_reference_of_another_shape(refused: Refused, build: Path) -> None:
    says = ("another shape", "text.hidden_size 192, the build 64")
    refused("validate", build, "--reference", "tiny", "--other-reference", says=says)


@pytest.mark.parametrize("name", ["pictures/red.png", "build/embeddings.bin", "build/manifest.json"])
def test_a_file_to_inspect(refused: Refused, build: Path, picture: Path, tmp_path: Path, name: str) -> None:
    refused("inspect", tmp_path / name, says=(name, "is a file, expected a package or a build folder"))


@pytest.mark.parametrize("name", ["absent", "checkpoint"])
def test_nothing_to_inspect(refused: Refused, checkpoint: Path, tmp_path: Path, name: str) -> None:
    refused("inspect", tmp_path / name, says=(name, "fastvlm export"))


def test_no_manifest_makes_inspect_fail_inside(run: Run, build: Path) -> None:
    """Whatever stands in a field, inspect shows it or refuses it; it never calls it a fault of its own."""
    path = build / "manifest.json"
    manifest = json.loads(path.read_text())
    fields = [(name,) for name in manifest]
    nested = ("source", "image", "prompt", "packages", "compression")
    fields += [(name, inner) for name in nested for inner in manifest[name]]
    faults = []
    for field in fields:
        for value in (5, {"a": 1}):
            changed = json.loads(json.dumps(manifest))
            (changed if len(field) == 1 else changed[field[0]])[field[-1]] = value
            path.write_text(json.dumps(changed))
            result = run("inspect", build)
            if result.exit_code not in (0, 2):
                faults.append((field, value, result.stderr))
    assert faults == []


def test_a_context_whose_mask_no_host_makes(refused: Refused, tmp_path: Path) -> None:
    says = ("--context 262208", "the longest is --context 262144")
    refused("export", "tiny", "-o", tmp_path / "out", "--context", 262208, says=says)


def test_a_recipe_that_was_cut_to_nothing(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("\n")
    says = ("recipe.yaml states nothing",)
    refused("export", "tiny", "-o", tmp_path / "out", "--quantize", tmp_path / "recipe.yaml", says=says)


def test_words_that_are_no_text(refused: Refused, tiny: Path) -> None:
    picture = next((tiny / "pictures").glob("*.png"))
    refused("run", "tiny", picture, "caf\udce9", says=("PROMPT", "no text in UTF-8"))
    refused("run", "tiny", picture, "what", "--then", "caf\udce9", says=("--then", "no text in UTF-8"))


def test_a_chat_template_of_another_kind(run: Run, tiny: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny, tmp_path / "checkpoint"))
    (checkpoint / "chat_template.jinja").write_text("{{ '<|start_header_id|>' }}")
    result = run("run", checkpoint, next((tiny / "pictures").glob("*.png")), "what", "--max-new-tokens", "1")
    assert "a chat template that is none of those known (give one by --template): qwen_2 assumed" in result.stderr
