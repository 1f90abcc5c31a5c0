"""A host of a few files answers by the bundle alone, in another process without the rooms that made it."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import sysconfig
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

LINES = 320
KNOWN = {
    "fastvlm.errors", "fastvlm.paths", "fastvlm.picture_files", "fastvlm.tokenizer_json", "fastvlm.tokenizer_room",
    "validation.backends", "collections", "collections.abc", "itertools", "json", "numpy", "numpy.typing", "pathlib",
    "PIL", "re", "tokenizers", "typing", "warnings",
}  # fmt: skip


def host_files(root: Path) -> list[Path]:
    return sorted((root / "validation" / "bundle_host").rglob("*.py"))


def test_the_host_is_short(root: Path) -> None:
    """All of them: code, docstrings, blank ones."""
    assert sum(len(file.read_text("utf-8").splitlines()) for file in host_files(root)) < LINES


def test_the_host_knows_nothing_of_the_project_but_how_packages_run(root: Path) -> None:
    own = {f"validation.bundle_host.{file.stem}" for file in host_files(root)}
    for file in host_files(root):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            assert not isinstance(node, ast.Import) or {alias.name for alias in node.names} <= KNOWN, file
            assert not isinstance(node, ast.ImportFrom) or node.module in KNOWN | own, file


ALONE = """
import json, os, sys

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

bundle, photo, prompt, elsewhere = sys.argv[1:]
opened, folders, within = [], {}, []
sys.addaudithook(lambda event, given: opened.append(given) if event == "open" and not within else None)

def seen(path, flags, mode=0o777, *, dir_fd=None, real=os.open):
    # its audit event does not tell the folder in which a name is opened
    within.append(1)
    handle = real(path, flags, mode, dir_fd=dir_fd)
    within.pop()
    folders[handle] = os.path.join(folders.get(dir_fd, ""), path)
    opened.append((folders[handle], mode, flags))
    return handle

