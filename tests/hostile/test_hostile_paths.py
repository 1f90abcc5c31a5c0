"""Names that lead out, or that systems read differently: every reader refuses all, and the canary stays as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import pytest
from foreign_readers import Reader, readers
from ordeal import Case, in_lines, tally, try_all
from path_attacks import led, names

import fastvlm_ref.checkpoint.folder
import validation.ort.external
from fastvlm import paths
from fastvlm.errors import FastVLMError

SECONDS = 2.0
SHOWN = 400  # characters: no message carries a stranger's text on without end


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    found = readers(tmp_path_factory.mktemp("paths"))
    for reader in found:
        (reader.folder / reader.below / "a" / "b").mkdir(parents=True, exist_ok=True)
    return found


def attempt(reader: Reader, name: str) -> Callable[[], object]:
    def run() -> object:
        try:
            with led(reader, name):
                reader.read(name)
        except FastVLMError as error:
            said = str(error).replace(str(reader.folder), "").replace(str(reader.folder.parent), "")
            assert len(said) < SHOWN, f"{len(said)} characters: {said[:100]!r}"
            assert said.isprintable(), f"{said!r} writes to the terminal"
            raise
        raise AssertionError("accepted")

    return run


def cases(found: Sequence[Reader], count: int = 60) -> list[Case]:
    return [
        (f"{reader.title}: name {number} {name!r:.60}", attempt(reader, name))
        for reader in found
        for number, name in enumerate(names(reader)[:count])
    ]


def digests(found: Sequence[Reader]) -> list[str]:
    """What the canaries hold."""
    return [hashlib.sha256(reader.canary.read_bytes()).hexdigest() for reader in found]


def test_every_name_is_refused_by_every_reader(prepared: list[Reader]) -> None:
    before = digests(prepared)
    outcomes = try_all(cases(prepared), SECONDS)
    refused = sum(outcome.kind == "named" for outcome in outcomes)
    bad = tally("paths (.., absolute, NUL, NFC/NFD twins, …) × readers", outcomes, refused=refused)
    assert not bad, in_lines(bad)
    assert refused == len(outcomes) == 60 * len(prepared)
    assert digests(prepared) == before


def test_without_the_allow_list_names_lead_out(prepared: list[Reader], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (paths, fastvlm_ref.checkpoint.folder, validation.ort.external):
        monkeypatch.setattr(module, "is_plain", lambda relative: isinstance(relative, str))
    outcomes = try_all(cases(prepared), SECONDS)
    accepted = {outcome.name.partition(":")[0] for outcome in outcomes if "accepted" in outcome.detail}
    assert accepted == {reader.title for reader in prepared}
