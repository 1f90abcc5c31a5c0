"""What a hostile reading found: files of millions of small things, names that a terminal obeys, whole files refused."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ordeal import Case, in_lines, try_all
from PIL import Image

from fastvlm.errors import CheckpointError, FastVLMError, ImageError, TokenizerError, UsageError
from fastvlm.json_file import parse
from fastvlm.terminal import TerminalProgress
from fastvlm_ref import samples
from fastvlm_ref.checkpoint.folder import VISIBLE_WEIGHTS
from fastvlm_ref.checkpoint.lora import is_adapter, open_adapter
from fastvlm_ref.checkpoint.opening import open_checkpoint
from fastvlm_ref.checkpoint.pickled import read_pickle
from fastvlm_ref.checkpoint.source import licence_files
from fastvlm_ref.image import open_image
from fastvlm_ref.samples import samples_in
from fastvlm_ref.tokenizer import load_tokenizer

MEMORY = 128 * 2**20  # bytes that a case may take: every one of these took more


def picture(kind: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


def with_restarts() -> bytes:
    return picture("JPEG")[:-2] + b"\xff\xd0" * 3_000_000 + b"\xff\xd9"


def with_segments() -> bytes:
    whole = picture("JPEG")
    return whole[:2] + b"\xff\xfe\x00\x02" * 3_000_000 + whole[2:]


def with_chunks() -> bytes:
    whole = picture("PNG")
    return whole[:33] + b"\0\0\0\0prVt\x9d\xc9\x9a\x1b" * 1_000_000 + whole[33:]


def with_fill() -> bytes:
    whole = picture("JPEG")
    return whole[:-2] + b"\xff" * 8_000_000 + whole[-2:]


@pytest.mark.parametrize("make", [with_restarts, with_segments, with_chunks])
def test_a_picture_of_millions_of_small_things(tmp_path: Path, make: object) -> None:
    (tmp_path / "picture").write_bytes(make())  # type: ignore[operator]
    case: Case = ("small things", lambda: open_image(tmp_path / "picture"))
    outcomes = try_all([("warm", lambda: None), case], seconds=5, memory=MEMORY)
    assert [one.kind for one in outcomes] == ["passed", "named"], in_lines(outcomes)


def test_fill_bytes_are_no_damage(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(with_fill())
    (outcome,) = try_all([("fill", lambda: open_image(tmp_path / "picture"))], seconds=5, memory=MEMORY)
    assert outcome.kind == "passed", outcome


def test_an_ordinary_number_of_headers_is_read(tmp_path: Path) -> None:
    whole = picture("JPEG")
    (tmp_path / "picture").write_bytes(whole[:2] + b"\xff\xfe\x00\x02" * 300 + whole[2:])
    assert open_image(tmp_path / "picture").size == (60, 40)


def test_lists_by_the_million_are_no_document() -> None:
    def reads() -> None:
        with pytest.raises(ValueError, match="2,000,001 lists and objects"):
            parse(b"[" + b"[]," * 2_000_000 + b"0]")

    (outcome,) = try_all([("lists", reads)], memory=MEMORY)
    assert outcome.kind == "passed", outcome


def test_numbers_by_the_million_are_no_document() -> None:
    def reads() -> None:
        with pytest.raises(ValueError, match="over 2,000,000 values"):
            parse(b"[" + b"1.5," * 15_000_000 + b"0]")

    (outcome,) = try_all([("numbers", reads)], seconds=5, memory=MEMORY)
    assert outcome.kind == "passed", outcome


@pytest.mark.parametrize("name", ["vocab.json", "added_tokens.json", "tokenizer_config.json"])
@pytest.mark.parametrize(("text", "said"), [("[]," * 1_000_001, "lists"), ("1," * 3_000_000, "values")])
def test_every_file_of_a_tokenizer_is_counted(tmp_path: Path, name: str, text: str, said: str) -> None:
    files = {"vocab.json": '{"a": 0}', "merges.txt": "", name: f'{{"x": [{text}0]}}'}
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(TokenizerError, match=rf"{name} cannot be read as JSON \(it has .* {said}"):
        load_tokenizer(tmp_path, 4096)


@pytest.mark.parametrize(
    "text", ['{"bos_token": "a", "bos_token": "b"}', '{"x": NaN}', '{"x": [' + "[]," * 1_000_001 + "0]}"]
)
def test_a_tokenizer_s_config_is_held_to_json_s_rules(tiny: Path, tmp_path: Path, text: str) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        if (tiny / name).is_file():
            (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(TokenizerError, match="cannot be read as JSON"):
        load_tokenizer(tmp_path, 4096)


def test_a_note_holds_nothing_that_a_terminal_obeys() -> None:
    shown = io.StringIO()
    TerminalProgress(shown).note("\x1b[2Jx.webp: it has several frames")
    assert shown.getvalue() == "note: \\x1b[2Jx.webp: it has several frames\n"


def test_what_macos_leaves_beside_files_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "._adapter_model.safetensors").write_bytes(b"\0\x05\x16\x07")
    assert is_adapter(tmp_path)
    assert list(tmp_path.glob(VISIBLE_WEIGHTS)) == []
    (tmp_path / "._a.png").write_bytes(b"\0\x05\x16\x07")
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    assert [sample.picture.name for sample in samples_in(tmp_path)] == ["a.png"]


def test_more_pictures_than_a_day_takes_are_refused_by_their_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MOST_PICTURES", 3)
    for name in ("a.png", "b.jpg", "c.gif", *(f"{number}.txt" for number in range(9))):
        (tmp_path / name).touch()
    assert len(samples_in(tmp_path)) == 3
    (tmp_path / "d.webp").touch()
    with pytest.raises(UsageError, match=r"^--calibration .* holds over 3 pictures; .* choose fewer"):
        samples_in(tmp_path, "--calibration")


def test_what_a_batch_norm_counts_is_no_stranger_in_a_pickle(tmp_path: Path) -> None:
    torch.save(torch.nn.BatchNorm2d(3).state_dict(), tmp_path / "other.bin")
    assert "num_batches_tracked" in read_pickle(tmp_path / "other.bin")
    torch.save({"table": torch.zeros(3, dtype=torch.int64)}, tmp_path / "other.bin")
    with pytest.raises(FastVLMError, match="float tensors"):
        read_pickle(tmp_path / "other.bin")


def test_a_header_without_end_is_named_as_damage(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(with_segments())
    with pytest.raises(ImageError, match="over 10,000 headers"):
        open_image(tmp_path / "picture")


SIDE = ("prompts.json", "README.md", "LICENSE", "NOTICE", "chat_template.jinja", "generation_config.json")


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a link to nothing"])
@pytest.mark.parametrize("name", SIDE)
def test_no_side_file_is_lost_without_a_word(tiny: Path, tmp_path: Path, name: str, kind: str) -> None:
    for file in tiny.iterdir():
        if file.is_file() and file.name != name:
            shutil.copy(file, tmp_path)
    if kind == "a pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero" if kind == "a device" else "nothing")
    with pytest.raises(CheckpointError, match=f"{name} is a link or no plain file, and is not read; put a copy"):
        open_checkpoint(tmp_path, None, False)


def test_a_folder_of_licences_is_no_licence(tmp_path: Path) -> None:
    (tmp_path / "licence").mkdir()
    assert licence_files(tmp_path) == []


def test_a_pipe_is_no_adapter_that_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is a link or no plain file"):
        open_adapter(tmp_path, allow_pickle=True)
