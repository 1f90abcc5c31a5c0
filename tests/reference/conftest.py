"""Fixtures of the reference's tests: where goldens lie, a byte-level BPE in Qwen2's layout, a small lively model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner

from fastvlm_ref.config import FastVLMConfig, PromptConfig, TextConfig, VisionConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.tokenizer import load_tokenizer

DATA = Path(__file__).parents[1] / "data"
SHARED = Path(__file__).parents[3] / "shared" / "reference"
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# As Qwen2's tokenizer.json has it, and apart from the package's own copy, so that one checks the other
WORDS = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
CORPUS = (
    "You are a helpful assistant. system user assistant What are these? Describe the image. How many red circles "
    "are there? The quick brown fox jumps over the lazy dog, it's 12,345.67 — isn't it?",
    "Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë. Größe, Straße, Äpfel und Öl.",
    "中文描述一下这张图片 這張圖片裡有什麼 日本語のテキストを読む 한국어 텍스트",
    "अनुच्छेद नमस्ते ภาษาไทย Привет мир Ελληνικά שלום مرحبا",
    "🙂👩‍👩‍👧 def f(x):\n    return x + 1\n\n\ttabs  and   spaces\r\nlines",
    "## A heading\n#### Another ####\n## And a third",
)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The goldens that travel with the tests."""
    return DATA / "goldens"


@pytest.fixture(scope="session")
def shared_goldens() -> Path:
    """All goldens, where the shared reference lies beside the clone."""
    if not (SHARED / "goldens").is_dir():
        pytest.skip("the shared reference is not beside this clone")
    return SHARED / "goldens"


@pytest.fixture(scope="session")
def qwen2_cut() -> Path:
    """What the golden prompts use of Qwen2's tokenizer, with its ids (`data/cut_qwen2.py`)."""
    return DATA / "qwen2-cut"


@pytest.fixture(scope="session")
def qwen2_folder() -> Path:
    """The full Qwen2 tokenizer, where the shared reference lies beside the clone."""
    if not (SHARED / "qwen2-tokenizer").is_dir():
        pytest.skip("the shared reference is not beside this clone")
    return SHARED / "qwen2-tokenizer"


def train_bpe(vocab_size: int = 700) -> Inner:
    """Trains a byte-level BPE with Qwen2's normalizer and word split; the controls come after the vocabulary."""
    inner = Inner(models.BPE())
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_special_tokens(list(CONTROLS))
    return inner


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json and, of the same vocabulary, vocab.json, merges.txt and added_tokens.json."""
    folder = tmp_path_factory.mktemp("bpe")
    inner = train_bpe()
    inner.save(str(folder / "tokenizer.json"))
    model = json.loads(inner.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", "utf-8")
    added = {name: inner.token_to_id(name) for name in CONTROLS}
    (folder / "added_tokens.json").write_text(json.dumps(added), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}), "utf-8")
    return folder


@pytest.fixture(scope="session")
def lively_model(bpe_folder: Path) -> FastVLM:
    """A small model whose every weight matters (`seeded_weights.py`), with the small tokenizer."""
    tokenizer = load_tokenizer(bpe_folder, 10_000)
    vision = VisionConfig(
        image_size=128, depths=(1, 1, 1, 1, 1), widths=(16, 32, 32, 64, 64), mlp_widths=(32, 64, 64, 128, 128),
        features=128, se_channels=8,
    )  # fmt: skip
    text = TextConfig(
        hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=128,
        vocab_size=tokenizer.size + 9, rms_norm_eps=1e-6, rope_theta=1e6, qkv_bias=True, tied_head=False,
        max_positions=512,
    )  # fmt: skip
    tokenizer.prompt = PromptConfig()
    model = FastVLM(FastVLMConfig("llava_qwen2", vision, text, tokenizer.prompt)).eval().requires_grad_(False)
    seeded = _seeded_weights()
    for name, value in model.state_dict().items():
        full = name.replace("vision_encoder.", "model.vision_tower.vision_tower.model.", 1)
        value.copy_(torch.from_numpy(seeded.seeded_tensor(full, tuple(value.shape))))
    model.tokenizer = tokenizer
    return model


def _seeded_weights():
    spec = importlib.util.spec_from_file_location("seeded_weights", DATA / "seeded_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
