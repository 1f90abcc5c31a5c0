"""The self-test of a bundle: green as it was made, red for every host that is nearly right; `verify --run` shows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fastvlm.cli import cli
from fastvlm.errors import BundleError, ExecutionError
from fastvlm_ref.samples import shipped_samples
from validation import bundle_selftest
from validation.backends import Predictor
from validation.bundle_host.host import Host
from validation.bundle_selftest import SelfTestResult, run_selftest

Change = Callable[[pytest.MonkeyPatch], None]


def missed(result: SelfTestResult) -> set[str]:
    """The checks that did not hold, by the words before the colon."""
    return {check.name.partition(":")[0] for check in result.checks if not check.passed}


@pytest.mark.parametrize("bundle", ["tiny_bundle", "odd_bundle"])
def test_every_check_holds(bundle: str, request: pytest.FixtureRequest) -> None:
    result = run_selftest(request.getfixturevalue(bundle))
    assert missed(result) == set()
    assert result.ties == 0
    assert shipped_samples()[0].answer.startswith(result.text)
    sizes = {"tiny_bundle": [256], "odd_bundle": [128, 256]}[bundle]
    assert [check.name for check in result.checks] == [
        *(f"photo at {size}: hash differs" for size in sizes),
        "picture: hash differs", "image tokens: PSNR, dB", "prompt: ids that differ",
        "ready-made prompts: ids that differ", "rows of embeddings: hash differs", "logits: error over spread",
        "answer: tokens that differ",
    ]  # fmt: skip


# Planted faults: what a host may get wrong


def wrapped(name: str, change: Callable[..., Any]) -> Change:
    """Plants `change(old, host, …)` in the place of a method of the host."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        old = getattr(Host, name)
        patch.setattr(Host, name, lambda *given: change(old, *given))

    return plant


