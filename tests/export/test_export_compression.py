"""Compressed packages on disk: each weight bit for bit what the numerics say, nothing else changed, and it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_limits import check
from package_constants import compressed, constants, functions, op_counts
from small_export import CONTEXT, QUERY, sizes_of, small_model, snr
from torch import nn

from export.api import export_model
from export.build import WEIGHT_FILE
from export.choice import Compression, intended
from export.chunks import chunks, head_split
from export.compression.calibration import LINEARS, Statistics
from export.compression.codes import compress, dense
from export.compression.schemes import SCHEMES, Scheme
from export.compression.simulation import simulated
from export.convert import constant_name
from export.encoder import EncoderGraph
from export.parameters import GraphWeight
from export.plan import make_plan
from export.protection import PROTECTED
from export.sizes import language_bytes
from fastvlm.build import read_build
from fastvlm.errors import BuildError, PackageError, TensorError, UsageError
from fastvlm.hashes import hash_tree
from fastvlm.manifest import read_manifest, write_manifest
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.fastvlm import FastVLM
from validation.engine import PackageEngine
from validation.host import EmbeddingTable

ROWS = 300  # no multiple of 32: as four outputs of 96 rows it ends in 84 rows of zeros, the first 20 among real ones
ASKED: dict[str, Any] = {"context": CONTEXT, "query_length": QUERY, "only": "language"}
WAYS = [("int8", "ane"), ("lut6", "ane"), ("lut4", "ane"), ("int4", "gpu"), ("int8", "gpu")]
LANGUAGE = "LanguageModel.mlpackage"
# Queries in the Neural Engine's order: of 2 heads of keys the 2 queries of each side by side, channel by channel of 32.
ORDER = torch.arange(128).view(2, 2, 32).transpose(1, 2).reshape(-1)


def statistics(model: FastVLM) -> Statistics:
    """Importances that differ from layer to layer, and by five orders of magnitude within one."""
    drawn = torch.Generator().manual_seed(5)
    named = [f"layers.{index}.{linear}" for index in range(model.config.text.layers) for linear in LINEARS]
    widths = {name: model.decoder.get_submodule(name).in_features for name in [*named, "lm_head"]}
    squares = {name: torch.randn(width, generator=drawn).mul(2).exp() for name, width in widths.items()}
    return Statistics(squares, 1, 1, 64)


@pytest.fixture(scope="module", autouse=True)
def _small_heads() -> Iterator[None]:
    """A head of several outputs, and importances without a tokenizer, for all builds of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.chunks.HEAD_CAP", 128)
        patch.setattr("export.choice.calibrate", lambda model, *_: statistics(model))
        yield


@pytest.fixture(scope="module")
def small(_small_heads: None) -> FastVLM:
    """The seeded model with a head of its own; never changed."""
    return small_model(layers=2, vocab_size=ROWS)


