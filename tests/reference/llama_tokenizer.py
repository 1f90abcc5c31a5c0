"""A Llama-like tokenizer.json: BPE over ▁-text with byte fallback, `<s>` first, as converters write it."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, processors, trainers

CONTROLS = ("<unk>", "<s>", "</s>")
OCTETS = tuple(f"<0x{value:02X}>" for value in range(256))


def write_llama(folder: Path, text: str) -> Path:
    """Writes tokenizer.json of at most 500 tokens, trained on `text`, into `folder`, which it makes; returns that."""
    inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*CONTROLS, *OCTETS], show_progress=False)
    inner.train_from_iterator([text] * 3, trainer)
    data = json.loads(inner.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in CONTROLS]
    inner = tokenizers.Tokenizer.from_str(json.dumps(data))
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(strip)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    return folder