def resampled(patch: pytest.MonkeyPatch) -> None:
    """Every place looks at four others, as an image view that scales does."""
    from PIL import Image

    def square(pixels: np.ndarray, size: int, strategy: str) -> np.ndarray:
        side = max(pixels.shape[:2])
        high, wide = ((side - length) // 2 for length in pixels.shape[:2])
        padded = np.pad(pixels, ((high, side - pixels.shape[0] - high), (wide, side - pixels.shape[1] - wide), (0, 0)))
        grid = (size, size)
        matrix = (side / size, 0, 0, 0, side / size, 0)
        turned = Image.fromarray(padded).transform(grid, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        return np.asarray(turned)

    patch.setattr(bundle_selftest, "square", square)


def decode_only(shift: int) -> Callable[..., Any]:
    """A shift of positions in `decode` alone: one of all positions alike is invisible to rotary embeddings."""
    return lambda old, host, position, query: old(host, position + (query == 1) * shift, query)


FAULTS: dict[str, tuple[Change, set[str]]] = {
    "resize without antialias": (resampled, {"photo at 256"}),
    "rope at the next position": (wrapped("rope", decode_only(1)), {"logits"}),
    "cosines and sines swapped": (wrapped("rope", lambda old, *given: old(*given)[::-1]), {"logits"}),
    "mask one too short": (wrapped("mask", lambda old, host, at, *rest: old(host, at - 1, *rest)), {"logits"}),
    "mask one too long": (wrapped("mask", lambda old, host, at, *rest: old(host, at + 1, *rest)), {"logits"}),
    "no mask": (wrapped("mask", lambda old, *given: old(*given) * 0), {"logits"}),
    "rows of the next id": (
        wrapped("embed", lambda old, host, ids: old(host, [min(id_ + 1, 575) for id_ in ids])),
        {"rows of embeddings", "logits"},
    ),
    "red and blue swapped": (
        wrapped("features", lambda old, host, pixels: old(host, pixels[..., ::-1])), {"image tokens", "logits"},
    ),
    "image tokens in another order": (
        wrapped("features", lambda old, *given: old(*given)[::-1]), {"image tokens", "logits"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_host_that_is_nearly_right_is_found(name: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, expected = FAULTS[name]
    plant(monkeypatch)
    assert expected <= missed(run_selftest(tiny_bundle)) <= expected | {"answer"}


def test_scales_of_other_rows_are_found(odd_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rows' own hash: the norms behind them hide most of it from what the limits of int8 allow."""
    made = Host.__init__

    def init(host: Host, *given: Any) -> None:
        made(host, *given)
        assert host.scales is not None
        host.scales = host.scales[::-1]

    monkeypatch.setattr(Host, "__init__", init)
    assert missed(run_selftest(odd_bundle)) == {"rows of embeddings"}


class Flushing:
    """An engine that flushes an RMSNorm's eps: of a row of zeros it makes 0 · rsqrt(0), NaN."""

    def __init__(self, inner: Predictor) -> None:
        self.inner, self.make_state = inner, inner.make_state

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        if "inputsEmbeds" in data:
            rows = data["inputsEmbeds"]
            data = data | {"inputsEmbeds": np.where((rows == 0).all(-1, keepdims=True), np.float16("nan"), rows)}
        return self.inner.predict(data, state)


def test_padding_with_zeros_is_found_where_an_engine_flushes(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The MIL runtime flushes nothing and masks what is padded: there a host that pads with zeros does no harm."""
    wrapped("function", lambda old, *given: Flushing(old(*given)))(monkeypatch)
    assert run_selftest(tiny_bundle).passed

    def zeros(old: Callable[..., Any], host: Host, name: str, position: int, rows: np.ndarray) -> Any:
        if name == "prefill":
            rows = np.concatenate((rows, np.zeros((1, rows.shape[1]), np.float16)))
        return old(host, name, position, rows)

    wrapped("call", zeros)(monkeypatch)
    with pytest.raises(ExecutionError, match="0 of 576 logits are numbers"):
        run_selftest(tiny_bundle)


# The example itself


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object], name: str = "selftest/selftest.json") -> None:
    """Changes a JSON file of a bundle in place."""
    content = json.loads((bundle / name).read_bytes())
    change(content)
    (bundle / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda test: test.update(pixels_sha256="0" * 64), {"picture"}),
        (lambda test: test["photo"]["pixels_sha256"].update({"256": "0" * 64}), {"photo at 256"}),
        (lambda test: test["ids_after_image"].append(7), {"prompt", "rows of embeddings", "logits", "answer"}),
        (lambda test: test.update(rows_sha256="0" * 64), {"rows of embeddings"}),
        (lambda test: test["tolerances"].update(features_psnr_db=90), {"image tokens"}),
        (lambda test: test["top_logits"][3][2].__setitem__(1, 9.0), {"logits"}),
    ],
)
def test_another_example_is_missed(change: Callable[[dict[str, Any]], object], expected: set[str], copy: Path) -> None:
    edit(copy, change)
    assert expected >= missed(run_selftest(copy)) > set()


def test_a_token_whose_logit_is_as_good_is_a_tie_and_another_of_the_eight_is_not(copy: Path) -> None:
    """Where the error is within its limit; the step behind follows the example's token all the same."""

    def last(test: dict[str, Any]) -> None:
        test["greedy_ids"][-1] = test["top_logits"][-1][1][0]

    def wide(test: dict[str, Any]) -> None:
        (_, best), (_, second) = test["top_logits"][-1][:2]
        test["tolerances"]["logit_error_over_spread"] = 0.6 * (best - second) / test["spreads"][-1]

    edit(copy, last)
    apart = run_selftest(copy)
    assert missed(apart) == {"answer"}
    assert apart.ties == 0
    edit(copy, wide)
    tied = run_selftest(copy)
    assert tied.passed
    assert tied.ties == 1
    edit(copy, lambda test: test["top_logits"][-1].pop(0))
    assert missed(run_selftest(copy)) == {"answer"}


def eight_best_reversed(old: Callable[..., Any], host: Host, *given: Any) -> Any:
    """A host whose every token is wrong, and whose logits are spread so wide that no error counts beside them."""
    steps = old(host, *given)
    logits = next(steps)
    while True:
        logits = logits.copy()
        best = np.argsort(-logits)[:8]
        logits[best], logits[np.argmin(logits)] = logits[best][::-1], -65504
        try:
            logits = steps.send((yield logits))
        except StopIteration:
            return


def test_a_host_does_not_excuse_itself_by_its_own_spread(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped("steps", eight_best_reversed)(monkeypatch)
    result = run_selftest(tiny_bundle)
    assert missed(result) == {"logits", "answer"}
    answer = next(check for check in result.checks if check.name.startswith("answer"))
    assert answer.value > 0
    assert result.ties + answer.value == len(
        json.loads((tiny_bundle / "selftest/selftest.json").read_bytes())["greedy_ids"]
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0, -1])
def test_a_spread_that_is_none_is_missed(number: float, copy: Path) -> None:
    edit(copy, lambda test: test["spreads"].__setitem__(2, number))
    assert missed(run_selftest(copy)) == {"logits"}


def test_a_logit_that_is_no_number_is_missed(copy: Path) -> None:
    """Though it is not the first step's, which alone a comparison that passes NaN by would keep."""
    edit(copy, lambda test: test["top_logits"][3][2].__setitem__(1, float("nan")))
    assert missed(run_selftest(copy)) == {"logits"}


def test_the_spreads_are_the_reference_s(copy: Path) -> None:
    test = json.loads((copy / "selftest" / "selftest.json").read_bytes())
    host = Host(copy)
    pixels = bundle_selftest.open_photo(copy / "selftest" / "picture.png")
    steps = host.steps(pixels, (test["ids_before_image"], test["ids_after_image"]), len(test["greedy_ids"]))
    assert len(test["spreads"]) == len(test["greedy_ids"])
    assert [float(logits.std()) for logits in steps] == pytest.approx(test["spreads"], rel=0.02)


def test_a_ready_made_prompt_with_other_ids_is_found(copy: Path) -> None:
    edit(copy, lambda prompts: prompts["prompts"][0]["ids_after_image"].pop(), "prompts.json")
    assert missed(run_selftest(copy)) == {"ready-made prompts"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda test: test.update(schema="1.0"), "has schema 1.0, expected 0.x; install a newer fastvlm"),
        (
            lambda test: test.pop("greedy_ids"),
            r"is damaged \(KeyError\('greedy_ids'\)\); validate its build again, then",
        ),
        (lambda test: test.pop("spreads"), r"is damaged \(KeyError\('spreads'\)\); validate its build again, then"),
        (lambda test: test["spreads"].pop(), r"is damaged \(ValueError"),
        (lambda test: test["features"].update(shape=[3, 3]), r"is damaged \(ValueError"),
        (lambda test: test.update(top_logits=[]), r"is damaged \("),
        (lambda test: test.update(more=[[]] * 1_000_001), r"is damaged \(ValueError\('it has 1,0.* lists and objects"),
        (lambda test: test.update(picture="../../etc/passwd"), "expected a plain relative path"),
    ],
)
def test_a_damaged_example_is_one_sentence(change: Callable[[dict[str, Any]], object], said: str, copy: Path) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=said):
        run_selftest(copy)


def test_a_bundle_without_one_says_how_to_get_it(copy: Path) -> None:
    edit(copy, lambda metadata: metadata["files"].pop("selftest"), "metadata.json")
    with pytest.raises(BundleError, match="has no self-test: its build was not validated"):
        run_selftest(copy)


# The commands


def fastvlm(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="fastvlm")


def test_verify_run_shows_every_check_with_its_tolerance(tiny_bundle: Path) -> None:
    done = fastvlm("verify", tiny_bundle, "--run")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith(("ok", "ok  ", "MISSED"))]
    assert len(rows) == 8
    assert ["image", "tokens:", "PSNR,", "dB"] == rows[2][:4]
    assert rows[2][5:] == ["≥", "60", "ok"]
    assert f"mil: {shipped_samples()[0].answer}" in done.stdout
    assert 'IMAGE "PROMPT"' in done.stderr
    told = json.loads(fastvlm("verify", tiny_bundle, "--run", "--json").stdout)
    assert told["whole"]
    assert told["selftest"]["passed"]
    assert [row["limit"] for row in told["selftest"]["checks"]] == [0, 0, 60, 0, 0, 0, 0.15, 0]


def test_verify_run_fails_with_the_self_test(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS["no mask"][0](monkeypatch)
    done = fastvlm("verify", tiny_bundle, "--run")
    assert done.exit_code == 1
    assert "logits: error over spread" in done.stderr
    assert "do not ship it" in done.stderr
    assert "MISSED" in done.stdout


def test_a_bundle_that_is_not_whole_is_not_run(copy: Path) -> None:
    edit(copy, lambda test: test.pop("greedy_ids"))
    done = fastvlm("verify", copy, "--run")
    assert done.exit_code == 1
    assert "selftest/selftest.json" in done.stdout
    assert "is damaged" not in done.output


def test_a_backend_without_a_run_is_refused(tiny_bundle: Path) -> None:
    done = fastvlm("verify", tiny_bundle, "--backend", "mil")
    assert done.exit_code == 2
    assert "nothing is executed without --run" in done.stderr


def test_run_takes_a_bundle(tiny_bundle: Path) -> None:
    sample = shipped_samples()[1]
    done = fastvlm("run", tiny_bundle, sample.picture, sample.prompt)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{sample.answer}\n"
    assert "fastvlm verify" in done.stderr
    told = json.loads(
        fastvlm("run", tiny_bundle, sample.picture, sample.prompt, "--json", "--max-new-tokens", 1).stdout
    )
    assert told["backend"] == "mil"
    assert sample.answer.startswith(told["text"].strip())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--temperature", "0.5", "--context", "64"), "--context, --temperature: "),
        (("--system", ""), "--system: "),
        (("--allow-pickle",), "--allow-pickle: "),
        (("--then", "Why?"), "--then: "),
        (("--backend", "torch"), "--backend torch: "),
        (("--image-size", "128"), "takes no pictures of --image-size 128; it has [256]"),
    ],
)
def test_options_that_do_not_fit_a_bundle_are_refused_by_name(
    words: tuple[str, ...], said: str, tiny_bundle: Path
) -> None:
    done = fastvlm("run", tiny_bundle, shipped_samples()[0].picture, "What?", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""
