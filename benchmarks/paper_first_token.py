"""`paper.py first-token`: 85× against LLaVA-OneVision-0.5B, run beside FastVLM-0.5B on this machine.

The paper pairs LLaVA-OneVision at 1152 × 1152 with FastVLM at 1024 × 1024 (tables 6 and 10), and so does this.
The real count of visual tokens is 7,371: at 1152 the picture is the base picture and 3 × 3 tiles of 384, each 27 × 27
tokens of SigLIP; the tiles make one map of 81 × 81, and a learned line end follows each of its 81 rows:
729 + 81 · 82. `anyres_max_9` shrinks nothing, because 3 × 3 tiles are the most that it leaves alone. The contender
checks that transformers' own code gives this many.

Every contender is a process and stays alive between rounds; they run in turn, none beside another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import paper_claims as paper
from paper_flops import SO400M_ONEVISION, anyres_tokens, fastvithd_flops, prefill_flops
from paper_table import Claim, Section, Table
from paper_turns import ratio

from fastvlm_ref.config import VisionConfig
from fastvlm_ref.synthetic.sizes import QWEN2_05B
from validation.children import Child

SIDE = 1152  # LLaVA-OneVision's
PAPER_SIDE = 1024  # FastVLM's
TILES = 10


@dataclass
class Contender:
    """One that takes part: its process's class, what it is given, and what it gave."""

    name: str
    serves: str
    given: dict[str, Any]
    rounds: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def seconds(self, stage: str) -> list[float]:
        """Seconds of a stage, round by round; "sum" is of both."""
        return [sum(each.values()) if stage == "sum" else each[stage] for each in self.rounds]


@dataclass(frozen=True)
class Asked:
    """What the user asked for; threads None: each library's own choice."""

    checkpoint: str
    onnx: str | None
    side: int
    rounds: int
    threads: int | None
    clock: str


def contenders(asked: Asked) -> list[Contender]:
    """LLaVA-OneVision first."""
    common = {"threads": asked.threads, "clock": asked.clock}
    ours = common | {"side": asked.side}
    found = [
        Contender("LLaVA-OneVision-0.5B, transformers", "OneVision", common | {"side": SIDE}),
        Contender("FastVLM-0.5B, PyTorch", "Reference", ours | {"checkpoint": asked.checkpoint}),
    ]
    if asked.onnx is not None:
        found.append(Contender("FastVLM-0.5B, ONNX", "OnnxBuild", ours | {"build": asked.onnx}))
    return found


def measure(found: list[Contender], rounds: int) -> None:
    """Runs all in turn, after a short run of each that is not counted."""
    with ExitStack() as stack:
        alive = [
            stack.enter_context(closing(Child(f"paper_contenders:{each.serves}", each.name, **each.given)))
            for each in found
        ]
        for child in alive:
            child.call("warm")
        for number in range(rounds):
            for each, child in zip(found, alive, strict=True):
                each.rounds.append(child.call("run"))
                told = ", ".join(f"{stage} {value:.2f} s" for stage, value in each.rounds[-1].items())
                print(f"  round {number + 1}, {each.name}: {told}", file=sys.stderr, flush=True)
        for each, child in zip(found, alive, strict=True):
            each.facts = child.call("facts")


def section(found: list[Contender], asked: Asked) -> Section:
    """What was measured, beside the paper."""
    side = asked.side
    onevision, *ours = found
    claims = [claim for each in ours for claim in _claims(onevision, each, side)]
    tokens = Claim(
        "LLaVA-OneVision at 1152, visual tokens", paper.ONEVISION_TOKENS, onevision.facts["tokens"], "tokens",
        ("729 of the base picture and 81 rows of 81 with a line end each; the paper leaves the line ends out",),
    )  # fmt: skip
    columns = ("contender", "side", "tokens", "vision s", "prefill s", "sum s", "peak GB", "threads")
    rows = tuple(
        (
            each.name + (f" {each.facts['scheme']}" if "scheme" in each.facts else ""), str(each.given["side"]),
            each.facts["tokens"], *(median(each.seconds(stage)) for stage in ("vision", "prefill", "sum")),
            each.facts["peak"] / 1e9, each.facts["threads"],
        )
        for each in found
    )  # fmt: skip
    tables = (Table("Seconds, medians", columns, rows), _work(side))
    return Section("first-token", (*claims, *_flop_claims(side), tokens), tables, (_note(asked),))


