"""Recipes: what each says of every weight, and each way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.compression.recipe import Budget, Recipe, assign, check, open_weights, parse_recipe, read_recipe
from export.compression.recipe_text import LARGEST
from export.compression.schemes import SCHEMES
from fastvlm.errors import UsageError

INT8, INT4, LUT6, LUT4 = (SCHEMES[name] for name in ("int8", "int4", "lut6", "lut4"))
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"language.layers.{i}.mlp.down_proj.weight": (64, 96) for i in range(3)},
    **{f"language.layers.{i}.self_attn.k_proj.weight": (48, 64) for i in range(3)},
    "language.layers.0.input_layernorm.weight": (64,),
    "language.lm_head.weight": (320, 64),
    "encoder.network.0.conv.weight": (64, 1, 7, 7),
    "encoder.network.0.se.weight": (8, 64, 1, 1),
    "encoder.projector_0.weight": (64, 128, 1, 1),
    "embeddings.weight": (320, 64),
}
K_PROJ = "language.layers.*.self_attn.k_proj"


def test_a_name_alone_is_a_recipe() -> None:
    assert read_recipe("lut4") == Recipe("lut4", "fp16", "int8")
    assert read_recipe("mixed") == Recipe("mixed", "fp16", "int8", budget=Budget("bits", 5.0))


def test_an_empty_mapping_leaves_all_as_it_is() -> None:
    assert parse_recipe("{}") == Recipe()
    assert set(assign(Recipe(), "ane", SHAPES).values()) == {None}


def test_every_weight_gets_what_the_last_fitting_line_says(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "language: lut4\nencoder: int8\nembeddings: int8\nlayers:\n"
        "  language.layers.*: lut6\n  language.layers.1.*: lut4\n"
        f"  {K_PROJ}: fp16\n  encoder.projector_*: lut6\n  language.lm_head: int8\n"
    )
    recipe = read_recipe(str(tmp_path / "recipe.yaml"))
    assert assign(recipe, "ane", SHAPES) == {
        "language.layers.0.mlp.down_proj.weight": LUT6,
        "language.layers.1.mlp.down_proj.weight": LUT4,
        "language.layers.2.mlp.down_proj.weight": LUT6,
        **{f"language.layers.{i}.self_attn.k_proj.weight": None for i in range(3)},
        "language.layers.0.input_layernorm.weight": None,
        "language.lm_head.weight": INT8,
        "encoder.network.0.conv.weight": INT8,
        "encoder.network.0.se.weight": None,  # 512 elements
        "encoder.projector_0.weight": LUT6,
        "embeddings.weight": INT8,
    }


def test_mixed_leaves_the_language_open() -> None:
    recipe = parse_recipe(f"language: mixed\nbudget: {{snr_db: 20}}\nlayers: {{{K_PROJ}: int8}}")
    assert recipe.budget == Budget("snr_db", 20.0)
    down = [f"language.layers.{i}.mlp.down_proj.weight" for i in range(3)]
    assert open_weights(recipe, SHAPES) == (*down, "language.lm_head.weight")
    chosen = dict.fromkeys(open_weights(recipe, SHAPES), LUT6)
    found = assign(recipe, "ane", SHAPES, chosen | {down[1]: None})
    assert [found[name] for name in down] == [LUT6, None, LUT6]
    assert found["language.layers.0.self_attn.k_proj.weight"] is INT8
    with pytest.raises(KeyError):
        assign(recipe, "ane", SHAPES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("language: int5", "language: 'int5' is none of int8, int4, lut6, lut4, fp16, mixed"),
        ("language: 8", "language: 8 is none of"),
        ("language:", "language: None is none of"),
        ("language: [lut4]", r"language: \['lut4'\] is none of"),
        ("encoder: mixed", "encoder: 'mixed' is none of int8, int4, lut6, lut4, fp16$"),
        ("embeddings: lut4", "embeddings: 'lut4' is none of int8, fp16$"),
        ("decoder: lut4", "unknown key 'decoder'; known: language, encoder, embeddings, layers, budget"),
        ("1: lut4", "unknown key 1;"),
        ("layers: lut4", "layers: 'lut4', expected lines of the form `PATTERN: SCHEME`"),
        ("layers: {a.*: lut5}", r"layers: a\.\*: 'lut5' is none of int8, int4, lut6, lut4, fp16$"),
        ("layers: {a.*: mixed}", r"layers: a\.\*: 'mixed' is none of"),
        ("language: lut4\nbudget: {bits: 5}", "budget: needs `language: mixed`, found 'lut4'"),
        ("language: mixed\nbudget: {bits: 5, snr_db: 20}", r"expected one of bits and snr_db, as in \{bits: 5.0\}"),
        ("language: mixed\nbudget: {}", "expected one of bits and snr_db"),
        ("language: mixed\nbudget: 5", "budget: 5, expected one of"),
        ("language: mixed\nbudget: {bytes: 5}", "expected one of bits and snr_db"),
        ("language: mixed\nbudget: {bits: 2}", "budget: bits is 2, expected a number from 4 to 16"),
        ("language: mixed\nbudget: {bits: .nan}", "budget: bits is nan"),
        ("language: mixed\nbudget: {bits: true}", "budget: bits is True"),
        ("language: mixed\nbudget: {snr_db: '20'}", "budget: snr_db is '20'"),
        ("language: mixed\nbudget: {snr_db: 200}", "budget: snr_db is 200, expected a number from 5 to 60"),
        ("lut4", "holds 'lut4', expected lines of the form `language: lut4`"),
        ("- language", "holds .* expected lines"),
        ("language: lut4\nlayers: {", "line 2: "),
        ("a: b: c", "line 1: mapping values are not allowed here"),
        ("language: lut4\n\tencoder: fp16", "line 2: .*'\\\\t'"),
        ("language: \x00", "special characters are not allowed"),
        ("language: lut4\n---\nlanguage: lut6", "line 2: but found another document"),
        ("language: 2024-13-45", "month must be in 1..12"),
        ("language: lut4\nlanguage: lut6", "line 2: 'language' stands twice"),
        ("layers:\n  a.*: lut4\n  a.*: lut6", r"line 3: 'a\.\*' stands twice"),
        ("language: &a lut4\nencoder: *a", "line 1: anchors and aliases .*; line 2: anchors and aliases"),
        ("layers:\n  *.k_proj: int8", "line 2"),  # an alias to YAML
        ("language: !!python/object/apply:os.getcwd []", "line 1: tags"),
        ("language: !!str lut4", "line 1: tags"),
        ("layers: {a: {b: c}}", "line 1: nested too deeply, expected 2 levels"),
        ("[" * 100_000, "line 1: nested too deeply"),
        ("? {a: b}\n: c", "line 1: a key must be a name"),
        ("language: x\nencoder: y\nfoo: z", "unknown key 'foo'; .*; language: 'x' .*; encoder: 'y' "),
        (f"language: {'x' * 1000}", "language: 'x{56}\\.\\.\\. is none of"),
    ],
)
def test_what_a_recipe_cannot_say(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_recipe(text, "recipe r.yaml")
    assert str(caught.value).startswith("recipe r.yaml: ")
    assert "\n" not in str(caught.value)


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(UsageError, match="anchors and aliases"):
        parse_recipe("\n".join(lines))


@pytest.mark.parametrize(
    ("recipe", "target", "said"),
    [
        (Recipe("lut4"), "npu", "unknown target 'npu'; known: ane, gpu"),
        (Recipe("int4"), "ane", "language: int4 blocks run on gpu only; use --target gpu, or lut6 or int8 on ane"),
        (Recipe(encoder="int4"), "ane", "encoder: int4 blocks run on gpu only"),
        (Recipe(layers=(("language.lm_head", "int4"),)), "ane", "layers: language.lm_head: int4 blocks run on gpu"),
        (
            Recipe(layers=(("language.head", "int8"),)),
            "ane",
            r"layers: 'language\.head' fits no layer; there are language\.layers\.0\.mlp\.down_proj, ",
        ),
        (Recipe(layers=(("decoder.*", "int8"),)), "ane", "'decoder.*' fits no layer; there are"),
        (Recipe(layers=(("encoder.*.se", "int8"),)), "ane", "'encoder.*.se' fits only weights that are too small"),
        (
            Recipe(layers=(("*norm", "int8"),)),
            "ane",
            "fits only weights that are too small .* as language.layers.0.inp",
        ),
        (
            Recipe("lut4"),
            "ane",
            r"lut4 cannot hold language\.layers\.0\.self_attn\.k_proj and 2 more: it has 48 rows, not a multiple of 32;"
            r" write `language\.layers\.\*\.self_attn\.k_proj: int8` as the last line under layers$",
        ),
        (Recipe(encoder="int4"), "gpu", r"int4 cannot hold encoder\.network\.0\.conv: it has a kernel of 7×7"),
        (
            Recipe("int4", encoder="lut6", layers=(("x", "int8"),)),
            "ane",
            "language: int4 blocks .*; layers: 'x' fits no layer",
        ),
    ],
)
def test_what_weights_and_target_cannot_take(recipe: Recipe, target: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check(recipe, target, SHAPES)


def test_the_line_that_a_message_gives_helps() -> None:
    check(Recipe("lut4", layers=((K_PROJ, "int8"),)), "ane", SHAPES)


def test_patterns_for_a_part_that_is_not_built_are_left_alone() -> None:
    language = {name: shape for name, shape in SHAPES.items() if name.startswith("language")}
    check(Recipe(layers=(("encoder.projector_9", "int8"),)), "ane", language)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("int5", "'int5' is no scheme and no file; known: int8, int4, lut6, lut4, mixed, fp16; or a YAML file's path"),
        ("missing.yaml", "recipe .*missing.yaml: no such file"),
        ("folder.yaml", "not a file"),
        ("large.yaml", "larger than 65,536 bytes"),
        ("latin.yaml", "byte 2 is not UTF-8"),
        ("empty.yaml", "states nothing; copy it again, or leave it out for fp16 alone"),
        ("comments.yaml", "states nothing; copy it again, or leave it out for fp16 alone"),
    ],
)
def test_files_that_are_no_recipes(given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "large.yaml").write_bytes(b"#" * (LARGEST + 1))
    (tmp_path / "latin.yaml").write_bytes(b"# \xe4")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "comments.yaml").write_text("# language: int8\n\n  # cut here")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        read_recipe(given)
