"""Softmax of attention scores that fp16 might not hold: they come divided by a power of two.

Where a scan finds scores beyond 4,096, the queries are scaled by 2^−e (`export.decoder_weights`). Softmax is not
homogeneous, but it only sees differences: the largest score is taken away while all are small, and the differences are
multiplied by 2^e after they were cut at −64. Bounds: |score| · 2^−e ≤ 4,096 by the choice of e, a masked one is at
least −14,096; the differences lie in [−64, 0], times 2^e in [−32,768, 0] for e ≤ 9. What is cut had a weight below
exp(−64) = 1.6e-28, and still has.
"""

from __future__ import annotations

import torch
from torch import Tensor

DEEPEST = -64.0
LARGEST_EXPONENT = 9  # 64 · 2⁹ = 32,768


def softmax(scores: Tensor, exponent: int) -> Tensor:
    """Returns the softmax over the last axis of masked scores that come as s · 2^−exponent; 0 is the op alone.

    The op takes away the largest score itself, as every softmax over values beyond 11 must in fp16.
    """
    if not exponent:
        return torch.softmax(scores, -1)
    differences = scores - scores.amax(-1, keepdim=True)
    return torch.softmax(torch.maximum(differences, torch.tensor(DEEPEST)) * 2.0**exponent, -1)
