"""The sizes that can be made: the numbers of Apple's three checkpoints, and of Vicuna-7B under the same tower.

Notable choice: a size is plain numbers, so that a test makes a small one (`dataclasses.replace`) through the same code.
Sources: config.json of the official checkpoints (0.5b, 1.5b, 7b); lmsys/vicuna-7b-v1.5 (vicuna-7b, which Apple never
released with a FastViTHD tower; the paper uses it).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fastvlm_ref.config import TextConfig, VisionConfig

QWEN2_TOKENS = 151_643  # of Qwen2's vocabulary, before its control tokens
LLAMA_TOKENS = 32_000  # of Llama's, with its three control tokens


@dataclass(frozen=True)
class Size:
    """One checkpoint to make: its name, the decoder's and the tower's numbers, and what no tensor holds.

    `text.tied_head` says whether head and embedding table hold the same values; both are stored in the LLaVA layout.
    """

    name: str
    text: TextConfig
    tokens: int  # tokens of the generated vocabulary: without the control tokens for Qwen2, with them for Llama
    padded_rows: int | None  # rows of the table in the Hugging Face layout; None where that layout does not exist
    sliding_window: int | None = None  # stated and not in use
    vision: VisionConfig = field(default_factory=VisionConfig)

    @property
    def llama(self) -> bool:
        """Whether the decoder is a Llama (Vicuna), which has no bias on q, k and v; else it is a Qwen2."""
        return not self.text.qkv_bias

    @property
    def template(self) -> str:
        """The name of the conversation template that the decoder was trained with."""
        return "vicuna_v1" if self.llama else "qwen_2"

    def rows(self, layout: str) -> int:
        """V, the rows of the embedding table in `layout`, "llava" or "hf"."""
        return self.padded_rows if layout == "hf" and self.padded_rows else self.text.vocab_size


QWEN2_05B = TextConfig(
    hidden_size=896, layers=24, heads=14, kv_heads=2, head_dim=64, intermediate_size=4864, vocab_size=151_936,
    rms_norm_eps=1e-6, rope_theta=1e6, qkv_bias=True, tied_head=True, max_positions=32_768,
)  # fmt: skip
QWEN2_15B = replace(QWEN2_05B, hidden_size=1536, layers=28, heads=12, head_dim=128, intermediate_size=8960)
QWEN2_7B = replace(
    QWEN2_15B, hidden_size=3584, heads=28, kv_heads=4, intermediate_size=18_944, vocab_size=152_064, tied_head=False
)
VICUNA_7B = TextConfig(
    hidden_size=4096, layers=32, heads=32, kv_heads=32, head_dim=128, intermediate_size=11_008, vocab_size=32_000,
    rms_norm_eps=1e-5, rope_theta=1e4, qkv_bias=False, tied_head=False, max_positions=4096,
)  # fmt: skip
SIZES = {
    size.name: size
    for size in (
        Size("0.5b", QWEN2_05B, QWEN2_TOKENS, 152_000, 32_768),
        Size("1.5b", QWEN2_15B, QWEN2_TOKENS, 152_000, 32_768),
        Size("7b", QWEN2_7B, QWEN2_TOKENS, 152_128, 131_072),
        Size("vicuna-7b", VICUNA_7B, LLAMA_TOKENS, None),
    )
}
