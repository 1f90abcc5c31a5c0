"""What a build's manifest may say: each limit of a number, size and hash taken away, and what it was for is taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from manifest_attacks import MANIFESTS
from one_check_less import checks_of, without
from ordeal import try_all
from package_attacks import cases
from test_hostile_found import put

from fastvlm import build as reader
from fastvlm.build import read_build
from fastvlm.errors import BuildError

NUMBERS: dict[str, tuple[Any, tuple[str, ...]]] = {  # and the limits behind which it is taken
    "image.sizes": ([8192], ("LARGEST_SIDE",)),
    "model.text.head_dim": (1 << 20, ("LARGEST_HEAD",)),
    "context": (1 << 22, ("LONGEST", "LARGEST_MASK")),
    "query_length": (1 << 20, ("LARGEST_MASK",)),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_is_taken_without_its_limit(
    number: str, exported_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, limits = NUMBERS[number]
    build = Path(shutil.copytree(exported_tiny, tmp_path / "build"))
    put(build / "manifest.json", number, value)
    with pytest.raises(BuildError, match=rf"cannot be run: {number}"):
        read_build(build)
    for limit in limits:
        monkeypatch.setattr(reader, limit, 1 << 60)
    assert read_build(build)


class Same:
    """Equal to any hash."""

    def __eq__(self, _: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def test_a_longer_file_is_taken_without_its_size_and_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = {"longer": MANIFESTS["a file that is longer"]}
    (size,) = (check for check in checks_of("fastvlm.manifest") if "st_size" in check.words)
    without(size, monkeypatch)
    (outcome,) = try_all(cases(attack, tmp_path))
    assert "its bytes changed" in outcome.detail, "the hash stands behind the size"
    monkeypatch.setattr("fastvlm.manifest.sha256_open", lambda *_: Same())
    (outcome,) = try_all(cases(attack, tmp_path))
    assert "it was taken" in outcome.detail, outcome
