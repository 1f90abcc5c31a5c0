"""One training step on two cores without waiting inside it: each thread runs half of the batch through its own replica.

Notable choices:
- replicas share the parameters' memory and own their gradients and batch-norm statistics, so nothing is copied;
- torch's own threads meet at every operation, hundreds of times a step; these meet once, which costs far less where
  the cores are shared with other work (measured here: docs/training.md);
- gradients are added in a fixed order: the same run gives the same weights.
It does not know what a loss is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Half = TypeVar("Half")
Seen = dict[str, float]


class Replicas(Generic[Half]):
    """`count` copies of one module; `backward` leaves the mean gradient in the first, which is the caller's own."""

    def __init__(self, module: nn.Module, loss: Callable[[nn.Module, Half], tuple[Tensor, Seen]], count: int) -> None:
        self.members = [module, *(_sharing_copy(module) for _ in range(count - 1))]
        self.loss = loss
        self.pool = ThreadPoolExecutor(count)

    def backward(self, halves: Sequence[Half]) -> tuple[float, Seen]:
        """Returns the mean loss over one part of the batch per replica, and the means of what else was seen."""
        results = list(self.pool.map(self._one, self.members, halves))
        for own, *others in zip(*(member.parameters() for member in self.members), strict=True):
            if own.requires_grad:
                _mean_gradient(own, others)
        losses = [loss for loss, _ in results]
        return sum(losses) / len(losses), _means([seen for _, seen in results])

    def settle(self) -> None:
        """Gives the first replica the mean of all batch-norm statistics, and the others the same."""
        with torch.no_grad():
            for buffers in zip(*(member.buffers() for member in self.members), strict=True):
                if buffers[0].is_floating_point():
                    mean = torch.stack(list(buffers)).mean(0)
                    for buffer in buffers:
                        buffer.copy_(mean)

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown()

    def _one(self, member: nn.Module, half: Half) -> tuple[float, Seen]:
        torch.set_num_threads(1)
        member.zero_grad(set_to_none=True)
        loss, seen = self.loss(member, half)
        torch.autograd.backward(loss)
        return float(loss.detach()), seen


def _sharing_copy(module: nn.Module) -> nn.Module:
    replica = copy.deepcopy(module)
    for own, shared in zip(replica.parameters(), module.parameters(), strict=True):
        own.data = shared.data
    return replica


def _mean_gradient(own: nn.Parameter, others: Sequence[nn.Parameter]) -> None:
    gradients = [parameter.grad for parameter in (own, *others) if parameter.grad is not None]
    if gradients:
        total = gradients[0]
        for gradient in gradients[1:]:
            total = total + gradient
        own.grad = total / (1 + len(others))


def _means(seen: Sequence[Seen]) -> Seen:
    means: Seen = {}
    for name in seen[0]:
        values = [one[name] for one in seen if one[name] == one[name]]  # NaN: a half can lack a label
        means[name] = sum(values) / len(values) if values else float("nan")
    return means
