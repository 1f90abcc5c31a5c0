"""Language models written as ONNX, run by onnxruntime on one thread, and the limits that they are held to here.

The limits have the form of `validation.limits`; each keeps 3 to 12 times headroom (10 to 22 dB) but fp32's and fp16's
on trained weights, which the design fixes. What drawn weights of a few layers lose says little of trained ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, shape_inference
from onnxruntime import OrtValue
from small_export import small_model

from export.onnx.coreml_ep import DECODE, PREFILL
from export.onnx.language import FILE, write_language
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder, rope_tables
from validation.limits import Limit
from validation.metrics import snr_db

CONTEXT = 96
ROWS = (
    Limit("tiny_fp32", "snr_db", "min", 100.0, 127.3, "float32 in another order of operations"),
    Limit("tiny_fp16", "snr_db", "min", 60.0, 77.7, "weights, and what enters and leaves each product, in fp16"),
    Limit("tiny_int8", "snr_db", "min", 26.0, 38.6, "weights and activations of eight bits"),
    Limit("tiny_int4", "snr_db", "min", 4.0, 14.3, "weights of four bits, the head of eight"),
    Limit("small_fp32", "snr_db", "min", 100.0, 117.4, "drawn weights"),
    Limit("small_fp16", "snr_db", "min", 46.0, 57.2, "drawn weights, none of which fp16 holds exactly"),
    Limit("half_machine", "snr_db", "min", 44.0, 54.8, "drawn weights, each op's result rounded"),
    Limit("half_machine_tiny_fp16", "snr_db", "min", 60.0, 69.5, "trained weights, each op's result rounded"),
    Limit("half_machine_tiny_fp32", "snr_db", "min", 100.0, 126.5, "the ops in numpy, written a second time"),
    Limit("codes", "snr_db", "min", 23.0, 34.5, "int8 and int4 beside their own dequantised weights: activations"),
    Limit("coded_fault", "snr_db", "max", 13.0, 0.4, "codes that are read in another way"),
    Limit("matrix_8", "snr_db", "min", 33.0, 45.6, "a drawn matrix as codes"),
    Limit("matrix_4", "snr_db", "min", 11.0, 22.1, "a drawn matrix as codes"),
    Limit("product_floats", "snr_db", "min", 120.0, 140.0, "one product of drawn numbers"),
    Limit("product_8", "snr_db", "min", 30.0, 41.6, "the same, of eight bits"),
    Limit("product_4", "snr_db", "min", 10.0, 21.2, "the same, of four"),
    Limit("parts_fp32", "snr_db", "min", 105.0, 122.9, "one call against several: other orders of sums"),
    Limit("parts_fp16", "snr_db", "min", 60.0, 75.0, "the same, rounded to fp16 between ops"),
    Limit("parts_codes", "snr_db", "min", 32.0, 51.8, "the same; an activation may round to the next of 256 values"),
    Limit("coreml_tiny_fp16", "snr_db", "min", 60.0, 71.3, "trained weights, rounded between ops"),
    Limit("coreml_fp32", "snr_db", "min", 100.0, 121.1, "in standard ops, cache and new rows apart"),
    Limit("coreml_fp16", "snr_db", "min", 44.0, 55.0, "drawn weights, rounded between ops"),
    Limit("planted_fault", "snr_db", "max", 40.0, 26.5, "a wrong op, position or weight in fp32"),
)  # fmt: skip
LIMITS = {row.quantity: row for row in ROWS}
# Qwen2 with grouped queries and a tied head, and a Llama as Vicuna is one.
SMALL: dict[str, dict[str, Any]] = {
    "qwen2": {"layers": 3},
    "vicuna": {
        "layers": 3, "kv_heads": 4, "qkv_bias": False, "rope_theta": 1e4, "rms_norm_eps": 1e-5, "tied_head": False,
    },
}  # fmt: skip


def check(quantity: str, wanted: Any, found: Any, subject: str = "") -> None:
    """Holds logits against a row; prints the value, which pytest shows when the row is missed."""
    limit = LIMITS[quantity]
    value = snr(wanted, found)
    print(f"{quantity} {subject}: SNR {value:.4g} dB, limit {limit.words}")
    assert limit.holds(value)


def snr(wanted: Any, found: Any) -> float:
    """Signal to noise in dB."""
    return snr_db(np.asarray(wanted, np.float64), np.asarray(found, np.float64))


def models(tiny_model: Any) -> dict[str, Any]:
    """The embedded checkpoint and the seeded ones, by name."""
    return {"tiny": tiny_model} | {name: small_model(**sizes) for name, sizes in SMALL.items()}


def embeds(decoder: Decoder, count: int) -> NDArray[np.float32]:
    """Rows (count, H) of drawn ids."""
    ids = torch.randint(0, decoder.config.vocab_size, (count,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return np.asarray(decoder.embed_tokens(ids))


def reference(decoder: Decoder, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (S, V) of the PyTorch model."""
    with torch.no_grad():
        return np.asarray(decoder.head(decoder(torch.from_numpy(rows)[None]))[0])


def write(decoder: Decoder, folder: Path, variant: str, context: int = CONTEXT, **options: Any) -> Path:
    """Writes a language model into a new folder and returns the path of its file."""
    folder.mkdir(parents=True)
    write_language(decoder, folder / FILE, context, variant, **options)
    return folder / FILE


