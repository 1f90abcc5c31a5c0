"""Any checkpoint that can be read can be fine-tuned and measured: a LoRA with its base, Hugging Face's, Llama's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
import torch
from safetensors.torch import save_file
from synthetic import SMALL, TEXT, state, write
from tokenizers import AddedToken, Tokenizer
from training_rows import train, write_rows

from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.training import batches, loop

pytestmark = pytest.mark.usefixtures("one_thread")
QUERY = "layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    """No background process, which takes seconds to start."""
    made = batches.batches
    monkeypatch.setattr(loop, "batches", lambda *given, background: made(*given, background=False))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


def lora(folder: Path) -> list[str | Path]:
    """Writes a base and an adapter with a pickle beside it; returns what the command needs to read them."""
    base = synthetic.write_llava(folder / "base")
    it = folder / "adapter"
    it.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "some/base"}
    (it / "adapter_config.json").write_text(json.dumps(config))
    name = f"base_model.model.model.{QUERY}.lora_"
    save_file(
        {name + "A.weight": torch.ones(4, 64), name + "B.weight": torch.ones(64, 4)}, it / "adapter_model.safetensors"
    )
    torch.save({"model.mm_projector.2.bias": torch.full((64,), 0.25)}, it / "non_lora_trainables.bin")
    return [it, "--base", base, "--allow-pickle"]


def hugging_face(folder: Path) -> list[str | Path]:
    """Writes a folder in the layout of transformers' fast_vlm."""
    it = write(folder / "hf", synthetic.hf_names(state()), synthetic.hf_config())
    (it / "preprocessor_config.json").write_text('{"crop_size": {"height": 128, "width": 128}}')
    return [it]


def llama(folder: Path) -> list[str | Path]:
    """Writes a LLaVA folder with a Llama decoder, whose tokenizer begins texts with <s> and ends answers with </s>."""
    config = replace(SMALL, model_type="llava_llama", text=replace(TEXT, qkv_bias=False, tied_head=False))
    stated = synthetic.llava_config(config, eos_token_id=None)
    it = write(folder / "llama", synthetic.llava_names(state(config)), stated)
    inner = Tokenizer.from_file(str(it / "tokenizer.json"))
    added = inner.add_special_tokens([AddedToken("</s>", special=True), AddedToken("<s>", special=True)])
    assert added == 2
    inner.save(str(it / "tokenizer.json"))
    (it / "tokenizer_config.json").write_text('{"bos_token": "<s>", "add_bos_token": true, "eos_token": "</s>"}')
    return [it]


@pytest.mark.parametrize("layout", [lora, hugging_face, llama], ids=lambda layout: str(layout.__name__))
def test_it_is_trained_and_read_back(layout: Callable[[Path], list[str | Path]], rows: Path, tmp_path: Path) -> None:
    """At a rate too small to be seen in BF16 the folder holds the base's own weights; at a real one it learned."""
    source, *reading = layout(tmp_path)
    given = {"base": reading[1], "allow_pickle": True} if reading else {}
    base = load_checkpoint(source, **given)
    command = ("--checkpoint", source, *reading, "--data", rows, "--batch", 2, "--stage", "stage1")
    for rate, learned in (("1e-12", False), ("1e-2", True)):
        out = tmp_path / rate
        done = train(*command, "-o", out, "--steps", 2, "--rate", rate)
        assert done.exit_code == 0, done.output
        tuned = load_checkpoint(out)
        assert tuned.config.text == base.config.text
        assert tuned.config.vision == base.config.vision
        assert tuned.config.image_rule == base.config.image_rule
        assert tuned.config.prompt.template == base.config.prompt.template
        expected = {name: value.to(torch.bfloat16).float() for name, value in base.state_dict().items()}
        found = tuned.state_dict()
        moved = {name.split(".")[0] for name, value in found.items() if not torch.equal(value, expected[name])}
        assert moved == ({"projector"} if learned else set())


def test_the_config_names_the_tokenizers_own_first_token(rows: Path, tmp_path: Path) -> None:
    (source,) = llama(tmp_path)
    out = tmp_path / "out"
    assert train("--checkpoint", source, "--data", rows, "-o", out, "--steps", 1, "--batch", 1).exit_code == 0
    inner = Tokenizer.from_file(str(out / "tokenizer.json"))
    config = json.loads((out / "config.json").read_text())
    assert config["bos_token_id"] == inner.token_to_id("<s>")
    assert config["eos_token_id"] == inner.token_to_id("</s>")


def test_without_its_base_the_same_command_is_named(rows: Path, tmp_path: Path) -> None:
    adapter, *_ = lora(tmp_path)
    for command in (("--checkpoint", adapter, "--data", rows, "-o", tmp_path / "out"), ("--evaluate", adapter)):
        result = train(*command)
        typed = " ".join(map(str, command))
        assert result.exit_code == 2
        assert f"type: fastvlm train {typed} --base some/base --allow-pickle\n" in result.output


def test_a_lora_is_measured_with_its_base(tmp_path: Path) -> None:
    result = train("--evaluate", *lora(tmp_path), "--questions", 1, "--json")
    assert result.exit_code == 1, result.output
    assert json.loads(result.stdout)["rows"]["overall"]["asked"] == 1


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("--template", "plain"), "give --template plain wherever"),
        (("--system", "End with <|im_end|>."), "--system"),
        (("--system", "Say 'it'.", "--image-rule", "crop"), None),
    ],
)
def test_a_conversation_that_the_folder_cannot_state_is_told(
    asked: tuple[str, ...], told: str | None, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = train("--checkpoint", "tiny", "--data", rows, "-o", out, "--steps", 1, "--batch", 1, *asked)
    assert done.exit_code == 0, done.output
    assert ("cannot state its conversation" in done.output) == (told is not None)
    if told is not None:
        assert told in done.output
    else:
        read = load_checkpoint(out).config
        assert (read.prompt.system, read.image_rule) == ("Say 'it'.", "crop")
