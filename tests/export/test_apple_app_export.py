"""The encoder for Apple's sample app: named and shaped as its code asks, fp16 inside, the same weights as our own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_limits import check
from package_constants import constants, op_counts
from small_export import read_proto, small_model

from export import api
from export.apple_app import refusal
from export.build import BuildWriter
from export.choice import Compression
from export.contract import app_function
from export.encoder import EncoderGraph
from export.parts_key import encoder_key
from export.plan import check_options, make_plan
from export.postcheck import check_package, operations
from export.precheck import used_weights
from export.protection import Protection
from export.ranges.cache import fingerprint, store
from export.ranges.result import ENCODER, Ranges, TensorRange
from export.space import part_bytes
from fastvlm.build import APPLE_APP, read_build
from fastvlm.errors import BuildError, PackageError, UsageError
from fastvlm.hashes import hash_tree
from fastvlm.licences import APPLE, APPLE_SENTENCE
from fastvlm.manifest import check_files, find_changes, read_manifest, write_manifest
from fastvlm.mlpackage import WEIGHT_FILE
from fastvlm.progress import Progress
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.checkpoint.source import Source
from fastvlm_ref.config import VisionConfig
from fastvlm_ref.image import open_image, pixels_to_tensor, preprocess
from fastvlm_ref.samples import shipped_samples
from validation.limits import LIMITS
from validation.metrics import psnr_db
from validation.mil import MILModel

PACKAGE = "fastvithd.mlpackage"
OFFICIAL = VisionConfig(
    image_size=1024, depths=(2, 12, 24, 4, 2), widths=(96, 192, 384, 768, 1536),
    mlp_widths=(384, 768, 1536, 3072, 6144), features=3072, se_channels=192,
)  # fmt: skip


@pytest.fixture(scope="module")
def proto(exported_app: Path) -> Any:
    """The package's protobuf."""
    return read_proto(exported_app / PACKAGE)


def block(proto: Any) -> Any:
    """The ops of the function, to be edited."""
    function = proto.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def declared(feature: Any) -> tuple[str, list[int], str]:
    """Name, shape and element type of a feature that is an array."""
    array = feature.type.multiArrayType
    return feature.name, list(array.shape), type(array).ArrayDataType.Name(array.dataType)


def test_the_function_is_the_one_that_apple_s_code_calls() -> None:
    """class `fastvithd`, `prediction(images:)`; its precondition is `image_features` float32 [1, 256, 3072]."""
    function = app_function(OFFICIAL, 1024)
    assert function.as_json() == {
        "inputs": [{"name": "images", "kind": "tensor", "shape": [1, 3, 1024, 1024], "dtype": "float32"}],
        "outputs": [{"name": "image_features", "kind": "tensor", "shape": [1, 256, 3072], "dtype": "float32"}],
    }
    assert function.name == "main"
    assert refusal(OFFICIAL, 1024) is None


def test_the_package_is_for_ios_16_and_holds_one_function(proto: Any) -> None:
    """As coremltools writes it for that system: without names of functions, which came with iOS 18."""
    assert proto.specificationVersion == 7
    assert list(proto.mlProgram.functions) == ["main"]
    assert proto.mlProgram.functions["main"].opset == "CoreML6"
    assert (len(proto.description.functions), proto.description.defaultFunctionName) == (0, "")
    assert [declared(each) for each in proto.description.input] == [("images", [1, 3, 256, 256], "FLOAT32")]
    assert [declared(each) for each in proto.description.output] == [("image_features", [1, 16, 512], "FLOAT32")]
    assert all(each.shortDescription for each in (*proto.description.input, *proto.description.output))


def test_all_between_the_ends_is_fp16(proto: Any) -> None:
    ops = [op for op in operations(proto.mlProgram.functions["main"]) if op.type != "const"]
    casts = [index for index, op in enumerate(ops) if op.type == "cast"]
    assert casts == [0, len(ops) - 1]
    fp16 = {output.type.tensorType.dataType for op in ops[:-1] for output in op.outputs}
    assert len(fp16) == 1
    assert {op.type for op in ops if op.type in ("linear", "einsum", "batch_norm", "layer_norm", "pow")} == set()


