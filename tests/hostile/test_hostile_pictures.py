"""Row "images": whatever a file holds, a picture is whole and as ruled, or an ImageError; nothing is filled in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_chunks import chunks, clear, cut_rows, interlaced, vast
from hostile_jpegs import jpegs
from hostile_modes import modes, noted
from hostile_pictures import bombs, damaged, harmless, large, turned, whole
from hostile_strewn import strewn
from ordeal import in_lines, size, tally, try_all
from PIL import Image

from fastvlm_ref import image
from validation.bundle_host import picture as host

ROW = "images: bombs, cut, flipped, orientations, modes"


def test_pictures_are_whole_and_as_ruled_or_refused(tmp_path: Path) -> None:
    suites = [bombs(tmp_path), turned(tmp_path), modes(tmp_path), damaged(tmp_path, size(200, 2_800))]
    suites += [suite(tmp_path) for suite in (harmless, noted, large, interlaced, clear, cut_rows, chunks, jpegs)]
    suites += [strewn(tmp_path, size(100, 2_000)), vast(tmp_path, size(1, 4))]
    outcomes = try_all([case for suite in suites for case in suite])
    assert [len(suite) for suite in suites[:3]] == [30, 8, 24]
    bad = tally(ROW, outcomes, refused=sum(outcome.kind == "named" for outcome in outcomes))
    assert not bad, in_lines(bad)
    assert all(outcome.kind == "named" for outcome in outcomes[:30])


@pytest.mark.parametrize("reader", [image.open_image, host.open_photo])
def test_a_lack_of_memory_is_not_called_damage(reader: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It was, and each suite took it for a refusal."""

    def lacking(*_: object) -> None:
        raise MemoryError

    (tmp_path / "picture").write_bytes(whole("png"))
    monkeypatch.setattr(Image.Image, "crop", lacking)
    monkeypatch.setattr(image, "_flat", lacking)
    with pytest.raises(MemoryError):
        reader(tmp_path / "picture")  # type: ignore[operator]