@pytest.fixture(scope="module")
def built(small: FastVLM, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports the small model's language model once for each way to ask."""
    made: dict[Any, Path] = {}

    def build(quantize: str, target: str = "ane") -> Path:
        if (quantize, target) not in made:
            folder = tmp_path_factory.mktemp("compressed") / "build"
            made[quantize, target] = export_model(small, folder, quantize=quantize, target=target, **ASKED)
        return made[quantize, target]

    return build


def expected(model: FastVLM, scheme: Scheme, target: str) -> dict[str, torch.Tensor]:
    """Every compressed weight by its name in the package, float32, from the checkpoint's own."""
    known = statistics(model) if scheme.name in ("int4", "lut4") else None

    def through(name: str, rows: torch.Tensor, reordered: bool = False) -> torch.Tensor:
        importance = known.importance(name) if known is not None and scheme.weighted else None
        if reordered:
            rows, importance = rows[:, ORDER], None if importance is None else importance[ORDER]
        made = dense(scheme, compress(scheme, rows, importance))
        return made[:, :, None, None] if target == "ane" else made

    found = {}
    for index in range(model.config.text.layers):
        for linear in LINEARS:
            name = f"layers.{index}.{linear}"
            weight = model.decoder.get_submodule(name).weight
            if linear.endswith("q_proj"):
                weight = weight * model.config.text.head_dim**-0.5
                weight = weight[ORDER] if target == "ane" else weight
            found[f"{name}.weight"] = through(name, weight, target == "ane" and linear.endswith("o_proj"))
    split, head = head_split(model.config.text, target), model.decoder.lm_head.weight
    filled = torch.cat((head, torch.zeros(split.count * split.rows - len(head), head.shape[1])))
    for part, rows in enumerate(filled.split(split.rows)):
        name = "lm_head.weight" if split.count == 1 else f"lm_head.{part}.weight"
        found[name] = through("lm_head", rows)
    return {constant_name(name): value for name, value in found.items()}


@pytest.mark.parametrize(("scheme", "target"), WAYS)
def test_every_compressed_constant_is_what_the_numerics_say(
    built: Callable[..., Path], small: FastVLM, scheme: str, target: str
) -> None:
    package = built(scheme, target) / LANGUAGE
    wanted = expected(small, SCHEMES[scheme], target)
    assert head_split(small.config.text, "ane").rows == 96
    found = compressed(package, "decode")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].op == SCHEMES[scheme].op
        assert found[name].value.dtype == np.float16
        assert np.array_equal(found[name].value, value.half().numpy()), name
    filling = compressed(package, "prefill")
    last = {name for name in wanted if "layers_1_" in name and "k_proj" not in name and "v_proj" not in name}
    assert filling.keys() == {name for name in wanted if "lm_head" not in name} - last
    assert all(np.array_equal(one.value, found[name].value) for name, one in filling.items())


@pytest.mark.parametrize(("scheme", "target"), WAYS)
def test_what_is_not_compressed_is_as_in_fp16(built: Callable[..., Path], scheme: str, target: str) -> None:
    plain, small = (built(name, target) / LANGUAGE for name in ("fp16", scheme))
    for function in ("decode", "prefill"):
        names = compressed(small, function).keys()
        ours = [found.value for found in constants(small, function) if found.op == "const"]
        stock = [found.value for found in constants(plain, function) if found.name not in names]
        assert len(ours) == len(stock) > 10
        for one, other in zip(ours, stock, strict=True):
            assert np.array_equal(one, other)
        counts = op_counts(small, function)
        assert counts.pop(SCHEMES[scheme].op) == len(names)
        assert counts == op_counts(plain, function)


@pytest.mark.parametrize(("scheme", "target"), WAYS)
def test_ops_and_bytes_are_those_of_the_manifest(
    built: Callable[..., Path], small: FastVLM, scheme: str, target: str
) -> None:
    """Layers by scheme, a head of several outputs once; and both functions share every blob."""
    build = built(scheme, target)
    record = read_manifest(build)["compression"]
    assert record["scheme"] == scheme
    assert record["language"] == {scheme: 15}
    assert set(record["layers"].values()) == {scheme}
    assert ("calibration" in record) == (scheme in ("int4", "lut4"))
    split = head_split(small.config.text, target)
    assert op_counts(build / LANGUAGE, "decode")[SCHEMES[scheme].op] == 14 + split.count
    plan = make_plan(small.config, (), CONTEXT, QUERY, "language", target)
    most = sum(language_bytes(small.config.text, plan, intended(small, plan, scheme)).values())
    count = len(language_bytes(small.config.text, plan, Compression())) + split.count
    assert 0 < (build / LANGUAGE / WEIGHT_FILE).stat().st_size - most <= 64 + 3 * 128 * count


