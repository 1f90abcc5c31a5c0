"""The reference: the PyTorch model, its checkpoint readers, and the way of pictures and prompts into it.

Names load on first use, so that `import fastvlm_ref` costs neither torch nor pillow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvlm_ref.checkpoint import load_checkpoint
    from fastvlm_ref.config import FastVLMConfig
    from fastvlm_ref.conversation import Conversation
    from fastvlm_ref.engine import TorchEngine
    from fastvlm_ref.generate import Timings, generate_text
    from fastvlm_ref.image import open_image, preprocess
    from fastvlm_ref.model.fastvlm import FastVLM
    from fastvlm_ref.prompt import encode_prompt
    from fastvlm_ref.remembering import Remembering
    from fastvlm_ref.sampling import Sampling
    from fastvlm_ref.tokenizer import Tokenizer, load_tokenizer

_HOMES = {
    "Conversation": "fastvlm_ref.conversation",
    "FastVLM": "fastvlm_ref.model.fastvlm",
    "FastVLMConfig": "fastvlm_ref.config",
    "Remembering": "fastvlm_ref.remembering",
    "Sampling": "fastvlm_ref.sampling",
    "Timings": "fastvlm_ref.generate",
    "Tokenizer": "fastvlm_ref.tokenizer",
    "TorchEngine": "fastvlm_ref.engine",
    "encode_prompt": "fastvlm_ref.prompt",
    "generate_text": "fastvlm_ref.generate",
    "load_checkpoint": "fastvlm_ref.checkpoint",
    "load_tokenizer": "fastvlm_ref.tokenizer",
    "open_image": "fastvlm_ref.image",
    "preprocess": "fastvlm_ref.image",
}

__all__ = [
    "Conversation",
    "FastVLM",
    "FastVLMConfig",
    "Remembering",
    "Sampling",
    "Timings",
    "Tokenizer",
    "TorchEngine",
    "encode_prompt",
    "generate_text",
    "load_checkpoint",
    "load_tokenizer",
    "open_image",
    "preprocess",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastvlm_ref' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
