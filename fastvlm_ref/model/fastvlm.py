"""FastVLM whole: vision encoder, projector and decoder, and the one place where image and text meet.

It takes ids and pixels; text, templates and image files belong to `fastvlm_ref.prompt` and `fastvlm_ref.image`,
the loop and the sampling to `fastvlm_ref.generate`, which `generate` hands everything to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastvlm.errors import PromptError, TokenizerError
from fastvlm_ref.config import IMAGE_TOKEN, FastVLMConfig
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.fastvithd import FastViTHD
from fastvlm_ref.model.projector import projector

if TYPE_CHECKING:
    from PIL import Image

    from fastvlm_ref.checkpoint.source import Source
    from fastvlm_ref.generate import Timings
    from fastvlm_ref.tokenizer import Tokenizer


class FastVLM(nn.Module):
    """The reference model, float32 and in eval mode as `load_checkpoint` returns it."""

    def __init__(self, config: FastVLMConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None  # both are set by load_checkpoint
        self.source: Source | None = None
        self.vision_encoder = FastViTHD(config.vision)
        self.projector = projector(config.vision.features, config.text.hidden_size)
        self.decoder = Decoder(config.text)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Returns image tokens (B, T, H) of pixels (B, 3, N, N) in [0, 1]."""
        out: Tensor = self.projector(self.vision_encoder(pixels))
        return out

    def embed(self, input_ids: Tensor, image_tokens: Tensor | None = None) -> Tensor:
        """Returns embeddings (B, S − 1 + T, H) of ids (B, S) in which one −200 stands for the image's T tokens.

        Every row must hold the mark once, at the same place; without `image_tokens` no row may hold it. Raises
        PromptError where it is otherwise.
        """
        at = _place_of_image(input_ids, wanted=image_tokens is not None)
        if image_tokens is None:
            out: Tensor = self.decoder.embed_tokens(input_ids)
            return out
        before = self.decoder.embed_tokens(input_ids[:, :at])
        after = self.decoder.embed_tokens(input_ids[:, at + 1 :])
        return torch.cat((before, image_tokens.to(before.dtype), after), 1)

    def forward(self, input_ids: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Returns logits (B, S − 1 + T, V), or (B, S, V) without an image, of ids (B, S)."""
        image_tokens = None if pixels is None else self.encode_image(pixels)
        return self.decoder.head(self.decoder(self.embed(input_ids, image_tokens)))

    def generate(
        self,
        image: Image.Image | str | Path,
        prompt: str,
        max_new_tokens: int = 256,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        context: int | None = None,
        timings: Timings | None = None,
    ) -> Iterator[str]:
        """Streams the answer to `prompt` about a picture (or its path) in pieces of text; greedy at temperature 0.

        `context` is 2048 unless given, or what the checkpoint allows where that is less. Raises, at the call,
        ImageError, PromptError, UsageError, and TokenizerError where the model was made without a tokenizer.
        """
        from fastvlm_ref.engine import TorchEngine  # here, because the engine imports this class
        from fastvlm_ref.generate import generate_text
        from fastvlm_ref.image import open_image
        from fastvlm_ref.sampling import Sampling

        if self.tokenizer is None:
            raise TokenizerError("this model has no tokenizer; load it with load_checkpoint, or set model.tokenizer")
        return generate_text(
            TorchEngine(self, context or min(2048, self.config.text.max_positions)),
            self.tokenizer,
            open_image(image) if isinstance(image, (str, Path)) else image,
            prompt,
            prompt=self.config.prompt,
            image_rule=self.config.image_rule,
            sampling=Sampling(temperature, top_p, seed),
            max_new_tokens=max_new_tokens,
            timings=timings,
        )


def _place_of_image(input_ids: Tensor, wanted: bool) -> int:
    """Returns where all rows (B, S) hold their one mark, 0 where none is wanted; raises PromptError otherwise."""
    marks = input_ids == IMAGE_TOKEN
    counts = marks.sum(1)
    if bool((counts != int(wanted)).any()):
        raise PromptError(
            f"the rows of ids hold the image's mark {IMAGE_TOKEN} {counts.tolist()} times, expected "
            f"{'once each, because there is an image' if wanted else 'none, because there is no image'}"
        )
    if not wanted:
        return 0
    places: list[int] = marks.int().argmax(1).tolist()
    if len(set(places)) != 1:
        raise PromptError(f"the image's mark stands at {places}, expected the same place in every row; pad the rows")
    return places[0]