def _claims(onevision: Contender, ours: Contender, side: int) -> Iterator[Claim]:
    """The sum and both stages over one FastVLM."""
    otherwise = paper.LLAVA_ONEVISION.total / (paper.TABLE_4[PAPER_SIDE] + paper.FASTVLM_05B.prefill)
    remarks = [f"{otherwise:.0f}× with table 4's {paper.TABLE_4[PAPER_SIDE]} ms for FastViTHD at 1024"]
    if "scheme" in ours.facts:
        remarks.append(f"not like for like: a build in {ours.facts['scheme']} beside a model in float32")
    if side != PAPER_SIDE:
        remarks.append(f"the paper's FastVLM is at {PAPER_SIDE}")
    name = f"{ours.name} {ours.facts.get('scheme', 'float32')} at {side}"
    yield Claim(
        f"LLaVA-OneVision-0.5B at 1152 over {name}, first token", paper.FASTER_THAN_ONEVISION,
        _ratio(onevision, ours, "sum"), "×", tuple(remarks),
    )  # fmt: skip
    theirs, other = paper.LLAVA_ONEVISION, paper.FASTVLM_05B
    yield Claim("  vision alone", theirs.vision / other.vision, _ratio(onevision, ours, "vision"), "×")
    yield Claim("  prefill alone", theirs.prefill / other.prefill, _ratio(onevision, ours, "prefill"), "×")


def _ratio(one: Contender, other: Contender, stage: str) -> float:
    return ratio(one.seconds(stage), other.seconds(stage))


def flops(side: int) -> dict[str, tuple[int, int]]:
    """FLOPs of vision and prefill of both models, FastVLM at N = `side`; scores that a mask hides are not counted."""
    tokens = VisionConfig().tokens_at(side)
    return {
        "LLaVA-OneVision-0.5B": (
            TILES * SO400M_ONEVISION.flops(384), prefill_flops(QWEN2_05B, anyres_tokens(SIDE)),
        ),
        "FastVLM-0.5B": (fastvithd_flops(side), prefill_flops(QWEN2_05B, tokens)),
    }  # fmt: skip


def _flop_claims(side: int) -> Iterator[Claim]:
    """The same without a clock: what is left of the paper's figures is the speed of the two engines."""
    (vision, prefill), (our_vision, our_prefill) = flops(side).values()
    whole = (vision + prefill) / (our_vision + our_prefill)
    rates = [work / ms / 1e9 for work, ms in zip((prefill, our_prefill), _prefills(), strict=True)]
    remark = (
        f"by its own times the paper's GPU prefills {rates[0]:.1f} TFLOP/s of LLaVA-OneVision's tokens and "
        f"{rates[1]:.1f} of FastVLM's: the rest of its ratio is the engine's, not the models'"
    )
    yield Claim("the same by FLOPs", None, whole, "×", (remark,))
    yield Claim("  vision alone", None, vision / our_vision, "×")
    yield Claim("  prefill alone", None, prefill / our_prefill, "×")


def _prefills() -> tuple[float, float]:
    return paper.LLAVA_ONEVISION.prefill, paper.FASTVLM_05B.prefill


def _work(side: int) -> Table:
    """Operations, and the rates that the paper's times imply."""
    rows = []
    for (name, work), published in zip(flops(side).items(), (paper.LLAVA_ONEVISION, paper.FASTVLM_05B), strict=True):
        times = (published.vision, published.prefill)
        rates = [each / ms / 1e9 for each, ms in zip(work, times, strict=True)]
        rows.append((name, work[0] / 1e9, work[1] / 1e9, *times, *rates))
    columns = ("model", "vision GFLOP", "prefill GFLOP", "ms paper", "ms paper", "TFLOP/s paper", "TFLOP/s paper")
    return Table("Operations, and the paper's times of vision and prefill", columns, tuple(rows))


def _note(asked: Asked) -> str:
    return (
        f"Random weights of official size, batch 1, medians of {asked.rounds} rounds in turn, {asked.clock} time; no "
        "text tokens, as in the paper; the picture's bytes are made before. LLaVA-OneVision is float32, with sdpa "
        "attention and the logits of the last position alone."
    )