def read(path: Path) -> ModelProto:
    """The model without its external data."""
    return onnx.load(path, load_external_data=False)


def inferred(model: ModelProto) -> ModelProto:
    """The model with every type and shape that onnx finds."""
    return shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def session(path: Path) -> onnxruntime.InferenceSession:
    """The file in onnxruntime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Runner:
    """A written language model with one set of buffers, bound as past and as present."""

    def __init__(self, path: Path, text: TextConfig, context: int = CONTEXT, fill: float = 0.0) -> None:
        self.session = session(path)
        kinds = {value.name: value.type for value in self.session.get_inputs()}
        self.floats = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[kinds["inputsEmbeds"]]
        shape = (1, text.kv_heads, context, text.head_dim)
        self.binding, self.caches = self.session.io_binding(), {}
        self._values = []
        for name in [f"{kind}.{layer}" for layer in range(text.layers) for kind in ("Keys", "Values")]:
            array = np.full(shape, fill, self.floats)
            value = OrtValue.ortvalue_from_numpy(array)
            self.binding.bind_ortvalue_input(f"past{name}", value)
            self.binding.bind_ortvalue_output(f"present{name}", value)
            self.caches[name] = array
            self._values.append(value)
        self.logits = np.zeros((1, 1, text.vocab_size), np.float32)
        self._values.append(OrtValue.ortvalue_from_numpy(self.logits))
        self.binding.bind_ortvalue_output("logits", self._values[-1])

    def __call__(self, rows: NDArray[np.float32], past: int, last: int | None = None) -> NDArray[np.float32]:
        """Logits (V,) after rows (S, H) behind `past` positions; `last` overrides seqlensK."""
        total = past + len(rows)
        self.binding.bind_cpu_input("inputsEmbeds", np.ascontiguousarray(rows[None], self.floats))
        self.binding.bind_cpu_input("seqlensK", np.array([total - 1 if last is None else last], np.int32))
        self.binding.bind_cpu_input("totalSequenceLength", np.array(total, np.int32))
        self.session.run_with_iobinding(self.binding)
        return self.logits[0, 0].copy()

    def parts(self, rows: NDArray[np.float32], ends: Sequence[int]) -> NDArray[np.float32]:
        """Logits (len(ends), V) behind each of `ends`, in one call up to each."""
        starts = (0, *ends[:-1])
        return np.stack([self(rows[start:end], start) for start, end in zip(starts, ends, strict=True)])


@dataclass
class FixedHost:
    """What an app does with the two files for the CoreML provider, on whatever provider there is here."""

    folder: Path
    text: TextConfig
    context: int
    query: int

    def __post_init__(self) -> None:
        self.files = {1: session(self.folder / DECODE), self.query: session(self.folder / PREFILL)}
        kind = self.files[1].get_inputs()[0].type
        self.floats = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[kind]
        text, shape = self.text, (1, self.text.kv_heads)
        self.keys = [np.zeros((*shape, text.head_dim, self.context), self.floats) for _ in range(text.layers)]
        self.values = [np.zeros((*shape, self.context, text.head_dim), self.floats) for _ in range(text.layers)]
        self.position = 0

    def call(self, rows: NDArray[np.float32], query: int) -> dict[str, NDArray[Any]]:
        """One call of Q = `query` rows, of which the first len(rows) are real."""
        count = len(rows)
        padded = np.concatenate((rows, np.repeat(rows[-1:], query - count, 0)))
        angles = rope_tables(self.text, torch.arange(self.position, self.position + query))
        given = {
            "inputsEmbeds": padded[None], "ropeCos": angles[0][None, None], "ropeSin": angles[1][None, None],
            "causalMask": self.mask(count, query),
        }  # fmt: skip
        for layer in range(self.text.layers):
            given |= {f"pastKeys.{layer}": self.keys[layer], f"pastValues.{layer}": self.values[layer]}
        wanted = [value.name for value in self.files[query].get_inputs()]
        feed = {name: np.asarray(given[name], self.floats) for name in wanted}
        names = [value.name for value in self.files[query].get_outputs()]
        found = dict(zip(names, self.files[query].run(names, feed), strict=True))
        end = self.position + count
        for layer in range(self.text.layers):
            self.keys[layer][..., self.position : end] = found[f"newKeys.{layer}"][..., :count]
            self.values[layer][:, :, self.position : end] = found[f"newValues.{layer}"][:, :, :count]
        self.position = end
        return found

    def mask(self, count: int, query: int) -> NDArray[Any]:
        """0 where a row may look, −1e4 elsewhere (1, 1, Q, C + Q): the cache up to here, new rows up to itself."""
        old = np.broadcast_to(np.arange(self.context) < self.position, (query, self.context))
        new = np.arange(query) <= np.minimum(np.arange(query), count - 1)[:, None]
        return np.where(np.concatenate((old, new), 1), 0.0, -1e4)[None, None]

    def prefill(self, rows: NDArray[np.float32]) -> None:
        """Fills the cache with rows (S, H)."""
        for start in range(0, len(rows), self.query):
            self.call(rows[start : start + self.query], self.query)

    def decode(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (V,) after one more row (1, H)."""
        found = self.call(row, 1)
        names = sorted((name for name in found if name.startswith("logits")), key=lambda name: int(name[6:] or 0))
        return np.concatenate([found[name].reshape(-1) for name in names])[: self.text.vocab_size].astype(np.float32)