@pytest.mark.parametrize(("scheme", "target"), WAYS)
def test_a_compressed_package_computes_what_the_simulation_does(
    built: Callable[..., Path], small: FastVLM, scheme: str, target: str
) -> None:
    known = statistics(small) if scheme in ("int4", "lut4") else None
    layers = [f"layers.{index}.{linear}" for index in range(2) for linear in LINEARS]
    model = simulated(small, dict.fromkeys(layers, SCHEMES[scheme]), known)
    wanted = {name: value.flatten(1) for name, value in expected(small, SCHEMES[scheme], target).items()}
    head = [value for name, value in wanted.items() if name.startswith("lm_head")]
    model.decoder.lm_head.weight = nn.Parameter(torch.cat(head)[:ROWS], requires_grad=False)
    for index in range(2):
        attention = model.decoder.layers[index].self_attn  # compressed after 1/√D went into it
        folded = wanted[constant_name(f"layers.{index}.self_attn.q_proj.weight")] * small.config.text.head_dim**0.5
        folded = folded[ORDER.argsort()] if target == "ane" else folded
        print(f"{scheme} q_proj {index}: {snr(folded, attention.q_proj.weight):.3g} dB between before and after")
        attention.q_proj.weight.copy_(folded)
    engine = PackageEngine(read_build(built(scheme, target)))
    embeds = small.decoder.embed_tokens(torch.arange(24) * 7 % ROWS)
    engine.prefill(embeds[:-1].numpy())
    logits = engine.decode(embeds[-1:].numpy())
    with torch.no_grad():
        reference, plain = (m.decoder.head(m.decoder(embeds[None]))[0, -1] for m in (model, small))
    check("logits_fp16", reference, logits)
    assert snr(plain, logits) < 44  # the limit of the line above: it tells a compressed model from one that is not


def recipe(folder: Path, text: str) -> Path:
    """A recipe's file."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def compressed_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's encoder in int8, the projector in lut6, one layer in fp16; two sizes."""
    folder = tmp_path_factory.mktemp("encoder")
    text = "encoder: int8\nlayers: {encoder.projector_*: lut6, encoder.network.2.0.convffn.fc1: fp16}\n"
    return export_model(
        small_model(), folder / "build", image_sizes=(128, 64), context=CONTEXT, query_length=QUERY, only="encoder",
        quantize=recipe(folder, text),
    )  # fmt: skip


def encoder_weights(model: FastVLM, build: Path) -> dict[str, torch.Tensor]:
    """What the manifest says is compressed, made so from the graph's own weights."""
    graph = EncoderGraph(model)
    record = read_manifest(build)["compression"]["layers"]
    found = {}
    for layer, name in record.items():
        parameter = f"{layer.removeprefix('encoder.')}.weight"
        found[parameter] = dense(SCHEMES[name], compress(SCHEMES[name], graph.get_parameter(parameter)))
    return found


def test_the_encoder_is_compressed_as_the_recipe_says(compressed_encoder: Path) -> None:
    record = read_manifest(compressed_encoder)["compression"]
    package = compressed_encoder / "VisionEncoder.mlpackage"
    wanted = {constant_name(name): v for name, v in encoder_weights(small_model(), compressed_encoder).items()}
    assert functions(package) == ["encode_128", "encode_64"]
    for function in functions(package):
        found = compressed(package, function)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert np.array_equal(found[name].value, value.half().numpy()), name
        ops = Counter(SCHEMES[name].op for name in record["layers"].values())
        assert {op: op_counts(package, function)[op] for op in ops} == ops
    assert record["encoder"] == dict(Counter(record["layers"].values()))
    assert record["encoder"]["lut6"] == 2
    assert record["encoder"]["int8"] > 10
    assert "language" not in record
    assert "embeddings" not in record
    left = "network.2.0.convffn.fc1.weight"
    assert left in dict(EncoderGraph(small_model()).named_parameters())
    assert constant_name(left) not in wanted


