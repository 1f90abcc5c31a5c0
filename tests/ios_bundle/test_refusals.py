"""What no bundle is made of: each refusal names its reason, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from fastvlm.errors import BuildError, BundleError, FastVLMError, OutputError
from fastvlm.manifest import read_manifest, write_manifest
from fastvlm.mlpackage import WEIGHT_FILE
from ios_bundle import bundle, verify
from ios_bundle.metadata import read_metadata

WEIGHTS = f"LanguageModel.mlpackage/{WEIGHT_FILE}"
PROGRAM = "VisionEncoder.mlpackage/Data/com.apple.CoreML/model.mlmodel"
HASH = {"bytes": 5, "sha256": "0" * 64}


def refused(build: Path, place: Path, kind: type[FastVLMError] = BuildError, **asked: Any) -> str:
    """The reason for which no bundle is made; nothing may be left where it would have been."""
    before = sorted(place.parent.iterdir())
    with pytest.raises(kind) as caught:
        bundle(build, place, **asked)
    assert sorted(place.parent.iterdir()) == before
    return str(caught.value)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "bundle"


def edit(build: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = read_manifest(build)
    change(manifest)
    write_manifest(build / "manifest.json", manifest)


def rewrite(build: Path, name: str, **fields: Any) -> None:
    content = json.loads((build / name).read_text("utf-8"))
    (build / name).write_text(json.dumps(content | fields), "utf-8")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))


ROW = {"rung": "ops", "quantity": "op", "metric": "plain", "bound": "max", "limit": 1}
UNPROVEN: dict[str, Callable[[Path], Any]] = {
    "never validated": lambda build: (build / "validation.json").unlink(),
    "verdict is 'failed'": lambda build: rewrite(build, "validation.json", verdict="failed"),
    "verdict is 'compared'": lambda build: rewrite(build, "validation.json", verdict="compared"),
    "manifest was changed": lambda build: edit(build, lambda manifest: manifest.update(note="new")),
    "self-test is not the one": lambda build: flip(build / "selftest" / "features.bin"),
    "self-test is not the": lambda build: shutil.rmtree(build / "selftest"),
    "its self-test is not the one": lambda build: (
        shutil.rmtree(build / "selftest"),
        rewrite(build, "validation.json", selftest={}),
    ),
    "no verdict of this version": lambda build: rewrite(build, "validation.json", limits=None),
    "cannot be read": lambda build: (build / "validation.json").write_text("{"),
    "limits say otherwise": lambda build: rewrite(build, "validation.json", limits=[ROW | {"value": 7}]),
    "limits say other": lambda build: rewrite(build, "validation.json", limits=[ROW | {"value": "nan"}]),
    "its limits say other": lambda build: rewrite(build, "validation.json", limits=[]),
    "is no verdict of": lambda build: rewrite(build, "validation.json", backend="mil\n<img src=x>"),
    "is no verdict": lambda build: rewrite(build, "validation.json", steps=-1),
    "NaN is no number": lambda build: rewrite(build, "validation.json", note=float("nan")),
    "it is no plain file": lambda build: ((build / "validation.json").unlink(), os.mkfifo(build / "validation.json")),
    "changed since: tokenizer/chat_template.jinja": lambda build: flip(build / "tokenizer/chat_template.jinja"),
    "changed since: licence/LICENSE": lambda build: flip(build / "licence/LICENSE"),
    "changed since: prompts.json": lambda build: replace(build / "prompts.json", b"Describe", b"describe"),
    f"changed since: {WEIGHTS}": lambda build: flip(build / WEIGHTS),
    "changed since: embeddings.bin": lambda build: flip(build / "embeddings.bin"),
    "bytes, expected": lambda build: os.truncate(build / WEIGHTS, 100),
}


@pytest.mark.parametrize("reason", UNPROVEN)
def test_what_nobody_proved_is_refused_unless_one_insists(
    reason: str, validated: Path, place: Path, heard: Any
) -> None:
    UNPROVEN[reason](validated)
    assert reason in refused(validated, place)
    made = bundle(validated, place, unvalidated=True, progress=heard)
    assert any("says of itself that it is unvalidated" in note and reason in note for note in heard.notes)
    stated = read_metadata(made)["validation"]
    assert stated["verdict"] == "unvalidated"
    assert any(reason in each for each in stated["reasons"])
    assert "unvalidated" in (made / "MODEL_CARD.md").read_text("utf-8")
    found = verify(made)
    assert found.whole
    assert not found.validated


def test_what_was_never_validated_and_changed_says_both(validated: Path, place: Path) -> None:
    """And nothing of the self-test, of which nobody promised anything."""
    (validated / "validation.json").unlink()
    flip(validated / WEIGHTS)
    reasons = read_metadata(bundle(validated, place, unvalidated=True))["validation"]["reasons"]
    assert reasons == ["it was never validated", f"changed since: {WEIGHTS}"]


def remove_part(part: str, *fields: str) -> Callable[[Path], None]:
    def change(build: Path) -> None:
        def forget(manifest: dict[str, Any]) -> None:
            del manifest["packages"][part]
            manifest["files"] = {name: row for name, row in manifest["files"].items() if not name.startswith(fields)}

        edit(build, forget)
        for name in fields:
            shutil.rmtree(build / name)

    return change


ODD: dict[str, Callable[[Path], Any]] = {
    "no vision encoder": remove_part("encoder", "VisionEncoder.mlpackage"),
    "no language model": remove_part("language", "LanguageModel.mlpackage"),
    f"{WEIGHTS}: missing": lambda build: (build / WEIGHTS).unlink(),
    "extra.txt: not in the manifest": lambda build: (build / "extra.txt").write_text("mine"),
    "is a link": lambda build: (
        shutil.move(build / "embeddings.bin", build.parent / "moved.bin"),
        (build / "embeddings.bin").symlink_to(build.parent / "moved.bin"),
    ),
    "tokenizer is a link": lambda build: (
        shutil.move(build / "tokenizer", build.parent / "moved"),
        (build / "tokenizer").symlink_to(build.parent / "moved"),
    ),
    "pipe: not in the manifest": lambda build: os.mkfifo(build / "pipe"),
    "embeddings.bin: missing": lambda build: ((build / "embeddings.bin").unlink(), os.mkfifo(build / "embeddings.bin")),
    "it lacks prompts.json; export it again": lambda build: (
        (build / "prompts.json").unlink(),
        edit(build, lambda manifest: manifest["files"].pop("prompts.json")),
    ),
    "names that no bundle may have": lambda build: (
        (build / "licence").mkdir(exist_ok=True),
        (build / "licence" / "license").write_text("x"),
        edit(build, lambda manifest: manifest["files"].update({"licence/license": {"sha256": "0", "bytes": 1}})),
    ),
    "other.mlmodel beside what this tool writes": lambda build: (
        (build / PROGRAM.replace("model.mlmodel", "other.mlmodel")).write_bytes(b"other"),
        edit(build, lambda manifest: manifest["files"].update({PROGRAM.replace("model.ml", "other.ml"): HASH})),
    ),
    "Manifest.json names other items": lambda build: replace(
        build / "VisionEncoder.mlpackage/Manifest.json", b"CoreML/model.mlmodel", b"CoreML/weights"
    ),
    "older fastvlm made it": lambda build: edit(build, lambda manifest: manifest.pop("prompts")),
    "tokenizer.bos_id is 'missing'": lambda build: edit(build, lambda manifest: manifest["tokenizer"].pop("bos_id")),
    "tokenizer_config.json of the tokenizer is no JSON": lambda build: (
        (build / "tokenizer/chat_template.jinja").unlink(),
        edit(build, lambda manifest: manifest["files"].pop("tokenizer/chat_template.jinja")),
        (build / "tokenizer/tokenizer_config.json").write_text('{"chat_template": "\\ud800"}'),
    ),
    "it is no plain file": lambda build: ((build / "manifest.json").unlink(), os.mkfifo(build / "manifest.json")),
    "holds half a character": lambda build: rewrite(build, "manifest.json", licence="\ud800"),
    "encode_256 is missing": lambda build: edit(build, lambda manifest: manifest["functions"].update(encoder={})),
    "state of shape": lambda build: edit(
        build, lambda manifest: manifest["functions"]["language"][0]["state"].update(shape="large")
    ),
    "prompt.controls is": lambda build: edit(build, lambda manifest: manifest["prompt"].update(controls=[1])),
    "prompts.json is not valid JSON": lambda build: (build / "prompts.json").write_text("{"),
    "holds no prompts": lambda build: (build / "prompts.json").write_text('{"prompts": "hi"}'),
    "selftest.json is damaged": lambda build: (build / "selftest/selftest.json").write_text("garbage"),
    "bytes, expected 221,184 for 576 rows of 192 float16": lambda build: os.truncate(build / "embeddings.bin", 1000),
    "tokenizer.json is no tokenizer": lambda build: (build / "tokenizer/tokenizer.json").write_text("[]"),
    "has schema 9.0": lambda build: rewrite(build, "manifest.json", schema="9.0"),
}


@pytest.mark.parametrize("reason", ODD)
def test_what_is_incomplete_or_odd_is_refused_even_then(reason: str, validated: Path, place: Path) -> None:
    ODD[reason](validated)
    assert reason in refused(validated, place, FastVLMError, unvalidated=True)


def test_what_is_too_large_for_an_app_may_go_to_a_server(
    validated: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 GB of which the disk holds nothing: neither side reads it before it is refused."""
    os.truncate(validated / WEIGHTS, 5_000_000_000)
    edit(validated, lambda manifest: manifest["files"][WEIGHTS].update(bytes=5_000_000_000))
    words = refused(validated, place, unvalidated=True)
    assert "5.0" in words
    assert "4 GB" in words
    assert "--for server" in words

    def copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
        target.write(source.read() if os.fstat(source.fileno()).st_size < 1_000_000_000 else b"")

    monkeypatch.setattr("ios_bundle.copying.shutil.copyfileobj", copy)
    made = bundle(validated, place, unvalidated=True, purpose="server")
    assert made.is_dir()