os.open = seen
host = Host(bundle)
example = json.loads(host.path("selftest/selftest.json").read_bytes())
ids = example["ids_before_image"], example["ids_after_image"]
from validation.bundle_host.picture import open_photo
steps = host.steps(open_photo(host.path("selftest/picture.png")), ids, len(example["greedy_ids"]))
told = {
    "greedy": [int(logits.argmax()) for logits in steps] == example["greedy_ids"],
    "answer": "".join(host.answer(photo, prompt)),
    "selftest": run_selftest(bundle).as_json(),
}
open(elsewhere, "rb").close()  # which must be among what was seen
read = {path for path, _, flags in opened if flags & os.O_ACCMODE != os.O_WRONLY and not isinstance(path, int)}
told["opened"] = sorted(os.path.realpath(os.fsdecode(path)) for path in read)
print(json.dumps(told))
"""
CODE = (".py", ".pyc", ".so")
SYSTEM = ("/proc/", "/sys/", "/dev/", "/usr/", "/lib/", "/lib64/", "/System/", "/Library/", "/etc/", "/opt/")


def strange(opened: list[str], bundle: Path, root: Path) -> set[str]:
    """The read files that are neither the bundle's, Python's and its libraries', the system's, nor this project's code.

    Nothing of the project's data, then, and no other bundle, build or checkpoint. What a library opens past Python
    is not seen: tokenizers reads the one path that it is given.
    """
    python = [Path(place).resolve() for place in (*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix)]
    allowed = [bundle.resolve(), *(place for place in python if place not in root.resolve().parents)]
    rest = {Path(path) for path in opened if not path.startswith(SYSTEM)}
    foreign = {path for path in rest if not any(map(path.is_relative_to, allowed))}
    # an installation that leads to the checkout has its own description there
    code = {path for path in foreign if path.suffix in CODE or path.parent.suffix == ".egg-info"}
    return {str(path) for path in foreign - {path for path in code if path.is_relative_to(root.resolve())}}


def test_it_answers_where_the_other_rooms_cannot_be_imported(tiny_bundle: Path, root: Path, tmp_path: Path) -> None:
    sample = shipped_samples()[0]
    photo = Path(shutil.copyfile(sample.picture, tmp_path / "photo.png"))
    elsewhere = (root / "pyproject.toml").resolve()
    words = [sys.executable, "-P", "-c", ALONE, str(tiny_bundle), str(photo), sample.prompt, str(elsewhere)]
    done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["greedy"]
    assert told["answer"] == told["selftest"]["text"] == sample.answer
    assert told["selftest"]["passed"]
    assert str((tiny_bundle / "metadata.json").resolve()) in told["opened"]
    assert strange(told["opened"], tiny_bundle, root) == {str(photo.resolve()), str(elsewhere)}


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


def test_two_runs_of_one_host_do_not_meet(tiny_bundle: Path) -> None:
    """Steps taken in turns give what each gives alone: the states belong to a run."""
    host, pixels = Host(tiny_bundle), np.zeros((256, 256, 3), np.uint8)
    asked = [host.prompt.ids(text) for text in ("What?", "Describe the picture.")]
    alone = [list(host.steps(pixels, ids, 2)) for ids in asked]
    turns = list(zip(*(host.steps(pixels, ids, 2) for ids in asked), strict=True))
    assert np.array_equal(np.array(alone), np.array(turns).swapaxes(0, 1))


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
        ({"language/head_dim": None}, "language.head_dim is None, expected int from 2 to 1,024; bundle again"),
        ({"language/prefill_chunk_size": 0}, "language.prefill_chunk_size is 0, expected int"),
        ({"language/max_context_length": 1 << 40}, "language.max_context_length is 1099511627776"),
        ({"language/mask_value": "low"}, "language.mask_value is 'low', expected float"),
        ({"language/mask_value": float("-inf")}, "language.mask_value is -inf, expected float from -65,504 to -1"),
        ({"language/mask_value": float("nan")}, "language.mask_value is nan, expected float"),
        ({"language/rope_theta": 10**400}, "language.rope_theta is 1000"),
        ({"language/rope_theta": -10000.0}, "language.rope_theta is -10000.0, expected float from 1 to 1e+30"),
        ({"language/rope_theta": True}, "language.rope_theta is True, expected float"),
        ({"language/head_dim": True}, "language.head_dim is True, expected int"),
        ({"language": []}, "language.prefill_chunk_size is None, expected int"),
        ({"language/chain": {}}, "language.chain is {}, expected list"),
        ({"profiles": []}, "profiles.0.image_size is None"),
        ({"prompt/before": None}, "prompt.before is None, expected str"),
        ({"prompt/controls": [7]}, "prompt.controls.0 is 7, expected str"),
        ({"prompt/controls": ["\ud800"]}, r"lacks one of the template's tokens ['\ud800']"),
        ({"prompt/controls": ["the"]}, "lacks one of the template's tokens ['the']"),  # a word, no added token
        ({"prompt/bos_id": -1}, "prompt.bos_id is -1, expected int from 0 to"),
        ({"prompt/bos_id": True}, "prompt.bos_id is True, expected int"),
        ({"prompt/bos_id": 576}, " are no ids of 576 rows; make the bundle again"),
        ({"prompt/stop_ids": [1, -1]}, "prompt.stop_ids.1 is -1, expected int"),
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


def test_metadata_without_end_is_not_read(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = changed(tiny_bundle, tmp_path / "copy", {"name": "x" * (4 << 20)})
    assert "metadata.json has 4," in (said := refusal(copy))
    assert "at most 4,194,304 are read" in said


@pytest.mark.parametrize("ids", [[-1], [576], [True], [1.0], ["1"], [None]])
def test_ids_that_have_no_row_are_refused(ids: list[Any], tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"^\[.+\] are no ids of 576 rows; make the bundle again$"):
        Host(tiny_bundle).embed(ids)


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
