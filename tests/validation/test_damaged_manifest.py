"""A manifest that lacks a field, or holds another type there, is one named error: never a crash, never a guess."""

import json

import pytest

from fastvlm.build import read_build
from fastvlm.errors import BuildError
from validation.session import open_session

FIELDS = (
    "source.id", "source.files", "image.rule", "image.sizes", "prompt.template", "prompt.stop_ids", "context",
    "query_length", "model.text.head_dim", "model.text.rope_theta", "model.text.vocab_size", "embeddings.file",
    "embeddings.dtype", "embeddings.rows", "embeddings.width", "tokenizer.folder",
)  # fmt: skip
WRONG = (None, 5.5, "x" * 3, ["x"], {"x": 1}, True, -1, 1 << 40)


def damage(build, path, value):
    manifest = json.loads((build / "manifest.json").read_bytes())
    place = manifest
    *parents, leaf = path.split(".")
    for name in parents:
        place = place[name]
    place[leaf] = value
    (build / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("path", FIELDS)
def test_a_missing_field_is_named(tiny_build, path):
    damage(tiny_build, path, None)
    with pytest.raises(BuildError, match=path.replace(".", r"\.") if "." in path else path):
        read_build(tiny_build)


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("path", [*FIELDS, "packages.encoder", "packages.language", "prompt.system", "source.options"])
def test_a_wrong_type_never_crashes(tiny_build, path, value):
    """Whatever stands in a field, opening either works or is a BuildError."""
    damage(tiny_build, path, value)
    try:
        build = read_build(tiny_build)
    except BuildError:
        return
    assert build.context >= 1  # a value that happens to be allowed there


def test_all_problems_are_listed_at_once(tiny_build):
    damage(tiny_build, "context", "x")
    damage(tiny_build, "image.sizes", "y")
    with pytest.raises(BuildError, match=r"image\.sizes .* context"):
        read_build(tiny_build)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_paths_stay_inside(tiny_build, path):
    damage(tiny_build, "embeddings.file", path)
    if path:
        with pytest.raises(BuildError):
            read_build(tiny_build)
    else:
        with pytest.raises(BuildError):
            open_session(tiny_build).engine.embed([1])


def test_unknown_keys_are_ignored(tiny_build):
    damage(tiny_build, "source.options", {"nosuch": 1})
    damage(tiny_build, "novelty", {"x": 1})
    assert read_build(tiny_build).source_options == {}
