"""A manifest that lacks a field, or holds another type there, is one named error: never a crash, never a guess."""

import json
import shutil

import pytest

from fastvlm.build import read_build
from fastvlm.errors import BuildError

FIELDS = (
    "source.id", "source.files", "image.rule", "image.sizes", "prompt.template", "prompt.stop_ids", "context",
    "query_length", "model.vision.stride", "model.text.head_dim", "model.text.rope_theta", "model.text.vocab_size",
    "embeddings.file", "embeddings.dtype", "embeddings.rows", "embeddings.width", "tokenizer.folder",
    "functions.language",
)  # fmt: skip
WRONG = (None, 5.5, "x" * 3, ["x"], {"x": 1}, True, -1, 1 << 40)


@pytest.fixture
def told(exported_tiny, tmp_path):
    """A folder that holds the manifest of a build and nothing else: no file is to be opened."""
    shutil.copy(exported_tiny / "manifest.json", tmp_path)
    return tmp_path


def damage(build, path, value):
    manifest = json.loads((build / "manifest.json").read_bytes())
    place = manifest
    *parents, leaf = path.split(".")
    for name in parents:
        place = place[name]
    place[leaf] = value
    (build / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("path", FIELDS)
def test_a_missing_field_is_named(told, path):
    damage(told, path, None)
    with pytest.raises(BuildError, match=path.replace(".", r"\.") if "." in path else path):
        read_build(told)


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("path", [*FIELDS, "packages.encoder", "packages.language", "prompt.system", "source.options"])
def test_a_wrong_type_never_crashes(told, path, value):
    """Whatever stands in a field, opening either works or is a BuildError."""
    damage(told, path, value)
    try:
        build = read_build(told)
    except BuildError:
        return
    assert build.context >= 1  # a value that happens to be allowed there


def test_all_problems_are_listed_at_once(told):
    damage(told, "context", "x")
    damage(told, "image.sizes", "y")
    with pytest.raises(BuildError, match=r"image\.sizes .* context"):
        read_build(told)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_paths_stay_inside(told, path):
    damage(told, "embeddings.file", path)
    with pytest.raises(BuildError):
        read_build(told)


@pytest.mark.parametrize("entry", [{}, {"decode": 5}, {"decode": {"outputs": [{"name": 3}, 4]}}, {"prefill": {}}])
def test_a_chain_without_logits_is_named(told, entry):
    damage(told, "functions.language", [entry])
    with pytest.raises(BuildError, match="names no output logits"):
        read_build(told)


def test_schema_0_1_knew_one_package(told):
    """Its functions.language was one object, not a list of one."""
    new = read_build(told).language
    (only,) = json.loads((told / "manifest.json").read_bytes())["functions"]["language"]
    damage(told, "functions.language", only)
    damage(told, "schema", "0.1")
    assert read_build(told).language == new
    assert (new[0].prefill, new[0].state, new[0].logits) == (True, True, ("logits",))


def test_unknown_keys_are_ignored(told):
    damage(told, "source.options", {"nosuch": 1})
    damage(told, "novelty", {"x": 1})
    assert read_build(told).source_options == {}


def _function(*outputs):
    return {"inputs": [], "outputs": [{"name": name} for name in outputs]}


LAYERS = {"state": {}, "prefill": _function("hiddenStates"), "decode": _function("hiddenStates")}
FILLING = {"state": {}, "prefill": _function("done"), "decode": _function("hiddenStates")}
WHOLE = {"state": {}, "prefill": _function("done"), "decode": _function("logits")}
HEAD = {"decode": _function("logits")}


@pytest.mark.parametrize("chain", [[WHOLE], [LAYERS, WHOLE], [FILLING, HEAD], [LAYERS, LAYERS, FILLING, HEAD]])
def test_chains_as_export_makes_them(told, chain):
    damage(told, "functions.language", chain)
    damage(told, "packages.language", [f"{number}.mlpackage" for number in range(len(chain))])
    assert len(read_build(told).language) == len(chain)


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ([{**LAYERS, "prefill": 3} | {"state": None}], "names no output logits"),
        ([{key: LAYERS[key] for key in ("state", "decode")}, WHOLE], "one of prefill and state alone"),
        ([{key: LAYERS[key] for key in ("prefill", "decode")}, WHOLE], "one of prefill and state alone"),
        ([HEAD, LAYERS], "without state before one with it"),
        ([{"decode": _function("hiddenStates")}, WHOLE], "without state before one with it"),
        ([HEAD], "without state before one with it"),
        ([FILLING, WHOLE], "hands no hiddenStates"),
        ([{**LAYERS, "decode": _function("other")}, WHOLE], "hands no hiddenStates"),
        ([WHOLE, HEAD], "hands no hiddenStates"),
        ([FILLING, HEAD, HEAD], "gives logits, logits, expected"),
        ([{**WHOLE, "decode": _function("logits1", "logits0")}], "gives logits1, logits0, expected"),
        ([{**WHOLE, "decode": _function("logitsX")}], "gives logitsX, expected"),
    ],
)
def test_a_chain_that_cannot_be_is_named(told, chain, said):
    """Each of these would run and give numbers of another model, or end in the middle."""
    damage(told, "functions.language", chain)
    damage(told, "packages.language", [f"{number}.mlpackage" for number in range(len(chain))])
    with pytest.raises(BuildError, match=said):
        read_build(told)


@pytest.mark.parametrize("compression", [{"scheme": "int8", "embeddings": "int8"}, {"embeddings": 5}])
def test_a_table_that_two_fields_tell_apart_is_named(told, compression):
    damage(told, "compression", compression)
    with pytest.raises(BuildError, match=r"compression\.embeddings"):
        read_build(told)


def test_a_vocabulary_of_another_size_than_the_table_is_named(told):
    damage(told, "model.text.vocab_size", 570)
    with pytest.raises(BuildError, match=r"embeddings\.rows is 576, expected 570"):
        read_build(told)
