"""The estimate: what it adds up to, what it refuses, and that it goes the way that it must."""

from __future__ import annotations

import json
import shutil
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from pathlib import Path

import pytest

from fastvlm.app_limits import APP_LIMIT
from fastvlm.devices import DEVICES, device
from fastvlm.errors import BuildError, CheckpointError, ConfigError, HubError, TensorError, UsageError
from validation.fit import estimate, sizes_of
from validation.fit.advice import CHOICES, advise, classes, export_command
from validation.fit.estimating import TEXT_TOKENS, Estimate
from validation.fit.sizes import ACCEPTED, Sizes

PHONE = "iPhone 15 Pro"


def test_an_answer_adds_up(half: Sizes) -> None:
    found = estimate(half, PHONE, "int8", 1024, 2048)
    encode, prefill, decode = found.stages
    assert [stage.name for stage in found.stages] == ["encode", "prefill", "decode"]
    # 256 tokens of the picture and 30 of text; all but the last in calls of 64 rows
    assert (found.image_tokens, TEXT_TOKENS, prefill.calls) == (256, 30, 5)
    assert found.first_token == pytest.approx(encode.seconds + prefill.seconds + decode.seconds)
    assert found.tokens_per_second == pytest.approx(1 / decode.seconds)
    assert found.answer == pytest.approx(found.first_token + 99 * decode.seconds)
    assert found.memory.need == found.memory.weights + found.memory.state + found.memory.maps
    assert found.files.total == found.files.weights + found.files.embeddings + found.files.other
    with pytest.raises(FrozenInstanceError):
        found.scheme = "fp16"  # type: ignore[misc]


def test_it_is_plain_data_in_full(half: Sizes) -> None:
    content = estimate(half, PHONE, "int8").as_json()
    assert json.loads(json.dumps(content)) == content
    assert content["files"]["total"] == sum(content["files"]["language"]) + sum(
        content["files"][part] for part in ("encoder", "embeddings", "other")
    )
    assert content["first_token"] == pytest.approx(sum(stage["seconds"] for stage in content["stages"]))
    assert {stage["bound"] for stage in content["stages"]} <= {"compute", "bandwidth", "overhead"}


def test_fewer_bits_are_never_slower_and_never_larger(half: Sizes) -> None:
    for each in (group[0] for group in classes()):
        found = [estimate(half, each, scheme) for scheme in ("fp16", "int8", "lut6", "lut4")]
        for more, fewer in pairwise(found):
            assert fewer.files.total < more.files.total
            # int8 in an engine that folds it is fp16, and its scales lie beside it
            assert fewer.memory.need <= 1.0001 * more.memory.need
            assert fewer.stages[2].seconds <= more.stages[2].seconds


def test_larger_pictures_and_contexts_take_longer(half: Sizes) -> None:
    sides = [estimate(half, PHONE, image_size=side).first_token for side in (256, 512, 1024, 1152)]
    assert sides == sorted(sides)
    steps = [estimate(half, PHONE, context=context).stages[2].seconds for context in (512, 2048, 8192)]
    assert steps == sorted(steps)
    assert estimate(half, PHONE, context=8192).memory.state == 4 * estimate(half, PHONE, context=2048).memory.state


def test_larger_checkpoints_take_longer() -> None:
    found = [estimate(sizes_of(name), PHONE, "int8") for name in ("0.5b", "1.5b", "7b")]
    for small, large in pairwise(found):
        assert large.stages[1].seconds > small.stages[1].seconds
        assert large.stages[2].seconds > small.stages[2].seconds
    # FastViTHD is the same tower in all of them; the projector is not
    assert found[2].stages[0].seconds == pytest.approx(found[0].stages[0].seconds, rel=0.03)


