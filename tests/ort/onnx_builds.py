"""A build of ONNX files of a small model, by the names that a build has: a decoder whole, an encoder that is none.

The decoder is the model's own, written op by op with GroupQueryAttention. The encoder takes the mean of each square of
the picture through a drawn matrix, which is enough to tell pictures apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from export.onnx.data import DataFile
from export.onnx.graph import Graph, write_model
from fastvlm.manifest import write_manifest
from fastvlm_ref.model.decoder import DecoderLayer
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import prompt_record

LANGUAGE, DATA = "LanguageModel.onnx", "LanguageModel.onnx.data"
MADE_BY = ("fastvlm tests", "0")
CONTEXT = 256


class Writer:
    """A graph with arrays as weights, in one dtype of floats; `prefix` begins the names of the weights."""

    def __init__(self, graph: Graph, dtype: int) -> None:
        self.graph, self.dtype, self.prefix = graph, dtype, ""
        self._numpy = helper.tensor_dtype_to_np_dtype(dtype)

    def weight(self, name: str, values: Any) -> str:
        array = np.ascontiguousarray(np.asarray(values), self._numpy)
        return self.graph.weight(self.prefix + name, self.dtype, array.shape, lambda: [array.tobytes()])

    def linear(self, x: str, name: str, layer: Any) -> str:
        product = self.graph.op("MatMul", x, self.weight(f"{name}.weight", layer.weight.T))
        return product if layer.bias is None else self.graph.op("Add", product, self.weight(f"{name}.bias", layer.bias))

    def norm(self, x: str, name: str, layer: Any) -> str:
        weight = self.weight(f"{name}.weight", layer.weight)
        return self.graph.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=layer.eps, stash_type=1)

    def layer(self, x: str, index: int, layer: DecoderLayer, context: int, shared: Sequence[str]) -> str:
        graph, config, dtype = self.graph, layer.self_attn.config, self.dtype
        shape = (1, config.kv_heads, context, config.head_dim)
        past = [graph.input(f"past{kind}.{index}", dtype, shape) for kind in ("Keys", "Values")]
        present = [graph.result(f"present{kind}.{index}", dtype, shape) for kind in ("Keys", "Values")]
        normed = self.norm(x, "input_layernorm", layer.input_layernorm)
        q, k, v = (self.linear(normed, n, getattr(layer.self_attn, n)) for n in ("q_proj", "k_proj", "v_proj"))
        mixed = graph.ops(
            "GroupQueryAttention", q, k, v, *past, *shared, count=3, domain="com.microsoft",
            into=[f"mixed.{index}", *present], num_heads=config.heads, kv_num_heads=config.kv_heads, do_rotary=1,
        )[0]  # fmt: skip
        x = graph.op("Add", x, self.linear(mixed, "o_proj", layer.self_attn.o_proj))
        normed = self.norm(x, "post_attention_layernorm", layer.post_attention_layernorm)
        gate, up = (self.linear(normed, n, getattr(layer.mlp, n)) for n in ("gate_proj", "up_proj"))
        silu = graph.op("Mul", gate, graph.op("Sigmoid", gate))
        return graph.op("Add", x, self.linear(graph.op("Mul", silu, up), "down_proj", layer.mlp.down_proj))


def write_decoder(model: FastVLM, folder: Path, context: int = CONTEXT, dtype: int = TensorProto.FLOAT) -> Path:
    """LanguageModel.onnx of the model, with its data file."""
    config, decoder = model.config.text, model.decoder
    with DataFile(folder / DATA) as data:
        graph = Graph("LanguageModel", data)
        writer = Writer(graph, dtype)
        x = graph.input("inputsEmbeds", dtype, [1, "S", config.hidden_size])
        lengths = (
            graph.input("seqlensK", TensorProto.INT32, [1]),
            graph.input("totalSequenceLength", TensorProto.INT32, []),
        )
        exponents = -np.arange(0, config.head_dim, 2) / config.head_dim
        angles = np.arange(context)[:, None] * config.rope_theta**exponents
        shared = (*lengths, writer.weight("cos", np.cos(angles)), writer.weight("sin", np.sin(angles)))
        for index, layer in enumerate(decoder.layers):
            writer.prefix = f"layers.{index}."
            with graph.scope(f"layers.{index}"):
                x = writer.layer(x, index, layer, context, shared)
        writer.prefix = ""
        last = (graph.constant(np.array([number])) for number in (-1, np.iinfo(np.int64).max, 1))
        hidden = writer.norm(graph.op("Slice", x, *last), "norm", decoder.norm)
        logits = writer.linear(hidden, "lm_head", decoder.lm_head)
        logits = graph.op("Cast", logits, to=TensorProto.FLOAT)
        graph.output(logits, "logits", TensorProto.FLOAT, [1, 1, config.vocab_size])
        write_model(graph.model(MADE_BY, "", {}), folder / LANGUAGE)
    return folder / LANGUAGE


def write_encoder(model: FastVLM, folder: Path, side: int, name: str = "VisionEncoder.onnx") -> Path:
    """An encoder by its inputs and outputs: squares of a picture through a drawn matrix."""
    stride, hidden = model.config.vision.stride, model.config.text.hidden_size
    tokens = (side // stride) ** 2
    matrix = np.random.default_rng(0).standard_normal((3, hidden), np.float32)
    with DataFile(folder / f"{name}.data") as data:
        graph = Graph("VisionEncoder", data)
        image = graph.input("image", TensorProto.UINT8, [1, side, side, 3])
        floats = graph.op("Div", graph.op("Cast", image, to=TensorProto.FLOAT), graph.constant(np.float32([255])))
        planes = graph.op("Transpose", floats, perm=[0, 3, 1, 2])
        squares = graph.op("AveragePool", planes, kernel_shape=[stride, stride], strides=[stride, stride])
        flat = graph.op("Reshape", squares, graph.constant(np.array([1, 3, tokens])))
        rows = graph.op("Transpose", flat, perm=[0, 2, 1])
        weight = graph.weight("projector", TensorProto.FLOAT, matrix.shape, lambda: [matrix.tobytes()])
        graph.output(graph.op("MatMul", rows, weight), "imageFeatures", TensorProto.FLOAT, [1, tokens, hidden])
        write_model(graph.model(MADE_BY, "", {}), folder / name)
    return folder / name


def write_build(model: FastVLM, folder: Path, context: int = CONTEXT, dtype: int = TensorProto.FLOAT) -> Path:
    """A build folder of the model: encoder at its own size, decoder, float32 embeddings, tokenizer, manifest."""
    folder.mkdir()
    text, side = model.config.text, model.config.vision.image_size
    write_decoder(model, folder, context, dtype)
    write_encoder(model, folder, side)
    (folder / "embeddings.bin").write_bytes(model.decoder.embed_tokens.weight.numpy().tobytes())
    model.tokenizer.save(folder / "tokenizer")
    sizes = {name: getattr(text, name) for name in ("vocab_size", "head_dim", "rope_theta")}
    manifest: dict[str, Any] = {
        "format": "onnx", "fastvlm_version": "0.1.0", "functions": {}, "compression": {}, "licence": "unknown",
        "files": {}, "source": {"id": "tiny", "files": {}}, "context": context,
        "image": {"rule": model.config.image_rule, "sizes": [side]}, "prompt": prompt_record(model.config.prompt),
        "model": {"text": sizes, "vision": {"stride": model.config.vision.stride}},
        "packages": {"encoder": {str(side): "VisionEncoder.onnx"}, "language": [LANGUAGE]},
        "embeddings": {
            "file": "embeddings.bin", "rows": text.vocab_size, "width": text.hidden_size, "dtype": "float32",
        },
        "tokenizer": {"folder": "tokenizer"},
    }  # fmt: skip
    write_manifest(folder / "manifest.json", manifest)
    return folder


def edit_manifest(folder: Path, **changes: Any) -> Path:
    """The build with other fields at the top of its manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    return folder
