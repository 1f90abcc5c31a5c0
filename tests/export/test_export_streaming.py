"""What is converted with stand-ins and made whole equals the direct route, op for op and weight for weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_limits import check
from small_export import CONTEXT, QUERY, sizes_of, small_model, use_all_passes

from export.api import export_model
from export.choice import Compression
from export.chunks import Chunk, chunks, head_split
from export.compression.schemes import SCHEMES
from export.contract import FunctionSpec, encoder_functions, language_functions
from export.convert import Converted, constant_name, converted, trace
from export.decoder import filled
from export.decoder_weights import decoder_weight
from export.encoder import EncoderGraph
from export.language import LanguageConverter, chunk_weight, graph_of, whole_sizes
from export.layout import GraphSizes
from export.names import rename
from export.package import Labels, blobs, write_package
from export.parameters import graph_weights
from export.plan import ExportPlan
from export.postcheck import operations
from export.protection import PROTECTED, Protection
from export.repeat import repeat_layers
from export.standin import stand_in
from export.vision import converted_encoder
from fastvlm.build import read_build
from fastvlm.errors import PackageError, TensorError
from fastvlm.manifest import read_manifest
from fastvlm_ref.checkpoint import load_checkpoint
from validation.engine import PackageEngine
from validation.mil.blob import BlobFile
from validation.mil.dtypes import BY_NAME
from validation.mil.package import open_package

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
LABELS = Labels("text", "author", "licence", "version")
SIZES: dict[str, dict[str, Any]] = {
    "one layer": {"layers": 1},
    "four layers, as converted": {"layers": 4},
    "Llama, one head for each query": {"layers": 5, "qkv_bias": False, "kv_heads": 4},
    "six layers, and sizes that stand for others elsewhere": {
        "layers": 6, "vocab_size": 211, "intermediate_size": 223, "tied_head": False,
    },
}  # fmt: skip

# what "four layers" and the chain of five below show as well
LONG = SIZES.keys() - {"four layers, as converted"}


@contextmanager
def streamed(decoder: Any, plan: ExportPlan) -> Iterator[Any]:
    """How export converts: with stand-ins."""
    with LanguageConverter(decoder, plan) as converter:
        yield converter.convert


@contextmanager
def direct(decoder: Any, plan: ExportPlan) -> Iterator[Any]:
    """The whole graph with its own weights through coremltools."""
    split, whole = head_split(decoder.config, plan.target), whole_sizes(decoder, plan)

    def convert(chunk: Chunk, spec: FunctionSpec) -> Converted:
        text = replace(decoder.config, layers=chunk.layers, tied_head=False)
        sizes = replace(whole, text=text, query=spec.inputs[0].shape[1], first=chunk.number == 1)
        graph = filled(
            graph_of(sizes, plan.target, spec, chunk, split),
            lambda name: chunk_weight(decoder, whole, plan.target, chunk, split, name),
        )
        shapes = tuple(tensor.shape for tensor in spec.inputs if tensor.dtype == "float16")
        weights = {constant_name(name): weight for name, weight in graph_weights(graph, "decoder").items()}
        function = opened.enter_context(converted(trace(graph, shapes, position=bool(chunk.layers)), spec))
        return replace(function, parameters=weights)

    with ExitStack() as opened:
        yield convert


def direct_encoder(
    model: Any, specs: tuple[FunctionSpec, ...], protection: Protection = PROTECTED
) -> Iterator[Converted]:
    """The encoder with its own weights through coremltools, once for each size."""
    graph = EncoderGraph(model, protection)
    weights = {constant_name(name): weight for name, weight in graph_weights(graph, "vision_encoder").items()}
    for spec in specs:
        with converted(trace(graph, (spec.inputs[0].shape,)), spec) as function:
            yield replace(function, parameters=weights)


def written(
    route: Any, model: Any, folder: Path, context: int = CONTEXT, query: int = QUERY, **asked: Any
) -> list[Path]:
    """Every package of the language model, written by a route; `asked`: target and largest file."""
    plan = ExportPlan((64,), context, query, **asked)
    text, packages = model.config.text, []
    with route(model.decoder, plan) as convert:
        for chunk in chunks(text, plan, sizes_of(text, plan)):
            specs = language_functions(text, plan, chunk, head_split(text, plan.target))
            write_package(folder / chunk.package, (convert(chunk, spec) for spec in specs), "decode", LABELS)
            packages.append(folder / chunk.package)
    return packages


def programs(package: Path) -> dict[str, tuple[bytes, list[tuple[str, bytes]]]]:
    """Function -> its protobuf without places in the weight file, and every stored constant by name."""
    opened = open_package(package)
    file = BlobFile(package / WEIGHTS)
    found = {}
    for name, function in opened.program.functions.items():
        constants = []
        for op, value in [(each, value) for each in operations(function) for value in blobs(each)]:
            shape = tuple(dimension.constant.size for dimension in op.outputs[0].type.tensorType.dimensions)
            stored = file.read(value.offset, BY_NAME["fp16"], shape)
            constants.append((op.outputs[0].name, stored.tobytes()))
            value.offset = 0
        found[name] = (function.SerializeToString(deterministic=True), constants)
    return found


def check_same(model: Any, folder: Path, **asked: Any) -> list[Path]:
    ours = written(streamed, model, folder / "streamed", **asked)
    stock = written(direct, model, folder / "direct", **asked)
    for one, other in zip(ours, stock, strict=True):
        check_same_package(one, other)
    return ours


def check_same_package(streamed: Path, whole: Path) -> None:
    one, other = programs(streamed), programs(whole)
    assert one.keys() == other.keys()
    assert one
    for name in one:
        assert [constant for constant, _ in one[name][1]] == [constant for constant, _ in other[name][1]]
        assert one[name][1] == other[name][1]
        assert one[name][0] == other[name][0]
    assert (streamed / WEIGHTS).stat().st_size == (whole / WEIGHTS).stat().st_size


@pytest.mark.parametrize(
    "sizes", [pytest.param(sizes, marks=[pytest.mark.long] * (name in LONG), id=name) for name, sizes in SIZES.items()]
)
def test_programs_and_weights_are_those_of_the_direct_route(sizes: dict[str, Any], tmp_path: Path) -> None:
    (package,) = check_same(small_model(**sizes), tmp_path)
    assert sorted(programs(package)) == ["decode", "prefill"]


@pytest.mark.parametrize(
    ("layers", "limit", "packages"),
    [pytest.param(7, 600_000, 2, marks=pytest.mark.long), pytest.param(5, 210_000, 5, marks=pytest.mark.long)],
)
def test_chains_are_those_of_the_direct_route(
    layers: int, limit: int, packages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers and parts of the head in packages of their own; a head that is larger than a file in two of them."""
    monkeypatch.setattr("export.chunks.HEAD_CAP", 1000)
    model = small_model(layers=layers, vocab_size=3001 if packages == 5 else 1100)
    assert len(check_same(model, tmp_path, max_file_size=limit)) == packages