def test_int8_is_folded_on_the_oldest_engine(half: Sizes) -> None:
    old, new = (estimate(half, name, "int8") for name in ("iPhone 12", "iPhone 13"))
    assert old.files == new.files
    assert old.memory.weights > 1.6 * new.memory.weights
    assert old.memory.weights == pytest.approx(estimate(half, "iPhone 12", "fp16").memory.weights, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"device": "toaster"}, "known: iPhone 12 mini, 12"),
        ({"image_size": 1000}, "960 is the nearest below"),
        ({"context": 2000}, "2048"),
        ({"context": 256}, "leaves no room"),
        ({"scheme": "int4", "target": "ane"}, "gpu only"),
        ({"scheme": "mixed"}, "by what it measures"),
        ({"scheme": "int5"}, "no scheme and no file"),
        ({"scheme": ""}, "not a file"),
        ({"image_size": 0}, "is 0"),
        ({"context": 0}, "is 0"),
        ({"text_tokens": 0}, "text_tokens is 0, expected 1 at least"),
        ({"text_tokens": 1792}, "leaves no room"),
    ],
)
def test_what_no_export_takes_is_refused(half: Sizes, asked: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        estimate(half, **{"device": PHONE, **asked})  # type: ignore[arg-type]


# --- what a target is


@pytest.mark.parametrize("word", ["0.6b", "fastvlm", "0,5b", "x" * 10_000])
def test_a_word_that_is_nothing_is_told_what_is(word: str) -> None:
    with pytest.raises(UsageError) as refused:
        sizes_of(word)
    assert ACCEPTED in str(refused.value)
    assert len(str(refused.value)) < 400


def test_sizes_are_found_however_they_are_typed() -> None:
    assert sizes_of("7B") == sizes_of("7b")
    assert sizes_of("vicuna-7b").checkpoint is None
    assert sizes_of("1.5b").checkpoint == "apple/FastVLM-1.5B"


def test_a_folder_that_is_neither_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a checkpoint"):
        sizes_of(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        sizes_of(tmp_path / "file")
    (tmp_path / "Manifest.json").touch()
    with pytest.raises(UsageError, match="one package"):
        sizes_of(tmp_path)


def test_a_path_that_is_not_there_and_an_id_that_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        sizes_of(str(tmp_path / "a" / "b" / "c"))
    with pytest.raises(HubError, match=r"hf download owner/name config\.json"):
        sizes_of("owner/name")
    with pytest.raises(HubError, match=r"`hf download owner/name config\.json --revision v1`"):
        sizes_of("owner/name@v1")


def test_a_cached_ids_config_is_enough(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name, revision: str(tiny / name))
    found = sizes_of("owner/name@v1")
    assert (found.checkpoint, found.text.hidden_size) == ("owner/name@v1", 192)


def test_a_checkpoint_is_read_without_its_weights(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvlm_ref import load_checkpoint

    config = load_checkpoint("tiny").config
    monkeypatch.setattr("fastvlm_ref.checkpoint.tensors.TensorFile.read", None, raising=False)
    found = sizes_of(tiny)
    assert (found.vision, found.text) == (config.vision, config.text)
    assert found == replace(sizes_of("tiny"), name=str(tiny), checkpoint=str(tiny))


def test_config_alone_is_enough_and_says_what_it_does_not_know(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "config.json", tmp_path)
    found = sizes_of(tmp_path)
    assert found.text == replace(sizes_of(tiny).text, tied_head=found.text.tied_head)
    assert any("FastViTHD" in note for note in found.assumed)


def test_a_lora_adapter_has_no_sizes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"give fit the base checkpoint$"):
        sizes_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "apple/FastVLM-0.5B"}')
    with pytest.raises(UsageError, match=r"give fit the base checkpoint, which it calls apple/FastVLM-0\.5B$"):
        sizes_of(tmp_path)


def changed(folder: Path, name: str, value: object) -> Path:
    """The folder, whose config.json says something else."""
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {name: value}))
    return folder


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_hidden_layers", 5, r"decoder\.layers\.4\.input_layernorm\.weight is missing; .* and 9 more"),
        ("intermediate_size", 768, r"mlp\.gate_proj\.weight is \[512, 192\], expected \[768, 192\]"),
        ("vocab_size", 600, r"decoder\.embed_tokens\.weight is \[576, 192\], expected \[600, 192\]"),
    ],
)
def test_a_config_of_another_decoder_than_the_tensors_is_refused(
    tiny: Path, tmp_path: Path, name: str, value: int, said: str
) -> None:
    """An export would refuse it, so that a command to make it would be no help."""
    folder = changed(shutil.copytree(tiny, tmp_path / "it"), name, value)
    with pytest.raises(TensorError, match=said):
        sizes_of(folder)


