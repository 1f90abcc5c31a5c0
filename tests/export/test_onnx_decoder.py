"""LanguageModel.onnx beside the PyTorch model: every variant, calls cut anywhere, buffers in place, planted faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper
from onnx_language_runs import (
    CONTEXT,
    LIMITS,
    Runner,
    check,
    embeds,
    inferred,
    models,
    read,
    reference,
    session,
    write,
)

from export.onnx.graph import MICROSOFT, OPSET
from export.onnx.language import FILE, language_function
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.kv_cache import KVCache

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES, VARIANTS = ("tiny", "qwen2", "vicuna"), ("fp32", "fp16", "int8", "int4")
PROMPT, LENGTH = 24, 40
ENDS = (PROMPT, *range(PROMPT + 1, LENGTH + 1))  # one prefill, then row by row


@pytest.fixture(scope="module")
def references(tiny_model: Any) -> dict[str, Any]:
    """Name -> the PyTorch model."""
    return models(tiny_model)


@pytest.fixture(scope="module")
def written(references: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Name and variant -> the file, written when it is first asked for."""
    folder, known = tmp_path_factory.mktemp("onnx"), {}

    def path(name: str, variant: str) -> Path:
        if (name, variant) not in known:
            known[name, variant] = write(references[name].decoder, folder / name / variant, variant)
        return known[name, variant]

    return path


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_logits(written: Any, references: dict[str, Any], name: str, variant: str) -> None:
    decoder = references[name].decoder
    rows = embeds(decoder, LENGTH)
    found = Runner(written(name, variant), decoder.config).parts(rows, ENDS)
    row = f"{'tiny' if name == 'tiny' else 'small'}_{variant}"
    check(row, reference(decoder, rows)[PROMPT - 1 :], found, name)


@pytest.mark.parametrize("variant", ["int8", "int4"])
def test_logits_of_trained_weights_in_few_bits(written: Any, tiny_model: Any, variant: str) -> None:
    rows = embeds(tiny_model.decoder, LENGTH)
    found = Runner(written("tiny", variant), tiny_model.config.text).parts(rows, ENDS)
    check(f"tiny_{variant}", reference(tiny_model.decoder, rows)[PROMPT - 1 :], found)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_calls_may_be_cut_anywhere(written: Any, references: dict[str, Any], name: str, variant: str) -> None:
    """A prompt in one call, in three behind each other, and row by row."""
    decoder = references[name].decoder
    rows = embeds(decoder, LENGTH)
    whole = Runner(written(name, variant), decoder.config).parts(rows, [PROMPT, LENGTH])
    row = "parts_codes" if variant.startswith("int") else f"parts_{variant}"
    for ends in ([7, PROMPT, 31, LENGTH], range(1, LENGTH + 1)):
        found = dict(zip(ends, Runner(written(name, variant), decoder.config).parts(rows, list(ends)), strict=True))
        check(row, whole, np.stack([found[PROMPT], found[LENGTH]]), f"{name} {variant}")


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
def test_the_last_position_of_the_context(written: Any, references: dict[str, Any], variant: str) -> None:
    decoder = references["qwen2"].decoder
    rows = embeds(decoder, CONTEXT)
    found = Runner(written("qwen2", variant), decoder.config).parts(rows, [CONTEXT - 1, CONTEXT])
    check(f"small_{variant}", reference(decoder, rows)[-2:], found)


