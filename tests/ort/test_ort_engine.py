"""The engine over ONNX files: beside PyTorch, in pieces, back and forth in its cache, and where it must refuse."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_builds import CONTEXT, DATA, LANGUAGE, edit_manifest, write_build, write_encoder
from ort_limits import check

from fastvlm.build import ONNX, read_build
from fastvlm.errors import BuildError, ExecutionError, MissingDependency, PackageError, PromptError, UsageError
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.model.fastvlm import FastVLM
from validation.ort import engine as engine_file
from validation.ort.engine import OrtEngine
from validation.ort.loading import load
from validation.ort.opening import open_file
from validation.ort.settings import Settings

SETTINGS = Settings(threads=1, spin=False)
PIXELS = np.random.default_rng(3).integers(0, 256, (256, 256, 3), np.uint8)


def opened(build: Path, **options: Any) -> OrtEngine:
    return OrtEngine(read_build(build, (ONNX,)), settings=SETTINGS, **options)


@pytest.fixture
def rows(tiny_model: FastVLM) -> np.ndarray:
    """Embeddings (64, H) of drawn ids."""
    return TorchEngine(tiny_model).embed(np.random.default_rng(0).integers(0, 500, 64).tolist())


def steps(engine: Any, rows: np.ndarray, prefilled: int) -> np.ndarray:
    """Logits behind each row from `prefilled` on."""
    engine.reset()
    engine.prefill(rows[:prefilled])
    return np.stack([engine.decode(rows[at : at + 1]) for at in range(prefilled, len(rows))])


# Numbers


def test_beside_pytorch(engine: OrtEngine, tiny_model: FastVLM, rows: np.ndarray, one_thread: None) -> None:
    assert np.array_equal(engine.embed([0, 5, 575]), TorchEngine(tiny_model).embed([0, 5, 575]))
    for prefilled in (0, 1, 40):
        check("step", steps(TorchEngine(tiny_model), rows[:48], prefilled), steps(engine, rows[:48], prefilled))


def test_fp16(tiny_model: FastVLM, tmp_path: Path, rows: np.ndarray, one_thread: None) -> None:
    half = opened(write_build(tiny_model, tmp_path / "half", dtype=TensorProto.FLOAT16))
    check("step_fp16", steps(TorchEngine(tiny_model), rows[:48], 40), steps(half, rows[:48], 40))


def test_a_prompt_longer_than_a_call(engine: OrtEngine, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = steps(engine, rows, 60)
    monkeypatch.setattr(engine_file, "MOST_ROWS", 7)
    check("reused", whole, steps(engine, rows, 60))


def test_going_back(engine: OrtEngine, rows: np.ndarray) -> None:
    """What was behind the position is as if it had never been; a cache with one row of another is not."""
    fresh = steps(engine, rows[:40], 20)
    engine.prefill(rows[40:60])
    engine.rewind(20)
    again = np.stack([engine.decode(rows[at : at + 1]) for at in range(20, 40)])
    check("reused", fresh, again)
    engine.rewind(19)
    engine.prefill(rows[60:61])
    stale = np.stack([engine.decode(rows[at : at + 1]) for at in range(20, 40)])
    with pytest.raises(AssertionError):
        check("reused", fresh, stale)
    for position in (-1, engine.position + 1):
        with pytest.raises(ValueError, match=f"cannot go back to position {position}: 40 are filled"):
            engine.rewind(position)


def test_the_cache_is_bound_in_place(engine: OrtEngine, rows: np.ndarray) -> None:
    """A call writes its own rows into the buffers, and nothing else; they are made once."""
    engine.prefill(rows[:8])
    caches = [array for array, _ in engine.language._bound if array.ndim == 4 and array.shape[2] == CONTEXT]
    before = [array.copy() for array in caches]
    engine.decode(rows[8:9])
    assert len(caches) == 8
    for array, old in zip(caches, before, strict=True):
        changed = (array != old).any(axis=(0, 1, 3))
        assert np.flatnonzero(changed).tolist() == [8]
    assert not any(array[:, :, 9:].any() for array in caches)
    assert all(ours is array for ours, (array, _) in zip(caches, engine.language._bound[3:], strict=True))


def test_logits_are_the_callers_own(engine: OrtEngine, rows: np.ndarray) -> None:
    first = engine.decode(rows[:1])
    kept = first.copy()
    engine.decode(rows[1:2])
    assert np.array_equal(first, kept)


def test_pictures(engine: OrtEngine, tiny_model: FastVLM) -> None:
    tokens = engine.encode_image(PIXELS)
    assert tokens.shape == (engine.tokens_at(256), tiny_model.config.text.hidden_size) == (16, 192)
    assert tokens.dtype == np.float32
    assert not np.array_equal(tokens, engine.encode_image(255 - PIXELS))
    assert np.array_equal(tokens, engine.encode_image(PIXELS))


def test_loading_and_placement(engine: OrtEngine) -> None:
    assert engine.placement() == {}
    engine.load()
    placement = engine.placement()
    assert list(placement) == ["VisionEncoder.onnx", LANGUAGE]
    assert all(list(where) == ["cpu"] and where["cpu"] > 4 for where in placement.values())
    language, encoder = engine.language, engine.encoder(256)
    assert engine.language is language
    assert engine.encoder(256) is encoder


# What it refuses


def test_a_full_context(engine: OrtEngine, rows: np.ndarray) -> None:
    """Refused before anything is computed: behind the buffers' end lies other memory."""
    many = np.resize(rows, (CONTEXT, rows.shape[1]))
    engine.prefill(many[:250])
    with pytest.raises(PromptError, match="250 positions are used and 7 more do not fit into the context of 256"):
        engine.prefill(many[:7])
    assert engine.position == 250
    engine.prefill(many[:6])
    with pytest.raises(PromptError, match="256 positions are used and 1 more"):
        engine.decode(many[:1])


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (PIXELS[:128, :128], UsageError, r"no encoder for --image-size 128; it has \[256\]"),
        (PIXELS[:, :128], ExecutionError, r"uint8 of shape \(256, 128, 3\)"),
        (PIXELS[:, :, :1], ExecutionError, "expected uint8"),
        (PIXELS.astype(np.float32), ExecutionError, "float32 of shape"),
        (PIXELS[0], ExecutionError, "expected uint8"),
    ],
)
def test_wrong_pixels(engine: OrtEngine, pixels: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        engine.encode_image(pixels)


def test_options(written_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--image-size 512"):
        opened(written_onnx, image_size=512)
    with pytest.raises(UsageError, match="'gpu' is unknown"):
        opened(written_onnx, providers=["gpu"])
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependency, match="no provider coreml"):
        opened(written_onnx, providers=["coreml"])


def edit_file(path: Path, edit: Any) -> None:
    model = onnx.load(path, load_external_data=False)
    edit(model.graph)
    path.write_bytes(model.SerializeToString())


def port(graph: Any, name: str) -> Any:
    return next(each for each in (*graph.input, *graph.output) if each.name == name).type.tensor_type


def rename(graph: Any, old: str, new: str) -> None:
    next(each for each in (*graph.input, *graph.output) if each.name == old).name = new


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda g: rename(g, "logits", "scores"), r"missing or unknown: \['logits', 'scores'\]"),
        (lambda g: rename(g, "pastKeys.3", "pastKeys.4"), "7 caches, and inputs or outputs are missing"),
        (lambda g: g.input.pop(), "inputs or outputs are missing"),
        (lambda g: setattr(port(g, "inputsEmbeds").shape.dim[2], "dim_value", 64), r"Embeds is float \[1, S, 64\]"),
        (lambda g: setattr(port(g, "inputsEmbeds").shape.dim[1], "dim_value", 64), "inputsEmbeds takes 64 rows"),
        (lambda g: setattr(port(g, "inputsEmbeds"), "elem_type", 7), "inputsEmbeds is int64"),
        (lambda g: setattr(port(g, "logits").shape.dim[2], "dim_value", 9), r"logits is float \[1, 1, 9\], expected"),
        (lambda g: setattr(port(g, "seqlensK"), "elem_type", 7), r"seqlensK is int64 \[1\], expected int32 \[1\]"),
        (lambda g: setattr(port(g, "pastKeys.2").shape.dim[2], "dim_value", 99), r"\[1, 2, 99, 32\].*all alike"),
        (lambda g: setattr(port(g, "presentValues.0"), "elem_type", 10), "float16 .*expected all alike"),
        (lambda g: [setattr(port(g, each.name).shape.dim[1], "dim_value", -1) for each in (*g.input, *g.output)
                    if each.name.startswith("p")], r"\[1, -1, 256, 32\].*expected all alike"),
    ],
)  # fmt: skip
def test_a_decoder_that_does_not_fit_its_manifest(onnx_build: Path, edit: Any, message: str) -> None:
    edit_file(onnx_build / LANGUAGE, edit)
    with pytest.raises(PackageError, match=f"{LANGUAGE} does not fit its manifest: .*{message}"):
        opened(onnx_build).language  # noqa: B018


