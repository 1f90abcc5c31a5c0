"""An ONNX graph in the making: each call adds what it says and returns the name by which later ops read it.

Notable choices:
- values are named after the op and the module that makes them ("layers.0.mlp/MatMul"), weights after the checkpoint's
  tensors, so that a profile of onnxruntime and a fault can be traced back;
- weights of `LARGE` bytes and more go into the data file, in the order in which ops first ask for them; without a data
  file they stay in the model;
- the standard opset is 21 unless another is asked for, IR version 10: what onnxruntime 1.20 and onnx 1.17 read.
  `com.microsoft` is asked for only where an op of it is used.
It knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from export.onnx.data import DataFile

OPSET, IR_VERSION = 21, 10
MICROSOFT, MICROSOFT_OPSET = "com.microsoft", 1
LARGE = 1024  # bytes
Dimension = int | str
BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT32: 32,
    TensorProto.INT64: 64,
}  # fmt: skip


class Graph:
    """One graph and its weights; `data` takes the large ones, and without it the model keeps them."""

    def __init__(self, name: str, data: DataFile | None, opset: int = OPSET) -> None:
        self._name, self._data, self._opset = name, data, opset
        self._nodes: list[NodeProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._values: list[ValueInfoProto] = []
        self._weights: dict[str, TensorProto] = {}
        self._names: dict[str, int] = {}
        self._scope: list[str] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names what is added inside after a module: "layers.0", then "self_attn"."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def input(self, name: str, dtype: int, shape: Sequence[Dimension]) -> str:
        """Declares an input; a dimension that is a word may be any number."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[Dimension]) -> None:
        """Declares a value as an output of the given name: what the last op gives is called so, others are passed."""
        if self._nodes and list(self._nodes[-1].output) == [value]:
            self._nodes[-1].output[0] = name
            self._values = [known for known in self._values if known.name != value]
        else:
            self._nodes.append(helper.make_node("Identity", [value], [name], name=f"out/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def result(self, name: str, dtype: int, shape: Sequence[Dimension]) -> str:
        """Declares an output that an op writes itself (`into`), as a buffer that is bound in place asks for."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", into: str | None = None, **attributes: Any) -> str:
        """Adds an op with one output and returns its name; an input "" is one that is left out."""
        return self.ops(kind, *inputs, count=1, domain=domain, into=None if into is None else [into], **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, count: int, domain: str = "", into: Sequence[str] | None = None,
        **attributes: Any,
    ) -> list[str]:  # fmt: skip
        """Adds an op with `count` outputs and returns their names; `into` gives them, "" for one that is left out."""
        node = self._unique("/".join((".".join(self._scope), kind)))
        outputs = (
            list(into) if into is not None else [node if not place else f"{node}:{place}" for place in range(count)]
        )
        made = helper.make_node(kind, inputs, outputs, name=node, domain=domain)
        made.attribute.extend(_attribute(name, value) for name, value in attributes.items())
        self._nodes.append(made)
        return outputs

    def microsoft(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds an op of onnxruntime's own domain."""
        return self.op(kind, *inputs, domain=MICROSOFT, **attributes)

    def typed(self, value: str, dtype: int, shape: Sequence[Dimension]) -> str:
        """States what onnx cannot infer, the type and shape of what an op of another domain gives; returns the name."""
        self._values.append(helper.make_tensor_value_info(value, dtype, shape))
        return value

    def constant(self, values: NDArray[Any], name: str | None = None) -> str:
        """Returns numbers as a weight in the graph itself; equal ones without a name are there once."""
        values = np.asarray(values, order="C")  # which, unlike ascontiguousarray, leaves a scalar without axes
        if name is None:
            content = numpy_helper.from_array(values)
            name = f"const/{content.data_type}/{list(values.shape)}/{content.raw_data.hex()}"
            if len(name) > 80:
                name = self._unique("const")
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(values, name)
        return name

    def weight(
        self, name: str, dtype: int, shape: Sequence[int], pieces: Callable[[], Iterable[bytes]]
    ) -> str:  # fmt: skip
        """Returns a weight whose bytes, little-endian in order, `pieces` gives; one of that name is written once."""
        if name in self._weights:
            return name
        tensor = TensorProto(name=name, data_type=dtype, dims=shape)
        size = prod(shape) * BITS[dtype] // 8
        if self._data is None or size < LARGE:
            tensor.raw_data = b"".join(pieces())
        else:
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": self._data.name, "offset": self._data.place(name, size, pieces), "length": size}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
        self._weights[name] = tensor
        return name

    def model(self, producer: tuple[str, str], text: str, metadata: dict[str, str]) -> ModelProto:
        """Returns the model: the graph, the opsets that it uses, who made it, what it is, and what a reader may ask."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._weights.values()), doc_string=text,
            value_info=self._values,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", self._opset)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET))
        name, version = producer
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=name, producer_version=version
        )
        helper.set_model_props(model, metadata)
        return model

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"


def _attribute(name: str, value: Any) -> AttributeProto:
    return helper.make_attribute(name, value)


def write_model(model: ModelProto, path: Path) -> None:
    """Writes a model's file with the same bytes for the same model."""
    path.write_bytes(model.SerializeToString(deterministic=True))