def test_a_compressed_encoder_computes_what_its_graph_does(compressed_encoder: Path) -> None:
    model = small_model()
    graph = EncoderGraph(model).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        plain = graph(image)
        for name, value in encoder_weights(model, compressed_encoder).items():
            graph.get_parameter(name).copy_(value)
        reference = graph(image)
    found = PackageEngine(read_build(compressed_encoder)).encode_image(pixels)
    check("encoder_fp16", reference[0], found)
    assert snr(plain[0], found) < 40


@pytest.mark.long
def test_compression_makes_fewer_packages_and_none_beyond_the_limit(tmp_path: Path) -> None:
    model, limit = small_model(layers=5, vocab_size=ROWS), 210_000
    counts = {}
    for quantize in ("int8", "lut4"):
        build = export_model(model, tmp_path / quantize, quantize=quantize, max_file_size=limit, **ASKED)
        sizes = [(stage.package / WEIGHT_FILE).stat().st_size for stage in read_build(build).language]
        assert max(sizes) <= limit
        counts[quantize] = len(sizes)
        if quantize == "int8":
            ops = [op_counts(stage.package, "decode")[SCHEMES["int8"].op] for stage in read_build(build).language]
            assert sum(ops) == 5 * 7 + 4
    plan = make_plan(model.config, (), CONTEXT, QUERY, "language", "ane", limit)
    counts["fp16"] = len(chunks(model.config.text, plan, sizes_of(model.config.text, plan)))
    assert counts == {"fp16": 3, "int8": 2, "lut4": 1}


@pytest.mark.parametrize(
    ("quantize", "qkv_bias"),
    [
        *((quantize, True) for quantize in (None, "int8", "int4", "lut6")),
        *((quantize, False) for quantize in (None, "int8", "lut6")),
        pytest.param("int4", False, marks=pytest.mark.long),
    ],
)
def test_not_even_the_least_limit_is_gone_beyond(quantize: str | None, qkv_bias: bool, tmp_path: Path) -> None:
    """Tables and the zeros that stand for biases are blobs as well; with the least limit every file is full."""
    model = small_model(layers=3, vocab_size=320, qkv_bias=qkv_bias)
    asked: dict[str, Any] = {**ASKED, "quantize": quantize, "target": "gpu" if quantize == "int4" else "ane"}
    with pytest.raises(UsageError, match="--max-file-size is 1 bytes") as refused:
        export_model(model, tmp_path / "refused", max_file_size=1, **asked)
    least = int(str(refused.value).partition(" takes ")[2].partition(";")[0].replace(",", ""))
    build = export_model(model, tmp_path / "build", max_file_size=least, **asked)
    sizes = [(stage.package / WEIGHT_FILE).stat().st_size for stage in read_build(build).language]
    assert len(sizes) > 1
    assert 0.8 * least < max(sizes) <= least


def test_a_chain_of_compressed_packages_is_one_package(built: Callable[..., Path], tmp_path: Path) -> None:
    """Bit for bit; the head in packages of its own."""
    model = small_model(layers=2, vocab_size=ROWS)
    chain = export_model(model, tmp_path / "chain", quantize="lut4", max_file_size=28_000, **ASKED)
    assert [stage.state for stage in read_build(chain).language] == [True, True, False]
    engines = [PackageEngine(read_build(build)) for build in (built("lut4"), chain)]
    rows = model.decoder.embed_tokens(torch.arange(20)).numpy()
    logits = []
    for engine in engines:
        engine.prefill(rows[:-1])
        logits.append(engine.decode(rows[-1:]))
    assert np.array_equal(logits[0], logits[1])


ALL = "language: lut4\nencoder: int8\nembeddings: int8\nlayers: {language.layers.0.mlp.*: lut6}\n"


