"""A build's language model with one piece of it open at a time, for all samples at once.

Every package has its own state, so the order may be turned round: the first takes all rows of all samples in all their
calls, then the second takes what the first handed on. A package is opened once, however many samples there are; one
that is too large is taken in parts (`validation.layerwise.parts`). The numbers are those of `validation.engine`, to the
last bit (a test compares), where the tokens are known beforehand; the next token of an answer cannot be found this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.ranges.side_by_side import side_by_side
from fastvlm.build import HIDDEN, Build, Stage
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.threads import one_thread
from validation.host import EMBEDS, Chunk, LanguageInputs, plan_prefill
from validation.layerwise.parts import Part, parts_of

Rows = NDArray[np.float32]
Hook = Callable[[str, str, Any], None]


@dataclass(frozen=True)
class Known:
    """Rows (S, H) of which all are known: the first `filled` are prefilled, each other is decoded for its logits."""

    rows: Rows
    filled: int


@dataclass(frozen=True)
class Place:
    """Where a value was computed: for which item, in which package, in which call."""

    item: int
    package: Path
    chunk: Chunk


# place, op's name, op's type, value
Seen = Callable[[Place, str, str, Any], None]


@one_thread()
def logits_of_all(
    build: Build, items: Sequence[Known], *, backend: str = "mil", precision: str = "fp16",
    compute_units: str | None = None, seen: Seen | None = None, progress: Progress = SILENT,
) -> list[Rows]:  # fmt: skip
    """Returns, for each item, logits float32 (S − filled, V) of its decoded rows.

    `seen` is shown every op's result where the backend is "mil" (the runtime's own tensor: copy what is to be kept);
    items are on several threads, each item on one at a time. Raises PromptError for rows beyond the context.
    """
    runs = [_Run(build, number, item, seen) for number, item in enumerate(items)]
    with progress.stage("Packages, one after the other", len(build.language) * len(runs)) as advance:
        for stage in build.language:
            functions = {call.chunk.function for run in runs for call in run.calls}
            for part in parts_of(stage, functions, backend, precision, build.target, compute_units=compute_units):
                list(side_by_side(partial(_Run.through, part=part), runs, len(runs)))
            for run in runs:
                run.hand_on(stage)
            advance(len(runs))
    return [run.logits for run in runs]


def led(embeds: Rows, ids: Sequence[int], embed: Callable[[Sequence[int]], Rows]) -> Known:
    """Returns what leads a package through a transcript: a prompt's embeddings (S, H), then all ids but the last.

    `embed` gives the rows of ids, those of the package's own table; there are as many decoded rows as ids.
    """
    return Known(np.concatenate((embeds, embed(ids[:-1]))), len(embeds) - 1)


def logits_in_turn(
    build: Build, rows: Rows, filled: int, *, backend: str = "mil", precision: str = "fp16", hook: Hook | None = None
) -> Rows:
    """Returns logits float32 (S − filled, V) of one item's rows (S, H); `hook` as in `MILModel.predict`."""
    seen = None if hook is None else lambda place, name, kind, value: hook(name, kind, value)
    (logits,) = logits_of_all(build, [Known(rows, filled)], backend=backend, precision=precision, seen=seen)
    return logits


@dataclass
class _Call:
    """One call of every package: real rows that go into the next one, and what its parts have given so far."""

    chunk: Chunk
    wanted: bool  # its logits are asked for
    rows: Rows
    given: dict[str, Any] = field(default_factory=dict)
    logits: list[Rows] = field(default_factory=list)


class _Run:
    """One item on its way through the chain."""

    def __init__(self, build: Build, number: int, item: Known, seen: Seen | None) -> None:
        self.build, self.number, self.seen = build, number, seen
        self.inputs = LanguageInputs(build.head_dim, build.rope_theta, build.context)
        self.calls = list(_calls(build, item))

    def through(self, part: Part) -> None:
        """Makes all calls of one part in order, on a state of their own."""
        state: Any = None
        for call in self.calls:
            function = part.functions.get(call.chunk.function)
            if function is None or not (part.stage.state or call.wanted):
                continue  # a head alone: nothing is asked of it before the last rows
            if part.stage.state and state is None:
                state = function.make_state()
            extra = {} if self.seen is None else {"hook": self._hook(part.stage, call.chunk)}
            call.given |= function.predict(part.taken(function, self._inputs(call, part.stage)), state, **extra)

    def hand_on(self, stage: Stage) -> None:
        """Keeps of a package's results what goes into the next one, and logits that are asked for."""
        for call in self.calls:
            if HIDDEN in call.given:
                call.rows = np.asarray(call.given[HIDDEN], np.float32)[0, : call.chunk.rows]
            if call.wanted:
                call.logits += [np.asarray(call.given[name], np.float32).reshape(-1) for name in stage.logits]
            call.given = {}

    @property
    def logits(self) -> Rows:
        """Logits (decoded rows, V): the last output of a head that is split has rows beyond V."""
        wanted = [np.concatenate(call.logits)[: self.build.vocab_size] for call in self.calls if call.wanted]
        return np.stack(wanted)

    def _inputs(self, call: _Call, stage: Stage) -> dict[str, Any]:
        query = self.build.query if call.chunk.function == "prefill" else 1
        made: dict[str, Any] = self.inputs.inputs(call.rows, call.chunk.position, query)
        return (made if stage.state else {EMBEDS: made[EMBEDS]}) | call.given

    def _hook(self, stage: Stage, chunk: Chunk) -> Hook:
        assert self.seen is not None
        return partial(self.seen, Place(self.number, stage.package, chunk))


def _calls(build: Build, item: Known) -> Iterator[_Call]:
    """The calls of a chain: `filled` rows in chunks and, at the context's end, one by one; then the others."""
    for chunk in plan_prefill(item.filled, past=0, query=build.query, context=build.context):
        yield _Call(chunk, False, item.rows[chunk.start : chunk.start + chunk.rows])
    for row in range(item.filled, len(item.rows)):
        yield _Call(Chunk("decode", row, 1, row), True, item.rows[row : row + 1])