def test_labels_name_the_licence_and_the_derivative(proto: Any, exported_app: Path) -> None:
    metadata, manifest = proto.description.metadata, read_manifest(exported_app)
    assert "without projector, for Apple's sample app" in metadata.shortDescription
    assert "A derivative of the checkpoint" in metadata.shortDescription
    assert metadata.license == manifest["licence_text"]
    assert json.loads(metadata.userDefined["fastvlm.contract"]) == manifest["functions"]["encoder"]
    assert not [key for key in metadata.userDefined if "date" in key]


def test_apple_s_licence_goes_along(tmp_path: Path) -> None:
    """Its sentence word for word in the package and in the manifest, its text beside them."""
    model = small_model()
    model.config = replace(model.config, licence=APPLE)
    (tmp_path / "LICENSE_MODEL").write_text("the agreement")
    model.source = Source(id="x", revision=None, layout="llava", folder=tmp_path, names=("LICENSE_MODEL",))
    build = api.export_model(model, tmp_path.parent / f"{tmp_path.name}-out", purpose=APPLE_APP)
    assert (build / "licence" / "LICENSE_MODEL").read_text() == "the agreement"
    assert read_proto(build / PACKAGE).description.metadata.license == f"{APPLE}. {APPLE_SENTENCE}"
    manifest = read_manifest(build)
    assert (manifest["licence"], manifest["licence_text"]) == (APPLE, f"{APPLE}. {APPLE_SENTENCE}")
    check_files(build, manifest)


def test_the_folder_holds_the_package_and_its_manifest(exported_app: Path) -> None:
    manifest = read_manifest(exported_app)
    assert sorted({name.split("/")[0] for name in manifest["files"]} - {"licence"}) == [PACKAGE]
    assert (manifest["for"], manifest["packages"]) == (APPLE_APP, {"encoder": PACKAGE})
    assert list(manifest["functions"]["encoder"]) == ["main"]
    assert manifest["image"]["scale"] == 1.0
    assert {"tokenizer", "embeddings"} & manifest.keys() == set()
    check_files(exported_app, manifest)
    assert find_changes(exported_app, manifest) == []


def test_weights_are_those_of_our_own_encoder(exported_app: Path, exported_tiny: Path) -> None:
    def weights(package: Path, function: str) -> dict[str, np.ndarray]:
        return {each.name: each.value for each in constants(package, function) if each.name.endswith("_to_fp16")}

    own = weights(exported_tiny / "VisionEncoder.mlpackage", "encode_256")
    found = weights(exported_app / PACKAGE, "main")
    assert {name for name in own.keys() - found.keys() if not name.startswith("projector_")} == set()
    assert found.keys() < own.keys()
    assert [name for name, value in found.items() if value.tobytes() != own[name].tobytes()] == []


def test_the_same_bytes_again(exported_app: Path, tmp_path: Path) -> None:
    again = api.export_model(load_checkpoint("tiny"), tmp_path / "other place", purpose=APPLE_APP)
    assert hash_tree(again / PACKAGE) == hash_tree(exported_app / PACKAGE)
    assert (again / "manifest.json").read_bytes() == (exported_app / "manifest.json").read_bytes()


@pytest.mark.usefixtures("one_thread")
def test_a_photo_gives_the_features_of_the_reference(exported_app: Path, tiny_model: Any) -> None:
    photo = preprocess(open_image(shipped_samples()[0].picture), 256, "pad")
    pixels = pixels_to_tensor(photo)
    found = MILModel(exported_app / PACKAGE).predict({"images": pixels.numpy()})["image_features"]
    with torch.no_grad():
        reference = tiny_model.vision_encoder(pixels).numpy()
    assert (found.dtype, found.shape) == (np.float32, (1, 16, 512))
    assert LIMITS["encoder.psnr_db"].holds(psnr_db(reference, found))


