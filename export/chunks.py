"""How the language model is cut into packages, and its head into outputs, so that a device takes each of them.

A package is a run of decoder layers; the last one also holds the final norm and the head. Where the head alone is more
than a file may hold, its parts get packages of their own behind the last layers. Runs are as few as the largest file
allows, and then as even as they can be. A Neural Engine axis ends at 16,384 (A15 and before), so for it a head of more
rows gives several outputs of equal length: `logits0`, `logits1`, … in order, the rows that fill up the last are zeros,
and the host cuts what it has put together to V.
It knows bytes and counts, neither graphs nor weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from export.plan import ExportPlan
from fastvlm.errors import UsageError
from fastvlm_ref.config import TextConfig

NAME = "LanguageModel"
HEAD_CAP = 16_384  # rows of one output for `--target ane` stay below it (hollance/neural-engine; Anemll)
HEAD_STEP = 32
BLOB_BYTES = 128  # of a weight file for each blob: its metadata and, at most, the padding behind it
HEADER_BYTES = 64  # of a weight file


@dataclass(frozen=True)
class HeadSplit:
    """The head as `count` outputs of `rows` rows each; count · rows >= V."""

    count: int
    rows: int

    def name(self, part: int) -> str:
        """Returns the name of one output."""
        return "logits" if self.count == 1 else f"logits{part}"


def head_split(text: TextConfig, target: str) -> HeadSplit:
    """Returns how the head is cut for a target: 151,936 rows for `ane` are 10 × 15,200."""
    rows = text.vocab_size
    if target != "ane" or rows < HEAD_CAP:
        return HeadSplit(1, rows)
    count = -(-rows // (HEAD_CAP - HEAD_STEP))
    each = -(-rows // count)
    return HeadSplit(count, -(-each // HEAD_STEP) * HEAD_STEP)


@dataclass(frozen=True)
class Chunk:
    """One package: decoder layers first … last − 1 and the head's parts; `number` of `count` in the chain, from 1.

    filling: it holds the last layer, of which `prefill` needs nothing but keys and values.
    """

    number: int
    count: int
    first: int
    last: int
    parts: tuple[int, ...]  # of the head
    filling: bool

    @property
    def layers(self) -> int:
        """How many decoder layers it holds."""
        return self.last - self.first

    @property
    def package(self) -> str:
        """The package's folder: LanguageModel.mlpackage where there is one alone, else LanguageModel-1of4.mlpackage."""
        return f"{NAME}.mlpackage" if self.count == 1 else f"{NAME}-{self.number}of{self.count}.mlpackage"


def chunks(text: TextConfig, plan: ExportPlan, sizes: Mapping[str, int]) -> tuple[Chunk, ...]:
    """Returns the chain of packages in order.

    `sizes`: bytes that each of the decoder's tensors takes in a weight file, by name. Raises UsageError where one layer
    or one part of the head is larger than a file may be.
    """
    layers = [_bytes(sizes, f"layers.{index}.") for index in range(text.layers)]
    split, tail = head_split(text, plan.target), _bytes(sizes, "norm.") + BLOB_BYTES
    head = _bytes(sizes, "lm_head.")
    part, besides = -(-head // split.count), _besides(text, split)
    if plan.max_file_size is None:
        limit = sum(layers) + head + tail
    else:
        _check(max(layers) + besides, part + tail + besides, plan.max_file_size)
        limit = plan.max_file_size - besides
    if head + tail <= limit:
        runs = even_runs([*layers, head + tail], limit)
        ends = [(first, min(last, text.layers), last > text.layers) for first, last in runs]
        spans = [(first, last, tuple(range(split.count)) if with_head else ()) for first, last, with_head in ends]
    else:
        spans = [(first, last, ()) for first, last in even_runs(layers, limit)]
        parts = even_runs([part] * split.count, limit - tail)
        spans += [(text.layers, text.layers, tuple(range(first, last))) for first, last in parts]
    return tuple(
        Chunk(number, len(spans), first, last, parts, first < last == text.layers)
        for number, (first, last, parts) in enumerate(spans, 1)
    )


def _bytes(sizes: Mapping[str, int], prefix: str) -> int:
    return sum(size + BLOB_BYTES for name, size in sizes.items() if name.startswith(prefix))


def _besides(text: TextConfig, split: HeadSplit) -> int:
    """At most what a weight file holds beside the weights: its header, and zeros as the bias of each linear layer.

    They lie there once for each number of rows: of o_proj and down_proj, gate_proj and up_proj, the head, and, where a
    model has no such biases of its own, q_proj, k_proj and v_proj.
    """
    rows = (
        text.hidden_size,
        text.intermediate_size,
        split.rows,
        text.heads * text.head_dim,
        text.kv_heads * text.head_dim,
    )
    return HEADER_BYTES + sum(2 * count + BLOB_BYTES for count in rows)


def _check(layer: int, head: int, limit: int) -> None:
    most = max(layer, head)
    if most > limit:
        what = "one decoder layer" if layer == most else "one output of the head with its norm"
        raise UsageError(
            f"--max-file-size is {limit:,} bytes, and {what} takes {most:,}; "
            f"give at least {most}, or store it in fewer bits: --quantize, a smaller scheme, a smaller budget"
        )


def even_runs(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Cuts `sizes` (none above `limit`) into the fewest runs first … last − 1 whose sums stay within `limit`.

    Of all such cuts it returns one whose largest sum is the least: the least is the sum of some run, so a binary search
    over those sums finds it.
    """
    totals = [0, *accumulate(sizes)]
    fewest = len(_greedy(sizes, limit))
    sums = sorted({b - a for i, a in enumerate(totals) for b in totals[i + 1 :]})
    sums = [total for total in sums if max(sizes) <= total <= limit] or [limit]
    low, high = 0, len(sums) - 1
    while low < high:
        middle = (low + high) // 2
        if len(_greedy(sizes, sums[middle])) <= fewest:
            high = middle
        else:
            low = middle + 1
    return _greedy(sizes, sums[low])


def _greedy(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Fills each run until the next size would go beyond the limit: the fewest runs that there can be."""
    runs, first, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > first and total + size > limit:
            runs.append((first, index))
            first, total = index, 0
        total += size
    return [*runs, (first, len(sizes))]