def test_a_number_in_config_alone_costs_no_time(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "config.json", tmp_path)
    with pytest.raises(ConfigError, match="num_hidden_layers 5000, expected 1000 at most"):
        sizes_of(changed(tmp_path, "num_hidden_layers", 5000))


# --- a build


def test_a_build_is_near_to_what_was_planned(build: Path) -> None:
    built = sizes_of(build)
    assert built.built is not None
    own = built.built
    real = estimate(built, PHONE)
    plan = estimate(replace(built, built=None), PHONE, own.scheme, target=own.target)
    assert (real.real, plan.real) == (True, False)
    assert real.first_token == pytest.approx(plan.first_token, rel=0.02)
    assert real.tokens_per_second == pytest.approx(plan.tokens_per_second, rel=0.02)
    assert real.memory.need == pytest.approx(plan.memory.need, rel=0.01)
    on_disk = sum(path.stat().st_size for path in build.rglob("*") if path.is_file())
    assert real.files.total == on_disk


@pytest.mark.parametrize(
    "asked", [{"scheme": "int4"}, {"context": 4096}, {"image_size": 512}, {"target": "gpu", "scheme": "fp16"}]
)
def test_a_build_is_what_it_is(exported_tiny: Path, asked: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=str(exported_tiny)):
        estimate(sizes_of(exported_tiny), PHONE, **asked)  # type: ignore[arg-type]


