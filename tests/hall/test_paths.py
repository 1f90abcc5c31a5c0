"""The rule for paths that a file names: plain, relative, below the root, without links; and how they are opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.errors import BuildError, PackageError
from fastvlm.paths import (
    check_tree,
    contained,
    is_plain,
    open_contained,
    open_followed,
    open_plain,
    read_contained,
)

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    return tmp_path / "root"


def test_what_is_opened_is_what_was_checked(folder: Path) -> None:
    for root in (folder, folder.parent / "link"):  # the root is the user's own word
        with open_contained(root, "a/file", most=5) as file:
            (folder / "a" / "file").rename(folder / "a" / "moved")
            (folder / "a" / "file").write_bytes(b"other")
            assert file.read() == b"12345"
        (folder / "a" / "moved").replace(folder / "a" / "file")
    assert read_contained(folder, "a/file", 5) == b"12345"


REFUSED = {
    "a": "is no plain file", "a/file/x": "is a link or no plain file", "a/pipe": "is no plain file",
    "a/link": "is a link", "way/file": "is a link", "../x": "plain relative path", "a/socket": "is no plain file",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_file_is_not_opened(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "a" / "pipe")
    (folder / "a" / "link").symlink_to("file")
    (folder / "way").symlink_to("a")
    monkeypatch.chdir(folder / "a")  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    before = os.listdir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else []
    with pytest.raises(PackageError, match=REFUSED[name]):
        open_contained(folder, name, PackageError)
    assert len(os.listdir("/proc/self/fd") if before else []) == len(before), "descriptors are closed"


def test_sizes_and_missing_files_have_their_own_words(folder: Path) -> None:
    with pytest.raises(BuildError, match="has 5 bytes, at most 4 are read"):
        open_contained(folder, "a/file", most=4)
    with pytest.raises(FileNotFoundError):
        open_contained(folder, "a/none")
    with pytest.raises(BuildError, match="has no a/none; copy it"):
        open_contained(folder, "a/none", missing="copy it")


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "\ud800"])
def test_names_that_no_file_has_are_an_os_error(path: str) -> None:
    for opened in (open_plain, open_followed):
        with pytest.raises(OSError):
            opened(path)


def test_a_tree_for_a_library_holds_plain_files_alone(folder: Path) -> None:
    check_tree(folder)
    with pytest.raises(BuildError, match="more than 1 files"):
        check_tree(folder, most=1)
    (folder / "a" / "link").symlink_to("file")
    with pytest.raises(PackageError, match="is a link"):
        check_tree(folder, PackageError)
