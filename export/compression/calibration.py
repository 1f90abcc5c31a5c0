"""What flows into each linear layer of the decoder: one pass over a few pictures, one layer in memory at a time.

Notable choices:
- the pass goes layer by layer over the hidden states of all samples, so that each layer's weights are read once and a
  7B checkpoint needs the memory of one layer (0.93 GB in float32) and of its hidden states (14 KB a position);
- a sample is a picture and a question, spliced by the checkpoint's own template; no answer is made, because writing one
  would read all weights again for each token;
- every sample attends within itself alone;
- statistics are mean squares per input channel: the diagonal of the Hessian of a layer's output error (OBQ,
  arXiv 2208.11580; AWQ, arXiv 2306.00978), which is what rounding and palettes can use.
It does not know how weights are compressed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastvlm.errors import PromptError, TensorError, TokenizerError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint import materialised
from fastvlm_ref.config import IMAGE_TOKEN
from fastvlm_ref.image import open_image, pixels_to_tensor, preprocess
from fastvlm_ref.model.decoder import Decoder, DecoderLayer, rope_tables
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.samples import Sample
from fastvlm_ref.threads import one_thread

LARGEST_CALIBRATION_SIDE = 512  # 64 image tokens; 1024 takes 12 s a picture and 256 positions
# 15.2 GFLOP a position on 7B. The three shipped samples have about 270 positions, which take one core 2.4 s a layer, a
# minute in all; this many take nine.
MOST_POSITIONS = 2048
MANTISSA_BITS = 8  # what is kept of a mean square: 0.2 %, so that the last bits of a sum do not show
DAMPING = 0.01  # of the mean, added to every channel: what is silent in a few pictures may speak in others (as GPTQ)

HEAD = "lm_head"
LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
# which linear layer's input is recorded -> those that have the same input
INPUTS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}

Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Statistics:
    """Mean square of each input channel, float32 (K,), by linear layer: `layers.0.self_attn.q_proj` …, `lm_head`."""

    mean_squares: Mapping[str, Tensor]
    pictures: int
    positions: int
    image_size: int  # N, the side at which the pictures were encoded

    def importance(self, layer: str) -> Tensor:
        """Returns what an error in each input channel of `layer` weighs, float32 (K,), all above 0."""
        found = self.mean_squares[layer]
        return found + max(float(found.mean()) * DAMPING, torch.finfo(torch.float32).tiny)

    def as_json(self) -> dict[str, Any]:
        """Returns what a manifest records: what was calibrated on, and the hash of all values."""
        digest = hashlib.sha256()
        for layer, values in sorted(self.mean_squares.items()):
            digest.update(layer.encode() + b"\0" + values.numpy().tobytes())
        return {
            "pictures": self.pictures, "positions": self.positions, "image_size": self.image_size,
            "sha256": digest.hexdigest(),
        }  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """One decoder layer on the way: its weights are in memory until the next visit is asked for."""

    index: int
    layer: DecoderLayer
    ropes: Sequence[Rope]  # float32 (S, D) twice, per sample
    before: Sequence[Tensor]  # what enters the layer, float32 (1, S, H) per sample
    after: Sequence[Tensor]  # what leaves it, the same
    mean_squares: Mapping[str, Tensor]  # float32 (K,) by linear layer, named from the decoder on

    @property
    def name(self) -> str:
        """`layers.3`, as the checkpoint calls it."""
        return layer_name(self.index)


@one_thread()
@torch.no_grad()
def calibrate(model: FastVLM, samples: Sequence[Sample], progress: Progress = SILENT) -> Statistics:
    """Returns the statistics of every linear layer of the decoder over `samples`; the model may stream.

    Raises ImageError for a picture that cannot be read, PromptError when there is nothing to calibrate on, TensorError
    where the model gives NaN or infinity.
    """
    states = embedded(model, samples, progress)
    found: dict[str, Tensor] = {}
    with progress.stage("Calibrating", model.config.text.layers) as advance:
        for visit in walk(model.decoder, states):
            found.update(visit.mean_squares)
            states = list(visit.after)
            advance(1)
    return statistics(model, found, states)


def statistics(model: FastVLM, found: Mapping[str, Tensor], states: Sequence[Tensor]) -> Statistics:
    """Returns `found`, completed by the head's, of the hidden states (1, S, H) that leave the last layer."""
    squares = SquaredInputs()
    for state in states:
        squares.add(model.decoder.norm(state))
    head = {HEAD: squares.mean(HEAD)}
    return Statistics({**found, **head}, len(states), sum(x.shape[1] for x in states), calibration_side(model))