@pytest.mark.parametrize(("scale", "sizes"), [(None, (192, 64)), (1e-5, (64,))])
def test_encoder_programs_and_weights_are_those_of_the_direct_route(
    scale: float | None, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    """Two sizes of one conversion; with layer scales that stay ops of their own, and with folded ones."""
    model = small_model()
    if scale is not None:
        for name, value in model.named_parameters():
            if "layer_scale" in name:
                value.fill_(scale)
    specs = encoder_functions(model.config.vision, 64, ExportPlan(sizes, CONTEXT, QUERY))
    streamed, whole = tmp_path / "streamed", tmp_path / "direct"
    write_package(streamed, converted_encoder(model, specs), specs[0].name, LABELS)
    write_package(whole, direct_encoder(model, specs), specs[0].name, LABELS)
    check_same_package(streamed, whole)


@pytest.mark.long
def test_the_passes_left_out_would_change_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of coremltools' passes but the two that would merge or fold what stands in for weights."""
    plan = ExportPlan((64,), CONTEXT, QUERY)

    def ops() -> list[list[tuple[str, str]]]:
        found = []
        with (
            LanguageConverter(model.decoder, plan) as converter,
            closing(converted_encoder(model, encoder_functions(model.config.vision, 64, plan))) as encoders,
        ):
            (chunk,) = chunks(model.config.text, plan, sizes_of(model.config.text, plan))
            for function in (converter.convert(chunk, converter.functions(chunk)[1]), next(encoders)):
                rename(function.proto.mlProgram.functions["main"])
                found.append([(op.type, str(op)) for op in operations(function.proto.mlProgram.functions["main"])])
        return found

    ours = ops()
    use_all_passes(monkeypatch)
    assert ours == ops()


def test_the_whole_gives_what_the_reference_gives(tmp_path: Path) -> None:
    """Numbers, not only bytes: seven layers, prefilled in chunks, then decoded."""
    model = small_model(layers=7)
    build = export_model(model, tmp_path / "build", context=CONTEXT, query_length=QUERY, only="language")
    engine = PackageEngine(read_build(build))
    embeds = model.decoder.embed_tokens(torch.arange(24) * 7 % model.config.text.vocab_size)
    engine.prefill(embeds[:-1].numpy())
    with torch.no_grad():
        reference = model.decoder.head(model.decoder(embeds[None]))[0, -1]
    check("logits_fp16", reference, engine.decode(embeds[-1:].numpy()))


def converted_block(model: Any) -> tuple[Any, int]:
    """The block of `prefill` of four layers with stand-ins, and the row that marks its layer 2."""
    small = stand_in(model.config.text, QUERY, CONTEXT)
    plan = ExportPlan((64,), CONTEXT, QUERY)
    (chunk,) = chunks(model.config.text, plan, sizes_of(model.config.text, plan))
    with LanguageConverter(model.decoder, plan) as converter:
        function = converter.convert(chunk, converter.functions(chunk)[0])
        (block,) = function.proto.mlProgram.functions["main"].block_specializations.values()
    return block, small.rows[2]


def drop_op(operations: list[Any]) -> None:
    names = [op.outputs[0].name if op.outputs else "" for op in operations]
    del operations[names.index("layers_2_mlp_up_proj_weight_to_fp16") - 1]


def read_elsewhere(operations: list[Any]) -> None:
    op = next(op for op in operations if op.type == "silu" and operations.index(op) > len(operations) // 2)
    op.inputs["x"].arguments[0].name = "inputsEmbeds"


def change_a_constant(operations: list[Any]) -> None:
    """Where layer 2 splits its heads; the op itself stays the same."""
    names = [op.outputs[0].name if op.outputs else "" for op in operations]
    start = names.index("layers_1_mlp_down_proj_weight_to_fp16")
    op = next(op for op in operations[start:] if op.type == "const" and "split_sizes" in op.outputs[0].name)
    op.attributes["val"].immediateValue.tensor.ints.values[0] += 1


def rename_weights(operations: list[Any]) -> None:
    for op in operations:
        for output in op.outputs:
            output.name = output.name.replace("layers_2_", "others_2_")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_op, "their ops differ"),
        (read_elsewhere, "a silu reads"),
        (change_a_constant, "a const of one differs"),
        (rename_weights, "no weight of layer 2 was found"),
    ],
)
def test_layers_that_are_not_alike_are_refused(damage: Any, said: str) -> None:
    block, row = converted_block(small_model(layers=4))
    operations = list(block.operations)
    damage(operations)
    del block.operations[:]
    block.operations.extend(operations)
    with pytest.raises(PackageError, match=said):
        repeat_layers(block, 9, row)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_leaves_nothing(value: float, tmp_path: Path) -> None:
    model = small_model(layers=5)
    model.decoder.layers[3].mlp.up_proj.weight[1, 2] = value
    with pytest.raises(TensorError, match=r"decoder\.layers\.3\.mlp\.up_proj\.weight holds NaN or infinity"):
        export_model(model, tmp_path / "build", context=CONTEXT, query_length=QUERY, only="language")
    assert list(tmp_path.iterdir()) == []