# --- the cache is written in place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
def test_new_rows_are_written_into_the_bound_buffers(written: Any, references: dict[str, Any], variant: str) -> None:
    """The buffers are numpy's own memory: what is in them was written there, and nothing else was touched."""
    decoder = references["qwen2"].decoder
    rows, cache = embeds(decoder, LENGTH), KVCache(decoder.config, CONTEXT)
    runner = Runner(written("qwen2", variant), decoder.config, fill=7.0)
    runner(rows[:PROMPT], 0)
    before = {name: array.copy() for name, array in runner.caches.items()}
    runner(rows[PROMPT : PROMPT + 1], PROMPT)
    with torch.no_grad():
        decoder(torch.from_numpy(rows[None, : PROMPT + 1]), cache)
    for name, array in runner.caches.items():
        kind, layer = name.split(".")
        assert (array[:, :, PROMPT + 1 :] == 7.0).all()
        assert np.array_equal(array[:, :, :PROMPT], before[name][:, :, :PROMPT])
        assert (before[name][:, :, PROMPT:] == 7.0).all()
        wanted = (cache.keys if kind == "Keys" else cache.values)[int(layer), :, :, : PROMPT + 1]
        check(f"small_{variant}", wanted, array[:, :, : PROMPT + 1], name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_lies_behind_is_never_read(written: Any, references: dict[str, Any], variant: str) -> None:
    """NaN in every row that is not filled changes nothing: a buffer of an earlier conversation may be used again."""
    decoder = references["qwen2"].decoder
    rows = embeds(decoder, PROMPT + 2)
    clean, dirty = (
        Runner(written("qwen2", variant), decoder.config, fill=fill).parts(rows, [PROMPT, PROMPT + 2])
        for fill in (0.0, np.nan)
    )
    assert np.array_equal(clean, dirty)


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_checker_and_strict_inference(written: Any, name: str, variant: str) -> None:
    path = written(name, variant)
    onnx.checker.check_model(str(path), full_check=True)
    model = read(path)
    assert unknown(model) == []
    made = {output for node in model.graph.node for output in node.output}
    assert {value.name for value in model.graph.value_info} < made


def unknown(model: ModelProto) -> list[str]:
    """Values of which onnx knows no type."""
    graph = inferred(model).graph
    known = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    return [output for node in graph.node for output in node.output if output and output not in known]


def test_onnx_alone_would_not_know_them(written: Any) -> None:
    model = read(written("qwen2", "fp32"))
    del model.graph.value_info[:]
    assert len(unknown(model)) > len(model.graph.node) // 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_types_and_shapes_are_what_comes_out(written: Any, references: dict[str, Any], variant: str) -> None:
    """Also those that this project states, because onnx does not know the ops of onnxruntime."""
    text = references["qwen2"].config.text
    wrong = wrong_shapes(inferred(read(written("qwen2", variant))), written("qwen2", variant), text)
    assert wrong == []


def test_a_wrong_shape_would_be_seen(written: Any, references: dict[str, Any]) -> None:
    path = written("qwen2", "fp32")
    model = inferred(read(path))
    value = next(value for value in model.graph.value_info if value.name.endswith("/mixed"))
    value.type.tensor_type.shape.dim[2].dim_value += 1
    assert wrong_shapes(model, path, references["qwen2"].config.text) == [value.name]


def wrong_shapes(model: ModelProto, path: Path, text: Any) -> list[str]:
    """Values whose stated dtype or shape is not that of what onnxruntime computes; five rows at position 0."""
    values = {value.name: value for value in model.graph.value_info}
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(values.values())
    del shown.graph.value_info[:]
    for output in shown.graph.output:
        output.type.tensor_type.ClearField("shape")
    probe = path.with_name("probe.onnx")
    probe.write_bytes(shown.SerializeToString())
    floats = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    cache = np.zeros((1, text.kv_heads, CONTEXT, text.head_dim), floats)
    feed: dict[str, Any] = {value.name: cache for value in model.graph.input if value.name.startswith("past")}
    feed |= {"inputsEmbeds": np.ones((1, 5, text.hidden_size), floats), "seqlensK": np.array([4], np.int32)}
    feed["totalSequenceLength"] = np.array(5, np.int32)
    found = dict(zip(values, session(probe).run(list(values), feed), strict=True))
    probe.unlink()
    return [name for name, value in values.items() if not fits(value.type.tensor_type, found[name])]


def fits(kind: Any, found: np.ndarray) -> bool:
    lengths = [dim.dim_value if dim.HasField("dim_value") else 5 for dim in kind.shape.dim]
    return helper.tensor_dtype_to_np_dtype(kind.elem_type) == found.dtype and lengths == list(found.shape)


def test_a_streamed_checkpoint_gives_the_same_bytes(written: Any, tmp_path: Path) -> None:
    """And no weight of it is left in memory."""
    streamed = load_checkpoint("tiny", stream=True)
    for variant in VARIANTS:
        again = write(streamed.decoder, tmp_path / variant, variant)
        for suffix in ("", ".data"):
            one, other = (path.with_name(path.name + suffix) for path in (written("tiny", variant), again))
            assert one.read_bytes() == other.read_bytes()
    assert {weight.device.type for weight in streamed.decoder.layers.parameters()} == {"meta"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_and_opsets(written: Any, variant: str) -> None:
    path = written("tiny", variant)
    model = read(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [FILE, f"{FILE}.data"]
    assert {each.domain: each.version for each in model.opset_import} == {"": OPSET, MICROSOFT: 1}
    places = {
        place.value for each in model.graph.initializer for place in each.external_data if place.key == "location"
    }
    assert places == {f"{FILE}.data"}
    assert {each.key: each.value for each in model.metadata_props} == {"variant": variant, "context": str(CONTEXT)}


def test_weights_are_called_as_in_the_checkpoint(written: Any, references: dict[str, Any]) -> None:
    for name in NAMES:
        known = {name for name, _ in references[name].decoder.named_parameters(remove_duplicate=False)}
        found = {each.name for each in read(written(name, "fp32")).graph.initializer}
        assert {each for each in found if not each.startswith(("const/", "rotary."))} == known - {"embed_tokens.weight"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["qwen2", "vicuna"])
def test_the_file_is_what_the_contract_says(
    written: Any, references: dict[str, Any], name: str, variant: str
) -> None:  # fmt: skip
    spec = language_function(references[name].config.text, CONTEXT, variant)
    graph = read(written(name, variant)).graph
    for wanted, found in ((spec.inputs, graph.input), (spec.outputs, graph.output)):
        ports = {}
        for value in found:
            kind = value.type.tensor_type
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
            ports[value.name] = (shape, helper.tensor_dtype_to_np_dtype(kind.elem_type).name)
        assert {each.name: (each.shape, each.dtype) for each in wanted} == ports


# --- planted faults ---------------------------------------------------------------------------------------------------


def swap_inputs(model: ModelProto, first: str, second: str) -> None:
    """Reads either weight where the other is read."""
    other = {first: second, second: first}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = other.get(name, name)


def nodes(model: ModelProto, kind: str) -> list[Any]:
    return [node for node in model.graph.node if node.op_type == kind]


def set_attribute(model: ModelProto, kind: str, which: int, **values: Any) -> None:
    node = nodes(model, kind)[which]
    kept = [each for each in node.attribute if each.name not in values]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])


def read_elsewhere(model: ModelProto, kind: str, which: int, place: int, source: str) -> None:
    nodes(model, kind)[which].input[place] = source


def gather_the_first_row(model: ModelProto) -> None:
    name = nodes(model, "Gather")[0].input[1]
    index = next(each for each in model.graph.initializer if each.name == name)
    index.raw_data = bytes(8)


FAULTS: dict[str, Callable[[ModelProto], None]] = {
    "gate and up swapped": lambda model: swap_inputs(
        model, "layers.1.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight"
    ),
    "layers swapped": lambda model: swap_inputs(
        model, "layers.0.self_attn.o_proj.weight", "layers.1.self_attn.o_proj.weight"
    ),
    "norms swapped": lambda model: swap_inputs(
        model, "layers.1.input_layernorm.weight", "layers.1.post_attention_layernorm.weight"
    ),
    "not rotated": lambda model: set_attribute(model, "GroupQueryAttention", 1, do_rotary=0),
    "pairs side by side": lambda model: set_attribute(model, "GroupQueryAttention", 1, rotary_interleaved=1),
    "another scale": lambda model: set_attribute(model, "GroupQueryAttention", 1, scale=0.5),
    "a window": lambda model: set_attribute(model, "GroupQueryAttention", 1, local_window_size=8),
    "cosine for sine": lambda model: swap_inputs(model, "rotary.cos", "rotary.sin"),
    "eps": lambda model: set_attribute(model, "SkipSimplifiedLayerNormalization", 0, epsilon=1e-2),
    "a lost sum": lambda model: read_elsewhere(
        model, "SkipSimplifiedLayerNormalization", 2, 0, "layers.0.post_attention_layernorm/sum"
    ),
    "no silu": lambda model: read_elsewhere(model, "Sigmoid", 1, 0, nodes(model, "Sigmoid")[0].input[0]),
    "the first row": gather_the_first_row,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults(written: Any, references: dict[str, Any], tmp_path: Path, fault: str) -> None:
    decoder = references["qwen2"].decoder
    source = written("qwen2", "fp32")
    model = read(source)
    FAULTS[fault](model)
    (tmp_path / FILE).write_bytes(model.SerializeToString())
    (tmp_path / f"{FILE}.data").hardlink_to(source.with_name(f"{FILE}.data"))
    rows = embeds(decoder, LENGTH)
    found = Runner(tmp_path / FILE, decoder.config).parts(rows, ENDS)
    check("planted_fault", reference(decoder, rows)[PROMPT - 1 :], found, fault)


def test_a_wrong_position_shows(written: Any, references: dict[str, Any]) -> None:
    decoder = references["qwen2"].decoder
    rows, runner = embeds(decoder, PROMPT + 1), Runner(written("qwen2", "fp32"), decoder.config)
    runner(rows[:PROMPT], 0)
    found = runner(rows[PROMPT:], PROMPT, last=PROMPT - 1)
    check("planted_fault", reference(decoder, rows)[PROMPT], found)


def test_faults_lose_more_than_any_limit_of_floats_allows() -> None:
    floats = [limit.limit for name, limit in LIMITS.items() if name.endswith("_fp32")]
    assert LIMITS["planted_fault"].limit < min(floats) - 40
