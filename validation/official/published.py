"""Logits that were published for Apple's three checkpoints, and all that has to be alike for them to come out again.

They stand in transformers' conversion script, which asserts them (atol 1e-8) on the GPU on which they were made:
bfloat16 throughout, timm's tower with its attention not fused, the head's row at the last position, the first three
tokens of the vocabulary. The script asks "What are these?" about COCO val2017 39769 through transformers' image
processor (shortest edge to 1024, bicubic, centre crop) and Qwen2's conversation with its usual system text, the image
first: 24 ids of text and 256 image tokens, 280 positions. Where a port's table has rows for `<image>` and for padding,
they lie behind all others and change nothing here: the image's slot is filled with the tower's tokens.

Notable choice: a size is recognised by the decoder's layers, width and rows of the table; a name proves nothing.
It does not know how logits are computed.
Source: huggingface/transformers, `src/transformers/models/fast_vlm/convert_fastvlm_weights_to_hf.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastvlm.errors import UsageError
from fastvlm_ref.config import PromptConfig, TextConfig
from fastvlm_ref.prompt import QWEN_2

SCRIPT = (
    "https://github.com/huggingface/transformers/blob/main/src/transformers/models/fast_vlm/"
    "convert_fastvlm_weights_to_hf.py"
)
QUESTION = "What are these?"
PROMPT = PromptConfig(template=QWEN_2.name, system=QWEN_2.system)  # whatever the checkpoint itself states
IMAGE_RULE = "crop"
PICTURE_SIZE = (640, 480)  # width and height of the picture; no hash of it was published, and none is invented here
PICTURE = "COCO val2017 000000039769.jpg (http://images.cocodataset.org/val2017/000000039769.jpg)"


@dataclass(frozen=True)
class Published:
    """One checkpoint's row: how it is recognised, and what was published for it."""

    name: str
    layers: int
    width: int  # H
    rows: tuple[int, ...]  # V in Apple's layout, and in the Hugging Face port, which pads its table
    logits: tuple[float, ...]  # of tokens 0, 1, 2 at the last position, bfloat16
    positions: int = 280
    image_size: int = 1024  # N

    def is_of(self, text: TextConfig) -> bool:
        """Returns whether a decoder of these sizes may be this one."""
        return (text.layers, text.hidden_size) == (self.layers, self.width) and text.vocab_size in self.rows

    @property
    def sizes(self) -> str:
        """What the row is recognised by, in words."""
        return f"{self.name}: {self.layers} layers, width {self.width}, {' or '.join(map(str, self.rows))} rows"


PUBLISHED = (
    Published("0.5B", 24, 896, (151_936, 152_000), (4.1250, 9.6875, 11.1875)),
    Published("1.5B", 28, 1536, (151_936, 152_000), (3.3750, 11.5000, 11.8125)),
    Published("7B", 28, 3584, (152_064, 152_128), (3.8281, 9.0625, 7.9062)),
)


def find_published(text: TextConfig, name: str, table: Sequence[Published]) -> Published:
    """Returns the row for a decoder of these sizes; raises UsageError, naming all that are known, where there is none.

    `name` is what the user calls the checkpoint.
    """
    for row in table:
        if row.is_of(text):
            return row
    found = f"{text.layers} layers, width {text.hidden_size}, {text.vocab_size} rows"
    known = "; ".join(row.sizes for row in table)
    raise UsageError(
        f"no logits were published for {name} ({found}); known are {known}: name one of Apple's checkpoints"
    )
