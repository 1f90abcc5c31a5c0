"""Rules on kinds of ops: the table of `validation.lint.support`, and kinds whose answers differ on the engine."""

from __future__ import annotations

from fastvlm.devices import ENGINES
from validation.lint.rule import Confidence, Hit, Rule, Setting, Verdict
from validation.lint.rules.interface import is_edge
from validation.lint.sources import CT_GATHER, GUIDE_OPS, JR_GUIDE, JR_LESSONS, JR_OPS
from validation.lint.support import SUPPORT
from validation.program.contents import Op

GATHERS = ("gather", "gather_along_axis", "gather_nd")
_ORDER = [engine.name for engine in ENGINES]


def _never(op: Op, _: Setting) -> Hit | None:
    row = SUPPORT.get(op.type)
    if row is None or row.first is not None or op.type in GATHERS:
        return None
    return Hit(f"{op.type}: {row.note}")


def _later(op: Op, setting: Setting) -> Hit | None:
    row = SUPPORT.get(op.type)
    if row is None or row.first is None or _ORDER.index(setting.engine.name) >= _ORDER.index(row.first):
        return None
    return Hit(f"{op.type} from {row.first}, asked for is {setting.engine.name}: {row.note}")


def _unknown(op: Op, _: Setting) -> Hit | None:
    return None if op.type in SUPPORT else Hit(f"{op.type} is in no table")


def _gather(op: Op, setting: Setting) -> Hit | None:
    if op.type not in GATHERS or is_edge(op, setting):
        return None
    table, index = op.need("x"), op.value("indices")
    what = "rows of a constant table" if table.fixed else f"{table.type}"
    return Hit(f"{what} at {index.type if index else 'no indices'}")


def _inside(op: Op, _: Setting) -> Hit | None:
    return Hit(f"inside {op.inside}") if op.inside else None


def _argmax(op: Op, _: Setting) -> Hit | None:
    return Hit(f"{op.type} over {list(op.need('x').shape)}") if op.type in ("reduce_argmax", "topk") else None


RULES = (
    Rule(
        "no-path", "An op without hardware leaves.", Verdict.LEAVES, _never, (GUIDE_OPS, JR_OPS), Confidence.MEASURED,
    ),
    Rule(
        "later-engine", "An op that a later generation brought leaves before it.", Verdict.LEAVES, _later,
        (GUIDE_OPS,), Confidence.MEASURED,
    ),
    Rule(
        "unknown-op", "An op that no table names is taken to leave.", Verdict.LEAVES, _unknown, (GUIDE_OPS,),
        Confidence.UNKNOWN,
    ),
    Rule(
        "gather", "Fetching rows by index leaves, embedding lookups too; the host does it from a mapped file.",
        Verdict.LEAVES, _gather, (CT_GATHER, JR_OPS, GUIDE_OPS), Confidence.DISPUTED,
    ),
    Rule(
        "control-flow", "What stands inside `cond` or `while_loop` leaves with it.", Verdict.LEAVES, _inside,
        (GUIDE_OPS, JR_OPS), Confidence.MEASURED,
    ),
    Rule(
        "argmax", "The largest logit has been another one on an iPhone's engine than on a Mac's: return the logits.",
        Verdict.RISKS, _argmax, (JR_LESSONS, JR_GUIDE), Confidence.MEASURED,
    ),
)  # fmt: skip
