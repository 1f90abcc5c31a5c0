"""The mean over a feature map, in sums that fp16 can hold.

conv_exp's map has up to 64×64 positions (LARGEST_SIDE / 64 each way), of values up to 65,504: summed in fp16 they
overflow from two of the largest on. An engine may hold such sums wider or not; the Neural Engine's reductions are
reported to overflow at fp16's own end (sbryngelson/ANEForge, docs, numerics).

So x · 2⁻⁶ is averaged along rows, then along columns. Bound: a row's sum is at most 64 · 65,504 · 2⁻⁶ = 65,504, its
mean at most 1,023.5; a column's sum of those at most 65,504 again. For what is stored, at most 32,768, both stay below
32,768. The power is undone in the weights that read the mean.
Cost: x · 2⁻⁶ is subnormal below 2⁻⁸, where it rounds by at most 2⁻²⁵, which is 2⁻¹⁹ = 1.9e-6 in units of x; an engine
that flushes subnormals sees 0 for values below 0.0039, and the mean errs by at most that.
It knows nothing of graphs.
"""

from __future__ import annotations

from torch import Tensor

from fastvlm_ref.config import LARGEST_SIDE

POOL_POWER = 6  # 2^6 is the largest side of a map, LARGEST_SIDE / 64
assert LARGEST_SIDE <= 64 << POOL_POWER


def safe_mean(x: Tensor) -> Tensor:
    """Returns the mean over h and w, each at most 64, of (1, C, h, w), times 2^−POOL_POWER: (1, C, 1, 1)."""
    return (x * 2.0**-POOL_POWER).mean(3, keepdim=True).mean(2, keepdim=True)
