"""Unseen scenes as the embedded checkpoint's decoder gets them, and how far apart two decoders are on them.

Exactly right answers (`evaluate`) count in steps of a question; the KL of the predictions tells a thousandth of that.
All positions count, not the answers' alone: those are so sure on this checkpoint that a few of them make up the mean.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastvlm_ref.config import IMAGE_TOKEN
from fastvlm_ref.image import pixels_to_tensor, preprocess
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.training.drawing import draw
from fastvlm_ref.training.evaluate import unseen_questions


@torch.no_grad()
def held_out(model: FastVLM, count: int) -> list[Tensor]:
    """Embeddings (1, S, H) of pictures, questions and their true answers."""
    assert model.tokenizer is not None
    found = []
    for asked in unseen_questions(count):
        before, after = encode_prompt(model.tokenizer, asked.question.prompt)
        ids = torch.tensor([[*before, IMAGE_TOKEN, *after, *model.tokenizer.encode(asked.question.answer)]])
        pixels = pixels_to_tensor(preprocess(draw(asked.scene), model.config.vision.image_size))
        found.append(model.embed(ids, model.encode_image(pixels)))
    return found


@torch.no_grad()
def log_chances(decoder: Decoder, embeds: list[Tensor]) -> Tensor:
    """Log-probabilities (all positions, V), float64."""
    return torch.cat([decoder.head(decoder(x))[0].double().log_softmax(-1) for x in embeds])


@torch.no_grad()
def inputs(decoder: Decoder, layers: Iterable[str], embeds: list[Tensor]) -> dict[str, Tensor]:
    """What each linear layer is fed in whole forward calls, (all positions, K) by name."""
    rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [
        decoder.get_submodule(layer).register_forward_pre_hook(lambda _, x, found=found: found.append(x[0][0]))
        for layer, found in rows.items()
    ]
    for x in embeds:
        decoder.head(decoder(x))
    for hook in hooks:
        hook.remove()
    return {layer: torch.cat(found) for layer, found in rows.items()}


def kl(reference: Tensor, other: Tensor) -> float:
    """KL(reference ‖ other) in nats, the mean over all positions."""
    return float((reference.exp() * (reference - other)).sum(-1).mean())
