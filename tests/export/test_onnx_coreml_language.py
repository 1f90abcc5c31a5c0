"""The language model for onnxruntime's CoreML provider: every node is one that it documents, and the logits agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from coreml_ep_rules import LARGEST_AXIS, largest_axis, refused
from onnx import ModelProto, TensorProto, helper
from onnx_language_runs import SMALL, FixedHost, check, embeds, read, reference, snr, write
from small_export import small_model
from torch import nn

from export.chunks import HEAD_CAP
from export.onnx.coreml_ep import DECODE, PREFILL, check_coreml, coreml_functions, write_coreml_language
from export.onnx.coreml_layers import CoremlWriter
from export.onnx.data import DataFile
from export.onnx.encoder import COREML_OPSET
from export.protection import PROTECTED, Protection
from fastvlm.errors import UsageError
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.synthetic.sizes import SIZES

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT, QUERY, PROMPT, LENGTH = 96, 16, 24, 30
FILES = (DECODE, PREFILL)
EXPONENTS = Protection(residual=3, scores=2, mlp=(0, 4), values=(1,))


def files(decoder: Decoder, folder: Path, variant: str = "fp32", protection: Protection = PROTECTED) -> Path:
    """Writes both files into a new folder, which it returns."""
    folder.mkdir(parents=True)
    write_coreml_language(decoder, folder, CONTEXT, QUERY, variant, protection)
    return folder


@pytest.fixture(scope="module")
def written(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Decoder]]:
    """Name and variant -> a folder of files and the decoder behind it."""
    folder, known = tmp_path_factory.mktemp("coreml"), {}
    decoders = {"tiny": tiny_model.decoder} | {name: small_model(**sizes).decoder for name, sizes in SMALL.items()}

    def of(name: str, variant: str) -> tuple[Path, Decoder]:
        if (name, variant) not in known:
            known[name, variant] = files(decoders[name], folder / name / variant, variant), decoders[name]
        return known[name, variant]

    return of


def logits(folder: Path, decoder: Decoder, host: type[FixedHost] = FixedHost) -> tuple[np.ndarray, np.ndarray]:
    """The reference's and the files': a prompt in two calls, the second padded, then row by row."""
    rows = embeds(decoder, LENGTH)
    app = host(folder, decoder.config, CONTEXT, QUERY)
    app.prefill(rows[: PROMPT - 1])
    found = np.stack([app.decode(rows[at : at + 1]) for at in range(PROMPT - 1, LENGTH)])
    return reference(decoder, rows)[PROMPT - 1 :], found


# --- what the provider takes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["tiny", *SMALL])
def test_every_node_is_taken(written: Any, name: str, variant: str) -> None:
    folder, decoder = written(name, variant)
    for file in FILES:
        onnx.checker.check_model(str(folder / file), full_check=True)
        model = read(folder / file)
        taken = len(model.graph.node) - len(refused(model, kernels_outside=True))
        print(f"{name} {variant} {file}: {taken} of {len(model.graph.node)} nodes")
        assert taken == len(model.graph.node) > 30 * decoder.config.layers
        assert {each.domain: each.version for each in model.opset_import} == {"": COREML_OPSET}
        assert largest_axis(model) < HEAD_CAP


def test_exponents_and_shifted_keys_bring_no_other_ops(tmp_path: Path) -> None:
    decoder = biased().decoder
    folder = files(decoder, tmp_path / "scaled", "fp16", EXPONENTS)
    for file in FILES:
        assert refused(read(folder / file), kernels_outside=True) == {}


def test_nothing_but_kernels_lies_outside(written: Any) -> None:
    """What else releases of the provider could not read there."""
    folder, _ = written("qwen2", "fp32")
    for file in FILES:
        graph = read(folder / file).graph
        kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
        outside = {each.name for each in graph.initializer if each.data_location == TensorProto.EXTERNAL}
        assert outside == kernels
        assert all(
            helper.get_node_attr_value(node, "kernel_shape") == [1, 1] for node in graph.node if node.op_type == "Conv"
        )


def test_the_plain_variant_is_refused(tmp_path: Path) -> None:
    model = read(write(small_model().decoder, tmp_path / "plain", "fp32"))
    reasons = refused(model, kernels_outside=True)
    text = "; ".join(reason for each in reasons.values() for reason in each)
    assert "com.microsoft:GroupQueryAttention" in text
    assert "lies outside the model" in text
    assert len(reasons) > len(model.graph.node) // 2


class NoData(DataFile):
    """A data file that is never written: only where weights would lie is of interest."""

    def place(self, name: str, size: int, pieces: Callable[[], Iterable[bytes]]) -> int:
        return 0


@pytest.mark.parametrize("size", SIZES)
def test_official_sizes(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node of every layer of every size, without its weights: what is in the data file is not made."""
    monkeypatch.setattr("export.onnx.coreml_ep.DataFile", NoData)
    decoder = hollow(size)
    write_coreml_language(decoder, tmp_path, 2048, variant="fp16")
    for file, spec in zip(FILES, coreml_functions(decoder.config, 2048), strict=True):
        model = read(tmp_path / file)
        assert refused(model, kernels_outside=True) == {}
        assert largest_axis(model) < HEAD_CAP <= LARGEST_AXIS
        assert [value.name for value in model.graph.input] == [each.name for each in spec.inputs]
        parts = -(-decoder.config.intermediate_size // HEAD_CAP)
        kernels = sum(node.op_type == "Conv" for node in model.graph.node)
        whole = decoder.config.layers * (4 + 3 * parts)
        assert kernels == (
            whole + len(spec.outputs) - 2 * decoder.config.layers if file == DECODE else whole - 2 - 3 * parts
        )


def hollow(size: str) -> Decoder:
    """A decoder of an official size whose tensors are one number each."""
    with torch.device("meta"):
        decoder = Decoder(SIZES[size].text)
    for name, value in list(decoder.named_parameters()):
        module, _, leaf = name.rpartition(".")
        decoder.get_submodule(module)._parameters[leaf] = nn.Parameter(torch.ones(1).expand(value.shape), False)
    return decoder


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["tiny", *SMALL])
def test_logits(written: Any, name: str, variant: str) -> None:
    folder, decoder = written(name, variant)
    row = "coreml_tiny_fp16" if (name, variant) == ("tiny", "fp16") else f"coreml_{variant}"
    check(row, *logits(folder, decoder), name)