def test_a_cache_beyond_all_memory(onnx_build: Path) -> None:
    def edit(graph: Any) -> None:
        for each in (*graph.input, *graph.output):
            if each.name.startswith("p"):
                each.type.tensor_type.shape.dim[1].dim_value = 1 << 50

    edit_file(onnx_build / LANGUAGE, edit)
    with pytest.raises(
        ExecutionError, match=r"no memory for a cache of \[1, 1125899906842624, 256, 32\]|does not take"
    ):
        opened(onnx_build).language  # noqa: B018


def test_another_encoder(onnx_build: Path, tiny_model: FastVLM) -> None:
    for name in ("VisionEncoder.onnx", "VisionEncoder.onnx.data"):
        (onnx_build / name).unlink()
    write_encoder(tiny_model, onnx_build, 128)
    with pytest.raises(PackageError, match=r"takes image uint8 \[1, 128, 128, 3\].*expected image uint8 \[1, 256, 256"):
        opened(onnx_build).encode_image(PIXELS)


@pytest.mark.parametrize("name", [LANGUAGE, DATA, "embeddings.bin"])
def test_cut_files(onnx_build: Path, name: str) -> None:
    path = onnx_build / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises((PackageError, BuildError), match=r"cut|ends at byte|expected \d+ bytes"):
        opened(onnx_build).load()