def test_what_fp16_cannot_hold_is_clamped_and_told(tmp_path: Path, heard: Any) -> None:
    model = small_model(layers=5)
    model.decoder.layers[4].self_attn.k_proj.weight[0, :2] = torch.tensor([1e6, -1e6])
    build = export_model(
        model,
        tmp_path / "build",
        context=CONTEXT,
        query_length=QUERY,
        only="language",
        protection=PROTECTED,
        progress=heard,
    )
    name = "decoder.layers.4.self_attn.k_proj.weight"
    located, clamped = heard.notes
    assert located.startswith(f"{name} holds numbers beyond fp16 (2 of 4,096 values, the first at flat index 0)")
    assert clamped == f"{name}: 2 values beyond 65,504 were clamped to what fp16 can hold"
    assert read_manifest(build)["saturated"] == {name: 2}


@pytest.mark.parametrize("target", [pytest.param("ane", marks=pytest.mark.long), "gpu"])
def test_keys_that_lose_their_bias(tmp_path: Path, target: str) -> None:
    """Every layer reads its own constants, though all are multiplied with the same tables of angles."""
    model = small_model(layers=5)
    for index, layer in enumerate(model.decoder.layers):
        layer.self_attn.k_proj.bias.data.view(2, 32)[:, 12::16] = 100.0 + index
    check_same(model, tmp_path, target=target)


