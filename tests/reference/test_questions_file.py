"""A questions file: what is read, and every way in which a line can be wrong, all of them at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fastvlm.errors import ImageError, UsageError
from fastvlm_ref.questions import read_questions
from fastvlm_ref.samples import Sample, check_pictures


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file to write lines into, beside two pictures."""
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 4), "red").save(tmp_path / "red.png")
    Image.new("RGB", (8, 4), "blue").save(tmp_path / "more" / "blue.jpg")
    return tmp_path / "questions.jsonl"


def line(**fields: object) -> str:
    return json.dumps({"image": "red.png", "prompt": "What?", **fields})


def test_questions_are_read_in_order_blank_lines_passed_by(file: Path) -> None:
    elsewhere = str(file.parent / "more" / "blue.jpg")
    lines = [
        line(),
        "",
        line(image="more/blue.jpg", answer="blue"),
        "  \t",
        line(image=elsewhere, prompt="Wer?\u2028"),
        "",
    ]
    file.write_text("\ufeff" + "\r\n".join(lines), "utf-8")
    blue = file.parent / "more" / "blue.jpg"
    assert read_questions(file) == [
        Sample(file.parent / "red.png", "What?"),
        Sample(blue, "What?", "blue"),
        Sample(blue, "Wer?\u2028"),
    ]
    check_pictures(read_questions(file))


BAD = [
    ("{", "not JSON (Expecting property name"),
    ("[" * 100_000, "not JSON (nested too deeply)"),
    ('{"image": "red.png", "image": "a", "prompt": "b"}', "not JSON (it names 'image' twice)"),
    ("[1]", "[1], expected an object with image, prompt and perhaps answer"),
    ('"red.png"', '"red.png", expected an object'),
    ("NaN", "NaN, expected an object"),
    (line(anwser="red"), "'anwser' is unknown (known: image, prompt, answer)"),
    ('{"image": "red.png"}', "prompt is missing"),
    ("{}", "image is missing, prompt is missing"),
    (line(prompt=3), "prompt is 3, expected text"),
    (line(prompt=" "), 'prompt is " ", expected text'),
    (line(answer=None), "answer is null, expected text"),
    (line(answer=["red"]), 'answer is ["red"], expected text'),
    (line(image="gone.png"), "no picture at gone.png"),
    (line(image="more"), "no picture at more"),
    (line(image="a\0b"), "no picture at a\\x00b"),
]


@pytest.mark.parametrize(("wrong", "says"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_a_bad_line_is_named_with_its_reason(file: Path, wrong: str, says: str) -> None:
    file.write_text(f"{line()}\n\n{wrong}\n{line()}\n")
    with pytest.raises(UsageError) as error:
        read_questions(file)
    assert f"questions.jsonl: line 3: {says}" in str(error.value)
    assert str(error.value).endswith(
        'expected lines such as {"image": "photo.jpg", "prompt": "What is this?", "answer": "a cat"}'
    )


def test_all_bad_lines_are_named_at_once(file: Path) -> None:
    file.write_text("\n".join(wrong for wrong, _ in BAD))
    with pytest.raises(UsageError) as error:
        read_questions(file)
    assert all(f"line {number}: " in str(error.value) for number in range(1, len(BAD) + 1))
    file.write_text("1\n" * 1000)
    with pytest.raises(UsageError, match=r"line 20: 1.*; and 980 more lines; expected"):
        read_questions(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no question"),
        (b"\n \n", "holds no question"),
        (b'{"image": "\xff"}', "is not UTF-8 text"),
        (None, "is not a file"),
    ],
)
def test_a_file_that_holds_none(file: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"--questions {file} {says}"):
        read_questions(file)


def test_a_file_too_large_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvlm_ref.questions.LARGEST", 100)
    file.write_text("x" * 101)
    with pytest.raises(UsageError, match="has 101 bytes, at most 100 are read"):
        read_questions(file)


def test_pictures_that_are_none_are_named_all_at_once(file: Path) -> None:
    (file.parent / "text.png").write_text("no picture")
    (file.parent / "empty.png").touch()
    Image.new("1", (30_001, 1)).save(file.parent / "long.png")
    names = ("red.png", "text.png", "empty.png", "long.png", "gone.png")
    with pytest.raises(ImageError) as error:
        check_pictures([Sample(file.parent / name, "What?") for name in names])
    said = str(error.value).split("; ")
    assert "text.png is not a picture" in said[0]
    for words in ("empty.png is empty", "long.png: the picture is 30001×1", "gone.png is not there"):
        assert any(words in part for part in said)
    assert "red.png" not in str(error.value)


def test_many_pictures_that_are_none_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="; and 2 more files"):
        check_pictures([Sample(tmp_path / f"{number}.png", "What?") for number in range(12)])
