"""A host of a few files answers by the bundle alone, in another process without the rooms that made it."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.build import read_build
from fastvlm.errors import BundleError, ExecutionError, FastVLMError, MissingDependency, PackageError, PromptError
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.samples import shipped_samples
from validation.bundle_host.host import Host
from validation.engine import PackageEngine
from validation.host import plan_prefill
from validation.session import build_session

LINES = 300
KNOWN = {
    "fastvlm.errors", "fastvlm.paths", "validation.backends", "collections", "collections.abc", "itertools", "json",
    "numpy", "numpy.typing", "pathlib", "PIL", "re", "tokenizers", "typing", "warnings",
}  # fmt: skip


def host_files(root: Path) -> list[Path]:
    return sorted((root / "validation" / "bundle_host").rglob("*.py"))


def test_the_host_has_fewer_than_300_lines(root: Path) -> None:
    """All of them: code, docstrings, blank ones."""
    assert sum(len(file.read_text("utf-8").splitlines()) for file in host_files(root)) < LINES


def test_the_host_knows_nothing_of_the_project_but_how_packages_run(root: Path) -> None:
    own = {f"validation.bundle_host.{file.stem}" for file in host_files(root)}
    for file in host_files(root):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            assert not isinstance(node, ast.Import) or {alias.name for alias in node.names} <= KNOWN, file
            assert not isinstance(node, ast.ImportFrom) or node.module in KNOWN | own, file


ALONE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fastvlm_ref", "export", "ios_bundle"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
for room in ("fastvlm_ref", "export"):
    try:
        __import__(room)
    except ImportError:
        continue
    raise SystemExit(f"{room} can be imported")

from validation.bundle_host.host import Host
from validation.bundle_selftest import run_selftest

bundle, photo, prompt = sys.argv[1:]
host = Host(bundle)
example = json.loads(host.path("selftest/selftest.json").read_bytes())
ids = example["ids_before_image"], example["ids_after_image"]
from validation.bundle_host.picture import open_photo
steps = host.steps(open_photo(host.path("selftest/picture.png")), ids, len(example["greedy_ids"]))
print(json.dumps({
    "greedy": [int(logits.argmax()) for logits in steps] == example["greedy_ids"],
    "answer": "".join(host.answer(photo, prompt)),
    "selftest": run_selftest(bundle).as_json(),
}))
"""


def test_it_answers_where_the_other_rooms_cannot_be_imported(tiny_bundle: Path, root: Path, tmp_path: Path) -> None:
    sample = shipped_samples()[0]
    words = [sys.executable, "-P", "-c", ALONE, str(tiny_bundle), str(sample.picture), sample.prompt]
    done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["greedy"]
    assert told["answer"] == told["selftest"]["text"] == sample.answer
    assert told["selftest"]["passed"]


# The same logits, bit for bit, as the runtime that the project validates builds by


def of_engine(
    engine: PackageEngine, pixels: np.ndarray, ids: tuple[list[int], list[int]], count: int
) -> list[np.ndarray]:
    """Logits of `count` greedy steps."""
    rows = np.concatenate((engine.embed(ids[0]), engine.encode_image(pixels), engine.embed(ids[1])))
    engine.reset()
    engine.prefill(rows[:-1])
    logits = [engine.decode(rows[-1:])]
    while len(logits) < count:
        logits.append(engine.decode(engine.embed([int(logits[-1].argmax())])))
    return logits


@pytest.mark.parametrize(("size", "length"), [(256, 75), (128, 1)])
def test_a_chain_of_int8_gives_the_logits_that_were_validated(
    size: int, length: int, odd_build: Path, odd_bundle: Path
) -> None:
    host = Host(odd_bundle, size=size)
    engine = PackageEngine(read_build(odd_build), image_size=size)
    pixels = preprocess(open_image(shipped_samples()[2].picture), size, "crop")
    ids = (host.prompt.ids("What?")[0], [7 + number % 400 for number in range(length)])
    mine = list(host.steps(pixels, ids, 2))
    assert all(np.array_equal(a, b) for a, b in zip(mine, of_engine(engine, pixels, ids, 2), strict=True))


@given(length=st.integers(2, 60), query=st.integers(1, 24), context=st.integers(61, 70))
def test_the_calls_are_those_of_the_runtime(length: int, query: int, context: int, tiny_bundle: Path) -> None:
    """Where C is no multiple of Q, too: then `decode` finishes what a padded chunk would carry beyond the context."""
    host, calls = Host(tiny_bundle), []
    host.query, host.context, host.stages = query, context, []
    rows = np.zeros((length, 192), np.float16)

    def chain(name: str, position: int, real: np.ndarray, _: dict[str, Any]) -> np.ndarray:
        calls.append((name, position, len(real)))
        return np.zeros(host.vocabulary, np.float32)

    host.chain, host.features = chain, lambda _: rows  # type: ignore[method-assign]
    list(host.steps(np.zeros(0, np.uint8), ([], []), 1))
    planned = plan_prefill(length - 1, past=0, query=query, context=context)
    assert calls == [*((each.function, each.position, each.rows) for each in planned), ("decode", length - 1, 1)]