@pytest.mark.long
def test_cores_and_pieces_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole builds: on one core and four, from pieces of any length; blocks of few rows, so that there are several."""
    monkeypatch.setattr("export.compression.blocks.VALUES", 4096)
    model, made = small_model(layers=2, vocab_size=ROWS), []
    asked = {**ASKED, "only": None, "quantize": recipe(tmp_path, ALL)}
    for number, (cores, piece) in enumerate([(1, 1 << 24), (4, 400)]):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr("fastvlm_ref.checkpoint.stream.PIECE", piece)
        made.append(hash_tree(export_model(model, tmp_path / str(number), **asked)))
    assert made[0] == made[1]
    assert len(made[0]) > 6


@pytest.mark.parametrize(("scheme", "target"), [("int4", "gpu"), ("lut4", "ane"), ("int8", "ane")])
def test_tables_of_several_blocks_are_those_of_one(
    scheme: str, target: str, built: Callable[..., Path], small: FastVLM, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = hash_tree(built(scheme, target))
    monkeypatch.setattr("export.compression.blocks.VALUES", 2048)  # 32 rows
    build = export_model(small, tmp_path / "build", quantize=scheme, target=target, **ASKED)
    assert hash_tree(build) == whole


@pytest.mark.long
def test_a_streamed_checkpoint_is_compressed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"quantize": recipe(tmp_path, "language: lut6\nembeddings: int8\n"), "only": "language"}
    made = []
    for stream, piece in ((False, 1 << 24), (True, 6000)):
        monkeypatch.setattr("fastvlm_ref.checkpoint.tensors.PIECE", piece)
        build = export_model(load_checkpoint("tiny", stream=stream), tmp_path / f"{stream}{piece}", **asked)
        made.append(read_manifest(build)["files"])
    assert made[0] == made[1]


def test_a_weight_without_a_constant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter could give a constant another name: then nothing would compress it."""
    from export import package

    add = package._add_function

    def renaming(proto: Any, converted: Any, writer: Any, clamped: dict[str, int]) -> None:
        for block in converted.proto.mlProgram.functions["main"].block_specializations.values():
            for op in block.operations:
                for output in op.outputs:
                    output.name = output.name.replace("layers_1_mlp_up_proj", "other")
        add(proto, converted, writer, clamped)

    monkeypatch.setattr("export.package._add_function", renaming)
    with pytest.raises(PackageError, match=r"no constants for layers_1_mlp_up_proj_weight"):
        export_model(small_model(), tmp_path / "build", quantize="int8", **ASKED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("quantize", "part"), [("int8", "language"), ("encoder: int8\n", "encoder")])
def test_a_layer_that_no_graph_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: str, part: str
) -> None:
    """Recipes and graphs must mean the same by a name: else a layer would stay fp16, and nobody would say so."""
    asked = quantize if part == "language" else recipe(tmp_path, quantize)
    name = "decoder.layers.1.mlp.up_proj" if part == "language" else "vision_encoder.projector_0"
    layer = GraphWeight.layer.fget

    def other(weight: GraphWeight) -> str:
        return "elsewhere" if weight.name == f"{name}.weight" else layer(weight)

    monkeypatch.setattr(GraphWeight, "layer", property(other))
    with pytest.raises(PackageError, match=rf"no constants for {part}\.\S*(up_proj|projector_0)"):
        export_model(small_model(), tmp_path / "build", quantize=asked, **{**ASKED, "only": part})
    assert not (tmp_path / "build").exists()


