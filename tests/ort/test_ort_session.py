"""Questions to a build of ONNX files: answered as PyTorch does from the same image tokens, the next one with less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastvlm.errors import BuildError, PackageError, UsageError
from fastvlm_ref.conversation import Conversation
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.image import open_image
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import shipped_samples
from validation import open_session
from validation.ort.engine import OrtEngine
from validation.ort.settings import Settings
from validation.session import Session

SETTINGS = Settings(threads=1, spin=False)
QUESTIONS = ("What is in the picture?", "How many of them?", "Which colour?")
pytestmark = pytest.mark.usefixtures("one_thread")


class Borrowed(TorchEngine):
    """PyTorch that sees with another engine's eyes."""

    def __init__(self, model: FastVLM, eyes: OrtEngine) -> None:
        super().__init__(model, eyes.context)
        self._eyes = eyes

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        return self._eyes.encode_image(pixels)


@pytest.fixture
def session(written_onnx: Path) -> Session[Any]:
    return open_session(written_onnx, settings=SETTINGS)


@pytest.fixture
def picture() -> Image.Image:
    return open_image(shipped_samples()[0].picture)


def test_answers_are_pytorchs(session: Session[Any], tiny_model: FastVLM, picture: Image.Image) -> None:
    """Three turns, token by token: what is not computed again makes no difference."""
    inner: OrtEngine = session.engine.engine
    reference = Conversation(Borrowed(tiny_model, inner), tiny_model.tokenizer, picture, session.prompt)
    found = session.converse(picture)
    for text in QUESTIONS:
        assert "".join(found.ask(text, 16)) == "".join(reference.ask(text, 16))
    assert session.engine.reused > 50


def test_the_second_question_is_about_the_same_picture(
    session: Session[Any], picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    rows: list[int] = []
    encode, advance = OrtEngine.encode_image, OrtEngine._advance
    monkeypatch.setattr(OrtEngine, "encode_image", lambda e, p: encoded.append(len(p)) or encode(e, p))
    monkeypatch.setattr(OrtEngine, "_advance", lambda e, r: rows.append(len(r)) or advance(e, r))
    first = session.answer(picture, QUESTIONS[0], 1)
    assert (encoded, sum(rows)) == ([256], first.timings.prompt_positions)
    rows.clear()
    second = session.answer(picture, QUESTIONS[1], 1)
    assert encoded == [256]
    assert 0 < sum(rows) < second.timings.prompt_positions - 16
    again = session.answer(picture, QUESTIONS[0], 1)
    assert again.text == first.text


def test_all_files_are_open_before_the_first_stage(
    session: Session[Any], picture: Image.Image, onnx_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stage's seconds hold the opening of a file, and a damaged one is found before the picture is looked at."""
    encode, ready = OrtEngine.encode_image, []
    monkeypatch.setattr(
        OrtEngine, "encode_image", lambda e, p: ready.append((bool(e._encoders), e._language)) or encode(e, p)
    )
    session.answer(picture, "What?", 1)
    ((encoder, language),) = ready
    assert encoder
    assert language is not None
    ready.clear()
    (onnx_build / "LanguageModel.onnx").write_bytes(b"cut")
    with pytest.raises(PackageError, match=r"LanguageModel\.onnx is no ONNX model"):
        open_session(onnx_build, settings=SETTINGS).answer(picture, "What?", 1)
    assert not ready


def test_what_ran_where(session: Session[Any], picture: Image.Image, tiny: Path) -> None:
    assert session.answer(picture, "What?", 1).backend == "onnx"
    assert {name: list(where) for name, where in session.placement().items()} == {
        "VisionEncoder.onnx": ["cpu"],
        "LanguageModel.onnx": ["cpu"],
    }
    assert open_session(tiny).placement() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "mil"}, "--backend mil does not run the ONNX files"),
        ({"backend": "torch"}, "--backend torch does not run the ONNX files"),
        ({"compute_units": "all"}, "the backend is onnx"),
        ({"image_size": 512}, "--image-size 512"),
        ({"context": 64}, "--context: fixed when"),
        ({"providers": ["gpu"]}, "'gpu' is unknown"),
        ({"providers": []}, "providers are none"),
    ],
)
def test_options_that_do_not_fit(written_onnx: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_session(written_onnx, **options)


def test_options_of_another_backend(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"--provider is onnxruntime's, and .* is a checkpoint"):
        open_session(tiny, providers=["cpu"])
    with pytest.raises(UsageError, match=r"runs a build folder, and .* is a checkpoint"):
        open_session(tiny, "onnx")


def test_half_a_build(onnx_build: Path, picture: Image.Image) -> None:
    from onnx_builds import edit_manifest

    session = open_session(edit_manifest(onnx_build, packages={"language": ["LanguageModel.onnx"]}))
    with pytest.raises(BuildError, match="no vision encoder"):
        session.answer(picture, "What?")
    with pytest.raises(BuildError, match="no vision encoder"):
        session.converse(picture)