def test_it_says_what_the_build_says(odd_build: Path, odd_bundle: Path) -> None:
    """From the file of a photo, cropped, to the last piece of text."""
    session = build_session(read_build(odd_build))
    for sample in shipped_samples()[:2]:
        text = "".join(Host(odd_bundle).answer(sample.picture, sample.prompt, 40))
        assert text == session.answer(sample.picture, sample.prompt, 40).text


# What is wrong is one sentence


def changed(bundle: Path, place: Path, changes: dict[str, Any]) -> Path:
    """A copy of a bundle whose metadata.json has other values at paths such as language/chain/0/logits.

    None takes a key away.
    """
    copy = Path(shutil.copytree(bundle, place))
    metadata = json.loads((copy / "metadata.json").read_bytes())
    for path, value in changes.items():
        *parents, last = path.split("/")
        held = metadata
        for parent in parents:
            held = held[int(parent) if isinstance(held, list) else parent]
        held[last] = value
        if value is None:
            del held[last]
    (copy / "metadata.json").write_text(json.dumps(metadata))
    return copy


def refusal(bundle: Path, kind: type[FastVLMError] = BundleError, **options: Any) -> str:
    """What is said where a bundle is opened or asked something."""
    sample = shipped_samples()[0]
    with pytest.raises(kind) as raised:
        list(Host(bundle).answer(options.get("photo", sample.picture), "What?", options.get("most", 1)))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundle/schema": "1.0"}, "is a 'vlm' of schema '1.0', not a vlm of 0.x; update fastvlm"),
        ({"kind": "llm"}, "is a 'llm' of schema '0.1', not a vlm of 0.x"),
        ({"bundle": None}, "bundle.schema is None, expected str"),
        ({"language/head_dim": None}, "language.head_dim is None, expected int from 1 to 16,777,216; bundle again"),
        ({"language/prefill_chunk_size": 0}, "language.prefill_chunk_size is 0, expected int"),
        ({"language/max_context_length": 1 << 40}, "language.max_context_length is 1099511627776"),
        ({"language/mask_value": "low"}, "language.mask_value is 'low', expected float"),
        ({"language/chain": {}}, "language.chain is {}, expected list"),
        ({"profiles": []}, "profiles.0.image_size is None"),
        ({"prompt/before": None}, "prompt.before is None, expected str"),
        ({"prompt/controls": [7]}, "prompt.controls.0 is 7, expected str"),
        ({"files/tokenizer": "../tokenizer.json"}, "expected a plain relative path below that folder"),
        ({"files/tokenizer": "tokenizer/none.json"}, "has no tokenizer/none.json; it is no whole bundle"),
        ({"embedding/rows": 577}, "has 221184 bytes, not 577 × 192 of float16"),
        ({"embedding/dtype": "int4"}, "not 576 × 192 of int4"),
        ({"embedding/dtype": "int8"}, "has 221184 bytes, not 576 × 192 of int8"),
        ({"assets/vision": "models/Other"}, "has no models/Other.mlpackage; it is no whole bundle"),
        ({"vision/image_strategy": "stretch"}, "image strategy 'stretch', expected pad or center_crop"),
        ({"embedding/width": 96, "embedding/rows": 1152}, "tokenizer, table and encoder do not fit"),
    ],
)
def test_metadata_that_is_wrong_is_one_sentence(
    changes: dict[str, Any], said: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert said in refusal(changed(tiny_bundle, tmp_path / "copy", changes))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"language/chain/0/logits": ["other"]}, ExecutionError, "0 of 576 logits are numbers"),
        ({"language/vocab_size": 600}, ExecutionError, "576 of 600 logits are numbers"),
        ({"language/chain/0/functions/decode/inputs/0/name": "other"}, PackageError, "other"),
        ({"profiles/0/image_size": 64}, PackageError, "encode_64"),
    ],
)
def test_packages_that_are_not_what_metadata_says_are_named(
    changes: dict[str, Any], kind: type[FastVLMError], said: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert said in refusal(changed(tiny_bundle, tmp_path / "copy", changes), kind)


def test_a_compiled_model_says_who_runs_it(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    (copy / "models" / "VisionEncoder.mlpackage").rename(copy / "models" / "VisionEncoder.mlmodelc")
    assert "VisionEncoder.mlpackage, only .mlmodelc, which Core ML alone runs" in refusal(copy)


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b'"text"', b"\xff"])
def test_metadata_that_is_no_object_is_one_sentence(content: bytes, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    (copy / "metadata.json").write_bytes(content)
    assert "metadata.json of " in refusal(copy)


def test_what_is_no_bundle_is_one_sentence(tmp_path: Path) -> None:
    assert "has no metadata.json; it is no whole bundle" in refusal(tmp_path)
    assert "has no metadata.json; it is no whole bundle" in refusal(tmp_path / "nothing")


def test_an_answer_that_the_context_cannot_hold_names_the_numbers(tiny_bundle: Path) -> None:
    assert refusal(tiny_bundle, PromptError, most=2040) == (
        "38 positions and an answer of 2040 exceed 2048; shorten either"
    )


def test_core_ml_is_asked_for_by_name(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(MissingDependency, match="backend coreml needs macOS"):
        Host(tiny_bundle, "coreml").features(np.zeros((256, 256, 3), np.uint8))