def test_a_parameter_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = small_model()

    @contextmanager
    def other(decoder: Any, plan: ExportPlan) -> Iterator[Any]:
        with streamed(decoder, plan) as convert:
            yield lambda chunk, spec: misshapen(convert(chunk, spec))

    def misshapen(function: Converted) -> Converted:
        name = constant_name("layers.0.self_attn.o_proj.weight")
        changed = replace(function.parameters[name], shape=(64, 63))
        return replace(function, parameters={**function.parameters, name: changed})

    with pytest.raises(PackageError, match=r"o_proj.weight of shape \[64, 128, 1, 1\], expected \[64, 63\]"):
        written(other, model, tmp_path / "package")


def test_a_streamed_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    builds = [
        export_model(load_checkpoint("tiny", stream=stream), tmp_path / str(stream), only="language")
        for stream in (False, True)
    ]
    one, other = (read_manifest(build)["files"] for build in builds)
    assert one == other


@pytest.mark.parametrize("target", ["ane", "gpu"])
def test_pieces_add_up(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """What is folded piece by piece is what numpy makes of whole tensors; pieces end anywhere."""
    model = small_model(heads=6)  # groups of three
    text, decoder = model.config.text, model.decoder
    protection = Protection(residual=1, scores=2, mlp=(0, 3), values=(4,))
    sizes = GraphSizes(text, QUERY, CONTEXT, protection)
    monkeypatch.setattr("fastvlm_ref.checkpoint.stream.PIECE", 404)
    order = np.arange(6 * 32).reshape(2, 3, 32).transpose(0, 2, 1).reshape(-1) if target == "ane" else slice(None)
    factors = {
        "layers.0.self_attn.q_proj.weight": np.float32(32**-0.5 / 4), "layers.1.self_attn.q_proj.bias": 32**-0.5 / 4,
        "layers.0.self_attn.v_proj.weight": 1 / 16, "layers.1.self_attn.v_proj.weight": 1.0,
        "layers.0.self_attn.o_proj.weight": 8.0, "layers.1.mlp.up_proj.weight": 1 / 8,
        "layers.1.mlp.down_proj.weight": 4.0, "layers.0.mlp.down_proj.weight": 0.5, "norm.weight": 1.0,
        "lm_head.weight": 1.0, "layers.0.mlp.gate_proj.weight": 1.0,
    }  # fmt: skip
    for name, factor in factors.items():
        weight = decoder_weight(decoder, name, sizes, target)
        whole = decoder.get_parameter(name).numpy() * np.float32(factor)
        if "q_proj" in name:
            whole = whole[order]
        elif "o_proj" in name:
            whole = whole[:, order]
        elif "norm" in name:
            whole = np.tile(whole, 2) if target == "gpu" else whole[None, :, None, None]
        if target == "ane" and whole.ndim == 2:
            whole = whole[:, :, None, None]
        halves = np.frombuffer(b"".join(weight.halves({})), np.float16)
        assert weight.shape == whole.shape, name
        assert np.array_equal(halves, whole.astype(np.float16).reshape(-1)), name


def test_importance_follows_the_columns() -> None:
    """What o_proj's columns weigh comes in their order, which for the Neural Engine is not the checkpoint's."""
    model = small_model(heads=6)
    sizes = GraphSizes(model.config.text, QUERY, CONTEXT)
    name = "layers.0.self_attn.o_proj.weight"
    importance = torch.arange(6 * 32).float()
    scheme = SCHEMES["int4"]
    layer = "language.layers.0.self_attn.o_proj"
    compression = Compression(schemes={layer: scheme}, importance={layer: importance})
    found = {
        target: compression.of(decoder_weight(model.decoder, name, sizes, target)).importance
        for target in ("ane", "gpu")
    }
    assert found["gpu"].equal(importance)
    assert found["ane"].equal(importance.view(2, 3, 32).transpose(1, 2).reshape(-1))
