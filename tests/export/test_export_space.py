"""A build's size is known before it is made, and a disk without room for it is told before the first conversion."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_export import CONTEXT, QUERY, SIZES

from export import api
from export.choice import Compression
from export.plan import make_plan
from export.space import FIXED_BYTES, check_space, needed_bytes, part_bytes
from fastvlm.errors import OutputError
from fastvlm.manifest import read_manifest
from fastvlm_ref.checkpoint import load_checkpoint

PER_MILLE = (
    8  # by which the sizes may be off; measured: tiny 0.4, small 6.4 (its tensors are so small that padding counts)
)
Usage = namedtuple("Usage", "total used free")


def stored(build: Path) -> dict[str, int]:
    """The bytes of weights in a build's parts."""
    files = {name: entry["bytes"] for name, entry in read_manifest(build)["files"].items()}
    place = "Data/com.apple.CoreML/weights/weight.bin"
    return {
        "encoder": files[f"VisionEncoder.mlpackage/{place}"],
        "language": files[f"LanguageModel.mlpackage/{place}"],
        "embeddings": files["embeddings.bin"],
    }


def check_sizes(said: dict[str, int], build: Path) -> None:
    found = stored(build)
    assert said.keys() == found.keys()
    for name in found:
        assert abs(said[name] - found[name]) <= found[name] * PER_MILLE / 1000, (name, said[name], found[name])
    whole = sum(entry["bytes"] for entry in read_manifest(build)["files"].values())
    assert whole < needed_bytes(said)


def test_sizes_of_tiny(exported_tiny: Path) -> None:
    model = load_checkpoint("tiny", stream=True)
    check_sizes(part_bytes(model, make_plan(model.config), Compression()), exported_tiny)


def test_sizes_of_the_small_model(model: Any, build: Path) -> None:
    check_sizes(part_bytes(model, make_plan(model.config, SIZES, CONTEXT, QUERY), Compression()), build)


@pytest.mark.parametrize("only", ["encoder", "language"])
def test_only_what_is_asked_for_counts(model: Any, only: str) -> None:
    parts = part_bytes(model, make_plan(model.config, (), CONTEXT, QUERY, only), Compression())
    assert list(parts) == (["encoder"] if only == "encoder" else ["language", "embeddings"])


def test_a_head_of_its_own_counts_as_a_tied_one() -> None:
    from small_export import small_model

    tied, untied = (small_model(tied_head=flag) for flag in (True, False))
    plan = make_plan(tied.config, (), CONTEXT, QUERY)
    assert part_bytes(tied, plan, Compression()) == part_bytes(untied, plan, Compression())


def test_room_for_it_all_is_enough_and_one_byte_less_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"encoder": 1_000_000_000, "language": 2_000_000_000}
    needed = 3_060_000_000 + FIXED_BYTES
    asked = []

    def usage(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or Usage(0, 0, free))

    usage(needed)
    check_space(tmp_path / "not" / "yet", parts)
    usage(needed - 1)
    with pytest.raises(OutputError, match=r"needs 3\.12 GB in .*, and 3\.12 GB are free; free some, choose another"):
        check_space(tmp_path / "not" / "yet", parts)
    usage(needed - 1_000_000_000)
    check_space(tmp_path, parts, held=1_000_000_000)
    with pytest.raises(OutputError, match=r"beyond the 1\.00 GB that are finished"):
        check_space(tmp_path, parts, held=999_999_999)
    assert asked[:2] == [tmp_path, tmp_path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_is_told_before_the_first_conversion(
    model: Any, build: Path, tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older build stays until the new one is complete, so its room does not count."""
    if overwrite:
        shutil.copytree(build, tmp_path / "build")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, FIXED_BYTES))
    for step in ("write_encoder", "write_language", "write_embeddings"):
        monkeypatch.setattr(f"export.build.BuildWriter.{step}", lambda _: pytest.fail("something was made"))
    with pytest.raises(OutputError, match="are free"):
        api.export_model(model, tmp_path / "build", context=CONTEXT, query_length=QUERY, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this root may not mount")
    try:
        yield disk
    finally:
        gc.collect()  # a caught exception holds a file that coremltools was writing
        subprocess.run(["umount", str(disk)], check=True)


def test_a_small_disk_is_told_and_stays_empty(model: Any, small_disk: Path) -> None:
    with pytest.raises(OutputError, match=r"needs 0\.06 GB in .*, and 0\.02 GB are free"):
        api.export_model(model, small_disk / "a" / "build", context=CONTEXT, query_length=QUERY)
    assert os.listdir(small_disk) == []


def test_a_disk_that_fills_up_meanwhile_is_told_and_stays_empty(
    model: Any, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.api.check_space", lambda *_: None)
    (small_disk / "other").write_bytes(bytes(16_500_000))
    with pytest.raises(OutputError, match="no space left"):
        api.export_model(model, small_disk / "build", context=CONTEXT, query_length=QUERY, only="encoder")
    assert os.listdir(small_disk) == ["other"]