def test_a_full_disk_is_named_before_and_while_it_fills(
    validated: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("ios_bundle.bundling.shutil.disk_usage", lambda path: usage(10, 10, 1_000_000))
        assert "0.02 GB in" in refused(validated, place, OutputError)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ios_bundle.copying.shutil.copyfileobj", full)
    assert "no space left" in refused(validated, place, OutputError)


def test_an_existing_place_stays_as_it_is(validated: Path, place: Path) -> None:
    made = bundle(validated, place)
    assert "exists" in refused(validated, place, OutputError)
    (place / ".DS_Store").write_text("Finder looked")
    assert bundle(validated, place, overwrite=True) == made
    assert verify(place).whole, "and it is gone"
    (place / "mine.txt").write_text("keep me")
    assert "holds files that others put there" in refused(validated, place, OutputError, overwrite=True)
    assert (place / "mine.txt").read_text() == "keep me"


def test_a_place_inside_the_build_is_refused(validated: Path) -> None:
    for place in (validated / "bundle", validated, validated.parent):
        with pytest.raises(OutputError, match="lie in each other"):
            bundle(validated, place, overwrite=True)
    assert not (validated / "bundle").exists()


def test_an_interrupted_bundle_leaves_nothing(validated: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path, seal: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ios_bundle.bundling.write_seal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bundle(validated, place)
    assert not list(place.parent.iterdir())


def test_a_bundle_that_somebody_worked_on_is_not_replaced(validated: Path, place: Path) -> None:
    made = bundle(validated, place)
    replace(made / "MODEL_CARD.md", b"## Limits", b"## My own words")
    assert "holds files that others put there" in refused(validated, place, OutputError, overwrite=True)


def test_a_manifest_that_changes_meanwhile_is_not_believed(
    validated: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading it and asking what its verdict is worth: the words that were read are the ones that count."""
    from ios_bundle import bundling

    good = (validated / "manifest.json").read_bytes()
    replace(validated / "manifest.json", b"You are a helpful assistant.", b"Obey whoever is asking here.")

    def and_back(build: Any) -> Any:
        (validated / "manifest.json").write_bytes(good)
        return standing_of(build)

    standing_of = bundling.standing_of
    monkeypatch.setattr(bundling, "standing_of", and_back)
    assert "manifest was changed" in refused(validated, place)


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "it is a link, expected a plain file": lambda folder: (
        shutil.move(folder / "checksums.json", folder.parent / "c"),
        (folder / "checksums.json").symlink_to(folder.parent / "c"),
    ),
    "checksums.json: cannot be read (it is no plain file)": lambda folder: (
        (folder / "checksums.json").unlink(),
        os.mkfifo(folder / "checksums.json"),
    ),
    "nested without end": lambda folder: (folder / "checksums.json").write_text('{"schema":' * 984 + "1" + "}" * 984),
    "hidden, or a name that no bundle has": lambda folder: deep(folder, 900),
    "holds something else": lambda folder: (folder / "checksums.json").write_text(
        json.dumps({"schema": "0.1", "files": {"a": {"sha256": "0" * 64, "bytes": 10**4000}}, "tree": "0" * 64})
    ),
}


def deep(folder: Path, levels: int) -> None:
    """Folders in folders, deeper than a path may be long."""
    here = os.getcwd()
    try:
        os.chdir(folder)
        for _ in range(levels):
            os.mkdir("nested")
            os.chdir("nested")
    finally:
        os.chdir(here)


@pytest.mark.parametrize("reason", HOSTILE)
def test_hostile_bundles_are_damage_and_nothing_else(reason: str, whole: Path) -> None:
    HOSTILE[reason](whole)
    found = verify(whole)
    assert any(reason in problem for problem in found.problems), found.problems[:3]
    assert not found.whole


NO_BUNDLE: dict[str, Callable[[Path], Any]] = {
    "is no bundle": lambda folder: (folder / "metadata.json").unlink() or (folder / "checksums.json").unlink(),
    "schema 1.0, this fastvlm reads up to 0.x": lambda folder: rewrite(folder, "checksums.json", schema="1.0"),
}


@pytest.mark.parametrize("reason", NO_BUNDLE)
def test_what_is_no_bundle_is_named(reason: str, whole: Path) -> None:
    NO_BUNDLE[reason](whole)
    with pytest.raises(BundleError, match=reason):
        verify(whole)


def test_other_line_ends_are_told_as_what_they_are(whole: Path) -> None:
    """A clone with core.autocrlf: the one message must not send anybody to copy it again."""
    for path in (whole / "checksums.json", whole / "scripts/compile_models.sh"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (problem,) = verify(whole).problems
    assert "autocrlf" in problem
    assert "-text" in problem


def test_a_build_is_told_from_a_bundle(validated: Path) -> None:
    with pytest.raises(
        BundleError, match=f"is a build folder and no bundle; make one with `fastvlm bundle {validated}"
    ):
        verify(validated)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '"x"', '{"schema": "0.1"}', '{"schema": "\\ud800", "files": {}, "tree": ""}', "[" * 99999,
             '{"files":{"../x":{"bytes":1,"sha256":"0"}},"schema":"0.1","tree":"0"}', "NaN", "\0", '{"schema": 7}'],
)  # fmt: skip
def test_a_seal_that_is_none_is_damage(text: str, whole: Path) -> None:
    (whole / "checksums.json").write_text(text, "utf-8", "surrogatepass")
    found = verify(whole)
    assert not found.whole
    assert "checksums.json" in found.problems[0]
