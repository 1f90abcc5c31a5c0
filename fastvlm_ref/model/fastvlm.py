"""FastVLM whole: vision encoder, projector and decoder, and the one place where image and text meet.

It takes ids and pixels; text, templates and image files belong to `fastvlm_ref.prompt` and `fastvlm_ref.image`,
sampling to `fastvlm_ref.generate`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvlm_ref.config import IMAGE_TOKEN, FastVLMConfig
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.fastvithd import FastViTHD
from fastvlm_ref.model.projector import projector


class FastVLM(nn.Module):
    """The reference model, float32 and in eval mode as `load_checkpoint` returns it."""

    def __init__(self, config: FastVLMConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder = FastViTHD(config.vision)
        self.projector = projector(config.vision.features, config.text.hidden_size)
        self.decoder = Decoder(config.text)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Returns image tokens (B, T, H) of pixels (B, 3, N, N) in [0, 1]."""
        out: Tensor = self.projector(self.vision_encoder(pixels))
        return out

    def embed(self, input_ids: Tensor, image_tokens: Tensor | None = None) -> Tensor:
        """Returns embeddings (B, S − 1 + T, H) of ids (B, S) in which one −200 stands for the image's T tokens.

        Every row must hold the mark at the same place; without `image_tokens` no row may hold it.
        """
        if image_tokens is None:
            out: Tensor = self.decoder.embed_tokens(input_ids)
            return out
        marks = (input_ids[0] == IMAGE_TOKEN).nonzero()
        at = int(marks[0, 0])
        before = self.decoder.embed_tokens(input_ids[:, :at])
        after = self.decoder.embed_tokens(input_ids[:, at + 1 :])
        return torch.cat((before, image_tokens.to(before.dtype), after), 1)

    def forward(self, input_ids: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Returns logits (B, S − 1 + T, V), or (B, S, V) without an image, of ids (B, S)."""
        image_tokens = None if pixels is None else self.encode_image(pixels)
        return self.decoder.head(self.decoder(self.embed(input_ids, image_tokens)))
