"""A kept scan is found again by the checkpoint alone; what is wrong with its file is one note, and it is not used."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.ranges import cache as module
from export.ranges.cache import VERSION, fingerprint, load, place_of, store
from export.ranges.result import DECODER, ENCODER, Ranges, TensorRange, ranges_of
from fastvlm import steps
from fastvlm.cache import cache_folder
from fastvlm.errors import UsageError
from fastvlm.parts import digest
from fastvlm_ref.checkpoint import load_checkpoint

MARK = "ab" * 32
RANGES = Ranges(
    MARK, (1024, 1152), ("a.png", "noise"), ("a.png", "long text"), 1334, None,
    (
        TensorRange("encoder.network.9 convolution", 496000.0, 0.0, "noise at 1024"),
        TensorRange("encoder.projector_2 convolution", 3.14, 1.2e-5, "a.png at 1152"),
        TensorRange("decoder.layers.0 add", 40000.0, 0.5, "long text"),
    ),
    {"network.9": ("network.9 convolution", "network.10.0 add"), "none": ()},
)  # fmt: skip


def test_what_is_kept_is_found_again(heard: Any, cache: Path) -> None:
    assert load(MARK, heard) is None
    place = store(RANGES, heard)
    assert place == cache / "scans" / f"{MARK}.json"
    assert load(MARK, heard) == RANGES
    assert load("cd" * 32, heard) is None
    first = place.read_bytes()
    store(RANGES, heard)
    assert place.read_bytes() == first
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert heard.notes == []


def test_a_result_answers_what_is_asked_of_it() -> None:
    assert RANGES.peaks(DECODER) == {"layers.0 add": 40000.0}
    assert list(RANGES.peaks(ENCODER)) == ["network.9 convolution", "projector_2 convolution"]
    assert RANGES.first_beyond(65504) == RANGES.tensors[0]
    assert RANGES.first_beyond(32768, DECODER) == RANGES.tensors[2]
    assert RANGES.first_beyond(65504, DECODER) is None
    assert RANGES.largest(2) == (RANGES.tensors[0], RANGES.tensors[2])
    assert RANGES.as_json()["first_beyond"] == {"65504": RANGES.tensors[0].name, "32768": RANGES.tensors[0].name}
    assert RANGES.covers((1152,), None)
    assert not RANGES.covers((1024, 512), None)
    assert not RANGES.covers((1024,), "hash of pictures")
    assert replace(RANGES, calibration="hash of pictures").covers((1024,), "hash of pictures")


def changed(change: Callable[[dict[str, Any]], Any], *, hashed: bool = True) -> bytes:
    """What a file holds after `change` of its content; `hashed`: with the hash that belongs to it."""
    content: dict[str, Any] = {"version": VERSION, "ranges": json.loads(json.dumps(RANGES.as_json()))}
    change(content)
    content["sha256"] = digest(content["ranges"] if hashed else RANGES.as_json())
    return json.dumps(content).encode()


DAMAGED = {
    "empty": (b"", "damaged"),
    "cut": (changed(lambda _: None)[:-40], "damaged"),
    "zeros": (bytes(500), "damaged"),
    "deep": (b"[" * 100_000, "not used"),
    "a list": (b"[1, 2]", "no file that a scan wrote"),
    "a number": (b"3", "no file that a scan wrote"),
    "foreign": (b'{"name": "x"}', "no file that a scan wrote"),
    "a version in words": (changed(lambda c: c.update(version="1")), "no file that a scan wrote"),
    "newer": (changed(lambda c: c.update(version=VERSION + 1)), "a newer fastvlm wrote it"),
    "older": (changed(lambda c: c.update(version=VERSION - 1)), "an older fastvlm wrote it"),
    "one digit": (changed(lambda c: c["ranges"]["tensors"][0].update(peak=4960.0), hashed=False), "its hash differs"),
    "another's": (changed(lambda c: c["ranges"].update(fingerprint="cd" * 32)), "another checkpoint's"),
    "no tensors": (changed(lambda c: c["ranges"].pop("tensors")), "not used"),
    "no ranges": (changed(lambda c: c.update(ranges=[])), "damaged"),
    "text for a number": (changed(lambda c: c["ranges"]["tensors"][0].update(peak="1")), "has '1'"),
    "a negative peak": (changed(lambda c: c["ranges"]["tensors"][0].update(peak=-1)), "has -1"),
    "a share above 1": (changed(lambda c: c["ranges"]["tensors"][0].update(subnormal=1.5)), "has 1.5"),
    "a name that is none": (changed(lambda c: c["ranges"]["tensors"][0].update(name=3)), "no text"),
    "sites in a list": (changed(lambda c: c["ranges"].update(sites=[])), "not used"),
    "sites of numbers": (changed(lambda c: c["ranges"].update(sites={"a": [1]})), "no text"),
    "sizes in words": (changed(lambda c: c["ranges"].update(image_sizes=["1024"])), "no count"),
    "infinity": (changed(lambda _: None).replace(b"496000.0", b"Infinity"), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_foreign_file_is_one_note_and_none(name: str, heard: Any) -> None:
    content, says = DAMAGED[name]
    place = store(RANGES)
    assert place is not None
    place.write_bytes(content)
    assert load(MARK, heard) is None
    (note,) = heard.notes
    assert note.startswith(f"the scan kept in {place} is not used: ")
    assert says in note
    assert note.endswith("`fastvlm scan` makes it anew")
    assert "\n" not in note
    store(RANGES)
    assert load(MARK) == RANGES


@pytest.mark.parametrize("kind", ["folder", "pipe", "large", "link to a folder"])
def test_what_is_no_plain_file_is_not_opened(
    kind: str, heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(MARK)
    place.parent.mkdir(parents=True)
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "large":
        monkeypatch.setattr(module, "MAX_BYTES", 10)
        place.write_bytes(changed(lambda _: None))
    else:
        place.symlink_to(tmp_path)
    assert load(MARK, heard) is None
    assert len(heard.notes) == 1


def test_a_cache_that_cannot_be_written_is_told(heard: Any, cache: Path) -> None:
    (cache / "scans").write_text("a file in the way")
    assert store(RANGES, heard) is None
    assert load(MARK, heard) is None
    (note,) = heard.notes
    assert note.startswith(f"the scan cannot be kept in {cache / 'scans'} (")
    assert "FASTVLM_CACHE" in note


def test_an_interrupted_write_leaves_nothing_and_the_older_result(monkeypatch: pytest.MonkeyPatch) -> None:
    place = store(RANGES)
    assert place is not None

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "sync", stop)
    with pytest.raises(KeyboardInterrupt):
        store(replace(RANGES, positions=1))
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert load(MARK) == RANGES


def test_what_older_versions_left_goes_after_a_day() -> None:
    place = store(RANGES)
    assert place is not None
    folder, digits = place.parent, "0123456789abcdef"
    left, written = folder / f".{MARK[:16]}.{digits}.half", folder / f".{digits}.{digits}.half"
    others = [folder / name for name in (".half", f".{digits}.half", f".{digits}.{digits}.half.txt", f"{digits}.half")]
    for path in (left, written, *others):
        path.write_bytes(b"{")
    linked, folders = folder / f".{MARK[:16]}.{digits[::-1]}.half", folder / f".{digits}.{digits[::-1]}.half"
    linked.symlink_to(others[0])
    folders.mkdir()
    for path in (left, *others, linked, folders):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert store(RANGES) == place
    assert set(folder.iterdir()) == {place, written, linked, folders, *others}


def test_a_checkpoint_is_told_by_its_files_and_by_what_is_in_memory(tiny_model: Any) -> None:
    files = tiny_model.source.files()
    mark = fingerprint(tiny_model, files)
    assert mark == fingerprint(load_checkpoint("tiny"), files)
    assert mark == fingerprint(tiny_model, {**files, "README.md": {"sha256": "0" * 64, "bytes": 1}})
    weights = next(name for name in files if name.endswith(".safetensors"))
    other = {**files, weights: {**files[weights], "sha256": "0" * 64}}
    assert mark != fingerprint(tiny_model, other)
    other_rule = copy.copy(tiny_model)
    other_rule.config = replace(tiny_model.config, image_rule="crop")  # other pictures are shown
    assert mark != fingerprint(other_rule, files)
    edited = copy.deepcopy(tiny_model.decoder)
    edited.layers[2].mlp.up_proj.weight.data[0, 0] += 1
    original = tiny_model.decoder
    try:
        tiny_model.decoder = edited
        assert mark != fingerprint(tiny_model, files)
    finally:
        tiny_model.decoder = original


def test_unknown_keys_are_ignored() -> None:
    content = RANGES.as_json() | {"new": 1}
    assert ranges_of(content) == RANGES


@pytest.mark.parametrize(
    ("variables", "platform", "place"),
    [
        ({"FASTVLM_CACHE": "/x", "XDG_CACHE_HOME": "/y"}, "linux", "/x"),
        ({"FASTVLM_CACHE": "~/x"}, "linux", "/there/x"),
        ({"XDG_CACHE_HOME": "/y"}, "linux", "/y/fastvlm"),
        ({}, "linux", "/there/.cache/fastvlm"),
        ({"FASTVLM_CACHE": "", "XDG_CACHE_HOME": ""}, "linux", "/there/.cache/fastvlm"),
        ({}, "darwin", "/there/Library/Caches/fastvlm"),
        ({"FASTVLM_CACHE": "/x"}, "darwin", "/x"),
    ],
)
def test_where_the_cache_is(
    variables: dict[str, str], platform: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FASTVLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/there", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(place)


def test_a_home_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a user that does not exist; a container's user without a home ends the same way."""
    monkeypatch.setenv("FASTVLM_CACHE", "~nobody-has-this-name/x")
    with pytest.raises(UsageError, match="set FASTVLM_CACHE to a folder"):
        load(MARK)
