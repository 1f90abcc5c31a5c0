"""One test per way in which a checkpoint can be absent, damaged, incomplete or not supported.

Each must end in its own named error that states what was found; nothing may be written to the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from safetensors.torch import save_file
from safetensors_bytes import entry
from safetensors_bytes import with_header as raw
from synthetic import llava_config, llava_names, mlx_names, state, write

from fastvlm.errors import CheckpointError, ConfigError, TensorError, TokenizerError, UsageError
from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint.folder import TEXT_LIMIT
from fastvlm_ref.checkpoint.header import HEADER_LIMIT, read_header
from fastvlm_ref.checkpoint.source import differing
from fastvlm_ref.checkpoint.tensors import TensorFile
from fastvlm_ref.tokenizer import MAX_FILE_BYTES

ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds 0 bytes"),
    "shorter than a length": (b"\x01\x00", "holds 2 bytes"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "huge header": (raw(b"{}", length=HEADER_LIMIT + 1), "at most"),
    "all ones": (b"\xff" * 64, "at most"),
    "header past the end": (raw(b"{}", length=1000), "truncated: its header needs 1008"),
    "not JSON": (raw(b"{]"), "not JSON"),
    "not UTF-8": (raw(b'{"\xff":1}'), "not JSON"),
    "a list": (raw([]), "does not begin with {"),
    "deep nesting": (raw(b'{"a":' * 100_000), "not JSON"),
    "huge integer": (raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'), "not JSON"),
    "named twice": (
        raw(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", b"\0" * 8),
        "twice",
    ),
    "no dtype": (raw({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), "lacks dtype"),
    "not an object": (raw({"a": 3}), "lacks dtype"),
    "unknown dtype": (raw({"a": entry("F12")}, b"\0" * 8), "dtype 'F12'"),
    "negative shape": (raw({"a": entry(shape=(-2,))}, b"\0" * 8), "shape [-2]"),
    "fractional shape": (raw({"a": entry(shape=(2.0,))}, b"\0" * 8), "shape [2.0]"),
    "boolean shape": (raw({"a": entry(shape=(True, 2))}, b"\0" * 8), "shape [True, 2]"),
    "rank 9": (raw({"a": entry(shape=(1,) * 8 + (2,))}, b"\0" * 8), "at most 8"),
    "shape that overflows": (raw({"a": entry(shape=(2**40, 2**40))}, b"\0" * 8), "needs"),
    "offsets backwards": (raw({"a": entry(offsets=(8, 0))}, b"\0" * 8), "begin <= end"),
    "negative offset": (raw({"a": entry(offsets=(-8, 0))}, b"\0" * 8), "begin <= end"),
    "offsets too few": (raw({"a": entry(offsets=(8,))}, b"\0" * 8), "data_offsets [8]"),
    "size against shape": (raw({"a": entry(offsets=(0, 4))}, b"\0" * 8), "needs 8 bytes"),
    "out of range": (raw({"a": entry()}, b"\0" * 4), "truncated"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "overlaps"),
    "same bytes twice": (raw({"a": entry(), "b": entry()}, b"\0" * 8), "overlaps"),
    "hole": (raw({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "leaves 4 bytes"),
    "hole before the first": (raw({"a": entry(offsets=(4, 12))}, b"\0" * 12), "leaves 4 bytes"),
    "trailing bytes": (raw({"a": entry()}, b"\0" * 9), "1 bytes after"),
    "hidden payload, no tensors": (raw({}, b"MZ"), "2 bytes after"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_lie_of_a_header_has_its_sentence(tmp_path: Path, attack: str) -> None:
    content, sentence = ATTACKS[attack]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)


def test_headers_that_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw(b'{"__metadata__":{"format":"pt"}}   '))
    assert read_header(file) == []
    whole = {"b": entry("BF16", (0, 4), (8, 8)), "a": entry(), "c": entry("I64", (), (8, 16))}
    file.write_bytes(raw(whole, b"\0" * 16))
    assert [found.name for found in read_header(file)] == ["a", "b", "c"]


def test_any_cut_of_a_real_file_is_named(tmp_path: Path) -> None:
    folder = synthetic.write_llava(tmp_path / "it")
    content = (folder / "model.safetensors").read_bytes()
    for size in (0, 7, 100, 5000, len(content) // 2, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"truncated|holds \d bytes"):
            load_checkpoint(folder)


@pytest.mark.parametrize("lost", [None, 1, 1000, 10_000])
def test_a_shard_that_is_missing_or_short_is_told_at_opening(
    tmp_path: Path, lost: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any weight is read, so in no time whatever the size; `lost` are the bytes that are not there, or all."""
    monkeypatch.setattr(TensorFile, "_span", lambda *_: pytest.fail("a weight was read"))
    folder = synthetic.write_llava(tmp_path / "it", shards=3)
    shard = folder / "model-00002-of-00003.safetensors"
    if lost is None:
        shard.unlink()
        said = r"lacks 1 of 3 shards: model-00002-of-00003\.safetensors; fetch them"
    else:
        size = shard.stat().st_size
        os.truncate(shard, size - lost)
        said = rf"{shard} is truncated: its tensors need {size} bytes and the file has {size - lost}; fetch it again"
    for stream in (True, False):
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(folder, stream=stream)


