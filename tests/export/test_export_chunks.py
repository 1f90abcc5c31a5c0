"""How the language model is cut into packages: as few as the limit allows, even, in order, and the same answers."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_export import CONTEXT, QUERY, sizes_of, small_config, small_model

from export.api import export_model
from export.build import WEIGHT_FILE
from export.chunks import HEAD_CAP, Chunk, HeadSplit, chunks, even_runs, head_split
from export.plan import FILE_SIZES, ExportPlan
from fastvlm.build import read_build
from fastvlm.errors import UsageError
from fastvlm.manifest import read_manifest
from fastvlm_ref.config import TextConfig
from fastvlm_ref.synthetic.sizes import SIZES
from validation.engine import PackageEngine


def official(size: str) -> TextConfig:
    return SIZES[size].text


def cut(text: TextConfig, target: str = "ane", limit: int | None = None) -> tuple[Chunk, ...]:
    plan = ExportPlan((1024,), 2048, 64, target=target, max_file_size=limit or FILE_SIZES[target])
    return chunks(text, plan, sizes_of(text, plan))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(0, 60))
def test_runs_are_the_fewest_and_the_most_even(sizes: list[int], more: int) -> None:
    """Held against every way to cut the list."""
    limit = max(sizes) + more
    runs = even_runs(sizes, limit)
    assert [first for first, _ in runs] == [0, *(last for _, last in runs[:-1])]
    assert runs[-1][1] == len(sizes)
    best = None
    for count in range(1, len(sizes) + 1):
        for inner in combinations(range(1, len(sizes)), count - 1):
            most = max(sum(sizes[a:b]) for a, b in pairwise((0, *inner, len(sizes))))
            if most <= limit and (best is None or best[0] == count):
                best = (count, most if best is None else min(best[1], most))
        if best is not None:
            break
    assert (len(runs), max(sum(sizes[a:b]) for a, b in runs)) == best


@given(st.integers(1, 300_000))
def test_a_split_head_has_every_row_and_no_output_beyond_the_cap(rows: int) -> None:
    text = small_config(vocab_size=rows).text
    split = head_split(text, "ane")
    assert (split.count - 1) * split.rows < rows <= split.count * split.rows
    assert split.rows < HEAD_CAP
    assert split.count == 1 or split.rows % 32 == 0
    assert head_split(text, "gpu") == HeadSplit(1, rows)


def test_official_sizes() -> None:
    """DESIGN's numbers: ten outputs, one file of 0.5B, three of 1.5B; a head of 7B is larger than a file may be."""
    assert head_split(official("0.5b"), "ane") == HeadSplit(10, 15_200)
    assert [len(cut(official(size), "gpu")) for size in SIZES] == [1] * len(SIZES)
    assert len(cut(official("0.5b"))) == 1
    assert len(cut(official("1.5b"))) == 4
    seven = cut(official("7b"))
    assert [chunk.layers for chunk in seven] == [2] * 14 + [0, 0]
    assert [len(chunk.parts) for chunk in seven] == [0] * 14 + [5, 5]
    assert [chunk.filling for chunk in seven] == [False] * 13 + [True, False, False]
    assert seven[3].package == "LanguageModel-4of16.mlpackage"


@pytest.mark.parametrize(
    ("limit", "vocabulary", "said"),
    [
        (80_000, 300, r"one decoder layer takes 90,\d\d\d; give at least 90\d\d\d, or"),
        (200_000, 3001, "one output of the head"),
    ],
)
def test_a_file_that_holds_not_even_one_part_is_refused(limit: int, vocabulary: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        cut(small_config(vocab_size=vocabulary).text, "ane", limit)


@pytest.mark.parametrize(
    "limit", [pytest.param(None, marks=pytest.mark.long), pytest.param(500_000, marks=pytest.mark.long), 210_000]
)
def test_a_chain_gives_the_numbers_of_one_package(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: prefill in chunks, `decode` at the end of the context and behind it; no file beyond the limit."""
    model = small_model(layers=5, vocab_size=3001)
    asked: dict[str, Any] = {"context": CONTEXT, "query_length": QUERY, "only": "language"}
    whole = export_model(model, tmp_path / "whole", **asked)
    monkeypatch.setattr("export.chunks.HEAD_CAP", 1600)  # parts that the runtime lays out as it does the whole
    chain = export_model(model, tmp_path / "chain", max_file_size=limit, **asked)
    packages = read_build(chain).language
    assert len(packages) == {None: 1, 500_000: 2, 210_000: 5}[limit]
    sizes = [(stage.package / WEIGHT_FILE).stat().st_size for stage in packages]
    assert max(sizes) <= (limit or max(sizes))
    assert [entry.get("state") is not None for entry in read_manifest(chain)["functions"]["language"]] == [
        stage.state for stage in packages
    ]
    engines = [PackageEngine(read_build(build)) for build in (whole, chain)]
    embeds = model.decoder.embed_tokens(torch.arange(CONTEXT - 2) * 7 % 3001).numpy()
    for engine in engines:
        engine.prefill(embeds[:-1])  # whole chunks, a padded one, and where that would leave the context one by one
    logits = [[engine.decode(row) for row in (embeds[-1:], embeds[3:4])] for engine in engines]
    assert np.array_equal(logits[0], logits[1])
    assert logits[0][0].shape == (3001,)
    with torch.no_grad():
        reference = model.decoder.head(model.decoder(torch.from_numpy(np.concatenate((embeds, embeds[3:4])))[None]))
    assert np.abs(reference[0, -1].numpy() - logits[1][1]).max() < 0.1 * reference[0, -1].std()


def test_a_swapped_chain_is_another_model(tmp_path: Path) -> None:
    """The test above can fail: the order of the packages matters."""
    model = small_model(layers=6)
    build = export_model(
        model, tmp_path / "build", context=CONTEXT, query_length=QUERY, only="language", max_file_size=200_000
    )
    right = PackageEngine(read_build(build))
    swapped = PackageEngine(read_build(build))
    first, second, *rest = right.build.language
    swapped._chain.stages = (second, first, *rest)
    rows = model.decoder.embed_tokens(torch.arange(3)).numpy()
    logits = []
    for engine in (right, swapped):
        engine.prefill(rows[:-1])
        logits.append(engine.decode(rows[-1:]))
    assert np.abs(logits[0] - logits[1]).max() > 0.1 * logits[0].std()
