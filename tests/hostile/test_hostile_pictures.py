"""Row "images": whatever a file holds, a picture is whole and as ruled, or an ImageError; nothing is filled in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_modes import modes
from hostile_pictures import bombs, damaged, harmless, turned
from ordeal import in_lines, size, tally, try_all
from PIL import Image

from fastvlm_ref import image, image_file

ROW = "images: bombs, cut, flipped, orientations, modes"


def test_pictures_are_whole_and_as_ruled_or_refused(tmp_path: Path) -> None:
    suites = (
        bombs(tmp_path),
        harmless(tmp_path),
        damaged(tmp_path, size(200, 2_800)),
        turned(tmp_path),
        modes(tmp_path),
    )
    outcomes = try_all([case for suite in suites for case in suite])
    assert [len(suite) for suite in suites[:1] + suites[3:]] == [30, 8, 24]
    bad = tally(ROW, outcomes, refused=sum(outcome.kind == "named" for outcome in outcomes))
    assert not bad, in_lines(bad)
    assert all(outcome.kind == "named" for outcome in outcomes[:30])


def plain_load(picture: Image.Image, *_: object) -> None:
    """Pillow's own decoding, which fills in what is missing."""
    picture.load()


@pytest.mark.parametrize(
    ("check", "suite"),
    [
        ((image, "load_whole", plain_load), lambda folder: damaged(folder, 28)),
        ((image_file, "check_size", lambda *_: None), lambda folder: bombs(folder, 5)),
        ((image, "UPRIGHT", {}), turned),
        ((image, "_grey16", lambda picture: picture.convert("RGB")), modes),
    ],
    ids=["wholeness", "sizes", "orientation", "16 bits"],
)
def test_without_one_of_its_checks_the_row_is_red(
    check: tuple[object, str, object], suite: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*check)
    outcomes = try_all(suite(tmp_path))  # type: ignore[operator]
    assert any(not outcome.held for outcome in outcomes)