def damaged(change: Callable[[Path], None]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        folder = synthetic.write_llava(path / "it")
        change(folder)
        return folder

    return make


def _config(**changes: Any) -> Callable[[Path], Path]:
    return lambda path: synthetic.write_llava(path / "it", **changes)


def _to_checkpoint_500(folder: Path) -> None:
    for step in ("checkpoint-50", "checkpoint-500"):
        (folder / step).mkdir()
    for file in folder.glob("*.*"):
        file.rename(folder / "checkpoint-500" / file.name)


def _keep_only_inside(folder: Path) -> None:
    (folder / "checkpoint-7").mkdir()
    (folder / "model.safetensors").rename(folder / "checkpoint-7" / "model.safetensors")
    (folder / "training_args.bin").write_bytes(b"")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def _index(weight_map: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def _shard_lost(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    synthetic.write_llava(folder, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()


def _shard_twice(folder: Path) -> None:
    tensors = llava_names(state())
    name = "model.norm.weight"
    (folder / "model.safetensors").unlink()
    write(folder, tensors, llava_config(), shards=2)
    save_file({name: tensors[name]} | {"other": tensors[name] + 1}, folder / "extra.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["other"] = "extra.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _without(*prefixes: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        left = {name: value for name, value in llava_names(state()).items() if not name.startswith(prefixes)}
        write(folder, left, llava_config())

    return change


def _quantised(folder: Path) -> None:
    tensors = mlx_names(state())
    name = "language_model.model.layers.0.mlp.up_proj"
    tensors |= {f"{name}.scales": torch.ones(96, 1), f"{name}.biases": torch.ones(96, 1)}
    tensors[f"{name}.weight"] = torch.zeros(96, 8, dtype=torch.uint32)
    write(folder, tensors, llava_config(quantization={"group_size": 64, "bits": 4}))


def _integers(folder: Path) -> None:
    tensors = llava_names(state())
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    write(folder, tensors, llava_config())


def _mixed_order(folder: Path) -> None:
    tensors = llava_names(state())
    name = "model.vision_tower.vision_tower.model.patch_embed.1.reparam_conv.weight"
    tensors[name] = tensors[name].permute(0, 2, 3, 1).contiguous()
    write(folder, tensors, llava_config())


def _twice_by_meaning(folder: Path) -> None:
    tensors = llava_names(state())
    tensors["language_model.model.norm.weight"] = tensors["model.norm.weight"].clone()
    write(folder, tensors, llava_config())


def _few_rows(path: Path) -> Path:
    return synthetic.write_llava(path / "it", replace(synthetic.SMALL, text=replace(synthetic.TEXT, vocab_size=256)))


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _grown(name: str, size: int) -> Callable[[Path], Path]:
    """The file has `size` bytes, none of which takes room on the disk."""

    def grow(folder: Path) -> None:
        with (folder / name).open("ab") as handle:
            handle.truncate(size)

    return damaged(grow)


BAD: dict[str, tuple[Callable[[Path], Path], type[CheckpointError], str]] = {
    "no such folder": (lambda path: path / "nowhere", CheckpointError, "no such folder"),
    "a file": (damaged(lambda folder: None), CheckpointError, "is a file"),
    "an empty folder": (lambda path: path, CheckpointError, "is not a checkpoint: found no config.json"),
    "checkpoint-N inside": (damaged(_to_checkpoint_500), CheckpointError, "found checkpoint-500/"),
    "checkpoint-N beside config.json": (damaged(_keep_only_inside), CheckpointError, "found checkpoint-7/"),
    "weights in a pickle": (damaged(_pickled), CheckpointError, "pytorch_model.bin, a pickle"),
    "config is not JSON": (damaged(_text("config.json", "{")), CheckpointError, "not JSON"),
    "config is a list": (damaged(_text("config.json", "[]")), CheckpointError, "JSON list"),
    "config too deep": (damaged(_text("config.json", "[" * 200_000)), CheckpointError, "not JSON"),
    "index without map": (damaged(_index(None)), CheckpointError, "no weight_map"),
    "index out of the folder": (damaged(_index({"a": "../a.safetensors"})), CheckpointError, "outside its folder"),
    "index by absolute path": (damaged(_index({"a": "/etc/passwd"})), CheckpointError, "outside its folder"),
    "index that lists more": (damaged(_index({"a": "a.safetensors"})), CheckpointError, "places in no file"),
    "a shard lost": (damaged(_shard_lost), CheckpointError, "lacks 1 of 3 shards: model-00002-of-00003.safetensors"),
    "a tensor in two shards": (damaged(_shard_twice), CheckpointError, "places in"),
    "a tensor under two names": (damaged(_twice_by_meaning), CheckpointError, "holds decoder.norm.weight twice"),
    "no vision tower": (damaged(_without("model.vision_tower")), CheckpointError, "no vision tower"),
    "no projector": (damaged(_without("model.mm_projector")), CheckpointError, "no projector"),
    "quantised by MLX": (damaged(_quantised), CheckpointError, "quantised by MLX"),
    "integers": (damaged(_integers), CheckpointError, "is I8"),
    "both convolution orders": (damaged(_mixed_order), TensorError, "expected one order"),
    "unknown model_type": (_config(model_type="llava_mpt"), ConfigError, "known are fast_vlm, fastvlm, llama, llava"),
    "model_type that is a list": (_config(model_type=["a"]), ConfigError, "known are"),
    "unknown decoder": (_config(model_type="fast_vlm", text_config={"model_type": "gemma"}), ConfigError, "'gemma'"),
    "fields missing": (
        _config(hidden_size=None, num_hidden_layers=None), ConfigError, "num_hidden_layers is missing",
    ),
    "fields impossible": (_config(num_key_value_heads=3, rms_norm_eps="small"), ConfigError, "num_key_value_heads 3"),
    "layers by the million": (_config(num_hidden_layers=10**7), ConfigError, "num_hidden_layers 10000000"),
    "activation": (_config(hidden_act="relu"), ConfigError, "hidden_act is 'relu'"),
    "rope scaling": (_config(rope_scaling={"type": "yarn", "factor": 4}), ConfigError, "'yarn'"),
    "rope parameters": (_config(rope_parameters={"rope_type": "llama3"}), ConfigError, "'llama3'"),
    "sliding window": (_config(use_sliding_window=True, max_window_layers=1), ConfigError, "sliding_window"),
    "layer types": (_config(layer_types=["full_attention", "sliding_attention"]), ConfigError, "sliding_attention"),
    "projector type": (_config(mm_projector_type="linear"), ConfigError, "mm_projector_type"),
    "image side": (_config(mm_vision_tower="mobileclip_l_1000"), ConfigError, "multiple of 64"),
    "image side too large": (_config(mm_vision_tower="mobileclip_l_6400000"), ConfigError, "multiple of 64"),
    "image side of 5000 digits": (_config(mm_vision_tower=f"_{'1' * 5000}"), ConfigError, "multiple of 64"),
    "endless README": (_grown("README.md", TEXT_LIMIT + 1), CheckpointError, "README.md has 4,194,305 bytes"),
    "endless licence": (_grown("LICENSE", TEXT_LIMIT + 1), CheckpointError, "LICENSE has 4,194,305 bytes"),
    "endless template": (_grown("chat_template.jinja", TEXT_LIMIT + 1), CheckpointError, "at most 4,194,304"),
    "endless tokenizer": (_grown("tokenizer.json", MAX_FILE_BYTES + 1), TokenizerError, "at most 67,108,864"),
    "endless vocabulary": (_grown("vocab.json", MAX_FILE_BYTES + 1), TokenizerError, "vocab.json has 67,108,865"),
    "image rule": (_config(image_aspect_ratio="anyres"), ConfigError, "image_aspect_ratio 'anyres'"),
    "other mean": (
        damaged(_text("preprocessor_config.json", '{"image_mean": [0.5, 0.5]}')), ConfigError, "image_mean is [0.5",
    ),
    "image not square": (
        lambda path: write(
            path / "it", synthetic.hf_names(state()), synthetic.hf_config()
            | {"vision_config": {"image_size": {"height": 64, "width": 128}}},
        ), ConfigError, "expected a square",
    ),
    "another tokenizer": (_few_rows, TokenizerError, "has 259 tokens, config.json states a table of 256 rows"),
    "no tokenizer": (damaged(lambda folder: (folder / "tokenizer.json").unlink()), TokenizerError, "tokenizer"),
}  # fmt: skip


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    if not folder.is_dir():
        return {}
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("case", BAD)
def test_every_bad_folder_has_its_error(tmp_path: Path, case: str) -> None:
    make, kind, sentence = BAD[case]
    folder = make(tmp_path)
    if case == "a file":
        folder = folder / "config.json"
    before = _listing(folder)
    with pytest.raises(kind) as caught:
        load_checkpoint(folder)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert _listing(folder) == before


def test_missing_extra_and_misshapen_are_one_error(tmp_path: Path) -> None:
    tensors = llava_names(state())
    del tensors["model.layers.1.self_attn.k_proj.bias"]
    del tensors["model.vision_tower.vision_tower.model.network.2.1.convffn.fc1.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(97, 64, dtype=torch.bfloat16)
    tensors["model.layers.3.input_layernorm.weight"] = torch.zeros(64, dtype=torch.bfloat16)
    tensors["model.image_newline"] = torch.zeros(64, dtype=torch.bfloat16)
    with pytest.raises(TensorError) as caught:
        load_checkpoint(write(tmp_path / "it", tensors, llava_config()))
    assert str(caught.value) == (
        f"{tmp_path / 'it'}: 5 tensors do not fit the model that config.json describes; "
        "fetch both again, or take the config.json that belongs to these weights: "
        "missing vision_encoder.network.2.1.convffn.fc1.weight [48, 16, 1, 1]; "
        "missing decoder.layers.1.self_attn.k_proj.bias [32]; "
        "misshapen decoder.layers.0.mlp.up_proj.weight: expected [96, 64], found [97, 64]; "
        "extra model.image_newline [64]; extra decoder.layers.3.input_layernorm.weight [64]"
    )


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"model_type": "gpt_5"}, "name a FastVLM checkpoint"),
        ({"hidden_act": "relu"}, "take the config.json that belongs to these weights"),
        ({"mm_projector_type": "linear"}, "take the config.json that belongs to these weights"),
    ],
)
def test_errors_of_a_config_name_the_folder_and_what_to_do(
    tmp_path: Path, change: dict[str, object], advice: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(synthetic.write_llava(tmp_path / "it", **change))
    assert str(caught.value).startswith(f"{tmp_path / 'it'}: config.json ")
    assert advice in str(caught.value)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = synthetic.write_llava(tmp_path / "it")
    monkeypatch.setattr("os.access", lambda *_: False)  # permissions do not bind whom tests may run as
    with pytest.raises(CheckpointError, match="it may not be read by this user; check the permissions"):
        load_checkpoint(folder)


def test_texts_that_change_no_number_do_not_tell_checkpoints_apart() -> None:
    mine = {"config.json": 1, "model.safetensors": 2, "README.md": 3, "base/LICENSE": 4, "NOTICE.txt": 5}
    assert differing(mine, {"config.json": 1, "model.safetensors": 2}) == []
    assert differing(mine, {"config.json": 9, "tokenizer.json": 1}) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_the_vocabulary_is_checked_against_the_table(tmp_path: Path) -> None:
    with pytest.raises(TensorError, match=r"embed_tokens.weight: expected \[290, 64\], found \[288, 64\]"):
        load_checkpoint(synthetic.write_llava(tmp_path / "it", vocab_size=290))


def test_a_sliding_window_that_is_off_is_fine(tmp_path: Path) -> None:
    """Every official config states a window and turns it off, by the flag or by the number of layers before it."""
    load_checkpoint(synthetic.write_llava(tmp_path / "a", use_sliding_window=False, sliding_window=64))
    load_checkpoint(synthetic.write_llava(tmp_path / "b", use_sliding_window=True, max_window_layers=3))


def test_two_sets_of_weights_are_told(tmp_path: Path) -> None:
    from fastvlm.progress import Progress

    told: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            told.append(text)

    folder = synthetic.write_llava(tmp_path / "it")
    (folder / "model.safetensors.index.json").write_text("{}")
    load_checkpoint(folder, progress=Notes())
    assert any("the single file is read" in note for note in told)


def test_a_folder_that_cannot_be_written_is_enough(tmp_path: Path) -> None:
    folder = synthetic.write_llava(tmp_path / "it")
    os.chmod(folder, 0o555)
    try:
        load_checkpoint(folder)
    finally:
        os.chmod(folder, 0o755)


def test_a_base_without_an_adapter_is_a_mistake(tmp_path: Path) -> None:
    folder = synthetic.write_llava(tmp_path / "it")
    with pytest.raises(UsageError, match="LoRA"):
        load_checkpoint(folder, base=folder)


def test_an_unknown_image_rule_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pad, crop"):
        load_checkpoint(synthetic.write_llava(tmp_path / "it"), image_rule="stretch")
