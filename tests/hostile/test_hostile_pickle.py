"""A pickle that means harm is refused, and nothing of it ran; one that is true is read, whoever wrote it how."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ordeal import Case, in_lines, tally, try_all
from pickle_traps import GOOD, lies, saved, traps, with_pickle

from fastvlm.errors import CheckpointError
from fastvlm_ref.checkpoint import pickled
from fastvlm_ref.checkpoint.pickled import read_pickle


def refused(file: Path, content: bytes, marker: Path) -> None:
    file.write_bytes(content)
    try:
        read_pickle(file)
    except CheckpointError as error:
        assert not marker.exists(), "it ran"
        said = str(error)
        assert said.startswith(str(file))
        assert len(said) < 500
        assert said.isprintable()
        raise
    finally:
        marker.unlink(missing_ok=True)
    raise AssertionError("it was taken")


def cases(folder: Path, found: dict[str, bytes]) -> list[Case]:
    def case(content: bytes) -> Callable[[], object]:
        return lambda: refused(folder / "it.bin", content, folder / "marker")

    return [(name, case(content)) for name, content in found.items()]


@pytest.fixture(scope="module")
def read_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What torch imports at its first load, every child has already."""
    file = tmp_path_factory.mktemp("good") / "it.bin"
    file.write_bytes(saved(GOOD))
    read_pickle(file)


@pytest.mark.usefixtures("read_once")
def test_every_trap_is_refused_and_none_runs(tmp_path: Path) -> None:
    found = traps(tmp_path / "marker")
    assert len(found) >= 16
    outcomes = try_all(cases(tmp_path, found), seconds=5.0)
    assert tally("malicious pickles", outcomes) == [], in_lines([one for one in outcomes if not one.held])
    assert {outcome.kind for outcome in outcomes} == {"named"}


@pytest.mark.usefixtures("read_once")
def test_every_lie_of_a_pickle_is_named(tmp_path: Path) -> None:
    outcomes = try_all(cases(tmp_path, lies()), seconds=5.0, memory=128 * 2**20)
    assert tally("pickles that lie", outcomes) == [], in_lines([one for one in outcomes if not one.held])


@pytest.mark.usefixtures("read_once")
def test_without_the_checks_a_trap_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("os.system", "open", "STACK_GLOBAL", "INST")
    found = {name: content for name, content in traps(tmp_path / "marker").items() if name in names}
    assert len(found) == len(names)
    monkeypatch.setattr(pickled, "_check_ops", lambda _: None)
    monkeypatch.delattr(pickled._Reader, "find_class")
    outcomes = try_all(cases(tmp_path, found))
    assert [outcome.held for outcome in outcomes] == [False] * len(names), in_lines(outcomes)
    assert all("it ran" in outcome.detail for outcome in outcomes)


REDS: dict[str, tuple[str, Any, str]] = {
    "opcodes": ("_check_ops", lambda _: None, "tuples that take for ever to hash"),
    "directory": ("_check_directory", lambda *_: None, "a comment"),
    "tensors": ("_check", lambda _: None, "one value seen 2^30 times"),
    "names": ("is_name", lambda _: True, "a name that a terminal obeys"),
    "count": ("TENSOR_LIMIT", 10**6, "tensors by the ten thousand"),
}


@pytest.mark.usefixtures("read_once")
@pytest.mark.parametrize("red", REDS)
def test_without_its_check_a_lie_passes(red: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, instead, lie = REDS[red]
    monkeypatch.setattr(pickled, name, instead)
    (outcome,) = try_all(cases(tmp_path, {lie: lies()[lie]}), seconds=2.0)
    assert not outcome.held, outcome


TRUE: dict[str, Any] = {
    "a table": {"a": torch.randn(3, 4).bfloat16(), "b": torch.nn.Parameter(torch.randn(2)), "c": torch.tensor(1.5)},
    "in order": OrderedDict(a=torch.randn(2).half(), b=torch.randn(0, 3).double()),
    "of a module": torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)).state_dict(),
    "turned": {"a": torch.randn(4, 3).t()},
    "parts of one": (lambda whole: {"a": whole, "b": whole[1:, 2:], "c": whole[0]})(torch.randn(5, 5)),
    "nothing": {},
}


@pytest.mark.parametrize("name", TRUE)
def test_what_torch_saves_is_read(name: str, tmp_path: Path) -> None:
    file = tmp_path / "it.bin"
    torch.save(TRUE[name], file)
    found = read_pickle(file)
    assert found.keys() == TRUE[name].keys()
    for key, value in TRUE[name].items():
        assert torch.equal(found[key].read(), value.float())


def test_an_old_pickle_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "it.bin"
    torch.save(GOOD, file, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"it is no zip; torch writes zips since 1\.6\); save it again"):
        read_pickle(file)
    file.write_bytes(with_pickle(pickle.dumps(GOOD, 4)))
    with pytest.raises(CheckpointError, match=r"opcode FRAME at 2, .* \(its pickle_protocol is 4; leave that to"):
        read_pickle(file)


WEIGHT = torch.ones(2, 3)
HELP: dict[str, tuple[Any, str]] = {
    "expanded": ({"a": torch.ones(1).expand(5)}, r"'a' of \(5,\) in a storage of 1 values \(it was .*contiguous\(\)\)"),
    "wrapped": ({"state_dict": {"a": WEIGHT}}, r"'state_dict' is a table of its own; save that one alone"),
    "a module's, wrapped": (
        {"state_dict": torch.nn.Linear(2, 3).state_dict()},
        "a table within another save the inner",
    ),
    "whole numbers": ({"a": WEIGHT, "position_ids": torch.arange(5)}, "'position_ids' holds int64; leave it out"),
    "no tensor": ({"a": WEIGHT, "step": 3}, "'step' is no tensor under a name"),
    "no table": ((WEIGHT,), "something else than a table of names and float tensors: a tuple"),
    "a tensor": (WEIGHT, "something else than a table of names and float tensors: one tensor alone"),
}


@pytest.mark.parametrize("name", HELP)
def test_what_is_no_table_of_float_tensors_says_how_to_save_one(name: str, tmp_path: Path) -> None:
    held, said = HELP[name]
    torch.save(held, tmp_path / "it.bin")
    with pytest.raises(CheckpointError, match=said) as caught:
        read_pickle(tmp_path / "it.bin")
    assert str(caught.value).endswith("where TENSORS is one dict of names and float tensors")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
