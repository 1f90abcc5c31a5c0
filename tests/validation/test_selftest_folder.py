"""A self-test is replaced only where nothing else would be lost; its photo is preprocessed at every exported size."""

from dataclasses import replace

import numpy as np
import pytest

from fastvlm.build import read_build
from fastvlm.hashes import sha256_bytes
from fastvlm_ref.image import preprocess
from validation.selftest import is_selftest, worked_photo


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        (("selftest.json", "picture.png", "photo.png", "features.bin"), True),
        (("selftest.json", "picture.png", "features.bin"), True),  # schema 0.1
        (("selftest.json", ".DS_Store"), True),
        (("picture.png",), False),
        (("selftest.json", "my notes.txt"), False),
        ((), False),
    ],
)
def test_only_a_selftest_alone_may_be_replaced(tmp_path, names, ours):
    for name in names:
        (tmp_path / name).touch()
    assert is_selftest(tmp_path) is ours
    assert not is_selftest(tmp_path / "absent")


@pytest.mark.parametrize("rule", ["pad", "crop"])
def test_the_photo_s_hashes_are_those_of_its_preprocessed_bytes(exported_tiny, rule):
    build = replace(read_build(exported_tiny), image_sizes=(256, 64), image_rule=rule)
    photo = worked_photo(build)
    assert photo.picture.mode == "RGB"
    assert photo.picture.width > photo.picture.height > 256  # reduced at every size, whatever the rule
    stated = photo.as_json()
    assert stated["file"] == "photo.png"
    assert stated["pixels_sha256"].keys() == {"256", "64"}
    for side in (256, 64):
        pixels = preprocess(photo.picture, side, rule)
        assert (pixels.shape, pixels.dtype) == ((side, side, 3), np.uint8)
        assert stated["pixels_sha256"][str(side)] == sha256_bytes(pixels.tobytes())


def test_the_two_image_rules_make_different_bytes(exported_tiny):
    build = read_build(exported_tiny)
    padded, cropped = (worked_photo(replace(build, image_rule=rule)).pixels_sha256 for rule in ("pad", "crop"))
    assert padded.keys() == cropped.keys() == set(build.image_sizes)
    assert all(padded[side] != cropped[side] for side in padded)
