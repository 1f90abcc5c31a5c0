"""Whatever a user names, or a folder holds beside its weights, is opened by the path rule: nothing waits or has no end.

Each reader meets a pipe, a link to a device that never ends, and a file that is larger than what it reads. A search of
the rooms' code finds readers that do not go by the rule, so that a new one is told here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from ordeal import Case, in_lines, try_all

from export.compression.recipe_text import read_text
from fastvlm.build import read_build
from fastvlm.commands.report import _read
from fastvlm.errors import CheckpointError
from fastvlm.hashes import list_tree
from fastvlm_ref.prompt import template_option
from fastvlm_ref.ready_prompts import read_own
from fastvlm_ref.synthetic.folder import is_synthetic
from fastvlm_ref.training.saving import is_trained
from fastvlm_ref.training.stages import STAGE_3
from fastvlm_ref.training.state import StateFile
from validation.mac_check.answers import selftest
from validation.mac_check.report import read_report
from validation.sweep.identity import _sampled

MEMORY = 160 * 2**20  # bytes that a case may take: files of 64 MiB are read, and one more byte
Reader = Callable[[Path], object]


def state(file: Path) -> object:
    return StateFile(file.parent, STAGE_3, {}).read()


def worked_example(file: Path) -> object:
    return selftest(read_build(file.parents[1]))


READERS: dict[str, tuple[str, Reader, tuple[object, ...]]] = {
    "report --profile": ("profile.json", lambda file: _read(str(file)), ()),
    "a recipe": ("recipe.yaml", read_text, ()),
    "--template": ("mine.json", lambda file: template_option(str(file)), ()),
    "prompts.json": ("prompts.json", read_own, ()),
    "a device report": ("device-report.json", read_report, ()),
    "a build's self-test": ("selftest/selftest.json", worked_example, ()),
    "a run's state": (f"{STAGE_3.name}.pt", state, ()),
    "a card that may be synth's": ("README.md", lambda file: is_synthetic(file.parent), (False,)),
    "a card that may be train's": ("README.md", lambda file: is_trained(file.parent), (False,)),
}
ALLOWED = {  # files whose readers need no rule, and why
    "fastvlm/owners.py": "the system's own, and notes of ours by O_NOFOLLOW",
    "fastvlm/paths.py": "the rule itself",
    "fastvlm/cli.py": "the null device",
    "fastvlm/steps.py": "what is written and synced",
    "fastvlm_ref/samples.py": "shipped with the package",
    "export/parts_key.py": "this project's own code",
    "export/weightfile.py": "what was written right before",
    "export/package.py": "what is written",
    "export/embeddings.py": "what is written",
    "export/onnx/data.py": "what is written",
    "fastvlm_ref/synthetic/shards.py": "what is written",
    "fastvlm_ref/files.py": "the target of a copy",
    "fastvlm_ref/training/loop.py": "a curve that is added to",
    "fastvlm_ref/training/state.py": "what is written",
    "ios_bundle/copying.py": "the copy of this run",
    "validation/audit/provenance.py": "files of a temporary folder of its own",
    "validation/coreml/parcels.py": "parcels between a process and its child",
    "validation/faults/bench.py": "a copy of its own, to plant faults in",
    "validation/html_report/page.py": "shipped with the package",
    "validation/machine.py": "the system's own",
    "validation/memory.py": "the system's own",
    "validation/ort/cores.py": "the system's own",
    "validation/sweep/rows.py": "a lock",
    "validation/within_memory.py": "the system's own",
}
PLAIN = re.compile(r"\.read_bytes\(|\.read_text\(|(?<![\w.])(?<!def )open\(|\bos\.open\(|(?<!self)\.open\(\"")
ROOMS = ("fastvlm", "validation", "export", "fastvlm_ref", "ios_bundle")


def place(kind: str, file: Path) -> None:
    file.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as handle:
            handle.truncate(600 << 20)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "600 MiB"])
def test_nothing_that_is_named_waits_or_has_no_end(kind: str, tiny_build: Path, tmp_path: Path) -> None:
    (tiny_build / "selftest").mkdir(exist_ok=True)
    cases: list[Case] = [("warm", lambda: None)]
    for name, (file, read, results) in READERS.items():
        folder = tiny_build if "/" in file else tmp_path / name
        folder.mkdir(exist_ok=True)
        place(kind, folder / file)
        cases.append((name, lambda path=folder / file, read=read, results=results: _tried(read, path, results)))  # type: ignore[misc]
    outcomes = try_all(cases, seconds=5, memory=MEMORY)
    bad = [one for one in outcomes if not one.held]
    assert not bad, in_lines(bad)
    silent = [name for name, (_, _, results) in READERS.items() if results]
    assert [one.name for one in outcomes if one.kind == "passed"] == ["warm", *silent]


def _tried(read: Reader, path: Path, results: tuple[object, ...]) -> None:
    assert read(path) in results


def test_a_file_that_became_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(OSError, match="no plain file"):
        _sampled(tmp_path / "model.safetensors")


def test_every_reader_of_the_rooms_goes_by_the_rule_or_is_known(root: Path) -> None:
    found = {
        f"{room}/{name}"
        for room in ROOMS
        for name in list_tree(root / room)
        if name.endswith(".py") and PLAIN.search((root / room / name).read_text("utf-8"))
    }
    assert found == ALLOWED.keys()


def test_a_state_that_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    os.mkfifo(StateFile(tmp_path, STAGE_3, {}).path)
    with pytest.raises(CheckpointError, match=r"cannot be read \([^(]*\); remove it, or choose another --work folder$"):
        StateFile(tmp_path, STAGE_3, {}).read()
