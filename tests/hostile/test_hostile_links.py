"""Links, pipes, devices, and files that become others while they are read: refused by all readers, never waited for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from foreign_readers import Reader, readers
from link_attacks import ATTACKS, SWAP, attacked, read_with_a_swap
from ordeal import Case, Outcome, in_lines, tally, try_all

import validation.ort.loading
from fastvlm import paths
from fastvlm.errors import PackageError
from fastvlm.hashes import sha256_file

SECONDS = 2.0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    return readers(tmp_path_factory.mktemp("links"))


def attempt(reader: Reader, name: str) -> Callable[[], object]:
    def run() -> object:
        with attacked(reader, name):
            read_with_a_swap(reader) if name == SWAP else reader.read(reader.named)
        raise AssertionError("accepted")

    return run


def cases(found: Sequence[Reader], names: Sequence[str] = tuple(ATTACKS)) -> list[Case]:
    return [(f"{reader.title}: {name}", attempt(reader, name)) for reader in found for name in names]


def test_each_is_refused_by_every_reader_at_once(prepared: list[Reader]) -> None:
    before = [hashlib.sha256(reader.canary.read_bytes()).hexdigest() for reader in prepared]
    outcomes = try_all(cases(prepared), SECONDS)
    refused = sum(outcome.kind == "named" for outcome in outcomes)
    bad = tally("links, FIFO, device, swap during read × readers", outcomes, refused=refused)
    assert not bad, in_lines(bad)
    assert refused == len(outcomes) == 12 * len(prepared)
    assert [hashlib.sha256(reader.canary.read_bytes()).hexdigest() for reader in prepared] == before


def bad_of(prepared: list[Reader], names: Sequence[str]) -> list[Outcome]:
    """The outcomes that do not hold; a reader whose folder was left by a killed child is made good by no one."""
    return [outcome for outcome in try_all(cases(prepared, names), SECONDS) if not outcome.held]


def titles(outcomes: Sequence[Outcome]) -> set[str]:
    return {outcome.name.partition(":")[0] for outcome in outcomes}


def test_where_links_are_followed_swaps_lead_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = readers(tmp_path)
    for flags in ("_FILE", "_FOLDER"):
        monkeypatch.setattr(paths, flags, getattr(paths, flags) & ~os.O_NOFOLLOW)
    by_descriptor = [reader for reader in found if reader.between is None]
    assert titles(bad_of(found, [SWAP])) == titles([Outcome(reader.title, "") for reader in by_descriptor])
    monkeypatch.setattr(paths, "_is_link", lambda path: False)
    assert titles(bad_of(found, ["a link out"])) >= {"build manifest", "shard index", "package", "bundle"}


def test_what_a_library_opens_by_itself_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (reader,) = (reader for reader in readers(tmp_path) if reader.between is not None)
    assert reader.between is not None

    def exchange() -> None:
        copy = reader.folder / "copy"
        copy.write_bytes(reader.canary.read_bytes())
        copy.rename(reader.folder / reader.target)

    with pytest.raises(PackageError, match="exchanged while it was opened"):
        reader.between(exchange)
    monkeypatch.setattr(validation.ort.loading, "check_unchanged", lambda file: None)
    assert reader.between(exchange)


def test_where_anything_is_taken_for_a_file_reading_has_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zeros").symlink_to("/dev/zero")
    case = ("a device", lambda: sha256_file(tmp_path / "zeros"))
    with pytest.raises(OSError, match="no plain file"):
        case[1]()
    monkeypatch.setattr(paths, "is_regular", lambda status: True)
    (outcome,) = try_all([case], 1.0)
    assert outcome.kind == "timeout"


def test_where_opening_waits_a_pipe_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [reader for reader in readers(tmp_path) if reader.title == "bundle"]
    monkeypatch.setattr(paths, "_FILE", paths._FILE & ~os.O_NONBLOCK)
    (outcome,) = try_all(cases(found, ["a pipe"]), 1.0)
    assert outcome.kind == "timeout"