def biased() -> Any:
    model = small_model()
    for index, layer in enumerate(model.decoder.layers):
        layer.self_attn.k_proj.bias.view(2, 32)[:, 15::16] = 600.0 + index
    return model


def test_exponents_and_shifted_keys(tmp_path: Path) -> None:
    decoder = biased().decoder
    check("coreml_fp16", *logits(files(decoder, tmp_path / "scaled", "fp16", EXPONENTS), decoder))


@pytest.mark.parametrize("cap", [40, 97])
def test_axes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: int) -> None:
    """An MLP of 96 in three parts, or in one; a head of 300 rows in several outputs."""
    monkeypatch.setattr("export.onnx.coreml_layers.HEAD_CAP", cap)
    monkeypatch.setattr("export.chunks.HEAD_CAP", 150)
    decoder = small_model().decoder
    folder = files(decoder, tmp_path / "parts")
    names = {each.name for each in read(folder / DECODE).graph.initializer}
    assert ("layers.0.mlp.down_proj.weight.32" in names) == (cap == 40)
    assert {value.name for value in read(folder / DECODE).graph.output} >= {"logits0", "logits1", "logits2"}
    check("coreml_fp32", *logits(folder, decoder))


def test_both_files_share_the_data(written: Any, tmp_path: Path) -> None:
    folder, _ = written("qwen2", "fp32")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, f"{DECODE}.data"])
    places = [external(read(folder / file)) for file in FILES]
    assert places[1].items() <= places[0].items()
    assert {location for location, _ in places[0].values()} == {f"{DECODE}.data"}


def external(model: ModelProto) -> dict[str, tuple[str, str]]:
    found = {}
    for each in model.graph.initializer:
        place = {entry.key: entry.value for entry in each.external_data}
        if place:
            found[each.name] = place["location"], place["offset"]
    return found


def test_a_streamed_checkpoint_gives_the_same_bytes(written: Any, tmp_path: Path) -> None:
    folder, _ = written("tiny", "fp16")
    again = files(load_checkpoint("tiny", stream=True).decoder, tmp_path / "again", "fp16")
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
@pytest.mark.parametrize("name", [*SMALL])
def test_the_files_are_what_the_contract_says(written: Any, name: str, variant: str) -> None:
    folder, decoder = written(name, variant)
    for file, spec in zip(FILES, coreml_functions(decoder.config, CONTEXT, QUERY, variant), strict=True):
        graph = read(folder / file).graph
        for wanted, found in ((spec.inputs, graph.input), (spec.outputs, graph.output)):
            assert {each.name: (each.shape, each.dtype) for each in wanted} == dict(ports(found))


def ports(values: Iterable[Any]) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    for value in values:
        kind = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in kind.shape.dim)
        yield value.name, (shape, helper.tensor_dtype_to_np_dtype(kind.elem_type).name)


# --- planted faults ---------------------------------------------------------------------------------------------------


class Behind(FixedHost):
    """A host whose padded rows see those behind the last real one, and whose real rows see them too."""

    def mask(self, count: int, query: int) -> np.ndarray:
        return np.zeros_like(super().mask(count, query))


class OneOff(FixedHost):
    """A host that lets rows see one position of the cache too few."""

    def mask(self, count: int, query: int) -> np.ndarray:
        found = super().mask(count, query).copy()
        found[..., max(self.position - 1, 0)] = -1e4
        return found


@pytest.mark.parametrize("host", [Behind, OneOff])
def test_a_wrong_mask_shows(written: Any, host: type[FixedHost]) -> None:
    folder, decoder = written("qwen2", "fp32")
    check("planted_fault", *logits(folder, decoder, host), host.__name__)


@pytest.mark.parametrize("method", ["_rotated", "_softmax", "_norm"])
def test_planted_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Keys and queries as they come, a mask that nobody adds, a norm without its gain."""
    faults: dict[str, Any] = {
        "_rotated": lambda self, x: x,
        "_softmax": lambda self, scores: self.graph.op("Softmax", scores, axis=-1),
        "_norm": lambda self, name, x: x,
    }
    monkeypatch.setattr(CoremlWriter, method, faults[method])
    decoder = small_model().decoder
    folder = tmp_path / "fault"
    wanted, found = logits(files(decoder, folder), decoder)
    check("planted_fault", wanted, found, method)
    assert np.isfinite(snr(wanted, found))


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_refused_options_all_at_once() -> None:
    with pytest.raises(UsageError, match=r"--quantize is 'int4', expected fp32 or fp16.*--context is 16320, expected"):
        check_coreml(16_320, 64, "int4")
    assert check_coreml(16_319, 64, "fp32") == TensorProto.FLOAT
