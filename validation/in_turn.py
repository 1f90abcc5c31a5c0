"""A chain of packages with one of them open at a time: for language models that are larger than the memory.

Every package has its own state, so the order may be turned round: the first takes all rows in all their calls, then the
second takes what the first handed on. The numbers are those of `validation.engine`, to the last bit (a test compares),
where the tokens are known beforehand; the next token of an answer cannot be found this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.build import HIDDEN, Build, Stage
from validation.backends import open_package
from validation.host import EMBEDS, Chunk, LanguageInputs, plan_prefill

Rows = NDArray[np.float32]
Hook = Callable[[str, str, Any], None]


@dataclass(frozen=True)
class _Call:
    """One call of a function: `rows` real rows at `position`, of which the first is number `start`."""

    chunk: Chunk
    last: bool  # of the rows whose logits are asked for


def logits_in_turn(
    build: Build, rows: Rows, filled: int, *, backend: str = "mil", precision: str = "fp16", hook: Hook | None = None
) -> Rows:
    """Returns logits float32 (S − filled, V) of rows (S, H): `filled` are prefilled, each other is decoded.

    `hook` sees every op's result where the backend is "mil", as in `MILModel.predict`.
    """
    calls = list(_calls(build, len(rows), filled))
    handed = [rows[call.chunk.start : call.chunk.start + call.chunk.rows] for call in calls]
    logits: list[list[Rows]] = [[] for _ in range(len(rows) - filled)]
    for stage in build.language:
        handed, found = _through(build, stage, calls, handed, (backend, precision), hook)
        for one, parts in zip(logits, found, strict=True):
            one.extend(parts)
    return np.stack([np.concatenate(parts)[: build.vocab_size] for parts in logits])


def _calls(build: Build, length: int, filled: int) -> Iterator[_Call]:
    for chunk in plan_prefill(filled, past=0, query=build.query, context=build.context):
        yield _Call(chunk, last=False)
    for row in range(filled, length):
        yield _Call(Chunk("decode", row, 1, row), last=True)


def _through(
    build: Build, stage: Stage, calls: list[_Call], handed: list[Rows], how: tuple[str, str], hook: Hook | None
) -> tuple[list[Rows], list[list[Rows]]]:
    """All calls of one package; returns what it hands on for each, and logits of the last rows."""
    opened: dict[str, Any] = {}
    state: Any = None
    onward, logits = [], []
    for call, rows in zip(calls, handed, strict=True):
        name = call.chunk.function
        skipped = (name == "prefill" and not stage.prefill) or (not stage.state and not call.last)
        if skipped:  # a head alone: nothing is asked of it before the last rows
            onward.append(rows)
            continue
        if name not in opened:
            beside = next(iter(opened.values()), None)
            opened[name] = open_package(stage.package, name, *how, beside, build.target)
        if stage.state and state is None:
            state = opened[name].make_state()
        extra = {} if hook is None else {"hook": hook}
        outputs = opened[name].predict(_inputs(build, call.chunk, rows, stage), state, **extra)
        hidden = outputs.get(HIDDEN)
        onward.append(rows if hidden is None else np.asarray(hidden, np.float32)[0, : call.chunk.rows])
        if call.last:
            logits.append([np.asarray(outputs[part], np.float32).reshape(-1) for part in stage.logits])
    return onward, logits


def _inputs(build: Build, chunk: Chunk, rows: Rows, stage: Stage) -> dict[str, Any]:
    query = build.query if chunk.function == "prefill" else 1
    made = LanguageInputs(build.head_dim, build.rope_theta, build.context).inputs(rows, chunk.position, query)
    return made if stage.state else {EMBEDS: made[EMBEDS]}