def calibration_side(model: FastVLM) -> int:
    """Returns N, the side at which pictures are encoded for a calibration: the model's own, or less."""
    return min(model.config.vision.image_size, LARGEST_CALIBRATION_SIDE)


def embedded(model: FastVLM, samples: Sequence[Sample], progress: Progress = SILENT) -> list[Tensor]:
    """Returns what enters the decoder for each sample: float32 (1, S, H), the picture's tokens inside the prompt.

    Samples past MOST_POSITIONS are left out, which is told to `progress.note`. Raises PromptError without samples,
    TokenizerError for a model without a tokenizer, ImageError for a picture that cannot be read.
    """
    if not samples:
        raise PromptError("there is nothing to calibrate on; give at least one picture with a prompt")
    found: list[Tensor] = []
    positions = 0
    with progress.stage("Encoding calibration pictures", len(samples)) as advance:
        for sample in samples:
            found.append(_embed(model, sample, progress))
            positions += found[-1].shape[1]
            advance(1)
            if positions >= MOST_POSITIONS:
                break
    if len(found) < len(samples):
        progress.note(f"calibration uses the first {len(found)} of {len(samples)} pictures: {positions} positions")
    return found


def _embed(model: FastVLM, sample: Sample, progress: Progress) -> Tensor:
    if model.tokenizer is None:
        raise TokenizerError("this model has no tokenizer; load it with load_checkpoint, or set model.tokenizer")
    before, after = encode_prompt(model.tokenizer, sample.prompt, model.config.prompt)
    picture = open_image(sample.picture, progress=progress)
    pixels = pixels_to_tensor(preprocess(picture, calibration_side(model), model.config.image_rule))
    ids = torch.tensor([[*before, IMAGE_TOKEN, *after]])
    return model.embed(ids, model.encode_image(pixels)).float()


def walk(decoder: Decoder, states: Sequence[Tensor]) -> Iterator[Visit]:
    """Runs hidden states (1, S, H) through the decoder, layer by layer; the numbers are those of its forward call."""
    ropes = [rope_tables(decoder.config, torch.arange(state.shape[1])) for state in states]
    for index, layer in enumerate(cast(Sequence[DecoderLayer], decoder.layers)):
        with materialised(layer):
            with _recording(layer) as squares:
                after = [layer(x, rope, causal(x), None, index) for x, rope in zip(states, ropes, strict=True)]
            yield Visit(index, layer, ropes, states, after, _by_name(layer_name(index), squares))
        states = after


@contextmanager
def _recording(layer: DecoderLayer) -> Iterator[dict[str, SquaredInputs]]:
    """Takes part in the layer's calls for the length of a `with` block."""
    squares = {linear: SquaredInputs() for linear in INPUTS}
    hooks = [layer.get_submodule(name).register_forward_pre_hook(squares[name].hook) for name in squares]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()


def layer_name(index: int) -> str:
    """Returns what the checkpoint calls a decoder layer: `layers.3`."""
    return f"layers.{index}"


def causal(x: Tensor) -> Tensor:
    """Returns the mask (S, S) of (1, S, H): True where a query may look, at itself and at what came before."""
    length = x.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril()


def _by_name(prefix: str, squares: Mapping[str, SquaredInputs]) -> dict[str, Tensor]:
    found = {}
    for recorded, linears in INPUTS.items():
        values = squares[recorded].mean(f"{prefix}.{recorded}")
        found.update({f"{prefix}.{linear}": values for linear in linears})
    return found


class SquaredInputs:
    """Adds up the squares of a linear layer's inputs (…, K), in float64."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.positions = 0

    def add(self, x: Tensor) -> None:
        """Takes inputs (…, K)."""
        rows = x.reshape(-1, x.shape[-1])
        self.total = self.total + rows.double().square().sum(0)
        self.positions += len(rows)

    def hook(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Takes what a module is called with; to be registered as its forward pre-hook."""
        self.add(inputs[0])

    def mean(self, layer: str) -> Tensor:
        """Returns the mean squares, float32 (K,), rounded; raises TensorError where one is no number."""
        mean = torch.as_tensor(self.total) / max(self.positions, 1)
        if not bool(torch.isfinite(mean.float()).all()):
            raise TensorError(
                f"decoder.{layer} is fed NaN or infinity on the calibration pictures; fetch the checkpoint again, or "
                "take an earlier one of its training"
            )
        return rounded(mean)


def rounded(values: Tensor) -> Tensor:
    """Returns values as float32 with MANTISSA_BITS bits of mantissa."""
    mantissa, exponent = torch.frexp(values.double())
    steps = float(1 << MANTISSA_BITS)
    return torch.ldexp((mantissa * steps).round() / steps, exponent).float()
