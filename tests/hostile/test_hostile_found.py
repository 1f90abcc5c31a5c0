"""Files that were once followed, waited for or read without end: each is a named error within two seconds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from ordeal import Case, in_lines, try_all
from safetensors.torch import save_file
from test_hostile_adapter import adapter_files

from export.compression.recipe_text import read_text
from fastvlm.build import read_build
from fastvlm.cli import cli
from fastvlm.errors import CheckpointError, FastVLMError
from fastvlm_ref.checkpoint import load_checkpoint, tensors
from fastvlm_ref.checkpoint.folder import INDEX, open_folder
from fastvlm_ref.checkpoint.lora import OTHERS, open_adapter
from fastvlm_ref.image import open_image
from fastvlm_ref.prompt import template_option
from fastvlm_ref.questions import read_questions
from fastvlm_ref.samples import samples_in
from fastvlm_ref.tokenizer import load_tokenizer
from fastvlm_ref.training.rows import read_rows
from validation.bundle_host.host import Host
from validation.bundle_selftest import run_selftest
from validation.html_report.files import read_report
from validation.session import open_session
from validation.sweep.spec import read_spec

SECRET = "what nobody may copy"
LONG = "x" * 300
COPIED = ("special_tokens_map.json", "tokenizer.model", "LICENSE", "README.md", "chat_template.jinja", "merges.txt")


def all_named(cases: list[Case], seconds: float = 2.0) -> None:
    outcomes = try_all(cases, seconds)
    bad = [outcome for outcome in outcomes if outcome.kind != "named"]
    assert not bad, in_lines(bad)


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint without its pictures, beside a secret."""
    (tmp_path / "secret").write_text(SECRET)
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("pictures")))


@pytest.mark.parametrize("name", COPIED)
def test_a_link_in_a_checkpoint_is_told_before_it_is_copied(checkpoint: Path, name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(checkpoint, 1 << 16)
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=f"{name} is a link or no plain file"):
        load_checkpoint(checkpoint)
    tokenizer.files = (checkpoint / name,)  # exchanged behind the load
    with pytest.raises(CheckpointError, match="is a link"):
        tokenizer.save(tmp_path / "out")
    assert not any(SECRET in file.read_text("utf-8", "replace") for file in (tmp_path / "out").rglob("*"))


def test_files_of_a_checkpoint_that_wait(checkpoint: Path) -> None:
    def pipe(name: str) -> Callable[[], object]:
        def run() -> object:
            os.mkfifo(checkpoint / name)
            try:
                return open_folder(checkpoint)
            finally:
                (checkpoint / name).unlink()

        return run

    (checkpoint / "model.safetensors").rename(checkpoint / "other.safetensors")
    all_named([("beside the weights", pipe("more.safetensors"))])
    (checkpoint / "other.safetensors").unlink()
    all_named([("in their place", pipe("model.safetensors")), ("with an index", pipe(INDEX))])


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".safetensors", "config.json", "é.safetensors", "C:x", "a\0", "/dev/zero", "x ", "." * 5000]
)
def test_shards_of_no_sense(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "one.safetensors")
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError) as caught:
        open_folder(checkpoint)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def snapshot(tiny: Path, place: Path) -> Path:
    """The embedded checkpoint as the Hub's cache holds one."""
    folder, blobs = place / "models--o--n" / "snapshots" / ("a" * 40), place / "models--o--n" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in tiny.iterdir() if path.is_file())):
        name = f"{number:040x}" if number % 2 else f"{number:064x}"
        shutil.copyfile(file, blobs / name)
        (folder / file.name).symlink_to(f"../../blobs/{name}")
    return folder


