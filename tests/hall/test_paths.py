"""The rule for paths that a file names: plain, relative, below the root, without links."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.errors import BuildError, PackageError
from fastvlm.paths import contained, is_plain

ATTACKS = [
    "../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/.", "a/..", "..", "a\\b", "C:\\x", "C:/x", "~/x", "a\0b",
    "a\nb", "a/", "/", "x" * 300, "a/" * 40 + "b", "%2e%2e/x", "ﬁle", "a:b", " a", "a ", "$HOME", None, 3, ["a"],
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_attacks_are_refused(tmp_path: Path, attack: object) -> None:
    with pytest.raises(BuildError, match="plain relative path"):
        contained(tmp_path, attack)


@pytest.mark.parametrize(
    "name", ["manifest.json", "V.mlpackage/Data/com.apple.CoreML/weights/weight.bin", ".hidden", "a b/c", "x=1"]
)
def test_plain_names_pass(tmp_path: Path, name: str) -> None:
    assert contained(tmp_path, name) == tmp_path / name


def test_links_are_refused_on_the_way_and_at_the_end(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("")
    root = tmp_path / "root"
    root.mkdir()
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "file")
    for name in ("folder/file", "file"):
        with pytest.raises(PackageError, match="is a link"):
            contained(root, name, PackageError)


@given(st.text(alphabet="ab./\\~ :\n\0é", max_size=20))
def test_whatever_is_plain_stays_below(name: str) -> None:
    if is_plain(name):
        root = Path("/root-of-nothing")
        assert (root / name).is_relative_to(root)
        assert ".." not in (root / name).parts
