"""The functions of the language model's packages as Core ML: converted small, made whole on the protobuf.

A graph is traced and converted with stand-ins (`export.standin`), the real numbers are put in, its layers repeated
(`export.repeat`), and every weight named after the checkpoint's tensor whose numbers it holds
(`export.decoder_weights`).
What comes out is, op for op and weight for weight, what converting the whole graph gives. Packages of a chain that
differ in nothing but counts and weights are converted once: time follows the bytes, not the number of packages.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from torch import nn

from export.choice import Compression
from export.chunks import Chunk, HeadSplit, head_split
from export.contract import HIDDEN, FunctionSpec, language_functions
from export.convert import Converted, constant_name, converted, trace
from export.decoder import LAYOUTS, HeadGraph, LanguageGraph
from export.decoder_weights import decoder_weight, head_part
from export.key_shift import shifts_keys
from export.layout import GraphSizes
from export.parameters import GraphWeight
from export.plan import ExportPlan
from export.protection import PROTECTED, Protection
from export.repeat import repeat_layers
from export.standin import StandIn, restore_sizes, stand_in, without_weights
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder


class LanguageConverter:
    """Converts functions of a decoder's packages; what it gives lives as long as the `with` block.

    The decoder's weights may lie in memory or stream; none is read before the weight file is written.
    """

    def __init__(
        self, decoder: Decoder, plan: ExportPlan, compression: Compression | None = None,
        protection: Protection = PROTECTED,
    ) -> None:  # fmt: skip
        self.decoder, self.plan, self.compression = decoder, plan, compression or Compression()
        self.whole = whole_sizes(decoder, plan, protection)
        self.split = head_split(decoder.config, plan.target)
        self._converted: dict[Hashable, Converted] = {}
        self._open = ExitStack()

    def __enter__(self) -> LanguageConverter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._open.close()

    def functions(self, chunk: Chunk) -> tuple[FunctionSpec, ...]:
        """Returns the contract of a package's functions."""
        return language_functions(self.decoder.config, self.plan, chunk, self.split)

    def convert(self, chunk: Chunk, spec: FunctionSpec) -> Converted:
        """Converts one function of one package."""
        text = _text_of(self.decoder.config, chunk, self.split)
        query = spec.inputs[0].shape[1]
        small = stand_in(text, query, self.plan.context)
        program = self._small_program(small, chunk, spec)
        proto = copy.deepcopy(program.proto)
        function = proto.mlProgram.functions["main"]
        restore_sizes(function, proto.description, small.real)
        if small.marked is not None:
            for block in function.block_specializations.values():
                repeat_layers(block, text.layers, small.marked)
        whole = graph_of(self.sizes(chunk, spec), self.plan.target, spec, chunk, self.split)
        weights = {
            constant_name(name): self.compression.of(self.weight(chunk, name)) for name, _ in whole.named_parameters()
        }
        return replace(program, spec=spec, proto=proto, parameters=weights)

    def sizes(self, chunk: Chunk, spec: FunctionSpec) -> GraphSizes:
        """Returns the sizes of one function of one package."""
        text = _text_of(self.decoder.config, chunk, self.split)
        return replace(self.whole, text=text, query=spec.inputs[0].shape[1], first=chunk.number == 1)

    def weight(self, chunk: Chunk, name: str) -> GraphWeight:
        """Returns the parameter `name` of a package's graph, from the checkpoint's tensor behind it."""
        return chunk_weight(self.decoder, self.whole, self.plan.target, chunk, self.split, name)

    def _small_program(self, small: StandIn, chunk: Chunk, spec: FunctionSpec) -> Converted:
        """The function with stand-in sizes, as coremltools converts it."""
        key = (small.text, small.context, small.rows, chunk.number == 1, chunk.parts, spec.name, spec.outputs[0].name)
        if key not in self._converted:
            sizes = replace(self.sizes(chunk, spec), text=small.text, context=small.context)
            chunk = replace(chunk, first=0, last=small.text.layers)
            split = replace(self.split, rows=small.text.vocab_size)
            small_spec = _small_spec(spec, small, self.plan, chunk, split)
            graph = graph_of(sizes, self.plan.target, small_spec, chunk, split, rows=small.rows)
            shapes = tuple(tensor.shape for tensor in small_spec.inputs if tensor.dtype == "float16")
            traced = trace(without_weights(graph), shapes, position=bool(chunk.layers))
            self._converted[key] = self._open.enter_context(converted(traced, small_spec))
        return self._converted[key]


def graph_of(
    sizes: GraphSizes, target: str, spec: FunctionSpec, chunk: Chunk, split: HeadSplit, *,
    rows: Sequence[int] | None = None,
) -> nn.Module:  # fmt: skip
    """Returns the graph of one function of one package, without numbers; `sizes` have that package's layers alone."""
    layout = LAYOUTS[target](sizes)
    if not chunk.layers:
        return HeadGraph(layout, sizes.text.hidden_size, split, chunk.parts)
    end = {"done": "done", HIDDEN: "hidden"}.get(spec.outputs[0].name, "logits")
    return LanguageGraph(layout, sizes, end=end, split=split, parts=chunk.parts, rows=rows)


def whole_sizes(decoder: Decoder, plan: ExportPlan, protection: Protection = PROTECTED) -> GraphSizes:
    """Returns the sizes of all layers at once, which decide what is folded into weights."""
    shifts = protection.safe_forms and shifts_keys(decoder, plan.context)
    return GraphSizes(decoder.config, plan.query_length, plan.context, protection, shifts_keys=shifts)


def chunk_weight(
    decoder: Decoder, sizes: GraphSizes, target: str, chunk: Chunk, split: HeadSplit, name: str
) -> GraphWeight:
    """Returns the parameter `name` of a package's graph, from the checkpoint's tensor behind it.

    `sizes` are the whole decoder's (`whole_sizes`).
    """
    kind, _, rest = name.partition(".")
    number, _, leaf = rest.partition(".")
    if kind == "lm_head" and split.count > 1:
        return head_part(decoder, int(number), split.rows, target)
    if kind == "layers":
        name = f"layers.{chunk.first + int(number)}.{leaf}"
    return decoder_weight(decoder, name, sizes, target)


def _text_of(text: TextConfig, chunk: Chunk, split: HeadSplit) -> TextConfig:
    """The sizes of one package's part of the decoder."""
    return replace(text, layers=chunk.layers, vocab_size=split.rows, tied_head=False)


def _small_spec(spec: FunctionSpec, small: StandIn, plan: ExportPlan, chunk: Chunk, split: HeadSplit) -> FunctionSpec:
    """The function's contract with stand-in sizes."""
    functions = language_functions(small.text, replace(plan, context=small.context), chunk, split)
    found = next(function for function in functions if function.name == spec.name)
    if found.state is None:
        return found
    return replace(found, state=replace(found.state, shape=(small.rows[-1], *found.state.shape[1:])))
