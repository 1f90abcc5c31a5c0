"""What one op does: floating-point operations, bytes of weights, of the state, of activations.

Notable choices: an op is counted as `validation.lint.cost` counts it, so that closed form and package can be compared
op by op; weights keep how they are stored apart from what they are in fp16, because an engine may make them dense
before it reads them; activations keep their single sizes, because what is small stays on the chip.
It knows neither models nor chips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

HALF = 2  # bytes of an fp16 number
DENSE = "dense"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """Constants of an op: bytes as they lie in the file, bytes in fp16, and the form of what is compressed.

    form: "dense", or `export.compression.schemes.Kind`.
    """

    stored: int = 0
    dense: int = 0
    form: str = DENSE

    def read(self, folded: frozenset[str]) -> int:
        """Bytes that an engine reads which makes the forms `folded` dense beforehand."""
        return self.dense if self.form in folded else self.stored


@dataclass(frozen=True)
class Work:
    """One op, `count` times. state: bytes of the KV cache that it reads or writes; tensors: of each activation."""

    op: str
    flops: int
    weights: tuple[Weights, ...] = ()
    state: int = 0
    tensors: Shape = ()
    count: int = 1

    @property
    def bytes(self) -> int:
        """All that one of them moves if nothing is fused, weights as they are stored."""
        return sum(weights.stored for weights in self.weights) + self.state + sum(self.tensors)

    def traffic(self, on_chip: int | None, folded: frozenset[str]) -> int:
        """Bytes from and to memory: weights, state, and activations that are larger than `on_chip` (None: no limit)."""
        far = 0 if on_chip is None else sum(size for size in self.tensors if size > on_chip)
        return sum(weights.read(folded) for weights in self.weights) + self.state + far

    def times(self, count: int) -> Work:
        """The same op `count` times as often."""
        return replace(self, count=self.count * count)


def elementwise(op: str, elements: int, reads: int = 1, flops: int = 1) -> Work:
    """An op of as many results as it has elements, which reads `reads` tensors of that size."""
    return Work(op, flops * elements, tensors=(HALF * elements,) * (reads + 1))


def product(x: Shape, y: Shape, out: Shape, inner: int) -> Work:
    """A matmul of two activations: `inner` products for each result."""
    return Work("matmul", 2 * prod(out) * inner, tensors=tuple(HALF * prod(shape) for shape in (x, y, out)))


def reduction(op: str, elements: int, results: int) -> Work:
    """A sum or a maximum over an axis."""
    return Work(op, elements, tensors=(HALF * elements, HALF * results))


def gathered(works: Iterable[Work]) -> list[Work]:
    """The same ops, those that are equal as one: the layers of a decoder differ in nothing but values."""
    counts: Counter[Work] = Counter()
    for work in works:
        counts[replace(work, count=1)] += work.count
    return [work.times(count) for work, count in counts.items()]


def flops(works: Iterable[Work]) -> int:
    """Floating-point operations of all of them."""
    return sum(work.count * work.flops for work in works)


def moved(works: Iterable[Work]) -> int:
    """Bytes that all of them move if nothing is fused."""
    return sum(work.count * work.bytes for work in works)
