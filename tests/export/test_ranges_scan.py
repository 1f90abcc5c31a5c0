"""A whole scan: both passes, kept and found again, the same for any number of cores and for a streamed model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from export.ranges import cache, side_by_side
from export.ranges.estimate import in_words
from export.ranges.frames import FRAMES
from export.ranges.result import ALLOWED, DECODER, ENCODER, Ranges
from export.ranges.scan import scan, scan_model
from fastvlm.errors import CheckpointError, ImageError, UsageError
from fastvlm.manifest import significant
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.samples import shipped_samples

SHIPPED = [sample.name for sample in shipped_samples()]


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Counts the scans that run, by their sides."""
    from export.ranges.scan import Scanner

    ran: list[tuple[int, ...]] = []
    ranges = Scanner.ranges

    def count(self: Scanner, mark: str) -> Ranges:
        ran.append(self.asked.sides)
        return ranges(self, mark)

    monkeypatch.setattr(Scanner, "ranges", count)
    return ran


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (90, 60), (250, 10, 200)).save(folder / "own.png")
    return folder


def test_a_scan_holds_both_parts_and_says_what_it_saw(heard: Any, cache: Path) -> None:
    ranges = scan("tiny", progress=heard)
    assert ranges.image_sizes == (256,)
    assert ranges.pictures == (*SHIPPED, *FRAMES)
    assert ranges.prompts[: len(ranges.pictures)] == ranges.pictures
    assert "long text" in ranges.prompts
    assert ranges.positions > 1000
    assert ranges.calibration is None
    assert ranges.tensors == ranges.part(ENCODER) + ranges.part(DECODER)
    assert len(ranges.part(ENCODER)) > 100
    assert {name for names in ranges.sites.values() for name in names} < ranges.peaks(ENCODER).keys()
    assert len(ranges.sites) > 40
    assert len(ranges.part(DECODER)) == 4 * 18 + 4
    assert ranges.first_beyond(ALLOWED) is None
    sources = {tensor.worst.partition(" at ")[0] for tensor in ranges.tensors} - {"the whole table"}
    assert sources <= {*ranges.pictures, *ranges.prompts}
    assert all(significant(tensor.peak) == tensor.peak for tensor in ranges.tensors)
    assert all(significant(tensor.subnormal) == tensor.subnormal for tensor in ranges.tensors)
    (note,) = [note for note in heard.notes if note.startswith("scanning")]
    assert "12 pictures at 256 pixels" in note
    assert heard.stages["Scanning the encoder"] == [12, 12]
    assert heard.stages["Scanning the decoder"] == [5, 5]
    (kept,) = (cache / "scans").iterdir()
    assert json.loads(kept.read_bytes())["ranges"]["fingerprint"] == ranges.fingerprint == kept.stem


def test_cores_threads_and_streaming_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "cores", lambda: 1)
    first = scan("tiny")
    monkeypatch.setattr(side_by_side, "cores", lambda: 4)
    torch.set_num_threads(2)
    again = scan("tiny", again=True)
    assert again == first
    assert torch.get_num_threads() == 2
    whole = scan_model(load_checkpoint("tiny"))
    assert whole.tensors == first.tensors
    assert whole.fingerprint != first.fingerprint  # the decoder is in memory, where it may have been changed


def test_a_second_scan_is_read_from_the_cache(heard: Any, scanned: list[tuple[int, ...]]) -> None:
    first = scan("tiny")
    assert scan("tiny", progress=heard) == first
    assert heard.notes == ["this checkpoint was scanned before; --again scans it anew"]
    assert scan("tiny", image_sizes=(256,)) == first
    assert scan("tiny", again=True) == first
    assert scanned == [(256,), (256,)]


def test_other_sizes_and_pictures_are_scanned_anew(scanned: list[tuple[int, ...]], pictures: Path) -> None:
    scan("tiny", image_sizes=(64,))
    both = scan("tiny", image_sizes=(128, 64))
    assert scan("tiny", image_sizes=(64, 64)) == both
    assert {tensor.worst.rpartition(" at ")[2] for tensor in both.part(ENCODER)} == {"64", "128"}
    own = scan("tiny", image_sizes=(64,), calibration=pictures)
    assert own.pictures == (*SHIPPED, "own.png", *FRAMES)
    assert own.calibration is not None
    assert scan("tiny", image_sizes=(64,), calibration=pictures) == own
    assert scan("tiny", image_sizes=(64,)) == own
    Image.new("RGB", (90, 60), (0, 10, 200)).save(pictures / "own.png")
    assert scan("tiny", image_sizes=(64,), calibration=pictures).calibration != own.calibration
    assert scanned == [(64,), (128, 64), (64,), (64,)]


def test_an_older_or_damaged_result_is_made_anew(
    heard: Any, scanned: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan("tiny")
    place = cache.place_of(first.fingerprint)
    place.write_bytes(place.read_bytes()[:1000])
    assert scan("tiny", progress=heard) == first
    assert any("is damaged" in note for note in heard.notes)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert scan("tiny", progress=heard) == first
    assert any("an older fastvlm wrote it" in note for note in heard.notes)
    assert len(scanned) == 3
    assert cache.load(first.fingerprint) == first


def test_another_checkpoint_is_another_scan(tiny: Path, tmp_path: Path, scanned: list[tuple[int, ...]]) -> None:
    first = scan("tiny", image_sizes=(64,))
    copied = Path(shutil.copytree(tiny, tmp_path / "copied"))
    assert scan(copied, image_sizes=(64,)) == first  # a folder's name says nothing
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config, indent=3))
    assert scan(copied, image_sizes=(64,)).tensors == first.tensors
    assert len(scanned) == 2


def test_a_file_that_changes_meanwhile_is_no_result(
    tiny: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found would stand under the hash of what the file was before."""
    from export.ranges import scan as module

    copied = Path(shutil.copytree(tiny, tmp_path / "copied"))
    (weights,) = copied.glob("*.safetensors")

    def written_to(*given: Any) -> Any:
        weights.write_bytes(weights.read_bytes())
        return decoder_pass(*given)

    decoder_pass = module.decoder_pass
    monkeypatch.setattr(module, "decoder_pass", written_to)
    with pytest.raises(CheckpointError, match="changed while it was scanned"):
        scan(copied, image_sizes=(64,))
    assert not (cache / "scans").exists()


def test_bad_input_is_refused_before_minutes_are_spent(
    tmp_path: Path, pictures: Path, scanned: list[tuple[int, ...]], heard: Any
) -> None:
    with pytest.raises(UsageError, match="--image-size is 100"):
        scan("tiny", image_sizes=(100,))
    with pytest.raises(UsageError, match=r"--calibration .* holds no picture"):
        scan("tiny", calibration=tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        scan(tmp_path / "absent")
    (pictures / "b.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"b\.png is not a picture"):
        scan("tiny", calibration=pictures, progress=heard)
    assert scanned == []
    assert heard.notes == []


def test_durations_are_told_for_a_reader() -> None:
    assert [in_words(seconds) for seconds in (0.01, 41.4, 89, 100, 1200)] == ["1 s", "41 s", "89 s", "2 min", "20 min"]
