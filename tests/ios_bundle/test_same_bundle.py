"""The same build gives the same bundle, bytes and modes, whatever is around it: all else differs between two runs."""

from __future__ import annotations

import shutil
from pathlib import Path

from two_runs import RUNS, both, new_place, not_in_force

from ios_bundle.seal import read_seal


def test_one_tree_hash_in_two_different_runs(validated_tiny: Path, tiny_bundle: Path, root: Path) -> None:
    place = new_place()
    try:
        shutil.copytree(validated_tiny, place / "build")
        seen = both(place, root, ("bundle", "../build", "-o", "made here"))
        assert not_in_force(seen, place) == set()
        assert not any(each["coremltools"] or each["torch"] for each in seen), "a bundle needs neither"
        bundles = [place / run.name / "made here" for run in RUNS]
        seals = [read_seal(bundle)[0] for bundle in (*bundles, tiny_bundle)]
        assert seals[0] is not None
        assert seals[0] == seals[1] == seals[2]
        assert modes(bundles[0]) == modes(bundles[1]), "not even the umask shows"
    finally:
        shutil.rmtree(place)


def modes(bundle: Path) -> dict[str, int]:
    return {path.relative_to(bundle).as_posix(): path.stat().st_mode for path in (bundle, *bundle.rglob("*"))}