def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("export.build.write_package", "export.api.check_weights", "export.choice.calibrate"):
        monkeypatch.setattr(step, lambda *_, **__: pytest.fail("something was made"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"quantize": "lut4", "target": "ane"}, r"lut4 cannot hold language\.lm_head: it has 300 rows"),
        (
            {"quantize": "int4", "target": "gpu", "intermediate": 80},
            "down_proj and 1 more: it has 80 inputs",
        ),
        ({"quantize": "int4"}, "int4 blocks run on gpu only"),
        ({"quantize": "int8", "max_file_size": 20_000}, "--max-file-size is 20,000 bytes"),
        ({"quantize": "lut4", "max_file_size": 5_000, "cap": 128}, "--max-file-size is 5,000 bytes"),
        ({"quantize": "mixed", "max_file_size": 5_000}, "--max-file-size is 5,000 bytes"),
    ],
)
def test_what_cannot_be_held_is_refused_before_anything_is_made(
    asked: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.chunks.HEAD_CAP", asked.pop("cap", 16_384))
    model = small_model(vocab_size=ROWS, intermediate_size=asked.pop("intermediate", 96))
    nothing_is_made(monkeypatch)
    with pytest.raises(UsageError, match=said):
        export_model(model, tmp_path / "build", **asked, **ASKED)
    assert list(tmp_path.iterdir()) == []


def test_int8_embeddings_are_codes_and_scales(built: Callable[..., Path], small: FastVLM) -> None:
    """codes (V, H), then V fp16 scales; the manifest says where, and the host multiplies."""
    build = built("int8")
    record = read_manifest(build)["embeddings"]
    offset = ROWS * 64
    assert record == {
        "file": "embeddings.bin", "rows": ROWS, "width": 64, "dtype": "int8",
        "scales": {"dtype": "float16", "offset": offset},
    }  # fmt: skip
    content = (build / "embeddings.bin").read_bytes()
    assert len(content) == offset + 2 * ROWS
    made = compress(SCHEMES["int8"], small.decoder.embed_tokens.weight)
    assert content[:offset] == made.codes.numpy().tobytes()
    assert content[offset:] == made.tables["scale"].numpy().tobytes()
    codes = np.frombuffer(content, np.int8, offset).reshape(ROWS, 64)
    scales = np.frombuffer(content, "<f2", offset=offset)
    table = EmbeddingTable(build / "embeddings.bin", ROWS, 64, "int8")
    ids = [0, 7, ROWS - 1, 7]
    wanted = (codes[ids].astype(np.float32) * scales[ids, None].astype(np.float32)).astype(np.float16)
    assert np.array_equal(table(ids), wanted)
    assert snr(small.decoder.embed_tokens.weight[ids], wanted) > 35


def test_embeddings_of_several_blocks(tmp_path: Path) -> None:
    """More rows than are compressed at a time: the scales of all blocks follow all codes."""
    model = small_model(layers=1, vocab_size=5000)
    build = export_model(model, tmp_path / "build", quantize="int8", **ASKED)
    table = EmbeddingTable(build / "embeddings.bin", 5000, 64, "int8")
    made = dense(SCHEMES["int8"], compress(SCHEMES["int8"], model.decoder.embed_tokens.weight))
    assert np.array_equal(table(range(5000)), made.half().numpy())


@pytest.mark.parametrize("missing", [-1, 1, 2 * ROWS])
def test_embeddings_of_another_size_are_refused(missing: int, built: Callable[..., Path], tmp_path: Path) -> None:
    content = (built("int8") / "embeddings.bin").read_bytes()
    size = len(content) - missing
    (tmp_path / "embeddings.bin").write_bytes((content + b"\0")[:size])
    with pytest.raises(BuildError, match=rf"expected 19800 bytes for 300 rows of 64 int8, found {size} bytes"):
        EmbeddingTable(tmp_path / "embeddings.bin", ROWS, 64, "int8")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"scales": {"dtype": "float16", "offset": ROWS * 64 + 2}},
            "scales.offset is 19202, expected 19200",
        ),
        (
            {"scales": {"dtype": "float32", "offset": ROWS * 64}},
            "scales.dtype is 'float32', expected float16",
        ),
        ({"scales": None}, "embeddings.scales.dtype is nothing"),
        ({"dtype": "int4"}, "embeddings.dtype is 'int4', expected float16 or int8"),
    ],
)
def test_a_manifest_that_places_the_scales_elsewhere_is_refused(
    changed: dict[str, Any], said: str, built: Callable[..., Path], tmp_path: Path
) -> None:
    """A host that reads them where the manifest says would compute something else."""
    manifest = read_manifest(built("int8"))
    write_manifest(tmp_path / "manifest.json", manifest | {"embeddings": manifest["embeddings"] | changed})
    with pytest.raises(BuildError, match=said):
        read_build(tmp_path)