# Builds


def test_a_build_is_read_by_who_asks_for_onnx(written_onnx: Path) -> None:
    build = read_build(written_onnx, (ONNX,))
    assert (build.format, build.encoders) == ("onnx", {256: written_onnx / "VisionEncoder.onnx"})
    assert (build.context, build.vocab_size, build.embeddings.dtype) == (CONTEXT, 576, "float32")
    with pytest.raises(BuildError, match="is a build of --format onnx, and this takes builds of --format coreml alone"):
        read_build(written_onnx)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite', expected coreml or onnx"),
        ({"packages": {"encoder": {"512": "a.onnx"}}}, r"packages.encoder is for \['512'\], image.sizes says \[256\]"),
        ({"packages": {"encoder": "a.onnx"}}, "packages.encoder is 'a.onnx', expected an object"),
        ({"packages": {"encoder": {"256": 5}}}, "packages.encoder.256 is 5, expected text"),
        ({"packages": {"encoder": {"256": "../a.onnx"}}}, "plain relative path"),
        ({"packages": {"language": ["/etc/a.onnx"]}}, "plain relative path"),
        ({"context": 0}, "context is 0"),
    ],
)
def test_a_damaged_manifest(onnx_build: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        read_build(edit_manifest(onnx_build, **changes), (ONNX,))


def test_a_build_of_one_part(onnx_build: Path) -> None:
    packages = json.loads((onnx_build / "manifest.json").read_bytes())["packages"]
    alone = opened(edit_manifest(onnx_build, packages={"encoder": packages["encoder"]}))
    assert alone.encode_image(PIXELS).shape == (16, 192)
    with pytest.raises(BuildError, match="no language model"):
        alone.decode(np.zeros((1, 192), np.float32))
    blind = opened(edit_manifest(onnx_build, packages={"language": packages["language"]}))
    assert blind.decode(blind.embed([1])).shape == (576,)
    with pytest.raises(BuildError, match="no vision encoder"):
        blind.encode_image(PIXELS)


def test_a_language_model_of_fixed_shapes(onnx_build: Path) -> None:
    packages = {"language": [LANGUAGE, "LanguageModel-decode.onnx"]}
    with pytest.raises(UsageError, match=r"LanguageModel-decode\.onnx: a language model of fixed shapes"):
        opened(edit_manifest(onnx_build, packages=packages)).decode(np.zeros((1, 192), np.float32))


def test_packages_are_not_opened_as_onnx(onnx_build: Path) -> None:
    with pytest.raises(BuildError, match="--format coreml, and this takes builds of --format onnx alone"):
        opened(edit_manifest(onnx_build, format="coreml"))


def test_changed_bytes_of_a_decoder(onnx_build: Path) -> None:
    """Whatever is let through, onnxruntime takes or refuses by name."""
    path = onnx_build / LANGUAGE
    whole, rng, taken = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        with contextlib.suppress(PackageError):
            load(open_file(path), settings=SETTINGS)
            taken += 1
    assert 0 < taken < 60
