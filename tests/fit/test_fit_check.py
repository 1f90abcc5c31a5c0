"""How far the estimate is from what others measured: the errors below every answer are worked out, not just said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fit_limits import check, off

from validation.fit import check as checking
from validation.fit.check import checks, encoder_if, gpu_layer, in_a_line, reached, speeds_of, worst
from validation.fit.published import DECODE, ENCODE, FIGURES, PREFILL, Published
from validation.fit.timing import Efficiency, stage


def seconds(figure: Published, efficiency: Efficiency) -> float:
    works, speeds = figure.works(), speeds_of(figure)
    return stage("x", works, speeds, efficiency, packages=figure.packages, layers=figure.layers).seconds


def test_efficiencies_are_parts_of_the_peaks() -> None:
    for engine in ("ane", "gpu"):
        assert 0.3 < reached(engine).compute <= 1
        assert 0.3 < reached(engine).bandwidth <= 1
    assert 0 < gpu_layer() < 2e-3


def test_the_papers_figures_are_predicted_by_each_other() -> None:
    check("encoder_error", worst(ENCODE, "ane"))
    check("prefill_error", worst(PREFILL, "gpu"))


def test_figures_that_nothing_is_fitted_to() -> None:
    found = [each for each in checks() if not each.fitted]
    assert len(found) >= 4
    assert all(each.error is not None for each in found)
    check("engine_error", max(abs(each.error or 0) for each in found if each.figure.engine == "ane"))


def test_apples_pair_gives_bandwidth_and_layers() -> None:
    pair = [figure for figure in FIGURES if figure.fits and figure.stage == DECODE]
    assert len(pair) == 2
    for figure in pair:
        check("pair_error", off(seconds(figure, reached("gpu")), figure.seconds))


@pytest.mark.parametrize("name", [ENCODE, PREFILL])
def test_an_error_is_that_of_leaving_the_figure_out(name: str) -> None:
    """Worked out here by hand: the geometric mean of what the other two ask for."""
    found = [each for each in checks() if each.fitted and each.figure.stage == name]
    assert len(found) == 3
    for each in found:
        rest = [checking._asked(other.figure) for other in found if other is not each]
        left = replace(reached(each.figure.engine), compute=(rest[0] * rest[1]) ** 0.5)
        assert each.error == pytest.approx(seconds(each.figure, left) / each.figure.seconds - 1)
        own = replace(left, compute=checking._asked(each.figure))
        assert seconds(each.figure, own) == pytest.approx(each.figure.seconds)


def test_a_figure_that_is_another_changes_its_error() -> None:
    figure = next(figure for figure in FIGURES if not figure.fits)
    slower = replace(figure, value=figure.value * 2)
    before, after = (checking._checked(each).error for each in (figure, slower))
    assert before is not None
    assert after is not None
    assert 1 + after == pytest.approx((1 + before) / 2)


def test_the_line_says_the_worst() -> None:
    """The two engines apart: what holds for one says nothing of the other."""
    line = in_a_line()
    for words in (f"{worst(ENCODE, 'ane'):.0%} (encoder)", f"{worst(PREFILL, 'gpu'):.0%} (prefill on the GPU)"):
        assert words in line
    for engine, words in (("ane", "4 on the Neural Engine"), ("gpu", "2 on the GPU")):
        errors = [
            each.error
            for each in checks()
            if each.figure.engine == engine and not each.fitted and each.error is not None
        ]
        assert f"{words} by {min(errors):+.0%} to {max(errors):+.0%}" in line
    assert "\n" not in line


def test_what_nobody_measured_is_varied() -> None:
    """M1 Max's engine is taken to hold twice M1's 2 MiB; the page says what another value would do."""
    efficiency, error = encoder_if(4 << 20)
    assert (efficiency, error) == pytest.approx((reached("ane").compute, worst(ENCODE, "ane")))
    assert encoder_if(2 << 20)[0] > 1, "with M1's own, products would have to be faster than the peak"
    assert max(encoder_if(mib << 20)[1] for mib in (2, 3, 4, 6, 8, 16)) > 1.5 * error


def test_the_papers_figures_are_the_papers() -> None:
    """FastVLM, arXiv 2412.13303: FastViTHD at 256, 768, 1024, and prefills of 256 tokens, in ms on an M1 Max."""
    papers = [figure for figure in FIGURES if figure.source.startswith("FastVLM, arXiv 2412.13303")]
    assert [figure.value for figure in papers] == [6.8, 54.8, 116.3, 50.5, 116.1, 524.5]
    assert {(figure.chip, figure.unit, figure.fits) for figure in papers} == {("M1 Max", "ms", True)}
    # with the encoder's 116.3 ms its times to the first token: 166, 233, 641 ms
    assert [round(116.3 + figure.value) for figure in papers[3:]] == [167, 232, 641]


def test_every_figure_has_a_source_and_counts_as_published() -> None:
    for figure in FIGURES:
        assert figure.source
        assert figure.in_unit(figure.seconds) == pytest.approx(figure.value)
    assert {figure.unit for figure in FIGURES} == {"ms", "tokens/s"}


def test_it_is_plain_data() -> None:
    import json

    content = [each.as_json() for each in checks()]
    assert json.loads(json.dumps(content)) == content
    assert {"what", "published", "estimated", "error", "left_out", "source"} <= set(content[0])