def test_the_hub_s_cache_is_read_and_nothing_like_it(tiny: Path, tmp_path: Path) -> None:
    folder = snapshot(tiny, tmp_path)
    (tmp_path / "user").symlink_to(folder)
    expected = load_checkpoint(tiny).state_dict()
    for place in (folder, tmp_path / "user"):
        found = load_checkpoint(place)
        assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
        assert found.source is not None
        assert found.source.files().keys() >= {"config.json", "model.safetensors"}
    target = folder / os.readlink(folder / "config.json")
    for text in (f"../../blobs/{'b' * 40}", "../../blobs/x", f"../../../blobs/{target.name}", str(target.resolve())):
        (folder / "config.json").unlink()
        shutil.copyfile(target, tmp_path / "kept") if not text.endswith("b" * 40) else None
        if text.endswith("b" * 40):
            (target.parent / ("b" * 40)).symlink_to(target)  # a blob is a file
        (folder / "config.json").symlink_to(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_checkpoint(folder)
    elsewhere = tmp_path / "not-snapshots" / "revision"
    elsewhere.parent.mkdir()
    shutil.copytree(folder, elsewhere, symlinks=True)
    shutil.copytree(target.parent, tmp_path / "blobs", symlinks=True)
    with pytest.raises(CheckpointError, match="is a link"):
        load_checkpoint(elsewhere)


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "prompts.json"])
def test_side_files_that_wait_or_lead_nowhere(checkpoint: Path, name: str) -> None:
    """They go along with a build: what is not read of them would be lost without a word."""
    (checkpoint / name).unlink(missing_ok=True)
    for make in (os.mkfifo, lambda file: file.symlink_to("nothing")):
        make(checkpoint / name)
        with pytest.raises(CheckpointError, match=rf"{name} is a link or no plain file"):
            load_checkpoint(checkpoint)
        (checkpoint / name).unlink()


def test_a_cache_whose_files_are_gone_says_what_to_do(tiny: Path, tmp_path: Path) -> None:
    folder = snapshot(tiny, tmp_path)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to(f"../../blobs/{'c' * 40}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja .* leads nowhere: fetch the checkpoint again"):
        load_checkpoint(folder)


def test_an_adapter_s_other_tensors_are_not_passed_by(tmp_path: Path) -> None:
    """Without them the projector would be the base's."""
    for name, data in adapter_files().items():
        if name not in OTHERS:
            (tmp_path / name).write_bytes(data)
    open_adapter(tmp_path, False)
    for make in (os.mkfifo, lambda file: file.symlink_to("nothing")):
        make(tmp_path / OTHERS[0])
        with pytest.raises(CheckpointError, match=OTHERS[0]):
            open_adapter(tmp_path, False)
        (tmp_path / OTHERS[0]).unlink()


def test_header_and_values_are_those_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"w": torch.ones(4096)}, file)
    save_file({"w": torch.zeros(4096)}, other)
    read = tensors.header_of

    def exchanged(path: Path, *opened: Any) -> Any:
        found = read(path, *opened)
        other.replace(path)
        return found

    monkeypatch.setattr(tensors, "header_of", exchanged)
    assert tensors.TensorFile(file).tensors["w"].read().eq(1).all()


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1 << 20)}, tmp_path / "a.safetensors")
    held = tensors.TensorFile(tmp_path / "a.safetensors").tensors["w"]
    os.truncate(tmp_path / "a.safetensors", 4096)
    with pytest.raises(CheckpointError, match="became shorter"):
        held.read()


def typed(*words: str) -> Callable[[], object]:
    """A command that must end by itself, with an answer or a named error."""

    def run() -> object:
        result = CliRunner().invoke(cli, words)
        assert result.exit_code in (0, 1, 2), result.output
        raise FastVLMError(str(result.exit_code))

    return run


@pytest.mark.parametrize("kind", ["pipe", "endless", "nested"])
def test_a_verdict_that_waits_or_has_no_end(tiny_build: Path, kind: str) -> None:
    file = tiny_build / "validation.json"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    else:
        file.write_text("[" * 100_000)
    all_named([(kind, typed("inspect", str(tiny_build)))])


