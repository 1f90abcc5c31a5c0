"""What a FastVLM model is, as frozen numbers.

Notable choices:
- the vision tower's sizes come from the tensors, not from a table of names: a fine-tune with other sizes just works;
- only listed fields are read from a checkpoint's config.json, none of them can name code;
- whatever had to be assumed is kept in `FastVLMConfig.assumed`, printed, and written into the manifest.
It does not know files: `fastvlm_ref.checkpoint` reads them and fills these classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LARGEST_SIDE = 4096  # pixels of an image's side N that anything here accepts: 4096 image tokens
IMAGE_TOKEN = -200  # LLaVA's mark for "the image goes here" in a row of ids; never a row of the embedding table


@dataclass(frozen=True)
class VisionConfig:
    """FastViTHD: five stages, the first three of RepMixer blocks, the last two of attention blocks."""

    image_size: int = 1024  # N, a multiple of 64
    depths: tuple[int, ...] = (2, 12, 24, 4, 2)
    widths: tuple[int, ...] = (96, 192, 384, 768, 1536)
    mlp_widths: tuple[int, ...] = (384, 768, 1536, 3072, 6144)
    attention_stages: tuple[bool, ...] = (False, False, False, True, True)
    head_dim: int = 32
    features: int = 3072  # channels after conv_exp
    se_channels: int = 192
    stride: int = 64

    @property
    def tokens(self) -> int:
        """T, the number of image tokens: (N / 64)², 256 at 1024 and 324 at 1152."""
        return self.tokens_at(self.image_size)

    def tokens_at(self, side: int) -> int:
        """Returns T for an image of `side` pixels."""
        return (side // self.stride) ** 2


@dataclass(frozen=True)
class TextConfig:
    """A Qwen2 or Llama decoder; they differ in `qkv_bias` and `rope_theta` alone."""

    hidden_size: int  # H
    layers: int
    heads: int
    kv_heads: int
    head_dim: int  # D
    intermediate_size: int
    vocab_size: int  # V, rows of the embedding table (more than the tokenizer's tokens is fine)
    rms_norm_eps: float
    rope_theta: float
    qkv_bias: bool
    tied_head: bool  # decided by comparing tensors, never by the flag
    max_positions: int

    @property
    def kv_width(self) -> int:
        """Channels of one layer's keys (or values): kv_heads · D."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class PromptConfig:
    """How text becomes ids: template name and system text, and which ids end an answer."""

    template: str = "qwen_2"  # qwen_2 | plain | vicuna_v1
    system: str | None = None  # None: the template's own
    stop_ids: tuple[int, ...] = ()
    image_token_id: int = IMAGE_TOKEN  # the config's own id where it has one (151646 in Hugging Face ports)


@dataclass(frozen=True)
class FastVLMConfig:
    """Everything that export and validation need to know about a checkpoint besides its tensors."""

    model_type: str  # llava_qwen2 | llava_llama | fast_vlm | …, as config.json says
    vision: VisionConfig
    text: TextConfig
    prompt: PromptConfig = field(default_factory=PromptConfig)
    image_rule: str = "pad"  # pad | crop
    licence: str = "unknown"
    assumed: tuple[str, ...] = ()  # one sentence per thing that the checkpoint did not state
