"""Where a program runs: the CPU, or any other torch device.

Ops make their own tensors with torch's factory functions, which take the device from the context they run in; on the
CPU, where all of this project's figures come from, there is no context and no cost. Products are never shortened:
a GPU's convolutions would otherwise run in TF32, ten bits of mantissa instead of float32's 23.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastvlm.errors import ExecutionError


def found_device(name: str | torch.device) -> torch.device:
    """Returns the torch device of that name; ExecutionError where torch does not know it or it is not there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ExecutionError(f"device {str(name)!r} cannot be used here: {reason}") from error
    return device


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Everything that ops make inside is made on `device`."""
    if device.type == "cpu":
        yield
        return
    with device, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