def test_tokenizer_files_of_a_build_are_its_own(tiny_build: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = tiny_build / "tokenizer" / name
        file.rename(tmp_path / name)
        file.symlink_to(tmp_path / name)
        with pytest.raises(CheckpointError, match="is a link"):
            open_session(tiny_build)
        file.unlink()
        (tmp_path / name).rename(file)


def test_reports_that_wait_or_take_minutes(tmp_path: Path) -> None:
    for name in ("pipe.html", "pipe.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "page.html").write_text("<" * (60 << 20))
    (tmp_path / "many.html").write_text("<script " * (4 << 20))
    all_named([(name, lambda name=name: read_report(tmp_path / name)) for name in os.listdir(tmp_path)], 5.0)


NUMBERS: dict[str, tuple[str, Any]] = {
    "image token": ("prompt.image_token_id", "x"), "protection": ("protection", 3), "context": ("context", 1 << 24),
    "head": ("model.text.head_dim", 1 << 24), "side": ("image.sizes", [1 << 24]), "query": ("query_length", 1 << 16),
}  # fmt: skip


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_of_a_manifest_are_refused_before_they_cost(tiny_build: Path, what: str) -> None:
    path, value = NUMBERS[what]
    put(tiny_build / "manifest.json", path, value)
    all_named([(what, lambda: read_build(tiny_build))], 1.0)


def put(file: Path, path: str, value: Any) -> None:
    """Sets what lies at a dotted path of a JSON file."""
    content = json.loads(file.read_text())
    at: Any = content
    *way, last = path.split(".")
    for key in way:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[last] = value
    file.write_text(json.dumps(content))


HOST: dict[str, tuple[str, Any]] = {
    "context": ("language.max_context_length", 1 << 24), "head": ("language.head_dim", 1 << 24),
    "side": ("profiles.0.image_size", 1 << 24), "chunk": ("language.prefill_chunk_size", 1 << 24),
    "places": ("prompt.after", "{prompt}" * 100_000), "turn": ("prompt.before", "x" * 100_000),
}  # fmt: skip
SELFTEST: dict[str, tuple[str, Any]] = {
    "no answer": ("greedy_ids", []), "prompt": ("prompt", 3), "side 0": ("photo.pixels_sha256", {"0": ""}),
    "large side": ("photo.pixels_sha256", {"100000": ""}), "no side": ("photo.pixels_sha256", {"x": ""}),
    "endless": ("features.file", "/dev/zero"), "shape": ("features.shape", [-1, -1]), "dtype": ("features.dtype", "O"),
    "spread": ("spreads", [10**400] * 16), "ids": ("ids_before_image", [10**30]),
}  # fmt: skip
BUNDLED = (
    "metadata.json", "tokenizer/tokenizer.json", "selftest/selftest.json", "selftest/features.bin", "prompts.json",
    "selftest/picture.png",
)  # fmt: skip


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_a_bundle_that_is_not_what_it_says(bundle: Path) -> None:
    def changed(name: str, path: str, value: Any, run: Callable[[], object]) -> Callable[[], object]:
        def tried() -> object:
            kept = (bundle / name).read_bytes()
            put(bundle / name, path, value)
            try:
                return run()
            finally:
                (bundle / name).write_bytes(kept)

        return tried

    def piped(name: str) -> Callable[[], object]:
        def tried() -> object:
            (bundle / name).rename(bundle / "kept")
            os.mkfifo(bundle / name)
            try:
                return run_selftest(bundle)
            finally:
                (bundle / "kept").replace(bundle / name)

        return tried

    all_named(
        [(what, changed("metadata.json", *given, lambda: Host(bundle))) for what, given in HOST.items()]
        + [
            (what, changed("selftest/selftest.json", *given, lambda: run_selftest(bundle)))
            for what, given in SELFTEST.items()
        ]
        + [(name, piped(name)) for name in BUNDLED],
        10.0,
    )


def test_names_longer_than_any_file_has(tmp_path: Path) -> None:
    questions, rows = tmp_path / "questions.jsonl", tmp_path / "rows.jsonl"
    row = {"image": LONG, "prompt": "What?", "answer": "This."}
    questions.write_text(json.dumps(row))
    rows.write_text(json.dumps(row))
    photo = str(Path(__file__).with_name("none") / LONG)
    read: dict[str, Callable[[], object]] = {
        "questions' picture": lambda: read_questions(questions), "rows' picture": lambda: read_rows(rows),
        "questions": lambda: read_questions(Path(LONG)), "rows": lambda: read_rows(Path(LONG)),
        "recipe": lambda: read_text(Path(LONG)), "spec": lambda: read_spec(LONG),
        "images": lambda: samples_in(Path(LONG)), "template": lambda: template_option(LONG),
        "image": lambda: open_image(photo),
        "report": lambda: read_report(f"{LONG}.json"), "build": lambda: read_build(LONG), "bundle": lambda: Host(LONG),
        "checkpoint": lambda: load_checkpoint(LONG),
    }  # fmt: skip
    x = str(tmp_path / "x")
    commands = [
        ("run", LONG, LONG, "What?"), ("inspect", LONG), ("lint", LONG), ("verify", LONG), ("fit", LONG),
        ("scan", LONG), ("validate", LONG), ("export", LONG, "-o", x), ("bundle", LONG, "-o", x), ("profile", LONG),
        ("export", "tiny", "-o", LONG), ("report", LONG), ("sweep", LONG, "-o", LONG),
    ]  # fmt: skip
    all_named([*read.items(), *((" ".join(words)[:20], typed(*words)) for words in commands)], 10.0)