def test_a_build_whose_files_are_others_is_refused(tiny_build: Path) -> None:
    with (tiny_build / "embeddings.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BuildError, match=r"embeddings\.bin"):
        sizes_of(tiny_build)


def test_half_a_build_is_refused(tiny_build: Path) -> None:
    manifest = tiny_build / "manifest.json"
    content = json.loads(manifest.read_bytes())
    del content["packages"]["language"], content["functions"]["language"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(BuildError, match="no language model"):
        sizes_of(tiny_build)


# --- what is recommended


def recommended(name: str, on: str) -> Estimate | None:
    return advise(sizes_of(name), device(on)).best


def test_the_scheme_that_loses_least_of_what_fits() -> None:
    assert (best := recommended("0.5b", "iPhone 12")) is not None
    assert best.scheme == "int8"
    assert recommended("7b", "iPhone 12") is None
    for group in classes():
        for name in ("0.5b", "1.5b", "7b", "vicuna-7b"):
            advice = advise(sizes_of(name), group[0])
            if advice.best is not None:
                assert advice.best.memory.fits
                assert advice.command is not None
            else:
                assert advice.why.startswith("nothing fits")
                assert not any(each.memory.fits for each in advice.estimates)


@pytest.mark.parametrize(("room", "chosen"), [(100, "int8"), (70, "lut6"), (60, "int4"), (50, "lut4"), (40, None)])
def test_schemes_are_taken_in_the_order_of_what_they_lose(
    half: Sizes, room: int, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/compression.md: int8 loses least, then lut6, int4, lut4; whatever needs more than `room` does not fit."""
    needs = {"fp16": 200, "int8": 100, "lut6": 70, "int4": 60, "lut4": 50}
    plain = estimate

    def measured(*asked: object, **more: object) -> Estimate:
        found = plain(*asked, **more)  # type: ignore[arg-type]
        fits = "yes" if needs[found.scheme] <= room else "no"
        return replace(found, memory=replace(found.memory, verdict=fits))

    monkeypatch.setattr("validation.fit.advice.estimate", measured)
    best = advise(half, device(PHONE)).best
    assert (None if best is None else best.scheme) == chosen


def test_what_is_too_large_for_an_app_is_a_download() -> None:
    advice = advise(sizes_of("7b"), device("iPhone 17 Pro"))
    assert advice.best is not None
    assert advice.best.files.total > APP_LIMIT
    assert "--for server" in advice.why
    assert "increased-memory-limit" in advice.why


def test_the_gpu_only_where_it_is_much_sooner() -> None:
    assert (best := recommended("7b", "MacBook Pro M1 Max")) is not None
    assert best.target == "gpu"
    assert (best := recommended("0.5b", "iPhone 12 mini")) is not None
    assert best.target == "ane"


def test_the_command_can_be_typed(half: Sizes) -> None:
    from click.testing import CliRunner

    from fastvlm.cli import cli

    best = estimate(half, PHONE, "int4", 512, 4096)
    command = export_command(half, best, (512, 1024))
    assert command == (
        "fastvlm export apple/FastVLM-0.5B -o FastVLM-0.5B-int4 --quantize int4 --target gpu "
        "--image-size 512 --image-size 1024 --context 4096"
    )
    words = command.split()[1:]
    words[1] = "nothing-here"
    refused = CliRunner().invoke(cli, words)
    assert "no such folder" in refused.stderr  # every option is one


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("apple/FastVLM-0.5B", "FastVLM-0.5B-int8"),
        ("apple/FastVLM-0.5B@0123abc", "FastVLM-0.5B-int8"),
        ("me/model@refs/pr/1", "model-int8"),
        (".", "FastVLM-int8"),
        ("..", "FastVLM-int8"),
    ],
)
def test_an_export_is_named_after_its_checkpoint(half: Sizes, name: str, output: str) -> None:
    words = export_command(replace(half, checkpoint=name), estimate(half, PHONE, "int8"), (1024,)).split()
    assert words[2:5] == [name, "-o", output]


@pytest.mark.parametrize(
    ("source", "checkpoint"),
    [
        ({"id": "tiny", "revision": None}, "tiny"),
        ({"id": "FastVLM-0.5B", "revision": None}, None),
        ({"id": "apple/FastVLM-0.5B", "revision": None}, "apple/FastVLM-0.5B"),
        ({"id": "apple/FastVLM-0.5B", "revision": "0123abc"}, "apple/FastVLM-0.5B@0123abc"),
        ({"id": "me/adapter", "revision": "0123abc", "base": {"id": "apple/FastVLM-0.5B"}}, None),
    ],
)
def test_a_build_names_the_very_checkpoint_it_was_made_from(
    tiny_build: Path, source: dict[str, object], checkpoint: str | None
) -> None:
    manifest = tiny_build / "manifest.json"
    content = json.loads(manifest.read_bytes())
    content["source"] |= source
    manifest.write_text(json.dumps(content))
    assert sizes_of(tiny_build).checkpoint == checkpoint


def test_a_checkpoint_is_quoted_for_the_shell(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "my model")
    advice = advise(sizes_of(folder), device(PHONE))
    assert advice.command is not None
    assert f"'{folder}'" in advice.command


def test_a_build_that_fits_needs_no_export_and_one_that_does_not_is_told_which(exported_tiny: Path) -> None:
    built = sizes_of(exported_tiny)
    advice = advise(built, device(PHONE))
    assert (advice.command, len(advice.estimates)) == (None, 1)
    assert advice.why.startswith("this build fits")
    assert built.built is not None
    large = replace(built.built.files, language=(20_000_000_000,))
    advice = advise(replace(built, built=replace(built.built, files=large)), device(PHONE))
    assert advice.why.startswith("this build does not fit")
    assert advice.command is not None
    assert "--quantize int8" in advice.command
    # embeddings are mapped, so that they weigh in an app and not in its memory
    heavy = replace(built.built.files, embeddings=APP_LIMIT)
    told = advise(replace(built, built=replace(built.built, files=heavy)), device(PHONE)).why
    assert told.startswith("this build does not fit: 4.01 GB of files (an app may have 4.00 GB). ")


def test_classes_are_the_table() -> None:
    assert sorted(each.name for group in classes() for each in group) == sorted(each.name for each in DEVICES)
    for group in classes():
        assert len({(each.kind, each.chip.name, min(each.memory_gb)) for each in group}) == 1


def test_every_choice_can_be_had_at_every_official_size() -> None:
    for name in ("0.5b", "1.5b", "7b", "vicuna-7b"):
        advice = advise(sizes_of(name), device(PHONE))
        assert len(advice.estimates) == len(CHOICES)
        assert advice.refused == ()


def test_int8_is_not_said_to_lose_less_than_fp16(half: Sizes) -> None:
    said = advise(half, device("MacBook Air M2")).why
    assert said.startswith("int8 on the Neural Engine fits, as fp16 does: half of its bytes for next to no loss: ")
