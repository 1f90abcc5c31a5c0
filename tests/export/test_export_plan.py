"""What an export refuses before any heavy work, and what it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_export import small_config

from export import export
from export.plan import check_options, make_plan
from fastvlm.errors import OutputError, UsageError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_sizes": (100,)}, "--image-size is 100, expected a multiple of 64 up to 4096; 64 is the nearest below"),
        ({"image_sizes": (0,)}, "--image-size is 0"),
        ({"image_sizes": (-64,)}, "--image-size is -64"),
        ({"image_sizes": (8192,)}, "4096 is the nearest below"),
        ({"context": 100}, "--context is 100, expected a multiple of the query length 64 and of 32; .* is 128"),
        ({"context": 0}, "--context is 0"),
        ({"context": 48, "query_length": 48}, "a multiple of the query length 48 and of 32; the next that fits is 96"),
        ({"query_length": 0}, "the query length is 0"),
        ({"only": "language", "image_sizes": (128,)}, "--image-size is given with --only language"),
        ({"only": "decoder"}, "--only is 'decoder', expected encoder or language"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], said: str) -> None:
    given = {"image_sizes": (), "context": 2048, "query_length": 64, "only": None} | options
    with pytest.raises(UsageError, match=said):
        check_options(**given)  # type: ignore[arg-type]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        check_options((100, 200), 100, 64, "head")
    assert str(caught.value).count(";") >= 4
    for word in ("100", "200", "--context", "--only"):
        assert word in str(caught.value)


def test_image_that_fills_the_context() -> None:
    with pytest.raises(UsageError, match=r"an image of 1024 pixels takes 256 tokens, --context 256 leaves no room"):
        make_plan(small_config(), (1024,), context=256)
    assert make_plan(small_config(), (1024,), context=256, only="encoder").parts == ("encoder",)


@pytest.mark.parametrize(("query_length", "longest"), [(64, 262_144), (48, 349_440)])
def test_a_mask_that_no_host_makes(query_length: int, longest: int) -> None:
    """Its rows are no option of the command, and what is named in its place fits."""
    assert make_plan(small_config(), context=longest, query_length=query_length).context == longest
    with pytest.raises(UsageError, match=rf"with a query length of {query_length} needs .* is --context {longest}$"):
        make_plan(small_config(), context=longest + 96 * 64, query_length=query_length)


def test_head_dim_that_core_ml_state_cannot_hold() -> None:
    config = small_config()
    config = replace(config, text=replace(config.text, head_dim=48))
    with pytest.raises(UsageError, match=r"head dim is 48, .* multiple of 32"):
        make_plan(config)


def test_sizes_default_to_the_checkpoints_own_and_are_taken_once() -> None:
    assert make_plan(small_config()).image_sizes == (128,)
    assert make_plan(small_config(), (256, 128, 256)).image_sizes == (256, 128)


def test_output_is_checked_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        export(tmp_path / "no such checkpoint", tmp_path / "build")


def test_options_are_checked_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--context"):
        export(tmp_path / "no such checkpoint", tmp_path / "build", context=100)


@pytest.mark.parametrize("place", [".", "build", "deep/er/build"])
def test_a_build_never_lands_in_the_checkpoint(tmp_path: Path, place: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OutputError):
        export(tmp_path, tmp_path / place, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
