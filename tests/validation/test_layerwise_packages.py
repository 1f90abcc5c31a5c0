"""A chain with one piece of it open at a time, all samples at once, gives the numbers of all packages at once."""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.api import export_model
from fastvlm.build import Build, read_build
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.threads import one_thread
from validation.engine import PackageEngine
from validation.layerwise import packages, parts
from validation.layerwise.packages import Known, Place, Rows, led, logits_in_turn, logits_of_all

SIZES: dict[str, Any] = {"context": 96, "query_length": 16, "only": "language"}
TABLE = np.asarray(load_checkpoint("tiny").decoder.embed_tokens.weight.numpy())
# whole chunks, a padded one and single rows at the context's end; one padded chunk; nothing prefilled
ITEMS = (Known(TABLE[:93], 89), Known(TABLE[40:54], 12), Known(TABLE[7:9], 0))


@one_thread()
def in_memory(build: Build) -> list[Rows]:
    engine, found = PackageEngine(build), []
    for item in ITEMS:
        engine.reset()
        engine.prefill(item.rows[: item.filled])
        found.append(np.stack([engine.decode(row[None]) for row in item.rows[item.filled :]]))
    return found


def same(found: list[Rows], wanted: list[Rows]) -> bool:
    return all(map(np.array_equal, found, wanted))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """One package with all layers, weights in fp16, for the Neural Engine; its head in several outputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.chunks.HEAD_CAP", 256)
        return read_build(export_model(load_checkpoint("tiny"), tmp_path_factory.mktemp("ane") / "build", **SIZES))


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """One package with all layers, weights in int4, for the GPU."""
    folder = tmp_path_factory.mktemp("gpu") / "build"
    return read_build(export_model(load_checkpoint("tiny"), folder, target="gpu", quantize="int4", **SIZES))


def test_one_package(whole: Build) -> None:
    assert len(whole.language) == 1
    assert same(logits_of_all(whole, ITEMS), in_memory(whole))


@one_thread()
def test_a_package_that_is_led(whole: Build) -> None:
    """Through the tokens that another has chosen: what it gives at each of them is what it gives one by one."""
    engine, ids = PackageEngine(whole), [5, 260, 7]
    found = logits_of_all(whole, [led(TABLE[:20], ids, engine.embed), led(TABLE[:1], ids[:1], engine.embed)])
    engine.prefill(TABLE[:19])
    wanted = [engine.decode(TABLE[19:20]), *(engine.decode(engine.embed([chosen])) for chosen in ids[:-1])]
    assert np.array_equal(found[0], wanted)
    assert len(found[1]) == 1


@pytest.mark.parametrize("limit", [pytest.param(limit, marks=pytest.mark.long) for limit in (1_200_000, 800_000)])
def test_a_chain(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some packages with layers and the head behind them, and the head in packages of its own."""
    monkeypatch.setattr("export.chunks.HEAD_CAP", 256)
    build = read_build(export_model(load_checkpoint("tiny"), tmp_path / "build", max_file_size=limit, **SIZES))
    assert any(not stage.state for stage in build.language) == (limit == 800_000)
    wanted = in_memory(build)
    opened: list[Path] = []
    open_folder = parts.open_folder
    monkeypatch.setattr(parts, "open_folder", lambda folder: (opened.append(folder), open_folder(folder))[1])
    seen: list[tuple[Place, str]] = []
    found = logits_of_all(build, ITEMS, seen=lambda place, name, kind, value: seen.append((place, kind)))
    assert same(found, wanted)
    assert opened == [stage.package for stage in build.language]
    assert {(place.item, place.package) for place, _ in seen} == {(i, p) for i in range(len(ITEMS)) for p in opened}
    calls = {(place.chunk.function, place.chunk.start) for place, _ in seen if place.item == 1}
    assert calls == {("prefill", 0), ("decode", 12), ("decode", 13)}
    assert {"conv", "softmax"} <= {kind for _, kind in seen}
    assert np.array_equal(logits_in_turn(build, ITEMS[0].rows, 89), wanted[0])
    swapped = np.concatenate((TABLE[:89][::-1], TABLE[89:93]))
    assert not np.array_equal(logits_in_turn(build, swapped, 89), wanted[0])


@pytest.mark.parametrize("name", ["whole", pytest.param("compressed", marks=pytest.mark.long)])
def test_a_package_in_parts(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package larger than what may be open goes in runs of its layers, whatever its weights are stored in."""
    build: Build = request.getfixturevalue(name)
    wanted, names = in_memory(build), (set[str](), set[str]())
    logits_of_all(build, ITEMS[1:2], seen=lambda place, name, kind, value: names[0].add(name))
    alive = _watch_openings(monkeypatch)
    monkeypatch.setattr(packages, "parts_of", partial(parts.parts_of, largest=600_000))
    assert same(logits_of_all(build, ITEMS), wanted)
    assert alive == [0, 0, 0]
    logits_of_all(build, ITEMS[1:2], seen=lambda place, name, kind, value: names[1].add(name))
    assert names[0] == names[1]  # who looks for a value by its name finds it


def _watch_openings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many functions and constants of other parts are there still, at every opening of a part."""
    opened: list[weakref.ref[Any]] = []
    alive: list[int] = []
    planned = parts._planned

    def watched(*asked: Any) -> Any:
        alive.append(sum(model() is not None for model in opened))
        found = planned(*asked)
        opened.extend(weakref.ref(model) for model in found.values())
        opened.extend(weakref.ref(value) for value in asked[0].cache.values())
        return found

    monkeypatch.setattr(parts, "_planned", watched)
    return alive
