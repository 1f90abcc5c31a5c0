"""What this project exports, held to the rules: the encoder stays; of the decoder all but the reckoning of places."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from lint_programs import HALF  # noqa: F401  (puts tests/mil on the path first)
from rich.console import Console

from fastvlm.commands.lint import show_report
from fastvlm.devices import DEVICES
from validation.lint.checking import lint
from validation.lint.report import FunctionReport, LintReport
from validation.lint.rule import Verdict
from validation.lint.rules import RULES

BY_ID = {rule.id: rule for rule in RULES}
ENCODER, LANGUAGE = "VisionEncoder.mlpackage", "LanguageModel.mlpackage"
# Of the whole-number ops that place a row in the state; they do no floating-point work.
PLACES = {"slice_by_index", "expand_dims", "add", "sub", "mul", "concat", "squeeze", "reshape"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small seeded model, exported."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
    from small_export import CONTEXT, QUERY, SIZES, small_model

    from export.api import export_model

    target = tmp_path_factory.mktemp("lint") / "small"
    return export_model(small_model(), target, image_sizes=SIZES, context=CONTEXT, query_length=QUERY)


@pytest.fixture(params=["tiny", "small"])
def build(request: pytest.FixtureRequest) -> Path:
    """Each build."""
    found = request.getfixturevalue({"tiny": "exported_tiny", "small": "small"}[request.param])
    assert isinstance(found, Path)
    return found


def functions(report: LintReport, package: str) -> tuple[FunctionReport, ...]:
    found = [each for each in report.packages if each.name == package]
    assert len(found) == 1
    assert found[0].functions
    return found[0].functions


def test_the_encoder_stays(build: Path) -> None:
    for function in functions(lint(build), ENCODER):
        assert function.whole == ()
        assert function.leaving == ()
        assert function.flops.percent == function.bytes.percent == 100
        edge = {group.op: group.count for group in function.groups if group.verdict == Verdict.EDGE.value}
        assert edge == {"mul": 1, "cast": 1}  # the image input, nothing else
        (cast,) = [kind.count for kind in function.kinds if kind.op == "cast"]
        assert cast == 1


def test_the_decoder_stays(build: Path) -> None:
    for function in functions(lint(build), LANGUAGE):
        assert function.whole == ()
        assert function.flops.percent == 100
        assert function.bytes.percent > 99.9
        assert {broken.rule for op in function.leaving for broken in op.rules} <= {"integer"}
        assert {op.op for op in function.leaving} <= PLACES
        assert not [kind for kind in function.kinds if kind.op in ("cast", "tile", "gather", "cond")]


def test_no_device_of_the_table_says_otherwise(exported_tiny: Path) -> None:
    """Each engine once: the linter without `--device` speaks for all of them."""
    one_each = {each.engine.name: each.name for each in DEVICES}.values()
    for name in one_each:
        assert lint(exported_tiny, name).resident_percent == 100


def test_a_rule_can_take_the_decoder_away(exported_tiny: Path) -> None:
    """The figures above can fail: one limit set lower, and the products leave."""
    import dataclasses

    from validation.lint.rule import Hit

    strict = dataclasses.replace(RULES[0], finds=lambda op, _: Hit("any") if op.type in ("matmul", "conv") else None)
    report = lint(exported_tiny, rules=(strict, *RULES[1:]))
    for package in (ENCODER, LANGUAGE):
        assert all(function.flops.percent < 60 for function in functions(report, package))


def test_the_report_is_the_same_every_time(exported_tiny: Path) -> None:
    assert lint(exported_tiny).as_json() == lint(exported_tiny).as_json()


@pytest.mark.long
def test_a_chain_is_added_up(exported_tiny: Path, tmp_path: Path) -> None:
    """What the packages of a chain do in one step is what one package did, but for what the chain hands on."""
    from export import export

    chain = lint(export("tiny", tmp_path / "chain", only="language", max_file_size=1_500_000))
    assert len(chain.packages) > 2
    (one,) = [total for total in lint(exported_tiny).totals if total.name == "decode"]
    (many,) = [total for total in chain.totals if total.name == "decode"]
    assert (one.packages, many.packages) == (1, len(chain.packages))
    assert many.flops.total == pytest.approx(one.flops.total, rel=1e-3)
    assert many.flops.total == sum(each.flops.total for each in chain.functions if each.name == "decode")
    assert many.flops.percent == 100
    assert chain.as_json()["totals"][-1]["flops"]["total"] == chain.totals[-1].flops.total
    written = io.StringIO()
    show_report(chain, Console(file=written, width=200))
    assert f"decode over {len(chain.packages)} packages: 100 % of" in written.getvalue()
    assert written.getvalue().count("op for op as LanguageModel-1of4.mlpackage") == 2


@pytest.mark.parametrize(
    ("scheme", "target", "leaving", "doubts"),
    [
        ("int8", "ane", {"integer"}, {"scales-fold"}),
        ("lut4", "ane", {"integer"}, {"palette-state"}),
        ("int4", "gpu", {"integer", "blocks"}, {"scales-fold", "offsets", "linear", "offset-slice"}),
    ],
)
def test_a_compressed_decoder(scheme: str, target: str, leaving: set[str], doubts: set[str], tmp_path: Path) -> None:
    """What runs on a GPU alone (docs/compression.md) leaves by the rule on blocks, and by no other."""
    from export import export

    report = lint(export("tiny", tmp_path / "build", only="language", quantize=scheme, target=target))
    broken = {rule for rule in report.broken_rules() if BY_ID[rule].verdict is not Verdict.LEAVES}
    assert broken == {"last-axis", "transpose", "state-written"} | doubts
    for function in report.functions:
        assert {broken.rule for op in function.leaving for broken in op.rules} == leaving
        (products,) = [kind for kind in function.kinds if kind.op == ("conv" if target == "ane" else "linear")]
        assert function.flops.leaving == (products.flops if "blocks" in leaving else 0)
