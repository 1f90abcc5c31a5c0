"""The powers of two that a checkpoint's ranges ask for, and in words what no power of two cures.

| exponent | smallest e with | of |
|---|---|---|
| residual | peak · 2^−e ≤ 16,384 | the residual stream, and what inputs, attention and MLP add to it |
| scores | peak · 2^−e ≤ 4,096; queries ≤ 16,384 | scores before mask and softmax; queries |
| values, of each layer | peak · 2^−e ≤ 16,384 | values and their weighted means |
| mlp, of each layer | peak · 2^−e ≤ 16,384 | up, and silu(gate) · up |
| encoder, by site | as `export.encoder_sites` says | |

A score of at most 4,096 lets the mask's −1e4 win at every place: −1e4 + 4,096 < −4,096.
Image tokens and the decoder's inputs are not scaled, and keys, gate, the norms' outputs and logits meet ops that a
power of two cannot cross (another op reads them as they are, silu, the user): beyond 32,768 they are a problem.
It reads ranges alone, no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from export.encoder_sites import encoder_exponents
from export.protection import Protection, power
from export.ranges.decoder import CONTEXT
from export.ranges.result import ALLOWED, DECODER, ENCODER, FP16_LARGEST, Ranges, TensorRange
from fastvlm.errors import TensorError

LARGEST_SCORE = 4096.0
LARGEST_SCORE_EXPONENT = 9  # scores of 2.1e6, as of all others
LARGEST_EXPONENT = 7  # of all others: 2.1e6, where what is written is still far from fp16's subnormals
LAYER = re.compile(r"layers\.(\d+)[. ](.+)")
# which exponent scales what, by the name behind the layer's
RESIDUAL = ("add", "add.2", "self_attn.o_proj linear", "mlp.down_proj linear")
TOKENS, FEATURES = "projector_2 convolution", "conv_exp gelu"
INPUTS = ("embed_tokens rows", "input")
QUERIES = ("self_attn.q_proj linear", "self_attn queries")
VALUES = ("self_attn.v_proj linear", "self_attn attention")
MLP = ("mlp.up_proj linear", "mlp mul")
# keys and scores of a layer whose keys have all of their bias, and of one whose keys go without its constant part
SCORES, SHIFTED_SCORES = "self_attn scores", "self_attn scores shifted"
PLAIN = ("self_attn.k_proj linear", "self_attn keys", SCORES)
SHIFTED = ("self_attn constant", "self_attn keys shifted", SHIFTED_SCORES)


def asked_of(ranges: Ranges, context: int = CONTEXT, projector: bool = True) -> tuple[Protection, tuple[str, ...]]:
    """Returns the exponents, and what leaves the allowed range in spite of them, in sentences.

    projector: whether the encoder hands out what it gives, else what the tower does.
    """
    protection = protection_of(ranges, context)
    return protection, problems_of(ranges, protection, context, TOKENS if projector else FEATURES)


def protection_of(ranges: Ranges, context: int = CONTEXT) -> Protection:
    """Returns the exponents that a checkpoint's ranges ask for, in a language model of `context` positions.

    TensorError where one is larger than a graph carries: no training that went well leads there.
    """
    seen = Reached.of(ranges, context)
    queries, scores = seen.most(*QUERIES), seen.most(SCORES, SHIFTED_SCORES)
    residual = max(seen.most(*RESIDUAL), *(seen.outside.get(name, 0.0) for name in INPUTS))
    found = Protection(
        encoder=encoder_exponents(ranges.peaks(ENCODER), ranges.sites),
        residual=power(residual),
        scores=max(power(scores, LARGEST_SCORE), power(queries)),
        mlp=tuple(power(seen.most(*MLP, layer=layer)) for layer in seen.layers),
        values=tuple(power(seen.most(*VALUES, layer=layer)) for layer in seen.layers),
    )
    _check(found)
    return found


def _check(protection: Protection) -> None:
    """Raises TensorError for exponents that no graph carries, all of them named."""
    found = {"the residual stream": protection.residual}
    for name, exponents in (("MLP", protection.mlp), ("values", protection.values)):
        found |= {f"layer {layer}'s {name}": exponent for layer, exponent in enumerate(exponents)}
    beyond = {name: exponent for name, exponent in found.items() if exponent > LARGEST_EXPONENT}
    beyond |= {"scores": protection.scores} if protection.scores > LARGEST_SCORE_EXPONENT else {}
    if beyond:
        named = ", ".join(f"{name} (2^{exponent})" for name, exponent in beyond.items())
        raise TensorError(
            f"the decoder's values would have to be divided by more than fp16 carries: {named}; expected at most "
            f"2^{LARGEST_EXPONENT}, scores 2^{LARGEST_SCORE_EXPONENT}: the checkpoint is damaged, or its training "
            "diverged"
        )


def problems_of(
    ranges: Ranges, protection: Protection, context: int = CONTEXT, tokens: str = TOKENS
) -> tuple[str, ...]:
    """Returns what leaves the allowed range in spite of the exponents, a sentence for each tensor."""
    found = ((tensor, stored) for tensor, stored in _stored(ranges, protection, context, tokens) if stored > ALLOWED)
    return tuple(
        f"{tensor.name} reaches {tensor.peak:,.6g} on the input {tensor.worst!r}, and no power of two can be taken out "
        f"of it: {'fp16 makes it infinite' if stored > FP16_LARGEST else f'at most {ALLOWED:,.0f} is allowed'}"
        for tensor, stored in found
    )


@dataclass(frozen=True)
class Reached:
    """What the decoder's tensors reach: those in no layer by name, the others by (layer, name in it)."""

    outside: Mapping[str, float]
    inside: Mapping[tuple[int, str], float]

    @classmethod
    def of(cls, ranges: Ranges, context: int) -> Reached:
        """Returns the decoder's peaks, sorted out: those that a graph of `context` positions has.

        With more positions than were scanned fewer channels turn slowly, and keys count with all of their bias.
        """
        outside, inside = {}, {}
        for name, peak in ranges.peaks(DECODER).items():
            if found := LAYER.fullmatch(name):
                inside[int(found[1]), found[2]] = peak
            else:
                outside[name] = peak
        shifted = {layer for layer, name in inside if name == SHIFTED_SCORES and context <= CONTEXT}
        left_out = {layer: PLAIN if layer in shifted else SHIFTED for layer, _ in inside}
        return cls(outside, {key: peak for key, peak in inside.items() if key[1] not in left_out[key[0]]})

    @property
    def layers(self) -> range:
        """The decoder's layers."""
        return range(max((layer for layer, _ in self.inside), default=-1) + 1)

    def most(self, *names: str, layer: int | None = None) -> float:
        """Returns the largest peak of tensors in one layer, or in all of them; 0 where there are none."""
        return max(
            (peak for (at, name), peak in self.inside.items() if name in names and layer in (None, at)), default=0
        )


def _stored(ranges: Ranges, protection: Protection, context: int, tokens: str) -> Iterator[tuple[TensorRange, float]]:
    """Gives the encoder's result and the tensors of the decoder's graph, with the magnitude at which each is stored."""
    seen = Reached.of(ranges, context)
    yield from ((tensor, tensor.peak) for tensor in ranges.part(ENCODER) if tensor.name == ENCODER + tokens)
    for tensor in ranges.part(DECODER):
        found = LAYER.fullmatch(tensor.name.removeprefix(DECODER))
        if found is None:
            yield tensor, tensor.peak
        elif (int(found[1]), found[2]) in seen.inside:
            yield tensor, tensor.peak * 2.0 ** -_exponent(found[2], int(found[1]), protection)


def _exponent(name: str, layer: int, protection: Protection) -> int:
    """Returns the exponent with which a tensor of a layer is stored."""
    if name in RESIDUAL:
        return protection.residual
    if name in (*QUERIES, SCORES, SHIFTED_SCORES):
        return protection.scores
    if name in VALUES:
        return protection.values_of(layer)
    return protection.mlp_of(layer) if name in MLP else 0
