"""The tiny checkpoint's own tokenizer: byte-level BPE in Qwen2's layout, trained on what scenes and questions say.

Notable choices:
- the vocabulary is Qwen2's in form (its split into words, its byte alphabet, its control tokens behind the merges),
  so that the readers and the prompt code need no special case; any UTF-8 text has an encoding;
- the text it is trained on is a pure function of the training seed, so the files are reproducible to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from fastvlm_ref.prompt import QWEN_2
from fastvlm_ref.tokenizer import QWEN2_WORDS
from fastvlm_ref.training.questions import FORMS, ask, describe
from fastvlm_ref.training.scenes import TRAIN_SEED, WORDS, scene
from fastvlm_ref.training.stages import VOCABULARY

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SCENES = 3000  # scenes whose texts are counted


def corpus() -> Iterator[str]:
    """Yields the texts that the merges are learned from: the template, every word, descriptions, questions, answers."""
    rng = np.random.Generator(np.random.PCG64(TRAIN_SEED))
    for _ in range(500):
        yield f"system\n{QWEN_2.system}\nuser\nassistant\n"
    for index in range(SCENES):
        drawn = scene(TRAIN_SEED, index)
        yield f"{describe(drawn)}\n"
        for form in FORMS:
            question = ask(drawn, form, rng)
            if question is not None:
                yield f"\n{question.prompt}"
                yield question.answer
    yield from WORDS * 60


def train_vocabulary() -> tokenizers.Tokenizer:
    """Returns the trained tokenizer with its control tokens; the same every time."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(CONTROLS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(corpus(), trainer)
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROLS])
    return inner


def write_vocabulary(folder: Path) -> None:
    """Writes tokenizer.json, vocab.json, merges.txt and tokenizer_config.json into `folder`."""
    inner = train_vocabulary()
    inner.save(str(folder / "tokenizer.json"))
    model = json.loads(inner.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    _write_json(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    added = {token.content: id_ for id_, token in sorted(inner.get_added_tokens_decoder().items())}
    _write_json(folder / "added_tokens.json", added)
    _write_json(folder / "tokenizer_config.json", _config(added))


def _config(added: dict[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(id_): {"content": name, **flags} for name, id_ in added.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
