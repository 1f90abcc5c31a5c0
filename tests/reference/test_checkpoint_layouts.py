"""Every layout a checkpoint comes in gives the same model, and what the folder says about itself is understood."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from synthetic import SMALL, TEXT, hf_config, hf_names, llava_config, llava_names, mlx_names, state, untied, write

from fastvlm.progress import Progress
from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint.opening import TINY, open_checkpoint
from fastvlm_ref.checkpoint.source import licence_files, weight_hashes
from fastvlm_ref.config import IMAGE_TOKEN, FastVLMConfig
from fastvlm_ref.model.fastvlm import FastVLM


def same(model: FastVLM, expected: dict[str, torch.Tensor]) -> None:
    """Fails unless the model holds exactly `expected` (our names), as float32."""
    found = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    if model.config.text.tied_head:
        assert model.decoder.lm_head.weight is model.decoder.embed_tokens.weight
        found.pop("decoder.lm_head.weight")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert torch.equal(value, expected[name].float()), name


class Notes(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


LAYOUTS: dict[str, Callable[[Path, FastVLMConfig, str], Path]] = {
    "llava": lambda folder, config, dtype: synthetic.write_llava(folder, config, dtype=dtype),
    "llava-shards": lambda folder, config, dtype: synthetic.write_llava(folder, config, dtype=dtype, shards=3),
    "hf": lambda folder, config, dtype: write(folder, hf_names(state(config, dtype=dtype)), hf_config(config)),
    "mlx": lambda folder, config, dtype: write(folder, mlx_names(state(config, dtype=dtype)), llava_config(config)),
}


@pytest.mark.parametrize(
    ("layout", "head", "dtype"),
    [(layout, "own", "BF16") for layout in LAYOUTS]
    + [(layout, "tied", dtype) for layout in LAYOUTS for dtype in ("F16", "F32")],
)
def test_every_layout_gives_the_same_model(tmp_path: Path, layout: str, head: str, dtype: str) -> None:
    config = SMALL if head == "tied" else untied()
    model = load_checkpoint(LAYOUTS[layout](tmp_path / "it", config, dtype))
    same(model, state(config, dtype=dtype))
    assert model.config.text == config.text
    assert replace(model.config.vision, image_size=128) == config.vision
    assert not model.training
    assert model.source is not None
    assert model.source.layout == layout.split("-")[0]


@pytest.mark.parametrize("layout", ["llava", "hf", "mlx"])
def test_the_hashes_name_every_file_read(tmp_path: Path, layout: str) -> None:
    folder = LAYOUTS[layout](tmp_path / "it", SMALL, "BF16")
    (folder / "training_args.bin").write_bytes(b"not part of it")
    source = load_checkpoint(folder).source
    assert source is not None
    files = source.files()
    assert list(files) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert files["model.safetensors"]["bytes"] == (folder / "model.safetensors").stat().st_size
    assert source.id == "it"


@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda name: "base_model.model." + name, id="base_model.model."),
        pytest.param(lambda name: "module." + name, id="module."),
        pytest.param(lambda name: "_orig_mod.module." + name, id="_orig_mod.module."),
        pytest.param(lambda name: name.replace("model.l", "model.language_model.l"), id="model.language_model.layers"),
        pytest.param(
            lambda name: (
                name.replace("model.", "language_model.model.", 1)
                if name.startswith(("model.l", "model.e", "model.n"))
                else name.replace("lm_head", "language_model.lm_head")
            ),
            id="language_model.model.",
        ),
    ],
)
def test_prefixes_that_trainers_leave(tmp_path: Path, rename: Callable[[str], str]) -> None:
    config = untied()
    tensors = {rename(name): value for name, value in llava_names(state(config)).items()}
    same(load_checkpoint(write(tmp_path / "it", tensors, llava_config(config))), state(config))


def test_unused_tensors_are_left_out(tmp_path: Path) -> None:
    tensors = llava_names(state())
    tower = "model.vision_tower.vision_tower.model."
    tensors[tower + "head.proj"] = torch.zeros(256, 24, dtype=torch.bfloat16)
    tensors[tower + "network.0.0.convffn.conv.bn.num_batches_tracked"] = torch.tensor(7)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    same(load_checkpoint(write(tmp_path / "it", tensors, llava_config())), state())


def test_other_sizes_just_work(tmp_path: Path) -> None:
    vision = replace(
        SMALL.vision, depths=(2, 1, 1), widths=(16, 32, 64), mlp_widths=(32, 32, 96), features=192, se_channels=6,
        attention_stages=(False, False, True), stride=16,
    )  # fmt: skip
    text = replace(TEXT, hidden_size=48, layers=2, heads=6, kv_heads=1, head_dim=10, vocab_size=300)
    config = replace(SMALL, vision=vision, text=text)
    model = load_checkpoint(synthetic.write_llava(tmp_path / "it", config))
    same(model, state(config))
    assert model.config.vision == vision
    assert model.encode_image(torch.rand(1, 3, 128, 128)).shape == (1, 64, 48)


def test_a_wrong_attention_pattern_is_seen(tmp_path: Path) -> None:
    """The stages that attend are read off the tensors, so a RepMixer stage in the last place is one."""
    vision = replace(SMALL.vision, attention_stages=(False, False, False, True, False))
    config = replace(SMALL, vision=vision)
    assert load_checkpoint(synthetic.write_llava(tmp_path / "it", config)).config.vision == vision


def test_heads_are_compared_never_believed(tmp_path: Path) -> None:
    tensors = llava_names(state())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    stored_twice = load_checkpoint(write(tmp_path / "twice", tensors, llava_config(tie_word_embeddings=False)))
    assert stored_twice.config.text.tied_head

    tensors["lm_head.weight"][-1, -1] += 1
    differs = load_checkpoint(write(tmp_path / "differs", tensors, llava_config(tie_word_embeddings=True)))
    assert not differs.config.text.tied_head
    assert any("lm_head" in note for note in differs.config.assumed)

    absent = load_checkpoint(synthetic.write_llava(tmp_path / "absent", tie_word_embeddings=False))
    assert absent.config.text.tied_head
    assert any("lm_head" in note for note in absent.config.assumed)


def test_a_llama_decoder_has_no_bias(tmp_path: Path) -> None:
    config = replace(
        SMALL, model_type="llava_llama", text=replace(TEXT, qkv_bias=False, rope_theta=1e4, tied_head=False)
    )
    stated = llava_config(config, model_type="llava_llama", rope_theta=None, max_position_embeddings=None)
    folder = write(tmp_path / "it", llava_names(state(config)), stated)
    model = load_checkpoint(folder, template="plain")
    same(model, state(config))
    assert model.config.text == replace(config.text, max_positions=2048)
    assert any("rope_theta" in note for note in model.config.assumed)
    assert any("max_position_embeddings" in note for note in model.config.assumed)


def test_the_llama_template_is_vicunas_and_told(tmp_path: Path) -> None:
    config = replace(SMALL, text=replace(TEXT, qkv_bias=False))
    folder = write(tmp_path / "it", llava_names(state(config)), llava_config(config, model_type="llava_llama"))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"bos_token": "<|im_start|>", "add_bos_token": True})
    )
    model = load_checkpoint(folder)
    assert model.config.prompt.template == "vicuna_v1"
    assert any("vicuna_v1 assumed for a llama decoder" in note for note in model.config.assumed)


def test_what_was_assumed_is_told_and_kept(tmp_path: Path) -> None:
    notes = Notes()
    model = load_checkpoint(synthetic.write_llava(tmp_path / "it", image_aspect_ratio=None), progress=notes)
    assert notes.told == list(model.config.assumed)
    assert any("pad assumed" in note for note in notes.told)
    assert any("qwen_2 assumed" in note for note in notes.told)


def test_what_is_stated_is_not_assumed(tmp_path: Path) -> None:
    folder = synthetic.write_llava(tmp_path / "it")
    template = "{% for m in messages %}...{% endfor %}<|im_start|>system\\nYou are terse.<|im_end|>\\n"
    stated = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 65]}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    model = load_checkpoint(folder)
    assert model.config.assumed == ()
    assert model.config.prompt.system == "You are terse."
    assert model.config.prompt.stop_ids == (65, 256, 258)
    assert model.tokenizer is not None
    assert model.tokenizer.prompt == model.config.prompt


def test_the_callers_choice_wins(tmp_path: Path) -> None:
    model = load_checkpoint(
        synthetic.write_llava(tmp_path / "it"), image_rule="crop", template="plain", system="Be kind."
    )
    assert (model.config.image_rule, model.config.prompt.template, model.config.prompt.system) == (
        "crop",
        "plain",
        "Be kind.",
    )
    (note,) = model.config.assumed
    assert note.startswith("the checkpoint states no licence")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"image_aspect_ratio": "pad"}, "pad"),
        ({"image_aspect_ratio": "square"}, "crop"),
        ({"image_aspect_ratio": None}, "pad"),
    ],
)
def test_llava_states_the_image_rule(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    assert load_checkpoint(synthetic.write_llava(tmp_path / "it", **changes)).config.image_rule == rule


def test_hugging_face_states_size_and_rule(tmp_path: Path) -> None:
    folder = write(tmp_path / "it", hf_names(state()), hf_config())
    silent = load_checkpoint(folder)
    assert (silent.config.vision.image_size, silent.config.image_rule) == (1024, "crop")
    assert silent.config.prompt.image_token_id == 259
    assert any("1024 assumed" in note for note in silent.config.assumed)

    stated = {
        "do_center_crop": True, "crop_size": {"height": 192, "width": 192}, "size": {"shortest_edge": 256},
        "image_mean": [0, 0, 0], "image_std": [1.0, 1.0, 1.0], "do_normalize": True,
        "rescale_factor": 1 / 255, "resample": 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    model = load_checkpoint(folder)
    assert (model.config.vision.image_size, model.config.image_rule) == (192, "crop")
    assert not any("image" in note for note in model.config.assumed)

    (folder / "preprocessor_config.json").write_text(json.dumps(stated | {"do_center_crop": False, "do_pad": True}))
    assert load_checkpoint(folder).config.image_rule == "pad"


def test_llava_marks_the_image_with_its_own_id(tmp_path: Path) -> None:
    assert load_checkpoint(synthetic.write_llava(tmp_path / "it")).config.prompt.image_token_id == IMAGE_TOKEN


AMLR = "APPLE MACHINE LEARNING RESEARCH MODEL LICENSE AGREEMENT: Apple Machine Learning Research Model is licensed"


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({}, "unknown"),
        ({"README.md": "---\nlicense: apache-2.0\n---\n# Model"}, "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: apple-amlr\n---\n# Model"}, "apple-amlr"),
        ({"LICENSE": AMLR, "README.md": "no front matter"}, "apple-amlr"),
        ({"LICENSE": "Apache License\nVersion 2.0, January 2004"}, "apache-2.0"),
        ({"LICENSE": "do as you like"}, "unknown"),
    ],
)
def test_licences(tmp_path: Path, files: dict[str, str], licence: str) -> None:
    folder = synthetic.write_llava(tmp_path / "it")
    for name, text in files.items():
        (folder / name).write_text(text)
    assert load_checkpoint(folder).config.licence == licence


@pytest.mark.parametrize("name", ["LICENSE", "LICENCE.md", "License-X.txt", "LICENSE_MODEL", "COPYING", "NOTICE.txt"])
def test_licence_texts_belong_to_the_checkpoint(tmp_path: Path, name: str) -> None:
    folder = synthetic.write_llava(tmp_path / "it")
    (folder / "LICENSES").mkdir()
    for file in (name, "licensed_pictures.json", "unnoticed.md"):
        (folder / file).write_text("terms")
    source = load_checkpoint(folder).source
    assert source is not None
    assert [path.name for path in licence_files(folder)] == [name]
    assert name in source.names
    assert list(weight_hashes(source.files())) == ["model.safetensors"]


def test_a_notice_of_others_is_no_licence(tmp_path: Path) -> None:
    folder = synthetic.write_llava(tmp_path / "it")
    (folder / "NOTICE").write_text("Parts are under the Apache License, Version 2.0")
    assert load_checkpoint(folder).config.licence == "unknown"


def test_a_folder_called_tiny_is_not_the_embedded_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = synthetic.write_llava(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    for path in ("./tiny", Path("tiny"), folder):
        source = load_checkpoint(path).source
        assert source is not None
        assert (source.id, source.folder.resolve()) == ("./tiny", folder)
    embedded = open_checkpoint("tiny", None, False)
    assert (embedded.source.id, embedded.source.folder) == ("tiny", TINY)
    assert embedded.notes == ("tiny is the embedded checkpoint; the folder of that name here is ./tiny",)


def test_tokens_added_by_a_fine_tune(tmp_path: Path) -> None:
    """`<image>` added makes 260 tokens of 288 rows, which is fine; the tokenizer's own tests see too many."""
    folder = synthetic.write_llava(tmp_path / "it")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 259, "content": "<image>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    model = load_checkpoint(folder)
    assert model.tokenizer is not None
    assert model.tokenizer.size == 260


def test_a_name_of_the_hub_is_read_off_its_cache(tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = synthetic.write_llava(tmp_path / "models--someone--FastVLM-tuned" / "snapshots" / revision)
    source = load_checkpoint(folder).source
    assert source is not None
    assert (source.id, source.revision) == ("someone/FastVLM-tuned", revision)