@pytest.mark.usefixtures("one_thread")
def test_exponents_end_before_the_features(tmp_path: Path) -> None:
    """Stored as x · 2^−e up to the last activation, handed out as x."""
    model = small_model()
    sites = EncoderGraph(model, projector=False).sites
    plain, scaled = (
        api.export_model(model, tmp_path / name, purpose=APPLE_APP, protection=Protection(encoder=exponents)) / PACKAGE
        for name, exponents in (("plain", {}), ("scaled", dict.fromkeys(sites, 2)))
    )
    more = op_counts(scaled, "main") - op_counts(plain, "main")
    assert more["clip"] == 18  # 17 GELUs and the gate
    pixels = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        reference = model.vision_encoder(pixels)
    for package in (plain, scaled):
        check("encoder_fp16", reference, MILModel(package).predict({"images": pixels.numpy()})["image_features"])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"only": "encoder"}, "--only"),
        ({"context": 2048}, "--context"),
        ({"target": "gpu"}, "--target gpu"),
        ({"max_file_size": 1}, "--max-file-size"),
        ({"quantize": "int8"}, "--quantize int8"),
        ({"image_sizes": (1024, 512)}, "--image-size is 512, and Apple's sample app takes 1024 alone"),
        ({"image_sizes": (256, 1152)}, "--image-size is 256, 1152"),
    ],
)
def test_what_does_not_go_with_it_is_named(given: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=named):
        api.export(tmp_path / "no such checkpoint", tmp_path / "out", purpose=APPLE_APP, **given)


def test_everything_at_once_and_nothing_too_much() -> None:
    with pytest.raises(UsageError, match=r"leave out --only, --context, --target gpu, --quantize lut6$"):
        check_options((), 512, 64, "encoder", "gpu", quantize="lut6", purpose=APPLE_APP)
    with pytest.raises(UsageError, match="--for is 'android', expected apple-app"):
        check_options(purpose="android")
    check_options((1024, 1024), quantize="fp16", purpose=APPLE_APP)


def test_a_model_in_memory_is_refused_the_same(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--quantize int8"):
        api.export_model(model, tmp_path / "out", quantize="int8", purpose=APPLE_APP)


@pytest.mark.parametrize(
    ("changes", "side", "cure"),
    [
        ({"image_size": 512}, 512, "this one takes 512 and gives [1, 64, 3072]; give --image-size 1024"),
        ({"features": 512}, 1024, "this one takes 1024 and gives [1, 256, 512]; change that line"),
    ],
)
def test_a_checkpoint_that_the_app_would_stop_at_is_told(changes: dict[str, Any], side: int, cure: str) -> None:
    assert (refusal(replace(OFFICIAL, **changes), side) or "").endswith(cure)


def test_the_size_is_the_checkpoint_s_own_or_the_app_s(model: Any, tmp_path: Path, heard: Any) -> None:
    assert make_plan(model.config, purpose=APPLE_APP).image_sizes == (128,)
    build = api.export_model(model, tmp_path / "out", image_sizes=(1024,), purpose=APPLE_APP, progress=heard)
    (feature,) = read_proto(build / PACKAGE).description.output
    assert declared(feature) == ("image_features", [1, 256, 128], "FLOAT32")
    assert [note for note in heard.notes if note.startswith("Apple's app as it is stops")]


def test_the_projector_is_neither_read_nor_counted(model: Any, exported_app: Path, tiny_model: Any) -> None:
    plan = make_plan(model.config, purpose=APPLE_APP)
    assert {weight.name.split(".")[0] for weight in used_weights(model, plan)} == {"vision_encoder"}
    parts = part_bytes(tiny_model, make_plan(tiny_model.config, purpose=APPLE_APP), Compression())
    assert parts.keys() == {"encoder"}
    assert parts["encoder"] == pytest.approx((exported_app / PACKAGE / WEIGHT_FILE).stat().st_size, rel=0.02)


def test_a_part_for_the_app_is_none_of_a_build(model: Any) -> None:
    own, app = (
        encoder_key(model, make_plan(model.config, only="encoder"), {}),
        encoder_key(model, make_plan(model.config, purpose=APPLE_APP), {}),
    )
    assert own != app


def test_a_kept_scan_speaks_of_the_tower_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Any) -> None:
    """Exponents of the projector are none of this graph's; features that fp16 cannot hold are told."""
    model, seen = small_model(), []
    sites = dict(EncoderGraph(model).sites)
    peaks = {tensor: 1.0 for tensors in sites.values() for tensor in tensors}
    peaks |= {"network.8.2.conv convolution": 30_000.0, "projector_0 convolution": 30_000.0, "conv_exp gelu": 40_000.0}
    tensors = tuple(TensorRange(ENCODER + name, peak, 0.0, "noise") for name, peak in peaks.items())
    store(Ranges(fingerprint(model, {}), (128,), ("noise",), (), 0, None, tensors, sites))
    monkeypatch.setattr(BuildWriter, "write", lambda self: seen.append(self.protection.encoder))
    monkeypatch.setattr("export.api.check_written", lambda _: None)
    api.export_model(model, tmp_path / "out", purpose=APPLE_APP, progress=heard)
    assert seen == [{"network.8.2": 1}]
    assert [note for note in heard.notes if note.startswith("encoder.conv_exp gelu reaches 40,000")]


