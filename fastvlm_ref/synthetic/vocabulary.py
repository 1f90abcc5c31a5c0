"""A byte-level BPE of official size, made without any text: any UTF-8 has an encoding, and no file is needed.

Notable choices:
- after the 256 bytes come pairs of bytes, then triples, in the order of the byte alphabet, so every token can be
  reached by merges and the number of tokens is exact;
- Qwen2's form has its control tokens behind the vocabulary (151643 to 151645, and `<image>` in Hugging Face ports);
  Llama's form has them in front (`<unk>`, `<s>`, `</s>`) and is byte-level too, where the real one is sentencepiece.
Ids of words are of course not the real ones: give `--tokenizer` for those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from fastvlm_ref.synthetic.sizes import Size
from fastvlm_ref.tokenizer import QWEN2_WORDS

QWEN2_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_CONTROLS = ("<unk>", "<s>", "</s>")
IMAGE = "<image>"
Merges = list[tuple[str, str]]


def write_vocabulary(folder: Path, size: Size, layout: str) -> None:
    """Writes the tokenizer of `size` into `folder`: for Qwen2 the four files its checkpoints hold, for Llama two."""
    controls = LLAMA_CONTROLS if size.llama else QWEN2_CONTROLS + ((IMAGE,) if layout == "hf" else ())
    merges = list(islice(_merges(), size.tokens - 256 - (len(controls) if size.llama else 0)))
    vocabulary = _vocabulary(merges, controls if size.llama else ())
    inner = _tokenizer(vocabulary, merges, controls)
    (folder / "tokenizer.json").write_text(inner.to_str(pretty=False) + "\n", "utf-8")
    added = {token.content: id_ for id_, token in sorted(inner.get_added_tokens_decoder().items())}
    _write_json(folder / "tokenizer_config.json", _llama_config(added) if size.llama else _qwen2_config(added))
    if not size.llama:
        _write_json(folder / "vocab.json", vocabulary)
        lines = "".join(f"{left} {right}\n" for left, right in merges)
        (folder / "merges.txt").write_text("#version: 0.2\n" + lines, "utf-8")


def _merges() -> Iterator[tuple[str, str]]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    yield from product(letters, letters)
    for left, middle, right in product(letters, letters, letters):
        yield left + middle, right


def _vocabulary(merges: Merges, controls: tuple[str, ...]) -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*controls, *letters, *(left + right for left, right in merges)]
    return {name: index for index, name in enumerate(names)}


def _tokenizer(vocabulary: dict[str, int], merges: Merges, controls: tuple[str, ...]) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in controls])
    return inner


def _added(added: dict[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(id_): {"content": name, **flags} for name, id_ in added.items()}


def _qwen2_config(added: dict[str, int]) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": _added(added),
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _llama_config(added: dict[str, int]) -> dict[str, Any]:
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": _added(added),
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 4096,
        "pad_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", "utf-8")
