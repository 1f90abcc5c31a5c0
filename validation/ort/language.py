"""LanguageModel.onnx with its cache: buffers made once and bound once, so that no call copies or allocates a cache.

The graph has one form for any number of rows. Past and present of each layer are the same buffer (GroupQueryAttention
then writes only the new rows), logits land in a buffer that is kept. What lies behind the last filled position is never
read, so going back to an earlier position costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime import OrtValue, RunOptions

from fastvlm.build import Build
from fastvlm.errors import ExecutionError, PackageError, PromptError
from validation.ort.calls import Calls
from validation.ort.loading import Loaded
from validation.ort.opening import OnnxFile, Port

# Stated a second time, not taken from `export`, so that one holds the other.
EMBEDS, LAST, TOTAL, LOGITS = "inputsEmbeds", "seqlensK", "totalSequenceLength", "logits"
PAST, PRESENT = ("pastKeys", "pastValues"), ("presentKeys", "presentValues")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
MOST_ROWS = 512  # of one call: those of 0.5B take 100 MB, 1536 take 170, and are no faster


class LanguageModel:
    """The session of a decoder (`check_decoder`) and all its buffers, for one conversation at a time."""

    def __init__(self, loaded: Loaded, calls: Calls, build: Build) -> None:
        self.loaded, self.context, self._calls = loaded, build.context, calls
        self._dtype = _numpy_dtype(loaded.file.inputs[EMBEDS])
        self._binding = loaded.session.io_binding()
        self._bound: list[tuple[NDArray[Any], OrtValue]] = []  # onnxruntime holds no reference to the arrays
        self._last, self._total = np.zeros(1, np.int32), np.zeros((), np.int32)
        self._logits = np.zeros((1, 1, build.vocab_size), np.float32)
        self._bind_all()

    def _bind_all(self) -> None:
        binding = self._binding
        binding.bind_ortvalue_input(LAST, self._value(self._last))
        binding.bind_ortvalue_input(TOTAL, self._value(self._total))
        binding.bind_ortvalue_output(LOGITS, self._value(self._logits))
        for past, present, port in _caches(self.loaded.file):
            try:
                # Zeros of the system's: pages take memory when rows are first written to them.
                buffer = self._value(np.zeros(_lengths(port), _numpy_dtype(port)))
            except (MemoryError, ValueError) as error:
                raise ExecutionError(
                    f"{self.loaded.file.path}: no memory for a cache of {list(port.shape)}; take a smaller --context"
                ) from error
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)

    @property
    def cache_bytes(self) -> int:
        """What keys and values of all layers take when every position is filled."""
        ports = [port for _, _, port in _caches(self.loaded.file)]
        return sum(math.prod(_lengths(port)) * _numpy_dtype(port).itemsize for port in ports)

    def _value(self, array: NDArray[Any]) -> OrtValue:
        """The array as onnxruntime sees it, in place; kept for as long as the binding."""
        value = OrtValue.ortvalue_from_numpy(array)
        self._bound.append((array, value))
        return value

    def check_room(self, position: int, count: int) -> None:
        """Raises PromptError where `count` rows behind `position` do not fit into the context."""
        if position + count > self.context:
            raise PromptError(
                f"{position} positions are used and {count} more do not fit into the context of {self.context}; "
                "shorten the prompt, or export with a larger --context"
            )

    def __call__(self, embeds: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        """Writes rows (S, H), at most MOST_ROWS, behind `position`; returns the last one's logits (V,), a copy.

        Raises as `check_room`, ExecutionError and Stopped as `Calls`.
        """
        self.check_room(position, len(embeds))
        end = position + len(embeds)
        rows = np.ascontiguousarray(embeds[None], self._dtype)  # [1, S, H]

        def call(options: RunOptions) -> NDArray[np.float32]:
            # All of it on the thread of the calls: one that was interrupted may still be reading these buffers.
            self._last[0], self._total[()] = end - 1, end
            self._binding.bind_ortvalue_input(EMBEDS, OrtValue.ortvalue_from_numpy(rows))
            self.loaded.session.run_with_iobinding(self._binding, options)
            logits: NDArray[np.float32] = self._logits[0, 0].copy()
            return logits

        return self._calls(self.loaded.file.path.name, call, shrink=len(rows[0]) > 1)


def check_decoder(file: OnnxFile, build: Build) -> None:
    """Raises PackageError where inputs and outputs are not those that the build's manifest promises."""
    problems = list(_problems(file, build))
    if problems:
        raise PackageError(f"{file.path} does not fit its manifest: {'; '.join(problems)}; export again")


def _caches(file: OnnxFile) -> Iterator[tuple[str, str, Port]]:
    """(input, output, port) of the keys and the values of each layer."""
    for past, present in zip(PAST, PRESENT, strict=True):
        layer = 0
        while f"{past}.{layer}" in file.inputs:
            yield f"{past}.{layer}", f"{present}.{layer}", file.inputs[f"{past}.{layer}"]
            layer += 1


def _problems(file: OnnxFile, build: Build) -> Iterator[str]:
    """Where the file's inputs and outputs are not those of the manifest's model."""
    assert build.embeddings is not None  # there is a language model
    caches = list(_caches(file))
    wanted_in = {EMBEDS, LAST, TOTAL, *(past for past, _, _ in caches)}
    wanted_out = {LOGITS, *(present for _, present, _ in caches)}
    if not caches or set(file.inputs) != wanted_in or set(file.outputs) != wanted_out:
        odd = (set(file.inputs) ^ wanted_in) | (set(file.outputs) ^ wanted_out)
        yield f"it has {len(caches)} caches, and inputs or outputs are missing or unknown: {sorted(odd)[:8]}"
        return
    embeds, logits = file.inputs[EMBEDS], file.outputs[LOGITS]
    width, first = build.embeddings.width, caches[0][2]
    if embeds.dtype not in FLOATS or len(embeds.shape) != 3 or embeds.shape[::2] != (1, width):
        yield f"{EMBEDS} is {embeds.words}, expected floats [1, S, {width}]"
    elif isinstance(embeds.shape[1], int):
        yield f"{EMBEDS} takes {embeds.shape[1]} rows, expected any number of them"
    if logits != Port(TensorProto.FLOAT, (1, 1, build.vocab_size)):
        yield f"{LOGITS} is {logits.words}, expected float [1, 1, {build.vocab_size}]"
    for name, shape in ((LAST, (1,)), (TOTAL, ())):
        if file.inputs[name] != Port(TensorProto.INT32, shape):
            yield f"{name} is {file.inputs[name].words}, expected int32 {list(shape)}"
    odd_caches = {port for past, present, each in caches for port in (each, file.outputs[present])} - {first}
    lengths = _lengths(first)
    known = len(lengths) == 4 and min(lengths) > 0 and lengths[0] == 1 and first.dtype in FLOATS
    if odd_caches or not known or first.shape[2:] != (build.context, build.head_dim):
        shown = sorted({port.words for port in (first, *odd_caches)})[:4]
        yield f"caches are {shown}, expected all alike, floats [1, kv_heads, {build.context}, {build.head_dim}]"


def _lengths(port: Port) -> list[int]:
    return [length for length in port.shape if isinstance(length, int)]


def _numpy_dtype(port: Port) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(port.dtype)