class Interrupting(Progress):
    """Interrupts when the package is finished."""

    def stage(self, name: str, total: int | None = None) -> Any:
        if name == "Hashing the build":
            raise KeyboardInterrupt
        return super().stage(name, total)


def test_an_interrupted_export_goes_on(model: Any, tmp_path: Path, heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        api.export_model(model, tmp_path / "out", purpose=APPLE_APP, progress=Interrupting())
    monkeypatch.setattr("export.build.write_package", lambda *_: pytest.fail("the package is made again"))
    build = api.export_model(model, tmp_path / "out", purpose=APPLE_APP, progress=heard)
    assert f"{PACKAGE} was finished by an interrupted run and is taken over" in heard.notes
    check_files(build, read_manifest(build))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda proto: setattr(proto, "specificationVersion", 9), "specification version 9, expected 7"),
        (lambda proto: proto.description.functions.add(name="main"), r"functions \['main'\] / \['main'\]"),
        (lambda proto: setattr(proto.description, "defaultFunctionName", "main"), "default function 'main'"),
        (lambda proto: setattr(proto.description.output[0].type.multiArrayType, "dataType", 65552), "is float16"),
        (lambda proto: setattr(proto.description.input[0], "name", "image"), "inputs \\['image'\\]"),
        (lambda proto: block(proto).operations.add(type="cast"), "op cast"),
        (lambda proto: block(proto).operations.add(type="pow"), "op pow"),
    ],
)
def test_what_the_converter_must_not_make(proto: Any, damage: Any, problem: str, tiny_model: Any) -> None:
    damaged = type(proto)()
    damaged.CopyFrom(proto)
    damage(damaged)
    with pytest.raises(PackageError, match=problem):
        check_package(damaged, (app_function(tiny_model.config.vision, 256),), "main")


def test_a_manifest_for_an_unknown_app_is_no_build(app_build: Path) -> None:
    manifest = read_manifest(app_build)
    for key, value, problem in (
        ("for", "android-app", "for is 'android-app', expected apple-app"),
        ("image", {**manifest["image"], "sizes": [256, 128]}, "for is apple-app, expected packages.encoder at one"),
    ):
        write_manifest(app_build / "manifest.json", manifest | {key: value})
        with pytest.raises(BuildError, match=problem):
            read_build(app_build)


def test_an_encoder_for_an_app_is_not_whole(exported_app: Path) -> None:
    build = read_build(exported_app)
    assert (build.purpose, build.language, build.image_sizes) == (APPLE_APP, (), (256,))
    with pytest.raises(
        BuildError, match=r"vision encoder for Apple's sample app, .* put its fastvithd\.mlpackage into"
    ):
        build.check_whole()
