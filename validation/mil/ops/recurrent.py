"""Recurrent layers (iOS15, iOS17, iOS18 recurrent). x is (S, B, I); gates lie on the weights' first axis.

The documentation leaves out where `clip` acts (on the cell), the scales of the activations and the order of a reversed
sequence; coremltools' own tests settle them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from validation.mil.registry import Tensor, Tensors, op

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "linear": lambda x: x,
    # The scales are 1 here: coremltools' test_recurrent.py, whose answers were taken on a Mac.
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "scaled_tanh": torch.tanh,
}


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _directed(x: Tensor, direction: str) -> Tensor:
    if direction not in ("forward", "reverse"):
        raise ValueError(f"unknown direction {direction!r}")
    return x.flip(0) if direction == "reverse" else x


def _sequence(steps: list[Tensor], output_sequence: bool) -> Tensor:
    """Every step in the order of processing, also for "reverse" (coremltools' tests show that), or the last alone."""
    return torch.stack(steps) if output_sequence else steps[-1].unsqueeze(0)


@op("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> Tensors:
    """iOS15, iOS17 recurrent.rnn: activation(W_ih x + W_hh h + b)"""
    act = _activation(activation)
    hidden, steps = initial_h, []
    for part in F.linear(_directed(x, direction), weight_ih, bias):
        hidden = act(part + F.linear(hidden, weight_hh))
        steps.append(hidden)
    return Tensors((_sequence(steps, output_sequence), hidden))


@op("gru")
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> Tensors:
    """iOS15, iOS17, iOS18 recurrent.gru: gates r, o, z; reset_after multiplies by r after the matrix, not before

    Source of the order: coremltools' torch front end, which unrolls torch's GRU (reset after) because this op resets
    before; with reset_after, `bias` is the recurrent bias and lies inside the reset.
    """
    gate, act = _activation(recurrent_activation), _activation(activation)
    size = initial_h.shape[-1]
    weight_r, weight_o, weight_z = weight_hh.split(size)
    zeros = torch.zeros(3 * size, dtype=x.dtype)
    bias_r, bias_o, bias_z = (zeros if bias is None else bias).split(size)
    hidden, steps = initial_h, []
    for part in F.linear(_directed(x, direction), weight_ih, input_bias):
        part_r, part_o, part_z = part.split(size, dim=-1)
        r = gate(part_r + F.linear(hidden, weight_r, bias_r))
        z = gate(part_z + F.linear(hidden, weight_z, bias_z))
        inner = r * F.linear(hidden, weight_o, bias_o) if reset_after else F.linear(r * hidden, weight_o, bias_o)
        hidden = (1 - z) * act(part_o + inner) + z * hidden
        steps.append(hidden)
    return Tensors((_sequence(steps, output_sequence), hidden))


@op("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> Tensors:
    """iOS15, iOS17 recurrent.lstm: gates i, f, o, z; bidirectional joins both directions on the last axis

    States of more rows than the batch give their first ones: coremltools converts a packed sequence that way (it takes
    the longest length for the batch), and its tests expect an answer.
    """
    initial_h, initial_c = initial_h[: x.shape[1]], initial_c[: x.shape[1]]
    acts = (_activation(recurrent_activation), _activation(cell_activation), _activation(activation))
    if direction != "bidirectional":
        steps, cell = _lstm(
            _directed(x, direction), initial_h, initial_c, weight_ih, weight_hh, bias, peephole, acts, clip
        )
        return Tensors((_sequence(steps, output_sequence), steps[-1], cell))
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("a bidirectional lstm lacks weight_ih_back or weight_hh_back")
    size = initial_h.shape[-1] // 2
    ahead, cell = _lstm(x, initial_h[:, :size], initial_c[:, :size], weight_ih, weight_hh, bias, peephole, acts, clip)
    back, cell_back = _lstm(
        x.flip(0),
        initial_h[:, size:],
        initial_c[:, size:],
        weight_ih_back,
        weight_hh_back,
        bias_back,
        peephole_back,
        acts,
        clip,
    )
    # Joined with the forward steps, the backward ones lie in the order of the input, as in torch.
    both = (_sequence(ahead, output_sequence), _sequence(back[::-1] if output_sequence else back, output_sequence))
    return Tensors((torch.cat(both, -1), torch.cat((ahead[-1], back[-1]), -1), torch.cat((cell, cell_back), -1)))


def _lstm(
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    acts: tuple[Callable[[Tensor], Tensor], ...],
    clip: float | None,
) -> tuple[list[Tensor], Tensor]:
    """One direction: every hidden state, and the last cell."""
    gate, inner, outer = acts
    size = hidden.shape[-1]
    peep = torch.zeros(3 * size, dtype=x.dtype) if peephole is None else peephole
    peep_i, peep_f, peep_o = peep.split(size)
    steps = []
    for part in F.linear(x, weight_ih, bias):
        i, f, o, z = (part + F.linear(hidden, weight_hh)).split(size, dim=-1)
        i, f, z = gate(i + peep_i * cell), gate(f + peep_f * cell), inner(z)
        cell = f * cell + i * z
        cell = cell if clip is None else torch.clamp(cell, -clip, clip)
        hidden = gate(o + peep_o * cell) * outer(cell)
        steps.append(hidden)
    return steps, cell
