"""The whole comparison on an exported build: good when it is good, and red for every fault that is planted."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from row_faults import reseal

from export import export
from fastvlm.build import read_build
from fastvlm.errors import BuildError, ImageError, UsageError
from fastvlm.hashes import file_hash, sha256_bytes
from fastvlm.manifest import holds_build_alone, read_manifest, write_manifest
from fastvlm_ref.image import open_image, preprocess
from validation import validate
from validation.blocks import NOT_COMPARED
from validation.engine import PackageEngine
from validation.limits import LIMITS, RUNGS
from validation.session import open_session

STEPS = 8


@pytest.fixture(scope="module")
def validated(exported_tiny, tmp_path_factory):
    build = tmp_path_factory.mktemp("validated") / "tiny"
    shutil.copytree(exported_tiny, build)
    return build, validate(build)


@pytest.fixture
def upper_rungs(monkeypatch):
    """Network and tokens alone: a test of those rows need not wait for constants, ops and blocks."""
    monkeypatch.setattr("validation.judging.lower_rungs", lambda *_: [])
    monkeypatch.setattr("validation.judging.block_rung", lambda *_: (NOT_COMPARED, []))


def missed(verdict):
    return {row.limit.key for row in verdict.rows if not row.passed}


def test_the_embedded_checkpoint_passes_every_limit(validated):
    _, verdict = validated
    assert verdict.passed, [f"{row.limit.key} = {row.value}" for row in verdict.rows if not row.passed]
    assert {row.limit.key for row in verdict.rows} == set(LIMITS)
    assert verdict.not_measured == ()
    assert len(verdict.answers) >= 3
    assert all(row.same for row in verdict.answers)


def test_the_table_states_what_a_validation_measures(validated):
    """Another processor may sum in another order; a figure that is five times off is out of date."""
    for row in validated[1].rows:
        stated = row.limit.measured
        if row.limit.metric == "chunking_loss_db":  # on some processors the two ways differ nowhere
            assert row.value <= stated + 5
        elif row.limit.metric.endswith("_db"):
            assert abs(row.value - stated) <= 5, row.limit.key
        else:
            assert stated / 5 <= row.value <= stated * 5, row.limit.key


def test_the_answers_are_right_and_not_all_alike(validated):
    _, verdict = validated
    assert all(row.coreml == row.expected for row in verdict.answers)
    assert len({row.coreml for row in verdict.answers}) > 1


def test_validation_json_says_what_the_verdict_says(validated):
    build, verdict = validated
    stored = json.loads((build / "validation.json").read_text("utf-8"))
    assert stored["verdict"] == "passed"
    assert stored["steps"] == verdict.steps == 64, "what the documents call the default"
    assert stored["manifest_sha256"] == file_hash(build / "manifest.json")["sha256"]
    assert len(stored["limits"]) == len(verdict.rows)
    rungs = [row["rung"] for row in stored["limits"]]
    assert rungs == sorted(rungs, key=RUNGS.index)
    assert stored["questions"] == vars(verdict.score) == {
        "count": 3, "in_full": 3, "agree": 3, "answered": 3, "build_right": 3, "reference_right": 3,
    }  # fmt: skip
    assert stored["reference_is_source"] is True
    assert len(stored["differing_steps"]) == len(verdict.differing_steps)


def test_validating_again_gives_the_same_bytes(validated_tiny, tmp_path):
    build = shutil.copytree(validated_tiny, tmp_path / "build")
    first = (build / "validation.json").read_bytes(), (build / "selftest" / "selftest.json").read_bytes()
    validate(build, steps=16)
    assert first == ((build / "validation.json").read_bytes(), (build / "selftest" / "selftest.json").read_bytes())


def test_the_self_test_is_what_the_packages_find(validated):
    build, _ = validated
    test = json.loads((build / "selftest" / "selftest.json").read_text("utf-8"))
    pixels = np.asarray(Image.open(build / "selftest" / "picture.png"))
    features = np.fromfile(build / "selftest" / "features.bin", np.float16).reshape(test["features"]["shape"])
    engine = PackageEngine(read_build(build))
    found = engine.encode_image(pixels)
    assert np.abs(found - features).max() < 0.05 * np.abs(features).max()
    engine.prefill(engine.embed(test["ids_before_image"]))
    engine.prefill(found)
    engine.prefill(engine.embed(test["ids_after_image"][:-1]))
    row = engine.embed(test["ids_after_image"][-1:])
    for expected in test["greedy_ids"]:
        said = int(engine.decode(row).argmax())
        assert said == expected
        row = engine.embed([said])


def test_the_self_test_has_a_photo_to_preprocess(validated):
    build, _ = validated
    test = json.loads((build / "selftest" / "selftest.json").read_text("utf-8"))
    assert test["schema"] == "0.3"
    photo = build / "selftest" / test["photo"]["file"]
    opened = read_build(build)
    assert test["photo"]["pixels_sha256"].keys() == {str(side) for side in opened.image_sizes}
    for side, expected in test["photo"]["pixels_sha256"].items():
        pixels = preprocess(open_image(photo), int(side), opened.image_rule)
        assert sha256_bytes(pixels.tobytes()) == expected


def test_the_self_test_has_the_hash_of_the_prompt_s_rows(validated):
    build, _ = validated
    test = json.loads((build / "selftest" / "selftest.json").read_text("utf-8"))
    rows = PackageEngine(read_build(build)).embeddings([*test["ids_before_image"], *test["ids_after_image"]])
    assert rows.dtype == np.float16
    assert test["rows_sha256"] == sha256_bytes(rows.tobytes())
    assert holds_build_alone(build), "what validate adds is known"


def weights(build, package):
    return build / package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def change_weights(build, package, change):
    """Changes fp16 values in the middle of a weight file, past its header."""
    path = weights(build, package)
    values = np.fromfile(path, np.float16)
    middle = slice(len(values) // 2, len(values) // 2 + 2048)
    values[middle] = change(values[middle])
    values.tofile(path)


def test_a_changed_file_is_named_before_anything_runs(tiny_build):
    change_weights(tiny_build, "LanguageModel.mlpackage", lambda values: -values)
    (tiny_build / "validation.json").write_text("{}")
    with pytest.raises(BuildError, match=r"weight\.bin"):
        validate(tiny_build)
    assert not (tiny_build / "validation.json").exists()  # it spoke of other files


@pytest.mark.parametrize(
    ("package", "limit"), [("LanguageModel.mlpackage", "language."), ("VisionEncoder.mlpackage", "encoder.")]
)
@pytest.mark.usefixtures("upper_rungs")
def test_flipped_signs_fail_and_nothing_calls_the_build_good(tiny_build, package, limit):
    (tiny_build / "selftest").mkdir()
    (tiny_build / "selftest" / "selftest.json").write_text("{}")
    change_weights(tiny_build, package, lambda values: -values)
    reseal(tiny_build)
    verdict = validate(tiny_build, steps=STEPS)
    assert not verdict.passed
    assert any(key.startswith(limit) for key in missed(verdict))
    assert json.loads((tiny_build / "validation.json").read_text("utf-8"))["verdict"] == "failed"
    assert not (tiny_build / "selftest").exists()


def test_a_build_whose_values_are_no_numbers_fails_and_tells_where(tiny_build):
    """Weights of the encoder of the size that fp16 ends at: infinity behind them, and no answer."""
    change_weights(tiny_build, "VisionEncoder.mlpackage", lambda values: np.where(values > 0.1, 6e4, values))
    reseal(tiny_build)
    verdict = validate(tiny_build, steps=1)
    rows = {row.limit.key: row for row in verdict.rows}
    assert not rows["encoder.psnr_db"].passed
    assert rows["encoder.peak"].value == np.inf
    assert rows["encoder.peak"].subject.startswith("first in ")
    assert all(row.coreml == "none: its values are no numbers" for row in verdict.answers)


@pytest.mark.usefixtures("upper_rungs")
def test_swapped_embedding_rows_fail(tiny_build):
    table = np.fromfile(tiny_build / "embeddings.bin", np.float16).reshape(-1, 192)
    table[[300, 301]] = table[[301, 300]]
    table.tofile(tiny_build / "embeddings.bin")
    reseal(tiny_build)
    assert "embeddings.max_error" in missed(validate(tiny_build, steps=1))


@pytest.mark.parametrize(
    ("path", "value", "limit"),
    [
        ("prompt.system", "You are a pirate.", "prompt.differing_ids"),
        ("prompt.stop_ids", [5], "manifest.differing_fields"),
        ("image.rule", "crop", "manifest.differing_fields"),
        ("model.vision.image_size", 1024, "manifest.differing_fields"),
        ("model.text.rms_norm_eps", 1e-5, "manifest.differing_fields"),
    ],
)
@pytest.mark.usefixtures("upper_rungs")
def test_a_manifest_that_misleads_a_runtime_fails(tiny_build, path, value, limit):
    manifest = read_manifest(tiny_build)
    *parents, leaf = path.split(".")
    place = manifest
    for name in parents:
        place = place[name]
    place[leaf] = value
    write_manifest(tiny_build / "manifest.json", manifest)
    assert limit in missed(validate(tiny_build, steps=1))


@pytest.mark.parametrize("part", ["encoder", "language"])
def test_a_build_of_one_part_is_compared_in_that_part(part, tmp_path):
    build = export("tiny", tmp_path / part, only=part)
    verdict = validate(build, steps=STEPS)
    assert verdict.passed
    quantities = {row.limit.quantity for row in verdict.rows}
    assert part in quantities
    assert quantities & {"encoder", "language"} == {part}
    assert any(key.startswith("answer.") for key in verdict.not_measured)
    with pytest.raises(BuildError, match="exported with --only"):
        open_session(build).answer(Image.new("RGB", (64, 64)), "What is this?")


@pytest.mark.usefixtures("upper_rungs")
def test_a_wrong_rope_base_fails(tiny_build):
    manifest = read_manifest(tiny_build)
    manifest["model"]["text"]["rope_theta"] = 1e4
    write_manifest(tiny_build / "manifest.json", manifest)
    assert missed(validate(tiny_build, steps=STEPS)) >= {"language.kl", "language.kl_step", "language.logit_error"}


def test_another_checkpoint_is_refused(tiny_build, tiny, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    config = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    with pytest.raises(UsageError, match=r"not what this build was made from \(config\.json"):
        validate(tiny_build, other)


def test_images_must_be_a_folder_with_pictures(tiny_build, tmp_path):
    with pytest.raises(UsageError, match="not a folder"):
        validate(tiny_build, images=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no picture"):
        validate(tiny_build, images=tmp_path / "empty")
    (tmp_path / "empty" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        validate(tiny_build, images=tmp_path / "empty")


def test_sessions_refuse_what_does_not_fit(exported_tiny, tiny):
    with pytest.raises(UsageError, match="export it first"):
        open_session(tiny, "mil")
    with pytest.raises(UsageError, match="runs a checkpoint"):
        open_session(exported_tiny, "torch")
    with pytest.raises(UsageError, match="--context"):
        open_session(exported_tiny, context=128)
    with pytest.raises(UsageError, match="it has"):
        open_session(exported_tiny, image_size=320)


@pytest.mark.long
def test_an_answer_s_ties_are_judged_by_its_own_limit(tmp_path):
    """Only the encoder is compressed: the decoder keeps fp16's limit, answers from its image tokens have their own."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("encoder: lut4\n")
    verdict = validate(export("tiny", tmp_path / "build", quantize=recipe))
    rows = {row.limit.key: row for row in verdict.rows}
    assert rows["language.logit_error"].limit.limit < rows["answer.logit_error"].value
    assert rows["answer.divergences"].value == 0
    assert verdict.passed


@pytest.mark.usefixtures("upper_rungs")
def test_a_weaker_verdict_in_the_place_of_a_stronger_one_is_told(validated_tiny, tmp_path, heard):
    build = shutil.copytree(validated_tiny, tmp_path / "build")
    validate(build, steps=2, progress=heard)
    told = "the verdict that was there compared 3 pictures and 16 steps, this one 3 and 2"
    assert [note for note in heard.notes if note.startswith(told)]
    heard.notes.clear()
    validate(build, steps=2, progress=heard)
    assert not [note for note in heard.notes if "the verdict that was there" in note]