@pytest.mark.parametrize("scheme", ["int8", "lut4"])
def test_what_fp16_cannot_hold_is_clamped_and_told_under_compression(scheme: str, tmp_path: Path, heard: Any) -> None:
    model = small_model(layers=2, vocab_size=ROWS, tied_head=False)
    model.decoder.layers[1].self_attn.k_proj.weight[0, :2] = torch.tensor([1e6, -1e6])
    model.decoder.embed_tokens.weight[299, 3] = 1e6
    build = export_model(model, tmp_path / "build", quantize=scheme, progress=heard, **ASKED)
    names = {"decoder.layers.1.self_attn.k_proj.weight": 2, "decoder.embed_tokens.weight": 1}
    assert read_manifest(build)["saturated"] == names
    assert {note for note in heard.notes if "65,504" in note} == {
        f"{name}: {count} values beyond 65,504 were clamped to what fp16 can hold" for name, count in names.items()
    }
    assert any("4-bit palettes" in note for note in heard.notes) == (scheme == "lut4")
    found = compressed(build / LANGUAGE, "decode")[constant_name("layers.1.self_attn.k_proj.weight")].value
    assert np.isfinite(found).all()
    assert found[0, 0] == -found[0, 1] > 65_000
    table = EmbeddingTable(build / "embeddings.bin", ROWS, 64, "int8")
    assert np.isfinite(table(range(ROWS))).all()
    assert table([299])[0, 3] > 65_000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layers.1.mlp.down_proj", "embed_tokens"])
def test_a_weight_that_is_no_number_is_refused_under_compression(value: float, name: str, tmp_path: Path) -> None:
    model = small_model(layers=2, vocab_size=ROWS, tied_head=False)
    model.decoder.get_submodule(name).weight[5, 2] = value
    with pytest.raises(TensorError, match=rf"decoder\.{name}\.weight holds NaN or infinity"):
        export_model(model, tmp_path / "build", quantize="lut4", **ASKED)
    assert list(tmp_path.iterdir()) == []


def test_what_is_asked_for_in_vain_is_told(tmp_path: Path, heard: Any, tiny: Path) -> None:
    model = small_model()
    asked = {**ASKED, "only": "encoder", "quantize": "int8", "calibration": tiny / "pictures"}
    build = export_model(model, tmp_path / "build", protection=PROTECTED, progress=heard, **asked)
    assert heard.notes == [
        "--calibration changes nothing here: language models of int4, lut4 and mixed are measured on pictures",
        "--quantize int8 leaves the encoder fp16; a recipe that says `encoder: int8` does not",
    ]
    assert read_manifest(build)["compression"]["encoder"] == {}


def test_keys_tell_what_a_part_depends_on() -> None:
    """Another scheme or importance makes the language model anew, and leaves the encoder; the other way round too."""
    model = small_model()
    plan = make_plan(model.config, (), CONTEXT, QUERY)
    base = replace(intended(model, plan, "int8"), importance={"language.lm_head": torch.ones(64)})
    lut = {**base.schemes, "language.lm_head": SCHEMES["lut4"]}
    changes = {
        "a scheme": (replace(base, schemes=lut), True, False),
        "an importance": (replace(base, importance={"language.lm_head": torch.full((64,), 2.0)}), True, False),
        "no importance": (replace(base, importance={}), True, False),
        "a layer of the encoder": (
            replace(base, schemes={**base.schemes, "encoder.projector_0": SCHEMES["int8"]}), False, True
        ),
        "its name": (replace(base, name="recipe"), False, False),
    }  # fmt: skip
    for what, (changed, language, encoder) in changes.items():
        assert (changed.key("language") != base.key("language")) == language, what
        assert (changed.key("encoder") != base.key("encoder")) == encoder, what
